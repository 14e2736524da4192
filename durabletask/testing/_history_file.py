"""Where a history is written while it happens, and how the parts of several programs become one.

Knows nothing of what the operations mean.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Protocol

import msgspec

from durabletask._clock import Clock, SystemClock
from durabletask.testing._history_records import AnyOperation, Phase

_SYSTEM_CLOCK = SystemClock()
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyOperation)


class History(Protocol):
    """Where operations are written down."""

    who: str

    def next_call(self) -> int:
        """Return a number that no request of this history has."""
        ...

    def now_s(self) -> float:
        """Return the stamp for an operation that is about to be written."""
        ...

    def write(self, operations: Sequence[AnyOperation]) -> None:
        """Write operations down; on return they survive the end of the program."""
        ...


class HistoryList:
    """A history in memory, for programs that share one event loop.

    Attributes:
        operations: All of them; their order here is the order in which they happened.
    """

    def __init__(self, who: str = "") -> None:
        self.who = who
        self.operations: list[AnyOperation] = []
        self._calls = itertools.count(1)

    def next_call(self) -> int:
        """Return a number that no request of this history has."""
        return next(self._calls)

    def now_s(self) -> float:
        """Return no time: the order says it all."""
        return 0.0

    def write(self, operations: Sequence[AnyOperation]) -> None:
        """Add operations to the end."""
        self.operations += operations


class HistoryFile:
    """A history in a file of its own, one line of JSON for each operation.

    The file is appended to by `os.write` without any buffer, so a program that
    is killed loses nothing that it has written down. Not synced: a history
    outlives its program, not its machine. One file for each start of a
    program, since a kill may tear the last line.

    Args:
        path: Must not exist.
        clock: Its `monotonic_s` must be the same for all programs whose
            histories are merged, as CLOCK_MONOTONIC is on one machine.

    Raises:
        OSError: The file exists already or cannot be made.
    """

    def __init__(self, path: str | PathLike[str], clock: Clock = _SYSTEM_CLOCK) -> None:
        self.who = Path(path).stem
        self._clock = clock
        self._calls = itertools.count(1)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._lock = Lock()  # steps in threads write too

    def next_call(self) -> int:
        """Return a number that no request of this history has."""
        return next(self._calls)

    def now_s(self) -> float:
        """Return the monotonic time."""
        return self._clock.monotonic_s()

    def write(self, operations: Sequence[AnyOperation]) -> None:
        """Append operations, all in one write."""
        lines = memoryview(_encoder.encode_lines(operations))
        with self._lock:
            while lines:
                lines = lines[os.write(self._file, lines) :]

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


def read_histories(paths: Iterable[str | PathLike[str]]) -> list[AnyOperation]:
    """Read histories of programs of one machine and merge them into one.

    What was asked and what was answered at the very same instant overlap: the
    requests come first, so that nothing is taken for earlier that may not be.
    A last line that a kill has torn is left out: nobody has acted on it.

    Raises:
        msgspec.DecodeError: A line is no operation.
        OSError: A file cannot be read.
    """
    merged: list[AnyOperation] = []
    for path in paths:
        lines = Path(path).read_bytes().splitlines(keepends=True)
        merged += [_decoder.decode(line) for line in lines if line.endswith(b"\n")]
    merged.sort(key=lambda each: (each.at_s, each.phase is not Phase.INVOKE))
    return merged
