"""`proc.timeout`: a deadline that survives restarts and ends the same call in every run."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, Status
from durabletask.errors import InvalidArgumentError, ProcessFailedError, StepError
from tests.engine.world import World, quarantined, settle, virtual

Body = Callable[[Process], Coroutine[Any, Any, Any]]


async def nop() -> None:
    """Do nothing; a step."""


async def sleeper(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


async def fails() -> None:
    raise ValueError("fails")


def call_of(proc: Process, kind: str, key: str = "slow") -> Any:
    """Return a durable call that takes long."""
    long = timedelta(seconds=1000)
    if kind == "step":
        return proc.do(key, sleeper, 1000.0)
    if kind == "step with retry":
        return proc.do(key, sleeper, 1000.0, retry=RetryPolicy())
    if kind == "retry wait":
        return proc.do(key, fails, retry=RetryPolicy(delay_s=1000, delay_max_s=1000))
    if kind == "delay":
        return proc.delay(key, long)
    if kind == "event with timeout":
        return proc.event(key, timeout=1000)
    if kind == "race":
        return proc.race(key, proc.event("e"), proc.delay("d", long))
    if kind == "gather":
        return asyncio.gather(proc.event(key), proc.delay("second", long))
    if kind == "group":
        return in_group(proc, key)
    if kind == "wait_for":
        return asyncio.wait_for(proc.event(key), 500)
    return proc.event(key)


async def in_group(proc: Process, key: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(proc.event(key))
        group.create_task(proc.do("second", sleeper, 1000.0))


KINDS = [
    "step", "step with retry", "retry wait", "delay", "event", "event with timeout", "race",
    "gather", "group", "wait_for",
]  # fmt: skip

every_kind = pytest.mark.parametrize("kind", KINDS)


def bounded(kind: str, seen: list[str], limit: float = 5) -> Body:
    """Return a process function that bounds a long call and then goes on."""

    async def process(proc: Process) -> str:
        try:
            async with proc.timeout("limit", limit):
                await proc.do("before", nop)
                await call_of(proc, kind)
            seen.append("value")
        except TimeoutError:
            seen.append("timeout")
            await proc.do("fallback", nop)
        await proc.event("go")
        return seen[-1]

    return process


async def finish(world: World, process: Body) -> Any:
    """Let the next host bring "p" to its end."""
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        return await host.get(process, "p").result()


@every_kind
def test_what_expired_expires_again_at_the_same_call(kind: str) -> None:
    """S2.02 (rule 10): TimeoutError in both runs, at the same call; in the second one at once."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []
        process = bounded(kind, seen)
        await world.begin_and_die(process, after_s=6)
        assert ("timeout", "limit", "value") in world.keys("p")
        before_s = world.clock.monotonic_s()
        assert await finish(world, process) == "timeout"
        assert seen == ["timeout", "timeout"]
        assert world.clock.monotonic_s() - before_s < 1

    body()


@every_kind
def test_a_deadline_survives_restarts(kind: str) -> None:
    """F088 (rule 10): fixed by the first run, met in a later one: never early, never anew."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []
        process = bounded(kind, seen, limit=100)
        await world.begin_and_die(process, after_s=40)
        host = world.host(process)
        await host.start()
        await asyncio.sleep(40)
        world.kill(host)
        assert seen == []
        async with world.host(process) as host:
            await asyncio.sleep(19)
            assert seen == []
            await asyncio.sleep(1.5)
            assert seen == ["timeout"]
            await host.raise_event("p", "go")
            assert await host.get(process, "p").result() == "timeout"

    body()


@every_kind
def test_a_deadline_that_passed_while_nothing_ran(kind: str) -> None:
    """F088: fires at once at the first new call, and not at those that are recalled."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []
        process = bounded(kind, seen, limit=100)
        await world.begin_and_die(process, after_s=40)
        await asyncio.sleep(1000)
        before_s = world.clock.monotonic_s()
        host = world.host(process)
        await host.start()
        await asyncio.sleep(1)
        assert seen == ["timeout"]
        assert ("do", "before", "value") in world.keys("p")
        world.kill(host)
        assert await finish(world, process) == "timeout"
        assert seen == ["timeout", "timeout"]
        assert world.clock.monotonic_s() - before_s < 3

    body()


@virtual
async def test_no_new_step_starts_after_the_deadline(world: World) -> None:
    """S3.06: a step that has not begun at a deadline passed in the downtime never runs."""
    ran: list[str] = []

    async def step(name: str) -> None:
        ran.append(name)
        await asyncio.sleep(1)

    async def process(proc: Process) -> str:
        try:
            async with proc.timeout("limit", 10):
                await proc.do("a", step, "a")
                await proc.delay("d", timedelta(seconds=5))
                async with asyncio.TaskGroup() as group:
                    group.create_task(proc.do("b", step, "b"))
                    group.create_task(proc.do("c", step, "c"))
        except TimeoutError:
            await proc.do("fallback", step, "fallback")
            return "timeout"
        return "value"

    await world.begin_and_die(process, after_s=3)
    await asyncio.sleep(100)
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == "timeout"
    assert ran == ["a", "fallback"]


