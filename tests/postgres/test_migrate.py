"""The schema is made once, wholly or not at all, and only by who may."""

import asyncio
from typing import Any

import asyncpg
import pytest

from durabletask.errors import StorageAccessError, StorageFormatError
from durabletask_postgres import _migrate
from durabletask_postgres.__main__ import OK, REFUSED, main
from durabletask_postgres._connections import Connections
from durabletask_postgres._migrate import (
    ensure_schema,
    grants,
    migrations,
    version,
    whole_schema,
)
from durabletask_postgres._sql import FOLDER, Statements
from tests.postgres.backends import dsn_as
from tests.postgres.server import Postgres, sql
from tests.postgres.stores import connected

HOSTS, ROUNDS = 10, 20
WORKER = "postgresql://{role}@/{database}?host={host}&port={port}"


async def migrated(dsn: str, schema: str) -> Statements:
    """Make a schema and return its statements."""
    statements = Statements(schema)
    async with connected(dsn) as connection:
        assert await ensure_schema(connection, statements) == len(migrations())
    return statements


async def test_an_empty_database_gets_every_migration(postgres: Postgres, free_schema: str) -> None:
    """A new schema has the version of this program, each migration noted with its name."""
    statements = await migrated(postgres.dsn, free_schema)
    async with connected(postgres.dsn) as connection:
        assert await version(connection, statements) == len(migrations()) > 0
        rows = await connection.fetch(statements["migrations_applied"])
    assert [(row["version"], row["name"]) for row in rows] == [
        (each.version, each.name) for each in migrations()
    ]


async def test_where_nothing_is_missing_nothing_is_written(
    postgres: Postgres, free_schema: str
) -> None:
    """A start on a database that is up to date takes no transaction id, so it writes no row."""
    statements = await migrated(postgres.dsn, free_schema)
    async with connected(postgres.dsn) as connection, connection.transaction():
        assert await ensure_schema(connection, statements) == 0
        assert await connection.fetchval("select pg_current_xact_id_if_assigned()") is None


async def test_ten_hosts_at_once_migrate_once(database: str) -> None:
    """Ten hosts that start at once on an empty database make the schema once; 20 rounds."""
    for number in range(ROUNDS):
        statements = Statements(f"s{number}")
        async with asyncio.TaskGroup() as group:
            hosts = [group.create_task(_start_host(database, statements)) for _ in range(HOSTS)]
        done = [host.result() for host in hosts]
        assert sorted(done) == [0] * (HOSTS - 1) + [len(migrations())]


async def _start_host(dsn: str, statements: Statements) -> int:
    async with connected(dsn) as connection:
        return await ensure_schema(connection, statements)


class Dying:
    """A connection that is cut when it is told to execute its n-th command."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", at: int) -> None:
        self._connection = connection
        self._left = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, command: str, *args: object) -> str:
        done = await self._connection.execute(command, *args)
        self._left -= 1
        if self._left < 0:
            self._connection.terminate()
        return done


async def test_a_host_killed_while_it_migrates_leaves_nothing(database: str) -> None:
    """F004: wherever the migrating host dies, the next one finds an empty database and does it."""
    statements = Statements()
    deaths = 0
    while True:
        async with connected(database) as connection, connected(database) as other:
            dying: Any = Dying(connection, deaths)
            try:
                await ensure_schema(dying, statements)
                break
            except (asyncpg.InterfaceError, asyncpg.PostgresError):
                deaths += 1
            # The lock is given back when the server has noticed, and it has rolled back by then.
            async with other.transaction():
                await other.fetch(statements["migration_lock"], statements.schema)
                assert await version(other, statements) == 0
                assert not await other.fetchval(statements["schema_exists"], statements.schema)
    # lock_timeout, schema and table, then two commands for each migration
    assert deaths == 3 + 2 * len(migrations())


async def test_missing_migrations_are_added(
    postgres: Postgres, free_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema of an older version gets what is missing, and only that."""
    statements = Statements(free_schema)
    every = migrations()
    async with connected(postgres.dsn) as connection:
        with monkeypatch.context() as older:
            older.setattr(_migrate, "migrations", lambda: every[:1])
            assert await ensure_schema(connection, statements) == 1
        with pytest.raises(StorageFormatError, match=f"version 1 of {len(every)}"):
            await ensure_schema(connection, statements, migrate=False)
        assert await version(connection, statements) == 1
        assert await ensure_schema(connection, statements) == len(every) - 1


