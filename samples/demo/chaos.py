"""The witness, who writes down what really ran, and the killer.

Both stand outside the library. What the witness writes with one `write` to a
file survives SIGKILL, because the file's pages belong to the kernel.
"""

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

KILLS_SPREAD = (0.03, 0.92)  # of the progress; a kill after the last step would prove nothing


class Manner(StrEnum):
    """Where in the life of a step the program dies."""

    BEFORE_CALL = "in a step, before the bank has heard of it"
    AFTER_CALL = "in a step, after the bank has done it"
    BETWEEN_STEPS = "between two steps"
    ANY_INSTANT = "at any instant"


@dataclass(frozen=True)
class KillPoint:
    """Die in this manner once so many step bodies have begun, over all runs."""

    executed: int
    manner: Manner

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"{self.executed}:{self.manner.name}"

    @staticmethod
    def parse(text: str) -> "KillPoint":
        """Read what `str` wrote."""
        executed, _, manner = text.partition(":")
        return KillPoint(int(executed), Manner[manner])


def draw_kill_points(chance: random.Random, count: int, steps: int) -> list[KillPoint]:
    """Draw kill points over a run of at least `steps` steps; from four on, each manner occurs."""
    low, high = (round(steps * share) for share in KILLS_SPREAD)
    moments = sorted(chance.sample(range(low, high), count))
    manners = [manner for _, manner in zip(moments, itertools.cycle(Manner), strict=False)]
    chance.shuffle(manners)
    return [KillPoint(*point) for point in zip(moments, manners, strict=True)]


class Ledger:
    """An append-only file of the step bodies that began to run."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.count = path.read_bytes().count(b"\n")

    def write(self, process_id: str, key: str) -> None:
        """Note that a step's body begins."""
        os.write(self._file, f"{process_id}\t{key}\n".encode())
        self.count += 1

    @staticmethod
    def read(path: Path) -> Counter[tuple[str, str]]:
        """Return how often each step of each process began to run."""
        lines = path.read_text().splitlines()
        return Counter((process_id, key) for process_id, key in (x.split("\t") for x in lines))


class RunLog:
    """An append-only file of what happened to the runs of the worker, with times."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, what: str) -> None:
        """Note something with the time."""
        with self._path.open("a") as file:
            file.write(f"{time.time():.6f} {what}\n")

    def kills(self) -> list[str]:
        """Return how the runs died, in order."""
        return [what.removeprefix("killed ") for _, what in self._read() if "killed" in what]

    def kill_times(self) -> list[float]:
        """Return when the runs died, in seconds since the epoch."""
        return [at for at, what in self._read() if "killed" in what]

    def working_s(self) -> float:
        """Return how long the runs were at work, without the time to start the program."""
        total, ready = 0.0, 0.0
        for at, what in self._read():
            if what == "ready":
                ready = at
            else:
                total += at - ready
        return total

    def _read(self) -> list[tuple[float, str]]:
        lines = [line.partition(" ") for line in self._path.read_text().splitlines()]
        return [(float(at), what) for at, _, what in lines]


class Chaos:
    """Kills this very program with SIGKILL when its kill point has come."""

    def __init__(self, kill_point: KillPoint | None, ledger: Ledger, runs: RunLog) -> None:
        self._point = kill_point
        self._ledger = ledger
        self._runs = runs
        self._dying = False

    def may_strike(self, manner: Manner) -> None:
        """Die here, if this is the manner and the moment has come."""
        point = self._point
        if point is None or self._dying or self._ledger.count < point.executed:
            return
        if point.manner is manner:
            self._die()
        elif point.manner is Manner.ANY_INSTANT:
            self._dying = True
            threading.Thread(target=self._die_soon, daemon=True).start()

    def must_strike(self) -> None:
        """Die now if death was due and found no occasion; the last step is done."""
        if self._point is not None:
            self._die()

    def _die_soon(self) -> NoReturn:
        # A thread of its own, so that death may come in the middle of anything: a commit,
        # a read, the event loop itself.
        time.sleep(random.uniform(0, 0.02))
        self._die()

    def _die(self) -> NoReturn:
        assert self._point is not None
        self._runs.write(f"killed {self._point.manner}")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("survived SIGKILL")
