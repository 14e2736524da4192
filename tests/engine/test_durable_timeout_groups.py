"""`proc.timeout` around task groups that have failed, in code that unwinds, and their like.

Before Python 3.13 such a group leaves its task one request to cancel for good,
by which `asyncio.timeout` then takes its own end for somebody else's.
"""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessHost
from durabletask.errors import ProcessCancelledError, StepTimeoutError
from tests.engine.world import World, virtual


async def broken() -> None:
    raise ValueError("planted")


async def nop() -> None:
    """Do nothing; a step."""


async def fail_a_group(proc: Process, key: str) -> None:
    """Let a task group fail while it is waited for, and go on."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(proc.do(key, broken))
    except* Exception:
        pass


async def bring_to_an_end(world: World, process: Any) -> Any:
    async with world.host(process) as host:
        return await host.get(process, "p").result()


@pytest.mark.parametrize("die_after_s", [1.0, 100.0])
@pytest.mark.parametrize(
    ("last", "down_s"),
    [(last, down_s) for last in ("event", "step", "no call") for down_s in (0.0, 1000.0)],
)
def test_a_timeout_around_groups_that_have_failed(
    die_after_s: float, last: str, down_s: float
) -> None:
    """Rule 6: its end is a TimeoutError, first and again; so is that of the one around it."""

    @virtual
    async def body(world: World) -> None:
        stories: list[str] = []

        async def process(proc: Process) -> str:
            story = []
            try:
                async with proc.timeout("outer", 60):
                    await fail_a_group(proc, "first")
                    try:
                        async with proc.timeout("inner", 30):
                            await fail_a_group(proc, "second")
                            await fail_a_group(proc, "third")
                            await proc.do("fourth", nop)
                            if last == "step":
                                await proc.do("fifth", asyncio.sleep, 10_000.0)
                            elif last == "event":
                                await proc.event("never")
                            else:
                                await asyncio.sleep(10_000.0)
                    except TimeoutError:
                        story.append("inner")
                    await proc.event("never again")
            except TimeoutError:
                story.append("outer")
            stories.append(" ".join(story))
            if len(stories) == 1:
                await asyncio.sleep(1_000)
            return stories[-1]

        await world.begin_and_die(process, after_s=die_after_s)
        await asyncio.sleep(down_s)
        assert await bring_to_an_end(world, process) == "inner outer"
        assert set(stories) == {"inner outer"}

    body()


@pytest.mark.parametrize("first", ["a durable timeout", "asyncio's", "a step's"])
def test_a_timeout_around_a_group_that_fails_in_a_handler(first: str) -> None:
    """Rule 6: code that handles the end of another timeout does not unwind, and outlives it."""

    @virtual
    async def body(world: World) -> None:
        async def too_long(proc: Process) -> None:
            if first == "a durable timeout":
                async with proc.timeout("inner", 10):
                    await proc.event("never")
            elif first == "asyncio's":
                async with asyncio.timeout(10):
                    await proc.event("never")
            else:
                await proc.do("slow", asyncio.sleep, 1000.0, timeout=10)

        async def process(proc: Process) -> str:
            try:
                async with proc.timeout("outer", 60):
                    try:
                        await too_long(proc)
                    except TimeoutError:
                        await fail_a_group(proc, "instead")
                        await proc.event("never again")
            except TimeoutError:
                return "over"
            return "?"

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == "over"

    body()


async def unwind(proc: Process, story: list[str]) -> None:
    """Be cancelled in a durable timeout, and clean up for longer than that lasts."""
    async with proc.timeout("inner", 30):
        try:
            await proc.event("never")
        finally:
            await proc.do("clean", nop)
            story.append("cleaning")
            await proc.event("never again")


async def in_a_timeout(proc: Process) -> str:
    story: list[str] = []
    try:
        async with asyncio.timeout(10):
            await unwind(proc, story)
    except TimeoutError as error:
        story.append(str(error) or "asyncio")
    return " ".join(story)


async def in_a_group(proc: Process) -> str:
    story: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_later(proc))
            await unwind(proc, story)
    except* ValueError as errors:
        story.append(str(len(errors.exceptions)))
    return " ".join(story)


async def fail_later(proc: Process) -> None:
    await proc.delay("later", timedelta(seconds=10))
    raise ValueError("planted")


@pytest.mark.parametrize(
    ("process", "story"), [(in_a_timeout, "cleaning asyncio"), (in_a_group, "cleaning 1")]
)
def test_a_timeout_that_ends_in_code_that_unwinds(process: Any, story: str) -> None:
    """Rule 6: what is cancelled from around it stays so, though the cleaning up outlasts it."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(process) as host:
            handle = await host.spawn(process, "p")
            assert await handle.result() == story

    body()


