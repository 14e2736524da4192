"""The invariants about events: each consumed once, in order, and none lost.

Each function is one invariant; it yields what breaks it. Source: Jepsen's
total-queue (lost, unexpected, duplicated).
"""

import math
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from durabletask._model import CHILD_ENDED, Checkpoint, Event, Form, Kind, Snapshot
from durabletask._notes import EventNote
from durabletask.testing._history_facts import Facts, Fate, Violation
from durabletask.testing._history_records import digest


def events_are_kept(facts: Facts) -> Iterator[Violation]:
    """I11: an event is consumed once, as it was raised; acknowledged, it is never lost."""
    raised: dict[tuple[str, str], set[str]] = defaultdict(set)
    for call in facts.delivers:
        raised[call.asked.process_id, call.asked.event_id].add(call.asked.digest)
    for sent_as, sends in facts.sent.items():
        raised[sent_as].update(each.digest for _, each in sends)
    stored: dict[tuple[str, str], int] = {}
    for process_id, snapshot in facts.final.items():
        for event in snapshot.events:
            name = process_id, event.event_id
            if name in stored:
                yield Violation("I11", process_id, f"event {event.event_id!r} is there twice")
            stored.setdefault(name, event.position)
            is_end = event.name.startswith(CHILD_ENDED)  # for `_history_kin` to judge
            if not is_end and digest(event.payload) not in raised[name]:
                yield Violation("I11", process_id, f"event {event.event_id!r} was never raised so")
        yield from _consumed(facts, snapshot)
        yield from _changed(facts, snapshot)
    for call in facts.delivers:
        name = call.asked.process_id, call.asked.event_id
        if call.done is None or name[0] in facts.may_be_gone:
            continue
        if name not in stored and _may_be_dropped(facts, name[0], call.done.position):
            continue
        if stored.get(name) != call.done.position:
            yield Violation("I11", name[0], f"event {name[1]!r} at {call.done.position} is lost")


def _may_be_dropped(facts: Facts, process_id: str, position: int) -> bool:
    """Return whether a restart may have dropped an event that was consumed before it."""
    final = facts.final.get(process_id)
    if final is None:
        return False
    of = process_id, final.row.incarnation
    return bool(facts.eras.restarts.get(of)) and any(
        position in unit.asked.consumes and unit.fate is not Fate.REFUSED
        for _, unit in facts.units_of[of]
    )


def _consumed(facts: Facts, snapshot: Snapshot) -> Iterator[Violation]:
    """Yield events that more than one unit has consumed, or none."""
    process_id = snapshot.row.process_id
    takers: dict[int, list[str]] = defaultdict(list)
    tried: set[int] = set()
    for id, unit in facts.units_of[process_id, snapshot.row.incarnation]:
        if unit.fate is not Fate.REFUSED:
            tried.update(unit.asked.consumes)
        there = any(facts.present(id, write) for write in unit.firsts())
        for position in unit.asked.consumes if there or unit.fate is Fate.RECORDED else ():
            takers[position].append(f"{id[2]}.{id[3]}")
    restored = facts.eras.restored((process_id, snapshot.row.incarnation))
    for position, units in takers.items():
        if len(units) > 1 and position not in restored:
            yield Violation("I11", process_id, f"event {position} was consumed by {units}")
    for event in snapshot.events:
        if event.consumed and event.position not in tried:
            yield Violation("I11", process_id, f"event {event.position} was consumed by nobody")


def _changed(facts: Facts, snapshot: Snapshot) -> Iterator[Violation]:
    """Yield events that were consumed as something else than what is stored."""
    payloads = {event.position: event.payload for event in snapshot.events}
    for position, held in _consumptions(facts, snapshot):
        payload = bytes(msgspec.json.decode(held.payload, type=EventNote).payload)
        if position in payloads and payload != payloads[position]:
            what = f"event {position} was consumed by {held.key!r} as another value"
            yield Violation("I11", snapshot.row.process_id, what)


def _consumptions(facts: Facts, snapshot: Snapshot) -> Iterator[tuple[int, Checkpoint]]:
    """Yield each event that a single wait has consumed, by position, in the order recorded."""
    process_id, incarnation = snapshot.row.process_id, snapshot.row.incarnation
    for held in snapshot.checkpoints:
        unit = facts.units.get((process_id, incarnation, held.epoch, held.seq))
        single = unit is not None and len(unit.asked.consumes) == 1
        if single and held.kind is Kind.EVENT and held.form is Form.VALUE:
            assert unit is not None
            yield unit.asked.consumes[0], held


def events_keep_their_order(facts: Facts) -> Iterator[Violation]:
    """I12: of two events of a name, the one acknowledged before the other was raised goes first."""
    raised: dict[tuple[str, str], tuple[int, float]] = {}
    for call in facts.delivers:
        name = call.asked.process_id, call.asked.event_id
        began, ended = raised.get(name, (call.began, math.inf))
        done_at = call.ended if call.done else math.inf
        raised[name] = min(began, call.began), min(ended, done_at)
    for name, sends in facts.sent.items():
        for unit, _ in sends:
            began, ended = raised.get(name, (unit.calls[0].began, math.inf))
            raised[name] = min(began, unit.calls[0].began), min(ended, unit.recorded_at)
    for process_id, snapshot in facts.final.items():
        if process_id in facts.may_be_gone:
            continue  # an earlier incarnation may have been sent the same event
        taken = {position: at for at, (position, _) in enumerate(_consumptions(facts, snapshot))}
        by_name: dict[str, list[Event]] = defaultdict(list)
        for event in snapshot.events:
            by_name[event.name].append(event)
        for events in by_name.values():
            # What nobody has consumed would be the last.
            events.sort(key=lambda event: (taken.get(event.position, math.inf), event.position))
            yield from _overtaken(process_id, events, raised)


def _overtaken(
    process_id: str, events: list[Event], raised: dict[tuple[str, str], tuple[int, float]]
) -> Iterator[Violation]:
    """Yield events of one name of which one was consumed first that was raised later."""
    latest = -1
    for event in events:
        began, ended = raised.get((process_id, event.event_id), (0, math.inf))
        if latest > ended:
            what = f"event {event.event_id!r} was overtaken by one that was raised after it"
            yield Violation("I12", process_id, what)
        latest = max(latest, began)
