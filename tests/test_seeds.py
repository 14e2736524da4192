"""Every row of the five older systems that this release must cover is named by some test."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import durabletask.testing

TESTS = Path(__file__).parent
SHIPPED = Path(durabletask.testing.__file__).parent
"""The conformance suite among it; beside the tests in a checkout, and elsewhere if installed."""

ROWS = {
    "S0": range(1, 15),
    "S1": range(1, 21),
    "S2": [*range(1, 15), 17, 18],
    "S3": range(1, 8),
    "S4": range(1, 20),
}
"""By system; docs/comparison.md tells what each row is.

Not among them: S2.15, S2.16, S3.08 and S3.09, which come later; S4.20 and the
benchmark of S1.18, which come with the figures of scale.
"""

ON_POSTGRES = ("S1.01", "S1.16", "S1.20", "S2.14", "S3.02", "S4.10")
"""Rows of many hosts on one database: a test in memory or on a folder proves less of them."""

ALL = [f"{system}.{row:02}" for system, rows in ROWS.items() for row in rows]


def named_rows() -> dict[str, set[str]]:
    """Return, by row, the tests whose docstring names it."""
    found: dict[str, set[str]] = {}
    for folder, pattern in ((TESTS, "test_*.py"), (SHIPPED, "*.py")):
        for path in folder.rglob(pattern):
            place = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            for name, docstring in docstrings_in(path):
                for row in re.findall(r"\bS\d\.\d\d\b", docstring):
                    found.setdefault(row, set()).add(f"{place}::{name}")
    return found


def docstrings_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of each test in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if name.startswith("test_"):
                    yield name, ast.get_docstring(node) or ""


@pytest.fixture(scope="module")
def named() -> dict[str, set[str]]:
    return named_rows()


@pytest.mark.parametrize("row", ALL)
def test_each_row_is_proven_by_a_test_that_names_it(row: str, named: dict[str, set[str]]) -> None:
    """The list of rows is covered: a row without a test is a promise without a proof."""
    assert named.get(row), f"no test's docstring names {row}"


@pytest.mark.parametrize("row", ON_POSTGRES)
def test_rows_of_many_hosts_are_proven_on_postgres(row: str, named: dict[str, set[str]]) -> None:
    """What several programs do on one database is proven on that database."""
    proven = [each for each in named.get(row, ()) if each.startswith("tests/postgres/")]
    assert proven, f"no test in tests/postgres names {row}"


def test_the_tests_that_are_shipped_are_looked_at(named: dict[str, set[str]]) -> None:
    """The conformance suite names rows too, wherever the package was imported from."""
    assert any(each.startswith("testing/") for found in named.values() for each in found)


def test_the_list_is_whole() -> None:
    """76 rows belong to what is built so far."""
    assert len(ALL) == len(set(ALL)) == 76
    assert set(ON_POSTGRES) <= set(ALL)
