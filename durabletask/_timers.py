"""When a wait falls due. One heap and one loop timer for all processes of a host.

Due times are the storage's; `now` gives a lower bound of the storage's time,
so nothing fires early.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import datetime
from typing import Any

GIVEN_UP_MIN = 100
"""Fewer are not worth a look."""


class Timers:
    """Futures that are set when the storage's time has reached their due time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, now: Callable[[], datetime], recheck_s: float
    ) -> None:
        self._loop = loop
        self._now = now
        self._recheck_s = recheck_s
        self._heap: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._given_up = 0
        self._handle: asyncio.TimerHandle | None = None

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        """Take note that nobody waits for a future any more; it fires no more.

        The heap is built anew when most of it is given up: short waits with long
        timeouts would otherwise stay until the timeouts are due.
        """
        if future.done() and not future.cancelled() and future.exception() is None:
            return  # it has fired
        # Ended by somebody else, a request or an interrupt, it is in the heap all the same, and
        # what ended it holds on to the frames that it went through.
        future.cancel()
        self._given_up += 1
        if self._given_up > GIVEN_UP_MIN and self._given_up * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)
            self._given_up = 0

    def at(self, due_at: datetime) -> "asyncio.Future[None]":
        """Return a future that is set at or after `due_at`; cancel it to give it up."""
        future: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._heap, (due_at, next(self._count), future))
        if self._heap[0][2] is future:
            self._arm()
        return future

    def close(self) -> None:
        """Fire nothing any more."""
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        while self._heap and self._heap[0][2].done():
            heapq.heappop(self._heap)
        if self._heap:
            left_s = (self._heap[0][0] - self._now()).total_seconds()
            # Looked at again from time to time: the loop's clock stops while a laptop sleeps.
            self._handle = self._loop.call_later(min(max(left_s, 0.0), self._recheck_s), self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._now()
        while self._heap and self._heap[0][0] <= now:
            future = heapq.heappop(self._heap)[2]
            if not future.done():
                future.set_result(None)
        self._arm()
