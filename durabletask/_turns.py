"""In which order the errors of earlier runs are raised again: in that of their records.

What is recalled takes no time. Of two tasks side by side the one that was later may come first
now, and an error is what others do not outlive: it ends a `gather`, and a `TaskGroup` cancels for
it what had come to its end. So an error waits until what was recorded before it has been asked
for, and what came of that has happened. Knows the journal and the loop, and nothing of storages.
"""

import asyncio
import sys
from collections import deque
from heapq import heappop, heappush

from durabletask._journal import Journal
from durabletask._model import Checkpoint

CALM_TURNS = 20
"""Of the loop, between what was recorded earlier and an error: as many as it takes an outcome to
get through some ten tasks, each of which awaits the next one."""

LOST_TURNS = 100
"""Of the loop, in which nothing is asked for: the rest is behind a sleep, or used no more."""

_Moment = tuple[int, int]


class Turns:
    """The errors of one run that wait to be raised."""

    __slots__ = ("_calm", "_came", "_earlier", "_journal", "_loop", "_lost", "_unasked", "_waiting")

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        self._journal = journal
        self._loop = loop
        self._earlier = deque(sorted(journal.never_asked(), key=moment))
        self._waiting: list[tuple[_Moment, int, asyncio.Future[None]]] = []
        self._calm = self._lost = self._came = 0
        self._unasked = journal.unasked

    def is_next(self, held: Checkpoint) -> bool:
        """Return whether nothing that was recorded before is still to be asked for or raised."""
        return not self._waiting and not self._is_behind(moment(held))

    def come(self, held: Checkpoint) -> "asyncio.Future[None]":
        """Return a future that is set when an error is to be raised."""
        future = self._loop.create_future()
        if not self._waiting:
            self._calm = self._lost = 0
            self._loop.call_soon(self._turn)
        self._came += 1
        heappush(self._waiting, (moment(held), self._came, future))
        return future

    def _turn(self) -> None:
        """Look who is next, once in each turn of the loop while anybody waits."""
        now = self._waiting[0][0]
        if self._is_behind(now):
            goes_on = self._unasked != self._journal.unasked
            self._unasked = self._journal.unasked
            self._calm, self._lost = 0, 0 if goes_on else self._lost + 1
            while self._lost == LOST_TURNS and self._is_behind(now):
                self._earlier.popleft()
        else:
            self._calm += 1
        if self._calm == CALM_TURNS:
            self._calm = self._lost = 0
            while self._waiting and self._waiting[0][0] == now:
                _, _, future = heappop(self._waiting)
                if not future.done():
                    future.set_result(None)
        if self._waiting:
            self._loop.call_soon(self._turn)

    def _is_behind(self, now: _Moment) -> bool:
        """Return whether something recorded before a moment has not been asked for."""
        self.drop_asked()
        return bool(self._earlier) and moment(self._earlier[0]) < now

    def drop_asked(self) -> None:
        """Forget what has been asked for meanwhile, with what was recorded of it."""
        while self._earlier and self._journal.was_asked(self._earlier[0]):
            self._earlier.popleft()


def moment(held: Checkpoint) -> _Moment:
    """Return when something was recorded, in relation to the other records of its process."""
    # What this run records has no epoch yet, and is newer than everything that it recalls.
    return held.epoch or sys.maxsize, held.seq
