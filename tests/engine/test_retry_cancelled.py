"""`retry` and what the error had cut short on its way out: siblings, timeouts, waits."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from durabletask import Process, ProcessHost, Status
from durabletask._model import Checkpoint
from durabletask._retry_plan import plan_retry
from durabletask.errors import ProcessFailedError, ProcessFinishedError, ProcessStateError
from durabletask.testing.crash import crash_everywhere
from tests.engine.retrying import Steps, failed, forgotten
from tests.engine.world import World, virtual


class Bug(Exception):
    """A mistake in the code, recorded nowhere."""


@pytest.mark.parametrize("recorded", [True, False])
@virtual
async def test_siblings_that_a_group_has_cancelled_go_on(world: World, recorded: bool) -> None:
    """Rule 9: whether a step or the code had failed, nobody waits for a cancellation again."""
    steps = Steps("b")

    async def second(proc: Process) -> str:
        if recorded:
            return await proc.do("b", steps.step, "b")
        await proc.do("a", steps.step, "a")
        if steps.broken:
            raise Bug("broken")
        return "b"

    async def process(proc: Process) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(proc.event("first", int))
            other = group.create_task(second(proc))
            body = await proc.event("body", int)
        return [first.result(), other.result(), body]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        await asyncio.sleep(600)  # more than a cancellation is waited for
        await handle.raise_event("first", 1)
        await handle.raise_event("body", 2)
        assert await handle.result() == [1, "b", 2]
        cut = [("event", "first"), ("event", "body")]
        assert sorted(await forgotten(handle)) == sorted([("do", "b")] * recorded + cut)


@virtual
async def test_a_call_that_was_cut_off_goes_on_where_it_was(world: World) -> None:
    """Rule 9: it keeps its due time and its child, and what its task did to clean up."""
    steps = Steps("b")
    world.allow(days=3)

    async def child(proc: Process) -> str:
        return await proc.do("c", steps.step, "c")

    async def cleaning(proc: Process) -> float:
        try:
            return (await proc.delay("day", timedelta(days=1))).desired.timestamp()
        finally:
            await proc.do("clean", steps.step, "clean")

    async def process(proc: Process) -> tuple[float, str]:
        async with asyncio.TaskGroup() as group:
            day = group.create_task(cleaning(proc))
            called = group.create_task(proc.call("child", child))
            group.create_task(proc.do("b", steps.step, "b"))
        return day.result(), called.result()

    async with world.host(process, child) as host:
        begun = world.clock.now()
        handle = await host.spawn(process, "p")
        await failed(handle)
        await asyncio.sleep(86_400 / 2)
        steps.broken.clear()
        await handle.retry()
        due, called = await handle.result()
        assert world.clock.now() - begun < timedelta(days=1, seconds=1)
        assert due == pytest.approx((begun + timedelta(days=1)).timestamp(), abs=1)
        assert called == "c"
    assert sorted(steps.ran) == ["b", "b", "c", "clean"]


@virtual
async def test_what_the_code_had_cancelled_itself_before_stays(world: World) -> None:
    """Rule 9: a timeout that was handled, with a record behind it, is over in the retry too."""
    steps = Steps("b")

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(30):
                return await proc.event("early", str)
        except TimeoutError:
            await proc.do("late", handle.raise_event, "early", "too late")
        return await proc.do("b", steps.step, "b")

    async with world.host(process) as host:
        handle = host.get(process, "p")
        await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == "b"
        assert await forgotten(handle) == [("do", "b")]
    assert steps.ran == ["b", "b"]


@pytest.mark.parametrize("durable", [True, False])
@virtual
async def test_a_timeout_around_a_mistake_guards_again(world: World, durable: bool) -> None:
    """Rule 9: where an error of the code left a timeout, or was one, it begins anew."""
    mended = [False]

    async def process(proc: Process) -> str:
        if durable:
            async with proc.timeout("around", timedelta(minutes=1)):
                if not mended[0]:
                    raise Bug("broken")
                return await proc.event("e", str)
        async with asyncio.timeout(60):
            return await proc.event("e", str)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle, "broken|TimeoutError")
        mended[0] = True
        await handle.retry()
        await asyncio.sleep(59)
        assert (await handle.info()).status is Status.WAITING
        await failed(handle, "TimeoutError")
        await handle.retry()
        await handle.raise_event("e", "in time")
        assert await handle.result() == "in time"


@virtual
async def test_a_result_that_overtook_the_groups_cancellation_is_kept(world: World) -> None:
    """Rule 6, rule 9: its value stays; that its task is to be cancelled behind it is put aside."""
    steps = Steps("b")
    released = asyncio.Event()

    async def slow(call: str) -> None:
        if call == "commit" and steps.ran == ["a"]:
            await released.wait()

    async def second(proc: Process) -> str:
        await asyncio.sleep(1)
        if steps.broken:
            raise Bug("broken")
        return await proc.do("b", steps.step, "b")

    async def process(proc: Process) -> str:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(proc.do("a", steps.step, "a"))
            group.create_task(second(proc))
        return first.result()

    async with world.host(process) as host:
        world.wires[host].before = slow
        handle = await host.spawn(process, "p")
        await asyncio.sleep(2)
        released.set()
        await failed(handle)
        assert ("overtaken", "a", "value") in world.keys("p")
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == "a"
        assert await forgotten(handle) == [("overtaken", "a")]
    assert steps.ran == ["a", "b"]


@virtual
async def test_items_that_were_cut_off_run_again(world: World) -> None:
    """Rule 9: a `map` beside a step that failed begins again what it had in flight."""
    steps = Steps("b")

    async def slow(number: int) -> int:
        steps.ran.append(str(number))
        await asyncio.sleep(10)
        return number

    async def process(proc: Process) -> list[int]:
        async with asyncio.TaskGroup() as group:
            items = group.create_task(proc.map("m", slow, range(4), concurrency=2))
            await proc.delay("d", timedelta(seconds=15))
            group.create_task(proc.do("b", steps.step, "b"))
        return items.result()

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == [0, 1, 2, 3]
    assert sorted(steps.ran) == ["0", "1", "2", "2", "3", "3", "b", "b"]


def test_dead_at_every_call() -> None:
    """Rule 9: before the failure, at the retry and behind it; each sibling comes to its result."""
    steps = Steps("b")

    async def child(proc: Process) -> str:
        await proc.delay("d", timedelta(seconds=3))
        return "c"

    async def late(proc: Process) -> str:
        await proc.delay("late", timedelta(seconds=1))
        return await proc.do("b", steps.step, "b")

    async def process(proc: Process) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            calls = (proc.event("e"), proc.call("c", child), proc.map("m", steps.step, ["x", "y"]))
            tasks = [group.create_task(call) for call in calls]
            tasks.append(group.create_task(late(proc)))
        return [task.result() for task in tasks]

    async def main(host: ProcessHost) -> None:
        steps.broken.add("b")
        handle = await host.spawn(process, "p")
        with suppress(ProcessFailedError):
            await handle.result()
        steps.broken.clear()
        with suppress(ProcessStateError):  # an earlier program has asked for it
            await handle.retry()
        with suppress(ProcessFinishedError):
            await handle.raise_event("e", 5, event_id="e")
        assert await handle.result() == [5, "c", ["x", "y"], "b"]

    report = crash_everywhere(process, process_id="p", processes=[child], main=main)
    report.check()
    assert report.expected["p", "status"] == "completed"


class Counted(tuple[Checkpoint, ...]):  # noqa: SLOT001  (it counts)
    """Records that count how often somebody goes over all of them."""

    passes = 0

    def __iter__(self) -> Iterator[Checkpoint]:
        self.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("count", [2, 40])
@virtual
async def test_a_retry_is_planned_in_a_few_passes(world: World, count: int) -> None:
    """F115: a history with many durable timeouts is gone over as often as one with few."""

    async def process(proc: Process) -> None:
        for number in range(count):
            with suppress(TimeoutError):
                async with proc.timeout(f"t{number}", 1):
                    await proc.event("never", key=f"e{number}")
        raise Bug("broken")

    async with world.host(process) as host:
        await failed(await host.spawn(process, "p"))
    (snapshot,) = await world.storage.read(["p"], history=True)
    assert snapshot is not None
    records = Counted(snapshot.checkpoints)
    plan = plan_retry(replace(snapshot, checkpoints=records), "e0")
    assert len(plan.forget) > 2 * count
    assert records.passes <= 5
