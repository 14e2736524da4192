"""`FileSystemStorage`: the seam of a folder, for one event loop.

Gathers what is asked while a write is under way and hands it to the store as
one batch, on one worker thread. Knows nothing of files or formats; all that is
decided about processes is decided by the `Store`.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from durabletask.errors import (
    DurableTaskError,
    HostStateError,
    InvalidArgumentError,
    LimitExceededError,
    StorageFailedError,
    StorageUnknownError,
)
from durabletask.storage import (
    Claims,
    Clock,
    Control,
    Controlled,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    Query,
    Refusal,
    Snapshot,
    SystemClock,
    Unit,
    UnitOutcome,
)
from durabletask_filesystem._bell import Bell
from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._files import Folder
from durabletask_filesystem._requests import (
    Answer,
    Ask,
    Claim,
    CloseLease,
    Commit,
    Compact,
    Create,
    Deliver,
    ListPage,
    OpenLease,
    Purge,
    Read,
    Renew,
    Request,
)
from durabletask_filesystem._store import SEGMENT_BYTES_MAX
from durabletask_filesystem._thread import OneThread
from durabletask_filesystem._worker import Worker

Waiter = tuple[Request, "asyncio.Future[Any]"]
Answers = list[Answer]
Names = list[str | None]

BATCH_MAX = 1_000
"""Of `create`, `request`, `read` and `purge`, as the seam says."""

PAGE_MAX = 1_000


class FileSystemStorage:
    """Processes in a folder of the local disk; one host at a time.

    Args:
        path: The folder; made with its parents (mode 0700) when first used.
            `~` is an ordinary character.
        clock: The storage's time.
        folder: Another disk than the real one.
        segment_bytes_max: A segment that has grown beyond this is sealed.
        reply_timeout_s: How long a call waits for the program that holds the folder.

    A program that has no lease holds the folder only while it answers a call,
    so that a host can start at any time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        folder: Folder | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        reply_timeout_s: float = 5.0,
    ) -> None:
        self._folder = RealFolder(path) if folder is None else folder
        self._worker = Worker(
            self._folder,
            SystemClock() if clock is None else clock,
            segment_bytes_max=segment_bytes_max,
            reply_timeout_s=reply_timeout_s,
        )
        self._thread: OneThread | None = None
        self._queue: list[Waiter] = []
        self._flying = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._last_landing: asyncio.Future[None] | None = None
        self._rung = False
        self._bell: Bell | None = None
        self._listeners: list[Callable[[str | None], None]] = []

    # --- the seam ------------------------------------------------------------------------

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; see `ProcessStorage`."""
        _check_size("create", processes)
        created: Sequence[Created] = await self._ask(Create(tuple(processes), lease))
        return created

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes; see `ProcessStorage`."""
        delivered: Sequence[Delivered] = await self._ask(Deliver(tuple(events), mailbox_max))
        return delivered

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        """Ask something of processes; see `ProcessStorage`."""
        _check_size("request", controls)
        answers: Sequence[Controlled] = await self._ask(Ask(tuple(controls)))
        return answers

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        """Read processes; see `ProcessStorage`."""
        _check_size("read", process_ids)
        found: Sequence[Snapshot | None] = await self._ask(Read(tuple(process_ids), history))
        return found

    async def list(self, query: Query) -> Page:
        """List processes; see `ProcessStorage`."""
        if not 1 <= query.limit <= PAGE_MAX:
            raise InvalidArgumentError(f"limit must be 1 to {PAGE_MAX:,}, not {query.limit}")
        rows: list[Any] = []
        cursor = query.cursor
        while True:
            part = msgspec.structs.replace(query, cursor=cursor, limit=query.limit - len(rows))
            # Many short looks, so that commits come between them.
            page: Page = await self._ask(ListPage(part))
            rows.extend(page.rows)
            cursor = page.cursor
            if cursor is None or len(rows) >= query.limit:
                return Page(tuple(rows), cursor)

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        """Remove finished processes; see `ProcessStorage`."""
        _check_size("purge", process_ids)
        refusals: Sequence[Refusal | None] = await self._ask(Purge(tuple(process_ids)))
        return refusals

    async def open_lease(self, host_id: str, label: str) -> Lease:
        """Begin a host's right to write; see `ProcessStorage`."""
        lease: Lease = await self._ask(OpenLease(host_id, label))
        return lease

    async def renew(self, lease: Lease) -> Lease:
        """Say that the lease is still valid; it has no end. See `ProcessStorage`."""
        renewed: Lease = await self._ask(Renew(lease))
        return renewed

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        """Take claimable processes and hear news; see `ProcessStorage`."""
        request = Claim(lease, claim_id, tuple(names), count_max, dict(rooms or {}))
        claims: Claims = await self._ask(request)
        return claims

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units; see `ProcessStorage`."""
        outcomes: Sequence[UnitOutcome] = await self._ask(Commit(lease, tuple(units)))
        return outcomes

    async def close_lease(self, lease: Lease) -> None:
        """End a lease and let another program have the folder; see `ProcessStorage`."""
        await self._ask(CloseLease(lease))

    async def compact(self) -> int:
        """Merge all sealed segments without what nobody can ask for; return the bytes gained.

        The storage does it by itself when it pays. Holds up other calls.

        Raises:
            StorageBusyError: Another program has the folder.
        """
        gained: int = await self._ask(Compact())
        return gained

    async def close(self) -> None:
        """Answer what was asked, then give back folder and thread. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        self._stop_listening()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._move_to(loop)
        if self._flying:
            self._last_landing = loop.create_future()
            await self._last_landing
        if self._thread is not None:
            await loop.run_in_executor(self._thread, self._worker.close)
            self._thread.shutdown()

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Call back when something may have changed; see `Hints`."""
        entry = partial(callback)
        self._listeners.append(entry)

        def end() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)

        return end

    # --- group commit --------------------------------------------------------------------

    def _ask(self, request: Request) -> "asyncio.Future[Any]":
        """Put a request into the next batch; cancelling the future does not take it back."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self._closed:
            future.set_exception(StorageFailedError("the storage is closed"))
            return future
        if loop is not self._loop:
            self._move_to(loop)
        self._queue.append((request, future))
        if not self._flying:
            self._flying = True
            if isinstance(request, Commit):
                self._fly(loop)  # whoever commits has gathered already
            else:
                # Not at once: what else is asked in this turn of the loop comes along.
                loop.call_soon(self._fly, loop)
        return future

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve another loop, after the one before was closed.

        Raises:
            HostStateError: It still runs.
        """
        if self._loop is not None:
            if not self._loop.is_closed():
                raise HostStateError(
                    "this storage belongs to another event loop", hint="make one storage a loop"
                )
            # What was on its way there will never land; nobody waits for it any more.
            self._flying = False
            self._queue.clear()
            self._stop_listening()
        self._loop = loop

    def _fly(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._queue = self._queue, []
        rung, self._rung = self._rung, False
        if self._thread is None:
            self._thread = OneThread("durabletask-filesystem")
        requests = [request for request, _ in batch]
        job = loop.run_in_executor(self._thread, self._worker.work, requests, rung)
        job.add_done_callback(partial(self._landed, loop, batch))

    def _landed(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[Waiter],
        job: "asyncio.Future[Answers]",
    ) -> None:
        # Before the next flight, which brings its own.
        asked, stirred = self._worker.take_asked(), self._worker.take_stirred()
        self._after(loop)
        error = (
            StorageUnknownError("the worker was stopped") if job.cancelled() else job.exception()
        )
        if error is not None:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        if self._listeners:
            self._hint(loop, stirred)
        for (request, future), answer in zip(batch, job.result(), strict=True):
            if self._listeners:
                # Before the answer: so a host can tell news from what it has stored itself.
                self._hint(loop, _changed(request, answer))
            if not future.done():
                if isinstance(answer, DurableTaskError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        for request in asked:
            self._hint(loop, _changed(request, None))

    def _after(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next flight if there is anything for it; one at a time."""
        if self._closed:
            self._rung = False
        elif self._worker.leased:
            self._listen(loop)
            if self._worker.compacting:
                unheard = loop.create_future()
                unheard.add_done_callback(asyncio.Future.exception)
                self._queue.append((Compact(slice=True), unheard))
        else:
            self._stop_listening()
        if self._queue or self._rung:
            self._fly(loop)
        else:
            self._flying = False
            if self._last_landing is not None and not self._last_landing.done():
                self._last_landing.set_result(None)

    def _hint(self, loop: asyncio.AbstractEventLoop, changed: Sequence[str | None]) -> None:
        if changed:
            for listener in self._listeners:
                loop.call_soon(self._tell, listener, changed)

    def _tell(self, listener: Callable[[str | None], None], changed: Sequence[str | None]) -> None:
        for process_id in changed:
            if listener in self._listeners:
                listener(process_id)

    # --- letters of other programs -----------------------------------------------------------

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look into the inbox now, and whenever something arrives there, while there is a lease."""
        if self._bell is None:
            self._bell = Bell(loop, self._folder, partial(self._ring, loop))
            self._ring(loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rung = True
        if not self._flying:
            self._flying = True
            loop.call_soon(self._fly, loop)

    def _stop_listening(self) -> None:
        if self._bell is not None:
            self._bell.close()
            self._bell = None


def _check_size(what: str, batch: Sequence[object]) -> None:
    if len(batch) > BATCH_MAX:
        raise LimitExceededError(
            f"{what} takes at most {BATCH_MAX:,} at once, not {len(batch):,}; nothing was written",
            hint="split the batch",
        )


def _changed(request: Request, answer: Answer | None) -> Names:
    """Return whom a request may have made claimable, given news or ended; None for anyone."""
    match request:
        case Commit(_, units):
            return [
                unit.process_id
                for unit in units
                if unit.ending is not None or unit.leave is not None
            ]
        case Create(processes, None):
            return [new.process_id for new in processes]
        case Create():
            # What its own host creates and takes at once is nobody's news.
            created = answer if isinstance(answer, tuple) else ()
            return [
                each.row.process_id
                for each in created
                if isinstance(each, Created) and each.row and not each.row.owner
            ]
        case Deliver(events, _):
            return [event.process_id for event in events]
        case Purge(process_ids):
            return list(process_ids)
        case CloseLease():
            return [None]
        case _:
            return []
