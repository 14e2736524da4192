"""Asking a storage again: which of its refusals pass, and how long to wait in between."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from durabletask._errors import (
    ProcessBusyError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    StorageUnknownError,
)

R = TypeVar("R")

BACKOFF_MIN_S = 0.02
BACKOFF_MAX_S = 2.0
REPEATS_MAX = 8
"""For calls from outside: about four seconds of pauses, then the caller is told how it stands. Each
answer that is waited for in vain comes on top: ten seconds on Postgres, five on files."""

MAY_PASS = (StorageUnavailableError, StorageUnknownError, StorageAccessError)
"""What a host outlasts for as long as its lease lasts. A password or a right that was taken away
is given back by a person, who is told by the log and must not also have to restart the hosts."""


def loudness(error: Exception) -> int:
    """Return the level to log a passing trouble at: an error if a person has to act."""
    return logging.ERROR if isinstance(error, StorageAccessError) else logging.WARNING


async def repeat_unknown(call: Callable[[], Awaitable[R]], repeats_max: float = REPEATS_MAX) -> R:
    """Make a repeatable call until its answer arrives, or while its process is busy.

    Once an answer was lost, "unavailable" is no answer either: it says that
    the repeat wrote nothing, and not what the first call did.

    Raises:
        StorageUnknownError: It never arrived; the write may or may not have happened.
        StorageUnavailableError, StorageAccessError: Nothing was written.
    """
    wait_s = BACKOFF_MIN_S
    lost: StorageUnknownError | None = None
    trouble: StorageError
    repeats = 0
    while True:
        try:
            return await call()
        except StorageUnknownError as error:
            lost = trouble = error
        except ProcessBusyError as error:
            trouble = lost or error
        except (StorageUnavailableError, StorageAccessError):
            if lost is None:
                raise
            trouble = lost
        if repeats >= repeats_max:
            raise trouble
        repeats += 1
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, BACKOFF_MAX_S)
