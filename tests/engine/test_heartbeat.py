"""`current_step().heartbeat(details)`: a long step tells its next attempt how far it was."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, current_step
from durabletask.errors import (
    ProcessInterrupted,
    SerializationError,
    StepError,
    WrongContextError,
)
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, virtual


@dataclass
class Cursor:
    """Where a copy is."""

    page: int


@virtual
async def test_the_next_attempt_sees_the_details_after_a_crash(world: World) -> None:
    """S1.10 (heartbeat): another host's attempt begins where the dead one had got to."""
    begun: list[Any] = []
    done: list[int] = []

    async def copy() -> int:
        step = current_step()
        begun.append(step.heartbeat_details)
        for page in range((step.heartbeat_details or 0), 10):
            await asyncio.sleep(10)
            done.append(page)
            await step.heartbeat(page + 1)
        return len(done)

    async def process(proc: Process) -> int:
        return await proc.do("copy", copy)

    await world.begin_and_die(process, after_s=35)
    async with world.host(process) as host:
        handle = host.get(process, "p")
        # The body of the dead host is not stopped: what it does beside ours is not told.
        await handle.result()
        kinds = [(entry.kind, entry.value) for entry in await handle.history()]
    assert begun == [None, 3]
    assert kinds[0] == ("heartbeat", 10)


@virtual
async def test_the_next_attempt_in_the_same_run_sees_them(world: World) -> None:
    """The latest details pass from attempt to attempt, with their type, for each item of a map."""
    seen: list[Any] = []

    async def flaky(n: int) -> int:
        step = current_step()
        seen.append((n, step.attempt, step.heartbeat_details))
        if step.attempt < 3:
            await step.heartbeat(Cursor(0))
            await step.heartbeat(Cursor(n + step.attempt))
            raise ConnectionError
        return n

    async def process(proc: Process) -> None:
        policy = RetryPolicy(delay_s=5)
        await proc.map("items", flaky, [10, 20], concurrency=1, retry=policy)
        await proc.do("alone", flaky, 30, retry=policy)

    async with world.host(process, types=[Cursor]) as host:
        await (await host.spawn(process, "p")).result()
    assert seen == [
        (n, attempt, None if attempt == 1 else Cursor(n + attempt - 1))
        for n in (10, 20, 30)
        for attempt in (1, 2, 3)
    ]


@virtual
async def test_it_is_durable_when_it_returns(world: World) -> None:
    """Rule 1: when `heartbeat` has returned the record is there, and it is one record."""
    recorded: list[Any] = []

    async def step() -> None:
        for n in range(3):
            await current_step().heartbeat(n)
            recorded.append(world.keys("p"))

    async def process(proc: Process) -> None:
        await proc.do("step", step)

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert recorded == [[("heartbeat", "step", "value")]] * 3


@virtual
async def test_on_a_thread_the_call_itself_waits(world: World) -> None:
    """A synchronous step calls `heartbeat` on its thread; it is durable when the call returns."""
    recorded: list[Any] = []

    def copy() -> str:
        step = current_step()
        step.heartbeat({"page": 1})
        recorded.append(world.keys("p"))
        if step.attempt == 1:
            raise ConnectionError
        return f"{step.heartbeat_details}"

    async def process(proc: Process) -> str:
        return await proc.do("copy", copy, retry=RetryPolicy(delay_s=1))

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "{'page': 1}"
    assert recorded[0] == [("heartbeat", "copy", "value")]


@virtual
async def test_details_without_a_form_are_refused(world: World) -> None:
    """Rule 2: details are encoded as any value; what has no exact form is an error in the step."""

    async def step() -> str:
        with pytest.raises(SerializationError, match="details"):
            await current_step().heartbeat({"at": float("nan")})
        return "fine"

    async def process(proc: Process) -> str:
        return await proc.do("step", step)

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "fine"
    assert world.keys("p") == [("do", "step", "value")]


@virtual
async def test_only_in_a_step(world: World) -> None:
    """Outside of a step there is nothing to tell it of."""

    async def process(proc: Process) -> str:
        with pytest.raises(WrongContextError):
            current_step()
        return await proc.do("fine", asyncio.sleep, 0, "fine")

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "fine"


@virtual
async def test_a_timeout_of_the_attempt_is_not_held_up(world: World) -> None:
    """Rule 11: while the storage is away, an attempt that is told to end ends in its heartbeat."""

    async def step() -> None:
        await current_step().heartbeat(1)

    async def process(proc: Process) -> str:
        with pytest.raises(StepError) as caught:
            await proc.do("step", step, timeout=5)
        return type(caught.value).__name__

    host = world.host(process)
    async with host:
        handle = await host.spawn(process, "p")
        world.wires[host].down("commit")
        await asyncio.sleep(30)
        world.wires[host].up()
        assert await handle.result() == "StepTimeoutError"


# --- interrupts -------------------------------------------------------------------------------


@virtual
async def test_after_an_interrupt_it_raises(world: World) -> None:
    """Rule 5: a long step that swallows its cancellation is ended by its next heartbeat."""
    ends: list[str] = []

    async def stubborn() -> None:
        try:
            for n in range(1000):
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    ends.append("swallowed")
                await current_step().heartbeat(n)
        except ProcessInterrupted:
            ends.append("interrupted")
            raise

    async def process(proc: Process) -> None:
        await proc.do("stubborn", stubborn)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(5.5)
    await host.stop(drain_s=1)
    assert ends == ["swallowed", "interrupted"]
    assert {kind for kind, _, _ in world.keys("p")} == {"heartbeat"}


@virtual
async def test_after_an_interrupt_it_raises_on_a_thread(world: World) -> None:
    """Rule 5: a thread cannot be interrupted; its next heartbeat ends it all the same."""
    ends: list[str] = []
    begun, interrupted, over = threading.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def long() -> None:
        current_step().heartbeat(1)
        begun.set()
        assert interrupted.wait(10)
        try:
            current_step().heartbeat(2)
        except ProcessInterrupted:
            ends.append("interrupted")
            raise
        finally:
            loop.call_soon_threadsafe(over.set)

    async def process(proc: Process) -> None:
        await proc.do("long", long)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    while not begun.is_set():
        await asyncio.sleep(0)
    assert host._session is not None
    for run in list(host._session.runs.values()):
        run.interrupt()
    interrupted.set()
    await over.wait()
    world.kill(host)
    assert ends == ["interrupted"]
    assert world.keys("p") == [("heartbeat", "long", "value")]


# --- crashes ----------------------------------------------------------------------------------


def test_dead_at_every_call() -> None:
    """F001-F003: dead at each storage call and await, a step goes on from its last heartbeat."""
    done: list[int] = []

    async def copy() -> str:
        step = current_step()
        first = step.heartbeat_details or 0
        assert first <= len(set(done))
        for page in range(first, 3):
            done.append(page)
            await step.heartbeat(page + 1)
        return "copied"

    async def process(proc: Process) -> str:
        return await proc.do("copy", copy)

    report = crash_everywhere(
        process,
        callbacks=True,
        pairs=True,
        reset=done.clear,
        observe=lambda: (sorted(set(done)), [done.count(n) <= 3 for n in range(3)]),
    )
    report.check()
    assert report.deaths > 30
