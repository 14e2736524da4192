"""The tools of asyncio around durable calls: each shape dies everywhere and ends the same."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from durabletask import Process
from durabletask.errors import StepError
from tests.crash.scenarios import Scenario, alone, search
from tests.crash.world import World

Make = Callable[[World], Scenario]


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


async def wait_long(proc: Process, key: str) -> None:
    await proc.delay(key, timedelta(days=1))


def timeout_around_gather(world: World) -> Scenario:
    """`asyncio.timeout` ends a gather of gathers; what is done in it stays done."""

    async def order(proc: Process) -> str:
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(
                    asyncio.gather(proc.do("a", world.effect, 1), proc.event("x")),
                    asyncio.gather(proc.do("b", world.slow, 2), wait_long(proc, "y")),
                )
        except TimeoutError:
            return await world.see(proc, "tidy", proc.do("tidy", world.effect, "tidied"))
        return "done"

    return alone(order)


def wait_for_in_gather(world: World) -> Scenario:
    """`asyncio.wait_for` around one of two parallel waits ends that one only."""

    async def order(proc: Process) -> list[str]:
        results = await asyncio.gather(
            asyncio.wait_for(proc.event("never"), 30),
            proc.delay("d", timedelta(seconds=45)),
            return_exceptions=True,
        )
        names = [type(each).__name__ for each in results]
        return await world.see(proc, "end", proc.do("end", world.effect, names))

    return alone(order)


def group_in_group(world: World) -> Scenario:
    """An inner group fails; the outer one goes on."""

    async def inner(proc: Process) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(proc.event("never"))
                group.create_task(wait_long(proc, "long"))
                await proc.do("pause", world.slow, 1)
                group.create_task(proc.do("bad", world.fail, ValueError("no")))
        except* StepError:
            await proc.do("tidy", world.effect, 1)
        return "tidied"

    async def order(proc: Process) -> str:
        async with asyncio.TaskGroup() as group:
            told = group.create_task(inner(proc))
            group.create_task(proc.delay("beside", timedelta(seconds=90)))
        return await world.see(proc, "end", proc.do("end", world.effect, told.result()))

    return alone(order)


def group_fails_whole(world: World) -> Scenario:
    """A failure two levels down cancels waits on both levels."""

    async def deep(proc: Process) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait_long(proc, "deep"))
            await proc.do("pause", world.slow, 1)
            group.create_task(proc.do("bad", world.fail, ValueError("no")))

    async def order(proc: Process) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(deep(proc))
                group.create_task(proc.race("r", proc.event("a"), proc.event("b")))
        except* StepError:
            await proc.do("tidy", world.effect, 1)
        return "tidied"

    return alone(order)


def gather_fails(world: World) -> Scenario:
    """One of a gather fails; its siblings go on and are awaited."""

    async def order(proc: Process) -> str:
        slow = asyncio.create_task(proc.do("slow", world.slow, "slow"))
        try:
            await asyncio.gather(slow, proc.do("bad", world.fail, ValueError("no")))
        except StepError:
            await proc.do("note", world.effect, 1)
        return await slow

    return alone(order)


def wait_first_exception(world: World) -> Scenario:
    """`asyncio.wait(FIRST_EXCEPTION)` and cancelling the rest."""

    async def order(proc: Process) -> list[str]:
        async def fails_late() -> None:
            await proc.delay("late", timedelta(seconds=20))
            await proc.do("bad", world.fail, ValueError("no"))

        tasks = [asyncio.create_task(each) for each in (fails_late(), wait_long(proc, "long"))]
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in pending:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        names = [type(each).__name__ for each in results]
        return await world.see(proc, "end", proc.do("end", world.effect, names))

    return alone(order)


def as_completed(world: World) -> Scenario:
    """`asyncio.as_completed` up to the first, the rest being cancelled."""

    async def order(proc: Process) -> str:
        tasks = [
            asyncio.create_task(wait_long(proc, "long")),
            asyncio.create_task(proc.delay("short", timedelta(seconds=20))),
        ]
        for first in asyncio.as_completed(tasks):
            await first
            break
        tasks[0].cancel()
        await asyncio.wait(tasks)
        return await world.see(proc, "end", proc.do("end", world.effect, "first"))

    return alone(order)


def shielded(world: World) -> Scenario:
    """`asyncio.shield` keeps a step from the timeout; its result is awaited afterwards."""

    async def order(proc: Process) -> str:
        task = asyncio.create_task(proc.do("slow", world.slow, "slow"))
        late = asyncio.create_task(proc.delay("late", timedelta(seconds=200)))
        try:
            async with proc.timeout("limit", 5):
                await asyncio.shield(late)
        except TimeoutError:
            await proc.do("note", world.effect, 1)
        await late
        return await task

    return alone(order)


def timeouts_of_both_kinds(world: World) -> Scenario:
    """A plain timeout in a durable one in a plain one: each ends its own call."""

    async def order(proc: Process) -> str:
        story = []
        try:
            async with asyncio.timeout(500):
                try:
                    async with proc.timeout("durable", 100):
                        try:
                            async with asyncio.timeout(20):
                                await proc.event("a")
                        except TimeoutError:
                            story.append("inner")
                        await proc.event("b")
                except TimeoutError:
                    story.append("durable")
                await proc.event("c")
        except TimeoutError:
            story.append("outer")
        return await world.see(proc, "end", proc.do("end", world.effect, " ".join(story)))

    return alone(order)


SHAPES = {
    make.__name__: make
    for make in (
        timeout_around_gather, wait_for_in_gather, group_in_group, group_fails_whole, gather_fails,
        wait_first_exception, as_completed, shielded, timeouts_of_both_kinds,
    )
}  # fmt: skip


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("latency_s", [0.0, 0.01], ids=["at once", "slow storage"])
def test_death_at_every_call(make: Make, latency_s: float) -> None:
    """S1.06 F107 (rule 6): dead before and after each storage call: the same branch, one story."""
    report = search(make, latency_s=latency_s).run()
    report.check()
    assert report.deaths >= 14


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
def test_death_at_every_await(make: Make) -> None:
    """F107 (rule 6): killed before each callback of the loop, with calls on their way."""
    report = search(make, latency_s=0.01).run((), callbacks=True)
    report.check()
    assert report.deaths >= 30
