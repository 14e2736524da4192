"""A replica takes over without the last writes: that is noticed, and what was lost runs again."""

import asyncio
from collections import Counter

import pytest

from durabletask import Process, ProcessHandle, ProcessHost
from durabletask_postgres import PostgresStorage
from tests.postgres.cluster import new_cluster
from tests.postgres.proxy import Proxy
from tests.postgres.stores import PATIENCE_S


async def test_a_failover_that_loses_acknowledged_steps_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Issue 3 point 6: the replica that takes over lacks the last steps; they run again there."""
    ran: Counter[str] = Counter()

    async def body(proc: Process) -> str:
        await proc.do("first", run, "first")
        await proc.event("go on")
        await proc.do("second", run, "second")
        await proc.event("end")
        await proc.do("third", run, "third")
        return "done"

    async def run(name: str) -> None:
        ran[name] += 1

    with new_cluster() as cluster, Proxy(cluster.primary.dsn) as proxy:
        storage = PostgresStorage(proxy.dsn)
        async with ProcessHost(storage, processes=[body]) as host:
            handle = await host.spawn(body, "p")
            await _until_waiting(handle, "go on")
            cluster.wait_level()
            cluster.freeze()
            await handle.raise_event("go on", None)
            await _until_waiting(handle, "end")
            proxy.lead_to(cluster.fail_over().dsn)
            await handle.raise_event("end", None)
            await handle.raise_event("go on", None)  # the first one is lost with the rest
            assert await handle.result(timeout=PATIENCE_S) == "done"
    assert ran == {"first": 1, "second": 2, "third": 1}
    assert any("gone back in time" in each.getMessage() for each in caplog.records)


async def _until_waiting(handle: ProcessHandle[str], name: str) -> None:
    """Wait until a process waits for an event, by what is recorded."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            info = await handle.info()
            if any(wait.name == name for wait in info.waits):
                return
