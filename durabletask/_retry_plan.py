"""What a retry puts aside so that a failed process can go on, read from its history. Pure.

Only the checkpoints whose errors ended the process, or all from a named key
on. What was handled, and what succeeded, stays; what is put aside stays in the
history. Once it was decided to undo, a retry only goes on with that.
"""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec

from durabletask._culprits import read_culprits
from durabletask._errors import InvalidArgumentError, ProcessStateError
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind, Place, Snapshot, Status
from durabletask._notes import (
    RESULT,
    CallNote,
    CancelNote,
    DecisionNote,
    EventNote,
    RaceNote,
    TimeoutNote,
)

ATTEMPT_NOTES = (Kind.RETRY, Kind.HEARTBEAT, Kind.START, Kind.WAIT, Kind.OVERTAKEN)
"""What stands beside a checkpoint under its key and index, and goes with it."""

_UNDO_NOTES = (Kind.RETRY, Kind.HEARTBEAT)
_AGAIN = frozenset({Status.FAILED, Status.QUARANTINED})
"""Statuses in which a child can be retried as well."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask of the storage.

    Attributes:
        status: With which the process goes on.
        forget: Checkpoints to put aside.
        restores: Positions of the events that these had consumed.
        children: Ids of children whose failure these recorded: to be retried first.
    """

    status: Status
    forget: tuple[Place, ...] = ()
    restores: tuple[int, ...] = ()
    children: tuple[str, ...] = ()


def plan_retry(snapshot: Snapshot, from_key: str | None = None) -> Plan:
    """Return what a retry of a FAILED or QUARANTINED process puts aside.

    Raises:
        ProcessStateError: All that can be undone is undone, or `from_key` is
            given while it is undone.
        InvalidArgumentError: Nothing is recorded under `from_key`.
    """
    row = snapshot.row
    decision = next((held for held in snapshot.checkpoints if held.kind is Kind.DECISION), None)
    if decision is not None:
        if from_key is not None:
            raise ProcessStateError(
                row.process_id,
                f"process {row.process_id!r} has begun to undo its steps, and can only go on "
                f"with that, not from {from_key!r}; nothing was written",
                hint="retry() without from_key=",
            )
        return _go_on_undoing(snapshot, decision)
    if from_key is not None:
        return _plan(snapshot, _from(snapshot, from_key))
    if row.status is Status.QUARANTINED or row.ending is None:
        return Plan(Status.RUNNING)
    culprits = frozenset(read_culprits(row.ending.payload))
    swept = _since_raised(culprits, snapshot.checkpoints)
    roots = culprits | {_place(held) for held in swept if _was_left_early(held)}
    return _plan(snapshot, roots, {_place(held) for held in swept if _was_cut_off(held)})


def _from(snapshot: Snapshot, from_key: str) -> frozenset[Place]:
    """Return everything that is recorded from the first record of a key on."""
    places: list[Place] = []
    for held in snapshot.checkpoints:
        if places or held.key == from_key:
            places.append(_place(held))
    if not places:
        process_id = snapshot.row.process_id
        raise InvalidArgumentError(
            f"process {process_id!r} has recorded nothing under {from_key!r}; nothing was written",
            hint="handle.history() shows the keys",
        )
    return frozenset(places)


def _plan(
    snapshot: Snapshot, roots: frozenset[Place], cut_off: AbstractSet[Place] = frozenset()
) -> Plan:
    """Return the retry that puts aside these checkpoints with what belongs to them.

    Args:
        cut_off: Cancellations. Each goes alone: the call goes on where it was, with the due
            time, the attempts and the child that are recorded beside it.
    """
    forget = set(roots | cut_off)
    children: dict[str, None] = {}
    timeouts: set[str] = set()
    for held in snapshot.checkpoints:
        if _place(held) not in roots:
            continue
        forget.update(_beside(held.kind, held.key, held.index))
        taken = _taken(held)
        if taken is not None and taken.child is not None:
            # The call that spawned it goes too: should the child end before this process is
            # open again, only a new spawn tells of it; and one that was purged is made anew.
            forget.add(Place(Kind.CHILD, taken.key, NO_INDEX))
            if taken.again:
                children[taken.child] = None
        if held.kind is Kind.TIMEOUT:
            timeouts.add(held.key)
    forget.update(_cancelled_by(timeouts, snapshot.checkpoints))
    put_aside = [held for held in snapshot.checkpoints if _place(held) in forget]
    restores = (_restored(held, forget) for held in put_aside)
    return Plan(
        Status.RUNNING,
        tuple(_place(held) for held in put_aside),
        tuple(sorted(position for position in restores if position)),
        tuple(children),
    )


