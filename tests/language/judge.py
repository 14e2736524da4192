"""The judge of plays: what came of a program, and which promises were broken on the way.

What a record says of times, ids of this start and places in a mailbox is left
out: these may differ. Kinds that say how it went, and not what came of it, are
left out altogether.
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from durabletask import Status
from durabletask._model import CHILD_ENDED
from durabletask._notes import (
    CallNote,
    DecisionNote,
    EventNote,
    RaceNote,
    RetryNote,
    TimeoutNote,
)
from durabletask._transitions import NEXT, may_follow
from durabletask.storage import Checkpoint, Form, Kind, Snapshot
from tests.language.interpreter import UNDO, Place, Ran, Seen
from tests.language.play import Played, Written

HOW_IT_WENT = frozenset({Kind.WAIT, Kind.RETRY, Kind.OVERTAKEN, Kind.START, Kind.HEARTBEAT})
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?")
_KEPT = frozenset({Kind.DO, Kind.GET, Kind.VERSION, Kind.EVENT, Kind.RACE, Kind.CALL, Kind.DELAY})
_ENDS = frozenset({
    Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TERMINATED,
})  # fmt: skip

Facts = dict[str, object]
NOT_COMPARED = "(not compared)"


def facts(played: Played) -> Facts:
    """Return what came of a play, for each process."""
    found: Facts = {}
    for process_id, snapshot in played.snapshots.items():
        for about, what in _of(snapshot):
            found[f"{process_id}: {about}"] = what
    return found


def _of(snapshot: Snapshot) -> Iterator[tuple[str, object]]:
    row = snapshot.row
    yield "status", row.status
    yield "generation", row.generation
    if row.ending is not None:
        yield "came to", (row.ending.form, text(row.ending.payload))
    # What nobody takes may come after the end, and is refused.
    yield (
        "events taken",
        sorted(
            (each.name, text(each.payload))
            for each in snapshot.events
            if each.consumed and not each.name.startswith(CHILD_ENDED)
        ),
    )
    for held in snapshot.checkpoints:
        if held.kind not in HOW_IT_WENT:
            yield f"{held.kind} {held.key}[{held.index}]", (held.form, content(held))


def text(payload: bytes) -> str:
    """Return a payload without the times in it."""
    return _TIME.sub("<time>", payload.decode())


def content(held: Checkpoint) -> object:
    """Return what a checkpoint says that may not differ."""
    if held.form is Form.CANCELLED or held.kind in (Kind.DELAY, Kind.REPORT):
        return NOT_COMPARED if held.form is not Form.ERROR else text(held.payload)
    if held.kind is Kind.DECISION:
        decision = msgspec.json.decode(held.payload, type=DecisionNote)
        return text(bytes(decision.error)), sorted(decision.undos), decision.cancelled
    if held.form is not Form.VALUE:
        return text(held.payload)
    if held.kind is Kind.EVENT:
        event = msgspec.json.decode(held.payload, type=EventNote)
        return event.name, bytes(event.payload)
    if held.kind is Kind.RACE:
        race = msgspec.json.decode(held.payload, type=RaceNote)
        return race.path, race.kind
    if held.kind is Kind.TIMEOUT:
        return msgspec.json.decode(held.payload, type=TimeoutNote).expired
    if held.kind is Kind.CALL:
        call = msgspec.json.decode(held.payload, type=CallNote)
        return call.status, call.child, text(bytes(call.payload))
    return text(held.payload)


def effects(played: Played) -> Counter[tuple[Place, int]]:
    """Return how often each attempt of each step, and of each undo, began."""
    return Counter((each.at, each.attempt) for each in played.world.trace if isinstance(each, Ran))


def differences(expected: Played, played: Played) -> list[str]:
    """Return in what a play differs from the undisturbed one."""
    if played.problem is not None:
        return [played.problem]
    before, after = facts(expected), facts(played)
    found = [
        f"{about}: {after.get(about)!r} instead of {before.get(about)!r}"
        for about in sorted(before.keys() | after.keys())
        if before.get(about) != after.get(about) and not _may_lack(about, before, after)
    ]
    were, are = effects(expected), effects(played)
    for what in sorted(were.keys() | are.keys()):
        most = were[what] + played.deaths if were[what] else 0
        if not bool(were[what]) <= are[what] <= most:
            found.append(f"{what} ran {are[what]} times with {played.deaths} deaths")
    return found


def _may_lack(about: str, before: Facts, after: Facts) -> bool:
    """Return whether a call may be missing that was cancelled in the undisturbed play.

    Where the time of a durable timeout has passed while nothing ran, the first call in it is
    cancelled, and with that its siblings: perhaps before they have made theirs.
    """
    if about in after or before[about] != (Form.CANCELLED, NOT_COMPARED):
        return False
    process_id = about.partition(": ")[0]
    return any(
        what == (Form.VALUE, True) and each.startswith(f"{process_id}: {Kind.TIMEOUT} ")
        for each, what in after.items()
    )


def broken(played: Played, *, retried: bool = False) -> list[str]:
    """Return the promises that a play broke, whatever it had to come to."""
    return [
        *_repeated(played),
        *_run_after_the_record(played, retried=retried),
        *_seen_otherwise(played, retried=retried),
        *(() if retried else _recorded_twice(played)),
        *(() if retried else _events_taken_twice(played)),
        *_seen_early(played),
        *(() if retried else _cancelled_twice(played)),
        *_order_of_undos(played),
        *_statuses(played),
    ]


def _repeated(played: Played) -> Iterator[str]:
    """G4: in one epoch an attempt begins once."""
    runs = Counter(each for each in played.world.trace if isinstance(each, Ran))
    yield from (f"{each} {count} times" for each, count in runs.items() if count > 1)


def _run_after_the_record(played: Played, *, retried: bool) -> Iterator[str]:
    """G3: what is recorded does not run again, nor does a failed attempt that is.

    A host that has been replaced and has not heard of that may still begin what the other has
    recorded: that is an earlier epoch.
    """
    recorded: dict[Place, int] = {}
    attempts: dict[Place, tuple[int, int]] = {}
    for each in played.world.trace:
        if isinstance(each, Ran):
            failed, epoch = attempts.get(each.at, (0, 0))
            again = each.at in recorded and each.epoch >= recorded[each.at]
            if again or (each.attempt <= failed and each.epoch >= epoch):
                yield f"{each} although it was recorded"
        elif isinstance(each, Written) and not retried:
            for held in each.unit.checkpoints:
                if held.kind in (Kind.DO, Kind.UNDO):
                    mark = UNDO if held.kind is Kind.UNDO else ""
                    at = (each.unit.process_id, mark + held.key, held.index)
                    recorded[at] = each.unit.epoch
                elif held.kind is Kind.RETRY:
                    note = msgspec.json.decode(held.payload, type=RetryNote)
                    at = (each.unit.process_id, held.key, held.index)
                    attempts[at] = note.attempts, each.unit.epoch


def _seen_otherwise(played: Played, *, retried: bool) -> Iterator[str]:
    """G2: what user code was given once, it is given again."""
    first: dict[Place, object] = {}
    for each in () if retried else played.world.trace:
        if isinstance(each, Seen):
            known = first.setdefault(each.at, each.outcome)
            if (type(known), known) != (type(each.outcome), each.outcome):
                yield f"{each.at} was {known!r} and is now {each.outcome!r}"


def _recorded_twice(played: Played) -> Iterator[str]:
    """G2: a key has one record for good."""
    known: dict[tuple[Any, ...], tuple[int, int]] = {}
    for each in played.world.trace:
        if not isinstance(each, Written):
            continue
        unit = each.unit
        for held in unit.checkpoints:
            if held.kind not in _KEPT:
                continue
            at = unit.process_id, held.kind, held.key, held.index
            if known.setdefault(at, (unit.epoch, unit.seq)) != (unit.epoch, unit.seq):
                yield f"{at} recorded twice"


def _events_taken_twice(played: Played) -> Iterator[str]:
    """G8: an event is consumed once."""
    taken: dict[tuple[str, int], tuple[int, int]] = {}
    for each in played.world.trace:
        if isinstance(each, Written):
            unit = each.unit
            for position in unit.consumes:
                place = unit.process_id, position
                if taken.setdefault(place, (unit.epoch, unit.seq)) != (unit.epoch, unit.seq):
                    yield f"event {place} taken twice"


def _seen_early(played: Played) -> Iterator[str]:
    """G1: what user code is given is recorded by then."""
    recorded: set[tuple[str, str, int | None]] = set()
    for each in played.world.trace:
        if isinstance(each, Written):
            for held in each.unit.checkpoints:
                if held.kind not in HOW_IT_WENT:
                    recorded.add((each.unit.process_id, held.key, held.index))
                    recorded.add((each.unit.process_id, held.key, None))
        elif isinstance(each, Seen):
            process_id, key, index = each.at
            if index > -2 and (process_id, key, index if index >= 0 else None) not in recorded:
                yield f"{each} before it was recorded"


def _cancelled_twice(played: Played) -> Iterator[str]:
    """Rule 7: a request to cancel is met once; the next generation can be asked anew."""
    met: dict[str, tuple[int, int]] = {}
    for each in played.world.trace:
        if isinstance(each, Written) and each.unit.restart is not None:
            met.pop(each.unit.process_id, None)
        elif isinstance(each, Written) and each.unit.meets_cancel:
            unit = each.unit.epoch, each.unit.seq
            if met.setdefault(each.unit.process_id, unit) != unit:
                yield f"{each.unit.process_id} met its cancel twice"


def _order_of_undos(played: Played) -> Iterator[str]:
    """Rule 8: undone is in the reverse order of completion; one that has failed may come again."""
    begun: dict[str, dict[tuple[str, int], None]] = {}
    for each in played.world.trace:
        if isinstance(each, Ran) and each.at[1].startswith(UNDO):
            begun.setdefault(each.at[0], {})[each.at[1].removeprefix(UNDO), each.at[2]] = None
    for process_id, undone in begun.items():
        held = played.snapshots[process_id].checkpoints
        done = [(each.key, each.index) for each in held if each.kind is Kind.DO]
        places = [done.index(each) for each in undone if each in done]
        if places != sorted(places, reverse=True):
            yield f"{process_id}: undone in the order {[*undone]}, done as {done}"


def _statuses(played: Played) -> Iterator[str]:
    """Every change of a status is legal, at most one of those that a batch holds being unseen."""
    for process_id, statuses in played.statuses.items():
        for before, after in pairwise(statuses):
            if not may_follow(before, after) and not any(
                may_follow(between, after) for between in NEXT[before]
            ):
                yield f"{process_id}: {after} after {before}"
        if statuses[-1] not in _ENDS:
            yield f"{process_id} is {statuses[-1]} at the end"
