"""The work that is measured: many processes, each of a few steps that do nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time
from typing import Any, NamedTuple

from durabletask import Process, ProcessHandle, ProcessHost, Status
from durabletask.storage import ProcessStorage

Mark = Callable[[], Awaitable[None]]


class Timing(NamedTuple):
    """How long a run took.

    Attributes:
        steps: How many steps it made.
        steps_s: From all spawned, durably, until the last step of all had returned.
        cpu_s: What this program computed in that time, on all threads.
        all_s: From the first spawn until all results were there.
    """

    steps: int
    steps_s: float
    cpu_s: float
    all_s: float


class Turn:
    """Holds all processes back until all are spawned, and again until the last did its steps."""

    def __init__(self, processes: int) -> None:
        self.begin = asyncio.Event()
        self.end = asyncio.Event()
        self.over: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._left = processes

    def count(self) -> None:
        """One process has done its steps."""
        self._left -= 1
        if not self._left:
            self.over.set_result(perf_counter())


async def step(number: int) -> int:
    """Do nothing: the engine is measured, not the work."""
    return number


async def until_waiting(handle: ProcessHandle[Any]) -> None:
    """Return when the process's wait is recorded."""
    while (await handle.info()).status is not Status.WAITING:  # noqa: ASYNC110  (nothing tells)
        await asyncio.sleep(0)


async def run_durable(
    storage: ProcessStorage, processes: int, steps: int, mark: Mark | None = None
) -> Timing:
    """Run the same work as durable processes of one host; the storage is closed with it.

    `mark` is called before the first step and after the last, and nothing happens meanwhile.
    """
    host = ProcessHost(storage)
    turn = Turn(processes)

    @host.process
    async def work(proc: Process, steps: int) -> int:
        await turn.begin.wait()
        for number in range(steps):
            await proc.do(f"step {number}", step, number)
        turn.count()
        await turn.end.wait()
        return steps

    async with host:
        begun_s = perf_counter()
        handles = await asyncio.gather(
            *(host.spawn(work, f"process/{n}", steps) for n in range(processes))
        )
        if mark is not None:
            await mark()
        spawned_s = perf_counter()
        cpu_s = process_time()
        turn.begin.set()
        stepped_s = await turn.over
        cpu_s = process_time() - cpu_s
        if mark is not None:
            await mark()
        turn.end.set()
        results = await asyncio.gather(*(handle.result() for handle in handles))
        ended_s = perf_counter()
    assert results == [steps] * processes
    return Timing(processes * steps, stepped_s - spawned_s, cpu_s, ended_s - begun_s)
