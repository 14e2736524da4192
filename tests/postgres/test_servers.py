"""Which server is met, and a pool that the user has made."""

import asyncio
import logging

import pytest

from durabletask.errors import (
    StorageAccessError,
    StorageError,
    StorageFailedError,
    StorageUnavailableError,
)
from durabletask_postgres._trouble import UnexpectedError
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.backends import (
    HOLD,
    ISOLATION,
    PID,
    Control,
    connections_of,
    dsn_as,
    pool_of,
)
from tests.postgres.cluster import new_cluster
from tests.postgres.server import Postgres, sql

# --- a pool of the user's ------------------------------------------------------------------


async def test_a_given_pool_is_used_and_stays_open(postgres: Postgres) -> None:
    """A pool works, also one that nobody has awaited yet, and closing the storage leaves it."""
    async with pool_of(postgres.dsn) as pool:
        async with connections_of(pool) as connections:
            assert not connections.can_dial
            assert await connections.fetch(PID)
            assert await connections.fetch(PID)
            with pytest.raises(UnexpectedError):
                await connections.fetch(ISOLATION, 0)
            with pytest.raises(StorageAccessError, match="DSN"):
                await connections.dial()
        assert await pool.fetchval(PID)


async def test_a_pool_closed_by_its_user_is_an_error_of_its_own(postgres: Postgres) -> None:
    """A closed pool is told as what it is, with the order in which to close."""
    async with pool_of(postgres.dsn) as pool, connections_of(pool) as connections:
        await connections.fetch(PID)
        await pool.close()
        with pytest.raises(StorageFailedError, match="then the pool"):
            await connections.fetch(PID)


async def test_a_cancelled_call_costs_a_pool_one_connection(
    postgres: Postgres, control: Control
) -> None:
    """F054: the session of a cancelled call ends here too, and the pool opens another one."""
    async with pool_of(postgres.dsn) as pool, connections_of(pool) as connections:
        await control.bar(4717)
        calls = [asyncio.create_task(connections.fetch(HOLD, 4717)) for _ in range(2)]
        await control.wait_held(4717, 2)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert [call.cancelled() or call.exception() for call in calls] == [True, True]
        await control.open(4717)
        assert await connections.fetch(PID)


async def test_a_pool_in_use_by_others_is_unavailable(postgres: Postgres) -> None:
    """Whoever waits for a connection of a pool in vain is told so; nothing was sent."""
    async with pool_of(postgres.dsn) as pool:
        await pool  # opened before the time to wait for it counts
        async with (
            pool.acquire(),
            pool.acquire(),
            connections_of(pool, connect_timeout_s=0.02) as connections,
        ):
            with pytest.raises(StorageUnavailableError, match="TimeoutError"):
                await connections.fetch(PID)


async def test_a_serializable_pool_is_met(postgres: Postgres) -> None:
    """A pool whose sessions are serializable by default runs our calls in READ COMMITTED."""
    settings = {"default_transaction_isolation": "serializable"}
    async with (
        pool_of(postgres.dsn, server_settings=settings) as pool,
        connections_of(pool) as connections,
    ):
        assert (await connections.fetch(ISOLATION, 1))[0]["level"] == "read committed"
        with pytest.raises(UnexpectedError):
            await connections.fetch(ISOLATION, 0)
        assert (await connections.fetch(ISOLATION, 1))[0]["level"] == "read committed"


# --- which server --------------------------------------------------------------------------


async def test_a_server_without_fsync_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """F057: fsync=off is a warning, one for each storage."""
    with ThrowAwayPostgres(settings={"fsync": "off"}) as server:
        async with connections_of(server.dsn) as connections:
            await asyncio.gather(*(connections.fetch(PID) for _ in range(4)))
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert [each.getMessage().partition(":")[0] for each in warnings] == [
        "the Postgres server runs with fsync=off"
    ]


async def test_a_standby_is_refused_and_the_primary_found() -> None:
    """F062: a replica is refused; of several hosts in a DSN the one that writes is taken."""
    with new_cluster() as cluster:
        async with connections_of(cluster.standby.dsn) as connections:
            with pytest.raises(StorageAccessError, match="standby"):
                await connections.fetch(PID)
            with pytest.raises(StorageUnavailableError, match="standby"):
                await connections.dial()
        hosts = f"{cluster.standby.folder},{cluster.primary.folder}"
        both = f"postgresql://postgres@/postgres?host={hosts}&port=5432,5432"
        async with connections_of(both) as connections:
            assert await connections.fetch(PID)
            assert connections.facts is not None
            assert not connections.facts.standby


async def test_a_role_that_only_reads_is_refused(postgres: Postgres, role: str) -> None:
    """default_transaction_read_only is found at the start, not at the first write."""
    sql(postgres.dsn, f"alter role {role} set default_transaction_read_only = on")
    async with connections_of(dsn_as(postgres, role)) as connections:
        with pytest.raises(StorageAccessError, match="default_transaction_read_only"):
            await connections.fetch(PID)


async def test_a_database_of_another_encoding_is_refused(postgres: Postgres) -> None:
    """A database that cannot hold every id is found at the start."""
    name = postgres.new_name()
    sql(
        postgres.dsn,
        f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0",
    )
    try:
        async with connections_of(postgres.dsn_of(name)) as connections:
            with pytest.raises(StorageAccessError, match="UTF8"):
                await connections.fetch(PID)
    finally:
        sql(postgres.dsn, f"drop database {name}")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("postgresql://postgres@127.0.0.1:1/postgres", StorageUnavailableError),
        ("postgresql://postgres@/none?{0}", StorageAccessError),
        ("postgresql://nobody@/postgres?{0}", StorageAccessError),
    ],
    ids=["no server", "no database", "no role"],
)
async def test_where_nothing_can_be_reached_the_error_says_which(
    postgres: Postgres, place: str, kind: type[StorageError]
) -> None:
    """No server may come back; a database or a role that is not there needs somebody to act."""
    dsn = place.format(f"host={postgres.host}&port={postgres.port}")
    async with connections_of(dsn) as connections:
        with pytest.raises(kind) as caught:
            await connections.fetch(PID)
    assert kind is StorageUnavailableError or caught.value.hint
