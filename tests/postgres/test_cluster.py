"""A standby follows, is left behind, and takes over without the last writes."""

import asyncio

import asyncpg
import pytest

from tests.postgres.cluster import new_cluster
from tests.postgres.proxy import Proxy


async def test_a_failover_loses_what_the_frozen_standby_had_not_received() -> None:
    """Acknowledged on the primary, gone after the failover: on a timeline of its own."""
    with new_cluster() as cluster, Proxy(cluster.primary.dsn) as proxy:
        cluster.primary.sql("create table t (n int); insert into t values (1)")
        cluster.wait_level()
        assert cluster.standby.sql("select n from t") == "1"
        assert cluster.timeline(cluster.primary) == 1

        cluster.freeze()
        cluster.primary.sql("insert into t values (2)")
        assert cluster.primary.sql("select count(*) from t") == "2"
        promoted = cluster.fail_over()

        assert promoted.sql("select n from t") == "1"
        promoted.sql("insert into t values (3)")
        assert cluster.timeline(promoted) == 2
        proxy.lead_to(promoted.dsn)
        for dsn in (cluster.dsn, proxy.dsn):  # two ways by which a client finds the new primary
            assert await _run(dsn, "insert into t values (4)") == []
        assert promoted.sql("select array_agg(n order by n) from t") == "{1,3,4,4}"


async def test_a_synchronous_primary_waits_for_its_standby() -> None:
    """Cancelled while it waits, a commit holds here and maybe only here: the server warns of it."""
    with new_cluster(synchronous=True) as cluster:
        cluster.primary.sql("create table t (n int)")
        cluster.wait_level()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await _run(cluster.standby.dsn, "insert into t values (1)")
        assert await _run(cluster.primary.dsn, "insert into t values (1)") == []
        cluster.freeze()

        connection = await asyncpg.connect(cluster.primary.dsn)
        heard: list[str] = []
        connection.add_log_listener(lambda _, message: heard.append(message.sqlstate))
        waiting = asyncio.create_task(connection.execute("insert into t values (2)"))
        other = await asyncpg.connect(cluster.primary.dsn)
        waits = "select from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'"
        while not await other.fetch(waits, connection.get_server_pid()):
            assert not waiting.done()
        await other.execute("select pg_cancel_backend($1)", connection.get_server_pid())
        await waiting
        await connection.close()
        await other.close()
        assert heard == ["01000"]
        assert cluster.primary.sql("select array_agg(n order by n) from t") == "{1,2}"


async def _run(dsn: str, statement: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    heard: list[str] = []
    connection.add_log_listener(lambda _, message: heard.append(message.sqlstate))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
    return heard
