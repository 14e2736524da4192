"""Waits: a delay, an event. They begin with a record and end with one."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from durabletask._codec import Shape
from durabletask._errors import (
    DecodeError,
    EventTimeoutError,
    InvalidArgumentError,
    NonDeterminismError,
    ProcessInterrupted,
    about,
)
from durabletask._model import NO_INDEX, Checkpoint, Event, Form, Kind
from durabletask._notes import DelayNote, EventNote, WaitNote, encode, kind_of
from durabletask._run import Run


async def delay(run: Run, key: str, until: timedelta | datetime) -> DelayNote:
    """Wait until the recorded due time; see `Process.delay`."""
    if run.gated:
        await run.pass_gate(Kind.DELAY, key)
    held = run.ask(Kind.DELAY, key)
    if held is not None:
        await run.recall(held)
        return _delayed(run, held)
    recorded = recorded_wait(run, key, NO_INDEX)
    due_at = recorded.due_at if recorded else due(run, until)
    if due_at is None or (recorded and kind_of(recorded) is not Kind.DELAY):
        raise changed(run, key, "a delay", described(recorded))
    late = recorded is not None and run.begun_at is not None and due_at < run.begun_at
    if due_at > run.services.now():
        note = None if recorded else wait_note(key, NO_INDEX, WaitNote(due_at=due_at))
        timer = run.services.timers.at(due_at)
        run.wait_begins(due_at, timer, note)
        try:
            await timer
        except asyncio.CancelledError:
            run.services.timers.give_up(timer)
            run.wait_broken(timer)
            await run.record_cancelled(Kind.DELAY, key, NO_INDEX)
            raise
        run.wait_ended(timer)
    result = DelayNote(desired_at=due_at, actual_at=run.services.now(), on_time=not late)
    checkpoint = Checkpoint(Kind.DELAY, key, NO_INDEX, Form.VALUE, encode(result))
    return _delayed(run, await run.record(checkpoint))


async def event(
    run: Run, name: str, shape: Shape, key: str, index: int, timeout: timedelta | None
) -> Any:
    """Take the oldest unconsumed event of a name; see `Process.event`."""
    if run.gated:
        await run.pass_gate(Kind.EVENT, key, index)
    held = run.ask(Kind.EVENT, key, index)
    if held is not None:
        await run.recall(held)
        return received(run, held, name, shape)
    recorded = recorded_wait(run, key, index)
    if recorded is not None and recorded.name != name:
        raise changed(run, key, f"event {name!r}", described(recorded))
    due_at = recorded.due_at if recorded else (None if timeout is None else due(run, timeout))
    taken = run.mailbox.take(name)
    if taken is None and (due_at is None or due_at > run.services.now()):
        note = None if recorded else wait_note(key, index, WaitNote(name=name, due_at=due_at))
        waiter = in_line(run, (name,), due_at)
        run.wait_begins(due_at, waiter, note)
        del note
        try:
            taken = await waiter
        except asyncio.CancelledError:
            run.mailbox.leave(name, waiter)
            run.wait_broken(waiter)
            await run.record_cancelled(Kind.EVENT, key, index)
            raise
        run.wait_ended(waiter)
        if taken is None:
            run.mailbox.leave(name, waiter)
    # In functions of their own: what they need is not kept while a hundred thousand wait.
    if taken is None:
        held = await _record_none(run, name, key, index, due_at)
        return received(run, held, name, shape)
    return await _record_taken(run, taken, name, shape, key, index)


async def _record_none(
    run: Run, name: str, key: str, index: int, due_at: datetime | None
) -> Checkpoint:
    error = EventTimeoutError(f"no event {name!r} before {due_at}")
    payload = run.services.failures.encode(error)
    return await run.record(Checkpoint(Kind.EVENT, key, index, Form.ERROR, payload))


async def _record_taken(
    run: Run, taken: Event, name: str, shape: Shape, key: str, index: int
) -> Any:
    # Tried before it is consumed: an event that does not fit stays where it is.
    value = fit(run, taken, shape)
    payload = encode(EventNote(name, msgspec.Raw(taken.payload), taken.position))
    checkpoint = Checkpoint(Kind.EVENT, key, index, Form.VALUE, payload)
    held = await run.record(checkpoint, consumes=(taken.position,))
    return value if held is checkpoint else received(run, held, name, shape)


def in_line(
    run: Run, names: Iterable[str], due_at: datetime | None
) -> "asyncio.Future[Event | None]":
    """Return a future of the next event of these names; of None when the time is over first."""
    waiter: asyncio.Future[Event | None] = run.services.loop.create_future()
    if due_at is not None:
        timer = run.services.timers.at(due_at)
        timer.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
        waiter.add_done_callback(lambda _: run.services.timers.give_up(timer))
    for name in names:
        run.mailbox.wait(name, waiter)
    return waiter


def _delayed(run: Run, held: Checkpoint) -> DelayNote:
    if held.form is not Form.VALUE:
        run.unseal(held, run.services.any_shape)
    note: DelayNote = decode_note(run, held, DelayNote)
    return note


def fit(run: Run, taken: Event, shape: Shape) -> Any:
    """Return an event's payload as what the wait asks for; quarantine where it does not fit."""
    try:
        return shape.decode(taken.payload)
    except DecodeError as problem:
        error = about(f"event {taken.name!r} does not fit", problem)
        raise run.quarantine(error) from problem


