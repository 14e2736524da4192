"""Outages, lost leases and failing storages: user code sees nothing of them."""

import asyncio
from datetime import timedelta

import pytest

from durabletask import Process
from durabletask.errors import (
    HostStateError,
    StorageError,
    StorageFailedError,
    StorageUnknownError,
)
from tests.engine.world import World, lease_of, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


def second() -> timedelta:
    return timedelta(seconds=1)


@pytest.mark.parametrize("calls", [(), ("commit",), ("claim",), ("create",), ("deliver",)])
def test_user_code_sees_nothing_of_an_outage(calls: tuple[str, ...]) -> None:
    """F009: ten minutes without storage at every point: no except branch runs, all completes."""

    @virtual
    async def body(world: World) -> None:
        marks: list[str] = []

        async def process(proc: Process) -> str:
            try:
                await proc.do("one", nop)
                await proc.delay("pause", second())
                value = await proc.event("go", str)
                await proc.get("three", 3)
                (await proc.var("four", 4)).value  # noqa: B018
                await proc.do("five", lambda: 5)
                return value
            except BaseException:
                marks.append("seen")
                raise

        async with world.host(process) as host:
            handle = await host.spawn(process, "p")
            result = asyncio.create_task(handle.result())
            await handle.raise_event("go", "value")
            wire = world.wires[host]
            for _ in range(5):
                wire.down(*calls)
                await asyncio.sleep(600)
                wire.up()
                await asyncio.sleep(3)
            assert await result == "value"
        assert marks == []

    body()


@pytest.mark.parametrize("nth", range(8))
def test_an_outage_around_each_commit(nth: int) -> None:
    """F009: the line goes down at the nth commit, and its answer is lost: seen by nobody."""

    @virtual
    async def body(world: World) -> None:
        ran: list[str] = []

        async def step(name: str) -> str:
            ran.append(name)
            return name

        async def process(proc: Process) -> list[str]:
            try:
                first = await proc.do("a", step, "a")
                await proc.delay("d", second())
                await proc.event("go")
                return [first, await proc.do("b", step, "b")]
            except BaseException:
                ran.append("seen")
                raise

        async with world.host(process) as host:
            wire = world.wires[host]
            count = 0
            until = 0.0

            async def before(call: str) -> None:
                nonlocal count, until
                if call == "commit":
                    count += 1
                    if count == nth:
                        until = world.clock.monotonic_s() + 600

            async def after(call: str) -> None:
                if world.clock.monotonic_s() < until and call == "commit":
                    raise StorageUnknownError("the answer was lost")

            wire.before, wire.after = before, after
            handle = await host.spawn(process, "p")
            await handle.raise_event("go")
            assert await handle.result() == ["a", "b"]
        assert ran == ["a", "b"]

    body()


@virtual
async def test_a_step_that_was_cancelled_in_an_outage_before_it_began_is_recorded_so(
    world: World,
) -> None:
    """F107: a cancellation while a step waits for the lease to be trusted again is recorded."""
    world.storage = world.storage.__class__(world.clock, lease_ttl_s=30)
    seen: list[str] = []

    async def process(proc: Process) -> str:
        await proc.do("before", nop)
        await asyncio.sleep(40)
        try:
            async with asyncio.timeout(20):
                await proc.do("held back", nop)
            seen.append("value")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")
        return seen[-1]

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    world.wires[host].down()
    await asyncio.sleep(70)
    world.wires[host].up()
    await asyncio.sleep(10)
    assert seen == ["timeout"]
    await host.stop()
    async with world.host(process) as again:
        await again.raise_event("p", "go")
        assert await again.get(process, "p").result() == "timeout"


