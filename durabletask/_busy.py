"""Units of processes that the storage cannot write now, in order, until they go again.

Responsible for their order and their pace, one process at a time, so that the
others go on. It knows neither the storage nor why a process is busy.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator

from durabletask._model import Unit, UnitOutcome

_log = logging.getLogger("durabletask")

PAUSE_MIN_S = 0.02
PAUSE_MAX_S = 1.0
LOUD_PAUSE_S = 60.0
"""How long the log is silent about busy processes after it has told of some."""
IDS_NAMED_MAX = 10

Answer = asyncio.Future[UnitOutcome]


class _Busy:
    """One busy process: resting until it is due, then tried once."""

    __slots__ = ("answers", "pause_s", "units")

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.answers: list[Answer] = []
        self.pause_s = PAUSE_MIN_S

    @property
    def is_slow(self) -> bool:
        return self.pause_s == PAUSE_MAX_S


class BusyUnits:
    """What waits, by process.

    A process rests with its units, and every later one joins them. When it is
    due they go again, in front of what was submitted since. Between the two it
    is neither: what then comes along goes out behind them, in the same order.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        """Hold nothing yet.

        Args:
            on_due: Called when units are due; then `take_due` brings them.
        """
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._busy: dict[str, _Busy] = {}
        self._due: list[str] = []
        self._silent = False

    def __bool__(self) -> bool:
        """Return whether any process is busy, as far as is known."""
        return bool(self._busy)

    def rests(self, process_id: str) -> bool:
        """Return whether units of the process must not go out now."""
        busy = self._busy.get(process_id)
        return busy is not None and bool(busy.units)

    def hold(self, unit: Unit, answer: Answer) -> None:
        """Hold a unit back, behind those of its process that are held already."""
        busy = self._busy.setdefault(unit.process_id, _Busy())
        if not busy.units:
            self._loop.call_later(busy.pause_s, self._is_due, unit.process_id)
            if busy.is_slow:
                self._tell()
            busy.pause_s = min(busy.pause_s * 2, PAUSE_MAX_S)
        busy.units.append(unit)
        busy.answers.append(answer)

    def went(self, process_id: str) -> None:
        """Take note that a unit of the process was not refused as busy."""
        self._busy.pop(process_id, None)

    def take_due(self) -> Iterator[tuple[list[Unit], list[Answer]]]:
        """Yield the units of each process that is due, in order, with their answers."""
        due, self._due = self._due, []
        for process_id in due:
            busy = self._busy[process_id]
            yield busy.units, busy.answers
            busy.units, busy.answers = [], []

    def _is_due(self, process_id: str) -> None:
        self._due.append(process_id)
        self._on_due()

    def _tell(self) -> None:
        """Name what has been busy for more than a second: shorter is everyday."""
        if self._silent:
            return
        self._silent = True
        self._loop.call_later(LOUD_PAUSE_S, self._speak)
        names = sorted(ascii(each) for each, busy in self._busy.items() if busy.is_slow)
        _log.warning(
            "%d processes cannot be written, the others can; an open transaction holds them, or "
            "what is stored of them cannot be read: %s",
            len(names),
            ", ".join(names[:IDS_NAMED_MAX]),
        )

    def _speak(self) -> None:
        self._silent = False
