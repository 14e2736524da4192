"""An event loop that can be killed: from that instant not one more line of its program runs.

Cancelling tasks is no crash, since it runs `finally` and `except`; nor is
dropping them, since a coroutine that is collected runs its `finally` too. So
a killed loop stops between two callbacks, for good, and everything that it
held is kept referenced until the interpreter has ended. Knows nothing of
processes and storages.
"""

import asyncio
import ctypes
from asyncio import _unregister_task
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar, TypeVarTuple
from weakref import WeakSet

from durabletask.testing._time import VirtualClock, VirtualTimeLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEPS_MAX = 1_000_000
"""Callbacks of one life: more than it needs, so that a program which polls for ever is found."""

LIFE_MAX_S = 50 * 365 * 86_400.0
"""Virtual time that one life may take: who has waited for fifty years waits in vain."""


class Killed(SystemExit):
    """The loop was killed. A SystemExit, because only that leaves a running loop at once."""


class _Graveyard(list[Any]):
    """What dead loops held. Never emptied: that would run the code of the dead."""


_graveyard = _Graveyard()
# One reference that nobody ever gives back: else the end of the interpreter would free the
# list, and with it run every `finally` in it. The price is memory: some 50 KiB a death.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_graveyard))


class _Ready(deque[Any]):
    """The callbacks that are ready; counts those that begin, and gives none out after death."""

    steps = 0
    steps_max = STEPS_MAX
    kill_at: int | None = None
    dead = False

    def popleft(self) -> Any:
        if self.dead or self.steps == self.kill_at:
            self.dead = True
            raise Killed
        if self.steps >= self.steps_max:
            raise RuntimeError(f"no end after {self.steps:,} callbacks: it waits in vain")
        self.steps += 1
        return super().popleft()


class MortalLoop(VirtualTimeLoop):
    """A loop in virtual time for one life of a program.

    Args:
        clock: The time that goes on after the life.
        kill_at: Die before the callback of this number, counted from 0; None to live.
        steps_max: A life of more callbacks has no end, and fails.
    """

    def __init__(
        self, clock: VirtualClock, kill_at: int | None = None, steps_max: int = STEPS_MAX
    ) -> None:
        super().__init__(clock)
        ready = _Ready()
        ready.steps_max = steps_max
        ready.kill_at = kill_at
        # asyncio takes every callback from here; the name has been the same since Python 3.4.
        self._ready = ready
        self._until_s = clock.monotonic_s() + LIFE_MAX_S
        self._executors: set[Executor] = set()
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()

    def jump(self, by_s: float) -> None:
        """Let time pass, but not for ever."""
        if self.time() + by_s > self._until_s:
            raise RuntimeError("no end within fifty years of virtual time: it waits in vain")
        super().jump(by_s)

    @property
    def steps(self) -> int:
        """How many callbacks have begun."""
        return self._callbacks().steps

    @property
    def dead(self) -> bool:
        """Whether the loop was killed."""
        return self._callbacks().dead

    async def kill(self) -> NoReturn:
        """Die here: neither the caller nor anything else on this loop goes on."""
        self._callbacks().dead = True
        self.call_soon(_nothing)  # else the loop might let time pass before it notices
        while True:
            await self.create_future()

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """As in asyncio; notes the task, to find it among the dead."""
        made: asyncio.Task[Any] = super().create_task(coro, **options)
        self._tasks.add(made)
        return made

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """As in asyncio; notes the executor, because its threads have to end with the life."""
        if executor is not None:
            self._executors.add(executor)
        return super().run_in_executor(executor, func, *args)

    def live(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a program to its end.

        Raises:
            Killed: It died; everything of it is kept as it stood.
            RuntimeError: It waits for something that can never come.
        """
        asyncio.set_event_loop(None)
        try:
            result = self.run_until_complete(main)
        except Killed:
            self._bury(main)
            raise
        except BaseException:
            # It failed by itself, and may have left tasks; they are no better than dead.
            self._callbacks().dead = True
            self._bury(main)
            raise
        self._callbacks().kill_at = None
        self.run_until_complete(self._leave())
        self._end_threads()
        self.close()
        return result

    async def _leave(self) -> None:
        """End what the program has left behind, as `asyncio.run` does."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.shutdown_asyncgens()

    def _bury(self, main: object) -> None:
        self._end_threads()
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        tasks = list(self._tasks)
        for each in tasks:
            # asyncio looks through every task there is, again and again: not through the dead.
            _unregister_task(each)
        _graveyard.append((self, main, tasks, list(self._ready), list(timers)))
        self.close()  # frees the descriptors; runs nothing

    def _end_threads(self) -> None:
        # A call that a thread has begun cannot be killed. That it ends before the next life
        # begins is the same as a death a moment later; what it would tell the loop is not heard.
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)

    def _callbacks(self) -> _Ready:
        ready = self._ready
        assert isinstance(ready, _Ready)
        return ready


def _nothing() -> None:
    pass
