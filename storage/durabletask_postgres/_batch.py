"""A batch of units as the columns that `commit_units` takes, and its answer as outcomes.

Pure: decides how a batch is cut, and refuses to know any connection.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from asyncpg import Record

from durabletask.storage import (
    DONE,
    NO_INDEX,
    Checkpoint,
    Form,
    Kind,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask_postgres._rows import checkpoint, refusal

T = TypeVar("T")

Places = list[tuple[int, Unit]]
"""Units with their places in the batch that the outcomes answer."""

BUSY = UnitOutcome(refused=Refusal.BUSY)

Mark = tuple[int, int, int | None, str | None, str | None, int | None]
"""What a host was told last: number and epoch of a process, then seq, kind, key and index of a
checkpoint of it; or a seq alone, which it has come to; or four times None where the process has
left the host."""

AGAIN = UnitOutcome()
"""Equal to DONE, but nothing was written now: it may be older than what is there."""

IN_TURN = UnitOutcome()
"""Equal to DONE for a moment: nothing was written, and it goes to `commit_in_turn`."""

NO_MARK = (None, None, None, None, None, None)


def is_step(unit: Unit) -> bool:
    """Return whether a unit records one new checkpoint and changes nothing else."""
    return (
        len(unit.checkpoints) == 1
        and unit.status is None
        and unit.ending is None
        and unit.leave is None
        and not unit.consumes
        and not unit.checkpoints[0].replaces
        and not unit.spawns
        and not unit.sends
        and not unit.meets_cancel
    )


def reaches(unit: Unit) -> bool:
    """Return whether a unit does more than to record, consume and change the status."""
    return bool(unit.spawns or unit.sends or unit.meets_cancel or unit.restart is not None)


def leaves(unit: Unit, answer: UnitOutcome) -> bool:
    """Return whether a process has left its host by a unit, now or by an earlier copy of it."""
    return (unit.ending is not None or unit.leave is not None) and answer == DONE


def step_values(unit: Unit) -> tuple[Any, ...]:
    """Return what the statement `step` takes behind the mark, for a unit that is one."""
    point = unit.checkpoints[0]
    return (
        unit.process_id,
        unit.incarnation,
        unit.epoch,
        unit.seq,
        point.kind,
        point.key,
        point.index,
        point.form,
        point.payload,
    )


def step_columns(units: Sequence[Unit], names: Mapping[int, str]) -> list[Any] | None:
    """Return what `record_steps` takes behind the mark, or None where it cannot judge the batch.

    Args:
        names: The ids of processes by their numbers, as the database has told them.
    """
    points = []
    for unit in units:
        checkpoints = unit.checkpoints
        # As `is_step`, without a call for each unit of a large batch.
        if (
            len(checkpoints) != 1
            or checkpoints[0].replaces
            or unit.status is not None
            or unit.ending is not None
            or unit.leave is not None
            or unit.consumes
            or unit.spawns
            or unit.sends
            or unit.meets_cancel
            or names.get(unit.incarnation) != unit.process_id
        ):
            return None
        points.append(checkpoints[0])
    return [
        [unit.incarnation for unit in units],
        [unit.seq for unit in units],
        [point.key for point in points],
        [point.payload for point in points],
        _unless_all(1, [unit.epoch for unit in units]),
        _unless_all(NO_INDEX, [point.index for point in points]),
        _unless_all(Kind.DO, [point.kind for point in points]),
        _unless_all(Form.VALUE, [point.form for point in points]),
    ]


def _unless_all(usual: T, values: list[T]) -> list[T]:
    """Return the values, or nothing where all are as usual: each array costs time on both sides."""
    return [] if values.count(usual) == len(values) else values


def rounds(places: Places) -> Iterator[Places]:
    """Cut a batch into parts that one call each can judge, in order per process.

    In each part a process has at most one unit that changes its row, behind
    its steps, and no two of its steps write the same place.
    """
    if len({unit.incarnation for _, unit in places}) == len(places):
        yield places
        return
    parts: list[Places] = [[]]
    turn: dict[int, int] = {}
    closed: set[tuple[int, int]] = set()
    written: set[tuple[int, int, str, str, int]] = set()
    for place, unit in places:
        number = unit.incarnation
        part = turn.get(number, 0)
        spots = [(each.kind, each.key, each.index) for each in unit.checkpoints]
        while (part, number) in closed or any((part, number, *s) in written for s in spots):
            part += 1
        turn[number] = part
        if is_step(unit):
            written.add((part, number, *spots[0]))
        else:
            closed.add((part, number))
        while len(parts) <= part:
            parts.append([])
        parts[part].append((place, unit))
    yield from parts


def halves(places: Places) -> tuple[Places, Places]:
    """Cut a part in two, of which the first goes first."""
    middle = len(places) // 2
    return places[:middle], places[middle:]


def steps_first(places: Places) -> tuple[Places, int]:
    """Return a part in the order in which `commit_units` counts it, and how many are steps."""
    steps: Places = []
    changes: Places = []
    for each in places:
        (steps if is_step(each[1]) else changes).append(each)
    return steps + changes, len(steps)


def columns(places: Places, steps: int) -> list[Any]:
    """Return what `commit_units` takes behind the mark: one list a column.

    Args:
        places: In the order of `steps_first`.
        steps: How many of them are steps.
    """
    units = [unit for _, unit in places[:steps]]
    firsts = [unit.checkpoints[0] for unit in units]
    return [
        [unit.process_id for unit in units],
        [unit.incarnation for unit in units],
        [unit.epoch for unit in units],
        [unit.seq for unit in units],
        [each.kind for each in firsts],
        [each.key for each in firsts],
        [each.index for each in firsts],
        [each.form for each in firsts],
        [each.payload for each in firsts],
        *_change_columns([unit for _, unit in places[steps:]]),
    ]


_NO_CHANGES: list[list[Any]] = [[] for _ in range(22)]


def _change_columns(units: list[Unit]) -> list[list[Any]]:
    if not units:
        return _NO_CHANGES
    endings = [unit.ending for unit in units]
    points = [
        (place, ordinal, point, first_wins)
        for place, unit in enumerate(units, 1)
        for ordinal, (point, first_wins) in enumerate(points_of(unit))
    ]
    taken = [(place, position) for place, unit in enumerate(units, 1) for position in unit.consumes]
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
        [len(unit.consumes) for unit in units],
        [place for place, _, _, _ in points],
        [ordinal for _, ordinal, _, _ in points],
        [point.kind for _, _, point, _ in points],
        [point.key for _, _, point, _ in points],
        [point.index for _, _, point, _ in points],
        [point.form for _, _, point, _ in points],
        [point.payload for _, _, point, _ in points],
        [point.replaces for _, _, point, _ in points],
        [first_wins for _, _, _, first_wins in points],
        [place for place, _ in taken],
        [position for _, position in taken],
    ]


def points_of(unit: Unit) -> Collection[tuple[Checkpoint, bool]]:
    """Return the checkpoints of a unit, of each place the first, and whether the first must win."""
    if len(unit.checkpoints) < 2:
        return [(each, not each.replaces) for each in unit.checkpoints]
    kept: dict[tuple[str, str, int], tuple[Checkpoint, bool]] = {}
    for each in unit.checkpoints:
        spot = (each.kind, each.key, each.index)
        first, first_wins = kept.get(spot, (each, False))
        kept[spot] = (first, first_wins or not each.replaces)
    return kept.values()


def outcomes(records: Sequence[Record], places: Places) -> dict[int, UnitOutcome]:
    """Return the outcomes that are not simply DONE, by place.

    Args:
        records: What `commit_units` answered.
        places: In the order in which it was asked.
    """
    found: dict[int, UnitOutcome] = {}
    held: dict[int, tuple[Checkpoint, ...]] = {}
    for count, refused, *values in records:
        place = places[count - 1][0]
        if refused == "again":
            found[place] = AGAIN
        elif refused == "busy":
            found[place] = BUSY
        elif refused == "in turn":
            found[place] = IN_TURN
        elif refused is not None:
            found[place] = UnitOutcome(refused=refusal(refused))
        else:
            held[place] = (*held.get(place, ()), checkpoint(values))
    for place, checkpoints in held.items():
        found[place] = UnitOutcome(held=checkpoints)
    return found


def mark_of(places: Places, answers: Sequence[UnitOutcome], before: Mark | None) -> Mark | None:
    """Return the last thing that a host was told by these answers, or before them."""
    for place, unit in reversed(places):
        left = leaves(unit, answers[place])
        if unit.restart is not None and not left and answers[place] in (DONE, AGAIN):
            # The checkpoints that it was told of until now are gone.
            return unit.incarnation, unit.epoch, unit.seq, None, None, None
        if answers[place] is AGAIN and left and before and before[0] == unit.incarnation:
            return None  # it may have left before this answer, and may be purged by now
        if answers[place] is not DONE:
            continue
        if left:
            return unit.incarnation, unit.epoch, None, None, None, None
        if unit.checkpoints:
            return mark_at(unit)
    return before


def mark_at(unit: Unit) -> Mark:
    """Return the mark of a unit with checkpoints that was recorded and left its process here."""
    point = unit.checkpoints[-1]
    return unit.incarnation, unit.epoch, unit.seq, point.kind, point.key, point.index
