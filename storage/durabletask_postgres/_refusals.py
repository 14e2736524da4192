"""What a refusal by the database means: a row is locked, a place is taken, a page is damaged."""

import asyncpg

from durabletask.errors import StorageError
from durabletask_postgres._trouble import UnexpectedError

_DAMAGE = ("XX", "58", "54")
"""Classes of SQLSTATEs: a page, an index or a value is damaged; the disk answers with an error."""


def is_locked(error: StorageError) -> bool:
    """Return whether the database gave up waiting for a lock, so that nothing was written."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)


def is_taken(error: StorageError) -> bool:
    """Return whether a place was written before, as a repeat finds it; nothing was written."""
    return isinstance(error.__cause__, asyncpg.UniqueViolationError)


def is_damage(error: StorageError) -> bool:
    """Return whether the server met what it cannot read, or not hand out; nothing was written."""
    return isinstance(error, UnexpectedError) and error.sqlstate.startswith(_DAMAGE)


def gave_way(error: BaseException | None) -> bool:
    """Return whether a transaction was ended for another one, whatever was made of the error."""
    while error is not None:
        if isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError):
            return True
        error = error.__cause__ or error.__context__
    return False
