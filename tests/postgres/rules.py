"""Rules for the proxy: the faults around a commit, each at the message that makes it.

A statement is found by a piece of its text, prepared or not, so a rule works
for a commit function as for the word COMMIT. A rule holds `times` times and
then lets everything pass.
"""

import threading
from collections.abc import Callable

from tests.postgres.proxy import Fate, Link
from tests.postgres.wire import Message, Side

WAIT_MAX_S = 30.0


class Aim:
    """Decides where a statement runs that has the marker in its text, and counts what it hits.

    Attributes:
        hits: How often it has cut a connection.
    """

    def __init__(self, marker: str, decide: Callable[[Side, Message], Fate], times: int) -> None:
        self.hits = 0
        self._marker = marker
        self._decide = decide
        self._times = times
        self._all = threading.Event()

    def wait(self) -> None:
        """Wait until it has hit as often as it was told to. Not for the thread of an event loop.

        Raises:
            AssertionError: It has not, in 30 s.
        """
        assert self._all.wait(WAIT_MAX_S), f"{self._marker!r} was hit {self.hits} times only"

    def __call__(self, link: Link, side: Side, message: Message) -> Fate:
        if self.hits == self._times or not any(self._marker in each for each in link.running):
            return Fate.PASS
        fate = self._decide(side, message)
        if fate in {Fate.CUT, Fate.LAST}:
            self.hits += 1
            if self.hits == self._times:
                self._all.set()
        return fate


def cut_before(marker: str, *, times: int = 1) -> Aim:
    """The statement never reaches the server: certainly nothing is written."""
    return Aim(marker, lambda side, _: Fate.CUT if side is Side.CLIENT else Fate.PASS, times)


def cut_in_flight(marker: str, *, times: int = 1) -> Aim:
    """The statement has left, then both ends are cut: it is written or not, nobody knows."""

    def decide(side: Side, message: Message) -> Fate:
        return Fate.LAST if side is Side.CLIENT and message.kind in {"S", "Q"} else Fate.PASS

    return Aim(marker, decide, times)


def lose_answer(marker: str, *, times: int = 1) -> Aim:
    """The server has committed, and nothing of its answer reaches the client."""

    def decide(side: Side, message: Message) -> Fate:
        if side is Side.CLIENT:
            return Fate.PASS
        # "Command complete" is said before the commit has reached the disk; "ready" comes after.
        return Fate.CUT if message.kind == "Z" else Fate.DROP

    return Aim(marker, decide, times)


class CutAt:
    """Cuts at the n-th message of one side, counted over all connections from 0."""

    def __init__(self, side: Side, number: int) -> None:
        self.seen = 0
        self._side = side
        self._number = number

    def __call__(self, link: Link, side: Side, message: Message) -> Fate:
        if side is not self._side:
            return Fate.PASS
        self.seen += 1
        return Fate.CUT if self.seen == self._number + 1 else Fate.PASS
