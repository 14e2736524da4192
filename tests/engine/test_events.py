"""Events: kept until consumed, in order, consumed once, with durable timeouts."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import pydantic
import pytest

from durabletask import Process, ProcessClient
from durabletask.errors import (
    EventTimeoutError,
    StorageUnknownError,
)
from tests.engine.world import World, settle, virtual


@dataclass
class Approval:
    by: str


class Pair(NamedTuple):
    a: int
    b: str


class Model(pydantic.BaseModel):
    n: int


async def nop() -> None:
    """Do nothing; a step."""


async def listener(proc: Process) -> list[str]:
    return [await proc.event("e", str, key=f"k{n}") for n in range(3)]


@virtual
async def test_an_event_wakes_a_waiting_process(world: World) -> None:
    """S1.08, S2.02, S4.04: a process that waits is woken from outside by id."""
    async with world.host(listener) as host:
        handle = await host.spawn(listener, "p")
        await settle()
        for text in "abc":
            await host.raise_event("p", "e", text)
        assert await handle.result() == ["a", "b", "c"]


@virtual
async def test_events_before_anyone_waits_are_kept_in_order(world: World) -> None:
    """F097, S2.02: raised before the wait, before the run, between names: first in, first out."""

    async def process(proc: Process) -> list[Any]:
        await proc.delay("later", timedelta(seconds=10))
        order = [await proc.event("b", key=f"b{n}") for n in range(2)]
        order += [await proc.event("a", key=f"a{n}") for n in range(3)]
        return order

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        for name, value in (("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5)):
            await handle.raise_event(name, value)
        assert await handle.result() == [2, 4, 1, 3, 5]


@virtual
async def test_an_event_raised_while_no_host_runs_is_kept(world: World) -> None:
    """F095, F097: acknowledged without any host, through a client; delivered after the start."""
    await world.begin_and_die(listener)
    async with ProcessClient(world.storage, processes=[listener]) as client:
        for text in "xyz":
            await client.raise_event("p", "e", text)
    async with world.host(listener) as host:
        assert await host.get(listener, "p").result() == ["x", "y", "z"]


@virtual
async def test_an_acknowledged_event_survives_the_host(world: World) -> None:
    """F095: the host that acknowledged the event dies at once: the next one delivers it."""
    first = world.host(listener)
    await first.start()
    await first.spawn(listener, "p")
    await settle()
    await first.raise_event("p", "e", "kept")
    world.kill(first)
    async with world.host(listener) as second:
        for text in ("second", "third"):
            await second.raise_event("p", "e", text)
        assert await second.get(listener, "p").result() == ["kept", "second", "third"]


@virtual
async def test_taking_and_recording_are_one(world: World) -> None:
    """F098: death between taking an event and its record: the event is there for the next run."""
    taken: list[str] = []

    async def process(proc: Process) -> list[str]:
        taken.append(await proc.event("e", str, key="first"))
        return [taken[-1], await proc.event("e", str, key="second")]

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.wires[first].down("commit")
    await first.raise_event("p", "e", "one")
    await settle()
    assert taken == []
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "e", "two")
        assert await second.get(process, "p").result() == ["one", "two"]


@virtual
async def test_a_consumed_event_is_not_given_twice(world: World) -> None:
    """F098, G8: consumed and recorded, then death: the next run recalls it and takes no other."""

    async def process(proc: Process) -> list[str]:
        first = await proc.event("e", str, key="first")
        await proc.event("go")
        return [first, await proc.event("e", str, key="second")]

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    for text in ("one", "two"):
        await first.raise_event("p", "e", text)
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == ["one", "two"]


@virtual
async def test_a_retried_raise_is_one_event(world: World) -> None:
    """F096: the answer was lost: the library repeats the same event; one event_id is one event."""

    async def process(proc: Process) -> list[Any]:
        await proc.delay("later", timedelta(seconds=100))
        got = []
        for n in range(9):
            try:
                got.append(await proc.event("e", key=f"k{n}", timeout=0))
            except EventTimeoutError:
                break
        return got

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        lost = iter([True, True, False])

        async def lose(call: str) -> None:
            if call == "deliver" and next(lost, False):
                raise StorageUnknownError("the answer was lost")

        world.wires[host].after = lose
        await host.raise_event("p", "e", 1)
        for _ in range(3):
            await host.raise_event("p", "e", 2, event_id="mine")
        assert await handle.result() == [1, 2]


@virtual
async def test_a_consumed_event_id_stays_known(world: World) -> None:
    """F096: a repeat after consumption is still the same event; another process has its own."""
    async with world.host(listener) as host:
        handles = [await host.spawn(listener, id) for id in ("p", "q")]
        for handle in handles:
            await handle.raise_event("e", "one", event_id="1")
            await settle()
            await handle.raise_event("e", "one", event_id="1")
            await handle.raise_event("e", "two", event_id="2")
            await handle.raise_event("e", "three", event_id="3")
            assert await handle.result() == ["one", "two", "three"]


@virtual
async def test_two_waiters_for_one_name(world: World) -> None:
    """F099: each event goes to exactly one of two waits, in order, and is recorded so."""

    async def process(proc: Process) -> list[str]:
        results = await asyncio.gather(proc.event("e", str, key="a"), proc.event("e", str, key="b"))
        await proc.event("go")
        return list(results)

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    for text in ("one", "two"):
        await first.raise_event("p", "e", text)
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == ["one", "two"]


@pytest.mark.parametrize("gap_s", [-0.001, 0.0, 0.001])
@pytest.mark.parametrize("rounds", [0, 1, 2, 3, 5, 8, 13])
def test_a_waiter_cancelled_as_its_event_arrives(gap_s: float, rounds: int) -> None:
    """F099: cancelled in the very moment: the event is recorded or stays, never lost."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> list[str]:
            got = []
            try:
                async with asyncio.timeout(5):
                    got.append(await proc.event("e", str, key="first"))
            except TimeoutError:
                got.append("timeout")
            got.append(await proc.event("e", str, key="second"))
            await proc.event("go")
            return got

        host = world.host(process)
        await host.start()
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5 + gap_s)
        for _ in range(rounds):
            await asyncio.sleep(0)
        await handle.raise_event("e", "one")
        await asyncio.sleep(1)
        await handle.raise_event("e", "two")
        await asyncio.sleep(1)
        world.kill(host)
        async with world.host(process) as again:
            await again.raise_event("p", "go")
            result = await again.get(process, "p").result()
        assert result in (["one", "two"], ["timeout", "one"])

    body()


