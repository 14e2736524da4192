"""The invariants about units: wholly there or not at all, and never where they were refused.

Each function is one invariant; it yields what breaks it.
"""

from collections.abc import Iterator

from durabletask._transitions import FINISHED
from durabletask.testing._history_eras import Slot
from durabletask.testing._history_facts import Facts, Fate, UnitFacts, UnitId, Violation
from durabletask.testing._history_records import Commit, Write, ending_text


def refused_leaves_no_trace(facts: Facts) -> Iterator[Violation]:
    """I22: what was certainly not done is not there; nothing of it is."""
    for id, unit in facts.units.items():
        if unit.fate is Fate.REFUSED and not is_late(unit):
            yield from trace_of("I22", facts, id, unit)
    for process_id, snapshot in facts.final.items():
        name = process_id, snapshot.row.creation_id
        made = [] if name in facts.spawned else facts.created.get(name, [])
        if made and all(call.refused for call in made):
            yield Violation("I22", process_id, "its creation was refused, and it exists")
        sent: dict[str, bool] = {}
        for delivery in facts.delivers:
            if delivery.asked.process_id == process_id:
                event_id = delivery.asked.event_id
                sent[event_id] = sent.get(event_id, True) and delivery.refused
        for event in snapshot.events:
            if sent.get(event.event_id, False) and (process_id, event.event_id) not in facts.sent:
                what = f"event {event.event_id!r} was refused, and is in the mailbox"
                yield Violation("I22", process_id, what)


def is_late(unit: UnitFacts) -> bool:
    """Return whether a unit was refused because its host, or its epoch, is past."""
    return any(
        call.answer is not None
        and (call.answer.why.startswith(("LeaseLostError", "process belongs to another")))
        for call in unit.calls
    )


def trace_of(code: str, facts: Facts, id: UnitId, unit: UnitFacts) -> Iterator[Violation]:
    """Yield what is there of a unit of which nothing may be."""
    for write in unit.asked.writes:
        if facts.present(id, write):
            what = f"{write.kind} {write.key!r} of {id[2]}.{id[3]} was refused, and is recorded"
            yield Violation(code, id[0], what)
    final = facts.of_final(id[:2])
    ending = unit.asked.ending
    if final is None or not ending or ending != ending_text(final.row.ending):
        return
    others = (each for _, each in facts.units_of[id[:2]] if each.fate is not Fate.REFUSED)
    if not any(each.asked.ending == ending for each in others):
        yield Violation(code, id[0], f"the ending {ending} was refused, and is recorded")


def units_are_whole(facts: Facts) -> Iterator[Violation]:
    """I23: of one unit everything is there, or nothing is."""
    for id, unit in facts.units.items():
        firsts = list(unit.firsts())
        final = facts.of_final(id[:2])
        if final is None or not firsts or facts.eras.may_be_dropped(id[:2], id[2:]):
            continue
        there = [facts.present(id, write) for write in firsts]
        if any(there) and not all(there):
            yield Violation("I23", id[0], f"only a part of unit {id[2]}.{id[3]} is recorded")
        elif any(there):
            yield from _missing(facts, id, unit.asked)


def _slot(write: Write) -> Slot:
    return write.kind, write.key, write.index


def _missing(facts: Facts, id: UnitId, asked: Commit) -> Iterator[Violation]:
    process_id, incarnation, epoch, seq = id
    final = facts.final[process_id]
    unit = f"unit {epoch}.{seq} is recorded"
    consumed = {event.position for event in final.events if event.consumed}
    restored = facts.eras.restored((process_id, incarnation))
    for position in set(asked.consumes) - consumed - restored:
        yield Violation("I23", process_id, f"{unit}, and event {position} is in the mailbox still")
    for write in asked.writes:
        found = facts.held.get((process_id, incarnation, write.kind, write.key, write.index))
        newest = max(
            ((each.epoch, each.seq) for each in facts.aside.get((*id[:2], *_slot(write)), ())),
            default=(0, 0),
        )
        if found is not None:
            newest = max(newest, (found[1].epoch, found[1].seq))
        if write.replaces and newest < (epoch, seq):
            yield Violation("I23", process_id, f"{unit}, and its {write.kind} {write.key!r} is not")
    if facts.eras.retries.get(id[:2]):
        return
    if asked.ending.partition(":")[0] in FINISHED and final.row.ending is None:
        yield Violation("I23", process_id, f"{unit}, and its ending is not")
