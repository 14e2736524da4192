"""Every error of the driver, the network and the server, turned into one of ours.

Knows SQLSTATEs and what each says about the one question that matters: was it
written? Refuses to know what was asked. The text of an error is the server's
first line only: its details can hold stored values, and those are nobody's
who reads a log.

Source: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

import ssl
from typing import Final

import asyncpg

from durabletask.errors import (
    LeaseLostError,
    StorageAccessError,
    StorageError,
    StorageFormatError,
    StorageRewoundError,
    StorageUnavailableError,
    StorageUnknownError,
)

DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # holds TimeoutError too
    EOFError,
)
"""What a call of asyncpg can raise for reasons that are not ours."""

TEXT_MAX = 300
"""Of a server's message; the rest is not worth the room in a log."""

NOT_READ_COMMITTED = "DT003"

_LOST_WITH_ANSWER: Final = frozenset(
    {
        "40003",  # statement_completion_unknown
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P04",  # database_dropped
        "57P05",  # idle_session_timeout
        "25P03",  # idle_in_transaction_session_timeout: may have come in place of COMMIT's answer
        "25P04",  # transaction_timeout
    }
)
_REFUSED_FOR_NOW: Final = frozenset(
    {
        "25006",  # read_only_sql_transaction: a failover under way
        "26000",  # invalid_sql_statement_name: a pooler changed the session
        "42P05",  # duplicate_prepared_statement: the same
        "55006",  # object_in_use
        "55P03",  # lock_not_available
        "57014",  # query_canceled
        "57P03",  # cannot_connect_now
        NOT_READ_COMMITTED,  # the server's default has changed; the next call says what it needs
    }
)
_ACCESS: Final = frozenset({"3D000", "42501"})  # no such database; insufficient_privilege
_FORMAT: Final = frozenset(
    {
        "3F000",  # invalid_schema_name
        "42P01",  # undefined_table
        "42703",  # undefined_column
        "42704",  # undefined_object
        "42883",  # undefined_function
    }
)

_HINTS: Final = {
    "26000": "behind a pooler in transaction mode, create the pool with statement_cache_size=0",
    "42P05": "behind a pooler in transaction mode, create the pool with statement_cache_size=0",
    "28000": "create the role, or let pg_hba.conf admit it",
    "28P01": "correct the password in the DSN, PGPASSWORD or the password file",
    "3D000": "create the database, or name another one in the DSN",
    "42501": "grant the role what `python -m durabletask_postgres grant ROLE` prints",
    "53300": "give the server more max_connections, or the storage fewer connections_max",
}
_MIGRATE = "run `python -m durabletask_postgres migrate DSN` as the owner of the schema"


NOTHING_WRITTEN: Final = (
    LeaseLostError,
    StorageAccessError,
    StorageFormatError,
    StorageUnavailableError,
)
"""After these a statement has certainly written nothing. Of a call of several see `partly`."""


class UnexpectedError(StorageUnavailableError):
    """The server refused a call for a reason that no rule covers; nothing of it was written.

    One damaged or odd process must not hold up the others: whoever sent a
    batch splits it until the culprit stands alone. Whoever did not, asks again,
    loudly: what stands in the way may go, and no database error ends a host.

    Attributes:
        sqlstate: What the server called it.
    """

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def partly(error: StorageError) -> StorageUnknownError:
    """Return what a call of several statements says when one fails after another was carried out.

    That one has certainly written nothing, and of the call this would be untrue.
    A repeat finds what is there, and is told how it stands by then.
    """
    return StorageUnknownError(f"a part of the call was carried out, and then not: {error}")


def storage_error(error: BaseException, *, sent: bool) -> StorageError:
    """Return what an error of a call means at the storage seam.

    Args:
        error: One of `DRIVER_ERRORS`; an error of ours is returned as it is.
        sent: Whether anything that writes may have reached the server.
    """
    if isinstance(error, StorageError):
        return error
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        # The driver has dropped the plan by now; a repeat makes a new one.
        return StorageUnavailableError(f"the schema has changed: {text_of(error)}")
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None:
        if sent and error.severity_en == "PANIC":
            # At the commit, and after the crash the server may find that in its log.
            return StorageUnknownError(f"Postgres broke down: {text_of(error)} [{error.sqlstate}]")
        return _of_state(error.sqlstate, text_of(error), sent)
    if isinstance(error, ssl.SSLCertVerificationError):
        return StorageAccessError(
            f"the certificate of the server is not trusted: {text_of(error)}",
            hint="name the authority in the DSN, sslrootcert=FILE, and the host as it certifies it",
        )
    if not sent:
        return StorageUnavailableError(f"Postgres cannot be reached: {text_of(error)}")
    return StorageUnknownError(f"the answer of Postgres was lost: {text_of(error)}")


def uncommitted(error: BaseException) -> StorageError:
    """Return what an error means before the commit: a lost answer is no doubt, nothing is written.

    The transaction has ended with its connection.
    """
    told = storage_error(error, sent=True)
    lost = isinstance(told, StorageUnknownError)
    return StorageUnavailableError(str(told)) if lost else told


def text_of(error: BaseException) -> str:
    """Return the first line of an error's message in printable characters, or its class."""
    # The driver appends the details to the text of its own errors; the first argument has none.
    message = str(error.args[0] if isinstance(error, asyncpg.PostgresError) else error)
    line = message.strip().partition("\n")[0]
    printable = "".join(c if c.isprintable() else "?" for c in line[:TEXT_MAX])
    return printable or type(error).__name__


def _of_state(state: str, text: str, sent: bool) -> StorageError:
    """Return the error for a SQLSTATE; the driver's own losses carry one of class 08."""
    message = f"Postgres says: {text} [{state}]"
    hint = _HINTS.get(state)
    if state == "DT001":
        return LeaseLostError(text)
    if state == "DT002":
        return StorageRewoundError(text)
    if state in _ACCESS or state.startswith("28"):
        return StorageAccessError(message, hint=hint)
    if state in _FORMAT:
        return StorageFormatError(f"the schema is missing or older: {message}", hint=_MIGRATE)
    if state in _REFUSED_FOR_NOW or (state[:2] in {"40", "53"} and state != "40003"):
        return StorageUnavailableError(message, hint=hint)
    if not sent:
        return StorageUnavailableError(message, hint=hint)
    if state in _LOST_WITH_ANSWER or state.startswith("08"):
        return StorageUnknownError(message)
    return UnexpectedError(message, state)
