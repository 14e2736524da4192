"""What a transaction pooler does to its clients; the real one too, where it is installed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import asyncpg
import pytest

from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.pgbouncer import POOLERS, Pgbouncer
from tests.postgres.pooler import Pooler
from tests.postgres.server import Postgres, moved, sql

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LOST = (asyncpg.ConnectionDoesNotExistError, asyncpg.ProtocolViolationError, ConnectionError)


@pytest.fixture(params=POOLERS)
def pooler(request: pytest.FixtureRequest, database: str) -> Iterator[Pooler | Pgbouncer]:
    with request.param(database, size=2) as pooler:
        yield pooler


@pytest.fixture
def ours(database: str) -> Iterator[Pooler]:
    with Pooler(database, size=2) as pooler:
        yield pooler


@asynccontextmanager
async def connected(
    dsn: str, count: int, settings: dict[str, str] | None = None
) -> AsyncIterator[list[Connection]]:
    """Yield connections without a cache of named statements, as a pooler needs it."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = await asyncpg.connect(
                dsn, statement_cache_size=0, server_settings=settings
            )
            stack.push_async_callback(connection.close, timeout=5)
            connections.append(connection)
        yield connections


async def test_many_clients_share_few_sessions(
    pooler: Pooler | Pgbouncer, database: str, postgres: Postgres
) -> None:
    """Twelve clients get what they ask for from two sessions, each in its own transaction."""
    sql(database, "create table t (n int)")

    async def work(connection: Connection, number: int) -> None:
        for _ in range(5):
            async with connection.transaction():
                await connection.execute("insert into t values ($1)", number)
                mine = "select count(*) from t where xmin = pg_current_xact_id()::xid"
                assert await connection.fetchval(mine) == 1

    async with connected(pooler.dsn, 12) as clients, asyncio.TaskGroup() as group:
        for number, client in enumerate(clients):
            group.create_task(work(client, number))
    assert tuple(sql(database, "select count(*), count(distinct n) from t")[0]) == (60, 12)
    name = database.partition("?")[0].rpartition("/")[2]
    rows = sql(postgres.dsn, f"select from pg_stat_activity where datname = '{name}'")
    assert len(rows) == 2


async def test_clients_wait_for_a_session(pooler: Pooler | Pgbouncer) -> None:
    """While all sessions are in transactions a further client waits, and then goes on."""
    async with connected(pooler.dsn, 3) as (one, two, three):
        first, second = one.transaction(), two.transaction()
        await first.start()
        await second.start()
        waiting = asyncio.create_task(three.fetchval("select 3"))
        assert await one.fetchval("select 1") == 1
        assert await two.fetchval("select 2") == 2
        assert not waiting.done()
        await first.rollback()
        assert await waiting == 3
        await second.rollback()


async def test_settings_at_the_start(pooler: Pooler | Pgbouncer) -> None:
    """A few settings follow their client through all sessions; others are refused at the start."""
    for number in range(4):
        name = f"it's {number}"
        settings = {"application_name": name, "TimeZone": "Europe/Berlin"}
        async with connected(pooler.dsn, 2, settings) as clients:
            for client in clients * 2:
                assert await client.fetchval("show application_name") == name
                assert await client.fetchval("show timezone") == "Europe/Berlin"
    for refused in ("search_path", "extra_float_digits", "options"):
        with pytest.raises(asyncpg.ProtocolViolationError, match=f"startup parameter: {refused}"):
            await asyncpg.connect(pooler.dsn, server_settings={refused: "1"})


async def test_a_listener_hears_nothing(pooler: Pooler | Pgbouncer) -> None:
    """LISTEN is accepted and in vain: the session that would hear has no client any more."""
    heard: list[object] = []

    def hear(*told: object) -> None:
        heard.append(told)

    async with connected(pooler.dsn, 2) as (listener, speaker):
        await listener.add_listener("news", hear)
        for _ in range(4):
            await speaker.execute("notify news, 'x'")
            await speaker.fetchval("select 1")
        assert heard == []
        await listener.remove_listener("news", hear)


async def test_a_cancelled_query_ends(pooler: Pooler | Pgbouncer, database: str) -> None:
    """A wish to cancel finds the session that the client has at the moment."""
    async with connected(pooler.dsn, 1) as (client,):
        with pytest.raises(TimeoutError):
            await client.execute("select pg_sleep(600)", timeout=0.1)
        assert await client.fetchval("select 1") == 1
    running = "select from pg_stat_activity where query like 'select pg_sleep%' and state <> 'idle'"
    assert sql(database, running) == []


async def test_a_transaction_of_a_client_that_goes_is_rolled_back(
    pooler: Pooler | Pgbouncer, database: str
) -> None:
    """What a client leaves in the middle is not continued by the next one."""
    sql(database, "create table t (n int)")
    async with connected(pooler.dsn, 2) as (leaver, other):
        await leaver.transaction().start()
        await leaver.execute("insert into t values (1)")
        leaver.terminate()
        assert await other.fetchval("select count(*) from t") == 0
        held = "select from pg_locks where relation = 't'::regclass and mode = 'RowExclusiveLock'"
        while await other.fetch(held):
            pass
        assert await other.fetchval("select count(*) from t") == 0


@pytest.mark.parametrize("kind", POOLERS)
async def test_a_crash_of_the_server(kind: type[Pooler] | type[Pgbouncer]) -> None:
    """A client in the middle of a statement is cut; later ones work again, without a restart."""
    with ThrowAwayPostgres() as server, kind(server.dsn, size=2) as pooler:
        async with connected(pooler.dsn, 1) as (client,):
            asleep = asyncio.create_task(client.execute("select pg_sleep(600)"))
            sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
            while await asyncio.to_thread(server.sql, sleeps) != "1":
                assert not asleep.done()
            await asyncio.to_thread(server.restart)
            with pytest.raises(LOST):
                await asleep
        while True:
            try:
                async with connected(pooler.dsn, 1) as (client,):
                    assert await client.fetchval("select 1") == 1
                break
            except LOST:
                continue


async def test_nothing_of_a_session_can_be_relied_on(ours: Pooler) -> None:
    """SET, session locks and named statements stay behind: the next session is another one."""
    async with connected(ours.dsn, 2) as (one, two):
        await one.execute("set work_mem = '123kB'")
        assert {await one.fetchval("show work_mem") for _ in range(2)} == {"4MB", "123kB"}
        assert await one.fetchval("select pg_try_advisory_lock(1)")
        assert {await one.fetchval("select pg_try_advisory_lock(1)") for _ in range(2)} == {
            True,
            False,
        }
        assert await two.fetchval("show work_mem") in {"4MB", "123kB"}
    assert ours.sessions == 2
    named = await asyncpg.connect(ours.dsn)
    await named.fetchval("select $1::int", 1)
    with pytest.raises(asyncpg.InvalidSQLStatementNameError):
        await named.fetchval("select $1::int", 1)
    await named.close()


async def test_without_a_server_clients_are_told(postgres: Postgres) -> None:
    """Where no session can be had the client hears it, and is cut."""
    with (
        Pooler(moved(postgres.dsn, "/nowhere", 5432)) as pooler,
        pytest.raises(asyncpg.ProtocolViolationError, match="login has been failing"),
    ):
        await asyncpg.connect(pooler.dsn)
