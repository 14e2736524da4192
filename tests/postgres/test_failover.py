"""A real failover under running processes: nobody sees it, and what it loses is noticed."""

import asyncio
from collections import Counter
from urllib.parse import urlencode

import pytest

from durabletask import Process, ProcessHost, current_step
from durabletask.errors import ProcessFailedError
from durabletask_postgres import PostgresStorage
from tests.postgres.cluster import Cluster, new_cluster

PROCESSES = 3
BEFORE, WHILE, STEPS = 10, 20, 30
"""The steps before which everybody halts, and how many there are."""


class Story:
    """Three processes of thirty steps, which halt where the test wants to do something."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, int]] = Counter()
        self.keys: set[str] = set()
        self._halts = {BEFORE: asyncio.Event(), WHILE: asyncio.Event()}
        self._arrived = {BEFORE: asyncio.Semaphore(0), WHILE: asyncio.Semaphore(0)}

    async def tale(self, proc: Process) -> list[int]:
        """Run the steps; any error that reached this code would be the result."""
        return [await proc.do(f"step {number}", self.step, number) for number in range(STEPS)]

    async def step(self, number: int) -> int:
        step = current_step()
        self.runs[step.process_id, number] += 1
        self.keys.add(step.idempotency_key)
        if number in self._halts:
            self._arrived[number].release()
            await self._halts[number].wait()
        return number

    async def all_at(self, number: int) -> None:
        """Wait until all processes have recorded everything before a step."""
        for _ in range(PROCESSES):
            await self._arrived[number].acquire()

    def go_on(self, number: int) -> None:
        self._halts[number].set()


def both(cluster: Cluster) -> str:
    """Return a DSN as the guide shows it: two servers, and nothing about which of them writes."""
    places = {
        "host": f"{cluster.primary.folder},{cluster.standby.folder}",
        "port": f"{cluster.primary.port},{cluster.standby.port}",
    }
    return f"postgresql://postgres@/postgres?{urlencode(places)}"


@pytest.mark.parametrize("loses", [False, True])
async def test_a_failover_costs_time_and_a_lost_tail_is_noticed(
    loses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """F059: a replica takes over; acknowledged steps that it lacks run again, and no others.

    The host notices it with its next write, drops its memory and starts over;
    the repeats have the idempotency keys of the first, and user code sees nothing.
    """
    story = Story()
    with new_cluster() as cluster:
        host = ProcessHost(PostgresStorage(both(cluster)), processes=[story.tale])
        async with host, asyncio.timeout(60):
            ids = [f"tale/{number}" for number in range(PROCESSES)]
            handles = [await host.spawn(story.tale, process_id) for process_id in ids]
            await story.all_at(BEFORE)
            await asyncio.to_thread(cluster.wait_level)
            if loses:
                await asyncio.to_thread(cluster.freeze)
            story.go_on(BEFORE)
            await story.all_at(WHILE)
            if not loses:
                await asyncio.to_thread(cluster.wait_level)
            await asyncio.to_thread(cluster.fail_over)
            story.go_on(WHILE)
            try:
                results = [await handle.result() for handle in handles]
            except ProcessFailedError as error:
                pytest.fail(f"user code saw the failover: {error}")
            histories = [await handle.history() for handle in handles]

    assert results == [list(range(STEPS))] * PROCESSES
    for history in histories:
        assert [entry.key for entry in history] == [f"step {number}" for number in range(STEPS)]
    assert len(story.keys) == PROCESSES * STEPS
    again = range(BEFORE, WHILE + 1) if loses else range(0)
    assert story.runs == {
        (process_id, number): 2 if number in again else 1
        for process_id in ids
        for number in range(STEPS)
    }
    assert ("the storage has gone back in time" in caplog.text) is loses
