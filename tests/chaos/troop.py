"""Forks programs, and ends them; the program that does so has one thread and has imported all."""

import asyncio
import ctypes
import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, Self

END_MAX_S = 60.0
"""A program that takes longer to start or to end hangs."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)

Main = Callable[[int], Coroutine[Any, Any, None]]
"""A program; gets the descriptor on which it says that it is ready."""


class Hangs(Exception):
    """A program did not start or end in time."""


class Member:
    """One forked program."""

    def __init__(self, name: str, main: Main, log: Path) -> None:
        self.name = name
        self._ready, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _run(main, writing, log)
        os.close(writing)
        self.watch = os.pidfd_open(self.pid)
        self.code: int | None = None

    def wait_ready(self, timeout_s: float = END_MAX_S) -> bool:
        """Wait until it says that it is ready; False if it has not by then, or has ended."""
        return bool(select.select([self._ready], [], [], timeout_s)[0]) and bool(
            os.read(self._ready, 1)
        )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait_ended(self, timeout_s: float = END_MAX_S) -> int:
        """Wait until it has ended; return its exit code, or minus the signal that ended it.

        Raises:
            Hangs: It has not; it is killed.
        """
        if self.code is not None:
            return self.code
        late = not select.select([self.watch], [], [], timeout_s)[0]
        if late:
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        os.close(self.watch)
        os.close(self._ready)
        if late:
            raise Hangs(f"{self.name} did not end in {timeout_s:.0f} s")
        return self.code


class Troop:
    """All programs of a round; none outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            if member.code is None:
                member.send(signal.SIGKILL)
                member.wait_ended()

    def start(self, name: str, main: Main) -> Member:
        """Fork one more program."""
        member = Member(name, main, self.folder / "log")
        self.members.append(member)
        return member


def pause(seconds: float) -> None:
    """Let the programs work for so long."""
    select.select([], [], [], seconds)


def now_s() -> float:
    """Return the monotonic time."""
    return time.monotonic()


def _run(main: Main, ready: int, log: Path) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        logging.basicConfig(level=logging.WARNING, format=f"{os.getpid()} %(message)s")
        asyncio.run(main(ready))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
