"""How long from raising an event until its process goes on, in multiples of a row commit?

One host, on files. Two records lie in between: the event's own, and that it
was taken. A row commit is a bare append and sync of as many bytes as both
together, once. Measured from before `raise_event` to the line after the
process's `event`, with the process's wait recorded before. Each round has its
own process.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks._frame import BareFile, conclude, disk_folder, file_bytes, options, ratios, tell
from benchmarks._work import until_waiting
from durabletask import Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

PAIRS_PER_ROUND = 50
MUST_REACH = 3.0


async def measure(folder: Path, rounds: int, pairs: int) -> tuple[list[float], list[float]]:
    """Raise one event at a time; return the medians of each round, bare and durable."""
    files = folder / "durable"
    bare_file = BareFile(folder / "bare")
    bare: list[float] = []
    durable: list[float] = []
    went_on: asyncio.Future[float]
    host = ProcessHost(FileSystemStorage(files))

    @host.process
    async def work(proc: Process, count: int) -> None:
        for number in range(count):
            await proc.event("tick", int, key=f"tick {number}")
            went_on.set_result(perf_counter())

    async with host:
        for turn in range(rounds):
            process_id = f"process/{turn}"
            handle = await host.spawn(work, process_id, pairs + 1)
            ours, theirs = [], []
            line = b""
            for number in range(pairs + 1):
                await until_waiting(handle)
                went_on = asyncio.get_running_loop().create_future()
                before = file_bytes(files) if not line else 0
                begun_s = perf_counter()
                await host.raise_event(process_id, "tick", number)
                taken_s = await went_on - begun_s
                if not line:  # the first one is for its size only
                    line = b"x" * (file_bytes(files) - before)
                    continue
                ours.append(taken_s)
                begun_s = perf_counter()
                bare_file.append(line)
                theirs.append(perf_counter() - begun_s)
            durable.append(median(ours))
            bare.append(median(theirs))
            await handle.result()
    bare_file.close()
    return bare, durable


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("event raised to process continued, of a row commit", argv, 20)
    with disk_folder(chosen) as folder:
        bare, durable = asyncio.run(
            measure(folder, chosen.repeats, chosen.size(PAIRS_PER_ROUND, 3))
        )
    shown = {
        "row commit: bare append + fdatasync": [seconds * 1e6 for seconds in bare],
        "event raised → process goes on": [seconds * 1e6 for seconds in durable],
    }
    tell(f"µs, medians of {chosen.repeats} rounds", shown)
    conclude("ratio, event to a row commit", ratios(durable, bare), at_most=MUST_REACH)


if __name__ == "__main__":
    main()