@virtual
async def test_a_lost_lease_ends_the_session_and_another_one_goes_on(world: World) -> None:
    """F009, F016 (rule 5): after a fence the host takes a new lease and resumes everything."""
    ran: list[str] = []

    async def step(name: str) -> str:
        ran.append(name)
        return name

    async def process(proc: Process) -> list[str]:
        try:
            return [
                await proc.do("one", step, "one"),
                await proc.event("go", str),
                await proc.do("two", step, "two"),
            ]
        except Exception:
            ran.append("compensated")
            raise

    async with world.host(process) as host:
        handles = [await host.spawn(process, f"p{n}") for n in range(3)]
        await settle()
        before = lease_of(host)
        world.storage.fence(before)
        await asyncio.sleep(60)
        for handle in handles:
            await handle.raise_event("go", "event")
        for handle in handles:
            assert await handle.result() == ["one", "event", "two"]
        assert lease_of(host) != before
    assert sorted(ran) == ["one"] * 3 + ["two"] * 3


@virtual
async def test_a_lost_lease_is_survived_while_steps_wait_for_trust(world: World) -> None:
    """F016: steps held back by an untrusted lease unwind when it is lost, all of them."""
    world.storage = world.storage.__class__(world.clock, lease_ttl_s=30)

    async def process(proc: Process) -> str:
        await proc.event("go")
        await proc.do("held", nop)
        return "done"

    first = world.host(process)
    await first.start()
    handles = [await first.spawn(process, f"p{n}") for n in range(3)]
    for handle in handles:
        await handle.raise_event("go")
    # The line is cut before the steps begin, and a second host takes everything over.
    await settle(3)
    world.wires[first].down()
    await asyncio.sleep(60)
    async with world.host(process) as second:
        for n in range(3):
            assert await second.get(process, f"p{n}").result() == "done"
        world.wires[first].up()
        await asyncio.sleep(60)
    await first.stop()


@virtual
async def test_a_failed_storage_fails_the_host_and_every_waiter(world: World) -> None:
    """F009: StorageFailedError: waiters get it, the host says so, user code never sees it."""
    marks: list[str] = []

    async def process(proc: Process) -> None:
        try:
            await proc.event("go")
            await proc.do("step", nop)
        except Exception:
            marks.append("seen")
            raise

    host = world.host(process)
    await host.start()
    handle = await host.spawn(process, "p")
    other = await host.spawn(process, "q")
    waits = [asyncio.create_task(each.result()) for each in (handle, handle, other)]
    await settle()
    wire = world.wires[host]

    async def fail(call: str) -> None:
        if call == "commit":
            raise StorageFailedError("fsync failed")

    wire.before = fail
    await handle.raise_event("go")
    for result in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(result, StorageError)
        assert "fsync failed" in str(result)
    with pytest.raises(StorageError, match="fsync failed"):
        await handle.result()
    with pytest.raises(StorageError, match="fsync failed"):
        await host.spawn(process, "r")
    assert marks == []
    with pytest.raises(StorageFailedError):
        await host.__aexit__(None, None, None)
    assert wire.closed == 1


@pytest.mark.parametrize(
    "error", [StorageError("odd"), KeyError("a bug of the backend"), OSError(5, "I/O error")]
)
@pytest.mark.parametrize("call", ["commit", "claim", "renew"])
def test_whatever_a_storage_raises_is_no_error_of_user_code(error: Exception, call: str) -> None:
    """F009, F010: an error that no storage should raise: no compensation, and the host is loud."""

    @virtual
    async def body(world: World) -> None:
        world.storage = world.storage.__class__(world.clock, lease_ttl_s=30)
        marks: list[str] = []

        async def process(proc: Process) -> str:
            try:
                await proc.event("go")
                await proc.do("step", nop)
            except Exception:
                marks.append("seen")
                raise
            finally:
                await proc.do("finally", nop)
            return "done"

        host = world.host(process)
        await host.start()
        handle = await host.spawn(process, "p")
        waiting = asyncio.create_task(handle.result())
        await settle()

        async def fail(name: str) -> None:
            if name == call:
                raise error

        world.wires[host].before = fail
        if call == "commit":
            await handle.raise_event("go")
        await asyncio.sleep(100)
        assert waiting.done()
        assert isinstance(waiting.exception(), StorageError)
        assert marks == []
        world.wires[host].up()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.gather(host.stop(), return_exceptions=True)
        async with world.host(process) as again:
            await again.raise_event("p", "go")
            assert await again.get(process, "p").result() == "done"

    body()


