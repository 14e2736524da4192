"""Calls back, on the event loop, when a letter may have arrived in the inbox."""

import asyncio
import os
from collections.abc import Callable

from durabletask_filesystem._files import Folder, Watchable
from durabletask_filesystem._inbox import FOLDER
from durabletask_filesystem._watch import drain

POLL_S = 0.05
"""Where the system does not tell."""


class Bell:
    """Watches the inbox until it is closed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Folder, ring: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._fd: int | None = None
        if not isinstance(folder, Watchable):
            return  # a simulated disk, which no other program can reach
        self._fd = folder.watch(FOLDER)
        if self._fd is None:
            self._poll()
            return
        try:
            loop.add_reader(self._fd, self._heard)
        except NotImplementedError:
            os.close(self._fd)
            self._fd = None
            self._poll()

    def _heard(self) -> None:
        assert self._fd is not None
        drain(self._fd)
        self._ring()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(POLL_S, self._poll)
        self._ring()

    def close(self) -> None:
        """Stop watching; safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd is not None:
            fd, self._fd = self._fd, None
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
            os.close(fd)
