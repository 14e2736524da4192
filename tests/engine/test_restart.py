"""Restart: the next generation of a process, with nothing of the last one but its mailbox."""

import asyncio
import gc
from collections.abc import Iterator
from datetime import timedelta

import pytest

from durabletask import Process, ProcessHost, Status
from durabletask.errors import (
    InvalidArgumentError,
    ProcessCancelledError,
    ProcessFinishedError,
    ProcessInterrupted,
    SerializationError,
)
from durabletask.storage import EVENTS_KEPT, Kind
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, virtual


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


async def counts(proc: Process, number: int, last: int) -> int:
    got = await proc.get("n", number)
    await proc.do("work", asyncio.sleep, 0)
    if number < last:
        proc.restart(number + 1, last)
    return got


@virtual
async def test_a_thousand_generations_stay_small(world: World) -> None:
    """S2.06: what goes on for ever does not grow, nor what it has consumed."""

    async def process(proc: Process, number: int) -> int:
        total = number + await proc.event("add", int)
        await proc.event("add", int, key="second")
        if total < 1_000:
            proc.restart(total)
        return total

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 0)
        for _ in range(2_000):
            await handle.raise_event("add", 1)
        assert await handle.result() == 1_000
        info = await handle.info()
        assert info.generation == 999
    (snapshot,) = await world.storage.read(["p"], history=True)
    assert snapshot is not None
    calls = [each for each in snapshot.checkpoints if each.kind is not Kind.WAIT]
    assert len(calls) == 2
    assert len(snapshot.events) <= EVENTS_KEPT + 2


@virtual
async def test_events_that_nobody_took_stay(world: World) -> None:
    """S2.06 (G8): an event is consumed by one generation; the others are for the next, in order."""

    async def process(proc: Process, seen: list[int]) -> list[int]:
        seen = [*seen, await proc.event("n", int)]
        if len(seen) < 4:
            proc.restart(seen)
        return seen

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", [])
        for number in range(4):
            await handle.raise_event("n", number, event_id=f"e{number}")
        # The same event again is known, also where an earlier generation has taken it.
        await handle.raise_event("n", 99, event_id="e0")
        assert await handle.result() == [0, 1, 2, 3]


@virtual
async def test_each_generation_has_names_of_its_own(world: World) -> None:
    """S2.06: idempotency keys and ids of children differ from one generation to the next."""
    keys: list[str] = []

    async def child(proc: Process) -> str:
        return proc.id

    async def process(proc: Process, number: int) -> list[str]:
        keys.append(proc.idempotency_key("k"))
        keys.append(await proc.call("c", child))
        if number:
            proc.restart(number - 1)
        return keys

    async with world.host(process, child) as host:
        assert await (await host.spawn(process, "p", 2)).result() == keys
    assert len(set(keys)) == 6


@virtual
async def test_undos_that_are_registered_refuse_it(world: World) -> None:
    """Rule 8: it would forget how to undo; the process goes on, and may say that it means it."""
    undone: list[str] = []

    async def act() -> str:
        return "done"

    async def process(proc: Process, number: int) -> int:
        await proc.do("a", act, undo=undone.append)
        if number == 0:
            with pytest.raises(InvalidArgumentError, match="undos"):
                proc.restart(1)
            await proc.do("b", act)
            proc.restart(1, drop_undos=True)
        raise ValueError("no")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 0)
        await asyncio.sleep(1)
        info = await handle.info()
        assert (info.status, info.generation) == (Status.FAILED, 1)
    assert undone == ["done"]


@virtual
async def test_arguments_that_do_not_fit_leave_it_going(world: World) -> None:
    """S2.06: refused before anything is recorded; the process can do something else."""

    async def process(proc: Process, number: int) -> str:
        with pytest.raises(InvalidArgumentError):
            proc.restart()
        with pytest.raises(InvalidArgumentError):
            proc.restart(1, 2)
        with pytest.raises(SerializationError):
            proc.restart(object())
        await proc.do("after", asyncio.sleep, 0)
        return "went on"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 0)
        assert await handle.result() == "went on"
        assert (await handle.info()).generation == 0


