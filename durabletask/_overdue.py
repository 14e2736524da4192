"""Cancels the processes of a host whose deadline has passed.

Only while the host holds them: who takes one whose deadline passed meanwhile
cancels it then, and lets it run when that is stored. Otherwise it would go on
with new steps, days after its deadline, until the request has come back.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from durabletask._errors import StorageError
from durabletask._model import Claimed, Status
from durabletask._repeat import BACKOFF_MAX_S, MAY_PASS
from durabletask._timers import Timers

_log = logging.getLogger("durabletask")


class Overdue:
    """The deadlines of the processes that a session holds.

    Args:
        timers: By the storage's time.
        now: That time.
        cancel: Asks the storage to cancel a process.
        start: Runs one that was held back.
        tell: Hands a run what has arrived for it.
    """

    def __init__(
        self,
        timers: Timers,
        now: Callable[[], datetime],
        cancel: Callable[[str, str], Coroutine[Any, Any, None]],
        start: Callable[[Claimed], None],
        tell: Callable[[Claimed], None],
    ) -> None:
        self._timers = timers
        self._now = now
        self._cancel = cancel
        self._start = start
        self._tell = tell
        self._held_back: dict[str, list[Claimed]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._asking: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """How many processes are held back."""
        return len(self._held_back)

    def __contains__(self, process_id: str) -> bool:
        """Whether a process is held back."""
        return process_id in self._held_back

    def may_start(self, claimed: Claimed) -> bool:
        """Return whether a process may run now; if not it is asked to cancel itself before."""
        row = claimed.row
        if row.deadline_at is None or row.cancel_reason is not None:
            return True
        if row.status is Status.COMPENSATING or row.deadline_at > self._now():
            self._watch(row.process_id, row.deadline_at)
            return True
        self._held_back[row.process_id] = [claimed]
        self._task(self._ask_first(row.process_id, _reason(row.deadline_at)))
        return False

    def add_news(self, claimed: Claimed) -> None:
        """Keep what has arrived for a process that is held back."""
        self._held_back[claimed.row.process_id].append(claimed)

    def _watch(self, process_id: str, deadline_at: datetime) -> None:
        """Cancel the process when its deadline has passed, unless it is forgotten before."""
        timer = self._timers.at(deadline_at)
        self._waiting[process_id] = timer

        def passed(timer: "asyncio.Future[None]") -> None:
            if timer.cancelled() or self._waiting.get(process_id) is not timer:
                return
            del self._waiting[process_id]
            self._task(self._ask(process_id, _reason(deadline_at)))

        timer.add_done_callback(passed)

    def forget(self, process_id: str) -> None:
        """Watch a process no longer."""
        timer = self._waiting.pop(process_id, None)
        if timer is not None:
            self._timers.give_up(timer)

    async def close(self) -> None:
        """Watch nothing any more."""
        for process_id in tuple(self._waiting):
            self.forget(process_id)
        for task in tuple(self._asking):
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking)

    def _task(self, asking: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(asking, name="durabletask deadline")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask_first(self, process_id: str, reason: str) -> None:
        if await self._ask(process_id, reason):
            claimed, *news = self._held_back.pop(process_id)
            row = replace(claimed.row, cancel_reason=msgspec.json.encode(reason))
            self._start(replace(claimed, row=row))
            for each in news:
                self._tell(each)

    async def _ask(self, process_id: str, reason: str) -> bool:
        """Ask until there is an answer; return whether there was one."""
        while True:
            try:
                await self._cancel(process_id, reason)
                return True
            except MAY_PASS as error:
                _log.info("storage: %s; the deadline of %s again", error, ascii(process_id))
            except StorageError as error:
                # The session is at its end; who takes the process next looks at its deadline.
                _log.warning("the deadline of %s was not met: %s", ascii(process_id), error)
                return False
            await asyncio.sleep(BACKOFF_MAX_S)


def _reason(deadline_at: datetime) -> str:
    return f"its deadline, {deadline_at.isoformat()}, has passed"
