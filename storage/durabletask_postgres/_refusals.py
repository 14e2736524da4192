"""What a refusal by the database means for a batch: a row is locked, or a place is taken."""

import asyncpg

from durabletask.errors import StorageError


def is_locked(error: StorageError) -> bool:
    """Return whether the database gave up waiting for a lock, so that nothing was written."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)


def is_taken(error: StorageError) -> bool:
    """Return whether a place was written before, as a repeat finds it; nothing was written."""
    return isinstance(error.__cause__, asyncpg.UniqueViolationError)


def gave_way(error: BaseException | None) -> bool:
    """Return whether a transaction was ended for another one, whatever was made of the error."""
    while error is not None:
        if isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError):
            return True
        error = error.__cause__ or error.__context__
    return False
