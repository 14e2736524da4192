"""How long until 10,000 interrupted processes have all gone on?

A program makes 10,000 processes, each of 5 recorded steps and a sixth that
never ends, and dies without a word. Fresh programs open copies of its folder;
the clock runs from before the host's start until the sixth step of the last
process is recorded. Page cache warm, imports not counted. The ratio is to
what the first five steps took when they were made.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks._frame import conclude, disk_folder, fresh_program, options, tell
from benchmarks._work import step
from durabletask import Limits, Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

COUNT = 10_000
RECORDED = 5
MUST_REACH_S = 1.5


async def run(folder: Path, count: int, *, first: bool) -> float:
    """Run all processes up to their sixth step, or resume them over it; return the seconds."""
    left = count
    over = asyncio.Event()
    host = ProcessHost(FileSystemStorage(folder), limits=Limits(resident_max=2 * count))

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

    begun_s = perf_counter()
    await host.start()
    if first:
        for start in range(0, count, 1_000):
            numbers = range(start, min(start + 1_000, count))
            await asyncio.gather(*(host.spawn(work, f"process/{number}") for number in numbers))
    await over.wait()
    return perf_counter() - begun_s


def child(what: str, folder: Path, count: int) -> None:
    """Do one side in this program, print the seconds, and die as by kill -9."""

    async def run_and_die() -> None:
        print(json.dumps({"s": await run(folder, count, first=what == "first")}), flush=True)
        os._exit(0)

    asyncio.run(run_and_die())


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["child"]:
        return child(arguments[1], Path(arguments[2]), int(arguments[3]))
    chosen = options("resuming interrupted processes", arguments, 7)
    count = chosen.size(COUNT, 20)
    first: list[float] = []
    resumed: list[float] = []
    for _ in range(chosen.repeats):
        with disk_folder(chosen) as folder:
            first.append(fresh_program(__file__, "child", "first", folder / "state", count)["s"])
            shutil.copytree(folder / "state", folder / "copy")  # and so the page cache is warm
            resumed.append(fresh_program(__file__, "child", "resume", folder / "copy", count)["s"])
    tell(f"s, {count:,} processes", {"first run of 5 steps": first, "resume": resumed}, ".2f")
    ratio = [again / made for again, made in zip(resumed, first, strict=True)]
    conclude("ratio, resume to first run", ratio)
    conclude("s until all have gone on", resumed, at_most=MUST_REACH_S)
    return None


if __name__ == "__main__":
    main()
