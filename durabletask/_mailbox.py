"""The events of one process in memory: who waits for what, and what waits for nobody.

Pure bookkeeping. Which event a wait gets is decided here; that it has got it
is decided by the record.
"""

from asyncio import Future
from collections import deque
from collections.abc import Iterable

from durabletask._model import CHILD_ENDED, Event

_Waiter = Future[Event | None]


def name_of(event: Event) -> str:
    """Return the name under which an event is waited for.

    That of a child's end is one for each child: what comes before the last
    colon of its id names the call that spawned it.
    """
    if event.name.startswith(CHILD_ENDED):
        return event.event_id.rpartition(":")[0]
    return event.name


class Mailbox:
    """Unconsumed events by name, and the waits for them, both oldest first."""

    __slots__ = ("_events", "_line", "_only", "position")

    def __init__(self, events: Iterable[Event] = (), position: int = 0) -> None:
        self._events: dict[str, deque[Event]] | None = None
        # Nearly every waiting process waits for one thing: a tuple then, and 200 bytes less.
        self._only: tuple[str, _Waiter] | None = None
        self._line: dict[str, list[_Waiter]] | None = None
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

    def wait(self, name: str, waiter: "_Waiter") -> None:
        """Let `waiter` have the next event of a name that no earlier waiter takes."""
        if self._line is None and self._only is None:
            self._only = (name, waiter)
            return
        if self._line is None:
            self._line = {}
        if self._only is not None:
            self._line[self._only[0]] = [self._only[1]]
            self._only = None
        self._line.setdefault(name, []).append(waiter)

    def leave(self, name: str, waiter: "_Waiter") -> None:
        """End a wait without an event; one that it was handed goes back to the front."""
        self.step_out(name, waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            handed = waiter.result()
            if handed is not None:
                self.give_back(handed)

    def give_back(self, event: Event) -> None:
        """Put an event that was taken and is not wanted back to the front."""
        self._hand_out(event, first=True)

    def step_out(self, name: str, waiter: "_Waiter") -> None:
        """Take a wait out of one line; it keeps what it was handed."""
        if self._only is not None and self._only[1] is waiter:
            self._only = None
        elif self._line is not None and waiter in self._line.get(name, ()):
            self._line[name].remove(waiter)
            self._shorten(name)

    def _hand_out(self, event: Event, *, first: bool = False) -> None:
        name = name_of(event)
        waiter = self._next_waiter(name)
        if waiter is not None:
            waiter.set_result(event)
            return
        if self._events is None:
            self._events = {}
        events = self._events.setdefault(name, deque())
        if first:
            events.appendleft(event)
        else:
            events.append(event)

    def _next_waiter(self, name: str) -> "_Waiter | None":
        """Remove and return the oldest wait for a name that is still open."""
        if self._only is not None and self._only[0] == name:
            waiter = self._only[1]
            self._only = None
            return None if waiter.done() else waiter
        while self._line is not None and name in self._line:
            waiter = self._line[name].pop(0)
            self._shorten(name)
            if not waiter.done():
                return waiter
        return None

    def _shorten(self, name: str) -> None:
        if self._line is not None and not self._line[name]:
            del self._line[name]
            if not self._line:
                self._line = None
