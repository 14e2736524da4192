"""A batch of units, cut and laid out for the database, and what its answer means: all pure."""

import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabletask.storage import (
    DONE,
    NO_INDEX,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Leave,
    Refusal,
    Status,
    Unit,
    UnitOutcome,
)
from durabletask.testing._conformance.world import event, new
from durabletask_postgres._batch import (
    AGAIN,
    NO_MARK,
    columns,
    halves,
    is_step,
    mark_of,
    outcomes,
    rounds,
    step_columns,
    steps_first,
)
from durabletask_postgres._sql import Statements

AT = datetime(2026, 1, 1, tzinfo=UTC)
FINISH = Ending(Status.COMPLETED, Form.VALUE, b'"over"')


def point(key: str, *, replaces: bool = False, index: int = NO_INDEX) -> Checkpoint:
    return Checkpoint(Kind.DO, key, index, Form.VALUE, b"1", replaces)


def made(number: int, seq: int, *checkpoints: Checkpoint, **fields: Any) -> Unit:
    rest = {"process_id": f"p{number}", "incarnation": number, "epoch": 1, "seq": seq}
    return Unit(**{**rest, "checkpoints": checkpoints, **fields})


points = st.builds(
    lambda key, replaces, index: point(key, replaces=replaces, index=index),
    st.sampled_from("abc"),
    st.booleans(),
    st.sampled_from((NO_INDEX, 0)),
)
units = st.builds(
    lambda number, seq, checkpoints, status, ending, leave, consumes: made(
        number, seq, *checkpoints, status=status, ending=ending, leave=leave, consumes=consumes
    ),
    st.integers(1, 4),
    st.integers(1, 9),
    st.lists(points, max_size=3),
    st.sampled_from((None, None, Status.WAITING)),
    st.sampled_from((None, None, None, FINISH)),
    st.sampled_from((None, None, None, Leave.PARKED)),
    st.sampled_from(((), (), (1, 2))),
)
batches = st.lists(units, max_size=12)


def spots(unit: Unit) -> set[tuple[Kind, str, int]]:
    return {(each.kind, each.key, each.index) for each in unit.checkpoints}


@settings(max_examples=300, derandomize=True, deadline=None)
@given(batches)
def test_each_part_can_be_judged_by_one_call(batch: list[Unit]) -> None:
    """G5 G13: nothing is lost, each order stays, one change each, behind its steps."""
    parts = list(rounds(list(enumerate(batch))))
    places = [place for part in parts for place, _ in part]
    assert sorted(places) == list(range(len(batch)))
    by_process: dict[int, list[int]] = defaultdict(list)
    for part in parts:
        written: dict[int, set[tuple[Kind, str, int]]] = defaultdict(set)
        closed: set[int] = set()
        for place, unit in part:
            assert batch[place] is unit
            by_process[unit.incarnation].append(place)
            assert unit.incarnation not in closed
            assert not written[unit.incarnation] & spots(unit)
            if is_step(unit):
                written[unit.incarnation] |= spots(unit)
            else:
                closed.add(unit.incarnation)
    assert all(found == sorted(found) for found in by_process.values())


def test_processes_that_write_once_each_go_in_one_part() -> None:
    """Issue 3 point 1: a batch is one round trip, and so are several steps of one process."""
    batch = [made(number, 1, point("a"), status=Status.WAITING) for number in range(100)]
    assert [len(part) for part in rounds(list(enumerate(batch)))] == [100]
    batch = [made(1, seq, point("a", index=seq)) for seq in range(100)]
    batch.append(made(1, 100, ending=FINISH))
    assert [len(part) for part in rounds(list(enumerate(batch)))] == [101]


@pytest.mark.parametrize(
    ("fields", "checkpoints"),
    [
        ({"status": Status.RUNNING}, [point("a")]),
        ({"ending": FINISH}, [point("a")]),
        ({"leave": Leave.RELEASED}, [point("a")]),
        ({"consumes": (1,)}, [point("a")]),
        ({"meets_cancel": True}, [point("a")]),
        ({"spawns": (new("child"),)}, [point("a")]),
        ({"sends": (event("q", "e"),)}, [point("a")]),
        ({"restart": b"1"}, []),
        ({}, []),
        ({}, [point("a"), point("b")]),
        ({}, [point("a", replaces=True)]),
    ],
)
def test_only_a_lone_new_checkpoint_is_a_step(
    fields: dict[str, Any], checkpoints: list[Checkpoint]
) -> None:
    """Anything that changes the process's row, or what is there, goes the way that looks at it."""
    assert is_step(made(1, 1, point("a")))
    other = made(1, 1, *checkpoints, **fields)
    assert not is_step(other)
    assert step_columns([other], {1: "p1"}) is None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(batches)
