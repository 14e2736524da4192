"""What can be seen of a process from outside. Pure: rows and histories in, plain records out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from durabletask._codec import Shape
from durabletask._control import terminated, text_of
from durabletask._errors import DecodeError, ProcessTerminatedError
from durabletask._failure import Failures
from durabletask._model import (
    NO_INDEX,
    Checkpoint,
    Event,
    Form,
    Kind,
    ProcessRow,
    Snapshot,
    Status,
)
from durabletask._notes import (
    CallNote,
    CancelNote,
    DecisionNote,
    EventNote,
    ReportNote,
    RetryNote,
    WaitNote,
)


@dataclass(frozen=True, slots=True)
class WaitInfo:
    """What a process waits for.

    Attributes:
        kind: "event", "delay", "race", "call" (a child) or "retry"; "timeout" for an open
            `proc.timeout`.
        key: Of the durable call.
        name: Of the event, or the id of the child; else None.
        due_at: When the wait is over by itself, if ever.
        branches: What a race waits for, in order; of nested races what is in them.
        attempts: Of a "retry": how many have failed.
    """

    kind: str
    key: str
    index: int
    name: str | None
    due_at: datetime | None
    branches: tuple["WaitInfo", ...] = ()
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class CompensationInfo:
    """How far the steps of a process are undone, by their keys, the latest step first.

    Attributes:
        done: Undone.
        failed: Undos that failed for good, with the error.
        open: Not undone: not yet, or because the code does not ask for the
            step any more or gives it no undo any more.
    """

    done: tuple[str, ...] = ()
    failed: dict[str, Exception] = field(default_factory=dict)
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process.

    Attributes:
        epoch: How often hosts have taken it, a retry counted too.
        updated_at: When it was last recorded how it stands, or something was asked of it.
        start_at, deadline_at: As given to `spawn`.
        parent: Id of the process that spawned it, or None.
        deaths: How many hosts in a row have died with it, nothing being recorded in between.
        cancel_requested: Whether somebody has asked it to cancel itself, or its deadline has.
        cancel_met: Whether it has met that, by an error in its function.
        cancel_reason: What was said with it, or None.
        suspend_reason: What was said with the suspension; None unless it is suspended.
        result: What the function returned, or the output of what was terminated, as plain
            JSON values; else None.
        error: What ended or quarantined it, or None.
        waits: Only from `handle.info()`; a listing leaves it empty.
        progress: What `proc.report` told last, as plain JSON values; None if nothing, and
            in a listing.
        compensation: What `undo=` has come to, once it was decided to undo; None before, and
            in a listing.
        host: What the host that holds it calls itself, or None.
        reason: Why it does not run although it could, or None.
    """

    id: str
    name: str
    status: Status
    incarnation: int
    generation: int
    epoch: int
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None
    wake_at: datetime | None
    tags: dict[str, str]
    host: str | None
    result: Any = None
    error: Exception | None = None
    waits: tuple[WaitInfo, ...] = ()
    reason: str | None = None
    compensation: CompensationInfo | None = None
    progress: Any = None
    start_at: datetime | None = None
    deadline_at: datetime | None = None
    parent: str | None = None
    deaths: int = 0
    cancel_requested: bool = False
    cancel_met: bool = False
    cancel_reason: str | None = None
    suspend_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessPage:
    """A part of a listing.

    Attributes:
        cursor: For the next page, with the same filter; None on the last one.
    """

    processes: tuple[ProcessInfo, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of a process's history.

    Attributes:
        kind: A kind of durable call; "wait" where a wait began, "retry" for the
            failed attempts of a step so far, "raised" where an event arrived,
            "decision" where it was decided to undo (the error, and the keys of
            the steps to undo), "undo" where that was done to the step of the key.
        form: "value", "error" or "cancelled".
        value: As plain JSON values; None for an error. Of a "decision" the keys to undo.
        error: The recorded error, or None.
        attempts: Of a "retry": how many have failed.
        at: When it was recorded.
        epoch: The ownership in which it was recorded; 0 for an event.
        forgotten: Whether a retry has put it aside, so that the process does not recall it.
    """

    kind: str
    key: str
    index: int
    form: str
    value: Any
    error: Exception | None
    at: datetime
    epoch: int
    attempts: int = 0
    errors: tuple[Exception, ...] = field(default=())
    forgotten: bool = False


class Reader:
    """Turns stored records into what a caller sees."""

    def __init__(self, view: Shape, failures: Failures) -> None:
        self._view = view
        self._failures = failures

    def info(self, row: ProcessRow, known: Iterable[str], snapshot: Snapshot | None) -> ProcessInfo:
        """Describe a process; `known` are the names of the functions at hand."""
        ending = row.ending
        error = self._error(row)
        return ProcessInfo(
            id=row.process_id,
            name=row.name,
            status=row.status,
            incarnation=row.incarnation,
            generation=row.generation,
            epoch=row.epoch,
            created_at=row.created_at,
            started_at=row.started_at,
            updated_at=row.updated_at,
            finished_at=row.finished_at,
            wake_at=row.wake_at,
            tags=dict(row.tags),
            host=row.owner_label,
            result=self._result(row, error),
            error=error,
            waits=() if snapshot is None or ending else tuple(open_waits(snapshot.checkpoints)),
            reason=_why_it_rests(row, known),
            compensation=None if snapshot is None else self._compensation(snapshot),
            progress=None if snapshot is None else self._progress(snapshot),
            start_at=row.start_at,
            deadline_at=row.deadline_at,
            parent=None if row.parent is None else row.parent.process_id,
            deaths=row.deaths,
            cancel_requested=row.cancel_reason is not None,
            cancel_met=row.cancel_met,
            cancel_reason=text_of(row.cancel_reason),
            suspend_reason=text_of(row.suspend_reason),
        )

    def _progress(self, snapshot: Snapshot) -> Any:
        for held in snapshot.checkpoints:
            if held.kind is Kind.REPORT:
                return self._reported(held)
        return None

    def _reported(self, held: Checkpoint) -> Any:
        return self._plain(bytes(msgspec.json.decode(held.payload, type=ReportNote).value))

    def _compensation(self, snapshot: Snapshot) -> CompensationInfo | None:
        decision: DecisionNote | None = None
        outcomes: dict[tuple[str, int], Checkpoint] = {}
        for held in snapshot.checkpoints:
            if held.kind is Kind.DECISION:
                decision = msgspec.json.decode(held.payload, type=DecisionNote)
            elif held.kind is Kind.UNDO:
                outcomes[held.key, held.index] = held
        if decision is None:
            return None
        done: list[str] = []
        still_open: list[str] = []
        failed: dict[str, Exception] = {}
        for spot in decision.undos:
            held_of = outcomes.get(spot)
            if held_of is None:
                still_open.append(spot[0])
            elif held_of.form is Form.VALUE:
                done.append(spot[0])
            else:
                failed[spot[0]] = self._failures.view(held_of.payload)
        return CompensationInfo(tuple(done), failed, tuple(still_open))

    def history(self, snapshot: Snapshot) -> list[HistoryEntry]:
        """Describe a history, checkpoints and events in the order they were recorded."""
        # Events first: one that is taken in the instant of its arrival was raised before.
        entries = [self._event(event) for event in snapshot.events]
        entries += [self._checkpoint(held, forgotten=True) for held in snapshot.forgotten]
        entries += [self._checkpoint(held) for held in snapshot.checkpoints]
        entries.sort(key=lambda entry: entry.at)
        return entries

    def _checkpoint(self, held: Checkpoint, *, forgotten: bool = False) -> HistoryEntry:
        value: Any = None
        error: Exception | None = None
        errors: tuple[Exception, ...] = ()
        attempts = 0
        if held.form is Form.ERROR:
            error = self._failures.view(held.payload)
        elif held.form is Form.CANCELLED:
            value = msgspec.json.decode(held.payload, type=CancelNote).after_s
        elif held.kind is Kind.RETRY:
            note = msgspec.json.decode(held.payload, type=RetryNote)
            attempts = note.attempts
            errors = tuple(self._failures.view(bytes(raw)) for raw in note.errors)
        elif held.kind is Kind.DECISION:
            decision = msgspec.json.decode(held.payload, type=DecisionNote)
            error = self._failures.view(bytes(decision.error))
            value = [key for key, _ in decision.undos]
        elif held.kind is Kind.REPORT:
            value = self._reported(held)
        elif held.kind is Kind.CALL:
            ended = msgspec.json.decode(held.payload, type=CallNote)
            is_value = ended.status in (Status.COMPLETED, Status.TERMINATED)
            value = self._plain(bytes(ended.payload)) if is_value else None
            error = None if is_value else self._failures.view(bytes(ended.payload))
        elif held.kind is Kind.EVENT:
            value = self._plain(bytes(msgspec.json.decode(held.payload, type=EventNote).payload))
        else:
            value = self._plain(held.payload)
        if held.at is None:
            raise DecodeError(f"the record under {held.key!r} has no time")
        return HistoryEntry(
            held.kind.value, held.key, held.index, held.form.value, value, error, held.at,
            held.epoch, attempts, errors, forgotten,
        )  # fmt: skip

    def _event(self, event: Event) -> HistoryEntry:
        value = self._plain(event.payload)
        return HistoryEntry(
            "raised", event.name, event.position, Form.VALUE.value, value, None, event.at, 0
        )

    def _error(self, row: ProcessRow) -> Exception | None:
        ending = row.ending
        if ending is not None and ending.status is Status.TERMINATED:
            return terminated(row.process_id, ending, self._view)
        if ending is None or ending.form is not Form.ERROR:
            return None
        return self._failures.view(ending.payload)

    def _result(self, row: ProcessRow, error: Exception | None) -> Any:
        if isinstance(error, ProcessTerminatedError):
            return error.output
        ending = row.ending
        return self._plain(ending.payload) if ending and ending.form is Form.VALUE else None

    def _plain(self, payload: bytes) -> Any:
        return self._view.decode(payload)


def _why_it_rests(row: ProcessRow, known: Iterable[str]) -> str | None:
    """Return why a process does not run although it has not ended."""
    if row.ending is not None or row.owner is not None:
        return None
    if row.status is Status.SUSPENDED:
        said = text_of(row.suspend_reason)
        return f"it is suspended: {said}" if said else "it is suspended"
    if row.name not in known:
        return f"no process function named {row.name!r} is registered on this host"
    if row.start_at is not None and row.epoch == 0:
        return f"it is not to start before {row.start_at}"
    return None


_NO_OUTCOME = frozenset({Kind.VAR, Kind.REPORT, Kind.START, Kind.HEARTBEAT})
"""Kinds whose record ends no wait, whatever its key is."""


def open_waits(checkpoints: Iterable[Checkpoint]) -> Iterator[WaitInfo]:
    """Yield the waits that have begun and whose outcome is not recorded."""
    waits: dict[tuple[str, int], WaitInfo] = {}
    for held in checkpoints:
        slot = (held.key, held.index)
        if held.kind is Kind.WAIT:
            note = msgspec.json.decode(held.payload, type=WaitNote)
            kind = (note.kind or (Kind.EVENT if note.name else Kind.DELAY)).value
            branches = tuple(
                WaitInfo(each.kind.value, each.path[-1], NO_INDEX, each.name or None, each.due_at)
                for each in note.branches
            )
            name = note.name or note.child or None
            waits[slot] = WaitInfo(kind, *slot, name, note.due_at, branches)
        elif held.kind is Kind.RETRY:
            tries = msgspec.json.decode(held.payload, type=RetryNote)
            waits[slot] = WaitInfo("retry", *slot, None, tries.due_at, attempts=tries.attempts)
        elif held.kind is Kind.DECISION:
            waits.clear()  # nobody waits for them any more
        elif held.kind not in _NO_OUTCOME:
            waits.pop(slot, None)
    yield from waits.values()
