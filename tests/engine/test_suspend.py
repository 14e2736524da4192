"""Suspended and resumed: nothing begins meanwhile, nothing is lost, nothing happens twice."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import ProcessCancelledError, ProcessTerminatedError
from durabletask.storage import Form, Kind
from tests.engine.bodies import BODIES, SIDE_BY_SIDE, scenario
from tests.engine.moments import Plot, every_turn, play
from tests.engine.world import World, virtual


async def rest(client: ProcessClient) -> None:
    """Suspend "p", and let it go on seven seconds later."""
    handle = client.get("p")
    await handle.suspend("resting")
    await asyncio.sleep(7)
    await handle.resume()


@pytest.mark.parametrize("name", BODIES)
def test_suspended_at_every_turn(name: str) -> None:
    """S2.09: whenever it rests, the same comes of it, and no step runs twice."""
    make = partial(scenario, BODIES[name], "through")
    expected = play(make, Plot())
    for turn in every_turn(make, 2):
        about = f"{name}, turn {turn}"
        played = play(make, Plot(turn, rest))
        assert played.came_to() == expected.came_to(), about
        assert played.effects == expected.effects, about
        assert played.recorded() == expected.recorded(), about


@pytest.mark.parametrize("name", BODIES)
def test_suspended_while_its_host_dies(name: str) -> None:
    """S2.09: a process of a dead host rests too, and goes on where another one takes it."""
    make = partial(scenario, BODIES[name], "through")
    expected = play(make, Plot())
    for turn in every_turn(make, 7):
        about = f"{name}, turn {turn}"
        played = play(make, Plot(turn, rest, dies_then=True))
        assert played.came_to() == expected.came_to(), about
        assert set(played.effects) == set(expected.effects), about
        if name not in SIDE_BY_SIDE:
            assert played.recorded() == expected.recorded(), about


@virtual
async def test_steps_in_flight_are_recorded_and_nothing_begins(world: World) -> None:
    """S2.09 (rule 5): what runs is let finish; what would come next waits for the resume."""
    ran: list[str] = []

    async def step(name: str) -> str:
        ran.append(name)
        await asyncio.sleep(10)
        return name

    async def process(proc: Process) -> list[str]:
        return [await proc.do("first", step, "first"), await proc.do("second", step, "second")]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.suspend("a fix is coming")
        await asyncio.sleep(1000)
        assert ran == ["first"]
        assert ("do", "first", "value") in world.keys("p")
        row = world.row("p")
        assert row.status is Status.SUSPENDED
        assert row.suspend_reason == b'"a fix is coming"'
        assert row.owner is None
        await handle.resume()
        assert await handle.result() == ["first", "second"]
    assert ran == ["first", "second"]


@virtual
async def test_events_gather_and_timers_are_late(world: World) -> None:
    """S2.09: events arrive in order; a delay that fell due meanwhile is over at the resume."""

    async def process(proc: Process) -> tuple[list[int], bool]:
        delay = await proc.delay("d", timedelta(seconds=10))
        return [await proc.event("n", int, key=f"n{i}") for i in range(3)], delay.on_time

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.suspend()
        for number in range(3):
            await handle.raise_event("n", number)
        await asyncio.sleep(1000)
        assert world.row("p").status is Status.SUSPENDED
        begun_s = world.clock.monotonic_s()
        await handle.resume()
        numbers, _ = await handle.result()
        assert numbers == [0, 1, 2]
        assert world.clock.monotonic_s() - begun_s < 2


@virtual
async def test_resumed_while_it_still_drains(world: World) -> None:
    """S2.09: a resume before the steps are over: the run ends, and the next one goes on."""
    ran: list[str] = []

    async def step(name: str) -> None:
        ran.append(name)
        await asyncio.sleep(10)

    async def process(proc: Process) -> str:
        await proc.do("first", step, "first")
        await proc.do("second", step, "second")
        return "done"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.suspend()
        await asyncio.sleep(1)
        await handle.resume()
        assert await handle.result() == "done"
    assert ran == ["first", "second"]


@virtual
async def test_suspended_at_its_last_word(world: World) -> None:
    """S2.09: the end comes while it rests: it is refused, and said again after the resume."""

    async def process(proc: Process) -> str:
        await asyncio.sleep(10)
        return "end"

    host = world.host(process)
    async with host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(9.9999)

        async def late(call: str) -> None:
            if call == "claim":
                await asyncio.sleep(5)

        world.wires[host].before = late  # it does not hear of the suspension in time
        await handle.suspend()
        await asyncio.sleep(100)
        world.wires[host].up()
        assert world.row("p").status is Status.SUSPENDED
        assert world.row("p").owner is None
        await handle.resume()
        assert await handle.result() == "end"


@virtual
async def test_suspended_at_a_restart(world: World) -> None:
    """S2.06, S2.09: a restart that comes while it rests loses neither itself nor the process."""

    async def process(proc: Process, number: int) -> int:
        await asyncio.sleep(10)
        if number < 3:
            proc.restart(number + 1)
        return number

    host = world.host(process)
    async with host:
        handle = await host.spawn(process, "p", 0)
        await asyncio.sleep(9.9999)

        async def late(call: str) -> None:
            if call == "claim":
                await asyncio.sleep(5)

        world.wires[host].before = late
        await handle.suspend()
        await asyncio.sleep(100)
        world.wires[host].up()
        assert world.row("p").status is Status.SUSPENDED
        assert world.row("p").owner is None
        await handle.resume()
        assert await handle.result() == 3


@virtual
async def test_cancelled_while_suspended(world: World) -> None:
    """S2.09 (rule 7): a request to cancel is met at the resume."""

    async def process(proc: Process) -> None:
        await proc.event("never")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.suspend()
        await handle.cancel()
        await asyncio.sleep(100)
        assert world.row("p").status is Status.SUSPENDED
        await handle.resume()
        with pytest.raises(ProcessCancelledError):
            await handle.result()


@virtual
async def test_terminated_while_suspended(world: World) -> None:
    """S2.09, S2.10: terminate works on a process that rests."""

    async def process(proc: Process) -> None:
        await proc.event("never")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.suspend()
        await asyncio.sleep(10)
        await handle.terminate("enough", output={"so": "far"})
        with pytest.raises(ProcessTerminatedError) as caught:
            await handle.result()
        assert caught.value.output == {"so": "far"}
        assert await handle.purge() == 1


@virtual
async def test_an_undoing_process_rests_too(world: World) -> None:
    """S2.09 (rule 8): a compensation is interrupted between undos, and goes on at the resume."""
    undone: list[str] = []

    async def act() -> str:
        return "done"

    async def undo(_: str) -> None:
        undone.append("begun")
        await asyncio.sleep(10)

    async def process(proc: Process) -> None:
        await proc.do("a", act, undo=undo)
        await proc.do("b", act, undo=undo)
        raise ValueError("no")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.suspend()
        await asyncio.sleep(100)
        assert undone == ["begun"]
        assert world.row("p").status is Status.SUSPENDED
        await handle.resume()
        await asyncio.sleep(100)
        assert undone == ["begun"] * 2
        row = world.row("p")
    assert row.status is Status.FAILED
    (snapshot,) = await world.storage.read(["p"], history=True)
    assert snapshot is not None
    undos = [each for each in snapshot.checkpoints if each.kind is Kind.UNDO]
    assert [each.form for each in undos] == [Form.VALUE] * 2
