"""Recall, run or refuse."""

import pytest

from durabletask._journal import Journal
from durabletask.errors import KeyConflictError, NonDeterminismError
from durabletask.storage import NO_INDEX, Checkpoint, Form, Kind


def recorded(kind: Kind, key: str, index: int = NO_INDEX) -> Checkpoint:
    return Checkpoint(kind, key, index, Form.VALUE, b"1")


def test_a_new_key_runs_and_a_recorded_one_is_recalled() -> None:
    """S4.05 What is recorded comes back; what is not runs."""
    held = recorded(Kind.DO, "a")
    journal = Journal([held])
    assert journal.ask(Kind.DO, "a") is held
    assert journal.ask(Kind.DO, "b") is None


@pytest.mark.parametrize("known", [[], [recorded(Kind.DO, "a")]])
def test_a_key_serves_once_a_run(known: list[Checkpoint]) -> None:
    """F105 The second use of a key in one run is refused, recorded or not."""
    journal = Journal(known)
    journal.ask(Kind.DO, "a")
    with pytest.raises(KeyConflictError, match=r"'a'.*get"):
        journal.ask(Kind.GET, "a")


def test_another_kind_under_a_recorded_key_is_refused() -> None:
    """F106, S2.13 A key recorded as one kind cannot be asked for as another."""
    journal = Journal([recorded(Kind.DO, "a")])
    with pytest.raises(NonDeterminismError, match=r"recorded as do; the code now asks for delay"):
        journal.ask(Kind.DELAY, "a")


def test_engine_records_never_meet_user_keys() -> None:
    """F127 What the engine records about a key is found apart from the key itself."""
    wait = recorded(Kind.WAIT, "a")
    journal = Journal([wait])
    assert journal.ask(Kind.DELAY, "a") is None
    assert journal.take(Kind.WAIT, "a") is wait
    assert journal.take(Kind.WAIT, "a") is None


@pytest.mark.parametrize(("noted", "asked"), [(Kind.WAIT, Kind.DO), (Kind.RETRY, Kind.DELAY)])
def test_what_the_engine_noted_binds_the_kind(noted: Kind, asked: Kind) -> None:
    """F106 A wait or failed attempts under a key say what sort of call was made there."""
    journal = Journal([recorded(noted, "a")])
    with pytest.raises(NonDeterminismError, match=f"a {noted.value} is recorded"):
        journal.ask(asked, "a")


def test_indexes_are_apart_from_each_other_and_from_the_key() -> None:
    """S4.16 Neither "1" and "10" nor a key and its series are mixed up."""
    one, ten = recorded(Kind.EVENT, "e", 1), recorded(Kind.EVENT, "e", 10)
    journal = Journal([one, ten, recorded(Kind.DO, "e1")])
    assert journal.ask(Kind.EVENT, "e", 10) is ten
    assert journal.ask(Kind.EVENT, "e", 1) is one
    assert journal.ask(Kind.EVENT, "e", 0) is None
    assert journal.ask(Kind.EVENT, "e") is None


def test_what_was_never_asked_for_is_known() -> None:
    """F106 A run can tell which recorded keys it did not ask for."""
    journal = Journal([recorded(Kind.DO, "a"), recorded(Kind.DO, "b")])
    journal.ask(Kind.DO, "b")
    assert journal.unasked == 1
    assert [held.key for held in journal.never_asked()] == ["a"]
