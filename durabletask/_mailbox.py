"""The events of one process in memory: who waits for what, and what waits for nobody.

Pure bookkeeping. Which event a wait gets is decided here; that it has got it
is decided by the record.
"""

from asyncio import Future
from collections import deque
from collections.abc import Iterable

from durabletask._model import Event


class Mailbox:
    """Unconsumed events by name, and the waits for them, both oldest first."""

    __slots__ = ("_events", "_waiters", "position")

    def __init__(self, events: Iterable[Event] = (), position: int = 0) -> None:
        self._events: dict[str, deque[Event]] | None = None
        # Lists, since a deque costs 600 bytes and nearly every process waits for one thing.
        self._waiters: dict[str, list[Future[Event | None]]] | None = None
        self.position = position
        """Highest position seen; whatever arrives at or below it is known already."""
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        """Take in events in order of position; known ones are passed over."""
        for event in events:
            if event.position > self.position:
                self.position = event.position
                self._hand_out(event)

    def take(self, name: str) -> Event | None:
        """Remove and return the oldest event of a name, if there is one."""
        queue = self._events.get(name) if self._events else None
        return queue.popleft() if queue else None

    def wait(self, name: str, waiter: "Future[Event | None]") -> None:
        """Let `waiter` have the next event of a name that no earlier waiter takes."""
        if self._waiters is None:
            self._waiters = {}
        self._waiters.setdefault(name, []).append(waiter)

    def leave(self, name: str, waiter: "Future[Event | None]") -> None:
        """End a wait without an event; one that it was handed goes back to the front."""
        if self._waiters is not None and (queue := self._waiters.get(name)) is not None:
            if waiter in queue:
                queue.remove(waiter)
            if not queue:
                del self._waiters[name]
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            handed = waiter.result()
            if handed is not None:
                self._hand_out(handed, first=True)

    def _hand_out(self, event: Event, *, first: bool = False) -> None:
        queue = self._waiters.get(event.name) if self._waiters else None
        while queue:
            waiter = queue.pop(0)
            if not waiter.done():
                waiter.set_result(event)
                return
        if self._events is None:
            self._events = {}
        events = self._events.setdefault(event.name, deque())
        if first:
            events.appendleft(event)
        else:
            events.append(event)
