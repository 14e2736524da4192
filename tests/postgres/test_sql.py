"""The statements and the one thing that is rewritten in them."""

import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabletask.errors import InvalidArgumentError
from durabletask_postgres._sql import FOLDER, Statements, check_schema, parse


@pytest.mark.parametrize("name", ["durabletask", "d", "_x9", "select", "a" * 63])
def test_a_plain_name_can_be_a_schema(name: str) -> None:
    """A name that means the same quoted and unquoted is taken as it is, reserved words too."""
    assert check_schema(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Orders",
        'a"b',
        "a b",
        "a.b",
        "a;b",
        "9a",
        "ä",
        "a" * 64,
        "a\n",
        "a-b",
        "pg_x",
        "$user",
        None,
    ],
)
def test_any_other_name_is_refused_with_a_hint(name: Any) -> None:
    """F136: a schema with quotes, capitals or more than 63 bytes is refused before any use."""
    with pytest.raises(InvalidArgumentError) as caught:
        Statements(name)
    assert caught.value.hint


def test_the_catalogue_of_postgres_is_no_schema_of_ours() -> None:
    """Nobody makes a storage of information_schema by mistake."""
    with pytest.raises(InvalidArgumentError, match="Postgres itself"):
        check_schema("information_schema")


@given(st.text(max_size=70))
def test_whatever_is_accepted_needs_no_quotes(name: str) -> None:
    """F136: no text that could end an identifier or a literal passes the check."""
    try:
        check_schema(name)
    except InvalidArgumentError:
        return
    assert set(name) <= set(string.ascii_lowercase + string.digits + "_")


def test_another_schema_takes_the_place_of_the_default_one() -> None:
    """Each `durabletask.` becomes the quoted schema, and nothing else changes."""
    text = (
        "select durabletask.clock(), 'durabletask.a'::regclass, my_durabletask.x, a.durabletask.y"
    )
    assert Statements().rewrite(text) == text
    assert Statements("user").rewrite(text) == (
        'select "user".clock(), \'"user".a\'::regclass, my_durabletask.x, a.durabletask.y'
    )


def test_no_statement_of_another_schema_mentions_the_default_one() -> None:
    """Two storages in one database share nothing: every text speaks of its own schema only."""
    other = Statements("other")
    files = [FOLDER / "queries.sql", FOLDER / "session.sql"]
    files += (FOLDER / "migrations").glob("*.sql")
    assert len(files) > 5
    for file in files:
        rewritten = other.rewrite(file.read_text(encoding="utf-8"))
        code = "\n".join(line.partition("--")[0] for line in rewritten.splitlines())
        # "durabletask:" begins the names of the engine's own events, in any schema.
        assert re.search("durabletask(?!:)", code) is None, file


def test_a_file_is_split_at_its_names() -> None:
    """A comment above a name belongs to what follows, so that nothing is commented out."""
    text = "-- file\n-- name: a\nselect 1;\n\n-- about b\n-- name: b\nselect\n  -- inside\n  2\n"
    assert parse(text) == {"a": "select 1", "b": "select\n  -- inside\n  2"}


@pytest.mark.parametrize("text", ["-- name: a\nselect 1\n-- name: a\nselect 2", "-- name: a\n;\n"])
def test_a_statement_is_there_once(text: str) -> None:
    """Two statements of one name, or none behind a name, are found when the files are read."""
    with pytest.raises(ValueError, match="'a'"):
        parse(text)


def test_every_statement_is_one_statement() -> None:
    """No text holds two statements, which the extended protocol would refuse at run time."""
    statements = Statements()
    for file in ("queries.sql", "session.sql"):
        names = parse((FOLDER / file).read_text(encoding="utf-8"))
        assert names
        for name in names:
            code = "\n".join(line.partition("--")[0] for line in statements[name].splitlines())
            assert ";" not in code, name
