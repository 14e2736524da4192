"""Whether a refusal means that somebody else's transaction sits on a row."""

import asyncpg

from durabletask.errors import StorageError


def is_locked(error: StorageError) -> bool:
    """Return whether the database gave up waiting for a lock, so that nothing was written."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)