def test_columns_fit_the_statement(batch: list[Unit]) -> None:
    """Every array of a group has the same length, and there is one for each parameter."""
    for part in rounds(list(enumerate(batch))):
        ordered, steps = steps_first(part)
        assert sorted(ordered, key=lambda each: each[0]) == sorted(part, key=lambda each: each[0])
        assert [is_step(unit) for _, unit in ordered] == [True] * steps + [False] * (
            len(ordered) - steps
        )
        found = columns(ordered, steps)
        assert len(found) + len(NO_MARK) + 3 == parameters("commit")
        changes = [unit for _, unit in ordered[steps:]]
        kept = sum(len(spots(unit)) for unit in changes)
        consumed = sum(len(unit.consumes) for unit in changes)
        lengths = [len(each) for each in found]
        assert lengths == [steps] * 9 + [len(changes)] * 11 + [kept] * 9 + [consumed] * 2


def parameters(name: str) -> int:
    """Return how many parameters a statement has."""
    return max(int(number) for number in re.findall(r"\$(\d+)", Statements()[name]))


def test_steps_say_only_what_is_unusual() -> None:
    """What all steps of a batch have in common with most others is not sent."""
    usual = [made(1, 1, point("a")), made(2, 1, point("b"))]
    found = step_columns(usual, {1: "p1", 2: "p2"})
    assert found == [[1, 2], [1, 1], ["a", "b"], [b"1", b"1"], [], [], [], []]
    odd = Checkpoint(Kind.GET, "c", 4, Form.ERROR, b"{}")
    found = step_columns([*usual, made(3, 1, odd, epoch=2)], {1: "p1", 2: "p2", 3: "p3"})
    assert found is not None
    assert found[4:] == [
        [1, 1, 2],
        [NO_INDEX, NO_INDEX, 4],
        [Kind.DO, Kind.DO, Kind.GET],
        [Form.VALUE, Form.VALUE, Form.ERROR],
    ]


@pytest.mark.parametrize("names", [{}, {1: "other"}, {2: "p1"}])
def test_a_number_that_is_not_known_to_be_that_id_goes_the_long_way(names: dict[int, str]) -> None:
    """G4: the short way compares no ids, so it takes no unit whose id it has not seen."""
    assert step_columns([made(1, 1, point("a"))], names) is None
    assert step_columns([made(1, 1, point("a"), status=Status.WAITING)], {1: "p1"}) is None


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(2, 40))
def test_a_batch_is_halved_down_to_each_unit(count: int) -> None:
    """G13: both halves are smaller, the first goes first, and nothing is left out."""
    places = [(number, made(number, 1)) for number in range(count)]
    first, second = halves(places)
    assert [*first, *second] == places
    assert 0 < len(first) < count


def answered(*rows: tuple[Any, ...]) -> dict[int, UnitOutcome]:
    """Return the outcomes of three units at places 5, 6 and 7."""
    places = [(place, made(place, 1, point("a"))) for place in (5, 6, 7)]
    return outcomes(cast("Any", rows), places)


def test_what_is_not_answered_is_done() -> None:
    """The database speaks only of what did not simply go well."""
    assert answered() == {}


def test_refusals_and_copies_are_told_apart_from_done() -> None:
    """A unit that was there already is done, and is no proof that it was written just now."""
    nothing = (None,) * 9
    found = answered((1, "busy", *nothing), (3, "again", *nothing))
    assert found == {5: UnitOutcome(refused=Refusal.BUSY), 7: DONE}
    assert found[7] is AGAIN


def test_all_checkpoints_that_are_held_come_back_in_order() -> None:
    """G3: of a unit that lost several places every winner is told."""
    row = ("do", "a", -1, "value", b"1", False, 1, 4, AT)
    other = ("get", "b", 0, "error", b"2", False, 2, 1, AT)
    (outcome,) = answered((2, None, *row), (2, None, *other)).values()
    assert outcome.refused is None
    assert [(each.kind, each.key, each.epoch, each.seq) for each in outcome.held] == [
        (Kind.DO, "a", 1, 4),
        (Kind.GET, "b", 2, 1),
    ]


LEFT = (2, 1, None, None, None, None)
STEP = (1, 1, 1, Kind.DO, "a", NO_INDEX)


@pytest.mark.parametrize(
    ("batch", "answers", "mark"),
    [
        ([made(1, 1, point("a"))], [DONE], STEP),
        ([made(1, 1, point("a")), made(2, 1, ending=FINISH)], [DONE, DONE], LEFT),
        ([made(1, 1, point("a")), made(2, 1, leave=Leave.PARKED)], [DONE, DONE], LEFT),
        # What was not written now proves nothing.
        ([made(1, 1, point("a")), made(2, 1, point("b"))], [DONE, AGAIN], STEP),
        ([made(1, 1, point("a")), made(2, 1, point("b"))], [DONE, UnitOutcome(Refusal.BUSY)], STEP),
        # A unit without a checkpoint leaves nothing to look for.
        ([made(1, 1, point("a")), made(2, 1, status=Status.WAITING)], [DONE, DONE], STEP),
        ([made(1, 1, status=Status.WAITING)], [DONE], NO_MARK),
    ],
)
def test_the_mark_is_the_last_thing_that_was_told(
    batch: list[Unit], answers: list[UnitOutcome], mark: tuple[Any, ...]
) -> None:
    """Issue 3 point 6: what the next commit looks for is the latest that this one was told."""
    found = mark_of(list(enumerate(batch)), answers, None)
    assert (found or NO_MARK) == mark
