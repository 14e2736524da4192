"""Misuse that is no verb in the wrong hands (`test_misuse_verbs`): dropped, late, swallowed."""

import asyncio
import gc
import threading
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient
from durabletask.errors import InvalidArgumentError
from tests.engine.world import World, virtual


async def nop() -> None:
    """Do nothing; a step."""


@virtual
async def test_a_step_in_flight_when_the_function_returns_is_not_recorded(world: World) -> None:
    """F109, S4.19, I14: a fire-and-forget step ends late: no write after the final record."""
    ended: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(5)
        ended.append("slow")

    tasks: list[asyncio.Task[None]] = []

    async def process(proc: Process) -> str:
        tasks.append(asyncio.create_task(proc.do("slow", slow)))
        tasks.append(asyncio.create_task(proc.delay("delay", timedelta(seconds=5))))  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(proc.event("event")))
        await asyncio.sleep(1)
        return "done"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == "done"
        before = world.keys("p")
        await asyncio.sleep(100)
        assert ended == ["slow"]
        assert world.keys("p") == before
        assert all(task.done() for task in tasks)
    assert "slow" not in {key for kind, key, _ in world.keys("p") if kind == "do"}


@virtual
async def test_dropped_tasks_and_calls_do_not_harm_the_engine(world: World) -> None:
    """F109: gc of dropped calls and tasks under pressure leaves the engine's own tasks alone."""

    async def process(proc: Process) -> int:
        for n in range(20):
            call = proc.do(f"dropped {n}", nop)
            call.close()
            gc.collect(0)
            await proc.do(f"kept {n}", nop)
        return 20

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        gc.collect()
        assert await handle.result() == 20


@virtual
async def test_code_that_swallows_its_interrupt_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 4.6, F108: a function that lets no cancellation pass is named, and records nothing."""
    swallowed: list[str] = []

    async def stubborn(proc: Process) -> None:
        while len(swallowed) < 22:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                swallowed.append("cancelled")
            try:
                await proc.do("compensation", nop)
            except asyncio.CancelledError as error:
                swallowed.append(type(error).__name__)

    async with world.host(stubborn) as host:
        await host.spawn(stubborn, "p")
        await asyncio.sleep(1)
        await host.stop()
    (told,) = [record for record in caplog.records if "swallows" in record.getMessage()]
    assert "'p' ('stubborn') swallows its cancellation and does not end" in told.getMessage()
    assert "ProcessInterrupted" in swallowed
    assert world.keys("p") == []


@virtual
async def test_get_is_asked_rightly(world: World) -> None:
    """Bad input: host.get with an id and an id, with no id, with a function of no process."""

    async def process(proc: Process) -> None: ...

    async with ProcessClient(world.storage) as client:
        get: Any = client.get
        with pytest.raises(InvalidArgumentError):
            get("p", "q")
        for arguments in ((process,), (5, "p"), (lambda: 1, "p"), ()):
            with pytest.raises((TypeError, ValueError)):
                get(*arguments)


@virtual
async def test_a_blocked_loop_only_delays(world: World) -> None:
    """F081: user code that blocks the loop's thread for a while loses nothing."""

    async def process(proc: Process) -> int:
        threading.Event().wait(0.01)
        await proc.do("step", nop)
        return 1

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 1
