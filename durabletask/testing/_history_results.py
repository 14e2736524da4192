"""The invariants about what was recorded, and how often steps ran for it.

Each function is one invariant; it yields what breaks it. Sources: Jepsen's
total-queue and Elle's list-append (Kingsbury and Alvaro 2020); a process is one
list with a total order, so no graph has to be searched.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from durabletask._model import Form, Kind, ProcessRow
from durabletask._transitions import FINISHED
from durabletask.testing._history_eras import At
from durabletask.testing._history_facts import (
    Call,
    Facts,
    Fate,
    Incarnation,
    Place,
    UnitId,
    Violation,
)
from durabletask.testing._history_records import (
    Commit,
    Execute,
    Write,
    creation_digest,
    digest,
    ending_text,
)

OWN_KEYS = frozenset(
    {
        Kind.WAIT,
        Kind.RETRY,
        Kind.OVERTAKEN,
        Kind.START,
        Kind.UNDO,
        Kind.DECISION,
        Kind.REPORT,
        Kind.HEARTBEAT,
    }
)
"""The engine's own records; all other kinds share one space of keys."""

Step = tuple[str, int, str, int]
"""(process_id, incarnation, key, index)"""


def acknowledged_is_kept(facts: Facts) -> Iterator[Violation]:
    """I1: what was acknowledged is there at the end, as it was acknowledged."""
    for call in facts.creates:
        done = call.done
        if done is None or done.process_id in facts.may_be_gone:
            continue
        if facts.of_final((done.process_id, done.incarnation)) is None:
            yield Violation("I1", done.process_id, f"incarnation {done.incarnation} is lost")
    for id, unit in facts.units.items():
        if unit.fate is Fate.RECORDED:
            yield from _lost(facts, id, unit.asked.writes, unit.asked.ending)
        for each in unit.calls:
            if each.done is not None and each.done.held:
                yield from _lost(facts, id, each.done.held, "")


def _lost(facts: Facts, id: UnitId, writes: tuple[Write, ...], ending: str) -> Iterator[Violation]:
    process_id, incarnation, epoch, seq = id
    of = process_id, incarnation
    final = facts.of_final(of)
    if final is None:
        if process_id not in facts.may_be_gone:
            yield Violation("I1", process_id, f"unit {epoch}.{seq} is lost with its process")
        return
    for write in writes:
        at = (write.epoch, write.seq) if write.epoch else (epoch, seq)
        if facts.eras.may_be_dropped(of, at) or _is_aside(facts, of, write, at):
            continue
        what = f"{write.kind} {write.key!r}[{write.index}] of unit {epoch}.{seq}"
        found = facts.held.get((process_id, incarnation, write.kind, write.key, write.index))
        if found is None:
            yield Violation("I1", process_id, f"{what} is lost")
        elif write.replaces:
            if (found[1].epoch, found[1].seq) < at:
                yield Violation("I1", process_id, f"{what} is lost: an older one is there")
        elif digest(found[1].payload, found[1].form) != write.digest:
            yield Violation("I1", process_id, f"{what} has changed")
    finished = ending.partition(":")[0] in FINISHED
    if facts.eras.retries.get(of):
        return  # which has no ending any more, or a later one
    if finished and ending_text(final.row.ending) != ending:
        yield Violation("I1", process_id, f"the ending {ending} is lost")


def _is_aside(facts: Facts, of: Incarnation, write: Write, at: At) -> bool:
    """Return whether a retry has put aside this write, or what has replaced it."""
    for each in facts.aside.get((*of, write.kind, write.key, write.index), ()):
        there = each.epoch, each.seq
        if write.replaces and there >= at:
            return True
        if there == at and digest(each.payload, each.form) == write.digest:
            return True
    return False


def nothing_is_invented(facts: Facts) -> Iterator[Violation]:
    """I2: whatever is recorded was asked for, by this unit and with this value."""
    for process_id, snapshot in facts.final.items():
        row = snapshot.row
        for each in (*snapshot.checkpoints, *snapshot.forgotten):
            unit = facts.units.get((process_id, row.incarnation, each.epoch, each.seq))
            named = digest(each.payload, each.form)
            calls = () if unit is None else unit.calls
            if not any(
                (write.kind, write.key, write.index, write.digest)
                == (each.kind, each.key, each.index, named)
                for call in calls
                for write in call.asked.writes
            ):
                what = f"{each.kind} {each.key!r} of {each.epoch}.{each.seq} was never asked for"
                yield Violation("I2", process_id, what)
    for process_id, snapshot in facts.final.items():
        yield from _unasked(facts, process_id, snapshot.row)


