"""Cancelled by user code: recorded before it propagates, met again by every resumed run."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, Status
from durabletask.errors import ProcessQuarantinedError, StepError
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


def sync_step() -> str:
    return "sync"


def wait_of(proc: Process, kind: str) -> Any:
    """Return a durable call that takes long."""
    if kind == "step":
        return proc.do("slow", sleeper, 1000.0)
    if kind == "step with retry":
        return proc.do("slow", sleeper, 1000.0, retry=RetryPolicy())
    if kind == "retry wait":
        return proc.do("slow", fails, retry=RetryPolicy(delay_s=1000, delay_max_s=1000))
    if kind == "delay":
        return proc.delay("slow", timedelta(seconds=1000))
    if kind == "event with timeout":
        return proc.event("slow", timeout=1000)
    if kind == "get":
        return proc.get("slow", lambda: sleeper(1000))
    return proc.event("slow")


async def fails() -> None:
    raise ValueError("fails")


KINDS = ["step", "step with retry", "retry wait", "delay", "event", "event with timeout"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_call_is_recorded_and_met_again(kind: str) -> None:
    """F107, S4.08, S4.09 (rule 6): asyncio.timeout around a call: both runs see TimeoutError."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> str:
            try:
                async with asyncio.timeout(5):
                    await wait_of(proc, kind)
                seen.append("value")
            except TimeoutError:
                seen.append("timeout")
                await proc.do("fallback", nop)
            await proc.event("go")
            return seen[-1]

        await world.begin_and_die(process, after_s=6)
        assert world.keys("p")[-3:-1] == [
            ("event" if kind.startswith("event") else "delay" if kind == "delay" else "do",
             "slow", "cancelled"),
            ("do", "fallback", "value"),
        ]  # fmt: skip
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            assert await host.get(process, "p").result() == "timeout"
        assert seen == ["timeout", "timeout"]

    body()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancellation_that_does_not_come_again_quarantines(kind: str) -> None:
    """Rule 6: the timeout is gone from the code: after the grace it is set aside, key named."""

    @virtual
    async def body(world: World) -> None:
        timeout: float | None = 5.0

        async def process(proc: Process) -> str:
            try:
                async with asyncio.timeout(timeout):
                    await wait_of(proc, kind)
            except TimeoutError:
                pass
            await proc.event("go")
            return "done"

        await world.begin_and_die(process, after_s=6)
        timeout = None
        async with world.host(process) as host:
            handle = host.get(process, "p")
            with pytest.raises(ProcessQuarantinedError, match="'slow'"):
                await handle.result()
            assert 60 <= world.clock.monotonic_s() - 6 <= 75
        timeout = 5.0
        assert world.row("p").status is Status.QUARANTINED

    body()


@virtual
async def test_a_timeout_around_several_steps_is_met_again(world: World) -> None:
    """F107 (rule 6): 250 s of steps, then a step cancelled at 300 s; a resumed run meets it too.

    There the first steps take no time, so the timeout comes 300 s after the
    cancelled call began, although in the first run it came after 50.
    """
    seen: list[str] = []

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(300):
                await proc.do("first", sleeper, 250.0)
                await proc.do("second", sleeper, 250.0)
            seen.append("value")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")
        return seen[-1]

    await world.begin_and_die(process, after_s=310)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "timeout"
    assert seen == ["timeout", "timeout"]


@virtual
async def test_a_timeout_after_several_resumes_is_met_again(world: World) -> None:
    """F107 (rule 6): the same when the cancelled call was reached only after resumes."""
    seen: list[str] = []

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(300):
                await proc.event("one")
                await proc.event("two")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")
        return seen[-1]

    await world.begin_and_die(process, after_s=200)
    async with world.host(process) as host:
        await asyncio.sleep(250)
        await host.raise_event("p", "one")
        await asyncio.sleep(100)
    assert seen == ["timeout"]
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "timeout"


