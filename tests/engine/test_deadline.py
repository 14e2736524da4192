"""A deadline: whoever has not ended by then is cancelled, by whichever host has it."""

import asyncio
from datetime import timedelta

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import ProcessCancelledError
from tests.engine.world import World, virtual

TEN = timedelta(seconds=10)


async def waits(proc: Process) -> str:
    try:
        return await proc.event("go", str)
    except ProcessCancelledError as error:
        await proc.do("tidy", asyncio.sleep, 0)
        return f"cancelled: {error}"


@virtual
async def test_cancelled_when_it_has_passed(world: World) -> None:
    """Rule 7: at its deadline and not before, with a reason that says so; it may tidy up."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p", deadline=TEN)
        await asyncio.sleep(9.9)
        assert world.row("p").cancel_reason is None
        assert "deadline" in await handle.result(timeout=1)
        assert world.clock.monotonic_s() < 11


@virtual
async def test_who_ends_in_time_is_left_alone(world: World) -> None:
    """No request is made of a process that has ended, or is held no longer."""
    host = world.host(waits)
    async with host:
        handle = await host.spawn(waits, "p", deadline=TEN)
        await handle.raise_event("go", "in time")
        assert await handle.result() == "in time"
        await asyncio.sleep(100)
        assert "request" not in world.wires[host].calls


@virtual
async def test_it_passes_while_no_host_runs(world: World) -> None:
    """Whoever takes the process next cancels it at once."""
    host = world.host(waits)
    await host.start()
    await host.spawn(waits, "p", deadline=TEN)
    await asyncio.sleep(5)
    world.kill(host)
    await asyncio.sleep(100)
    async with world.host(waits) as second:
        assert "deadline" in await second.get(waits, "p").result(timeout=2)


@pytest.mark.parametrize("how", ["down", "suspended"])
@virtual
async def test_nothing_new_begins_after_it(world: World, how: str) -> None:
    """Rule 7: a delay that fell due behind the deadline is not over first, and no step runs."""
    ran: list[str] = []

    async def step() -> None:
        ran.append("after the deadline")

    async def process(proc: Process) -> None:
        await proc.delay("d", timedelta(seconds=50))
        await proc.do("step", step)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", deadline=TEN)
        await asyncio.sleep(5)
        if how == "suspended":
            await handle.suspend()
            await asyncio.sleep(100)
            await handle.resume()
            with pytest.raises(ProcessCancelledError, match="deadline"):
                await handle.result(timeout=2)
    if how == "down":
        await asyncio.sleep(100)
        async with world.host(process) as second:
            with pytest.raises(ProcessCancelledError, match="deadline"):
                await second.get("p").result(timeout=2)
    assert ran == []
    assert [key for key in world.keys("p") if key[0] != "wait"] == [("delay", "d", "error")]


@virtual
async def test_those_that_are_late_keep_to_the_limit(world: World) -> None:
    """Issue 4: while they are asked, and hear of events, so many at most are in memory."""
    begun = most = 0

    async def process(proc: Process) -> str:
        nonlocal begun, most
        begun += 1
        most = max(most, begun)
        try:
            await proc.delay("d", timedelta(seconds=50))
        except ProcessCancelledError:
            return await proc.event("go", str)
        finally:
            begun -= 1
        return "in time"

    async with ProcessClient(world.storage, processes=[process], clock=world.clock) as client:
        for number in range(9):
            await client.spawn(process, f"p{number}", deadline=TEN)
    await asyncio.sleep(100)
    host = world.host()
    host.process(concurrency=2)(process)

    async def slow(call: str) -> None:
        if call == "request":
            await asyncio.sleep(1)

    world.wires[host].after = slow
    async with host:
        await asyncio.sleep(0.5)
        handles = [host.get(process, f"p{number}") for number in range(9)]
        for handle in handles:
            await handle.raise_event("go", "all the same")
        assert [await handle.result() for handle in handles] == ["all the same"] * 9
    assert most == 2


@virtual
async def test_it_is_asked_for_once(world: World) -> None:
    """A process that catches it goes on, and is not cancelled again after a resume."""

    async def stubborn(proc: Process) -> str:
        for number in range(3):
            try:
                await proc.event(f"e{number}", timeout=20)
            except ProcessCancelledError:
                continue
            except Exception as error:
                return f"{number}: {type(error).__name__}"
        return "cancelled thrice"

    host = world.host(stubborn)
    await host.start()
    await host.spawn(stubborn, "p", deadline=TEN)
    await asyncio.sleep(15)
    world.kill(host)
    second = world.host(stubborn)
    async with second:
        assert await second.get(stubborn, "p").result() == "1: EventTimeoutError"
        assert "request" not in world.wires[second].calls


@virtual
async def test_of_a_child(world: World) -> None:
    """`call(…, deadline=)` bounds a child; its parent is told that it was cancelled."""

    async def child(proc: Process) -> None:
        await proc.event("never")

    async def process(proc: Process) -> str:
        with pytest.raises(Exception, match="deadline") as caught:
            await proc.call("c", child, deadline=TEN)
        return type(caught.value.__cause__).__name__

    async with world.host(process, child) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == "ProcessCancelledError"
        assert world.row("p/1.0/c").status is Status.CANCELLED
        assert world.clock.monotonic_s() < 12


@virtual
async def test_children_of_whoever_has_one(world: World) -> None:
    """A deadline cancels what the process has spawned too."""

    async def child(proc: Process) -> None:
        await proc.event("never")

    async def process(proc: Process) -> None:
        await proc.call("c", child)

    async with world.host(process, child) as host:
        handle = await host.spawn(process, "p", deadline=TEN)
        with pytest.raises(ProcessCancelledError, match="deadline"):
            await handle.result()
        await asyncio.sleep(1)
        assert world.row("p/1.0/c").status is Status.CANCELLED


@virtual
async def test_of_a_child_in_the_past(world: World) -> None:
    """A deadline that has passed when a child is born: cancelled as soon as a host has it."""

    async def process(proc: Process) -> str:
        return await proc.call("c", waits, deadline=timedelta(0))

    async with world.host(process, waits) as host:
        handle = await host.spawn(process, "p")
        assert "deadline" in await handle.result(timeout=2)


@virtual
async def test_it_stays_across_a_restart(world: World) -> None:
    """S2.06: the deadline is the process's and not a generation's."""

    async def process(proc: Process, number: int) -> str:
        await proc.delay("d", timedelta(seconds=3))
        proc.restart(number + 1)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 0, deadline=TEN)
        with pytest.raises(ProcessCancelledError):
            await handle.result()
        assert (await handle.info()).generation == 3


@virtual
async def test_while_the_storage_is_away(world: World) -> None:
    """An outage puts it off; it is asked for as soon as the storage is back."""
    host = world.host(waits)
    async with host:
        handle = await host.spawn(waits, "p", deadline=TEN)
        await asyncio.sleep(5)
        world.wires[host].down("request")
        await asyncio.sleep(30)
        assert world.row("p").cancel_reason is None
        world.wires[host].up()
        assert "deadline" in await handle.result(timeout=30)


@virtual
async def test_suspended_it_waits(world: World) -> None:
    """S2.09: nothing happens to what is suspended; the deadline is looked at when it goes on."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p", deadline=TEN)
        await asyncio.sleep(1)
        await handle.suspend()
        await asyncio.sleep(100)
        assert world.row("p").cancel_reason is None
        await handle.resume()
        assert "deadline" in await handle.result(timeout=2)


@virtual
async def test_a_process_that_undoes_finishes_that(world: World) -> None:
    """Rules 7, 8: the deadline passes while it compensates: it goes on to the end."""

    async def undo(_: object) -> None:
        await asyncio.sleep(100)

    async def process(proc: Process) -> None:
        await proc.do("a", asyncio.sleep, 0, undo=undo)
        raise ValueError("no")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", deadline=TEN)
        await asyncio.sleep(200)
        info = await handle.info()
        assert info.status is Status.FAILED
        assert not info.cancel_requested
