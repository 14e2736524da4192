"""`proc.timeout` in every shape: against the record, nested, around tasks, around foreign code."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process
from tests.engine.world import World, settle, virtual

Body = Callable[[Process], Coroutine[Any, Any, Any]]


async def nop() -> None:
    """Do nothing; a step."""


async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def finish(world: World, process: Body) -> Any:
    """Let the next host bring "p" to its end."""
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        return await host.get(process, "p").result()


@pytest.mark.parametrize("at", ["inside", "outside"])
def test_a_timeout_that_races_the_record(at: str) -> None:
    """F107 (rule 6): whoever wins the race to storage, both runs see the same and go on alike."""
    for delay_s in (4.0, 4.999, 5.0, 5.001):
        for line_s in (0.0, 0.001, 1.0):
            race_the_record(delay_s, line_s, at == "inside")


def race_the_record(delay_s: float, line_s: float, tail: bool) -> None:
    """Let a timeout fall before, into and after a commit."""

    @virtual
    async def body(world: World) -> None:
        stories: list[list[str]] = []

        async def process(proc: Process) -> str:
            story: list[str] = []
            stories.append(story)
            try:
                async with proc.timeout("limit", 5):
                    story.append(await proc.do("racing", sleeper, delay_s))
                    if tail:
                        await proc.do("next", sleeper, 100.0)
                        story.append("next")
            except TimeoutError:
                story.append("timeout")
            await proc.do("after " + " ".join(story), nop)
            await proc.event("go")
            return " ".join(story)

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await settle()

        async def before(call: str) -> None:
            if call == "commit":
                await asyncio.sleep(line_s)

        world.wires[first].before = before
        await asyncio.sleep(15)
        world.kill(first)
        keys = [key for kind, key, _ in world.keys("p") if kind == "do"]
        assert (await finish(world, process)).split() == stories[0] == stories[1]
        assert [key for kind, key, _ in world.keys("p") if kind == "do"] == keys

    body()


@pytest.mark.parametrize("inner_s", [10, 50])
@pytest.mark.parametrize("die_after_s", [5.0, 15.0, 100.0])
@pytest.mark.parametrize("down_s", [0.0, 1000.0])
def test_nested_timeouts_each_end_their_own(
    inner_s: float, die_after_s: float, down_s: float
) -> None:
    """Nested: the earlier one fires first, also where both have passed while nothing ran."""

    @virtual
    async def body(world: World) -> None:
        stories: list[str] = []

        async def process(proc: Process) -> str:
            story = []
            try:
                async with proc.timeout("outer", 30):
                    try:
                        async with proc.timeout("inner", inner_s):
                            await proc.event("a")
                    except TimeoutError:
                        story.append("inner")
                    await proc.event("b")
            except TimeoutError:
                story.append("outer")
            stories.append(" ".join(story))
            await proc.event("go")
            return stories[-1]

        await world.begin_and_die(process, after_s=die_after_s)
        await asyncio.sleep(down_s)
        expected = "inner outer" if inner_s == 10 else "outer"
        assert await finish(world, process) == expected
        assert set(stories) == {expected}

    body()


@virtual
async def test_asyncio_timeouts_inside_and_outside(world: World) -> None:
    """Rule 6: plain timeouts around and in a durable one: each ends what it ended before."""
    stories: list[str] = []

    async def process(proc: Process) -> None:
        story = []
        try:
            async with asyncio.timeout(40):
                async with proc.timeout("durable", 1000):
                    try:
                        async with asyncio.timeout(5):
                            await proc.event("a")
                    except TimeoutError:
                        story.append("plain inner")
                    try:
                        async with proc.timeout("short", 5):
                            await proc.event("b")
                    except TimeoutError:
                        story.append("durable inner")
                    await proc.event("c")
        except TimeoutError:
            story.append("plain outer")
        stories.append(", ".join(story))
        await proc.event("go")

    await world.begin_and_die(process, after_s=100)
    await asyncio.sleep(2000)
    await finish(world, process)
    assert stories == ["plain inner, durable inner, plain outer"] * 2


@virtual
async def test_a_task_from_before_the_timeout(world: World) -> None:
    """A task that began outside is cancelled by way of who awaits it, in every run."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        task = asyncio.create_task(proc.event("slow"))
        await proc.do("first", nop)
        try:
            async with proc.timeout("limit", 5):
                await task
            seen.append("value")
        except TimeoutError:
            seen.append("timeout")
            await proc.do("fallback", nop)
        await proc.event("go")

    await world.begin_and_die(process, after_s=10)
    await finish(world, process)
    assert seen == ["timeout", "timeout"]


