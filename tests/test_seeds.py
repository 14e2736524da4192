"""Every row of the five older systems that this release must cover is named by some test."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

ROWS = {
    "S0": [*range(1, 9), 10, 12, 13, 14],
    "S1": [3, 4, 8, 14, 15, 17],
    "S2": [2, 3, 8, 13],
    "S3": [1, 3, 4, 5, 6],
    "S4": range(1, 20),
}
"""By system; docs/comparison.md tells what each row is."""

ALL = [f"{system}.{row:02}" for system, rows in ROWS.items() for row in rows]


def named_rows() -> dict[str, set[str]]:
    """Return, by row, the tests whose docstring names it."""
    found: dict[str, set[str]] = {}
    for path in [
        *TESTS.rglob("test_*.py"),
        *(TESTS.parent / "durabletask" / "testing").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("test_"):
                for row in re.findall(r"\bS\d\.\d\d\b", ast.get_docstring(node) or ""):
                    found.setdefault(row, set()).add(f"{path.name}::{node.name}")
    return found


@pytest.fixture(scope="module")
def named() -> dict[str, set[str]]:
    return named_rows()


@pytest.mark.parametrize("row", ALL)
def test_each_row_is_proven_by_a_test_that_names_it(row: str, named: dict[str, set[str]]) -> None:
    """The list of rows is covered: a row without a test is a promise without a proof."""
    assert named.get(row), f"no test's docstring names {row}"


def test_the_list_is_whole() -> None:
    """46 rows belong to this release."""
    assert len(ALL) == len(set(ALL)) == 46