def _unasked(facts: Facts, process_id: str, row: ProcessRow) -> Iterator[Violation]:
    """Yield what the row of a process shows that nobody has asked for."""
    made = creation_digest(row.name, row.input)
    named = {call.asked.digest for call in facts.created.get((process_id, row.creation_id), ())}
    named |= {child.digest for _, child in facts.spawned.get((process_id, row.creation_id), ())}
    if made not in named and not (row.generation and named):
        yield Violation("I2", process_id, f"creation {row.creation_id!r} was never asked for")
    units = [unit.asked for _, unit in facts.units_of.get((process_id, row.incarnation), ())]
    restarts = {asked.restart for asked in units if asked.restart}
    if row.generation and digest(row.input) not in restarts:
        yield Violation("I2", process_id, "it has restarted with what nobody has given it")
    ending = ending_text(row.ending)
    above = facts.above(process_id)
    asked_for = {asked.ending for asked in units}
    asked_for |= {call.asked.ending for each in above for call in facts.requests_of.get(each, ())}
    # Of a line that has a gap nobody can say who was asked.
    if ending and ending not in asked_for and above <= facts.final.keys():
        yield Violation("I2", process_id, f"the ending {ending} was never asked for")


def one_result(facts: Facts) -> Iterator[Violation]:
    """I3: one record under a key, for good, and everybody was told the same; user code too."""
    for process_id, snapshot in facts.final.items():
        places = Counter((each.kind, each.key, each.index) for each in snapshot.checkpoints)
        yield from (
            Violation("I3", process_id, f"{place} is recorded {count} times")
            for place, count in places.items()
            if count > 1
        )
        kinds: dict[tuple[str, int], Kind] = {}
        for each in snapshot.checkpoints:
            if each.kind in OWN_KEYS:
                continue
            known = kinds.setdefault((each.key, each.index), each.kind)
            if known is not each.kind:
                what = f"{each.key!r} is recorded as {known} and as {each.kind}"
                yield Violation("I3", process_id, what)
    told: dict[tuple[Place, int], str] = {}
    for place, named, _, at in _acknowledged(facts):
        era = facts.eras.number(place[:2], place[2:], at)
        if era is not None and told.setdefault((place, era), named) != named:
            yield Violation("I3", place[0], f"{place[2:]} was acknowledged with two values")
    seen: dict[str, str] = {}
    retried = {process_id for process_id, _ in facts.eras.retries}
    for call in facts.sights:
        if call.asked.process_id in retried:
            continue  # it may have forgotten what it was given
        if seen.setdefault(call.asked.place, call.asked.digest) != call.asked.digest:
            what = f"user code was given two values under {call.asked.place!r}"
            yield Violation("I3", call.asked.process_id, what)


def _acknowledged(facts: Facts) -> Iterator[tuple[Place, str, Call[Commit], At]]:
    """Yield what each answer said to be recorded first under a place, and by which unit."""
    for (process_id, incarnation, epoch, seq), unit in facts.units.items():
        for call in unit.calls:
            if call.done is None:
                continue
            for write in call.done.held or unit.firsts():
                place = process_id, incarnation, write.kind, write.key, write.index
                at = (write.epoch, write.seq) if write.epoch else (epoch, seq)
                yield place, write.digest, call, at


def results_have_a_cause(facts: Facts) -> Iterator[Violation]:
    """I4: the result of a step was recorded by an epoch that ran it, and after it began to."""
    began: dict[tuple[Step, int], int] = {}
    for call in facts.executions:
        began.setdefault((_step(call.asked), call.asked.epoch), call.began)
    for (process_id, incarnation, kind, key, index), (_, held) in facts.held.items():
        if kind is not Kind.DO or held.form is not Form.VALUE:
            continue
        ran_at = began.get(((process_id, incarnation, key, index), held.epoch))
        unit = facts.units.get((process_id, incarnation, held.epoch, held.seq))
        if ran_at is None:
            yield Violation(
                "I4", process_id, f"{key!r} has a result of epoch {held.epoch}, which never ran it"
            )
        elif unit is not None and unit.calls[0].began < ran_at:
            yield Violation("I4", process_id, f"{key!r} was recorded before it ran")


