"""Making the schema, once, whoever comes first; and who may use it.

Knows the order of the migrations and which of them a database has. Refuses to
know what is in them. All that are missing run in one transaction under an
advisory lock: of ten hosts that start at once on an empty database one does
the work and nine find it done, and a kill in between leaves nothing behind.
"""

import re
from functools import cache
from typing import Final, NamedTuple

import asyncpg

from durabletask.errors import StorageAccessError, StorageFormatError
from durabletask_postgres._line import Connection
from durabletask_postgres._sql import FOLDER, Statements

LOCK_TIMEOUT: Final = "set local lock_timeout = '60s'"
"""A host that was stopped in the middle of a migration must not hold up the others for ever."""

_FILE = re.compile(r"(\d{4})_(\w+)\.sql")

_TAKEN = (
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateFunctionError,
    asyncpg.DuplicateSchemaError,
)


class Migration(NamedTuple):
    """One numbered file."""

    version: int
    name: str
    text: str


@cache
def migrations() -> tuple[Migration, ...]:
    """Return all migrations of this version of the package, in order."""
    found: list[Migration] = []
    for path in sorted((FOLDER / "migrations").glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None or int(match[1]) != len(found) + 1:
            raise ValueError(f"{path.name} is not the next migration after {len(found)}")
        found.append(Migration(len(found) + 1, match[2], path.read_text(encoding="utf-8")))
    return tuple(found)


async def version(connection: Connection, statements: Statements) -> int:
    """Return how many migrations a database has; 0 where there is no storage of ours.

    Raises:
        StorageFormatError: Some are missing in between, or are not ours.
        asyncpg.PostgresError: It cannot be read.
    """
    if not await connection.fetchval(statements["migrations_exist"], statements.schema):
        return 0
    rows = await connection.fetch(statements["migrations_applied"])
    applied = [(row["version"], row["name"]) for row in rows]
    known = [(each.version, each.name) for each in migrations()]
    if len(applied) > len(known) and applied[: len(known)] == known:
        raise StorageFormatError(
            f"the schema {statements.schema!r} has version {len(applied)}, and this program "
            f"knows versions up to {len(known)}; nothing was touched",
            hint="upgrade the program; a newer one has migrated this database",
        )
    if applied != known[: len(applied)]:
        raise StorageFormatError(
            f"the migrations of the schema {statements.schema!r} are not those of this program: "
            f"{_listed(applied)}; nothing was touched",
            hint="it was made by something else or restored in part; restore all of it, "
            "or use another schema",
        )
    return len(applied)


async def ensure_schema(
    connection: Connection, statements: Statements, *, migrate: bool = True
) -> int:
    """Bring a database to the version of this program; return how many migrations were run.

    Where nothing is missing nothing is written, and no right to create is needed.

    Args:
        connection: Not inside of a transaction.
        statements: Of the schema.
        migrate: Whether to make what is missing, or to refuse.

    Raises:
        StorageFormatError: It is newer, in part or not ours; or older, and
            `migrate` is false. Nothing was written.
        StorageAccessError: The role may not create; nothing was written.
        asyncpg.PostgresError: Anything else; written is all or nothing.
    """
    try:
        have = await version(connection, statements)
    except asyncpg.InsufficientPrivilegeError as error:
        raise _not_granted(statements, error) from error
    if have == len(migrations()):
        return 0
    if not migrate:
        raise StorageFormatError(
            f"the schema {statements.schema!r} has version {have} of {len(migrations())}",
            hint="run `python -m durabletask_postgres migrate DSN` as its owner",
        )
    try:
        # Two hosts get here together: the second waits for the lock and then sees, with the new
        # snapshot of its next statement, what the first has done.
        async with connection.transaction(isolation="read_committed"):
            return await _migrate(connection, statements)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StorageAccessError(
            f"the role may not make or change the schema {statements.schema!r}: {error.args[0]}",
            hint="run `python -m durabletask_postgres migrate DSN` as a role that may, then grant "
            "this one what `python -m durabletask_postgres grant ROLE` prints",
        ) from error
    except _TAKEN as error:
        raise StorageFormatError(
            f"the schema {statements.schema!r} holds something that is not ours: "
            f"{error.args[0]}; nothing was touched",
            hint="use another schema",
        ) from error


def whole_schema(statements: Statements) -> str:
    """Return the text that makes an empty database into a storage: all migrations in a row."""
    parts = [_create_schema(statements), statements["migration_table"] + ";"]
    for each in migrations():
        # psql takes no parameters; the name is the one of our own file and is \w only.
        done = statements["migration_done"].replace("$1", str(each.version))
        parts += [
            statements.rewrite(each.text).rstrip(),
            done.replace("$2", f"'{each.name}'") + ";",
        ]
    return "\n\n".join(parts) + "\n"


def grants(statements: Statements, role: str) -> tuple[str, ...]:
    """Return what a role needs to run hosts and clients, and no more: no DDL, no ownership."""
    schema = f'"{statements.schema}"'
    to = '"' + role.replace('"', '""') + '"'
    return (
        f"grant usage on schema {schema} to {to};",
        f"grant select, insert, update, delete on all tables in schema {schema} to {to};",
        f"grant execute on all functions in schema {schema} to {to};",
        f"revoke insert, update, delete on {schema}.migration from {to};",
    )


async def _migrate(connection: Connection, statements: Statements) -> int:
    await connection.execute(LOCK_TIMEOUT)
    await connection.fetch(statements["migration_lock"], statements.schema)
    have = await version(connection, statements)
    if have == len(migrations()):
        return 0
    if not await connection.fetchval(statements["schema_exists"], statements.schema):
        await connection.execute(_create_schema(statements))
    if not have:
        await connection.execute(statements["migration_table"])
    for each in migrations()[have:]:
        await connection.execute(statements.rewrite(each.text))
        await connection.execute(statements["migration_done"], each.version, each.name)
    return len(migrations()) - have


def _create_schema(statements: Statements) -> str:
    return f'create schema "{statements.schema}";'


def _not_granted(statements: Statements, error: asyncpg.PostgresError) -> StorageAccessError:
    return StorageAccessError(
        f"the role may not use the schema {statements.schema!r}: {error.args[0]}",
        hint="grant it what `python -m durabletask_postgres grant ROLE` prints",
    )


def _listed(applied: list[tuple[int, str]]) -> str:
    return ", ".join(f"{number}_{name}" for number, name in applied) or "none"
