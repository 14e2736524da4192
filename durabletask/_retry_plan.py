"""What a retry puts aside so that a failed process can go on, read from its history. Pure.

Only the checkpoints whose errors ended the process, or all from a named key
on. What was handled, and what succeeded, stays; what is put aside stays in the
history. Once it was decided to undo, a retry only goes on with that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from durabletask._culprits import read_culprits
from durabletask._errors import InvalidArgumentError, ProcessStateError
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind, Place, Snapshot, Status
from durabletask._notes import CallNote, CancelNote, DecisionNote, EventNote, RaceNote

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
    return _plan(snapshot, frozenset(read_culprits(row.ending.payload)))


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


def _plan(snapshot: Snapshot, roots: frozenset[Place]) -> Plan:
    forget = set(roots)
    children: dict[str, None] = {}
    for held in snapshot.checkpoints:
        if _place(held) not in roots:
            continue
        forget.update(_beside(held.kind, held.key, held.index))
        for key, ended in _ended_children(held):
            if ended.status in _AGAIN:
                children[ended.child] = None
                # The call that spawned it goes too: should the child end before this process is
                # open again, only a new spawn tells of it.
                forget.add(Place(Kind.CHILD, key, NO_INDEX))
                forget.update(_beside(Kind.CHILD, key, NO_INDEX))
        if held.kind is Kind.TIMEOUT:
            forget.update(_cancelled_by(held.key, snapshot.checkpoints))
    there = {_place(held) for held in snapshot.checkpoints}
    told_again = {place.key for place in forget if place.kind is Kind.CHILD}
    told_again |= {place.key for place in forget if place[:1] == (Kind.WAIT,)} if False else set()
    restores = {
        position
        for held in snapshot.checkpoints
        if _place(held) in forget
        for position in _consumed(held, forget)
    }
    return Plan(
        Status.RUNNING,
        tuple(_place(held) for held in snapshot.checkpoints if _place(held) in forget & there),
        tuple(sorted(restores)),
        tuple(children),
    )
