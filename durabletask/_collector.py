"""Lets Python's garbage collector rest while a host takes in a crowd of processes.

What is made then stays, and the collector, which comes after so many new objects, would go over
all of it again and again: a quarter of the time that 10,000 processes take to go on. It belongs to
the whole program, so this is for a moment only, and several hosts of a program count as one.
"""

import asyncio
import gc
import os
from threading import Lock
from typing import Self

REST_MAX_S = 2.0
"""For how long at a time: what a program leaves behind in circles meanwhile stays in memory."""


class CollectorRest:
    """The collector's rest for the sake of one host, at the latest until its `with` is left."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._end: asyncio.TimerHandle | None = None
        self._is_spent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """There is a crowd: let it rest, unless it has had its rest since the last `end`."""
        if not self._is_spent:
            self._is_spent = True
            _resting.add()
            self._end = self._loop.call_later(REST_MAX_S, self._over)

    def end(self) -> None:
        """All that came is at work. Safe to repeat."""
        self._is_spent = False
        if self._end is not None:
            self._end.cancel()
            self._over()

    def _over(self) -> None:
        self._end = None
        _resting.remove()


class _Resting:
    """For how many hosts the collector rests now; of a program, whatever its threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._was_enabled = False

    def add(self) -> None:
        with self._lock:
            if self._count == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._count += 1

    def remove(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._was_enabled:
                gc.enable()

    def after_fork(self) -> None:
        """End the rest in a forked child: the loops that would are the parent's."""
        self._lock = Lock()
        if self._count and self._was_enabled:
            gc.enable()


_resting = _Resting()
os.register_at_fork(after_in_child=_resting.after_fork)
