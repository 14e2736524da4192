"""Compensation and what is asked from outside: cancel, suspend, retry, restart."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, Status
from durabletask.errors import InvalidArgumentError, ProcessFailedError
from durabletask.storage import Action, Control, Ending, Form
from tests.engine.test_compensation import DECIDED, Books, undos
from tests.engine.world import World, virtual

DAY = timedelta(days=1)
ENDED = Ending(Status.TERMINATED, Form.VALUE, b'{"reason":null,"output":null}')


async def ask(world: World, action: Action) -> None:
    """Ask something of process "p" from outside."""
    (answer,) = await world.storage.request(
        [
            Control(
                process_id="p",
                action=action,
                request_id=f"{action} {world.clock.monotonic_s()}",
                reason=b'"enough"',
            )
        ]
    )
    assert answer.refused is None


def waiting(books: Books, undo: Any = None) -> Any:
    """Return a process that has something to undo and waits."""

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=undo or books.cancel)
        await proc.do("flight", books.book, "flight", undo=undo or books.cancel)
        await proc.event("go")
        raise ValueError("no")

    return process


@virtual
async def test_cancelled_from_outside(world: World) -> None:
    """Rules 7 and 8: a cancelled process undoes what it has done, and ends as cancelled."""
    books = Books()
    process = waiting(books)
    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(1)
        await ask(world, Action.CANCEL)
        await asyncio.sleep(10)
        assert world.row("p").status is Status.CANCELLED
        assert books.undone == ["receipt flight", "receipt hotel"]


@virtual
async def test_cancelled_while_a_step_is_in_its_body(world: World) -> None:
    """Rules 7 and 8: the step is let finish, since its result is what undoing it needs."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("slow", books.book, "slow", 20.0, undo=books.cancel)
        await proc.do("next", books.book, "next")

    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(5)
        await ask(world, Action.CANCEL)
        await asyncio.sleep(60)
        assert world.row("p").status is Status.CANCELLED
        assert (books.done, books.undone) == (["slow"], ["receipt slow"])


@virtual
async def test_a_compensation_cannot_be_cancelled(world: World) -> None:
    """Rule 7: a process in compensation finishes it, and fails with its own error."""
    books = Books()
    process = waiting(books, books.slowly_cancel)
    async with world.host(process) as host:
        await host.spawn(process, "p")
        await host.raise_event("p", "go")
        await asyncio.sleep(5)
        await ask(world, Action.CANCEL)
        with pytest.raises(ProcessFailedError, match="no"):
            await host.get("p").result()
        assert books.undone == ["receipt flight", "receipt hotel"]
        assert undos(world) == [DECIDED, ("undo", "flight", "value"), ("undo", "hotel", "value")]


@virtual
async def test_suspended_while_undoing(world: World) -> None:
    """S2.09: an undo in its body is recorded; the next one runs when the process is resumed."""
    books = Books()
    process = waiting(books, books.slowly_cancel)
    async with world.host(process) as host:
        await host.spawn(process, "p")
        await host.raise_event("p", "go")
        await asyncio.sleep(5)
        await ask(world, Action.SUSPEND)
        await asyncio.sleep(100)
        assert books.undone == ["receipt flight"]
        assert world.row("p").status is Status.SUSPENDED
        await ask(world, Action.RESUME)
        with pytest.raises(ProcessFailedError, match="no"):
            await host.get("p").result()
        assert books.undone == ["receipt flight", "receipt hotel"]


@virtual
async def test_terminated_while_undoing(world: World) -> None:
    """Rule 7: to terminate ends it at once, and no further undo runs."""
    books = Books()
    process = waiting(books, books.slowly_cancel)
    async with world.host(process) as host:
        await host.spawn(process, "p")
        await host.raise_event("p", "go")
        await asyncio.sleep(5)
        (answer,) = await world.storage.request(
            [
                Control(
                    process_id="p",
                    action=Action.TERMINATE,
                    request_id="end",
                    ending=ENDED,
                )
            ]
        )
        assert answer.refused is None
        await asyncio.sleep(100)
        assert world.row("p").status is Status.TERMINATED
        assert "receipt hotel" not in books.undone


