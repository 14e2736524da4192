"""Rows of the five older systems that are whole programs here: loops, groups of children, ends."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import pytest

from durabletask import HistoryEntry, Process, ProcessClient, RetryPolicy, Status
from durabletask.errors import (
    EventTimeoutError,
    ProcessCancelledError,
    ProcessError,
    ProcessFailedError,
    StepError,
    StepTimeoutError,
    UnknownProcessError,
)
from tests.engine.world import World, settle, virtual


@virtual
async def test_an_output_is_the_next_input_and_a_loop_sleeps_between_attempts(
    world: World,
) -> None:
    """S1.07: a sequence and a bounded loop with a sleep are plain code, across dead hosts too."""
    world.allow(1)
    asked: list[int] = []

    async def order(item: str) -> int:
        return len(item)

    async def is_ready(number: int, round: int) -> bool:
        asked.append(round)
        return round == 3

    async def process(proc: Process, item: str, rounds: int) -> str:
        number = await proc.do("order", order, item)
        for round in range(1, rounds + 1):
            if await proc.do(f"ask {round}", is_ready, number, round):
                return f"{number} after {round}"
            await proc.delay(f"sleep {round}", timedelta(hours=1))
        return "given up"

    await world.begin_and_die(process, "lamp", 5, after_s=4000)
    async with world.host(process) as host:
        assert await host.get("p").result() == "4 after 3"
        other = await host.spawn(process, "q", "lamp", 2)
        assert await other.result() == "given up"
    assert asked == [1, 2, 3, 1, 2]


@virtual
async def test_children_are_inserted_with_the_parents_move(world: World) -> None:
    """S1.05: a child is created in the unit that records its call, so there is never just one."""

    async def child(proc: Process, number: int) -> int:
        return number * 10

    async def parent(proc: Process) -> list[int]:
        return await asyncio.gather(*(proc.call(f"part {n}", child, n) for n in range(3)))

    host = world.host(parent, child)
    async with host:
        assert await (await host.spawn(parent, "p")).result() == [0, 10, 20]
        children = [info async for info in host.list(parent="p")]
    assert {(info.name, info.parent, info.status.value) for info in children} == {
        ("child", "p", "completed")
    }
    births = [unit for unit in world.wires[host].units if unit.spawns]
    born = [each.process_id for unit in births for each in unit.spawns]
    assert sorted(born) == sorted(info.id for info in children)
    for unit in births:
        assert unit.process_id == "p"
        assert {note.key for note in unit.checkpoints} >= {f"part {unit.spawns[0].process_id[-1]}"}


@virtual
async def test_the_first_failure_or_all_settled(world: World) -> None:
    """S1.06: a group ends its waiting members at the first failure; gather can await all."""

    async def child(proc: Process, number: int) -> int:
        if number == 1:
            raise ValueError("one")
        await proc.delay("work", timedelta(minutes=number))
        return number

    async def first_failure(proc: Process) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(proc.call(f"part {number}", child, number))
        except ExceptionGroup as group_of_one:
            (error,) = group_of_one.exceptions
            return f"failed: {error.__cause__}"
        return "never"

    async def all_settled(proc: Process) -> list[str]:
        calls = [proc.call(f"part {number}", child, number) for number in range(3)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        return [type(end).__name__ for end in ends]

    async with world.host(first_failure, all_settled, child) as host:
        begun = world.clock.now()
        group = await host.spawn(first_failure, "group")
        assert await group.result() == "failed: ValueError: one"
        assert world.clock.now() - begun < timedelta(minutes=1)
        settled = await host.spawn(all_settled, "settled")
        assert await settled.result() == ["int", "ProcessFailedError", "int"]


@virtual
async def test_cancel_from_another_program_reaches_the_children(world: World) -> None:
    """S1.09: a client without a host cancels a process; all below it are cancelled, and undo."""
    undone: list[str] = []

    async def book(what: str) -> str:
        return what

    async def unbook(what: str) -> None:
        undone.append(what)

    async def leaf(proc: Process) -> None:
        await proc.do("book", book, "leaf", undo=unbook)
        await proc.event("never")

    async def middle(proc: Process) -> None:
        await proc.do("book", book, "middle", undo=unbook)
        await proc.call("leaf", leaf)

    async def top(proc: Process) -> None:
        await proc.call("middle", middle)

    async with world.host(top, middle, leaf) as host:
        handle = await host.spawn(top, "p")
        await asyncio.sleep(10)
        await ProcessClient(world.storage, clock=world.clock).get("p").cancel("enough")
        with pytest.raises(ProcessCancelledError, match="enough"):
            await handle.result()
        await asyncio.sleep(10)
        statuses = {info.name: info.status async for info in host.list()}
    assert statuses == dict.fromkeys(("top", "middle", "leaf"), Status.CANCELLED)
    assert sorted(undone) == ["leaf", "middle"]


@virtual
async def test_each_kind_of_error_is_a_class(world: World) -> None:
    """S1.11: not to be retried, timed out, cancelled, not found: each is told by its class."""
    attempts: list[str] = []

    class RejectedError(Exception):
        """What no repetition cures."""

    async def rejected() -> None:
        attempts.append("rejected")
        raise RejectedError("no")

    async def flaky() -> None:
        attempts.append("flaky")
        raise ConnectionError("away")

    policy = RetryPolicy(attempts_max=3, delay_s=1, give_up_on=(RejectedError,))

    async def process(proc: Process) -> list[str]:
        seen = []
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(proc.do, "rejected", rejected, retry=policy),
            partial(proc.do, "flaky", flaky, retry=policy),
            partial(proc.do, "slow", asyncio.sleep, 60, timeout=1),
            partial(proc.event, "never", timeout=1),
            partial(proc.event, "cancelled"),
        ]
        for call in calls:
            try:
                await call()
            except (RejectedError, StepError, EventTimeoutError, ProcessCancelledError) as error:
                seen.append(f"{type(error).__name__} {isinstance(error, TimeoutError)}")
        return seen

    async with world.host(process, errors=[RejectedError]) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(60)
        await handle.cancel()
        assert await handle.result() == [
            "RejectedError False",
            "StepError False",
            f"{StepTimeoutError.__name__} True",
            f"{EventTimeoutError.__name__} True",
            f"{ProcessCancelledError.__name__} False",
        ]
        with pytest.raises(UnknownProcessError) as unknown:
            await host.get("nobody").result()
        assert isinstance(unknown.value, LookupError)
        assert isinstance(unknown.value, ProcessError)
    assert attempts == ["rejected", *["flaky"] * 3]


@virtual
async def test_a_handle_gets_waits_gives_up_and_cancels(world: World) -> None:
    """S1.19: info, waiting with a limit or until the caller is cancelled, and cancel."""

    async def process(proc: Process) -> str:
        return await proc.event("go", str)

    async with world.host(process) as host:
        await host.spawn(process, "p")
        handle = host.get(process, "p")
        await settle()
        assert (await handle.info()).waits[0].name == "go"
        with pytest.raises(TimeoutError):
            await handle.result(timeout=5)

        waiter = asyncio.create_task(handle.result())
        await settle()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert (await handle.info()).status is Status.WAITING, "only the caller has given up"

        other = asyncio.create_task(handle.result())
        await handle.cancel()
        with pytest.raises(ProcessCancelledError):
            await other


@virtual
async def test_a_restart_keeps_events_and_forgets_the_history(world: World) -> None:
    """S2.06: events that nobody took are taken by later generations, in order; nothing grows."""

    async def process(proc: Process, total: int) -> int:
        number = await proc.event("number", int)
        await proc.do("count", asyncio.sleep, 0)
        if number:
            proc.restart(total + number)
        return total

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 0)
        first = (await handle.info()).generation
        for number in (*range(1, 201), 0):
            await handle.raise_event("number", number)
        assert await handle.result() == 20_100
        assert (await handle.info()).generation == first + 200
        kept = [entry for entry in await handle.history() if entry.kind != "raised"]
        assert [entry.key for entry in kept] == ["number", "count"]


@virtual
async def test_what_has_expired_is_purged_and_nothing_that_lives(world: World) -> None:
    """S0.11: retention removes what has finished long ago; a running process is never removed."""
    world.allow(3)

    async def brief(proc: Process) -> None: ...

    async def long(proc: Process) -> str:
        return await proc.event("go", str)

    async with world.host(brief, long, retention=timedelta(hours=1)) as host:
        handle = await host.spawn(long, "long")
        await (await host.spawn(brief, "brief")).result()
        await asyncio.sleep(1800)
        assert (await host.get("brief").info()).status is Status.COMPLETED
        await asyncio.sleep(2 * 86_400)
        with pytest.raises(UnknownProcessError):
            await host.get("brief").info()
        await handle.raise_event("go", "still here")
        assert await handle.result() == "still here"


@virtual
async def test_deaths_of_hosts_are_counted_and_shown(world: World) -> None:
    """S1.13: every host that takes a process is counted, and every one that dies with it."""

    async def process(proc: Process) -> None:
        await proc.do("deadly", asyncio.sleep, 3600)

    for number in range(3):
        host = world.host(process)
        await host.start()
        if number == 0:
            await host.spawn(process, "p")
        await asyncio.sleep(5)
        world.kill(host)
    async with world.host(process) as host:
        await asyncio.sleep(5)
        info = await host.get("p").info()
        assert (info.epoch, info.deaths) == (4, 3)
        await host.get("p").result()
        assert (await host.get("p").info()).deaths == 0, "it has recorded something since"


@virtual
async def test_a_recorded_failure_is_replaced_by_retry(world: World) -> None:
    """S4.07: `retry()` replaces a stored failure by a new outcome; the old one stays to be seen."""
    outages = ["down"]

    async def ship() -> str:
        await asyncio.sleep(1)
        if outages:
            raise ConnectionError(outages[0])
        return "shipped"

    async def process(proc: Process) -> str:
        await proc.do("pack", asyncio.sleep, 1)
        return await proc.do("ship", ship)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError, match="down"):
            await handle.result()
        outages.clear()
        await handle.retry()
        assert await handle.result() == "shipped"

        def brief(entry: HistoryEntry) -> tuple[str, str, bool]:
            return entry.key, entry.form, entry.forgotten

        assert [brief(entry) for entry in await handle.history()] == [
            ("pack", "value", False),
            ("ship", "error", True),
            ("ship", "value", False),
        ]
