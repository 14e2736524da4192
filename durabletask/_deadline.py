"""The open durable timeouts around a call, and which of them is to end it.

Bookkeeping of one run: no storage, no clock. What is recorded of a timeout
and what its `async with` does is told in `_timeout`.
"""

import asyncio
import sys
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Protocol

from durabletask._journal import Journal
from durabletask._services import Services

LATE_S = 30.0
"""So long the end of a timeout that has passed waits for a new call, in a resumed run, since what
is recalled was in time; and a new call waits for it. Then user code awaits something else, or has
swallowed the cancellation. Half of what a recorded cancellation waits to come again."""


class Timed(Protocol):
    """A run, as far as it matters here."""

    deadlines: int

    @property
    def services(self) -> Services: ...
    @property
    def journal(self) -> Journal: ...

    def regate(self) -> None:
        """Let calls begin at once again, unless there is still something to look at before."""
        ...


class Deadline:
    """One durable timeout that was entered, until it is left.

    Attributes:
        key: Under which it is recorded.
        due_at: When its time is over; fixed by the first run.
        task: The one that entered it; its end cancels that one.
        is_recorded_over: Whether an earlier run has left it because of its time.
        has_fired: Whether it has cancelled its task.
        outlived: How many requests to cancel its task has outlived: those that it
            was entered with, and those that never came to anything.
        around: Those that were open when it was entered, outermost first.
    """

    __slots__ = (
        "_gating",
        "_inside",
        "_left",
        "around",
        "due_at",
        "has_fired",
        "is_recorded_over",
        "key",
        "outlived",
        "run",
        "task",
    )

    def __init__(
        self, run: Timed, key: str, due_at: datetime, task: "asyncio.Task[object]"
    ) -> None:
        self.run = run
        self.key = key
        self.due_at = due_at
        self.task = task
        self.is_recorded_over = False
        self.has_fired = False
        self.outlived = task.cancelling()
        self.around = OPEN.get()
        self._gating = False
        self._inside: dict[Deadline, None] = {}
        self._left: list[asyncio.Future[None]] | None = []
        for each in self.around:
            if each.run is run:
                each._inside[self] = None  # noqa: SLF001  (of the same class)

    @property
    def is_gating(self) -> bool:
        """Whether no new call has begun in it, so that its end must not come before that."""
        return self._gating

    def gate(self) -> None:
        """Look at each call from now on, for the first new one."""
        self._gating = True
        self.run.deadlines += 1
        self.run.regate()

    def pass_on(self) -> None:
        """Look at no further call: what was recorded in it is recalled."""
        if self._gating:
            self._gating = False
            self.run.deadlines -= 1
            self.run.regate()

    def fire(self) -> None:
        """Cancel the task that entered it, once."""
        if not self.has_fired and self._left is not None:
            self.has_fired = True
            self.task.cancel()

    def first_over(self) -> "Deadline":
        """Return the one that was over first: this, or one in it that waits for a new call too."""
        inside = (each for each in self._inside if each.is_gating and not each.has_fired)
        return min((self, *inside), key=lambda each: each.due_at)

    def when_left(self, now: datetime) -> "asyncio.Future[None]":
        """Return a future that is set when the timeout is left, or has not been for too long."""
        future = self.run.services.timers.at(now + timedelta(seconds=LATE_S))
        if self._left is None:
            future.set_result(None)
        else:
            self._left.append(future)
        return future

    def let_go(self) -> None:
        """Let the calls go on that have waited to be cancelled with it."""
        self.pass_on()
        for future in self._left or ():
            if not future.done():
                future.set_result(None)
        self._left = []

    def leave(self) -> None:
        """Take note that its `async with` is over."""
        self.let_go()
        self._left = None
        for each in self.around:
            each._inside.pop(self, None)  # noqa: SLF001  (of the same class)


OPEN: ContextVar[tuple[Deadline, ...]] = ContextVar("durabletask_deadlines", default=())
"""Those around the current code, outermost first; tasks that it creates have them too."""


def fired(run: Timed) -> str:
    """Return the key of the durable timeout that is cancelling the current code; empty if none."""
    for deadline in OPEN.get():
        if deadline.has_fired and deadline.run is run:
            return deadline.key
    return ""


def outlive() -> None:
    """Take note that the current task goes on, however often it was to be cancelled.

    Before Python 3.13 a `TaskGroup` that fails while it is waited for leaves a request
    behind on its task for good. `asyncio.timeout` then takes its own for somebody else's,
    and lets a CancelledError out; what is noted here keeps a durable timeout from that.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling() or _is_unwinding():
        return
    for deadline in OPEN.get():
        if deadline.task is task and not deadline.has_fired:
            deadline.outlived = max(deadline.outlived, task.cancelling())


def _is_unwinding() -> bool:
    """Return whether the current code stands in a `finally` or `except` of a cancellation."""
    error = sys.exception()
    while error is not None and not isinstance(error, asyncio.CancelledError):
        if isinstance(error.__cause__, asyncio.CancelledError):
            return False  # raised in its place, as what a timeout raises when it is over
        error = error.__context__
    return error is not None


def fire_again(run: Timed, key: str) -> None:
    """Let a durable timeout end a call that it has ended in an earlier run."""
    for deadline in OPEN.get():
        if deadline.key == key and deadline.run is run:
            deadline.fire()


def due_at_new_call(run: Timed, now: datetime) -> Deadline | None:
    """Return the durable timeout because of which a new call must not begin, if there is one.

    Whatever is not over yet has met its first new call herewith.
    """
    first = None
    for deadline in OPEN.get():
        if not deadline.is_gating or deadline.run is not run:
            continue
        if deadline.has_fired and deadline.task is asyncio.current_task():
            # User code has swallowed the cancellation and goes on, as it may.
            deadline.let_go()
        elif not deadline.has_fired and not deadline.is_recorded_over and deadline.due_at > now:
            deadline.pass_on()
        elif first is None or deadline.due_at < first.due_at:
            first = deadline
    return first
