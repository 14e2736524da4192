"""The invariants about what a unit does to others: children, events, and the news of an end.

Each function is one invariant; it yields what breaks it.
"""

from collections.abc import Iterator

from durabletask._model import CHILD_ENDED, Event, ProcessRow
from durabletask._transitions import FINISHED
from durabletask.testing._history_facts import Facts, Fate, UnitFacts, UnitId, Violation
from durabletask.testing._history_records import digest, parent_text
from durabletask.testing._history_units import is_late


def reach_is_whole(facts: Facts) -> Iterator[Violation]:
    """I23: with a unit its children are there and its events are sent, all of them."""
    for id, unit in facts.units.items():
        there = any(facts.present(id, write) for write in unit.firsts())
        if there or unit.fate is Fate.RECORDED:
            yield from _not_reached(facts, id, unit)


def _not_reached(facts: Facts, id: UnitId, unit: UnitFacts) -> Iterator[Violation]:
    what = f"unit {id[2]}.{id[3]} is recorded"
    for child in unit.asked.spawns:
        found = facts.final.get(child.process_id)
        if child.process_id in facts.may_be_gone:
            continue
        if found is None or parent_text(found.row.parent) != child.parent:
            yield Violation("I23", id[0], f"{what}, and its child {child.process_id!r} is not")
    for event in unit.asked.sends:
        receiver = facts.final.get(event.process_id)
        if event.process_id in facts.may_be_gone:
            continue
        if receiver is not None and facts.eras.restarts.get(
            (event.process_id, receiver.row.incarnation)
        ):
            continue  # it may have been consumed, and dropped by the restart
        if receiver is None or all(each.event_id != event.event_id for each in receiver.events):
            where = f"its event {event.event_id!r} to {event.process_id!r}"
            yield Violation("I23", id[0], f"{what}, and {where} is not")


def refused_reaches_nobody(facts: Facts) -> Iterator[Violation]:
    """I22: of a refused unit no child is there and no event is sent; of a late one neither (I9)."""
    for id, unit in facts.units.items():
        if unit.fate is Fate.REFUSED:
            yield from _reached(facts, id, unit)


def _reached(facts: Facts, id: UnitId, unit: UnitFacts) -> Iterator[Violation]:
    code = "I9" if is_late(unit) else "I22"
    what = f"unit {id[2]}.{id[3]} was refused"
    for child in unit.asked.spawns:
        found = facts.final.get(child.process_id)
        if found is None or found.row.creation_id != child.creation_id:
            continue
        others = [each for each, _ in facts.spawned[child.process_id, child.creation_id]]
        if all(each.fate is Fate.REFUSED for each in others):
            yield Violation(code, id[0], f"{what}, and its child {child.process_id!r} is there")
    for event in unit.asked.sends:
        name = event.process_id, event.event_id
        receiver = facts.final.get(event.process_id)
        if receiver is None or all(each.event_id != event.event_id for each in receiver.events):
            continue
        if name not in facts.raised and all(
            each.fate is Fate.REFUSED for each, _ in facts.sent[name]
        ):
            yield Violation(code, id[0], f"{what}, and its event {event.event_id!r} is sent")


def ends_are_told(facts: Facts) -> Iterator[Violation]:
    """I11: a parent hears of the end of each of its children, as it was, and of no other."""
    # One a call; but a storage takes whatever parent a client names.
    children: dict[str, list[ProcessRow]] = {}
    for each in facts.final.values():
        if each.row.parent:
            children.setdefault(parent_text(each.row.parent), []).append(each.row)
    spawned = {child.parent for each in facts.spawned.values() for _, child in each}
    for process_id, snapshot in facts.final.items():
        for event in snapshot.events:
            if not event.name.startswith(CHILD_ENDED):
                continue
            call = _call_of(snapshot.row, event)
            found = children.get(call)
            if found is None:
                if call not in spawned and not facts.may_be_gone:
                    what = f"event {event.event_id!r} is the end of what nobody spawned"
                    yield Violation("I11", process_id, what)
            elif not any(_is_end_of(facts, child, event) for child in found):
                what = f"event {event.event_id!r} is no end of {found[0].process_id!r}"
                yield Violation("I11", process_id, what)
    for same in children.values():
        for child in same:
            yield from _untold(facts, child)


def _call_of(row: ProcessRow, event: Event) -> str:
    """Return the call that spawned the child of whose end an event tells, as `parent_text`."""
    generation, _, key = event.event_id.removeprefix(CHILD_ENDED).rpartition(":")[0].partition(":")
    return f"{row.process_id}\n{row.incarnation}.{generation}\n{key}"


def _is_end_of(facts: Facts, child: ProcessRow, event: Event) -> bool:
    of = child.process_id, child.incarnation
    if child.process_id in facts.may_be_gone or facts.eras.retries.get(of):
        return True  # an earlier end
    if child.ending is None:
        return False
    named = event.name == f"{CHILD_ENDED}{child.status}"
    return named and digest(event.payload) == digest(child.ending.payload)


def _untold(facts: Facts, child: ProcessRow) -> Iterator[Violation]:
    parent = child.parent
    if parent is None or child.status not in FINISHED:
        return
    above = facts.of_final((parent.process_id, parent.incarnation))
    if above is None or above.row.generation != parent.generation:
        return
    if above.row.status in FINISHED or facts.eras.retries.get(
        (parent.process_id, parent.incarnation)
    ):
        return  # it may have been over when its child ended
    name, id = f"{CHILD_ENDED}{child.status}", f"{CHILD_ENDED}{parent.generation}:{parent.key}:"
    if not any(each.name == name and each.event_id.startswith(id) for each in above.events):
        what = f"the end of its child {child.process_id!r} was not told to it"
        yield Violation("I11", parent.process_id, what)