async def test_a_schema_that_is_missing_is_refused_if_so_wished(
    postgres: Postgres, free_schema: str
) -> None:
    """With migrate=False nothing is made, and the hint names the command that would."""
    async with connected(postgres.dsn) as connection:
        with pytest.raises(StorageFormatError, match="durabletask_postgres migrate"):
            await ensure_schema(connection, Statements(free_schema), migrate=False)
        assert await version(connection, Statements(free_schema)) == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("insert into {0}.migration values ({1} + 1, 'next', now())", "upgrade the program"),
        ("delete from {0}.migration where version = 1", "restored in part"),
        ("update {0}.migration set name = 'other' where version = 1", "made by something else"),
        ("delete from {0}.migration", "holds something that is not ours"),
        ("drop table {0}.migration", "holds something that is not ours"),
    ],
    ids=["newer", "gap", "other", "emptied", "dropped"],
)
async def test_a_schema_that_does_not_fit_is_refused(
    postgres: Postgres, free_schema: str, damage: str, message: str
) -> None:
    """F133: a newer schema, a gap, a name that is not ours: refused, and nothing is touched."""
    statements = await migrated(postgres.dsn, free_schema)
    async with connected(postgres.dsn) as connection:
        await connection.execute(damage.format(free_schema, len(migrations())))
        before = await _objects(connection, free_schema)
        with pytest.raises(StorageFormatError, match=message):
            await ensure_schema(connection, statements)
        assert await _objects(connection, free_schema) == before


async def _objects(connection: "asyncpg.Connection[asyncpg.Record]", schema: str) -> list[Any]:
    rows = await connection.fetch(
        "select oid, relname, xmin::text from pg_class where relnamespace = $1::regnamespace "
        "order by oid",
        schema,
    )
    return [tuple(row) for row in rows]


async def test_a_table_of_somebody_else_stays(postgres: Postgres, free_schema: str) -> None:
    """A schema that is in other use is refused: no table of ours is made beside, none replaced."""
    async with connected(postgres.dsn) as connection:
        await connection.execute(
            f"create schema {free_schema}; create table {free_schema}.process (mine int)"
        )
        before = await _objects(connection, free_schema)
        with pytest.raises(StorageFormatError, match="use another schema"):
            await ensure_schema(connection, Statements(free_schema))
        assert await _objects(connection, free_schema) == before


async def test_a_role_that_may_not_create_is_told_so(
    postgres: Postgres, free_schema: str, role: str
) -> None:
    """Without the right to create nothing is made, and the hint names both commands."""
    async with connected(dsn_as(postgres, role)) as connection:
        with pytest.raises(StorageAccessError, match=r"migrate DSN.*grant ROLE"):
            await ensure_schema(connection, Statements(free_schema))


async def test_a_role_without_rights_on_the_schema_is_told_so(
    postgres: Postgres, free_schema: str, role: str
) -> None:
    """A schema that the role may not look into is an access error with the grant to run."""
    statements = await migrated(postgres.dsn, free_schema)
    async with connected(dsn_as(postgres, role)) as connection:
        with pytest.raises(StorageAccessError, match="grant ROLE"):
            await ensure_schema(connection, statements)


async def test_the_minimal_role_needs_no_ddl(
    postgres: Postgres, free_schema: str, role: str
) -> None:
    """With the printed grants a role runs a host's calls; it can make, drop and migrate nothing."""
    statements = await migrated(postgres.dsn, free_schema)
    sql(postgres.dsn, *grants(statements, role))
    connections = Connections(
        dsn_as(postgres, role), statements, setup=lambda each: ensure_schema(each, statements)
    )
    try:
        await connections.fetch(statements["open_lease"], "h1", "label", 15.0)
        await connections.fetch(statements["renew"], "h1", 15.0)
        await connections.fetch(statements["witness"], "h1")
        await connections.fetch(statements["notify"], free_schema, "x:")
        await connections.fetch(statements["purge"], ["p"])
        await connections.fetch(statements["read_history"], ["p"])
        await connections.fetch(statements["close_lease"], "h1")
        for forbidden in (
            f"create table {free_schema}.mine (a int)",
            f"drop table {free_schema}.process",
            f"insert into {free_schema}.migration values (99, 'x', now())",
            f"alter function {free_schema}.clock() volatile",
        ):
            with pytest.raises(StorageAccessError):
                await connections.fetch(forbidden)
    finally:
        await connections.close()