@pytest.mark.parametrize("delay_s", [4.999, 5.0, 5.001])
@pytest.mark.parametrize("line_s", [0.0, 0.001, 1.0])
@pytest.mark.parametrize("tail", [False, True])
def test_a_timeout_that_races_the_record(delay_s: float, line_s: float, tail: bool) -> None:
    """F107 (rule 6): whoever wins the race to storage, both runs see the same and go on alike.

    The commit takes `line_s`, so that the timeout falls before, into and after it.
    """

    @virtual
    async def body(world: World) -> None:
        seen: list[list[str]] = []

        async def process(proc: Process) -> str:
            story: list[str] = []
            seen.append(story)
            try:
                async with asyncio.timeout(5):
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
        await asyncio.sleep(10)
        world.kill(first)
        keys = [key for kind, key, _ in world.keys("p") if kind == "do"]
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            result = await second.get(process, "p").result()
        assert seen[0] == seen[1] == result.split()
        assert [key for kind, key, _ in world.keys("p") if kind == "do"] == keys

    body()


@pytest.mark.parametrize("shape", ["gather", "group"])
@pytest.mark.parametrize("slow_s", [0.0, 100.0])
@pytest.mark.parametrize("durable", [False, True])
def test_a_timeout_around_parallel_steps_that_races_the_record(
    shape: str, slow_s: float, durable: bool
) -> None:
    """F107 (rule 6): the result of a parallel step overtakes a timeout around the whole group.

    The first run must not see TimeoutError where a resumed run sees results.
    """

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> str:
            try:
                async with proc.timeout("limit", 5) if durable else asyncio.timeout(5):
                    calls = [proc.do("a", sleeper, 4.9), proc.do("b", sleeper, 4.9 + slow_s)]
                    if shape == "gather":
                        await asyncio.gather(*calls)
                    else:
                        async with asyncio.TaskGroup() as group:
                            for call in calls:
                                group.create_task(call)
                seen.append("value")
            except TimeoutError:
                seen.append("timeout")
            await proc.event("go")
            return seen[-1]

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await settle()

        async def before(call: str) -> None:
            if call == "commit":
                await asyncio.sleep(1)

        world.wires[first].before = before
        await asyncio.sleep(12)
        world.kill(first)
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            await second.get(process, "p").result()
        assert seen[0] == seen[1]

    body()


@pytest.mark.parametrize("step", ["async", "sync"])
def test_wait_for_around_a_step(step: str) -> None:
    """F107: asyncio.wait_for around a step: TimeoutError on both runs."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> None:
            try:
                call = proc.do("slow", sleeper, 100.0)
                await asyncio.wait_for(call, timeout=5)
                seen.append("value")
            except TimeoutError:
                seen.append("timeout")
            if step == "sync":
                await proc.do("sync", sync_step)
            await proc.event("go")

        await world.begin_and_die(process, after_s=6)
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            await host.get("p").result()
        assert seen == ["timeout", "timeout"]

    body()


@virtual
async def test_a_failing_sibling_cancels_and_is_met_again(world: World) -> None:
    """F107, S1.06 (rule 6): TaskGroup: the sibling's record is "cancelled"; both runs agree."""
    seen: list[str] = []
    ran: list[str] = []

    async def bad() -> None:
        ran.append("bad")
        await asyncio.sleep(1)
        raise ValueError("bad")

    async def slow() -> None:
        ran.append("slow")
        await asyncio.sleep(100)

    async def process(proc: Process) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(proc.do("slow", slow))
                group.create_task(proc.do("bad", bad))
                group.create_task(proc.event("never"))
        except* StepError as errors:
            seen.append(" ".join(str(each) for each in errors.exceptions))
        await proc.event("go")

    await world.begin_and_die(process, after_s=2)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["ValueError: bad", "ValueError: bad"]
    assert ran == ["slow", "bad"]
    assert ("do", "slow", "cancelled") in world.keys("p")
    assert ("event", "never", "cancelled") in world.keys("p")
