"""Waits: a delay, an event. They begin with a record and end with one."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import msgspec

from durabletask._codec import Shape
from durabletask._errors import (
    DecodeError,
    EventTimeoutError,
    InvalidArgumentError,
    NonDeterminismError,
    ProcessInterrupted,
)
from durabletask._model import NO_INDEX, Checkpoint, Event, Form, Kind
from durabletask._notes import DelayNote, EventNote, WaitNote, encode
from durabletask._run import Run


async def delay(run: Run, key: str, until: timedelta | datetime) -> DelayNote:
    """Wait until the recorded due time; see `Process.delay`."""
    if run.gated:
        await run.pass_gate(Kind.DELAY, key)
    held = run.ask(Kind.DELAY, key)
    if held is not None:
        if held.form is Form.CANCELLED:
            await run.relive_cancel(held)
        return _delayed(run, held)
    begun_s = run.services.monotonic_s()
    recorded = _recorded_wait(run, key, NO_INDEX)
    due_at = recorded.due_at if recorded else _due(run, until)
    if due_at is None:
        raise _changed(run, key, "delay")
    late = recorded is not None and due_at < run.begun_at
    if due_at > run.services.now():
        note = None if recorded else _wait_note(key, NO_INDEX, WaitNote(due_at=due_at))
        try:
            await run.hold(due_at, run.services.timers.at(due_at), note)
        except ProcessInterrupted:
            raise
        except asyncio.CancelledError:
            await run.record_cancelled(Kind.DELAY, key, NO_INDEX, begun_s)
            raise
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
        if held.form is Form.CANCELLED:
            await run.relive_cancel(held)
        return _received(run, held, name, shape)
    begun_s = run.services.monotonic_s()
    recorded = _recorded_wait(run, key, index)
    if recorded is not None and recorded.name != name:
        raise _changed(run, key, f"event {name!r}", f"event {recorded.name!r}")
    due_at = recorded.due_at if recorded else (None if timeout is None else _due(run, timeout))
    taken = run.mailbox.take(name)
    if taken is None and (due_at is None or due_at > run.services.now()):
        note = None if recorded else _wait_note(key, index, WaitNote(name=name, due_at=due_at))
        taken = await _next_event(run, name, key, index, due_at, note, begun_s)
    if taken is None:
        error = EventTimeoutError(f"no event {name!r} before {due_at}")
        payload = run.services.failures.encode(error)
        held = await run.record(Checkpoint(Kind.EVENT, key, index, Form.ERROR, payload))
    else:
        # Tried before it is consumed: an event that does not fit stays where it is.
        value = _fit(run, taken, shape)
        payload = encode(EventNote(name, msgspec.Raw(taken.payload)))
        checkpoint = Checkpoint(Kind.EVENT, key, index, Form.VALUE, payload)
        held = await run.record(checkpoint, consumes=(taken.position,))
        if held is checkpoint:
            return value
    return _received(run, held, name, shape)


async def _next_event(
    run: Run,
    name: str,
    key: str,
    index: int,
    due_at: datetime | None,
    note: Checkpoint | None,
    begun_s: float,
) -> Event | None:
    """Wait for an event of a name; None when the time is over first."""
    waiter: asyncio.Future[Event | None] = run.services.loop.create_future()
    timer = None
    if due_at is not None:
        timer = run.services.timers.at(due_at)
        timer.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
    run.mailbox.wait(name, waiter)
    try:
        return await run.hold(due_at, waiter, note)
    except ProcessInterrupted:
        raise
    except asyncio.CancelledError:
        run.mailbox.leave(name, waiter)
        await run.record_cancelled(Kind.EVENT, key, index, begun_s)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def _delayed(run: Run, held: Checkpoint) -> DelayNote:
    note: DelayNote = _decode(run, held, DelayNote)
    return note


def _fit(run: Run, taken: Event, shape: Shape) -> Any:
    try:
        return shape.decode(taken.payload)
    except DecodeError as problem:
        raise run.quarantine(
            DecodeError(f"event {taken.name!r} does not fit: {problem}", hint=problem.hint)
        ) from problem


def _received(run: Run, held: Checkpoint, name: str, shape: Shape) -> Any:
    if held.form is Form.ERROR:
        return run.unseal(held, shape)
    note = _decode(run, held, EventNote)
    if note.name != name:
        raise _changed(run, held.key, f"event {name!r}", f"event {note.name!r}")
    inner = Checkpoint(held.kind, held.key, held.index, held.form, bytes(note.payload))
    return run.unseal(inner, shape)


def _due(run: Run, until: timedelta | datetime) -> datetime:
    if isinstance(until, datetime):
        return until
    try:
        return run.services.now() + until
    except OverflowError:
        raise InvalidArgumentError(
            f"{until} from now is beyond the year 9999",
            hint="wait for an event if there is no end",
        ) from None


def _recorded_wait(run: Run, key: str, index: int) -> WaitNote | None:
    held = run.journal.take(Kind.WAIT, key, index)
    return None if held is None else _decode(run, held, WaitNote)


def _wait_note(key: str, index: int, note: WaitNote) -> Checkpoint:
    return Checkpoint(Kind.WAIT, key, index, Form.VALUE, encode(note))


def _decode(run: Run, held: Checkpoint, type: type[Any]) -> Any:
    try:
        return msgspec.json.decode(held.payload, type=type)
    except msgspec.MsgspecError as problem:
        raise run.quarantine(
            DecodeError(f"the {held.kind.value} recorded under {held.key!r}: {problem}")
        ) from problem


def _changed(run: Run, key: str, now: str, before: str = "something else") -> ProcessInterrupted:
    return run.quarantine(
        NonDeterminismError(
            f"key {key!r} is recorded as a wait for {before}; the code now asks for {now}",
            hint="give the new call a new key, or bring the old code back",
        )
    )
