"""Interrupts: drain, lost lease, quarantine. Nothing is recorded from the first moment on."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessHost, RetryPolicy, Status
from durabletask.errors import (
    ProcessInterrupted,
    StorageFailedError,
)
from tests.engine.world import World, lease_of, settle, virtual

KEYS = list[tuple[str, str, str]]


async def nop() -> None:
    """Do nothing; a step."""


async def refund() -> str:
    return "refunded"


async def compensating(proc: Process) -> str:
    """Compensate whatever happens; a marker shows whether it could."""
    try:
        await proc.do("charge", nop)
        await proc.event("go")
    except BaseException:
        await proc.do("refund in except", refund)
        raise
    finally:
        await proc.do("refund in finally", refund)
    return "done"


MARKS = {"refund in except", "refund in finally"}


def marked(keys: KEYS) -> set[str]:
    return {key for _, key, _ in keys} & MARKS


async def by_drain(world: World, host: ProcessHost) -> None:
    await host.stop()


async def by_lost_lease(world: World, host: ProcessHost) -> None:
    lost = lease_of(host)
    world.storage.fence(lost)
    await asyncio.sleep(120)  # until the host has noticed
    await host.stop()


async def by_kill(world: World, host: ProcessHost) -> None:
    world.kill(host)


async def by_failed_storage(world: World, host: ProcessHost) -> None:
    async def fail(call: str) -> None:
        raise StorageFailedError("the disk is gone")

    world.wires[host].before = fail
    await host.stop(drain_s=1)


@pytest.mark.parametrize("end", [by_drain, by_lost_lease, by_kill])
def test_no_except_or_finally_compensates_because_of_us(end: Any) -> None:
    """F009, F011 (rule 5): an interrupted run records nothing in except or finally; it resumes."""

    @virtual
    async def body(world: World) -> None:
        host = world.host(compensating)
        await host.start()
        await host.spawn(compensating, "p")
        await settle()
        await end(world, host)
        assert marked(world.keys("p")) == set()
        assert world.row("p").status is Status.WAITING
        async with world.host(compensating) as again:
            await again.raise_event("p", "go")
            assert await again.get(compensating, "p").result() == "done"
        assert marked(world.keys("p")) == {"refund in finally"}

    body()


@virtual
async def test_every_call_from_that_moment_raises(world: World) -> None:
    """Rule 5: each kind of durable call, in the unwinding run, raises ProcessInterrupted."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        variable = await proc.var("var", 1)
        try:
            await proc.event("go")
        finally:
            calls: list[tuple[str, Callable[[], Any]]] = [
                ("do", lambda: proc.do("a", nop)),
                ("do sync", lambda: proc.do("b", lambda: None)),
                ("get", lambda: proc.get("c", 1)),
                ("var", lambda: proc.var("d", 1)),
                ("set", lambda: variable.set(2)),
                ("delay", lambda: proc.delay("e", timedelta(seconds=-1))),
                ("event", lambda: proc.event("f", timeout=0)),
                ("recorded", lambda: proc.var("var", 1)),
            ]
            for name, call in calls:
                try:
                    await call()
                except ProcessInterrupted:
                    seen.append(name)
            assert len(seen) == len(calls)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    await host.stop()
    assert seen == ["do", "do sync", "get", "var", "set", "delay", "event", "recorded"]
    assert [key for kind, key, _ in world.keys("p") if kind != "wait"] == ["var"]


