"""Waiting for processes to end, wherever they run.

A process that runs on this host tells; every other one is looked at, when the
storage hints at it or when the poll interval is over. All waits share one look.

An id may be purged or replaced and created again. Who waits is never told of
another process than the one that had the id when the wait began, or that its
handle was given for: neither by a host that lets go of the earlier one late,
nor by a look that began before.
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
from durabletask._model import Ending, ProcessRow
from durabletask._storage import Hints, ProcessStorage

_log = logging.getLogger("durabletask")

READ_MAX = 1_000

REST = 4
"""A hint of "anything" is followed by a look at everything, but by none for so many times as long
as the last one took: a thousand waits beside a busy host would be read all the time."""


class _Waiter:
    """Somebody who waits; `incarnation` is None while it is not known whom for."""

    __slots__ = ("future", "incarnation")

    def __init__(self, future: asyncio.Future[Ending], incarnation: int | None) -> None:
        self.future = future
        self.incarnation = incarnation


class Watch:
    """The waits of one client or host for processes to end."""

    def __init__(
        self, storage: ProcessStorage, poll_s: float, here: Callable[[str], int | None]
    ) -> None:
        """Watch nothing yet.

        Args:
            poll_s: Longest time between two looks at a process that runs elsewhere.
            here: Which incarnation of a process runs on this host, so that
                `tell` will be called; None if none does.
        """
        self._storage = storage
        self._poll_s = poll_s
        self._here = here
        self._waiters: dict[str, list[_Waiter]] = {}
        self._task: asyncio.Task[None] | None = None
        self._hinted = asyncio.Event()
        self._named: set[str] = set()
        self._anything = False
        self._has_read = False

    async def wait(self, process_id: str, incarnation: int | None = None) -> Ending:
        """Return how a process has ended, once it has; QUARANTINED counts as an end here.

        Args:
            process_id: The process.
            incarnation: Which one of this id; None for the one that there is.

        Raises:
            UnknownProcessError: There is no such process, or no longer.
        """
        here = self._here(process_id)
        future: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(future, here if incarnation is None else incarnation)
        waiters = self._waiters.setdefault(process_id, [])
        waiters.append(waiter)
        if here is None or waiter.incarnation != here:
            self.look(process_id)
        try:
            return await future
        finally:
            waiters.remove(waiter)
            if not waiters and self._waiters.get(process_id) is waiters:
                del self._waiters[process_id]

    def tell(self, process_id: str, incarnation: int, ending: Ending | None) -> None:
        """Take note that a process has left this host; with None it has not ended."""
        if process_id not in self._waiters:
            return
        for waiter in self._waiters[process_id]:
            if ending is None or waiter.incarnation not in {None, incarnation}:
                self.look(process_id)
            elif not waiter.future.done():
                waiter.future.set_result(ending)

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
            while any(map(self._looking, self._waiters)):
                self._hinted.clear()
                named, self._named = self._named, set()
                begun_s = time_s()
                if begun_s >= (rested_s if self._anything else polled_s):
                    self._anything = False
                    await self._read_all([id for id in self._waiters if self._looking(id)])
                    polled_s = time_s() + self._poll_s
                    rested_s = min(time_s() + REST * (time_s() - begun_s), polled_s)
                else:
                    await self._read_all([id for id in named if self._looking(id)])
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(rested_s if self._anything else polled_s):
                        await self._hinted.wait()
        finally:
            unsubscribe()

    def _looking(self, process_id: str) -> tuple[_Waiter, ...]:
        """Return who waits for a process that does not run here."""
        here = self._here(process_id)
        waiters = self._waiters.get(process_id, ())
        return tuple(each for each in waiters if here is None or each.incarnation != here)

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
        # What is read is news to these: to who comes meanwhile it may be older than the wait.
        waiting = {id: self._looking(id) for id in ids}
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
            for waiter in waiting[process_id]:
                if not waiter.future.done():
                    _answer(waiter, process_id, None if snapshot is None else snapshot.row)

    def _fail_all(self, process_ids: list[str], error: Exception) -> None:
        for process_id in process_ids:
            self._fail(process_id, error)

    def _fail(self, process_id: str, error: Exception) -> None:
        for waiter in self._waiters.get(process_id, ()):
            if not waiter.future.done():
                waiter.future.set_exception(error)


def _answer(waiter: _Waiter, process_id: str, row: ProcessRow | None) -> None:
    """Tell a waiter what was read, if that is an answer."""
    if row is None:
        waiter.future.set_exception(unknown(process_id))
        return
    if waiter.incarnation is None:
        waiter.incarnation = row.incarnation
    if waiter.incarnation != row.incarnation:
        waiter.future.set_exception(gone(process_id))
    elif row.ending is not None:
        waiter.future.set_result(row.ending)


def unknown(process_id: str) -> UnknownProcessError:
    """Return the error for an id that no process has."""
    return UnknownProcessError(
        process_id,
        f"no process has the id {process_id!r}",
        hint="spawn it first; a purged process is gone with everything of it",
    )


def gone(process_id: str) -> UnknownProcessError:
    """Return the error for a process whose id belongs to another one by now."""
    return UnknownProcessError(
        process_id,
        f"process {process_id!r} was purged or replaced, and nobody here has seen its end",
        hint="what has the id now is another process; get() returns a handle for that one",
    )