def slow_to_record(world: World, process: Any) -> ProcessHost:
    """Make a host whose records take half a second, so that what ends may overtake a cancel."""

    async def half_a_second(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(0.5)

    host = world.host(process)
    world.wires[host].before = half_a_second
    return host


async def broken_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError("planted")


async def overtaken_in_a_group(proc: Process) -> str:
    try:
        async with proc.timeout("outer", 60):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(proc.do("fails", broken_after, 1.0))
                    # On its way to the storage when the other one is told, and its last call.
                    group.create_task(proc.do("ends", asyncio.sleep, 1.2))
            except* Exception:
                pass
            await proc.event("never")
    except TimeoutError:
        return "over"
    return "?"


async def overtaken_in_a_timeout(proc: Process) -> str:
    story: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(broken_after(1.7))
            async with proc.timeout("inner", 30):
                await proc.do("ends", asyncio.sleep, 1.2)
                try:
                    await proc.event("never")  # meets what the result has overtaken
                finally:
                    story.append("cleaning")
                    await proc.event("never again")
    except* ValueError:
        story.append("group")
    except* TimeoutError:
        story.append("timeout")
    return " ".join(story)


@pytest.mark.parametrize(
    ("process", "story"),
    [(overtaken_in_a_group, "over"), (overtaken_in_a_timeout, "cleaning group")],
)
def test_a_timeout_and_results_that_overtake_a_cancellation(process: Any, story: str) -> None:
    """Rule 6: neither a task that has ended nor what is met only now changes whose its end is."""

    @virtual
    async def body(world: World) -> None:
        async with slow_to_record(world, process) as host:
            assert await (await host.spawn(process, "p")).result() == story

    body()


@virtual
async def test_what_a_result_overtook_is_forgotten_with_its_task(world: World) -> None:
    """DESIGN 5, everything bounded: a process keeps no task that has ended, nor looks for it."""
    kept: list[object] = []

    async def process(proc: Process) -> None:
        await overtaken_in_a_group(proc)
        kept.append((proc._run._overtaken, proc._run.gated))

    async with slow_to_record(world, process) as host:
        await (await host.spawn(process, "p")).result()
    assert kept == [(None, False)]


@virtual
async def test_a_cancellation_from_outside_behind_a_group_that_has_failed(world: World) -> None:
    """Rule 7: code that undoes by hand is not cancelled by what the group has left behind."""

    async def process(proc: Process) -> str:
        await fail_a_group(proc, "group")
        try:
            await proc.event("never")
        except ProcessCancelledError:
            await proc.do("undo", nop)
        return "undone"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel("enough")
        assert await handle.result() == "undone"


@virtual
async def test_the_time_of_a_step_in_which_a_group_has_failed(world: World) -> None:
    """S3.07: it is the step that fails when `timeout=` is over, and nobody has cancelled it."""

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(broken())
        except* ValueError:
            await asyncio.sleep(1000)

    async def process(proc: Process) -> str:
        try:
            await proc.do("slow", body, timeout=10)
        except StepTimeoutError:
            return "over"
        return "?"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "over"