@virtual
async def test_stop_ends_although_the_storage_is_away(world: World) -> None:
    """F011, S1.14: an outage cannot keep a host from stopping once its drain time is over."""

    async def process(proc: Process) -> None:
        await proc.event("go")
        await proc.do("step", nop)
        await proc.event("never")

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    await host.raise_event("p", "go")
    world.wires[host].down()
    begun_s = world.clock.monotonic_s()
    async with asyncio.timeout(3600):
        await host.stop(drain_s=5)
    assert world.clock.monotonic_s() - begun_s < 60


@virtual
async def test_stop_ends_although_the_storage_hangs(world: World) -> None:
    """F011: a storage that never answers cannot keep a host from stopping either."""

    async def process(proc: Process) -> None:
        await proc.event("go")
        await proc.do("step", nop)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    await host.raise_event("p", "go")
    world.wires[host].cut()
    begun_s = world.clock.monotonic_s()
    async with asyncio.timeout(3600):
        await host.stop(drain_s=5)
    assert world.clock.monotonic_s() - begun_s < 60


@virtual
async def test_a_reopened_session_that_fails_is_a_failed_host(world: World) -> None:
    """F009: the lease is lost and no other is to be had, for good: waiters learn it."""

    async def process(proc: Process) -> None:
        await proc.event("go")

    host = world.host(process)
    await host.start()
    handle = await host.spawn(process, "p")
    waiting = asyncio.create_task(handle.result())
    await settle()

    async def fail(call: str) -> None:
        if call == "open_lease":
            raise StorageFailedError("poisoned")

    world.wires[host].before = fail
    world.storage.fence(lease_of(host))
    await asyncio.sleep(600)
    assert waiting.done()
    assert isinstance(waiting.exception(), StorageError)
    with pytest.raises((StorageError, HostStateError)):
        await host.spawn(process, "q")
    await host.stop()


@virtual
async def test_drain_keeps_the_lease(world: World) -> None:
    """F011, F080: a drain longer than the lease's time loses nothing to another host."""
    world.storage = world.storage.__class__(world.clock, lease_ttl_s=6)
    ran: list[str] = []

    async def slow() -> str:
        ran.append("begin")
        await asyncio.sleep(20)
        return "slow"

    async def process(proc: Process) -> str:
        return await proc.do("slow", slow)

    first, second = world.host(process), world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await second.start()
    await asyncio.sleep(1)
    await first.stop(drain_s=60)
    assert await second.get(process, "p").result() == "slow"
    assert ran == ["begin"]
    await second.stop()


@virtual
async def test_spawn_during_drain_runs_nothing_behind_it(world: World) -> None:
    """S4.13: a spawn on its way when the drain begins is created; it runs at the next start."""
    ran: list[str] = []

    async def step() -> None:
        ran.append("ran")

    async def process(proc: Process) -> None:
        await proc.do("step", step)

    host = world.host(process)
    await host.start()
    gate = asyncio.Event()

    async def slow(call: str) -> None:
        if call == "create":
            await gate.wait()

    world.wires[host].before = slow
    spawning = asyncio.create_task(host.spawn(process, "p"))
    await settle()
    stopping = asyncio.create_task(host.stop())
    await settle()
    gate.set()
    await asyncio.gather(spawning, stopping, return_exceptions=True)
    before = list(ran)
    async with world.host(process) as again:
        await again.get(process, "p").result()
    assert before == []
    assert ran == ["ran"]
