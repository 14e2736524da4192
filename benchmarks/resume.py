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

from benchmarks._frame import conclude, disk_folder, fresh_program, options, ratios, tell
from benchmarks._work import run_to_sixth
from durabletask import Limits, ProcessHost
from durabletask_filesystem import FileSystemStorage

COUNT = 10_000
MUST_REACH_S = 1.5


async def run(folder: Path, count: int, *, first: bool) -> float:
    """Run all processes up to their sixth step, or resume them over it; return the seconds."""
    host = ProcessHost(FileSystemStorage(folder), limits=Limits(resident_max=2 * count))
    return await run_to_sixth(host, count, first=first, end=True)


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
    conclude("ratio, resume to first run", ratios(resumed, first))
    conclude("s until all have gone on", resumed, at_most=MUST_REACH_S)
    return None


if __name__ == "__main__":
    main()
