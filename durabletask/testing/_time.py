"""Virtual time: a clock that stands until it is moved, and an event loop that moves it.

When nothing is ready to run, the loop jumps to its next timer instead of
waiting for it, so that a year of `asyncio.sleep` takes microseconds. It knows
nothing of processes or storages; whatever takes a `Clock` can run on it.

Work in threads is real and takes real time: while a call of
`run_in_executor` is outstanding the loop waits for it and time stands still.
"""

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

VIRTUAL_START = datetime(2026, 1, 1, tzinfo=UTC)
"""Where virtual time begins unless told otherwise; any fixed instant would do."""

_THREADS_MAX = 4  # of the default executor; tests never need many

_RESOLUTION_S = 4e-7
"""Timers this near are due. asyncio's nanosecond is less than a float can tell apart after half
a year, so that a timer would never be due and the loop would spin; and below half a microsecond
no record, which holds microseconds, can show a timer to be early."""


class VirtualClock:
    """A `Clock` that moves only when it is told to.

    Args:
        start: The wall time at which it begins, aware.
        recheck_s: As in `Clock`. Infinite by default, since this wall time
            and this monotonic time only part where a test calls `shift`.
    """

    __slots__ = ("_elapsed_s", "_start", "recheck_s")

    def __init__(self, start: datetime = VIRTUAL_START, *, recheck_s: float = math.inf) -> None:
        if start.tzinfo is None:
            raise ValueError(f"start must be aware, not {start!r}")
        self._start = start.astimezone(UTC)
        self._elapsed_s = 0.0
        self.recheck_s = recheck_s

    def now(self) -> datetime:
        """Return the wall time, aware, UTC, to the nearest microsecond."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic_s(self) -> float:
        """Return the seconds that have passed since the start."""
        return self._elapsed_s

    def advance(self, by: timedelta | float) -> None:
        """Let time pass: both readings move by `by`, a timedelta or seconds, not negative."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        if not 0 <= seconds < math.inf:
            raise ValueError(f"time cannot pass by {by!r}; shift() sets the wall clock back")
        self._elapsed_s += seconds

    def shift(self, by: timedelta) -> None:
        """Set the wall clock forward or back, as an operator or a sleeping laptop does."""
        self._start += by


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on a `VirtualClock`.

    Nothing ready, no timer and no work in a thread means that the program
    waits for ever: the loop raises a `RuntimeError` that names what waits,
    instead of hanging. File descriptors that a test registers itself are
    waited for only where there is no timer to jump to.
    """

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = VirtualClock() if clock is None else clock
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = _RESOLUTION_S
        self._outstanding = 0
        self._pool: Executor | None = None

    @property
    def outstanding(self) -> int:
        """How many calls are at work in threads; time stands still until there are none."""
        return self._outstanding

    def time(self) -> float:
        """Return the clock's seconds; the loop's timers are measured against them."""
        return self.clock.monotonic_s()

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:  # type: ignore[override]
        """As in asyncio; the executor set here is counted too."""
        super().set_default_executor(executor)
        self._pool = executor

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run `func` in a thread; virtual time stands still until it has returned."""
        work = (executor or self._default()).submit(func, *args)
        self._outstanding += 1
        answer = asyncio.wrap_future(work, loop=self)
        # Added after wrap_future's own callback, so that the answer is queued before the
        # count falls: else time could jump in between. Counting the work and not the
        # answer keeps a cancelled call counted while its thread still runs.
        work.add_done_callback(self._tell_work_done)
        return answer

    def _default(self) -> Executor:
        """Return the default executor, made at its first use: to end one takes a thread."""
        if self._pool is None:
            self._check_default_executor()  # type: ignore[attr-defined]
            self._pool = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="virtual")
            super().set_default_executor(self._pool)
        return self._pool

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the default executor's threads, however long that really takes."""
        del timeout  # virtual seconds say nothing about threads
        self._outstanding += 1  # asyncio joins the threads in one that it does not count
        try:
            await super().shutdown_default_executor()
        finally:
            self._outstanding -= 1

    def jump(self, by_s: float) -> None:
        """Let `by_s` seconds pass; the selector calls it where a real loop would wait."""
        self.clock.advance(by_s)
        self._clock_resolution = max(_RESOLUTION_S, math.ulp(self.time()))

    def _tell_work_done(self, work: Future[Any]) -> None:
        del work
        if not self.is_closed():
            self.call_soon_threadsafe(self._work_done)

    def _work_done(self) -> None:
        self._outstanding -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """Asks for real events, and lets virtual time pass where the loop would wait."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> "list[tuple[selectors.SelectorKey, int]]":
        alone = len(self.get_map()) == 1  # with the loop's own pipe
        if timeout is not None and timeout <= 0:
            # The pipe wakes a loop that waits; to ask it at every turn would cost a system call.
            return [] if alone else super().select(0)
        if self.loop.outstanding:
            return super().select(None)  # a finished thread wakes it through the pipe
        if ready := super().select(0):
            return ready
        if timeout is not None:
            self.loop.jump(timeout)
            return []
        if not alone:
            return super().select(None)
        raise RuntimeError(_deadlock(self.loop))


def _deadlock(loop: VirtualTimeLoop) -> str:
    waiting = sorted(
        f"{each.get_name()} ({getattr(each.get_coro(), '__qualname__', each.get_coro())})"
        for each in asyncio.all_tasks(loop)
    )
    return (
        f"deadlock in virtual time at {loop.clock.now():%Y-%m-%d %H:%M:%S}: nothing is ready, "
        f"no timer is set and no thread is at work, while these wait: {', '.join(waiting)}"
    )


def run_virtual(
    main: Callable[[VirtualClock], Coroutine[Any, Any, T]], *, start: datetime = VIRTUAL_START
) -> T:
    """Run `main(clock)` to its end in virtual time, as `asyncio.run` does in real time.

    Tasks that it leaves behind are cancelled, threads of the default executor
    are waited for, and the loop is closed.

    Args:
        main: Gets the clock that the loop moves; hand it to whatever takes one.
        start: The wall time at which the clock begins, aware.

    Raises:
        RuntimeError: Everything waits and nothing can ever wake it; the
            message names the tasks. Or a loop is running here already.
    """
    _check_no_loop_runs()
    clock = VirtualClock(start)
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        return runner.run(main(clock))


def _check_no_loop_runs() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "virtual time needs an event loop of its own, and one is running here already\n"
        "hint: call it (run_virtual, crash_everywhere, check_histories) from a plain function, "
        "such as `def test_…`"
    )