@pytest.mark.parametrize("shape", ["gather", "group", "wait", "wait_for", "shield", "settled"])
def test_an_interrupt_reaches_through_every_combinator(shape: str) -> None:
    """Rule 5: gather, TaskGroup, wait, wait_for, shield: nothing recorded, all of it unwinds."""

    @virtual
    async def body(world: World) -> None:
        after: list[str] = []

        async def process(proc: Process) -> str:
            calls = [proc.event("a"), proc.event("b")]
            if shape == "gather":
                await asyncio.gather(*calls)
            elif shape == "settled":
                await asyncio.gather(*calls, return_exceptions=True)
            elif shape == "group":
                async with asyncio.TaskGroup() as group:
                    for call in calls:
                        group.create_task(call)
            elif shape == "wait":
                await asyncio.wait([asyncio.create_task(call) for call in calls])
            elif shape == "wait_for":
                calls[1].close()
                await asyncio.wait_for(calls[0], timeout=10**9)
            else:
                calls[1].close()
                await asyncio.shield(calls[0])
            after.append("went on")
            await proc.do("after", nop)
            return "done"

        host = world.host(process)
        await host.start()
        await host.spawn(process, "p")
        await settle()
        await host.stop()
        assert "after" not in [key for _, key, _ in world.keys("p")]
        async with world.host(process) as again:
            await again.raise_event("p", "a")
            await again.raise_event("p", "b")
            assert await again.get(process, "p").result() == "done"

    body()


@virtual
async def test_what_an_interrupted_run_returns_is_thrown_away(world: World) -> None:
    """Rule 5: code that swallows the interrupt and returns has not completed."""

    async def process(proc: Process) -> str:
        try:
            return await proc.event("go", str)
        except BaseException:
            return "swallowed"

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    await host.stop()
    assert world.row("p").ending is None
    async with world.host(process) as again:
        await again.raise_event("p", "go", "really")
        assert await again.get(process, "p").result() == "really"


@virtual
async def test_what_an_interrupted_run_raises_is_thrown_away(world: World) -> None:
    """Rule 5: code that turns the interrupt into an error of its own has not failed."""

    async def process(proc: Process) -> str:
        try:
            return await proc.event("go", str)
        except BaseException as error:
            raise ValueError("translated") from error

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    await host.stop()
    assert world.row("p").ending is None


# --- steps in flight ------------------------------------------------------------------------


@virtual
async def test_drain_lets_steps_in_flight_finish_and_records_them(world: World) -> None:
    """F011, S1.14, S4.13: a step that ends within drain_s is recorded; the next does not begin."""
    ran: list[str] = []

    async def slow() -> str:
        await asyncio.sleep(5)
        ran.append("slow")
        return "slow"

    async def next_step() -> str:
        ran.append("next")
        return "next"

    async def process(proc: Process) -> list[str]:
        return [await proc.do("slow", slow), await proc.do("next", next_step)]

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=30)
    assert ran == ["slow"]
    assert world.keys("p") == [("do", "slow", "value")]
    assert world.clock.monotonic_s() == pytest.approx(5, abs=0.1)
    async with world.host(process) as again:
        assert await again.get(process, "p").result() == ["slow", "next"]
    assert ran == ["slow", "next"]


@virtual
async def test_drain_gives_up_after_its_time(world: World) -> None:
    """F011: a step that outlasts drain_s is interrupted, not recorded, and runs again."""
    ran: list[str] = []

    async def slow() -> str:
        ran.append("begin")
        await asyncio.sleep(50)
        return "slow"

    async def process(proc: Process) -> str:
        return await proc.do("slow", slow)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=10)
    assert world.clock.monotonic_s() == pytest.approx(11, abs=0.5)
    assert world.keys("p") == []
    async with world.host(process) as again:
        assert await again.get(process, "p").result() == "slow"
    assert ran == ["begin", "begin"]


@pytest.mark.parametrize("retry", [None, RetryPolicy(delay_s=0)])
@pytest.mark.parametrize("how", ["value", "error", "cancelled", "timeout"])
def test_a_step_that_swallows_its_interrupt_records_nothing(how: str, retry: Any) -> None:
    """F011, S4.09 (rule 5): what a step makes of the interrupt's cancellation is no outcome."""

    @virtual
    async def body(world: World) -> None:
        async def slow() -> str:
            if world.clock.monotonic_s() > 50:
                return "complete"
            try:
                await asyncio.sleep(50)
            except asyncio.CancelledError as error:
                if how == "value":
                    return "partial"
                if how == "error":
                    raise ConnectionError("connection closed under me") from error
                if how == "timeout":
                    raise TimeoutError from error
                raise asyncio.CancelledError("mine") from error
            return "complete"

        async def process(proc: Process) -> str:
            return await proc.do("slow", slow, retry=retry)

        host = world.host(process)
        await host.start()
        await host.spawn(process, "p")
        await asyncio.sleep(1)
        await host.stop(drain_s=2)
        assert world.keys("p") == []
        await asyncio.sleep(100)
        async with world.host(process) as again:
            assert await again.get(process, "p").result() == "complete"

    body()


