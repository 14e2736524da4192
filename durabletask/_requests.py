"""Asking things of processes: one request, or as many as a filter finds.

Repeats what may be repeated, and says what is not possible. What is asked is
described in `_control` and `_retry_plan`; what becomes of it is the storage's.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from msgspec.structs import replace

from durabletask._errors import (
    InvalidArgumentError,
    ProcessBusyError,
    ProcessFinishedError,
    ProcessStateError,
    StorageCorruptError,
    StorageUnknownError,
    UnknownProcessError,
)
from durabletask._filter import PAGE_MAX
from durabletask._model import (
    Action,
    Control,
    Controlled,
    ProcessRow,
    Query,
    Refusal,
    Snapshot,
    Status,
)
from durabletask._refused import busy
from durabletask._repeat import repeat_unknown
from durabletask._retry_plan import plan_retry
from durabletask._storage import ProcessStorage
from durabletask._transitions import FINISHED
from durabletask._watch import unknown

UNFINISHED = frozenset(Status) - FINISHED

POSSIBLE: dict[str, frozenset[Status]] = {
    "cancel": UNFINISHED,
    "terminate": UNFINISHED,
    "suspend": UNFINISHED - {Status.QUARANTINED},
    "resume": frozenset({Status.SUSPENDED}),
    "retry": frozenset({Status.FAILED, Status.QUARANTINED}),
    "purge": FINISHED,
}
"""What can be asked of a process in which status."""

REREADS_MAX = 10
"""For a retry, each time that somebody else was first."""

_RETRIABLE = POSSIBLE["retry"]

_FRESH_CHILD = "purge the child: then the retry of its parent spawns it anew"


@dataclass(slots=True)
class _Tally:
    """What became of many requests."""

    done: int = 0
    busy: int = 0
    first_busy: str = ""

    def check(self, verb: str) -> int:
        """Return how many were done, unless some could not be asked."""
        if self.busy:
            raise ProcessBusyError(
                f"{verb}: {self.busy:,} processes, {self.first_busy!r} among them, cannot be "
                f"written now: another open transaction holds them; {self.done:,} are done",
                hint="end that transaction, and ask again",
            )
        return self.done


class Requests:
    """Asks things of the processes of one storage."""

    def __init__(self, storage: ProcessStorage, new_id: Callable[[], str]) -> None:
        self._storage = storage
        self.new_id = new_id

    async def one(self, control: Control) -> ProcessRow | None:
        """Ask one thing of one process, until there is an answer.

        Raises:
            UnknownProcessError, ProcessFinishedError, ProcessStateError: It
                was refused; nothing was written.
            ProcessBusyError, StorageUnavailableError: Nothing was written; try again.
            StorageUnknownError: The answer was lost; try again.
        """
        answer = await self._ask(control)
        if answer.refused is not None:
            await self._refuse(control.process_id, control.action.value, answer.refused)
        return answer.row

    async def many(self, query: Query, verb: str, control_of: Callable[[str, str], Control]) -> int:
        """Ask the same of every process that a query finds, and return how many granted it.

        Args:
            query: With `limit` as the size of a batch.
            verb: What is asked, for messages.
            control_of: Makes the request from a process_id and a new id.

        Raises:
            ProcessBusyError: Some were held by others; all others were asked.
            StorageUnavailableError, StorageUnknownError: Some were perhaps not asked; try again.
        """
        tally = _Tally()
        async for rows in self._pages(query):
            controls = [control_of(row.process_id, self.new_id()) for row in rows]
            await self._ask_all(controls, tally)
        return tally.check(verb)

    # --- retry ------------------------------------------------------------------------------

    async def retry(self, process_id: str, from_key: str | None = None) -> None:
        """Let a failed or quarantined process go on, and the children whose failure it met.

        Raises:
            UnknownProcessError: There is no such process.
            ProcessStateError: It has not failed, or nothing is left to undo.
            InvalidArgumentError: Nothing is recorded under `from_key`.
            StorageCorruptError: Its history is damaged.
        """
        for _ in range(REREADS_MAX):
            (snapshot,) = await self._storage.read([process_id], history=True)
            if snapshot is None:
                raise unknown(process_id)
            if snapshot.row.status not in _RETRIABLE:
                raise not_possible(process_id, snapshot.row.status, "retry")
            control = await self._prepare(snapshot, from_key)
            answer = await self._ask(control)
            if answer.refused is None:
                return
            if answer.refused is not Refusal.NOT_OWNER:
                await self._refuse(process_id, "retry", answer.refused)
        raise ProcessBusyError(
            f"process {process_id!r} has changed {REREADS_MAX} times while it was to be retried",
            hint="try again; somebody else retries it too",
        )

    async def retry_many(self, query: Query, from_key: str | None = None) -> int:
        """Retry every process that a query finds, and return how many go on.

        Raises:
            ProcessBusyError: Some were held by others; all others were asked.
        """
        tally = _Tally()
        async for rows in self._pages(query):
            for row in rows:
                try:
                    await self.retry(row.process_id, from_key)
                except ProcessBusyError:
                    tally.busy += 1
                    tally.first_busy = tally.first_busy or row.process_id
                except (ProcessStateError, UnknownProcessError):
                    continue  # it is gone, or somebody else was first
                except (InvalidArgumentError, StorageCorruptError):
                    continue  # nothing is recorded under `from_key`, or nothing can be read
                else:
                    tally.done += 1
        return tally.check("retry")

    async def _prepare(self, snapshot: Snapshot, from_key: str | None) -> Control:
        row = snapshot.row
        plan = plan_retry(snapshot, from_key)
        for child_id in plan.children:
            await self._retry_child(child_id)
        return Control(
            process_id=row.process_id,
            action=Action.RETRY,
            request_id=self.new_id(),
            incarnation=row.incarnation,
            epoch=row.epoch,
            status=plan.status,
            forget=plan.forget,
            restores=plan.restores,
        )

    async def _retry_child(self, child_id: str) -> None:
        (snapshot,) = await self._storage.read([child_id])
        if snapshot is None or snapshot.row.status not in _RETRIABLE:
            return  # it runs again already, or is gone: what it comes to is told anew
        try:
            await self.retry(child_id)
        except UnknownProcessError:
            return
        except ProcessStateError as error:
            (snapshot,) = await self._storage.read([child_id])
            if snapshot is not None and snapshot.row.status in _RETRIABLE:
                # The parent would only meet the same failure again.
                raise ProcessStateError(
                    child_id, f"a child cannot be retried: {error}", hint=_FRESH_CHILD
                ) from error

    # --- purge ------------------------------------------------------------------------------

    async def purge(self, process_id: str, *, recursive: bool) -> int:
        """Remove a finished process, and if asked the finished ones below it; return how many.

        Raises:
            UnknownProcessError: There is no such process.
            ProcessStateError: It has not finished.
        """
        (snapshot,) = await self._storage.read([process_id])
        if snapshot is None:
            raise unknown(process_id)
        if snapshot.row.status not in FINISHED:
            raise not_possible(process_id, snapshot.row.status, "purge")
        tally = _Tally()
        if recursive:
            await self._purge_below([process_id], tally)
        await self._purge_all([process_id], tally)
        return tally.check("purge")

    async def purge_many(self, query: Query, *, recursive: bool) -> int:
        """Remove every finished process that a query finds, and return how many.

        Raises:
            ProcessBusyError: Some were held by others; all others are gone.
        """
        tally = _Tally()
        async for rows in self._pages(query):
            ids = [row.process_id for row in rows]
            if recursive:
                await self._purge_below(ids, tally)
            await self._purge_all(ids, tally)
        return tally.check("purge")

    async def purging(self, query: Query) -> AsyncIterator[int]:
        """Remove what a query finds, batch by batch, and yield after each how many there were.

        What cannot be removed now is passed over.
        """
        async for rows in self._pages(query):
            tally = _Tally()
            await self._purge_all([row.process_id for row in rows], tally)
            yield tally.done

    async def _purge_below(self, parents: Sequence[str], tally: _Tally) -> None:
        """Remove the finished descendants, the deepest first: until then they can be found."""
        levels = [list(parents)]
        while levels[-1]:
            levels.append([])
            for parent_id in levels[-2]:
                query = Query(parent_id=parent_id, statuses=FINISHED, limit=PAGE_MAX)
                async for rows in self._pages(query):
                    levels[-1] += [row.process_id for row in rows]
        for ids in reversed(levels[1:]):
            for start in range(0, len(ids), PAGE_MAX):
                await self._purge_all(ids[start : start + PAGE_MAX], tally)

    async def _purge_all(self, process_ids: Sequence[str], tally: _Tally) -> None:
        waiting = list(process_ids)
        unsure: set[str] = set()

        async def call() -> None:
            try:
                answers = await self._storage.purge(waiting)
            except StorageUnknownError:
                unsure.update(waiting)
                raise
            held = []
            for process_id, refused in zip(waiting, answers, strict=True):
                if refused is Refusal.BUSY:
                    held.append(process_id)
                elif refused is None or (
                    refused is Refusal.UNKNOWN_PROCESS and process_id in unsure
                ):
                    tally.done += 1
            waiting[:] = held
            if held:
                raise busy(held[0])

        await _until_asked(call, waiting, tally)

    # --- inside -----------------------------------------------------------------------------

    async def _pages(self, query: Query) -> AsyncIterator[Sequence[ProcessRow]]:
        cursor = query.cursor
        while True:
            page = await self._storage.list(replace(query, cursor=cursor))
            if page.rows:
                yield page.rows
            cursor = page.cursor
            if cursor is None:
                return

    async def _ask(self, control: Control) -> Controlled:
        async def call() -> Controlled:
            (answer,) = await self._storage.request([control])
            if answer.refused is Refusal.BUSY:
                raise busy(control.process_id)
            return answer

        return await repeat_unknown(call)

    async def _ask_all(self, controls: Iterable[Control], tally: _Tally) -> None:
        waiting = list(controls)

        async def call() -> None:
            answers = await self._storage.request(waiting)
            tally.done += sum(answer.refused is None for answer in answers)
            waiting[:] = [
                control
                for control, answer in zip(waiting, answers, strict=True)
                if answer.refused is Refusal.BUSY
            ]
            if waiting:
                raise busy(waiting[0].process_id)

        await _until_asked(call, waiting, tally)

    async def _refuse(self, process_id: str, verb: str, refused: Refusal) -> NoReturn:
        (snapshot,) = await self._storage.read([process_id])
        if refused is Refusal.UNKNOWN_PROCESS or snapshot is None:
            raise unknown(process_id)
        raise not_possible(process_id, snapshot.row.status, verb)


async def _until_asked(
    call: Callable[[], Awaitable[None]], waiting: Sequence[Control | str], tally: _Tally
) -> None:
    """Make a call until nobody is busy any more; note those that stay so."""
    try:
        await repeat_unknown(call)
    except ProcessBusyError:
        first = waiting[0]
        tally.busy += len(waiting)
        tally.first_busy = tally.first_busy or (
            first.process_id if isinstance(first, Control) else first
        )


def not_possible(
    process_id: str, status: Status, verb: str
) -> ProcessStateError | ProcessFinishedError:
    """Return what tells why something cannot be asked of a process."""
    possible = sorted(other for other, statuses in POSSIBLE.items() if status in statuses)
    text = f"process {process_id!r} is {status.value}: {verb} is not possible"
    hint = f"possible now: {', '.join(possible)}" if possible else None
    if status in FINISHED and verb not in ("retry", "purge"):
        return ProcessFinishedError(process_id, f"{text}; nothing was written", hint=hint)
    return ProcessStateError(process_id, f"{text}; nothing was written", hint=hint)
