"""Notices that the main loop answers no more, and says what holds it up.

Knows one loop and its thread, from another thread. Refuses to do anything
about it: user code that blocks the loop is slow, not wrong, and the lease is
renewed meanwhile. But nobody else can continue what is held here, so whoever
reads the log has to know.
"""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable

from durabletask.storage import Clock

_log = logging.getLogger("durabletask")

LOOKS_PER_LIMIT = 2
FRAMES_MAX = 20
"""The innermost frames of a stack are the ones that say what blocks."""


class Watchdog:
    """Looks from another thread whether the main loop goes round."""

    __slots__ = ("_clock", "_limit_s", "_main", "_thread_id")

    def __init__(self, main: asyncio.AbstractEventLoop, limit_s: float, clock: Clock) -> None:
        """Watch the calling thread, which runs `main`.

        Args:
            main: The loop to watch.
            limit_s: How long it may take to answer.
            clock: Measures for how long it did not.
        """
        self._main = main
        self._limit_s = limit_s
        self._clock = clock
        self._thread_id = threading.get_ident()

    async def watch(self) -> None:
        """Watch until the main loop has been closed, on a loop of another thread."""
        while await self._answers():  # noqa: ASYNC110  (nothing tells; that is why it looks)
            await asyncio.sleep(self._limit_s / LOOKS_PER_LIMIT)

    async def _answers(self) -> bool:
        """Wait for an answer, with a warning while there is none; false if there will be none."""
        here = asyncio.get_running_loop()
        answered = asyncio.Event()
        asked_s = self._clock.monotonic_s()
        patience_s = self._limit_s
        warned = False
        if not post(self._main, post, here, answered.set):
            return False
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    await answered.wait()
                break
            except TimeoutError:
                if self._main.is_closed():
                    return False
                warned = True
                patience_s *= 2  # a log that repeats itself for hours hides the rest
                _log.warning(
                    "the event loop has not answered for %.1f s; nothing that this host holds "
                    "goes on. %s",
                    self._clock.monotonic_s() - asked_s,
                    self._what_runs(),
                )
        if warned:
            _log.warning(
                "the event loop answers again, after %.1f s", self._clock.monotonic_s() - asked_s
            )
        return True

    def _what_runs(self) -> str:
        task = asyncio.current_task(self._main)
        frames = sys._current_frames()  # noqa: SLF001  (the one way to see another thread's stack)
        frame = frames.get(self._thread_id)
        stack = "" if frame is None else "".join(traceback.format_stack(frame)[-FRAMES_MAX:])
        name = "between two tasks" if task is None else f"in task {task.get_name()!r}"
        return f"It is {name}:\n{stack}"


def post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> bool:
    """Have a loop of another thread call something; false if that loop has been closed."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        return False
    return True
