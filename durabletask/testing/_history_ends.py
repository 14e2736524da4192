"""The invariants about how processes begin, wait and end.

Each function is one invariant; it yields what breaks it.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

import msgspec

from durabletask._model import Form, Kind, Snapshot, Status
from durabletask._notes import DelayNote, WaitNote
from durabletask._transitions import FINISHED
from durabletask.testing._history_facts import Facts, Fate, Incarnation, Violation
from durabletask.testing._history_records import Commit

ROUNDING = timedelta(microseconds=2)
"""A host reckons the storage's time from an answer and a duration, each in whole microseconds."""


def timers_are_never_early(facts: Facts) -> Iterator[Violation]:
    """I13: a due time is fixed by its first record; nothing is over before it, by any clock."""
    for process_id, snapshot in facts.final.items():
        due: dict[tuple[str, int], datetime | None] = {}
        for held in snapshot.checkpoints:
            if held.kind is Kind.WAIT:
                note = msgspec.json.decode(held.payload, type=WaitNote)
                due[held.key, held.index] = note.due_at
        for held in snapshot.checkpoints:
            if held.kind is not Kind.DELAY or held.form is not Form.VALUE:
                continue
            over = msgspec.json.decode(held.payload, type=DelayNote)
            first = due.get((held.key, held.index), over.desired_at)
            if first != over.desired_at:
                what = f"delay {held.key!r} was due {first}, then {over.desired_at}"
                yield Violation("I13", process_id, what)
            for clock, at in (("host", over.actual_at), ("storage", held.at)):
                if at is not None and at < over.desired_at - ROUNDING:
                    what = f"delay {held.key!r} was over {over.desired_at - at} early"
                    yield Violation("I13", process_id, f"{what} by the clock of the {clock}")


def one_end(facts: Facts) -> Iterator[Violation]:
    """I14: a finished process has one ending, and nothing is recorded or run after it."""
    endings: dict[Incarnation, list[tuple[Commit, float]]] = defaultdict(list)
    for id, unit in facts.units.items():
        finished = unit.asked.ending.partition(":")[0] in FINISHED
        if finished and unit.fate is Fate.RECORDED:
            endings[id[:2]].append((unit.asked, unit.recorded_at))
    for process_id, snapshot in facts.final.items():
        if (snapshot.row.status in _ENDED) != (snapshot.row.ending is not None):
            what = f"status {snapshot.row.status} with the ending {snapshot.row.ending}"
            yield Violation("I14", process_id, what)
    for of, ends in endings.items():
        retried = len(facts.eras.retries.get(of, ()))
        if len(ends) > 1 + retried:
            what = f"it has ended {len(ends)} times, and was retried {retried} times"
            yield Violation("I14", of[0], what)
        if retried:
            continue  # what was recorded and run after an end may be of the time after a retry
        end, told_at = ends[0]
        last = end.epoch, end.seq
        for held in _checkpoints(facts.of_final(of)):
            if held > last:
                yield Violation("I14", of[0], f"unit {held} is recorded after the end, {last}")
        for call in facts.executions:
            asked = call.asked
            if (asked.process_id, asked.incarnation) != of or call.began < told_at:
                continue
            if asked.epoch >= end.epoch:
                yield Violation("I14", of[0], f"{asked.key!r} ran after the end")


def terminated_for_good(facts: Facts) -> Iterator[Violation]:
    """I14: what was terminated stays so, and nothing is recorded after the answer that said so."""
    over: dict[Incarnation, float] = {}
    for call in facts.requests:
        if call.done is not None and call.done.status is Status.TERMINATED:
            of = call.asked.process_id, call.done.incarnation
            over[of] = min(over.get(of, math.inf), call.ended)
    for of in over:
        final = facts.of_final(of)
        if final is not None and final.row.status is not Status.TERMINATED:
            yield Violation("I14", of[0], f"it was terminated, and is {final.row.status}")
    for id, unit in facts.units.items():
        asked = unit.asked
        # To let go of it is all that its host may do, and no record.
        writes = asked.writes or asked.consumes or asked.ending or asked.spawns or asked.sends
        late = unit.calls[0].began > over.get(id[:2], math.inf)
        if late and unit.fate is Fate.RECORDED and (writes or asked.restart):
            what = f"unit {id[2]}.{id[3]} was recorded after it had been terminated"
            yield Violation("I14", id[0], what)


_ENDED = FINISHED | {Status.QUARANTINED}


def _checkpoints(final: Snapshot | None) -> Iterator[tuple[int, int]]:
    return ((each.epoch, each.seq) for each in final.checkpoints) if final else iter(())


def one_creation(facts: Facts) -> Iterator[Violation]:
    """I15: one creation makes an incarnation, and everybody who asks is shown the same process."""
    shown: dict[Incarnation, tuple[str, str]] = {}
    for call in facts.creates:
        done = call.done
        if done is None:
            continue
        of = done.process_id, done.incarnation
        made = done.creation_id, done.digest
        if done.digest and shown.setdefault(of, made) != made:
            yield Violation("I15", of[0], f"incarnation {of[1]} is of {shown[of]} and of {made}")
        if done.fresh != (done.creation_id == call.asked.creation_id):
            what = f"creation {call.asked.creation_id!r} was told that it was {done.creation_id!r}"
            yield Violation("I15", of[0], what)
        if done.process_id != call.asked.process_id:
            yield Violation("I15", call.asked.process_id, f"was answered with {of[0]!r}")


def everything_ends(facts: Facts, expected: Collection[str]) -> Iterator[Violation]:
    """I16: once the faults are over, each process that can end ends."""
    for process_id in expected:
        final = facts.final.get(process_id)
        if final is None:
            yield Violation("I16", process_id, "it does not exist")
        elif final.row.status not in FINISHED:
            row = final.row
            what = f"it is {row.status} in epoch {row.epoch}, owner {row.owner}, and has not ended"
            yield Violation("I16", process_id, what)
