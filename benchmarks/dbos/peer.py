"""The same work as DBOS workflows; runs in an environment of its own, knows nothing of ours.

Prints one JSON object. Workflows are started, held back until the last of them
is recorded, and then make their steps, as on our side. Both of the ways in
which DBOS runs Python are tried, coroutines and threads; its settings are its
defaults but for logging, and for the size of its pool where that is quicker.
"""

import asyncio
import json
import sys
import threading
from statistics import quantiles
from time import perf_counter

from dbos import DBOS  # type: ignore[import-not-found]

WARM_UP = 20


class Gate:
    """Holds workflows back until it opens, and notes when the last has done its steps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open_here = asyncio.Event()
        self._open.set()
        self._open_here.set()
        self.left = 0
        self.over = threading.Event()
        self.over_s = 0.0

    def close(self, count: int) -> None:
        """Hold back so many workflows from now on."""
        self.left = count
        self._open.clear()
        self._open_here.clear()
        self.over.clear()

    def release(self) -> None:
        """Let them go; on the loop's thread."""
        self._open.set()
        self._open_here.set()

    def wait(self) -> None:
        """Wait in a thread."""
        self._open.wait()

    async def wait_here(self) -> None:
        """Wait on the loop."""
        await self._open_here.wait()

    def count(self) -> None:
        """One workflow has done its steps."""
        with self._lock:
            self.left -= 1
            if self.left == 0:
                self.over_s = perf_counter()
                self.over.set()


gate = Gate()


async def _step(number: int) -> int:
    return number


async def _work(steps: int) -> int:
    await gate.wait_here()
    for number in range(steps):
        await step(number)
    gate.count()
    return steps


def _sync_step(number: int) -> int:
    return number


def _sync_work(steps: int) -> int:
    gate.wait()
    for number in range(steps):
        sync_step(number)
    gate.count()
    return steps


step = DBOS.step()(_step)
work = DBOS.workflow()(_work)
sync_step = DBOS.step()(_sync_step)
sync_work = DBOS.workflow()(_sync_work)


async def many_coroutines(count: int, steps: int) -> float:
    """Run workflows as coroutines; return the seconds that their steps took."""
    gate.close(count)
    handles = await asyncio.gather(*(DBOS.start_workflow_async(work, steps) for _ in range(count)))
    begun_s = perf_counter()
    gate.release()
    await asyncio.to_thread(gate.over.wait)
    took_s = gate.over_s - begun_s
    for handle in handles:
        assert await handle.get_result() == steps
    return took_s


def many_threads(count: int, steps: int) -> float:
    """Run workflows on threads; return the seconds that their steps took."""
    gate.close(count)
    handles = [DBOS.start_workflow(sync_work, steps) for _ in range(count)]
    begun_s = perf_counter()
    gate.release()
    gate.over.wait()
    took_s = gate.over_s - begun_s
    for handle in handles:
        assert handle.get_result() == steps
    return took_s


async def idle_coroutines(count: int, steps: int) -> list[float]:
    """Return p50 and p99 in ms from starting a workflow to its result, one at a time."""
    took_ms = []
    for _ in range(count):
        begun_s = perf_counter()
        await work(steps)
        took_ms.append((perf_counter() - begun_s) * 1e3)
    return spread(took_ms)


def idle_threads(count: int, steps: int) -> list[float]:
    """Return the same for workflows that are no coroutines."""
    took_ms = []
    for _ in range(count):
        begun_s = perf_counter()
        sync_work(steps)
        took_ms.append((perf_counter() - begun_s) * 1e3)
    return spread(took_ms)


def spread(values: list[float]) -> list[float]:
    """Return p50 and p99."""
    cuts = quantiles(values, n=100, method="inclusive")
    return [cuts[49], cuts[98]]


async def coroutines(processes: int, steps: int, idle: int) -> dict[str, object]:
    """Measure coroutines."""
    for _ in range(WARM_UP):
        await work(1)
    return {
        "s": await many_coroutines(processes, steps),
        "1": await idle_coroutines(idle, 1),
        "10": await idle_coroutines(idle, 10),
    }


def threads(processes: int, steps: int, idle: int) -> dict[str, object]:
    """Measure threads."""
    for _ in range(WARM_UP):
        sync_work(1)
    return {
        "s": many_threads(processes, steps),
        "1": idle_threads(idle, 1),
        "10": idle_threads(idle, 10),
    }


def main() -> None:
    """Measure one way of running, with one size of pool (0: its default), and print it."""
    dsn, way, *numbers = sys.argv[1:]
    pool, processes, steps, idle = map(int, numbers)
    config = {"name": "benchmark", "system_database_url": dsn, "log_level": "ERROR"}
    DBOS(config=config | ({"sys_db_pool_size": pool} if pool else {}))
    DBOS.launch()
    if way == "threads":
        told = threads(processes, steps, idle)
    else:
        told = asyncio.run(coroutines(processes, steps, idle))
    DBOS.destroy()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
