"""The command line: `python -m durabletask_postgres migrate`, `grant` and `schema`.

Exit codes: 0 it is done, 2 it could not be done.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from durabletask.errors import DurableTaskError
from durabletask_postgres._connections import Connections
from durabletask_postgres._migrate import ensure_schema, grants, migrations, whole_schema
from durabletask_postgres._sql import DEFAULT_SCHEMA, Statements

OK, REFUSED = 0, 2

MIGRATE = (
    "Make the schema of a PostgresStorage or bring it to the version of this program. Needs the "
    "right to create in the database; hosts then need none (see grant). Leave the password out of "
    "the DSN, where others can see it, and set PGPASSWORD or use a password file."
)
GRANT = "Print what a role needs to run hosts and clients on a schema that exists. Run it in psql."
SCHEMA = "Print the SQL that makes an empty database into a storage."


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        statements = Statements(chosen.schema)
        match chosen.command:
            case "migrate":
                print(asyncio.run(_migrated(chosen.dsn, statements)))
            case "grant":
                print(*grants(statements, chosen.role), sep="\n")
            case _:
                print(whole_schema(statements), end="")
        return OK
    except DurableTaskError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m durabletask_postgres",
        description="Prepare a database for a PostgresStorage.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("migrate", MIGRATE), ("grant", GRANT), ("schema", SCHEMA)):
        command = commands.add_parser(name, help=text.partition(".")[0], description=text)
        if name == "migrate":
            command.add_argument(
                "dsn", nargs="?", default="postgresql://", help="default: PGHOST …"
            )
        if name == "grant":
            command.add_argument("role")
        command.add_argument("--schema", default=DEFAULT_SCHEMA)
    return parser


async def _migrated(dsn: str, statements: Statements) -> str:
    connections = Connections(dsn, statements, connections_max=1)
    try:
        async with connections.use() as connection:
            done = await ensure_schema(connection, statements)
    finally:
        await connections.close()
    newest = len(migrations())
    if not done:
        return f"the schema {statements.schema!r} has version {newest} already"
    return f"the schema {statements.schema!r} went from version {newest - done} to {newest}"


if __name__ == "__main__":
    sys.exit(main())
