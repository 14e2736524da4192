"""Terminated: no more of its code runs, its host lets go of it, and so do its children."""

import asyncio
import threading
from datetime import timedelta
from functools import partial

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import (
    ProcessFinishedError,
    ProcessInterrupted,
    ProcessTerminatedError,
)
from tests.engine.bodies import BODIES, scenario
from tests.engine.moments import Plot, every_turn, play
from tests.engine.world import World, virtual


async def terminate(client: ProcessClient) -> None:
    await client.get("p").terminate("enough", output=7)


@pytest.mark.parametrize("name", BODIES)
def test_terminated_at_every_turn(name: str) -> None:
    """S2.10: whenever it comes, it is the end, for it and its children, and nobody owns them."""
    make = partial(scenario, BODIES[name], "rolls back")
    for turn in every_turn(make, 2):
        about = f"{name}, turn {turn}"
        played = play(make, Plot(turn, terminate))
        assert played.status() is (Status.COMPLETED if played.late else Status.TERMINATED), about
        assert "rollback" not in played.effects, about
        for snapshot in played.snapshots.values():
            assert snapshot.row.owner is None, about
            assert snapshot.row.status in (Status.COMPLETED, Status.TERMINATED), about
        assert name == "retried" or max(played.effects.values(), default=0) <= 1, about


@virtual
async def test_a_long_step_is_not_waited_for(world: World) -> None:
    """S2.10: the body is interrupted, its outcome not recorded, and the host lets go at once."""
    seen: list[str] = []

    async def long() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            seen.append("cut off")
            raise

    async def process(proc: Process) -> None:
        try:
            await proc.do("long", long)
        except BaseException as error:
            seen.append(type(error).__name__)
            try:
                await proc.do("rollback", long)
            except ProcessInterrupted:
                seen.append("no rollback")
            raise

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.terminate("enough", output=[1, 2])
        with pytest.raises(ProcessTerminatedError, match="enough") as caught:
            await handle.result(timeout=1)
        assert caught.value.output == [1, 2]
        await asyncio.sleep(3)
        assert world.row("p").owner is None
        assert await handle.purge() == 1
    assert seen == ["cut off", "ProcessInterrupted", "no rollback"]


@virtual
async def test_it_and_its_children_of_every_depth(world: World) -> None:
    """S2.10: recursive, also below a child that only waits; purge takes them all."""

    async def leaf(proc: Process) -> None:
        await proc.event("never")

    async def middle(proc: Process) -> None:
        await proc.call("leaf", leaf)

    async def process(proc: Process) -> None:
        await asyncio.gather(proc.call("a", middle), proc.call("b", middle))

    async with world.host(process, middle, leaf) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5)
        ids = ["p", "p/1.0/a", "p/1.0/b", "p/1.0/a/1.0/leaf", "p/1.0/b/1.0/leaf"]
        await handle.terminate("all of you")
        for process_id in ids:
            with pytest.raises(ProcessTerminatedError, match="all of you"):
                await host.get(process_id).result()
        await asyncio.sleep(5)
        assert [world.row(process_id).owner for process_id in ids] == [None] * 5
        with pytest.raises(ProcessFinishedError):
            await handle.cancel()
        assert await handle.purge() == 5


@virtual
async def test_one_that_nobody_holds(world: World) -> None:
    """S2.10: not yet begun, or of a name that no host has: terminated by the request alone."""

    async def process(proc: Process) -> None:
        raise AssertionError("never run")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", start_at=timedelta(days=1))
        await handle.terminate()
        with pytest.raises(ProcessTerminatedError):
            await handle.result(timeout=1)
        assert world.row("p").epoch == 0


@virtual
async def test_a_thread_goes_on_but_nothing_of_it_is_recorded(world: World) -> None:
    """S2.10 (rule 5): a thread cannot be interrupted; the process is let go all the same."""
    go_on = threading.Event()
    ran: list[str] = []

    def step() -> None:
        go_on.wait(10)
        ran.append("thread")

    async def process(proc: Process) -> None:
        await proc.do("thread", step)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        for _ in range(20):
            await asyncio.sleep(0)
        await handle.terminate()
        for _ in range(50):
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(ProcessTerminatedError):
            await handle.result(timeout=1)
        await asyncio.sleep(3)
        assert world.row("p").owner is None
        assert world.keys("p") == []
    assert ran == ["thread"]


@virtual
async def test_terminated_while_it_undoes(world: World) -> None:
    """S2.10 (rule 8): it ends a compensation too; what was undone stays to be seen."""

    async def act() -> str:
        return "done"

    async def undo(_: str) -> None:
        await asyncio.sleep(100)

    async def process(proc: Process) -> None:
        await proc.do("a", act, undo=undo)
        raise ValueError("no")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        assert world.row("p").status is Status.COMPENSATING
        await handle.terminate()
        with pytest.raises(ProcessTerminatedError):
            await handle.result(timeout=1)
        await asyncio.sleep(5)
        assert world.row("p").owner is None
        assert ("decision", "compensation", "value") in world.keys("p")