def received(run: Run, held: Checkpoint, name: str, shape: Shape) -> Any:
    """Return the event that a call is recorded to have taken, or raise the recorded error."""
    if held.form is Form.ERROR:
        return run.unseal(held, shape)
    note = decode_note(run, held, EventNote)
    if note.name != name:
        raise changed(run, held.key, f"event {name!r}", f"event {note.name!r}")
    inner = Checkpoint(held.kind, held.key, held.index, held.form, bytes(note.payload))
    return run.unseal(inner, shape)


def due(run: Run, until: timedelta | datetime) -> datetime:
    """Return when a wait that begins now is over by itself; now at the earliest, if a timedelta."""
    # In UTC, since datetimes of one zone compare by what the wall shows, also where the hour
    # between summer and winter time comes twice.
    try:
        if isinstance(until, datetime):
            return until.astimezone(UTC)
        return run.services.now() + max(until, timedelta(0))
    except OverflowError:
        if isinstance(until, datetime) and until.year == 1:
            return run.services.now()
        raise InvalidArgumentError(
            f"{until} lies beyond the year 9999",
            hint="wait for an event if there is no end",
        ) from None


def recorded_wait(run: Run, key: str, index: int) -> WaitNote | None:
    """Return what an earlier run noted when the wait began, if one did."""
    held = run.journal.take(Kind.WAIT, key, index)
    return None if held is None else decode_note(run, held, WaitNote)


def described(note: WaitNote | None) -> str:
    """Name what was waited for, for a message."""
    if note is None:
        return "nothing"
    return f"event {note.name!r}" if note.name else f"a {kind_of(note).value}"


def wait_note(key: str, index: int, note: WaitNote) -> Checkpoint:
    """Return the record that a wait begins."""
    return Checkpoint(Kind.WAIT, key, index, Form.VALUE, encode(note))


def decode_note(run: Run, held: Checkpoint, type: type[Any]) -> Any:
    """Return the engine's own payload; quarantine where it is none."""
    try:
        return msgspec.json.decode(held.payload, type=type)
    except msgspec.MsgspecError as problem:
        raise run.quarantine(
            DecodeError(f"the {held.kind.value} recorded under {held.key!r}: {problem}")
        ) from problem


def changed(run: Run, key: str, now: str, before: str) -> ProcessInterrupted:
    """Set the process aside since its code waits for something else than before."""
    return run.quarantine(
        NonDeterminismError(
            f"key {key!r} is recorded as a wait for {before}; the code now asks for {now}",
            hint="give the new call a new key, or bring the old code back",
        )
    )
