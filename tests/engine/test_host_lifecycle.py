"""Hosts: start, resume, stop, misuse, and several of them over one storage."""

import asyncio
from typing import Any

import pytest

from durabletask import Process, ProcessClient
from durabletask.errors import (
    HostStateError,
    ProcessError,
    ProcessFailedError,
    RegistrationError,
    StorageBusyError,
    UnknownProcessError,
)
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


async def waiting(proc: Process) -> str:
    return await proc.event("go", str)


@virtual
async def test_a_start_resumes_everything_unfinished(world: World) -> None:
    """S4.10, S4.12, S0.02, S3.02: a later host over the same storage resumes what is pending."""
    first = world.host(waiting)
    await first.start()
    for n in range(20):
        await first.spawn(waiting, f"p{n}")
    await first.raise_event("p0", "go", "done before")
    assert await first.get("p0").result() == "done before"
    world.kill(first)
    async with world.host(waiting) as second:
        for n in range(1, 20):
            await second.raise_event(f"p{n}", "go", f"v{n}")
            assert await second.get(waiting, f"p{n}").result() == f"v{n}"
    assert [world.row(f"p{n}").epoch for n in range(20)] == [1] + [2] * 19


@virtual
async def test_a_finished_process_is_not_resumed(world: World) -> None:
    """S4.11: completed and failed ones do not run again."""
    ran: list[str] = []

    async def process(proc: Process, fail: bool) -> None:
        ran.append(proc.id)
        if fail:
            raise ValueError

    async with world.host(process) as host:
        await (await host.spawn(process, "good", False)).result()
        with pytest.raises(ProcessFailedError):
            await (await host.spawn(process, "bad", True)).result()
    async with world.host(process):
        await asyncio.sleep(100)
    assert ran == ["good", "bad"]


@virtual
async def test_stop_interrupts_resumed_and_new_processes_and_keeps_their_state(
    world: World,
) -> None:
    """S4.13, S1.14: stop unwinds and waits; nothing of the state changes; safe to repeat."""
    ended: list[str] = []

    async def process(proc: Process) -> None:
        await proc.do("step", nop)
        try:
            await proc.event("go")
        finally:
            ended.append(proc.id)

    await world.begin_and_die(process)
    host = world.host(process)
    await host.start()
    await host.spawn(process, "q")
    await settle()
    before = world.keys("p"), world.keys("q")
    await host.stop()
    assert sorted(ended) == ["p", "q"]
    assert (world.keys("p"), world.keys("q")) == before
    assert world.row("p").owner is world.row("q").owner is None
    await host.stop()
    await asyncio.gather(host.stop(), host.stop())
    assert world.wires[host].closed == 1


@virtual
async def test_stops_at_once_wait_for_the_same_end(world: World) -> None:
    """S1.14: a second stop() while the first drains returns when the host has stopped."""

    async def slow() -> None:
        await asyncio.sleep(10)

    async def process(proc: Process) -> None:
        await proc.do("slow", slow)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await asyncio.gather(*(host.stop() for _ in range(3)))
    assert world.clock.monotonic_s() == pytest.approx(10, abs=0.1)
    assert world.keys("p") == [("do", "slow", "value")]


@virtual
async def test_a_stop_that_nobody_waits_for_goes_on(world: World) -> None:
    """S1.14: cancelling the caller of stop() leaves no host half stopped."""

    async def slow() -> None:
        await asyncio.sleep(10)

    async def process(proc: Process) -> None:
        await proc.do("slow", slow)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await host.stop()
    await host.stop()
    assert world.wires[host].closed == 1
    assert world.keys("p") == [("do", "slow", "value")]


@virtual
async def test_misuse_of_the_life_cycle_is_a_clear_error(world: World) -> None:
    """S4.14, S4.19: before the start, after it, twice, after the stop: HostStateError, no write."""
    host = world.host(waiting)
    for call in (
        lambda: host.spawn(waiting, "p"),
        lambda: host.raise_event("p", "e"),
        lambda: host.get("p").result(),
        lambda: host.get("p").info(),
        lambda: host.get("p").history(),
        lambda: anext(host.list()),
    ):
        with pytest.raises(HostStateError, match="not started"):
            await call()
    await host.start()
    with pytest.raises(HostStateError, match="running"):
        await host.start()

    async def late(proc: Process) -> None: ...

    with pytest.raises(HostStateError, match="before it starts"):
        host.process(late)
    await host.stop()
    with pytest.raises(HostStateError, match="stopped"):
        await host.start()
    for call in (lambda: host.spawn(waiting, "p"), lambda: host.raise_event("p", "e")):
        with pytest.raises(HostStateError, match="stopped"):
            await call()
    assert not world.storage._processes


