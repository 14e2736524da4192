"""`check_histories`: what a new release would make of live processes, before it is deployed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durabletask import MemoryStorage, Process, ProcessClient, ProcessHost, Status
from durabletask.errors import (
    InvalidArgumentError,
    KeyConflictError,
    NonDeterminismError,
    StorageCorruptError,
    StorageFormatError,
    UnknownProcessError,
)
from durabletask.testing import (
    HistoryReport,
    Verdict,
    VirtualClock,
    check_histories,
    export_history,
    import_histories,
    run_virtual,
)
from durabletask_filesystem import FileSystemStorage

RAN: list[str] = []
"""Every step that ran; a check must add nothing."""


async def note(what: str) -> str:
    """Do something that can be seen; a step."""
    RAN.append(what)
    return what


async def refuse(what: str) -> str:
    """Fail; a step."""
    RAN.append(what)
    raise ValueError(what)


async def child(proc: Process, what: str) -> str:
    """Be a child."""
    return await proc.do("note", note, what)


@dataclass
class Approval:
    """What is raised, in a later release."""

    by: str


def exported(
    process: Callable[..., Any],
    *args: Any,
    after_s: float = 1.0,
    events: tuple[tuple[str, Any], ...] = (),
    **options: Any,
) -> bytes:
    """Run process "p" for so long, stop the host, and return what is recorded."""

    async def main(clock: VirtualClock) -> bytes:
        storage = MemoryStorage(clock)
        registered = [process, child]
        async with ProcessHost(storage, clock=clock, processes=registered, **options) as host:
            handle = await host.spawn(process, "p", *args)
            for name, payload in events:
                await handle.raise_event(name, payload)
            await asyncio.sleep(after_s)
        return await export_history(ProcessClient(storage, clock=clock), "p")

    return run_virtual(main)


def check(fn: Callable[..., Any], *histories: bytes, **options: Any) -> HistoryReport:
    """Check one history and return its report; nothing may have run."""
    before = list(RAN)
    (report,) = check_histories(fn, histories, name="order", processes=[child], **options)
    assert before == RAN
    return report


async def order(proc: Process, amount: int) -> str:
    """Be the release that is live."""
    await proc.do("reserve", note, "reserve")
    tag = await proc.get("tag", lambda: "t1")
    await asyncio.gather(proc.do("a", note, "a"), proc.do("b", note, "b"))
    await proc.event("paid")
    await proc.do("ship", note, f"{amount} {tag}")
    return "shipped"


@pytest.fixture(scope="module")
def waiting() -> bytes:
    """Return an order that waits to be paid."""
    return exported(order, 5)


def test_the_same_code_is_in_order(waiting: bytes) -> None:
    """Issue 4.5: code that recalls all there is goes on waiting, and nothing runs."""
    report = check(order, waiting)
    assert (report.verdict, report.ok, report.is_over) == (Verdict.OK, True, False)
    assert report.waits == ("event 'paid'",)
    assert (report.never_asked, report.next_calls, report.problem) == ((), (), None)


def test_a_renamed_key_is_named(waiting: bytes) -> None:
    """Issue 4.5: where a step would run again under another key, both are named."""

    async def renamed(proc: Process, amount: int) -> str:
        await proc.do("reserve stock", note, "reserve")
        return await order(proc, amount)

    async def gone(proc: Process, amount: int) -> str:
        await proc.do("reserve", note, "reserve")
        await proc.event("paid")
        return "shipped"

    report = check(renamed, waiting)
    assert report.verdict is Verdict.REPEATS
    assert report.never_asked == ("do 'reserve'", "get 'tag'", "do 'a'", "do 'b'")
    assert report.next_calls == ("do 'reserve stock'",)
    assert "'p': may repeat; never asked for: do 'reserve', get" in str(report)
    assert check(gone, waiting).never_asked == ("get 'tag'", "do 'a'", "do 'b'")


def test_what_would_be_quarantined_is_told_with_its_key(waiting: bytes) -> None:
    """Issue 4.5, F106: another kind, another type, another wait, a key used twice."""

    async def kind(proc: Process, amount: int) -> None:
        await proc.get("reserve", 1)

    async def kind_of_wait(proc: Process, amount: int) -> None:
        await order(Paid(proc), amount)  # type: ignore[arg-type]

    class Paid:
        def __init__(self, proc: Process) -> None:
            self.do, self.get, self._proc = proc.do, proc.get, proc

        def event(self, name: str) -> Any:
            return self._proc.delay(name, timedelta(1))

    async def name_of_event(proc: Process, amount: int) -> None:
        proc_event = proc.event
        await asyncio.gather(
            *(proc.do(key, note, key) for key in ("reserve", "a", "b")), proc.get("tag", "t1")
        )
        await proc_event("payment", key="paid")

    async def numbers(proc: Process, amount: int) -> None:
        await proc.do("reserve", _number)

    async def _number() -> int:
        return 1

    async def twice(proc: Process, amount: int) -> None:
        await proc.do("reserve", note, "")
        await proc.do("reserve", note, "")

    async def new_twice(proc: Process, amount: int) -> None:
        await asyncio.gather(proc.do("x", note, ""), proc.do("x", note, ""))

    async def other_input(proc: Process, amount: Approval) -> None: ...

    for code, error, words in (
        (kind, NonDeterminismError, "'reserve' is recorded as do"),
        (kind_of_wait, NonDeterminismError, "'paid'"),
        (name_of_event, NonDeterminismError, "event 'payment'"),
        (numbers, None, "'reserve'"),
        (twice, KeyConflictError, "'reserve' was used twice"),
        (new_twice, KeyConflictError, "'x' was used twice"),
        (other_input, None, ""),
    ):
        report = check(code, waiting)
        assert report.verdict is Verdict.QUARANTINED, code
        assert error is None or isinstance(report.problem, error)
        assert words in str(report.problem)


def test_code_that_raises_by_itself_would_fail(waiting: bytes) -> None:
    """Issue 4.5: a mistake in plain code would end the process; a recorded failure is none."""

    async def wrong(proc: Process, amount: int) -> None:
        await proc.do("reserve", note, "")
        raise KeyError("no such thing")

    async def failing(proc: Process) -> None:
        await proc.do("refuse", refuse, "no")

    report = check(wrong, waiting)
    assert (report.verdict, report.is_over) == (Verdict.FAILS, True)
    assert "KeyError" in str(report)

    async def dies(proc: Process) -> None:
        try:
            await proc.do("refuse", refuse, "no")
        finally:
            await asyncio.sleep(100)

    dies.__name__ = "order"
    report = check(failing, exported(dies))
    assert (report.verdict, report.is_over) == (Verdict.OK, True)


def test_every_kind_of_call_is_recalled() -> None:
    """Issue 4.5: whatever is recorded, the same code recalls it all and stops where it was."""

    async def all_kinds(proc: Process) -> None:
        async def item(n: int) -> int:
            await asyncio.sleep(n % 2 * 99)
            return n

        cursor = await proc.var("cursor", 0)
        await cursor.set(3)
        await proc.version("version", 2)
        await proc.delay("delay", timedelta(seconds=1))
        await proc.race("race", proc.event("first"), proc.delay("late", timedelta(days=1)))
        await proc.call("call", child, "called")
        spawned = await proc.spawn("spawn", child, "spawned")
        await spawned.result()
        await proc.raise_event("send", "p", "to itself", 1)
        await proc.event("to itself")
        await proc.report("half")
        try:
            async with asyncio.timeout(5):
                await proc.event("never")
        except TimeoutError:
            pass
        try:
            async with proc.timeout("limit", timedelta(seconds=2)):
                await proc.event("never", key="not in time")
        except TimeoutError:
            pass
        await proc.do("once", note, "once", at_most_once=True)
        await proc.do("undoable", note, "undoable", undo=note)
        async with proc.timeout("outer", timedelta(days=9)):
            await proc.do("inside", note, "inside")
            await asyncio.gather(
                proc.map("map", item, range(4)), proc.event("go"), proc.do("left", note, "left")
            )

    all_kinds.__name__ = "order"
    history = exported(all_kinds, after_s=20, events=(("first", 1),), drain_s=0.0)
    report = check(all_kinds, history)
    assert report.verdict is Verdict.OK, str(report)
    assert report.next_calls == ("do 'map'",)
    assert report.waits == ("timeout 'outer'", "event 'go'")
    assert not report.is_over


def test_the_rounds_behind_a_cursor_are_told_apart() -> None:
    """Issue 4.5: a loop that goes on from its cursor asks for no earlier round; that is right."""

    def process(first: str, last: str) -> Callable[..., Any]:
        async def order(proc: Process) -> None:
            await proc.do(first, note, "first")
            cursor = await proc.var("cursor", 0)
            while cursor.value < 3:
                await proc.do(f"page/{cursor.value}", note, "")
                await cursor.set(cursor.value + 1)
            await proc.do(last, note, "last")
            await proc.event("go")

        return order

    history = exported(process("first", "last"))
    report = check(process("first", "last"), history)
    assert report.ok
    assert report.left_behind == ("do 'page/0'", "do 'page/1'", "do 'page/2'")
    assert check(process("first", "the last"), history).never_asked == ("do 'last'",)
    report = check(process("the first", "last"), history)
    assert report.verdict is Verdict.REPEATS
    assert "do 'first'" in report.never_asked


def test_what_takes_time_is_waited_for() -> None:
    """Issue 4.5: a cancellation that comes late, and the end of a timeout, hide nothing behind."""

    async def slowly() -> None:
        await asyncio.sleep(18)

    async def one_side(proc: Process) -> None:
        async with proc.timeout("limit", timedelta(hours=9)):
            await proc.do("takes long", slowly)
            await asyncio.sleep(5)  # in the check this is over before the other side

    async def other_side(proc: Process) -> None:
        await asyncio.sleep(15)
        await proc.do("slow", note, "slow")

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(3600):
                await proc.event("never")
        except TimeoutError:
            await proc.do("after an hour", note, "after")
        await asyncio.gather(one_side(proc), other_side(proc))

    process.__name__ = "order"
    report = check(process, exported(process, after_s=3620))
    assert report.verdict is Verdict.OK, str(report)
    assert report.waits == ("timeout 'limit'",)


def test_an_event_that_would_not_fit_is_found() -> None:
    """Issue 4.5: an event in the mailbox that the open wait could not decode."""

    async def before(proc: Process) -> None:
        await asyncio.gather(proc.event("never"), proc.event("approved"))

    async def after(proc: Process) -> None:
        await asyncio.gather(proc.event("never"), proc.event("approved", Approval))

    before.__name__ = "order"

    async def main(clock: VirtualClock) -> bytes:
        storage = MemoryStorage(clock)
        async with ProcessHost(storage, clock=clock, processes=[before]) as host:
            await host.spawn(before, "p")
            await asyncio.sleep(1)
        client = ProcessClient(storage, clock=clock)
        await client.raise_event("p", "approved", 7)
        return await export_history(client, "p")

    history = run_virtual(main)
    assert check(before, history).ok
    report = check(after, history)
    assert report.verdict is Verdict.QUARANTINED
    assert "approved" in str(report.problem)


def test_an_undo_that_is_gone_is_named() -> None:
    """Issue 4.5, rule 8: of what is being undone, the steps whose undo the code does not tell."""

    async def slowly(receipt: str) -> None:
        await asyncio.sleep(1000)

    async def before(proc: Process) -> None:
        await proc.do("hotel", note, "hotel", undo=slowly)
        await proc.do("flight", note, "flight", undo=slowly)
        await proc.do("pay", refuse, "pay")

    async def after(proc: Process) -> None:
        await proc.do("hotel", note, "hotel", undo=slowly)
        await proc.do("flight", note, "flight")
        await proc.do("pay by card", refuse, "pay")

    before.__name__ = "order"
    history = exported(before, drain_s=0.0)
    assert check(before, history).ok
    report = check(after, history)
    assert (report.verdict, report.open_undos) == (Verdict.LEAVES_OPEN, ("flight",))


def test_what_has_ended_is_in_order_and_other_names_are_refused(waiting: bytes) -> None:
    """Issue 4.5: nothing runs of what has ended; a history of another function is a mistake."""
    done = exported(order, 5, events=(("paid", None),))

    async def anything(proc: Process) -> None: ...

    report = check(anything, done)
    assert (report.verdict, report.is_over) == (Verdict.OK, True)
    with pytest.raises(InvalidArgumentError, match="is one of 'order', not of 'anything'"):
        check_histories(anything, [waiting])


def test_an_export_is_the_process(waiting: bytes) -> None:
    """S0.08: what is exported is brought back, and another host ends it."""

    async def main(clock: VirtualClock) -> tuple[str, Status]:
        storage = import_histories([waiting], clock)
        async with ProcessHost(storage, clock=clock, processes=[order]) as host:
            handle = host.get(order, "p")
            await handle.raise_event("paid")
            return await handle.result(), (await handle.info()).status

    before = len(RAN)
    assert run_virtual(main) == ("shipped", Status.COMPLETED)
    assert RAN[before:] == ["5 t1"]


def test_an_export_of_a_folder_goes_on_in_memory(tmp_path: Path) -> None:
    """Issue 4.5: every storage can be exported; what waited in a folder ends in memory."""

    async def live() -> bytes:
        async with ProcessHost(FileSystemStorage(tmp_path), processes=[order]) as host:
            await host.spawn(order, "p", 5)
            while not (await host.get("p").info()).waits:
                await asyncio.sleep(0)
            return await export_history(host, "p")

    history = asyncio.run(live())
    assert check(order, history).waits == ("event 'paid'",)

    async def finish(clock: VirtualClock) -> str:
        storage = import_histories([history], clock)
        async with ProcessHost(storage, clock=clock, processes=[order]) as host:
            await host.raise_event("p", "paid")
            return await host.get(order, "p").result()

    assert run_virtual(finish) == "shipped"


def test_what_is_no_export_is_refused(waiting: bytes) -> None:
    """F135: a file of something else, of a later format, or cut off, is an error that says so."""
    with pytest.raises(StorageFormatError, match="no exported history"):
        import_histories([b"{}"])
    with pytest.raises(StorageFormatError, match="format 99"):
        import_histories([b'{"durabletask_history": 99}'])
    with pytest.raises(StorageCorruptError, match="damaged"):
        import_histories([b'{"durabletask_history": 1, "snapshot": 5}'])
    with pytest.raises(StorageFormatError, match="no exported history"):
        check_histories(order, [waiting[:-10]])

    async def nobody() -> None:
        await export_history(ProcessClient(MemoryStorage()), "nobody")

    with pytest.raises(UnknownProcessError):
        asyncio.run(nobody())
