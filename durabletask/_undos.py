"""What a run may have to undo: made by its first step with `undo=`, since most have none.

Bookkeeping only: which undos are registered, which steps may still register
one, and while a run only collects them, which are still wanted. It refuses to
know when undos run and what is recorded of it (`_compensation`).
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from durabletask._callable import CallSpec
from durabletask._codec import Shape
from durabletask._model import Checkpoint
from durabletask._retry import RetryPolicy

Spot = tuple[str, int]
"""(key, index) of a step."""


class UndoCall(NamedTuple):
    """What a step was given as its undo.

    Attributes:
        timeout_s: Of one attempt, or None.
    """

    fn: Callable[[Any], Any]
    spec: CallSpec
    retry: RetryPolicy
    timeout_s: float | None


class Undo(NamedTuple):
    """The undo of a step that has succeeded.

    Attributes:
        held: The step's checkpoint.
        shape: Of its result.
        done: (epoch, seq) of the unit that recorded it.
    """

    call: UndoCall
    held: Checkpoint
    shape: Shape
    done: tuple[int, int]


class Undos:
    """The undos of one run.

    Attributes:
        unsettled: Steps with an undo that have begun and have no outcome yet.
        attempts: Bodies that no cancellation by user code reaches; an interrupt does.
        wanted: While collecting: the steps whose undo is to be registered.
        asked_s: While collecting: when a recorded call was last recalled, by the loop's time.
        held: While collecting: open calls that nothing is recorded of; they never begin.
        function: While collecting: the task of the process function.
        stuck: While collecting: the function itself is held by such a call.
    """

    __slots__ = (
        "_registered",
        "_woken",
        "asked_s",
        "attempts",
        "function",
        "held",
        "stuck",
        "unsettled",
        "wanted",
    )

    def __init__(self) -> None:
        self._registered: dict[Spot, Undo] = {}
        self._woken: asyncio.Future[None] | None = None
        self.unsettled = 0
        self.attempts: set[asyncio.Task[Any]] = set()
        self.wanted: set[Spot] = set()
        self.asked_s = 0.0
        self.held = 0
        self.function: asyncio.Task[None] | None = None
        self.stuck = False

    def __bool__(self) -> bool:
        """Whether there is anything to undo, or may be when a step in flight has ended."""
        return bool(self._registered) or self.unsettled > 0

    def register(self, undo: Undo) -> None:
        """Keep the undo of a step that has succeeded."""
        spot = undo.held.key, undo.held.index
        self._registered[spot] = undo
        if spot in self.wanted:
            self.wanted.discard(spot)
            if not self.wanted:
                self.wake()

    def find(self, spot: Spot) -> Undo | None:
        """Return the undo of a step, if this run has registered one."""
        return self._registered.get(spot)

    def latest_first(self) -> tuple[Spot, ...]:
        """Return the steps in reverse order of their completion.

        By what is recorded: a resumed run recalls the steps in another order.
        """
        return tuple(sorted(self._registered, key=lambda s: self._registered[s].done, reverse=True))

    def cancel_attempts(self) -> None:
        """End the bodies that are let finish; for an interrupt."""
        for attempt in self.attempts:
            attempt.cancel()

    # --- whoever carries the compensation sleeps here -----------------------------------------

    def sleeper(self, woken: "asyncio.Future[None]") -> "asyncio.Future[None]":
        """Let `wake` wake this future, and no longer an earlier one."""
        self._woken = woken
        return woken

    def wake(self) -> None:
        """Let the sleeper look again."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
