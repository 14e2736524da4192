"""Connections are cut around every sort of write, under load, and the checker judges the run."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from random import Random

import pytest

from durabletask import ProcessClient, ProcessHost
from durabletask.storage import Snapshot
from durabletask.testing.history import (
    Effects,
    HistoryList,
    RecordingStorage,
    check,
    dump,
    tally,
)
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.chaos.program import TABLES, Sagas, lead
from tests.postgres.proxy import Fate, Link, Proxy
from tests.postgres.rules import Aim, cut_before, cut_in_flight, lose_answer
from tests.postgres.wire import Message, Side

WRITES = {
    "durabletask.record_steps": 10,
    "insert into durabletask.checkpoint": 10,  # a lone step
    "durabletask.commit_units": 10,
    "durabletask.claim(": 5,
    "durabletask.create_processes": 3,
    "durabletask.deliver(": 3,
    "durabletask.renew_lease": 1,
    "durabletask.record_within": 2,
    "COMMIT": 3,  # of a process's transaction, and of the client's own
}
"""Pieces of the statements that write, and how often each is cut; the first three are commits."""

LANES = 6
STEP_S = 0.005
LEASE_TTL_S = 3.0
HANG_S = 120.0
EVERY = 3
"""Of the statements that an aim is at: else each cut would meet the repeat of the one before, and
the pauses between repeats would make the test long."""

Cut = Callable[..., Aim]


class NowAndThen:
    """Aims at every third statement of a sort, and lets the others pass."""

    def __init__(self, cut: Cut, marker: str, times: int) -> None:
        self._aim = cut(marker, times=times)
        self._marker = marker
        self._times = times
        self._seen = 0
        self._met: set[Link] = set()

    @property
    def left(self) -> int:
        """How many statements are still to be hit."""
        return self._times - self._aim.hits

    def __call__(self, link: Link, side: Side, message: Message) -> Fate:
        if side is Side.CLIENT and message.kind in {"B", "Q"}:
            self._met.discard(link)
            if link.running and self._marker in link.running[-1]:
                self._seen += 1
                if self._seen % EVERY == 0:
                    self._met.add(link)
        return self._aim(link, side, message) if link in self._met else Fate.PASS


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowAwayPostgres]:
    """Return a server whose only schema is the default one, which the statements name."""
    with ThrowAwayPostgres() as running:
        yield running


async def play(dsn: str, aims: list[NowAndThen], history: HistoryList) -> list[str]:
    """Run sagas until every aim has hit; return the ids of those that were begun."""
    chance = Random(1)
    sagas = Sagas(Effects(history), chance, STEP_S)
    storage = RecordingStorage(PostgresStorage(dsn, lease_ttl_s=LEASE_TTL_S), history)
    other = RecordingStorage(PostgresStorage(dsn), history)
    numbers, begun = itertools.count(), list[str]()

    async def lane(client: ProcessClient, number: int) -> None:
        while any(aim.left for aim in aims):
            # One at a time now and then: a lone step has a statement of its own.
            if number and chance.random() < 0.3:
                await asyncio.sleep(0.1)
                continue
            process_id = f"saga/{next(numbers)}"
            begun.append(process_id)
            await lead(client, sagas, process_id, chance, dsn)

    async with (
        asyncio.timeout(HANG_S),
        ProcessHost(storage, processes=[sagas.saga]),
        ProcessClient(other, processes=[sagas.saga]) as client,
    ):
        await asyncio.gather(*(lane(client, number) for number in range(LANES)))
    return begun


async def read(dsn: str) -> list[Snapshot]:
    """Return the state of the storage."""
    storage = PostgresStorage(dsn)
    final = await dump(storage)
    await storage.close()
    return final


@pytest.mark.parametrize("cut", [cut_before, cut_in_flight, lose_answer])
async def test_cut_connections_cost_time_only(cut: Cut, server: ThrowAwayPostgres) -> None:
    """G1 G2 G4 F051 F052 F053: thirty commits and more, cut before, within, and after."""
    server.sql("drop schema if exists durabletask cascade")
    server.sql("drop table if exists public.written, public.ordered")
    server.sql(TABLES)
    history = HistoryList()
    with Proxy(server.dsn) as proxy:
        await read(server.dsn)  # the schema is made in peace
        aims = [NowAndThen(cut, marker, times) for marker, times in WRITES.items()]
        proxy.rules += aims
        begun = await play(proxy.dsn, aims, history)
    final = await read(server.dsn)
    counts = tally(history.operations)
    print(counts)
    assert check(history.operations, final, ended=begun) == []
    assert len(final) == len(begun)
    # Nothing that a process did was ever undone by an outage that it could have seen.
    assert not [each for each in history.operations if getattr(each, "key", "") == "refund"]
    assert counts["commit info StorageUnknownError"] >= 30
    assert counts["claim info StorageUnknownError"] >= WRITES["durabletask.claim("]
