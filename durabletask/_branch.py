"""The branches of a race: what ends a wait that has not begun, and how its outcome is recorded.

A branch begins nothing and records nothing. Refuses to know how a race is run (`_race`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

import durabletask._waits as _waits
from durabletask._codec import Shape
from durabletask._model import NO_INDEX, Checkpoint, Event, Form, Kind
from durabletask._notes import DelayNote, EventNote, encode
from durabletask._run import Run


@dataclass(frozen=True, slots=True)
class Won:
    """How a branch has won: by an event, or because its time had come.

    Attributes:
        event: Taken out of the mailbox in memory; the race's record consumes it.
        due_at: The recorded due time of the branch, if it has one.
        late: Whether nothing ran when that came.
    """

    event: Event | None
    due_at: datetime | None
    late: bool


class Branch(Protocol):
    """What a race must know of a wait that has not begun."""

    @property
    def run(self) -> Run:
        """Of the process that it belongs to."""
        ...

    @property
    def event_name(self) -> str:
        """Of the event in the mailbox that ends it; empty if none does."""
        ...

    @property
    def refusal(self) -> str | None:
        """Why it cannot be a branch as it is, as a hint; None if it can."""
        ...

    def due_at(self) -> datetime | None:
        """Return when it is over by itself if it begins now."""
        ...

    def seal(self, key: str, won: Won) -> bytes:
        """Return its outcome as its own checkpoint would hold it; quarantine what does not fit."""
        ...

    def unseal(self, key: str, outcome: bytes) -> Any:
        """Return the outcome as awaiting the call would, or raise it."""
        ...


@dataclass(frozen=True, slots=True)
class Branches:
    """`Process.race` as a branch: whatever is first in it is first in the race around it.

    Attributes:
        calls: The `DurableWait`s that are its branches.
    """

    run: Run
    calls: tuple[Any, ...]

    @property
    def refusal(self) -> None:
        """Every race can be a branch."""
        return


@dataclass(frozen=True, slots=True)
class EventBranch:
    """`Process.event`."""

    run: Run
    event_name: str
    shape: Shape
    timed: bool

    @property
    def refusal(self) -> str | None:
        """A timeout would be a branch within the branch."""
        return "give the race a proc.delay(…) in place of the event's timeout=" * self.timed or None

    def due_at(self) -> None:
        """Nothing but an event ends it."""
        return

    def seal(self, key: str, won: Won) -> bytes:
        """Return what `event` records, provided that the payload fits its type."""
        assert won.event is not None
        _waits.fit(self.run, won.event, self.shape)
        note = EventNote(self.event_name, msgspec.Raw(won.event.payload), won.event.position)
        return encode(note)

    def unseal(self, key: str, outcome: bytes) -> Any:
        """Return the payload as the event's type."""
        held = _as_own(Kind.EVENT, key, outcome)
        return _waits.received(self.run, held, self.event_name, self.shape)


@dataclass(frozen=True, slots=True)
class DelayBranch:
    """`Process.delay`."""

    run: Run
    until: timedelta | datetime
    result: Callable[[DelayNote], Any]

    @property
    def event_name(self) -> str:
        """Only time ends it."""
        return ""

    @property
    def refusal(self) -> None:
        """Every delay can be a branch."""
        return

    def due_at(self) -> datetime:
        """Return the due time of a delay that begins now."""
        return _waits.due(self.run, self.until)

    def seal(self, key: str, won: Won) -> bytes:
        """Return what `delay` records."""
        assert won.due_at is not None
        now = self.run.services.now()
        return encode(DelayNote(desired_at=won.due_at, actual_at=now, on_time=not won.late))

    def unseal(self, key: str, outcome: bytes) -> Any:
        """Return how the delay went."""
        held = _as_own(Kind.DELAY, key, outcome)
        return self.result(_waits.decode_note(self.run, held, DelayNote))


def _as_own(kind: Kind, key: str, outcome: bytes) -> Checkpoint:
    """Return the checkpoint that the branch would have, had it been awaited by itself."""
    return Checkpoint(kind, key, NO_INDEX, Form.VALUE, outcome)
