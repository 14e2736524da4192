"""What does the engine itself cost a step, with a storage that costs next to nothing?

On `MemoryStorage`: 1,000 processes of 10 steps, and one process of 10,000.
Beside it the barest program, which keeps its rows in a dict of lists. CPU time
decides: there is nothing to wait for, and what other programs take is not ours.
"""

import asyncio
import gc
import logging
from collections.abc import Sequence
from statistics import median

from benchmarks._bare import run_bare
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._work import Timing, run_durable
from durabletask import MemoryStorage

SHAPES = ((1_000, 10), (1, 10_000))
MUST_REACH_US = 15.0


def run_pair(processes: int, steps: int) -> tuple[Timing, Timing]:
    """Run the bare program, then ours."""
    gc.collect()
    bare = asyncio.run(run_bare(None, processes, steps))
    gc.collect()
    storage = MemoryStorage(lease_ttl_s=None)
    return bare, asyncio.run(run_durable(storage, processes, steps))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("µs a step of the engine alone", argv, repeats=11)
    logging.getLogger("durabletask").setLevel(logging.ERROR)  # 10,000 steps are worth a warning
    run_pair(10, 10)  # imports and caches
    worst: list[float] = []
    for counts in SHAPES:
        processes, steps = (chosen.size(count, min(count, 5)) for count in counts)
        pairs = [run_pair(processes, steps) for _ in range(chosen.repeats)]
        bare, durable = zip(*pairs, strict=True)
        cpu = [[run.cpu_s * 1e6 / run.steps for run in side] for side in (bare, durable)]
        wall = [[run.steps_s * 1e6 / run.steps for run in side] for side in (bare, durable)]
        shape = f"{processes:,} × {steps:,}"
        tell(f"{shape}: CPU µs a step", {"bare": cpu[0], "durable": cpu[1]}, ".1f")
        tell(f"{shape}: µs a step by the clock", {"bare": wall[0], "durable": wall[1]}, ".1f")
        conclude(f"ratio to the bare program, {shape}", ratios(cpu[1], cpu[0]))
        worst = max(worst, cpu[1], key=lambda values: median(values or [0.0]))
    conclude("CPU µs a step, the worse of both", worst, at_most=MUST_REACH_US, form=".1f")


if __name__ == "__main__":
    main()
