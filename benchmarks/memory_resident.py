"""How much memory does a process take that is resident and waits?

100,000 processes on one host, each waiting for an event after two steps; each
kind in a fresh program. Beside them a bare task that awaits a future, and a
skeleton: task, journal of two checkpoints, a mailbox, nothing that works.
Private resident memory as the kernel counts it, divided by the number; and
what Python allocated (tracemalloc), with a tenth as many. The memory storage
is no measure for a host: it keeps every record of every process as objects.
"""

import asyncio
import gc
import json
import sys
import tracemalloc
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks._frame import conclude, disk_folder, fresh_program, options, rss_bytes, tell
from benchmarks._work import step, until_waiting
from durabletask import Limits, MemoryStorage, Process, ProcessHost
from durabletask.storage import NO_INDEX, Checkpoint, Form, Kind, ProcessStorage
from durabletask_filesystem import FileSystemStorage

COUNT = 100_000
TRACED_COUNT = 10_000
SPAWNED_AT_ONCE = 1_000
MUST_REACH_BYTES = 3 * 1024
KINDS = ("bare task", "skeleton", "memory", "filesystem")

Weigh = Callable[[], None]


class Skeleton:
    """The least that a resident process could consist of."""

    __slots__ = ("events", "journal", "process_id", "waiter")

    def __init__(self, process_id: str) -> None:
        self.process_id = process_id
        self.journal = {
            f"step {number}": Checkpoint(
                Kind.DO, f"step {number}", NO_INDEX, Form.VALUE, b"%d" % number
            )
            for number in range(2)
        }
        self.events: deque[object] = deque()
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def event(self) -> None:
        """Wait, for ever."""
        await self.waiter

    async def run(self) -> None:
        """Stand for the process function."""
        await self.event()


async def bare_tasks(count: int, folder: Path, weigh: Weigh) -> None:
    """Weigh tasks that await a future each."""

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    await _weigh_tasks([asyncio.create_task(wait()) for _ in range(count)], weigh)


async def skeletons(count: int, folder: Path, weigh: Weigh) -> None:
    """Weigh tasks of skeletons."""
    names = (f"process/{number}" for number in range(count))
    await _weigh_tasks([asyncio.create_task(Skeleton(name).run()) for name in names], weigh)


async def _weigh_tasks(tasks: "list[asyncio.Task[None]]", weigh: Weigh) -> None:
    await asyncio.sleep(0)
    weigh()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def on_memory(count: int, folder: Path, weigh: Weigh) -> None:
    """Weigh processes on the memory storage, which holds their records as well."""
    await _weigh_processes(MemoryStorage(lease_ttl_s=None), count, weigh)


async def on_files(count: int, folder: Path, weigh: Weigh) -> None:
    """Weigh processes on the filesystem storage."""
    await _weigh_processes(FileSystemStorage(folder / "durable"), count, weigh)


async def _weigh_processes(storage: ProcessStorage, count: int, weigh: Weigh) -> None:
    host = ProcessHost(storage, limits=Limits(resident_max=2 * count))

    @host.process
    async def work(proc: Process, number: int) -> None:
        for key in ("step 0", "step 1"):
            await proc.do(key, step, number)
        await proc.event("go on")

    async with host:
        for start in range(0, count, SPAWNED_AT_ONCE):
            numbers = range(start, min(start + SPAWNED_AT_ONCE, count))
            handles = await asyncio.gather(
                *(host.spawn(work, f"process/{number}", number) for number in numbers)
            )
            # The last one of a round records its wait in the last batch of the round.
            await until_waiting(handles[-1])
            del handles
        weigh()


RUNS: dict[str, Callable[[int, Path, Weigh], Awaitable[None]]] = {
    "bare task": bare_tasks,
    "skeleton": skeletons,
    "memory": on_memory,
    "filesystem": on_files,
}


def child(kind: str, count: int, traced: bool, folder: Path) -> None:
    """Weigh one kind in this program, and print the bytes for each."""
    found: list[int] = []

    def weigh() -> None:
        gc.collect()
        found.append(tracemalloc.get_traced_memory()[0] if traced else rss_bytes())

    async def run() -> None:
        await RUNS[kind](10, folder / "warm-up", lambda: None)
        if traced:
            tracemalloc.start()
        weigh()
        await RUNS[kind](count, folder, weigh)

    asyncio.run(run())
    print(json.dumps({"bytes": (found[1] - found[0]) / count}))


def weigh_once(kind: str, count: int, how: str, folder: Path) -> float:
    """Return the bytes of one process of a kind, found in a fresh program."""
    answer = fresh_program(__file__, "child", kind, count, how, folder)
    return float(answer["bytes"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["child"]:
        _, name, number_of, how, place = arguments
        return child(name, int(number_of), how == "traced", Path(place))
    chosen = options("bytes of a resident waiting process", arguments, 3)
    resident: dict[str, list[float]] = {kind: [] for kind in KINDS}
    allocated: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(chosen.repeats):
        for kind in KINDS:
            with disk_folder(chosen) as folder:
                resident[kind].append(weigh_once(kind, chosen.size(COUNT, 50), "resident", folder))
            if number:
                continue  # what Python allocates does not vary
            with disk_folder(chosen) as folder:
                fewer = chosen.size(TRACED_COUNT, 50)
                allocated[kind].append(weigh_once(kind, fewer, "traced", folder))
    tell("bytes resident, each", resident)
    tell("bytes allocated, each", allocated)
    for kind in KINDS[2:]:
        pairs = zip(resident[kind], resident["skeleton"], strict=True)
        conclude(f"ratio to the skeleton, {kind}", [ours / bare for ours, bare in pairs])
    conclude("bytes each, memory storage, records included", resident["memory"], form=",.0f")
    conclude(
        "bytes each, filesystem", resident["filesystem"], at_most=MUST_REACH_BYTES, form=",.0f"
    )
    return None


if __name__ == "__main__":
    main()