def _go_on_undoing(snapshot: Snapshot, decision: Checkpoint) -> Plan:
    note = msgspec.json.decode(decision.payload, type=DecisionNote)
    undos = {
        (held.key, held.index): held.form for held in snapshot.checkpoints if held.kind is Kind.UNDO
    }
    row = snapshot.row
    if row.status is Status.FAILED and all(undos.get(at) is Form.VALUE for at in note.undos):
        raise ProcessStateError(
            row.process_id,
            f"process {row.process_id!r} has failed and everything of it is undone; nothing was "
            "written",
            hint='spawn it anew: spawn(…, on_existing="replace")',
        )
    failed = {at for at, form in undos.items() if form is not Form.VALUE}
    kinds = (Kind.UNDO, *_UNDO_NOTES)
    forget = (
        _place(held)
        for held in snapshot.checkpoints
        if held.kind in kinds and (held.key, held.index) in failed
    )
    return Plan(Status.COMPENSATING, tuple(forget))


@dataclass(frozen=True, slots=True)
class _Taken:
    """The event that a checkpoint has consumed.

    Attributes:
        key: Of the call that spawned the child whose end it is; else empty.
        index: Of the call that waited for that.
        child: That child's id, unless it had completed.
        again: Whether it can be retried.
    """

    position: int
    key: str = ""
    index: int = NO_INDEX
    child: str | None = None
    again: bool = False


def _taken(held: Checkpoint) -> _Taken | None:
    if held.form is not Form.VALUE:
        return None
    kind, payload, key, index = held.kind, held.payload, held.key, held.index
    if kind is Kind.RACE:
        race = msgspec.json.decode(payload, type=RaceNote)
        # Of a child only the result that `spawn` gives can be raced.
        kind, payload, key, index = race.kind, bytes(race.outcome), race.path[-1], RESULT
    if kind is Kind.EVENT:
        return _Taken(msgspec.json.decode(payload, type=EventNote).position)
    if kind is Kind.CALL:
        ended = msgspec.json.decode(payload, type=CallNote)
        child = None if ended.status is Status.COMPLETED else ended.child
        return _Taken(ended.position, key, index, child, ended.status in _AGAIN)
    return None


def _restored(held: Checkpoint, forget: AbstractSet[Place]) -> int:
    """Return the position of the event that goes back into the mailbox; 0 if none does."""
    taken = _taken(held)
    if taken is None:
        return 0
    spawned_by_itself = taken.key and taken.index == NO_INDEX
    if spawned_by_itself or Place(Kind.CHILD, taken.key, NO_INDEX) in forget:
        return 0  # it is spawned again, which tells of its end again
    return taken.position


def _since_raised(
    culprits: AbstractSet[Place], checkpoints: Sequence[Checkpoint]
) -> Sequence[Checkpoint]:
    """Return what was recorded since the error was raised, as far as the history tells.

    An error of the code is recorded nowhere. What only it can have caused stands at the end,
    and putting that aside is as safe as a crash just before it.
    """
    for place, held in enumerate(checkpoints):
        if _place(held) in culprits:
            return checkpoints[place:]
    overtook = {(held.key, held.index) for held in checkpoints if held.kind is Kind.OVERTAKEN}
    start = len(checkpoints)
    while start:
        held = checkpoints[start - 1]
        is_swept = _was_left_early(held) or _was_cut_off(held)
        if not is_swept and (held.key, held.index) not in overtook:
            break
        start -= 1
    return checkpoints[start:]


def _was_left_early(held: Checkpoint) -> bool:
    """Return whether this is a durable timeout that was left before its time.

    By the error on its way out: it begins anew, with all its time, since as recorded it would
    be over and guard nothing. One opened and left behind the error only costs a record more.
    """
    if held.kind is not Kind.TIMEOUT or held.form is not Form.VALUE:
        return False
    return not msgspec.json.decode(held.payload, type=TimeoutNote).expired


def _was_cut_off(held: Checkpoint) -> bool:
    """Return whether this says that user code cancelled a call, and no durable timeout did.

    As a `TaskGroup` does to the siblings of what fails. Recalled, the call would wait for a
    cancellation that never comes again.
    """
    if held.kind is not Kind.OVERTAKEN and held.form is not Form.CANCELLED:
        return False
    return not msgspec.json.decode(held.payload, type=CancelNote).by


def _cancelled_by(keys: AbstractSet[str], checkpoints: Iterable[Checkpoint]) -> Iterator[Place]:
    """Yield what durable timeouts have cancelled, with what stands beside it."""
    for held in checkpoints if keys else ():
        was_cancelled = held.kind is Kind.OVERTAKEN or held.form is Form.CANCELLED
        if was_cancelled and msgspec.json.decode(held.payload, type=CancelNote).by in keys:
            yield _place(held)
            yield from _beside(held.kind, held.key, held.index)


def _beside(kind: Kind, key: str, index: int) -> Iterator[Place]:
    if kind not in ATTEMPT_NOTES:
        for each in ATTEMPT_NOTES:
            yield Place(each, key, index)


def _place(held: Checkpoint) -> Place:
    return Place(held.kind, held.key, held.index)