@virtual
async def test_nothing_of_the_old_generation_goes_on(world: World) -> None:
    """Rule 5: it unwinds as by an interrupt: no except, no task beside it, records anything."""
    seen: list[str] = []

    async def beside(proc: Process) -> None:
        try:
            await proc.event("never")
        except ProcessInterrupted:
            seen.append("beside")
            raise

    async def process(proc: Process, number: int) -> str:
        if number:
            return "next"
        task = asyncio.create_task(beside(proc))
        await asyncio.sleep(1)
        try:
            proc.restart(1)
        except BaseException as error:
            seen.append(type(error).__name__)
            with pytest.raises(ProcessInterrupted):
                await proc.do("undo", asyncio.sleep, 0)
            raise ValueError("swallowed") from error
        finally:
            await asyncio.wait([task])

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p", 0)).result() == "next"
    assert sorted(seen) == ["ProcessInterrupted", "beside"]
    assert world.keys("p") == []


@virtual
async def test_from_a_task_of_the_process(world: World) -> None:
    """S2.06: called in a task of a group it restarts the process all the same."""

    async def inner(proc: Process) -> None:
        await proc.do("a", asyncio.sleep, 1)
        proc.restart(1)

    async def process(proc: Process, number: int) -> str:
        if number:
            return "next"
        async with asyncio.TaskGroup() as group:
            group.create_task(inner(proc))
            group.create_task(proc.event("never"))
        return "not restarted"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p", 0)).result() == "next"


@virtual
async def test_a_request_to_cancel_that_is_not_met_stays(world: World) -> None:
    """S2.06 (rule 7): the next generation meets it; one that was met is gone."""

    async def process(proc: Process, number: int) -> str:
        if number == 0:
            await asyncio.sleep(10)  # asked meanwhile, and never at a durable call
            proc.restart(1)
        try:
            await proc.event("n", timeout=5)
        except ProcessCancelledError:
            if number == 1:
                proc.restart(2)
            return "cancelled twice"
        except Exception as error:
            return f"{number}: {type(error).__name__}"
        return "got it"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 0)
        await asyncio.sleep(1)
        await handle.cancel()
        assert await handle.result() == "2: EventTimeoutError"
        info = await handle.info()
        assert not info.cancel_requested


@virtual
async def test_while_its_host_drains_or_dies(world: World) -> None:
    """S2.06: whoever runs it next begins where the last restart stands."""

    async def process(proc: Process, number: int) -> int:
        await proc.delay("d", timedelta(seconds=1))
        if number < 20:
            proc.restart(number + 1)
        return number

    for turn in range(5):
        host = world.host(process)
        await host.start()
        if turn == 0:
            await host.spawn(process, "p", 0)
        await asyncio.sleep(3.5)
        if turn % 2:
            world.kill(host)
        else:
            await host.stop()
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == 20
        assert (await host.get("p").info()).generation == 20


@virtual
async def test_created_anew_before_its_host_has_heard_of_the_end(world: World) -> None:
    """An id that is purged and spawned again while the answer to its end is on its way runs."""

    async def process(proc: Process, number: int) -> int:
        return await proc.get("n", number)

    host = world.host(process)

    async def slow(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(5)

    async with host:
        world.wires[host].after = slow
        await host.spawn(process, "p", 1)
        await asyncio.sleep(6)
        assert world.row("p").status is Status.COMPLETED
        assert await world.storage.purge(["p"]) == [None]
        handle = await host.spawn(process, "p", 2)
        assert await handle.result(timeout=100) == 2


def test_dead_at_every_call() -> None:
    """S2.06 (F024): three generations die before and after every storage call."""
    report = crash_everywhere(counts, 0, 2, process_id="p")
    report.check()
    assert report.expected["p", "incarnation"] == (1, 2)


def test_dead_twice() -> None:
    """S2.06 (F024): the program dies at every pair of calls around one restart."""

    async def process(proc: Process, number: int) -> int:
        if number == 0:
            proc.restart(1)
        return await proc.get("n", number)

    crash_everywhere(process, 0, process_id="p", pairs=True).check()


def test_dead_at_every_callback() -> None:
    """S2.06 (F024): and before each callback of the loop, with events on their way."""

    async def process(proc: Process, seen: list[int]) -> list[int]:
        seen = [*seen, await proc.event("n", int)]
        if len(seen) < 3:
            proc.restart(seen)
        return seen

    async def main(host: ProcessHost) -> None:
        handle = await host.spawn(process, "p", [])
        for number in range(3):
            await _deliver(host, number)
        await handle.result()

    crash_everywhere(process, [], process_id="p", main=main, callbacks=True).check()


async def _deliver(host: ProcessHost, number: int) -> None:
    try:
        await host.raise_event("p", "n", number, event_id=f"{number}")
    except ProcessFinishedError:
        return