@pytest.mark.parametrize("limit", [0, 0.0, -5, timedelta(0), timedelta(days=-1)])
def test_no_time_at_all(limit: Any) -> None:
    """Zero and less: the first call does not begin, foreign code is cut; in every run."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []
        ran: list[str] = []

        async def step() -> None:
            ran.append("step")

        async def process(proc: Process) -> None:
            for key, call in (("durable", True), ("foreign", False)):
                try:
                    async with proc.timeout(key, limit):
                        await (proc.do("step", step) if call else asyncio.sleep(100))
                    seen.append("value")
                except TimeoutError:
                    seen.append("timeout")
            await proc.event("go")

        await world.begin_and_die(process, after_s=1)
        await finish(world, process)
        assert seen == ["timeout"] * 4
        assert ran == []

    body()


@virtual
async def test_what_ended_in_time_stays_in_time(world: World) -> None:
    """What was left before its time never expires later, whatever time the later run takes."""
    seen: list[str] = []
    slow_s = 0.0

    async def process(proc: Process) -> None:
        async with proc.timeout("limit", 10):
            seen.append(await proc.event("e", str))
            await asyncio.sleep(slow_s)
            await proc.do("new" if slow_s else "step", nop)
        await proc.event("go")

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await host.raise_event("p", "e", "value")
    await asyncio.sleep(5)
    world.kill(host)
    assert ("timeout", "limit", "value") in world.keys("p")
    assert (await world.storage.read(["p"]))[0] is not None
    slow_s = 100.0
    await finish(world, process)
    assert seen == ["value", "value"]


@virtual
async def test_errors_pass_through(world: World) -> None:
    """What the body raises leaves it as it is; the timeout is recorded as left before its time."""

    async def process(proc: Process) -> None:
        async with proc.timeout("limit", 5):
            await proc.do("bad", fails)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError) as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, StepError)
    assert world.keys("p")[-1] == ("timeout", "limit", "value")


@virtual
async def test_an_uncaught_timeout_fails_the_process(world: World) -> None:
    """Rule 9: TimeoutError that leaves the function ends it as failed, with the key named."""

    async def process(proc: Process) -> None:
        async with proc.timeout("limit", 5):
            await proc.event("never")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError, match="timeout 'limit'"):
            await handle.result()


@virtual
async def test_a_drain_is_no_timeout(world: World) -> None:
    """F011 (rule 5): a stopping host ends the run; nothing is recorded, the deadline stays."""
    seen: list[str] = []
    process = bounded("event", seen, limit=100)
    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(10)
    assert seen == []
    assert [kind for kind, _, _ in world.keys("p")] == ["wait", "do", "wait"]
    async with world.host(process) as host:
        await asyncio.sleep(91)
        assert seen == ["timeout"]


@virtual
async def test_an_open_timeout_can_be_seen(world: World) -> None:
    """Rule 10: `info()` tells of the deadline, and the process wakes for it."""

    async def process(proc: Process) -> None:
        async with proc.timeout("limit", timedelta(days=2)) as limit:
            await proc.event("e")
        assert not limit.expired()

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        info = await handle.info()
        due_at = world.clock.now() + timedelta(days=2)
        assert (info.status, info.wake_at) == (Status.WAITING, due_at)
        assert [(each.kind, each.key, each.due_at) for each in info.waits] == [
            ("timeout", "limit", due_at), ("event", "e", None),
        ]  # fmt: skip
        await handle.raise_event("e")
        await handle.result()
        assert (await handle.info()).waits == ()


@virtual
async def test_user_code_that_swallows_the_cancellation(world: World) -> None:
    """As with asyncio.timeout: what catches CancelledError goes on, and nothing is raised."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        async with proc.timeout("limit", 5) as limit:
            try:
                await proc.event("never")
            except asyncio.CancelledError:
                await proc.do("tidy", nop)
        seen.append(f"expired {limit.expired()}")
        await proc.event("go")

    await world.begin_and_die(process, after_s=10)
    await finish(world, process)
    assert seen == ["expired True", "expired True"]


@virtual
async def test_a_timeout_that_is_gone_quarantines(world: World) -> None:
    """Rule 6: the timeout is gone from the code: what it had cancelled is named after the grace."""
    gone = False

    async def process(proc: Process) -> None:
        if gone:
            await proc.event("slow")
        async with proc.timeout("limit", 5):
            await proc.event("slow")

    async def caught(proc: Process) -> None:
        try:
            await process(proc)
        except TimeoutError:
            await proc.event("go")

    await world.begin_and_die(caught, after_s=6)
    gone = True
    assert "'slow'" in await quarantined(world, caught, "was cancelled in an earlier run")


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), True, "5", None, 1e300, 10**400])
def test_a_senseless_limit_is_refused(limit: Any) -> None:
    """F087: a limit that is no duration: a clear error, nothing recorded."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> None:
            with pytest.raises(InvalidArgumentError):
                proc.timeout("limit", limit)

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()
        assert world.keys("p") == []

    body()


@virtual
async def test_one_key_is_for_one_timeout(world: World) -> None:
    """Rule 4: a timeout entered twice, or two of one key: quarantined, the key named."""

    async def process(proc: Process) -> None:
        for _ in range(2):
            async with proc.timeout("limit", 5):
                await asyncio.sleep(0)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await host.stop()
    assert "'limit'" in await quarantined(world, process, "used twice")
