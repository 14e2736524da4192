"""What the older systems did with several programs on one storage, by real hosts on Postgres."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from durabletask import Process, ProcessChange, ProcessClient, ProcessHost, Status, StepChange
from durabletask_postgres import PostgresStorage
from durabletask_postgres._sql import Statements
from tests.postgres.stores import PATIENCE_S, Schemas, connected

LEASE_TTL_S = 3_600.0
"""So long that no lease ends by itself, and none is renewed meanwhile."""

Main = Callable[..., Coroutine[Any, Any, Any]]
NewHost = Callable[..., ProcessHost]


@pytest.fixture
def new_host(schemas: Schemas, schema: str) -> NewHost:
    """Return a maker of hosts, each with a storage of its own on the one database."""

    def make(label: str, *processes: Main, **options: Any) -> ProcessHost:
        storage = PostgresStorage(schemas.dsn, schema=schema, lease_ttl_s=LEASE_TTL_S)
        return ProcessHost(storage, processes=processes, label=label, **options)

    return make


class Meter:
    """Counts what a host tells: the least that a metric is made of."""

    def __init__(self) -> None:
        self.processes: Counter[Status | None] = Counter()
        self.steps: Counter[str] = Counter()

    def on_process(self, change: ProcessChange) -> None:
        self.processes[change.status] += 1

    def on_step(self, change: StepChange) -> None:
        self.steps[change.phase] += 1


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await true():
            pass


async def test_several_hosts_share_one_database(new_host: NewHost) -> None:
    """S1.01 S3.02: created anywhere, run once, by one of them; the result is seen everywhere."""
    ran: Counter[str] = Counter()

    async def step(key: str) -> str:
        ran[key] += 1
        await asyncio.sleep(0)
        return key

    async def work(proc: Process) -> list[str]:
        return [await proc.do(f"s{n}", step, f"{proc.id}/s{n}") for n in range(3)]

    hosts = [new_host(label, work) for label in ("a", "b", "c")]
    async with asyncio.timeout(PATIENCE_S), hosts[0], hosts[1], hosts[2]:
        await asyncio.gather(*(hosts[n % 3].spawn(work, f"p{n}") for n in range(60)))
        results = await asyncio.gather(
            *(hosts[n % 2].get(work, f"p{n}").result() for n in range(60))
        )
    assert results == [[f"p{n}/s{k}" for k in range(3)] for n in range(60)]
    assert ran == Counter(f"p{n}/s{k}" for n in range(60) for k in range(3))


async def test_a_second_host_resumes_what_the_first_has_begun(new_host: NewHost) -> None:
    """S4.10 S3.02: with the inputs and the outcomes of the storage, and none of its own."""
    ran: list[str] = []

    async def book(who: str, amount: Decimal) -> Decimal:
        ran.append(who)
        return amount * 2

    async def transfer(proc: Process, who: str, amount: Decimal, on: date) -> str:
        booked = await proc.do("book", book, who, amount)
        word = await proc.event("go", str)
        return f"{who} {booked} {on.year} {word}"

    first, second = new_host("first", transfer), new_host("second", transfer)
    async with asyncio.timeout(PATIENCE_S), second:
        async with first:
            handle = await first.spawn(transfer, "t", "alice", Decimal("1.50"), date(2026, 2, 3))

            async def is_waiting() -> bool:
                return (await handle.info()).status is Status.WAITING

            await until(is_waiting)
        resumed = second.get(transfer, "t")
        await resumed.raise_event("go", "done")
        assert await resumed.result() == "alice 3.00 2026 done"
        info = await resumed.info()
    assert ran == ["alice"]
    assert info.epoch > 1


async def test_a_host_that_lost_its_lease_records_nothing(
    new_host: NewHost, schemas: Schemas, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S2.14 F016: the late outcome is refused, its run unwinds, and the other's counts."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    def process_of(label: str) -> Main:
        async def step() -> str:
            ran.append(label)
            if label == "late":
                begun.set()
                await go_on.wait()
            return label

        async def work(proc: Process) -> str:
            return await proc.do("step", step)

        return work

    work = process_of("late")
    late, other = new_host("late", work), new_host("other", process_of("other"))
    fence = Statements(schema).rewrite(
        "update durabletask.lease set expires_at = clock_timestamp()"
    )
    async with asyncio.timeout(PATIENCE_S), late:
        await late.spawn(work, "p")
        await begun.wait()
        async with connected(schemas.dsn) as connection:
            await connection.execute(fence)
        async with other:
            assert await other.get("p").result() == "other"
            go_on.set()
            # Back under a new identity, it is of use again, and has changed nothing.
            assert await (await late.spawn(work, "q")).result() in ("late", "other")
            history = await other.get("p").history()
            info = await other.get("p").info()
    assert ran[:2] == ["late", "other"]
    assert [each.value for each in history if each.key == "step"] == ["other"]
    assert (info.result, info.epoch) == ("other", 2)
    assert "lease" in caplog.text


async def test_what_runs_where_can_be_listed_and_counted(
    new_host: NewHost, schemas: Schemas, schema: str
) -> None:
    """S1.20: the ids that run, with their hosts, from anywhere; counts of runs and steps."""
    meters = {label: Meter() for label in ("a", "b")}

    async def work(proc: Process) -> str:
        await proc.do("step", str)
        return await proc.event("go", str)

    a, b = (new_host(label, work, observers=[meters[label]]) for label in meters)
    storage = PostgresStorage(schemas.dsn, schema=schema)
    async with (
        asyncio.timeout(PATIENCE_S),
        a,
        b,
        ProcessClient(storage, processes=[work]) as client,
    ):
        for host in (a, b):
            for n in range(3):
                await host.spawn(work, f"{'a' if host is a else 'b'}/{n}", tags={"n": str(n)})

        async def all_wait() -> bool:
            return len([each async for each in client.list(status=Status.WAITING)]) == 6

        await until(all_wait)
        by_host = {each.id: each.host async for each in client.list()}
        assert by_host == {f"{label}/{n}": label for label in "ab" for n in range(3)}
        assert [each.id async for each in client.list(prefix="b/", tags={"n": "1"})] == ["b/1"]
        for n in range(2):
            handle = client.get(work, f"a/{n}")
            await handle.raise_event("go", "x")
            await handle.result()
        running = [each.id async for each in client.list(status=[Status.RUNNING, Status.WAITING])]
        ended = [each.id async for each in client.list(status=Status.COMPLETED)]
        assert (running, ended) == (["a/2", "b/0", "b/1", "b/2"], ["a/0", "a/1"])
    assert meters["a"].processes[Status.COMPLETED] == 2
    assert meters["b"].processes[Status.COMPLETED] == 0
    assert meters["a"].steps == meters["b"].steps == Counter(started=3, succeeded=3)
