"""How fast are the items of one `proc.map`, beside the steps of independent processes?

10,000 items in one process, against 1,000 processes of 10 steps each that run
at once, on files. "Items" counts from the call to its return.
"""

import asyncio
import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time

from benchmarks._frame import conclude, disk_folder, options, ratios, tell
from benchmarks._work import Timing, run_durable, step
from durabletask import Process, ProcessHost
from durabletask.storage import ProcessStorage
from durabletask_filesystem import FileSystemStorage

PROCESSES = 1_000
STEPS = 10
MUST_REACH = 0.5


async def run_map(storage: ProcessStorage, items: int) -> Timing:
    """Map over so many items in one process; the storage is closed with its host."""
    host = ProcessHost(storage)
    timings: list[Timing] = []

    @host.process
    async def work(proc: Process) -> None:
        begun_s, cpu_s = perf_counter(), process_time()
        results = await proc.map("items", step, range(items))
        taken_s = perf_counter() - begun_s
        timings.append(Timing(items, taken_s, process_time() - cpu_s, taken_s))
        assert results == list(range(items))

    async with host:
        await (await host.spawn(work, "mapping")).result()
    return timings[0]


def run_pair(folder: Path, number: int, processes: int) -> tuple[Timing, Timing]:
    """Run the independent processes, then the map, each with fresh files."""
    gc.collect()
    storage = FileSystemStorage(folder / f"processes-{number}")
    apart = asyncio.run(run_durable(storage, processes, STEPS))
    gc.collect()
    storage = FileSystemStorage(folder / f"map-{number}")
    return apart, asyncio.run(run_map(storage, processes * STEPS))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("items/s of a map, of the steps/s of independent processes", argv, repeats=11)
    logging.getLogger("durabletask").setLevel(logging.ERROR)  # 10,000 items are worth a warning
    processes = chosen.size(PROCESSES, 20)
    with disk_folder(chosen) as folder:
        if not chosen.tiny:
            run_pair(folder, -1, processes)  # imports, caches, the CPU's clock
        pairs = [run_pair(folder, number, processes) for number in range(chosen.repeats)]
    apart, mapped = zip(*pairs, strict=True)
    rates = [[run.steps / run.steps_s for run in side] for side in (apart, mapped)]
    cpu = [[run.cpu_s * 1e6 / run.steps for run in side] for side in (apart, mapped)]
    title = f"{processes * STEPS:,} steps or items"
    tell(f"{title}: a second", {"processes": rates[0], "map": rates[1]})
    tell(f"{title}: CPU µs each", {"processes": cpu[0], "map": cpu[1]}, ".1f")
    conclude("ratio, items to steps", ratios(rates[1], rates[0]), at_least=MUST_REACH)


if __name__ == "__main__":
    main()
