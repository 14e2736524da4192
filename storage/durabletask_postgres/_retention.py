"""Purging what has finished long ago, in bounded batches, beside everything else."""

import asyncio
import logging
from datetime import timedelta

from durabletask.errors import InvalidArgumentError, StorageError
from durabletask_postgres._line import Fetch

_log = logging.getLogger("durabletask")

BATCH_MAX = 1_000
"""Processes a transaction: a few milliseconds, so that nobody waits for it."""

PAUSE_S = 60.0
"""Between two rounds when there was less than a batch to do."""


class Retention:
    """Purges in the background for as long as it is not closed."""

    def __init__(
        self,
        fetch: Fetch,
        statement: str,
        keep: timedelta | None,
    ) -> None:
        """Prepare it.

        Raises:
            InvalidArgumentError: `keep` is no time, or not above zero.
        """
        if keep is not None and not (isinstance(keep, timedelta) and keep > timedelta(0)):
            raise InvalidArgumentError(f"retention must be a timedelta above zero, not {keep!r}")
        self._fetch = fetch
        self._statement = statement
        self._keep = keep
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to purge, if there is anything to purge and it has not begun."""
        if self._keep is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._purge_for_ever(self._keep), name="durabletask retention"
            )

    async def close(self) -> None:
        """End. A batch in flight is done wholly or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _purge_for_ever(self, keep: timedelta) -> None:
        while True:
            purged = await self._purge(keep)
            await asyncio.sleep(0 if purged >= BATCH_MAX else PAUSE_S)

    async def _purge(self, keep: timedelta) -> int:
        try:
            ((purged,),) = await self._fetch(self._statement, keep, BATCH_MAX)
        except StorageError as error:
            _log.warning("finished processes were not purged: %s", error)
            return 0
        return int(purged)
