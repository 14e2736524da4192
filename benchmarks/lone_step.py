"""How long does a lone step take, in multiples of one bare write and sync of the same bytes?

One process, one step at a time, on files; after each step a bare append of as
many bytes as that step wrote, with `os.write` and `os.fdatasync` on the
calling thread. Nothing else runs, so there is nothing to share a sync with.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks._frame import BareFile, disk_folder, file_bytes, options
from benchmarks._work import Rounds, step
from durabletask import Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

PAIRS_PER_ROUND = 100
WARM_UP = 20
MUST_REACH = 1.5


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
            told.add(theirs, ours)

    async with host:
        await (await host.spawn(work, "process")).result()
    bare.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("latency of a lone step on files, of a bare append + fdatasync", argv, 20)
    with disk_folder(chosen) as folder:
        told = asyncio.run(measure(folder, chosen.repeats, chosen.size(PAIRS_PER_ROUND, 3)))
    told.tell("bare append + fdatasync", at_most=MUST_REACH)


if __name__ == "__main__":
    main()
