"""`retry` of a process that its children have ended, or whose children have ended well."""

import asyncio
from typing import Any

import pytest

from durabletask import Process, Status
from durabletask.errors import ProcessStateError
from tests.engine.retrying import Steps, failed
from tests.engine.world import World, virtual

Returned = list[Any]


@pytest.mark.parametrize("how", ["call", "spawn", "race"])
@virtual
async def test_the_failure_of_a_child_retries_the_child_first(world: World, how: str) -> None:
    """Rule 9: a child whose failure ended it is retried as well, down to the step that failed."""
    steps = Steps("deep")

    async def grandchild(proc: Process) -> str:
        await proc.do("fine", steps.step, "fine")
        return await proc.do("deep", steps.step, "deep")

    async def child(proc: Process) -> str:
        return await proc.call("grandchild", grandchild)

    async def parent(proc: Process) -> str:
        if how == "call":
            return await proc.call("child", child)
        spawned = await proc.spawn("child", child)
        if how == "spawn":
            return await spawned.result()
        result = spawned.result()
        return (await proc.race("race", result)).of(result)

    async with world.host(parent, child, grandchild) as host:
        handle = await host.spawn(parent, "p")
        await failed(handle)
        await handle.retry()
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == "deep"
        assert len([info async for info in host.list()]) == 3
    assert steps.ran == ["fine", "deep", "deep", "deep"]


@virtual
async def test_a_child_that_has_ended_well_meanwhile_is_told_of_again(world: World) -> None:
    """Rule 9: somebody has retried the child before; its end is put into the mailbox again."""
    steps = Steps("a")

    async def child(proc: Process) -> str:
        return await proc.do("a", steps.step, "a")

    async def parent(proc: Process) -> str:
        return await proc.call("child", child, process_id="c")

    async with world.host(parent, child) as host:
        handle = await host.spawn(parent, "p")
        await failed(handle)
        steps.broken.clear()
        await host.get("c").retry()
        assert await host.get("c").result() == "a"
        await handle.retry()
        assert await handle.result(timeout=60) == "a"


@pytest.mark.parametrize("how", ["call", "spawn"])
@pytest.mark.parametrize("end", ["cancel", "terminate", "undone"])
@virtual
async def test_a_child_that_cannot_be_retried_is_made_anew_once_purged(
    world: World, how: str, end: str
) -> None:
    """Rule 9: cancelled, terminated or undone: once purged, a retry spawns it again."""
    steps = Steps("b") if end == "undone" else Steps()
    waits = [end != "undone"]

    async def undo(result: str) -> None: ...

    async def child(proc: Process) -> str:
        await proc.do("a", steps.step, "a", undo=undo)
        if waits[0]:
            await proc.event("go")
        return await proc.do("b", steps.step, "b")

    async def parent(proc: Process) -> str:
        if how == "call":
            return await proc.call("child", child, process_id="c")
        return await (await proc.spawn("child", child, process_id="c")).result()

    async with world.host(parent, child) as host:
        handle = await host.spawn(parent, "p")
        await asyncio.sleep(1)
        if end != "undone":
            await getattr(host.get("c"), end)("by hand")
        await failed(handle, "'c'")
        if end == "undone":
            with pytest.raises(ProcessStateError, match="child cannot be retried") as caught:
                await handle.retry()
            assert caught.value.hint
            assert (await handle.info()).status is Status.FAILED
        else:
            await handle.retry()
            await failed(handle, "'c'")
        steps.broken.clear()
        waits[0] = False
        await host.get("c").purge()
        await handle.retry()
        assert await handle.result(timeout=60) == "b"


@virtual
async def test_from_a_key_the_results_of_children_come_back(world: World) -> None:
    """Rule 9: a child that has completed is not run again; its result is taken again."""
    steps = Steps("end")

    async def child(proc: Process, name: str) -> str:
        return await proc.do("a", steps.step, name)

    async def parent(proc: Process) -> Returned:
        spawned = await proc.spawn("spawned", child, "spawned")
        await proc.do("begin", steps.step, "begin")
        results = [await proc.call("called", child, "called"), await spawned.result()]
        await proc.do("end", steps.step, "end")
        return results

    async with world.host(parent, child) as host:
        handle = await host.spawn(parent, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry(from_key="begin")
        assert await handle.result(timeout=60) == ["called", "spawned"]
    assert steps.ran.count("called") == steps.ran.count("spawned") == 1
    assert steps.ran.count("begin") == 2


@virtual
async def test_from_the_key_of_a_spawn_its_child_is_told_of_again(world: World) -> None:
    """Rule 9: a spawn that is put aside finds its child again, with the end that it came to."""
    steps = Steps("end")

    async def child(proc: Process) -> str:
        return await proc.do("a", steps.step, "a")

    async def parent(proc: Process) -> str:
        spawned = await proc.spawn("spawned", child)
        result = await spawned.result()
        await proc.do("end", steps.step, "end")
        return result

    async with world.host(parent, child) as host:
        handle = await host.spawn(parent, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry(from_key="spawned")
        assert await handle.result(timeout=60) == "a"
    assert steps.ran == ["a", "end", "end"]
