"""The checker is checked: each invariant has a history that only it reports."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from durabletask._notes import DelayNote, EventNote, RetryNote, WaitNote, encode
from durabletask.storage import Checkpoint, Ending, Form, Kind, Status
from durabletask.testing.history import INVARIANTS, Commit, Phase, check
from tests.chaos.handmade import FAIL, FINISH, INFO, OK, SILENT, T0, P, Story, held

LATE = "process belongs to another host, epoch or incarnation"


def event(key: str, payload: bytes = b"1") -> Checkpoint:
    return held(key, encode(EventNote("go", msgspec.Raw(payload))), Kind.EVENT)


def delay(due_s: float, over_s: float, **fields: Any) -> Checkpoint:
    note = DelayNote(
        desired_at=T0 + timedelta(seconds=due_s),
        actual_at=T0 + timedelta(seconds=over_s),
        on_time=True,
    )
    return held("d", encode(note), Kind.DELAY, **fields)


def wait(due_s: float) -> Checkpoint:
    return held("d", encode(WaitNote(due_at=T0 + timedelta(seconds=due_s))), Kind.WAIT)


def retry(attempts: int) -> Checkpoint:
    note = RetryNote(attempts=attempts, first_at=T0, due_at=T0)
    return held("a", encode(note), Kind.RETRY, replaces=True)


def begun() -> Story:
    """Tell of a process that a first host has taken."""
    return Story().created().taken(1)


def moved() -> Story:
    """Tell of a process that a second host took from a first one, which had done a step."""
    return begun().ran("a").wrote(1, 1, held("a")).taken(2, "h2")


GOOD: dict[str, Story] = {
    "a whole life": moved()
    .raised("e1", 1)
    .wrote(2, 1, event("go"), consumes=(1,))
    .wrote(2, 2, wait(5))
    .wrote(2, 3, delay(5, 6))
    .ran("b", 2)
    .wrote(2, 4, held("b"), ending=FINISH)
    .saw("b", "1")
    .saw("b", "1"),
    "an answer is lost, and it was done": begun().ran("a").wrote(1, 1, held("a"), answer=INFO),
    "an answer is lost, and it was not done": begun()
    .ran("a")
    .wrote(1, 1, held("a"), answer=INFO, stored=False),
    "killed before the answer": begun().ran("a").wrote(1, 1, held("a"), answer=SILENT),
    "refused when repeated, since it had been done and somebody else came": begun()
    .ran("a")
    .wrote(1, 1, held("a"), answer=INFO)
    .taken(2, "h2")
    .wrote(1, 1, held("a"), answer=FAIL, why=LATE, stored=False),
    "a late host is refused": moved()
    .ran("b")
    .wrote(1, 2, held("b"), answer=FAIL, why="LeaseLostError", stored=False)
    .renewed("h1", FAIL)
    .closed("h1")
    .ran("b", 2)
    .wrote(2, 1, held("b")),
    "a step runs again when its record did not come": begun().ran("a").taken(2).ran("a", 2),
    "a failed attempt is followed by the next": begun()
    .ran("a")
    .wrote(1, 1, retry(1))
    .ran("a", attempt=2)
    .wrote(1, 2, held("a")),
    "a second spawn sees the first": Story().created().created("c2"),
    "overtaken by oneself": begun()
    .ran("a")
    .wrote(1, 1, held("a"))
    .wrote(1, 2, held("a", b'"w"'), stored=False, told=(held("a", epoch=1, seq=1),)),
    "a claim is repeated": begun().taken(1, claim_id="claim 1"),
    "given back, and the host goes on": begun().wrote(1, 1, left=True).taken(2, "h2").renewed("h1"),
    "a transaction is committed late, and the next owner's first": begun()
    .wrote(1, 2, held("a", kind=Kind.GET))
    .wrote(1, 1, held("t", kind=Kind.TRANSACTION))
    .wrote(1, 3, held("b", kind=Kind.GET))
    .taken(2)
    .wrote(2, 1, held("u", kind=Kind.TRANSACTION))
    .wrote(2, 2, held("c", kind=Kind.GET)),
    "a transaction is repeated with another result": begun()
    .wrote(1, 1, held("t", b'"v"', Kind.TRANSACTION), answer=INFO, stored=False)
    .wrote(1, 1, held("t", b'"w"', Kind.TRANSACTION)),
    "two events overlap": begun()
    .raised("e1", 1, answer=SILENT)
    .raised("e2", 2)
    .wrote(1, 1, event("x"), consumes=(2,))
    .wrote(1, 2, event("y"), consumes=(1,)),
}

BAD: dict[str, tuple[str, Story]] = {
    "an acknowledged step is lost": ("I1", begun().ran("a").wrote(1, 1, held("a"), stored=False)),
    "an acknowledged ending is lost": ("I1", begun().wrote(1, 1, ending=FINISH, stored=False)),
    "an older note is there": (
        "I1",
        begun()
        .wrote(1, 1, retry(1), stored=False)
        .wrote(1, 2, retry(2), stored=False)
        .hold(1, 1, retry(1)),
    ),
    "a record that nobody wrote": ("I2", begun().ran("a").hold(1, 1, held("a"))),
    "a record twice": ("I3", begun().ran("a").wrote(1, 1, held("a")).hold(1, 1, held("a"))),
    "one key as a step and as a value": (
        "I3",
        begun().ran("a").wrote(1, 1, held("a")).wrote(1, 2, held("a", kind=Kind.GET)),
    ),
    "user code is given another value": ("I3", begun().saw("a", "1").saw("a", "2")),
    "a result without a run": ("I4", begun().wrote(1, 1, held("a"))),
    "a result by another epoch than ran": (
        "I4",
        begun().ran("a").taken(2, "h2").wrote(2, 1, held("a")),
    ),
    "acknowledged before it ran": ("I4", begun().wrote(1, 1, held("a"), answer=INFO).ran("a")),
    "run again by who was told that it is recorded": ("I5", moved().ran("a", 2)),
    "a failed attempt again": ("I5", begun().wrote(1, 1, retry(2)).taken(2).ran("a", 2, 2)),
    "twice in one epoch": ("I6", begun().ran("a").ran("a")),
    "more often than there were owners": ("I6", begun().ran("a").ran("a", 2)),
    "an epoch for two": ("I7", begun().taken(1, "h2", claim_id="another")),
    "an epoch after a later one": ("I7", Story().created().taken(2).taken(1)),
    "more than was asked for": ("I7", Story().created().taken(1, count_max=0)),
    "one name for two units": ("I7", begun().wrote(1, 1, left=True).wrote(1, 1, ending=FINISH)),
    "an older epoch's record behind a newer one's": (
        "I8",
        moved()
        .ran("b", 2)
        .wrote(2, 1, held("b"))
        .ran("c", 1)
        .wrote(1, 2, held("c"), answer=SILENT),
    ),
    "a late write is acknowledged": (
        "I8",
        moved().wrote(2, 1, left=True).taken(3, "h2").wrote(2, 2, left=True),
    ),
    "a late write lands unheard of": (
        "I8",
        begun().ran("a").taken(2, "h2").wrote(1, 1, held("a"), answer=SILENT),
    ),
    "a hole in the mailbox": ("I8", begun().raised("e1", 2)),
    "a refused late write is there": (
        "I9",
        moved().wrote(1, 2, ending=FINISH, answer=FAIL, why="LeaseLostError"),
    ),
    "a fenced host's lease is prolonged": ("I9", moved().renewed("h1")),
    "an effect before its cause": (
        "I10",
        begun()
        .ran("a")
        .wrote(1, 2, held("a"), stored=False)
        .ran("b")
        .wrote(1, 1, held("b"))
        .hold(1, 2, held("a")),
    ),
    "an acknowledged event is lost": ("I11", begun().raised("e1", 1, stored=False)),
    "an event is stored twice": ("I11", begun().raised("e1", 1).raised("e1", 2, answer=SILENT)),
    "an event is stored as another value": (
        "I11",
        begun().raised("e1", 1, b"1", as_stored=b"2"),
    ),
    "an event is consumed as another value": (
        "I11",
        begun().raised("e1", 1).wrote(1, 1, event("x", b"2"), consumes=(1,)),
    ),
    "an event is consumed twice": (
        "I11",
        begun()
        .raised("e1", 1)
        .wrote(1, 1, event("x"), consumes=(1,))
        .wrote(1, 2, event("y"), consumes=(1,)),
    ),
    "an event is consumed by nobody": ("I11", begun().raised("e1", 1).consume(1)),
    "the second event first": (
        "I12",
        begun()
        .raised("e1", 1)
        .raised("e2", 2)
        .wrote(1, 1, event("x"), consumes=(2,))
        .wrote(1, 2, event("y"), consumes=(1,)),
    ),
    "the second event and not the first": (
        "I12",
        begun().raised("e1", 1).raised("e2", 2).wrote(1, 1, event("x"), consumes=(2,)),
    ),
    "early by the host's clock": ("I13", begun().wrote(1, 1, delay(5, 4))),
    "early by the storage's clock": ("I13", begun().wrote(1, 1, delay(200_000, 200_000))),
    "due anew after a restart": ("I13", begun().wrote(1, 1, wait(5)).wrote(1, 2, delay(6, 7))),
    "a record after the end": (
        "I14",
        begun().ran("a").wrote(1, 1, ending=FINISH).wrote(1, 2, held("a"), answer=SILENT),
    ),
    "run after the end": ("I14", begun().wrote(1, 1, ending=FINISH).ran("a")),
    "ended twice": (
        "I14",
        begun().wrote(1, 1, ending=FINISH).wrote(1, 2, ending=FINISH, stored=False),
    ),
    "two creations of one process": ("I15", Story().created().created("c2", fresh=True)),
    "a claim without what was recorded": (
        "I21",
        begun().ran("a").wrote(1, 1, held("a")).taken(2, "h2", 0),
    ),
    "a claim without an event": ("I21", Story().created().raised("e1", 1).taken(1, mailbox=())),
    "a claim with a consumed event": (
        "I21",
        begun().raised("e1", 1).wrote(1, 1, event("x"), consumes=(1,)).taken(2, mailbox=(1,)),
    ),
    "refused and yet there": (
        "I22",
        begun().ran("a").wrote(1, 1, held("a"), answer=FAIL, why="event was consumed already"),
    ),
    "a refused event is there": ("I22", begun().raised("e1", 1, answer=FAIL)),
    "half a unit": (
        "I23",
        begun()
        .ran("a")
        .ran("b")
        .wrote(1, 1, held("a"), held("b"), answer=INFO, stored=False)
        .hold(1, 1, held("a")),
    ),
    "recorded and not consumed": (
        "I23",
        begun()
        .raised("e1", 1)
        .wrote(1, 1, event("x"), consumes=(1,), stored=False)
        .hold(1, 1, event("x")),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_happen_is_not_reported(name: str) -> None:
    """No false alarm: lost answers, refusals, repeats and takeovers break no promise."""
    assert GOOD[name].verdict() == set()


@pytest.mark.parametrize("name", BAD)
def test_what_must_not_happen_is_reported(name: str) -> None:
    """I1-I15 I21-I23: each bad history is reported by its own invariant and no other."""
    invariant, story = BAD[name]
    assert story.verdict() == {invariant}


def test_a_process_that_is_lost() -> None:
    """I1: an acknowledged creation that is nowhere is reported, and so are its records."""
    assert Story().created().verdict(gone=True) == {"I1"}
    assert begun().ran("a").wrote(1, 1, held("a")).verdict(gone=True) == {"I1"}


def test_a_value_that_changes() -> None:
    """I3 I1: two answers with two values; at least one of them is not what is there."""
    told = (held("a", b'"w"', epoch=1, seq=1),)
    story = begun().ran("a").wrote(1, 1, held("a")).wrote(1, 2, held("a"), stored=False, told=told)
    assert story.verdict() == {"I1", "I3"}


def test_a_process_that_never_ends() -> None:
    """I16: who was to end and has not, or does not exist, is reported."""
    assert begun().verdict(ended=[P]) == {"I16"}
    assert begun().verdict(ended=["another"]) == {"I16"}
    assert begun().wrote(1, 1, ending=FINISH).verdict(ended=[P]) == set()
    failed = Ending(Status.QUARANTINED, Form.ERROR, b"{}")
    assert begun().wrote(1, 1, ending=failed).verdict(ended=[P]) == {"I16"}


def test_steps_that_say_nothing() -> None:
    """I4 asks only where every step tells that it ran."""
    assert begun().wrote(1, 1, held("a")).verdict(effects=False) == set()


def test_every_invariant_has_its_bad_history() -> None:
    """What no history breaks is not tested: each function above is met by some case."""
    named = {(each.__doc__ or "").partition(":")[0] for each in INVARIANTS} | {"I4"}
    assert named == {invariant for invariant, _ in BAD.values()}


def test_an_answer_to_nothing_is_refused() -> None:
    """A history that cannot be is no evidence: ValueError, with the place."""
    with pytest.raises(ValueError, match="operation 0"):
        check([Commit(phase=Phase.OK, call=7)], [])


def test_order_is_position() -> None:
    """F080: the same lines in another order are another history; stamps are not looked at."""
    story = moved().ran("a", 2)
    story.operations = [*story.operations[-2:], *story.operations[:-2]]
    assert "I5" not in story.verdict()
    assert OK is Phase.OK
