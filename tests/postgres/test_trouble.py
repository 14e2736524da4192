"""What each error of the driver and the server means for the one question: was it written?"""

import ssl
from typing import Any

import asyncpg
import pytest

from durabletask.errors import (
    LeaseLostError,
    StorageAccessError,
    StorageError,
    StorageFormatError,
    StorageRewoundError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask_postgres._trouble import TEXT_MAX, UnexpectedError, storage_error, text_of


def server_says(state: str, text: str = "no", **more: str) -> asyncpg.PostgresError:
    """Return the driver's exception for an error of the server."""
    fields: dict[str, str] = {"S": "ERROR", "C": state, "M": text, **more}
    new: Any = asyncpg.PostgresError
    error = new.new(fields)
    assert isinstance(error, asyncpg.PostgresError)
    return error


REFUSED_FOR_NOW = (
    *("40001", "40P01", "40002", "55P03", "57014", "25006", "57P03", "26000", "42P05"),
    *("53000", "53100", "53200", "53300", "DT003", "55006"),
)
LOST = ("40003", "57P01", "57P02", "57P04", "57P05", "25P03", "08000", "08003", "08006", "08P01")
ACCESS = ("28000", "28P01", "3D000", "42501")
FORMAT = ("3F000", "42P01", "42703", "42704", "42883")
UNEXPECTED = ("22021", "23505", "XX000", "XX001", "58030", "42601", "P0001", "25P02", "22P02")


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        (REFUSED_FOR_NOW, StorageUnavailableError),
        (LOST, StorageUnknownError),
        (ACCESS, StorageAccessError),
        (FORMAT, StorageFormatError),
        (UNEXPECTED, UnexpectedError),
        (("DT001",), LeaseLostError),
        (("DT002",), StorageRewoundError),
    ],
    ids=["refused", "lost", "access", "format", "unexpected", "lease", "rewound"],
)
def test_every_state_of_the_server_has_one_meaning(
    states: tuple[str, ...], kind: type[StorageError]
) -> None:
    """F055: each SQLSTATE maps to refused, unknown or a lasting error, and to nothing beside."""
    assert {type(storage_error(server_says(state), sent=True)) for state in states} == {kind}


@pytest.mark.parametrize("state", [*REFUSED_FOR_NOW, *LOST, *UNEXPECTED])
def test_before_anything_was_sent_nothing_can_be_unknown(state: str) -> None:
    """An error of connecting is never "maybe written"."""
    assert type(storage_error(server_says(state), sent=False)) is StorageUnavailableError


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError(),
        ssl.SSLError("broken"),
        EOFError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("odd"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lost_connection_is_unknown_once_something_was_sent(error: Exception) -> None:
    """F051, F052: the driver raises the same before and after the commit, so it is unknown."""
    assert type(storage_error(error, sent=True)) is StorageUnknownError
    assert type(storage_error(error, sent=False)) is StorageUnavailableError


@pytest.mark.parametrize("state", ["53100", "58030", "XX000"])
def test_a_server_that_breaks_down_leaves_a_doubt(state: str) -> None:
    """F050 F027: a full disk or a failed sync at the commit: it may be there after all."""
    error = server_says(state, "could not write to the log", S="PANIC", V="PANIC")
    assert type(storage_error(error, sent=True)) is StorageUnknownError
    assert type(storage_error(error, sent=False)) is StorageUnavailableError


def test_an_unexpected_error_keeps_its_state() -> None:
    """Who splits a batch can see what the server called the error."""
    error = storage_error(server_says("XX001"), sent=True)
    assert isinstance(error, UnexpectedError)
    assert error.sqlstate == "XX001"


def test_an_error_of_ours_passes() -> None:
    """What has been mapped is not mapped again."""
    ours = LeaseLostError("gone")
    assert storage_error(ours, sent=True) is ours


def test_a_changed_schema_is_asked_again() -> None:
    """A plan that a migration has made invalid is made anew by a repeat."""
    error = server_says("0A000", R="RevalidateCachedQuery")
    assert isinstance(error, asyncpg.InvalidCachedStatementError)
    assert type(storage_error(error, sent=True)) is StorageUnavailableError


def test_details_with_stored_values_are_not_repeated() -> None:
    """F138: the detail of an error can hold a stored value; no message of ours does."""
    error = server_says("23505", "duplicate key", D="Key (payload)=(canary) already exists.")
    assert "canary" in str(error)
    assert "canary" not in str(storage_error(error, sent=True))


def test_a_message_is_one_printable_line() -> None:
    """F139: what comes from outside cannot forge a line of a log or write to a terminal."""
    error = server_says("XX000", "a\x1b[31mb\u202ec" + "x" * 1_000 + "\nINFO all is well")
    text = text_of(error)
    assert text.startswith("a?[31mb?c")
    assert len(text) == TEXT_MAX
    assert text_of(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize("state", ["28P01", "3D000", "42501", "53300", "42P01", "42P05"])
def test_what_somebody_can_change_has_a_hint(state: str) -> None:
    """The message of an error that needs an operator says what to do."""
    assert storage_error(server_says(state), sent=True).hint
