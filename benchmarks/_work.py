"""The work that is measured: many processes, each of a few steps that do nothing; or a lone one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

from benchmarks._frame import conclude, ratios, tell
from durabletask import Process, ProcessHandle, ProcessHost, Status
from durabletask.storage import ProcessStorage

RECORDED = 5
"""Steps of an interrupted process before the one that never ended."""

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


async def run_to_sixth(host: ProcessHost, count: int, *, first: bool, end: bool) -> float:
    """Run processes of `RECORDED` steps up to their sixth, or resume them over it.

    The host is started here, and stopped by whoever has made it, or never.

    Args:
        host: Not started yet; has room for all processes at once.
        count: How many processes there are.
        first: Create them, and let no sixth step end. Otherwise the host finds them interrupted.
        end: A process ends behind its sixth step, while others are being resumed; or it stays.

    Returns:
        Seconds from before the host's start until the last sixth step has begun, or, if they are
        resumed, is recorded.
    """
    left = count
    over = asyncio.Event()

    async def sixth() -> int:
        if first:
            count_down()
            await asyncio.Event().wait()
        return 6

    def count_down() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    @host.process
    async def work(proc: Process) -> None:
        for number in range(RECORDED):
            await proc.do(f"step {number}", step, number)
        await proc.do("sixth", sixth)
        count_down()
        if not end:
            await asyncio.Event().wait()

    begun_s = perf_counter()
    await host.start()
    if first:
        for start in range(0, count, 1_000):
            numbers = range(start, min(start + 1_000, count))
            await asyncio.gather(*(host.spawn(work, f"process/{number}") for number in numbers))
    await over.wait()
    return perf_counter() - begun_s


class Rounds:
    """Latencies of a lone step and of bare work behind it: a median in seconds for each round."""

    def __init__(self) -> None:
        self.bare: list[float] = []
        self.durable: list[float] = []

    def add(self, bare_s: Sequence[float], durable_s: Sequence[float]) -> None:
        """Add the latencies of one round of pairs."""
        self.bare.append(median(bare_s))
        self.durable.append(median(durable_s))

    def tell(self, bare: str, *, at_most: float) -> None:
        """Print both sides, what is between them, and the ratio; `bare` names the bare work."""
        shown = {
            bare: [seconds * 1e6 for seconds in self.bare],
            "lone step": [seconds * 1e6 for seconds in self.durable],
            "what the step costs besides": [
                (ours - theirs) * 1e6 for ours, theirs in zip(self.durable, self.bare, strict=True)
            ],
        }
        tell(f"µs, medians of {len(self.bare)} rounds", shown)
        conclude("ratio, lone step", ratios(self.durable, self.bare), at_most=at_most)