@virtual
async def test_stop_before_start_makes_the_host_unusable(world: World) -> None:
    """S4.14: a host that was stopped before it started cannot be started."""
    host = world.host(waiting)
    await host.stop()
    with pytest.raises(HostStateError):
        await host.start()


@virtual
async def test_a_start_that_fails_says_why_and_closes_the_storage(world: World) -> None:
    """S4.14: a folder that another host holds: the storage's error, and nothing left open."""
    host = world.host(waiting)

    async def busy(call: str) -> None:
        if call == "open_lease":
            raise StorageBusyError("held by pid 4711")

    world.wires[host].before = busy
    with pytest.raises(StorageBusyError, match="4711"):
        async with host:
            raise AssertionError("not reached")
    assert world.wires[host].closed == 1


@virtual
async def test_registering(world: World) -> None:
    """S4.14: two functions of one name, no function, no Process parameter: RegistrationError."""
    host = world.host()

    @host.process
    async def first(proc: Process) -> str:
        return "first"

    @host.process(name="other")
    async def second(proc: Process) -> str:
        return "second"

    async def other(proc: Process) -> None: ...

    async def no_parameter() -> None: ...

    async def keyword_only(*, proc: Process) -> None: ...

    def sync(proc: Process) -> None: ...

    async def generator(proc: Process) -> Any:
        yield 1

    register: Any = host.process
    with pytest.raises(RegistrationError, match="'first'"):
        register(first)
    for bad in (other, no_parameter, keyword_only, sync, generator, 5, "name", Process, lambda: 1):
        with pytest.raises(RegistrationError):
            register(bad)
    for name in ("", "a\x00b", "x" * 256, 7):
        with pytest.raises((RegistrationError, ValueError)):
            register(name=name)(no_parameter)
    async with host:
        assert await (await host.spawn(first, "1")).result() == "first"
        assert await (await host.spawn(second, "2")).result() == "second"
        assert (await host.get("2").info()).name == "other"


@virtual
async def test_a_function_that_no_host_has_stays_pending(world: World) -> None:
    """S0.10, F132: not claimed, no churn, listed with the reason; a host that has it runs it."""
    await world.begin_and_die(waiting)
    async with world.host() as stranger:
        await asyncio.sleep(1000)
        info = await stranger.get("p").info()
        assert info.reason is not None
        assert "'waiting'" in info.reason
        assert [each.reason async for each in stranger.list()] == [info.reason]
        await stranger.raise_event("p", "go", "kept")
    assert world.row("p").epoch == 1
    async with world.host(waiting) as host:
        assert (await host.get("p").info()).reason is None
        assert await host.get(waiting, "p").result() == "kept"


@virtual
async def test_unknown_ids(world: World) -> None:
    """Bad input: result, info, history and events of an unknown id: UnknownProcessError."""
    async with world.host(waiting) as host:
        handle = host.get("nobody")
        for call in (handle.result, handle.info, handle.history, lambda: handle.raise_event("e")):
            with pytest.raises(UnknownProcessError, match="'nobody'") as caught:
                await call()
            assert caught.value.process_id == "nobody"


@virtual
async def test_waiters_of_a_stopped_host_learn_it(world: World) -> None:
    """S1.14: result() that still waits when the host stops ends with HostStateError."""
    host = world.host(waiting)
    await host.start()
    handle = await host.spawn(waiting, "p")
    elsewhere = host.get("p")
    waits = [asyncio.create_task(each.result()) for each in (handle, elsewhere)]
    await settle()
    await host.stop()
    for result in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(result, HostStateError)


@virtual
async def test_a_closed_client_ends_its_waits(world: World) -> None:
    """A client's waits end when it is closed; the process goes on."""
    await world.begin_and_die(waiting)
    async with ProcessClient(world.storage) as client:
        wait = asyncio.create_task(client.get("p").result())
        await asyncio.sleep(5)
    with pytest.raises(ProcessError, match="closed"):
        await wait