@pytest.mark.parametrize("gap_s", [-0.001, 0.0, 0.001])
def test_a_wait_timed_out_as_its_event_arrives(gap_s: float) -> None:
    """F099: a durable timeout in the very moment: consumed or kept, on both runs the same."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> list[str]:
            got = []
            try:
                got.append(await proc.event("e", str, key="first", timeout=5))
            except EventTimeoutError:
                got.append("timeout")
            got.append(await proc.event("e", str, key="second"))
            await proc.event("go")
            return got

        host = world.host(process)
        await host.start()
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5 + gap_s)
        await handle.raise_event("e", "one")
        await asyncio.sleep(1)
        await handle.raise_event("e", "two")
        await asyncio.sleep(1)
        world.kill(host)
        async with world.host(process) as again:
            await again.raise_event("p", "go")
            result = await again.get(process, "p").result()
        assert result in (["one", "two"], ["timeout", "one"])

    body()


@virtual
async def test_news_of_a_held_process_gives_no_event_twice(world: World) -> None:
    """F098, G8: events heard twice, from the raiser and from the storage, are given out once."""

    async def process(proc: Process) -> list[int]:
        await proc.event("begin")
        return [await proc.event("e", int, key=f"k{n}") for n in range(6)]

    async with world.host(process) as host, ProcessClient(world.storage) as client:
        handle = await host.spawn(process, "p")
        for n in range(6):
            await (client if n % 2 else host).raise_event("p", "e", n)
            await asyncio.sleep(2)
        await handle.raise_event("begin")
        assert await handle.result() == [0, 1, 2, 3, 4, 5]
    assert world.row("p").epoch == 1
