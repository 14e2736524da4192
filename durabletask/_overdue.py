"""Cancels the processes of a host whose deadline has passed.

Only while the host holds them: who takes one whose deadline passed meanwhile
cancels it then.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from durabletask._errors import StorageError
from durabletask._repeat import BACKOFF_MAX_S, MAY_PASS
from durabletask._timers import Timers

_log = logging.getLogger("durabletask")


class Overdue:
    """The deadlines of the processes that a session holds.

    Args:
        timers: By the storage's time.
        cancel: Asks the storage to cancel a process.
    """

    def __init__(
        self, timers: Timers, cancel: Callable[[str, str], Coroutine[Any, Any, None]]
    ) -> None:
        self._timers = timers
        self._cancel = cancel
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def watch(self, process_id: str, deadline_at: datetime) -> None:
        """Cancel the process when its deadline has passed, unless it is forgotten before."""
        timer = self._timers.at(deadline_at)
        self._waiting[process_id] = timer

        def passed(timer: "asyncio.Future[None]") -> None:
            if timer.cancelled() or self._waiting.get(process_id) is not timer:
                return
            del self._waiting[process_id]
            asking = self._ask(process_id, f"its deadline, {deadline_at.isoformat()}, has passed")
            task = asyncio.get_running_loop().create_task(asking, name="durabletask deadline")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

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

    async def _ask(self, process_id: str, reason: str) -> None:
        while True:
            try:
                return await self._cancel(process_id, reason)
            except MAY_PASS as error:
                _log.info("storage: %s; the deadline of %s again", error, ascii(process_id))
            except StorageError as error:
                # The session is at its end; who takes the process next looks at its deadline.
                _log.warning("the deadline of %s was not met: %s", ascii(process_id), error)
                return None
            await asyncio.sleep(BACKOFF_MAX_S)
