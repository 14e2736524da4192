"""Races and durable timeouts die at every point, are resumed, and come to the same end."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, current_step
from durabletask.errors import StepError
from durabletask.testing.crash import CrashPoint, Fate
from tests.crash.on_disk import OnDisk
from tests.crash.scenarios import Scenario, alone, kill_between, search
from tests.crash.world import World

Make = Callable[[World], Scenario]
LATENCY_S = 0.01


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


def race_event(world: World) -> Scenario:
    """Events that are raised before the race: the first branch wins, the rest waits its turn."""

    async def order(proc: Process) -> list[str]:
        got = []
        await proc.do("before", world.slow, 1)
        for n in range(3):
            paid, called = proc.event("paid", str), proc.event("called", str)
            first = await proc.race(f"r{n}", called, paid, proc.delay("d", timedelta(days=1)))
            value = first.of(called) if first.won(called) else first.of(paid)
            got.append(await world.see(proc, f"use {n}", proc.do(f"use {n}", world.effect, value)))
        return got

    return alone(order, events=[("paid", "a", 0), ("called", "b", 0), ("paid", "c", 60.0)])


def race_delay(world: World) -> Scenario:
    """A delay wins; the event that comes later is for the wait that follows."""

    async def order(proc: Process) -> str:
        paid = proc.event("paid", str)
        first = await proc.race("r", paid, proc.delay("d", timedelta(seconds=30)))
        await proc.do(f"after {first.winner}", world.effect, 1)
        return await world.see(proc, "paid", proc.event("paid", str))

    return alone(order, events=[("paid", "a", 90.0)])


def race_nested(world: World) -> Scenario:
    """A race in a race, beside a step, in a task group."""

    async def decide(proc: Process) -> str:
        a = proc.event("a", str)
        inner = proc.race("inner", a, proc.delay("soon", timedelta(seconds=20)))
        first = await proc.race("outer", proc.event("never"), inner)
        return first.winner + " " + first.of(inner).winner

    async def order(proc: Process) -> str:
        async with asyncio.TaskGroup() as group:
            winner = group.create_task(decide(proc))
            group.create_task(proc.do("beside", world.slow, 1))
        return await world.see(proc, "end", proc.do("end", world.effect, winner.result()))

    return alone(order)


def race_timed_out(world: World) -> Scenario:
    """`asyncio.timeout` cancels a race, and what it waited for is there for the next one."""

    async def order(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.race("r", proc.event("paid"), proc.event("called"))
        except TimeoutError:
            await proc.do("remind", world.effect, 1)
        paid = proc.event("paid", str)
        first = await proc.race("late", paid, proc.event("called"))
        return first.of(paid)

    return alone(order, events=[("paid", "a", 100.0)])


def timeout_expires(world: World) -> Scenario:
    """A durable timeout ends the second of two calls."""

    async def order(proc: Process) -> str:
        try:
            async with proc.timeout("limit", 40):
                await proc.do("first", world.slow, 1)
                await proc.event("never")
        except TimeoutError:
            return await world.see(proc, "instead", proc.do("instead", world.effect, "instead"))
        return "done"

    return alone(order)


def timeout_ends(world: World) -> Scenario:
    """A durable timeout is left before its time, with a value and with an error."""

    async def order(proc: Process) -> str:
        async with proc.timeout("long", timedelta(days=1)):
            value = await world.see(proc, "first", proc.do("first", world.effect, "value"))
        with suppress(StepError):
            async with proc.timeout("failing", timedelta(days=1)):
                await proc.do("bad", world.fail, ValueError("no"))
        await proc.do("last", world.effect, 1)
        return value

    return alone(order)


def timeout_nested(world: World) -> Scenario:
    """The inner one fires, then the outer one, each at its own call."""

    async def order(proc: Process) -> str:
        story = []
        try:
            async with proc.timeout("outer", 120):
                try:
                    async with proc.timeout("inner", 50):
                        await proc.event("a")
                except TimeoutError:
                    story.append("inner")
                    await proc.do("after inner", world.effect, 1)
                await proc.event("b")
        except TimeoutError:
            story.append("outer")
        return await world.see(proc, "end", proc.do("end", world.effect, " ".join(story)))

    return alone(order)


def timeout_group(world: World) -> Scenario:
    """It ends a task group with an event, a race and a retried step in it."""

    async def flaky() -> None:
        world.act(current_step().attempt)
        raise ConnectionError("down")

    async def order(proc: Process) -> str:
        policy = RetryPolicy(attempts_max=None, delay_s=1000, delay_max_s=1000)
        try:
            async with proc.timeout("limit", 60), asyncio.TaskGroup() as group:
                group.create_task(proc.event("a"))
                group.create_task(proc.race("r", proc.event("b"), proc.event("c")))
                group.create_task(proc.do("flaky", flaky, retry=policy))
        except TimeoutError:
            return await world.see(proc, "tidy", proc.do("tidy", world.effect, "tidied"))
        return "done"

    return alone(order)


def timeout_gather(world: World) -> Scenario:
    """It ends a gather in which one step is done and one wait is open."""

    async def order(proc: Process) -> str:
        try:
            async with proc.timeout("limit", 60):
                await asyncio.gather(proc.do("quick", world.effect, 1), proc.event("a"))
        except TimeoutError:
            return await world.see(proc, "tidy", proc.do("tidy", world.effect, "tidied"))
        return "done"

    return alone(order)


def first_completed(world: World) -> Scenario:
    """`asyncio.wait(FIRST_COMPLETED)` and cancelling the rest."""

    async def order(proc: Process) -> list[str]:
        tasks = [
            asyncio.create_task(proc.delay("quick", timedelta(seconds=30))),
            asyncio.create_task(proc.event("never")),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        names = [type(each).__name__ for each in results]
        return await world.see(proc, "end", proc.do("end", world.effect, names))

    return alone(order)


SCENARIOS = {
    make.__name__: make
    for make in (
        race_event, race_delay, race_nested, race_timed_out, timeout_expires, timeout_ends,
        timeout_nested, timeout_group, timeout_gather, first_completed,
    )
}  # fmt: skip

every_scenario = pytest.mark.parametrize("make", SCENARIOS.values(), ids=SCENARIOS)


@every_scenario
@pytest.mark.parametrize("latency_s", [0.0, LATENCY_S], ids=["at once", "slow storage"])
def test_death_at_every_call(make: Make, latency_s: float) -> None:
    """G1-G4 G7 G8 F099 F107: dead before and after each storage call, then resumed."""
    report = search(make, latency_s=latency_s).run()
    report.check()
    assert report.deaths >= 14


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.soak)])
@every_scenario
def test_death_at_every_await(make: Make, every: int) -> None:
    """F001-F003 F107: killed before every other callback of the loop; in the soak before each."""
    first = list(SCENARIOS).index(make.__name__) % every
    report = kill_between(search(make, latency_s=LATENCY_S), first, every)
    report.check()
    assert report.deaths >= 30


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("race_event", marks=pytest.mark.soak),
        "timeout_expires",
        pytest.param("timeout_nested", marks=pytest.mark.soak),
        pytest.param("timeout_gather", marks=pytest.mark.soak),
    ],
)
def test_death_at_pairs_of_calls(name: str) -> None:
    """F004: dead again at each call of the resumed life, which may still be recovering."""
    report = search(SCENARIOS[name]).run((Fate.DIE_AFTER,), pairs=True)
    report.check()
    assert report.deaths >= 100


@pytest.mark.parametrize("name", ["race_event", "timeout_expires"])
def test_death_on_disk(name: str) -> None:
    """S3.02 F001-F003: the same over a folder."""
    report = search(SCENARIOS[name], survivor=OnDisk).run((Fate.DIE_AFTER,))
    report.check()
    assert report.deaths >= 7


@pytest.mark.parametrize("name", ["race_delay", "race_nested", "timeout_group", "timeout_ends"])
def test_long_downtime(name: str) -> None:
    """G7 S3.06: what falls due while nothing runs is over at once when somebody resumes."""
    report = search(SCENARIOS[name], downtime_s=3600.0 if name != "race_delay" else 20.0).run()
    report.check()
    assert report.deaths >= 14


@pytest.mark.parametrize("at_s", [29.99, 30.0, 30.01])
def test_a_delay_against_an_event(at_s: float) -> None:
    """G8: an event at the deadline is consumed or stays in the mailbox; the branch stays."""
    world = World()

    async def order(proc: Process) -> str:
        paid = proc.event("paid", str)
        first = await proc.race("r", paid, proc.delay("d", timedelta(seconds=30)))
        if first.won(paid):
            return await proc.do("paid in time", world.effect, first.of(paid))
        await proc.do("late", world.effect, 1)
        return await world.see(proc, "at last", proc.event("paid", str))

    def make(of: World) -> Scenario:
        nonlocal world
        world = of
        return alone(order, events=[("paid", "a", at_s)])

    trial = search(make, latency_s=LATENCY_S, downtime_s=0.0)
    branches: set[Any] = set()
    for number in range(trial.undisturbed().lives[0].steps):
        story = trial.try_points((CrashPoint(number),))
        (snapshot,) = story.snapshots
        keys = {held.key for held in snapshot.checkpoints if held.kind == "do"}
        assert story.problem is None
        assert world.judge(story) == []
        assert keys in ({"late"}, {"paid in time"})
        assert [event.consumed for event in snapshot.events] == [True]
        branches |= keys
    assert branches