def _step(asked: Execute) -> Step:
    return asked.process_id, asked.incarnation, asked.key, asked.index


def recorded_is_not_run_again(facts: Facts) -> Iterator[Violation]:
    """I5: no step, and no failed attempt, runs after an epoch not newer was told it is recorded."""
    told: dict[Step, list[_Told]] = defaultdict(list)
    for (process_id, incarnation, epoch, seq), unit in facts.units.items():
        for call in unit.calls:
            if call.done is None:
                continue
            for write in call.done.held or unit.asked.writes:
                step = process_id, incarnation, write.key, write.index
                at = (write.epoch, write.seq) if write.epoch else (epoch, seq)
                if write.kind in (Kind.DO, Kind.GET, Kind.TRANSACTION):
                    told[step].append(_Told(call.ended, epoch, math.inf, write.kind, at))
                elif write.kind is Kind.RETRY:
                    told[step].append(_Told(call.ended, epoch, write.attempts, write.kind, at))
    for run in facts.executions:
        for each in told.get(_step(run.asked), ()):
            if _is_again(facts, run, each):
                yield Violation(
                    "I5",
                    run.asked.process_id,
                    f"attempt {run.asked.attempt} of {run.asked.key!r} ran in epoch "
                    f"{run.asked.epoch} after epoch {each.epoch} was told that it is recorded",
                )
                break


class _Told(NamedTuple):
    """An epoch was told that so many attempts of a step are recorded, and by which unit."""

    ended: float
    epoch: int
    attempts: float
    kind: Kind
    at: At


def _is_again(facts: Facts, run: Call[Execute], told: _Told) -> bool:
    asked = run.asked
    if not (told.ended < run.began and told.epoch <= asked.epoch):
        return False
    if asked.attempt > told.attempts:
        return False
    of = asked.process_id, asked.incarnation
    if facts.eras.generation_min(of, told.at) < asked.generation:
        return False  # that was another generation
    slot = told.kind, asked.key, asked.index
    return not any(
        slot in call.asked.forgets and told.at[0] <= call.asked.epoch < asked.epoch
        for call in facts.eras.retries.get(of, {}).values()
    )


def effects_are_bounded(facts: Facts) -> Iterator[Violation]:
    """I6: an attempt runs once in an epoch, and so often in all as the process had owners."""
    runs = Counter(
        (_step(call.asked), call.asked.generation, call.asked.attempt, call.asked.epoch)
        for call in facts.executions
    )
    for (step, _, attempt, epoch), count in runs.items():
        if count > 1:
            what = f"attempt {attempt} of {step[2]!r} ran {count} times in epoch {epoch}"
            yield Violation("I6", step[0], what)
    totals = Counter((step, generation, at) for step, generation, at, _ in runs.elements())
    for (step, _, attempt), count in totals.items():
        final = facts.of_final(step[:2])
        if final is not None and count > final.row.epoch:
            what = f"attempt {attempt} of {step[2]!r} ran {count} times in {final.row.epoch} epochs"
            yield Violation("I6", step[0], what)


def program_order(facts: Facts) -> Iterator[Violation]:
    """I10: what a process was told before it began a step stands before that step's result."""
    told: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
    for place, _, call, at in _acknowledged(facts):
        if place in facts.held and (facts.held[place][1].epoch, facts.held[place][1].seq) == at:
            told[place[:2]].append((call.ended, facts.held[place][0]))
    for run in facts.executions:
        process_id, incarnation, key, index = _step(run.asked)
        found = facts.held.get((process_id, incarnation, Kind.DO, key, index))
        # Not what an owner of another epoch runs: it knows nothing of the winner's order.
        if found is None or found[1].epoch != run.asked.epoch:
            continue
        before = [at for ended, at in told[process_id, incarnation] if ended < run.began]
        if max(before, default=-1) > found[0]:
            yield Violation("I10", process_id, f"{key!r} is recorded before what it came after")