async def test_the_grants_cover_every_table_and_function(
    postgres: Postgres, free_schema: str, role: str
) -> None:
    """The role can read and write every table and run every function that a migration has made."""
    statements = await migrated(postgres.dsn, free_schema)
    sql(postgres.dsn, *grants(statements, role))
    async with connected(postgres.dsn) as connection:
        missing = await connection.fetch(
            "select relname from pg_class where relnamespace = $1::regnamespace"
            " and relkind = 'r' and relname <> 'migration'"
            " and not has_table_privilege($2, oid, 'select, insert, update, delete')"
            " union all select proname from pg_proc where pronamespace = $1::regnamespace"
            " and not has_function_privilege($2, oid, 'execute')",
            free_schema,
            role,
        )
    assert missing == []


def test_a_role_with_quotes_in_its_name_is_quoted() -> None:
    """F136: the name of a role cannot end the statement that it stands in."""
    for statement in grants(Statements(), 'a"; drop table x; --'):
        assert statement.endswith('"a""; drop table x; --";')


async def test_a_serializable_default_changes_nothing(postgres: Postgres, free_schema: str) -> None:
    """F055: the migration says READ COMMITTED itself, without which the second host would fail."""
    statements = Statements(free_schema)
    async with connected(postgres.dsn) as first, connected(postgres.dsn) as second:
        for each in (first, second):
            await each.execute("set default_transaction_isolation = 'serializable'")
        done = await asyncio.gather(
            ensure_schema(first, statements), ensure_schema(second, statements)
        )
    assert sorted(done) == [0, len(migrations())]


async def test_the_whole_schema_is_the_sum_of_the_migrations(database: str) -> None:
    """What `schema` prints makes, through psql as one text, a database that is up to date."""
    async with connected(database) as connection:
        await connection.execute(whole_schema(Statements()))
        assert await ensure_schema(connection, Statements(), migrate=False) == 0


def test_the_file_schema_sql_is_what_the_migrations_make() -> None:
    """schema.sql is for reading; it is the output of the command `schema` and nothing else."""
    assert (FOLDER / "schema.sql").read_text(encoding="utf-8") == whole_schema(Statements())


def test_migrations_are_numbered_without_gaps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A file that is not the next number is found when the files are read, not by a user."""
    (tmp_path / "migrations").mkdir()
    for name in ("0001_a.sql", "0003_b.sql"):
        (tmp_path / "migrations" / name).write_text("select 1")
    monkeypatch.setattr(_migrate, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"0003_b\.sql"):
        _migrate.migrations.__wrapped__()


def test_the_command_line_migrates(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`migrate` says what it did, and that there was nothing to do the second time."""
    assert main(["migrate", database, "--schema", "mine"]) == OK
    assert main(["migrate", database, "--schema", "mine"]) == OK
    newest = len(migrations())
    assert capsys.readouterr().out.splitlines() == [
        f"the schema 'mine' went from version 0 to {newest}",
        f"the schema 'mine' has version {newest} already",
    ]


def test_the_command_line_prints_grants_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """`grant` and `schema` print SQL and touch no database."""
    assert main(["grant", "worker", "--schema", "mine"]) == OK
    assert capsys.readouterr().out.splitlines() == list(grants(Statements("mine"), "worker"))
    assert main(["schema"]) == OK
    assert capsys.readouterr().out == whole_schema(Statements())


def test_the_command_line_reports_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is one message on stderr and exit code 2, without a traceback."""
    assert main(["migrate", "postgresql://127.0.0.1:1/none"]) == REFUSED
    assert main(["grant", "worker", "--schema", 'a"b']) == REFUSED
    err = capsys.readouterr().err
    assert "StorageUnavailableError: Postgres cannot be reached" in err
    assert "InvalidArgumentError" in err
    assert "Traceback" not in err
