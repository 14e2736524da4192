"""Which units of a batch go one after the other, and these as the columns of `commit_in_turn`.

Those that reach beyond their own process, and whatever else there is about the
processes that they reach, so that the batch's order holds where it can be seen.
Everything else is judged all at once, which is far quicker. Pure: refuses to
know any connection.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from asyncpg import Record

from durabletask.storage import UnitOutcome
from durabletask_postgres._batch import (
    AGAIN,
    BUSY,
    Places,
    is_step,
    points_of,
    reaches,
)
from durabletask_postgres._rows import checkpoint, creation_columns, refusal

TURN_MAX = 500
"""Units in one call, a tenth of a millisecond each: for so long all their processes are locked."""

CHANGES_MAX = 4
"""All at once a process changes once a round trip; with more changes than this it goes in turn."""

_REPLACE = 5
"""The column of a creation that a child has no use for."""


def in_turn(places: Places, parents: Mapping[int, int]) -> set[int]:
    """Return the processes, by number, whose units go one after the other.

    Args:
        places: A batch.
        parents: The parents of the processes that are children, as far as they
            are known; of one that is not known the database says so.
    """
    chosen: set[int] = set()
    receivers: set[str] = set()
    changes: Counter[int] = Counter()
    for _, unit in places:
        if is_step(unit):
            continue
        changes[unit.incarnation] += 1
        parent = parents.get(unit.incarnation) if unit.ending is not None else None
        if parent is not None or reaches(unit) or changes[unit.incarnation] > CHANGES_MAX:
            chosen.add(unit.incarnation)
            receivers.update(event.process_id for event in unit.sends)
            if parent is not None:
                chosen.add(parent)
    if receivers:
        chosen.update(unit.incarnation for _, unit in places if unit.process_id in receivers)
    return chosen


def turn_columns(places: Places) -> list[Any]:
    """Return what `commit_in_turn` takes behind the mark: one list a column."""
    units = [unit for _, unit in places]
    endings = [unit.ending for unit in units]
    points = [points_of(unit) for unit in units]
    flat = [each for part in points for each in part]
    born = creation_columns([child for unit in units for child in unit.spawns])
    sends = [event for unit in units for event in unit.sends]
    return [
        [unit.process_id for unit in units],
        [unit.incarnation for unit in units],
        [unit.epoch for unit in units],
        [unit.seq for unit in units],
        [unit.status for unit in units],
        [unit.wake_at for unit in units],
        [each and each.status for each in endings],
        [each and each.form for each in endings],
        [None if each is None else each.payload for each in endings],
        [unit.leave for unit in units],
        [unit.meets_cancel for unit in units],
        [unit.restart for unit in units],
        [unit.mailbox_max for unit in units],
        [len(part) for part in points],
        [len(unit.consumes) for unit in units],
        [len(unit.spawns) for unit in units],
        [len(unit.sends) for unit in units],
        [point.kind for point, _ in flat],
        [point.key for point, _ in flat],
        [point.index for point, _ in flat],
        [point.form for point, _ in flat],
        [point.payload for point, _ in flat],
        [point.replaces for point, _ in flat],
        [first_wins for _, first_wins in flat],
        [position for unit in units for position in unit.consumes],
        *born[:_REPLACE],
        *born[_REPLACE + 1 :],
        [event.process_id for event in sends],
        [event.event_id for event in sends],
        [event.name for event in sends],
        [event.payload for event in sends],
    ]


def turn_outcomes(
    records: Sequence[Record], places: Places, told: list[str]
) -> dict[int, UnitOutcome]:
    """Return the outcomes that are not simply DONE, by place.

    Args:
        records: What `commit_in_turn` answered.
        places: As it was asked.
        told: Takes the ids of the parents that were told of an end.
    """
    found: dict[int, UnitOutcome] = {}
    for count, refused, about, *values in records:
        place = places[count - 1][0]
        if refused == "told":
            told.append(about)
        elif refused == "again":
            found[place] = AGAIN
        elif refused == "busy":
            found[place] = BUSY
        elif refused is not None:
            found[place] = UnitOutcome(refused=refusal(refused), culprit=about)
        else:
            before = found.get(place, AGAIN).held
            found[place] = UnitOutcome(held=(*before, checkpoint(values)))
    return found
