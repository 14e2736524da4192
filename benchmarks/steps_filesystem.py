"""How many durable steps a second, on files, beside the barest program that does the same?

1,000 processes of 10 steps each run at once. Both sides spawn all of them,
hold them back until the last is spawned, and end each with a record. "Steps"
counts from all spawned to the last step returned; "everything" from the first
spawn to the last result.
"""

import asyncio
import gc
from collections.abc import Sequence
from pathlib import Path

from benchmarks._bare import run_bare
from benchmarks._frame import BareFile, conclude, disk_folder, options, ratios, tell
from benchmarks._work import Timing, run_durable
from durabletask_filesystem import FileSystemStorage

PROCESSES = 1_000
STEPS = 10
MUST_REACH = 0.5


def run_pair(folder: Path, number: int, processes: int) -> tuple[Timing, Timing]:
    """Run the bare program, then ours, each with fresh files."""
    gc.collect()
    file = BareFile(folder / f"bare-{number}")
    bare = asyncio.run(run_bare(file, processes, STEPS))
    file.close()
    gc.collect()
    storage = FileSystemStorage(folder / f"durable-{number}")
    return bare, asyncio.run(run_durable(storage, processes, STEPS))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("durable steps/s on files, of the barest program's", argv, repeats=11)
    processes = chosen.size(PROCESSES, 20)
    with disk_folder(chosen) as folder:
        if not chosen.tiny:
            run_pair(folder, -1, processes)  # imports, caches, the CPU's clock
        pairs = [run_pair(folder, number, processes) for number in range(chosen.repeats)]
    bare, durable = zip(*pairs, strict=True)
    steps = [[run.steps / run.steps_s for run in side] for side in (bare, durable)]
    everything = [[run.steps / run.all_s for run in side] for side in (bare, durable)]
    tell(f"{processes:,} processes × {STEPS}: steps/s", {"bare": steps[0], "durable": steps[1]})
    tell("with spawning and ending", {"bare": everything[0], "durable": everything[1]})
    cpu = [[run.cpu_s * 1e6 / run.steps for run in side] for side in (bare, durable)]
    tell("CPU µs a step", {"bare": cpu[0], "durable": cpu[1]}, ".1f")
    conclude("ratio, everything", ratios(everything[1], everything[0]))
    conclude("ratio, steps", ratios(steps[1], steps[0]), at_least=MUST_REACH)


if __name__ == "__main__":
    main()
