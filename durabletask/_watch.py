"""Waiting for processes to end, wherever they run.

A process that runs on this host tells; every other one is looked at, when the
storage hints at it or when the poll interval is over. All waits share one look.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress

from durabletask._errors import (
    StorageAccessError,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
    StorageUnknownError,
    UnknownProcessError,
)
from durabletask._model import Ending
from durabletask._storage import Hints, ProcessStorage

_log = logging.getLogger("durabletask")

READ_MAX = 1_000

REST = 4
"""A hint of "anything" is followed by a look at everything, but by none for so many times as long
as the last one took: a thousand waits beside a busy host would be read all the time."""


class Watch:
    """The waits of one client or host for processes to end."""

    def __init__(
        self, storage: ProcessStorage, poll_s: float, is_here: Callable[[str], bool]
    ) -> None:
        """Watch nothing yet.

        Args:
            poll_s: Longest time between two looks at a process that runs elsewhere.
            is_here: Whether a process runs on this host, so that `tell` will be called.
        """
        self._storage = storage
        self._poll_s = poll_s
        self._is_here = is_here
        self._waiters: dict[str, list[asyncio.Future[Ending]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._hinted = asyncio.Event()
        self._named: set[str] = set()
        self._anything = False
        self._has_read = False

    async def wait(self, process_id: str) -> Ending:
        """Return how a process has ended, once it has; QUARANTINED counts as an end here.

        Raises:
            UnknownProcessError: There is no such process.
        """
        waiter: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(process_id, [])
        waiters.append(waiter)
        if not self._is_here(process_id):
            self.look(process_id)
        try:
            return await waiter
        finally:
            waiters.remove(waiter)
            if not waiters and self._waiters.get(process_id) is waiters:
                del self._waiters[process_id]

    def tell(self, process_id: str, ending: Ending | None) -> None:
        """Take note that a process has left this host; with None it has not ended."""
        if process_id not in self._waiters:
            return
        if ending is None:
            self.look(process_id)
            return
        for waiter in self._waiters[process_id]:
            if not waiter.done():
                waiter.set_result(ending)

    def look(self, process_id: str) -> None:
        """Look at a process now, and go on while anybody waits for one that is not here."""
        self._hint(process_id)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(
                self._look_while_needed(), name="durabletask watch"
            )

    async def close(self, error: Exception) -> None:
        """Let every wait end with `error`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for process_id in list(self._waiters):
            self._fail(process_id, error)

    async def _look_while_needed(self) -> None:
        unsubscribe = (
            self._storage.subscribe(self._hint)
            if isinstance(self._storage, Hints)
            else lambda: None
        )
        time_s = asyncio.get_running_loop().time
        polled_s = rested_s = -math.inf
        try:
            while ids := [id for id in self._waiters if not self._is_here(id)]:
                self._hinted.clear()
                named, self._named = self._named, set()
                begun_s = time_s()
                if begun_s >= (rested_s if self._anything else polled_s):
                    self._anything = False
                    await self._read_all(ids)
                    polled_s = time_s() + self._poll_s
                    rested_s = min(time_s() + REST * (time_s() - begun_s), polled_s)
                else:
                    await self._read_all([id for id in ids if id in named])
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(rested_s if self._anything else polled_s):
                        await self._hinted.wait()
        finally:
            unsubscribe()

    def _hint(self, process_id: str | None) -> None:
        if process_id is None:
            self._anything = True
        elif process_id in self._waiters:
            self._named.add(process_id)
        else:
            return
        self._hinted.set()

    async def _read_all(self, ids: list[str]) -> None:
        for start in range(0, len(ids), READ_MAX):
            await self._read(ids[start : start + READ_MAX])

    async def _read(self, ids: list[str]) -> None:
        try:
            snapshots = await self._storage.read(ids)
        except (StorageUnavailableError, StorageUnknownError):
            return  # an outage only makes the wait longer
        except StorageAccessError as error:
            if self._has_read:  # what worked before will again, once somebody has acted
                _log.error("storage: %s; looking again", error)
            else:
                self._fail_all(ids, error)
            return
        except StorageCorruptError as error:
            if len(ids) > 1:  # the others can be read, in calls of their own
                await self._read(ids[: len(ids) // 2])
                await self._read(ids[len(ids) // 2 :])
            else:
                self._fail_all(ids, error)
            return
        except StorageError as error:
            self._fail_all(ids, error)
            return
        self._has_read = True
        for process_id, snapshot in zip(ids, snapshots, strict=True):
            if snapshot is None:
                self._fail(process_id, unknown(process_id))
            elif snapshot.row.ending is not None:
                self.tell(process_id, snapshot.row.ending)

    def _fail_all(self, process_ids: list[str], error: Exception) -> None:
        for process_id in process_ids:
            self._fail(process_id, error)

    def _fail(self, process_id: str, error: Exception) -> None:
        for waiter in self._waiters.get(process_id, ()):
            if not waiter.done():
                waiter.set_exception(error)


def unknown(process_id: str) -> UnknownProcessError:
    """Return the error for an id that no process has."""
    return UnknownProcessError(
        process_id,
        f"no process has the id {process_id!r}",
        hint="spawn it first; a purged process is gone with everything of it",
    )
