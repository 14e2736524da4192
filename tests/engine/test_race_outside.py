"""Races and durable timeouts that meet a request from outside, or steps that are to be undone."""

import asyncio
from datetime import timedelta

import pytest

from durabletask import Process, Status
from durabletask.errors import ProcessCancelledError, ProcessFailedError
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


@pytest.mark.parametrize("shape", ["race", "timeout", "both"])
def test_cancel_meets_a_race_and_passes_a_timeout(shape: str) -> None:
    """Rule 7: the race records the request, the timeout is left in time; both runs agree."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def race(proc: Process) -> None:
            await proc.race("r", proc.event("e", str), proc.delay("d", timedelta(days=1)))

        async def process(proc: Process) -> str:
            try:
                if shape == "race":
                    await race(proc)
                else:
                    async with proc.timeout("limit", timedelta(hours=1)):
                        await (race(proc) if shape == "both" else proc.event("x"))
            except ProcessCancelledError as error:
                seen.append(str(error))
            await proc.event("go")
            return await proc.event("e", str)

        first = world.host(process)
        await first.start()
        handle = await first.spawn(process, "p")
        await asyncio.sleep(5)
        await handle.cancel("no longer wanted")
        await asyncio.sleep(5)
        world.kill(first)
        assert seen == ["no longer wanted"]
        async with world.host(process) as second:
            await second.raise_event("p", "e", "kept")
            await second.raise_event("p", "go")
            assert await second.get(process, "p").result() == "kept"
        assert seen == ["no longer wanted"] * 2

    body()


@virtual
async def test_a_request_while_a_timeout_is_over(world: World) -> None:
    """Rule 7: cancelled after a downtime in which the deadline passed: each is met once."""
    seen: list[list[str]] = []

    async def process(proc: Process) -> None:
        story: list[str] = []
        seen.append(story)
        for key in ("a", "b", "c"):
            try:
                async with proc.timeout(f"limit {key}", 10):
                    await proc.event(key)
            except (TimeoutError, ProcessCancelledError) as error:
                story.append(type(error).__name__)
        await proc.event("go")

    await world.begin_and_die(process, after_s=5)
    await asyncio.sleep(100)
    host = world.host(process)
    await host.start()
    await host.get("p").cancel("stop")
    await asyncio.sleep(50)
    world.kill(host)
    async with world.host(process) as again:
        await again.raise_event("p", "go")
        await again.get("p").result()
    assert seen[-1] == seen[-2]
    assert sorted(seen[-1]) == ["ProcessCancelledError", "TimeoutError", "TimeoutError"]


@pytest.mark.parametrize("step_s", [3.0, 8.0])
def test_a_step_with_undo_is_let_finish(step_s: float) -> None:
    """Rule 6, rule 8: the end of a timeout waits for a step with `undo=`, which is then undone."""

    @virtual
    async def body(world: World) -> None:
        undone: list[str] = []

        async def reserve() -> str:
            await asyncio.sleep(step_s)
            return "seat"

        async def release(seat: str) -> None:
            undone.append(seat)

        async def process(proc: Process) -> None:
            async with proc.timeout("limit", 5):
                await proc.do("reserve", reserve, undo=release)
                await proc.event("never")

        async with world.host(process) as host:
            handle = await host.spawn(process, "p")
            with pytest.raises(ProcessFailedError, match="timeout 'limit'"):
                await handle.result()
            assert (await handle.info()).status is Status.FAILED
        assert undone == ["seat"]
        assert ("do", "reserve", "value") in world.keys("p")

    body()


@virtual
async def test_a_suspended_process_keeps_its_deadline(world: World) -> None:
    """Rule 10: suspended past its deadline, it fires when the process is resumed."""

    async def process(proc: Process) -> str:
        try:
            async with proc.timeout("limit", 10):
                await proc.race("r", proc.event("a"), proc.event("b"))
        except TimeoutError:
            await proc.do("fallback", nop)
            return "timeout"
        return "value"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        await handle.suspend("holiday")
        await asyncio.sleep(100)
        assert "fallback" not in [key for _, key, _ in world.keys("p")]
        await handle.resume()
        assert await handle.result() == "timeout"