@virtual
async def test_restart_with_undos_is_refused(world: World) -> None:
    """Rule 8: a restart would forget what may have to be undone, unless that is said."""
    books = Books()
    refused: list[str] = []

    async def process(proc: Process, round: int) -> int:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        if round < 2:
            try:
                proc.restart(round + 1)
            except InvalidArgumentError as error:
                refused.append(str(error))
            proc.restart(round + 1, drop_undos=True)
        return round

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", 1)
        assert await handle.result() == 2
        assert len(refused) == 1
        assert books.undone == []


@virtual
async def test_a_durable_timeout_is_met_again_while_collecting(world: World) -> None:
    """Rules 6 and 8: what a timeout has ended in the first run it ends while collecting too."""
    books = Books()

    async def process(proc: Process) -> None:
        try:
            async with proc.timeout("limit", 300):
                await proc.do("flight", books.book, "flight", undo=books.slowly_cancel)
                await proc.event("never")
        except TimeoutError:
            async with proc.timeout("another", 1000):
                await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
                await proc.do("pay", books.fail)

    await world.begin_and_die(process, after_s=305)
    assert undos(world) == [DECIDED]
    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError, match="no"):
            await host.get("p").result()
        info = await host.get("p").info()
        assert info.compensation is not None
        assert info.compensation.done == ("hotel", "flight")


@virtual
async def test_everything_that_is_recorded_is_passed_while_collecting(world: World) -> None:
    """Rule 8: map, get, race, version, report and children are recalled, and change nothing."""
    books = Books()
    calls: list[str] = []

    async def child(proc: Process) -> int:
        calls.append("child")
        return 7

    async def item(number: int) -> int:
        calls.append(f"item {number}")
        return number

    async def process(proc: Process) -> None:
        await proc.map("items", item, [1, 2])
        await proc.get("value", lambda: calls.append("get"))
        await proc.race("first", proc.event("go"), proc.delay("later", DAY))
        await proc.version("code", 2)
        await proc.report({"at": 1})
        assert await proc.call("child", child) == 7
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        await proc.report({"at": 2})
        raise ValueError("no")

    first = world.host(process, child)
    await first.start()
    await first.spawn(process, "p")
    await first.raise_event("p", "go")
    await asyncio.sleep(5)
    world.kill(first)
    assert undos(world) == [DECIDED]
    before = list(calls)
    assert sorted(before) == ["child", "get", "item 1", "item 2"]
    async with world.host(process, child) as host:
        with pytest.raises(ProcessFailedError, match="no"):
            await host.get("p").result()
        info = await host.get("p").info()
        assert info.compensation is not None
        assert info.compensation.done == ("hotel",)
        assert info.progress == {"at": 2}
        assert calls == before


@virtual
async def test_an_undo_within_an_open_timeout_is_found_by_another_host(world: World) -> None:
    """Rule 8: what was entered and not left is entered again while undos are collected."""
    undone: list[str] = []

    async def book() -> str:
        return "hotel"

    async def cancel(what: str) -> None:
        if not undone:
            undone.append("begun, and the host dies")
            await asyncio.sleep(1000)
        undone.append(what)

    async def fails() -> None:
        await asyncio.sleep(5)
        raise ValueError("no")

    async def side(proc: Process) -> None:
        async with proc.timeout("a day", DAY):
            await proc.do("hotel", book, undo=cancel)
            await proc.event("never")

    async def process(proc: Process) -> None:
        await asyncio.gather(side(proc), proc.do("pay", fails))

    await world.begin_and_die(process, after_s=20)
    async with world.host(process) as host:
        handle = host.get(process, "p")
        with pytest.raises(ProcessFailedError, match="ValueError: no"):
            await handle.result()
        compensation = (await handle.info()).compensation
        assert compensation is not None
        assert compensation.done == ("hotel",)
    assert undone[1:] == ["hotel"]
