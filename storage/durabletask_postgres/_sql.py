"""The SQL texts: where they are kept, and which schema they speak of.

Knows names and texts; refuses to know what a statement does. Texts are whole
statements in `.sql` files, never put together from pieces. The one thing that
is rewritten is the schema: the files say `durabletask.` and another schema,
checked and quoted, takes its place.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from durabletask.errors import InvalidArgumentError

DEFAULT_SCHEMA: Final = "durabletask"
FOLDER: Final = Path(__file__).parent

_FILES = ("queries.sql", "session.sql")
_NAME_LINE = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
"""Means the same with quotes and without; the server cuts names at 63 bytes."""

_PREFIX = re.compile(r"(?<![\w.\"])durabletask\.")


def check_schema(name: str) -> str:
    """Return the name of a schema if it can be one of ours.

    Raises:
        InvalidArgumentError: It cannot; nothing was sent to the server.
    """
    if not isinstance(name, str) or _SCHEMA.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"{name!r} cannot be the schema of a storage",
            hint="1 to 63 of a-z, 0-9 and _, the first no digit; quotes and capitals are refused",
        )
    if name.startswith("pg_") or name == "information_schema":
        raise InvalidArgumentError(
            f"the schema {name!r} belongs to Postgres itself",
            hint=f"leave it out for {DEFAULT_SCHEMA!r}, or choose another name",
        )
    return name


class Statements:
    """Every statement of this package, by name, for one schema."""

    __slots__ = ("_texts", "schema")

    def __init__(self, schema: str = DEFAULT_SCHEMA) -> None:
        """Take the texts for a schema.

        Raises:
            InvalidArgumentError: The name of the schema cannot be used.
        """
        self.schema = check_schema(schema)
        self._texts = {name: self.rewrite(text) for name, text in _texts().items()}

    def __getitem__(self, name: str) -> str:
        """Return the text of a statement."""
        return self._texts[name]

    def rewrite(self, text: str) -> str:
        """Return SQL of ours that speaks of this schema instead of the default one."""
        if self.schema == DEFAULT_SCHEMA:
            return text
        return _PREFIX.sub(f'"{self.schema}".', text)


def parse(text: str) -> dict[str, str]:
    """Split a file into its statements: each follows a line `-- name: x`.

    Raises:
        ValueError: A name is there twice, or has no statement. A mistake in our own files.
    """
    _, *parts = _NAME_LINE.split(text)
    found: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        # What stands above the next name belongs to it; left here it would comment out whatever
        # is written behind this statement.
        lines = body.rstrip().split("\n")
        while lines and (not lines[-1].strip() or lines[-1].startswith("--")):
            lines.pop()
        statement = "\n".join(lines).strip().removesuffix(";").rstrip()
        if name in found or not statement:
            raise ValueError(f"statement {name!r} is there twice or is empty")
        found[name] = statement
    return found


@cache
def _texts() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for file in _FILES:
        more = parse((FOLDER / file).read_text(encoding="utf-8"))
        if found.keys() & more.keys():
            raise ValueError(f"{file} repeats {sorted(found.keys() & more.keys())}")
        found |= more
    return found
