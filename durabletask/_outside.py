"""What was asked of a process from outside, as its run keeps it until it is met.

Refuses to know which calls meet it and what they record (`_run`).
"""

import asyncio
from collections.abc import Callable
from typing import Any

from durabletask._model import Checkpoint, UnitOutcome


class CancelMet(asyncio.CancelledError):
    """Ends the await of an open wait, which is to record that the process was cancelled."""


class Meeting:
    """A request to cancel meets all waits that are open at one moment: one record for all."""

    __slots__ = ("answer", "checkpoints", "tasks")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: dict[asyncio.Task[Any], int] = {}
        """Those that were met and have not yet said what they record, and how often user code
        had asked each to cancel before it waited."""
        self.checkpoints: list[Checkpoint] = []
        self.answer: asyncio.Future[UnitOutcome] = loop.create_future()


class Outside:
    """What was asked of the process from outside, or by itself of its storage; few are asked.

    Attributes:
        cancel_reason: Of a request to cancel that is still to be met.
        has_met: Whether it is met, or about to be: once in a run, though the
            storage may still tell of it.
        meeting: While it is being met by waits.
        restart: The input with which the process is to begin anew.
        leaves: Whether it is to be given back as soon as its task has ended.
        on_record: Called once, when the first unit of this run is on its way.
        untold: While the record is on its way by which a request is met also in
            calls that this run has yet to come to: what those wait for.
    """

    __slots__ = ("cancel_reason", "has_met", "leaves", "meeting", "on_record", "restart", "untold")

    def __init__(self) -> None:
        self.cancel_reason: bytes | None = None
        self.has_met = False
        self.meeting: Meeting | None = None
        self.restart: bytes | None = None
        self.leaves = False
        self.on_record: Callable[[], None] | None = None
        self.untold: list[asyncio.Future[None]] | None = None

    @property
    def is_pressing(self) -> bool:
        """Whether a call must look here before it begins."""
        return not (self.cancel_reason is None and self.on_record is None and self.untold is None)

    def tell(self) -> None:
        """Let the calls go on that waited for the record."""
        waiting, self.untold = self.untold or (), None
        for future in waiting:
            if not future.done():
                future.set_result(None)
