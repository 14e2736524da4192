"""The invariants about ownership: epochs, the fence, and what a claim hands out.

Each function is one invariant; it yields what breaks it.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from durabletask._model import Kind
from durabletask.testing._history_facts import (
    Call,
    Facts,
    Fate,
    Incarnation,
    Take,
    UnitFacts,
    Violation,
)
from durabletask.testing._history_records import CloseLease, Commit, Deliver, Execute
from durabletask.testing._history_units import is_late, trace_of


def epochs_rise(facts: Facts) -> Iterator[Violation]:
    """I7: an epoch has one owner, and is above each that was taken before it was asked for."""
    for of, takes in _by_process(facts).items():
        owners: dict[int, Take] = {}
        for take in takes:
            known = owners.setdefault(take.epoch, take)
            if known.by != take.by:
                what = f"epoch {take.epoch} was given to {known.by} and to {take.by}"
                yield Violation("I7", of[0], what)
        newest = _Newest((take.ended, take.epoch) for take in takes)
        for take in takes:
            before = newest.before(take.began)
            if before > take.epoch:
                what = f"epoch {take.epoch} was given to {take.by} after epoch {before} was"
                yield Violation("I7", of[0], what)
    for claim in facts.claims:
        if claim.done is not None and len(claim.done.taken) > claim.asked.count_max:
            what = f"a claim of at most {claim.asked.count_max} took {len(claim.done.taken)}"
            yield Violation("I7", "", f"{what}: {claim.asked.claim_id}")
    for id, unit in facts.units.items():
        if any(write.kind is Kind.TRANSACTION for write in unit.asked.writes):
            continue  # its result is made anew with each attempt
        if any(_content(call.asked) != _content(unit.asked) for call in unit.calls):
            yield Violation("I7", id[0], f"unit {id[2]}.{id[3]} is the name of two units")


def _content(asked: Commit) -> tuple[object, ...]:
    """Return what a repeat must have in common with the first."""
    reach = asked.spawns, asked.sends, asked.restart, asked.meets_cancel
    return asked.writes, asked.consumes, asked.ending, reach


def no_late_write(facts: Facts) -> Iterator[Violation]:
    """I8: in the order recorded epochs never fall, nor does a unit's number in its epoch.

    Nor is a unit of an older epoch recorded, or acknowledged, after a newer one was taken: a
    claim is handed all that is older than itself. Nothing is left of the generation before a
    restart. Positions of events have no gaps, but for what a restart has dropped.
    """
    for process_id, snapshot in facts.final.items():
        last = 0, 0
        for each in snapshot.checkpoints:
            # A transaction has a place in the history and comes when it is committed.
            here = each.epoch, each.seq
            if each.kind is Kind.TRANSACTION:
                here = max(last, (each.epoch, 0)) if each.epoch >= last[0] else here
            if here < last:
                what = f"{each.kind} {each.key!r} of {each.epoch}.{each.seq} stands behind {last}"
                yield Violation("I8", process_id, what)
            last = max(last, here)
            if facts.eras.is_dropped((process_id, snapshot.row.incarnation), here):
                what = f"{each.kind} {each.key!r} of {each.epoch}.{each.seq} outlived a restart"
                yield Violation("I8", process_id, what)
        positions = [event.position for event in snapshot.events]
        expected = list(range(1, len(positions) + 1))
        if snapshot.row.generation:
            expected = sorted(set(positions))
        if positions != expected:
            yield Violation("I8", process_id, f"its events have the positions {positions}")
    for take in facts.takes:
        final = facts.of_final(take.of)
        if final is None or take.recalls is None or take.recalls < len(_told(facts, take)):
            continue  # for I21 to say
        older = sum(each.epoch < take.epoch for each in final.checkpoints)
        if older > take.recalls:
            what = f"{older} records are older than epoch {take.epoch}, which saw {take.recalls}"
            yield Violation("I8", take.of[0], what)
    newest = {
        of: _Newest((take.ended, take.epoch) for take in takes)
        for of, takes in _by_process(facts).items()
    }
    for call in facts.commits:
        asked = call.asked
        of = asked.process_id, asked.incarnation
        if call.done is None or of not in newest:
            continue
        taken = newest[of].before(call.began)
        if taken > asked.epoch:
            what = f"unit {asked.epoch}.{asked.seq} was acknowledged after epoch {taken} was taken"
            yield Violation("I8", asked.process_id, what)


def fenced_stays_fenced(facts: Facts) -> Iterator[Violation]:
    """I9: what a fenced host asks is refused, its lease too, and leaves no trace."""
    for id, unit in facts.units.items():
        if unit.fate is Fate.REFUSED and is_late(unit):
            yield from trace_of("I9", facts, id, unit)
    fenced = _fenced(facts)
    for call in facts.calls:
        # To give back what is lost already is no wrong, and its answer is always yes; nor can
        # anybody keep a step from running on, or from beginning before its host has heard.
        if isinstance(call.asked, CloseLease | Execute) or call.done is None:
            continue
        if fenced.get(call.asked.host_id, math.inf) < call.began:
            what = f"{type(call.asked).__name__} of host {call.asked.host_id!r} was done"
            yield Violation("I9", call.asked.process_id, f"{what} after it had been fenced")


def _fenced(facts: Facts) -> dict[str, float]:
    """Return from which position on each host is certainly fenced.

    A host that had a process and never let go of it has lost its lease by the
    time at which another host is told that the process is its own.
    """
    left: dict[tuple[Incarnation, int], int] = {}
    for call in facts.commits:
        asked = call.asked
        if asked.left or asked.ending:
            left.setdefault(((asked.process_id, asked.incarnation), asked.epoch), call.began)
    closed: dict[str, int] = {}
    for closing in facts.closings:
        closed.setdefault(closing.asked.host_id, closing.began)
    fenced: dict[str, float] = {}
    for of, takes in _by_process(facts).items():
        for before, after in pairwise(takes):
            if before.host_id == after.host_id or before.epoch + 1 != after.epoch:
                continue
            let_go = min(
                left.get((of, before.epoch), math.inf), closed.get(before.host_id, math.inf)
            )
            if let_go > after.ended:
                known = fenced.get(before.host_id, math.inf)
                fenced[before.host_id] = min(known, after.ended)
    return fenced


def claims_hand_out_everything(facts: Facts) -> Iterator[Violation]:
    """I21: a claim hands out what was acknowledged before it was asked for, and no stale event.

    A claim that reads before it has locked misses what was recorded in between.
    """
    arrived: dict[str, list[Call[Deliver]]] = defaultdict(list)
    for call in facts.delivers:
        arrived[call.asked.process_id].append(call)
    for take in facts.takes:
        if take.recalls is None or take.of[0] in facts.may_be_gone:
            continue
        units = [unit for _, unit in facts.units_of[take.of] if unit.fate is not Fate.REFUSED]
        places = _told(facts, take)
        if take.recalls < len(places):
            what = f"epoch {take.epoch} was handed {take.recalls} of at least {len(places)} records"
            yield Violation("I21", take.of[0], what)
        restored = facts.eras.restored(take.of)
        yield from _mailbox(take, units, arrived[take.of[0]], restored)


def _told(facts: Facts, take: Take) -> set[tuple[Kind, str, int]]:
    """Return the places of which somebody was told, before a claim was asked for."""
    return {
        (write.kind, write.key, write.index)
        for id, unit in facts.units_of[take.of]
        if unit.recorded_at < take.began
        for write in unit.asked.writes
        if not facts.eras.may_be_dropped(take.of, (id[2], id[3]))
        and not facts.eras.may_be_aside(
            take.of, (write.kind, write.key, write.index), (id[2], id[3])
        )
    }


def _mailbox(
    take: Take, units: list[UnitFacts], arrived: list[Call[Deliver]], restored: set[int]
) -> Iterator[Violation]:
    """Yield what is wrong with the mailbox that was handed out."""
    gone: set[int] = set()
    maybe_gone: set[int] = set()
    for unit in units:
        if unit.recorded_at < take.began:
            gone.update(unit.asked.consumes)
        if unit.calls[0].began < take.ended:
            maybe_gone.update(unit.asked.consumes)
    for position in gone.intersection(take.mailbox) - restored:
        what = f"epoch {take.epoch} was handed event {position}, which was consumed"
        yield Violation("I21", take.of[0], what)
    there = {
        call.done.position for call in arrived if call.done is not None and call.ended < take.began
    }
    for position in there - maybe_gone - set(take.mailbox):
        yield Violation("I21", take.of[0], f"epoch {take.epoch} was not handed event {position}")


class _Newest:
    """Which epoch was the highest taken, by position."""

    def __init__(self, taken: Iterator[tuple[float, int]]) -> None:
        self._ended: list[float] = []
        self._epochs: list[int] = []
        for ended, epoch in sorted(taken):
            self._ended.append(ended)
            self._epochs.append(max(epoch, self._epochs[-1] if self._epochs else 0))

    def before(self, position: int) -> int:
        """Return the highest epoch of which somebody was told before a position; 0 for none."""
        count = bisect_left(self._ended, position)
        return self._epochs[count - 1] if count else 0


def _by_process(facts: Facts) -> dict[Incarnation, list[Take]]:
    """Return the takes of each process, by epoch."""
    takes: dict[Incarnation, list[Take]] = defaultdict(list)
    for take in sorted(facts.takes, key=lambda each: (each.epoch, each.ended)):
        takes[take.of].append(take)
    return takes