@virtual
async def test_other_tasks_are_left_alone(world: World) -> None:
    """Only who entered is cancelled; what runs beside it goes on, also after a downtime."""

    async def beside(proc: Process) -> str:
        await proc.delay("beside", timedelta(seconds=50))
        return await proc.event("later", str)

    async def timed(proc: Process) -> str:
        try:
            async with proc.timeout("limit", 20):
                await proc.event("never")
        except TimeoutError:
            await proc.do("fallback", nop)
        return "timeout"

    async def process(proc: Process) -> list[str]:
        return list(await asyncio.gather(beside(proc), timed(proc)))

    await world.begin_and_die(process, after_s=10)
    await asyncio.sleep(30)
    async with world.host(process) as host:
        await host.raise_event("p", "later", "value")
        assert await host.get(process, "p").result() == ["value", "timeout"]


@virtual
async def test_code_that_is_not_durable(world: World) -> None:
    """Foreign awaits are cut like any other; a later run raises at the end if not before."""
    seen: list[str] = []
    slow_s = 100.0

    async def process(proc: Process) -> None:
        try:
            async with proc.timeout("limit", 5):
                await proc.do("step", nop)
                await asyncio.sleep(slow_s)
                seen.append("not cut")
            seen.append("value")
        except TimeoutError:
            seen.append("timeout")
            await proc.do("fallback", nop)
        await proc.event("go")

    await world.begin_and_die(process, after_s=6)
    host = world.host(process)
    await host.start()
    await asyncio.sleep(60)
    assert seen == ["timeout", "timeout"]
    world.kill(host)
    slow_s = 0.0
    await finish(world, process)
    assert seen == ["timeout", "timeout", "not cut", "timeout"]


@pytest.mark.parametrize("outer", ["durable", "plain"])
@pytest.mark.parametrize("line_s", [0.0, 1.0])
@pytest.mark.parametrize("apart_s", [0.0, 0.5, 1.5])
def test_two_timeouts_at_one_moment(outer: str, line_s: float, apart_s: float) -> None:
    """Rule 6: the outer one fires while the inner one is recorded: both runs tell the same."""

    @virtual
    async def body(world: World) -> None:
        stories: list[str] = []

        async def process(proc: Process) -> None:
            story = []
            limit = 5 + apart_s
            around = proc.timeout("outer", limit) if outer == "durable" else asyncio.timeout(limit)
            try:
                async with around:
                    try:
                        async with proc.timeout("inner", 5):
                            await proc.event("never")
                    except TimeoutError:
                        story.append("inner")
                    await proc.event("never either")
            except TimeoutError:
                story.append("outer")
            stories.append(" ".join(story))
            await proc.event("go")

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await settle()

        async def before(call: str) -> None:
            if call == "commit":
                await asyncio.sleep(line_s)

        world.wires[first].before = before
        await asyncio.sleep(20)
        world.kill(first)
        await finish(world, process)
        assert stories[0] == stories[1]
        assert stories[0].endswith("outer")

    body()


@virtual
async def test_a_swallowed_end_does_not_hold_up_the_rest(world: World) -> None:
    """A timeout passed in the downtime, and user code swallows it: what waits for it goes on."""

    async def process(proc: Process) -> list[str]:
        story = []
        async with proc.timeout("limit", 10):
            task = asyncio.create_task(proc.event("beside", str))
            other = asyncio.create_task(proc.event("other", str))
            try:
                await proc.event("never")
            except asyncio.CancelledError:
                story.append("swallowed")
            story.append(await other)
            await proc.do("step", nop)
            story.append(await task)
        return story

    await world.begin_and_die(process, after_s=5)
    await asyncio.sleep(100)
    async with world.host(process) as host:
        await host.raise_event("p", "beside", "a")
        await host.raise_event("p", "other", "b")
        assert await host.get(process, "p").result() == ["swallowed", "b", "a"]


@virtual
async def test_the_next_call_tells_that_the_end_was_swallowed(world: World) -> None:
    """As soon as user code makes another call after swallowing it, nothing waits any more."""

    async def process(proc: Process) -> float:
        async with proc.timeout("limit", 10):
            task = asyncio.create_task(proc.event("beside"))
            try:
                await proc.event("never")
            except asyncio.CancelledError:
                await proc.do("tidy", nop)
            await task
        return world.clock.monotonic_s()

    await world.begin_and_die(process, after_s=5)
    await asyncio.sleep(100)
    before_s = world.clock.monotonic_s()
    async with world.host(process) as host:
        await host.raise_event("p", "beside")
        assert await host.get(process, "p").result() - before_s < 1
