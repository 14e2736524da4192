"""Cancellation by user code in every shape: first completed, libraries, drains, nesting."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, RetryPolicy
from durabletask.errors import ProcessFailedError, StepError
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@virtual
async def test_gather_with_return_exceptions(world: World) -> None:
    """S1.06: all settled: values and errors side by side, equal after a resume."""

    async def bad() -> None:
        raise ValueError("bad")

    async def process(proc: Process) -> list[str]:
        results = await asyncio.gather(
            proc.do("good", sleeper, 1.0), proc.do("bad", bad), return_exceptions=True
        )
        await proc.event("go")
        return [str(each) for each in results]

    await world.begin_and_die(process, after_s=2)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == ["slept", "ValueError: bad"]


@virtual
async def test_first_completed_then_cancel(world: World) -> None:
    """Rule 6: wait(FIRST_COMPLETED) and cancelling the rest is recorded and met again."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        tasks = {
            asyncio.create_task(proc.do("fast", sleeper, 1.0), name="fast"),
            asyncio.create_task(proc.delay("slow", timedelta(days=1)), name="slow"),
        }
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        seen.append(",".join(task.get_name() for task in done))
        await proc.event("go")

    await world.begin_and_die(process, after_s=2)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["fast", "fast"]
    assert ("delay", "slow", "cancelled") in world.keys("p")


@pytest.mark.parametrize("retry", [None, RetryPolicy(attempts_max=1)])
def test_a_cancelled_error_that_a_library_raises_is_a_failure(retry: Any) -> None:
    """Rule 3: CancelledError raised inside a step without a cancel: StepError, on both runs."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def library() -> None:
            raise asyncio.CancelledError("the pool was closed")

        async def awaits_a_cancelled_future() -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async def process(proc: Process) -> None:
            for key, fn in (("raised", library), ("future", awaits_a_cancelled_future)):
                with pytest.raises(StepError) as caught:
                    await proc.do(key, fn, retry=retry)
                assert caught.value.type == "CancelledError"
                seen.append(str(caught.value))
            await proc.event("go")

        await world.begin_and_die(process)
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            await host.get("p").result()
        assert seen[:2] == seen[2:]

    body()


@virtual
async def test_a_step_that_makes_a_value_of_its_cancellation(world: World) -> None:
    """Rule 6: user code cancels, the step returns a value all the same: both runs see the value."""
    seen: list[str] = []

    async def graceful() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return "partial"
        return "complete"

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(5):
                seen.append(await proc.do("graceful", graceful))
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")

    await world.begin_and_die(process, after_s=6)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["partial", "partial"]


@virtual
async def test_a_process_that_cancels_itself_has_failed(world: World) -> None:
    """Rule 9: CancelledError that leaves the function without an interrupt ends it as failed."""

    async def process(proc: Process) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError, match="CancelledError"):
            await handle.result()


@virtual
async def test_swallowing_a_cancellation_of_its_own_goes_on(world: World) -> None:
    """Rule 6: user code that cancels a task of its own and goes on is no interrupt."""

    async def process(proc: Process) -> str:
        task = asyncio.create_task(proc.event("never"))
        await asyncio.sleep(1)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return await proc.do("after", sleeper, 0.0)
        return "not cancelled"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "slept"


@virtual
async def test_a_cancellation_in_a_drain_is_still_recorded_right(world: World) -> None:
    """F011, F107: a timeout that fires while steps drain cancels its call on both runs, or none."""
    seen: list[str] = []

    async def timed(proc: Process) -> None:
        try:
            async with asyncio.timeout(5):
                await proc.event("never")
        except TimeoutError:
            seen.append("timeout")
            await proc.do("fallback", nop)

    async def process(proc: Process) -> str:
        await asyncio.gather(proc.do("slow", sleeper, 10.0), timed(proc))
        await proc.event("go")
        return "done"

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop()
    assert "fallback" not in [key for _, key, _ in world.keys("p")]
    async with world.host(process) as again:
        await again.raise_event("p", "go")
        assert await again.get(process, "p").result() == "done"
    assert seen[-1] == "timeout"
    assert ("do", "fallback", "value") in world.keys("p")


@virtual
async def test_nested_timeouts_each_meet_their_own(world: World) -> None:
    """Rule 6: the inner timeout ends the inner call, the outer the outer one, on both runs."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        story = []
        try:
            async with asyncio.timeout(20):
                try:
                    async with asyncio.timeout(5):
                        await proc.event("inner")
                except TimeoutError:
                    story.append("inner")
                await proc.event("outer")
        except TimeoutError:
            story.append("outer")
        seen.append(" ".join(story))
        await proc.event("go")

    await world.begin_and_die(process, after_s=30)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["inner outer", "inner outer"]


@virtual
async def test_an_outage_does_not_turn_a_result_into_a_timeout(world: World) -> None:
    """F107, F009: the line is down past the timeout: the result is what counts."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(5):
                seen.append(await proc.do("step", sleeper, 1.0))
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.wires[first].down("commit")
    await asyncio.sleep(100)
    world.wires[first].up()
    await asyncio.sleep(10)
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        await second.get("p").result()
    assert seen == ["slept", "slept"]
