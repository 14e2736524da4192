"""How long does a lone step take, in multiples of one bare write and sync of the same bytes?

One process, one step at a time, on files; after each step a bare append of as
many bytes as that step wrote, with `os.write` and `os.fdatasync` on the
calling thread. Nothing else runs, so there is nothing to share a sync with.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks._frame import BareFile, conclude, disk_folder, file_bytes, options, ratios, tell
from benchmarks._work import step
from durabletask import Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

PAIRS_PER_ROUND = 100
WARM_UP = 20
MUST_REACH = 1.5


class Rounds:
    """Latencies of both sides in seconds, a median for each round of pairs."""

    def __init__(self) -> None:
        self.bare: list[float] = []
        self.durable: list[float] = []


async def measure(folder: Path, rounds: int, pairs: int) -> Rounds:
    """Make one process do its steps, with a bare append behind each."""
    told = Rounds()
    files = folder / "durable"
    bare = BareFile(folder / "bare")
    host = ProcessHost(FileSystemStorage(files))

    @host.process
    async def work(proc: Process) -> None:
        before = file_bytes(files)
        for number in range(WARM_UP):
            await proc.do(f"warm-up {number}", step, number)
        line = b"x" * ((file_bytes(files) - before) // WARM_UP)
        for turn in range(rounds):
            ours, theirs = [], []
            for number in range(pairs):
                begun_s = perf_counter()
                await proc.do(f"step {turn}.{number}", step, number)
                between_s = perf_counter()
                bare.append(line)
                theirs.append(perf_counter() - between_s)
                ours.append(between_s - begun_s)
            told.durable.append(median(ours))
            told.bare.append(median(theirs))

    async with host:
        await (await host.spawn(work, "process")).result()
    bare.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("latency of a lone step on files, of a bare append + fdatasync", argv, 20)
    with disk_folder(chosen) as folder:
        told = asyncio.run(measure(folder, chosen.repeats, chosen.size(PAIRS_PER_ROUND, 3)))
    shown = {
        "bare append + fdatasync": [seconds * 1e6 for seconds in told.bare],
        "lone step": [seconds * 1e6 for seconds in told.durable],
        "what the step costs besides": [
            (ours - theirs) * 1e6 for ours, theirs in zip(told.durable, told.bare, strict=True)
        ],
    }
    tell(f"µs, medians of {chosen.repeats} rounds", shown)
    conclude("ratio, lone step", ratios(told.durable, told.bare), at_most=MUST_REACH)


if __name__ == "__main__":
    main()