@virtual
async def test_a_step_that_ends_after_its_run_was_interrupted_records_nothing(world: World) -> None:
    """Rule 5: a shielded or free-running step that ends during the unwinding is not recorded."""
    unwinding = asyncio.Event()
    done = asyncio.Event()

    async def free() -> str:
        await unwinding.wait()
        done.set()
        return "late"

    async def process(proc: Process) -> None:
        task = asyncio.create_task(proc.do("free", free))
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            unwinding.set()
            await done.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            raise
        await task

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=2)
    assert done.is_set()
    assert world.keys("p") == []


@virtual
async def test_drain_with_sync_steps_on_threads(world: World) -> None:
    """F011: a sync step in flight is let finish and recorded by a drain."""
    begun, go = threading.Event(), threading.Event()

    def block() -> str:
        begun.set()
        go.wait(20)
        return "sync"

    async def process(proc: Process) -> list[str]:
        return [await proc.do("sync", block), await proc.do("next", refund)]

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    begun.wait(20)
    stopping = asyncio.create_task(host.stop(drain_s=30))
    await settle()
    go.set()
    await stopping
    assert world.keys("p") == [("do", "sync", "value")]


@virtual
async def test_drain_waits_for_no_retry(world: World) -> None:
    """A step that only waits for its next attempt is not in flight: the drain ends at once."""

    async def bad() -> None:
        raise ValueError("bad")

    async def process(proc: Process) -> None:
        await proc.do("bad", bad, retry=RetryPolicy(delay_s=20, attempts_max=None))

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=30)
    assert world.clock.monotonic_s() == pytest.approx(1, abs=0.2)
    assert world.keys("p") == [("retry", "bad", "value")]


@virtual
async def test_a_sibling_does_not_go_on_while_a_step_drains(world: World) -> None:
    """Rule 5: during the drain a parallel branch whose wait is over begins no further call."""
    ran: list[str] = []

    async def slow() -> str:
        await asyncio.sleep(10)
        return "slow"

    async def branch(proc: Process) -> None:
        await proc.delay("short", timedelta(seconds=3))
        ran.append("woke")
        await proc.do("after delay", nop)
        ran.append("after delay")

    async def process(proc: Process) -> None:
        await asyncio.gather(proc.do("slow", slow), branch(proc))

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop()
    assert "after delay" not in ran
    assert ("do", "slow", "value") in world.keys("p")
    assert "after delay" not in [key for _, key, _ in world.keys("p")]


@virtual
async def test_code_that_swallows_every_cancellation_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """F108: a run that will not end is left behind, named in the log, and records nothing."""
    let_go = asyncio.Event()

    async def stubborn(proc: Process) -> None:
        while not let_go.is_set():
            try:
                await asyncio.wait_for(let_go.wait(), 1)
            except (TimeoutError, asyncio.CancelledError):
                pass
            try:
                await proc.do("more", nop)
            except BaseException:
                pass

    async def start(proc: Process) -> None:
        await stubborn(proc)

    host = world.host(start)
    await host.start()
    await host.spawn(start, "sticky")
    await settle()
    await host.stop(drain_s=1)
    assert "'sticky'" in caplog.text
    assert "swallows its cancellation" in caplog.text
    assert world.keys("sticky") == []
    let_go.set()
    await settle()
    assert world.row("sticky").ending is None
