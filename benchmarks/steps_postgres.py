"""How many durable steps a second on Postgres, beside the barest program with the same rows?

1,000 processes of 10 steps each run at once, one host. Both sides spawn all of
them, hold them back until the last is spawned, and end each with a record, in
one database made for the pair. "Steps" counts from all spawned to the last
step returned, and so do the log and the transactions that the server counted;
"everything" counts from the first spawn to the last result.
"""

import asyncio
import gc
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from benchmarks._bare_postgres import run_bare_postgres
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import Count, Meter, lend_server
from benchmarks._work import Timing, run_durable
from durabletask_postgres import PostgresStorage

PROCESSES = 1_000
STEPS = 10
MUST_REACH = 0.5
MAY_WRITE = 1.3


class Side(NamedTuple):
    """One run of one side: its times, and what the server did for its steps."""

    timing: Timing
    counted: Count


async def run_side(dsn: str, processes: int, *, bare: bool) -> Side:
    """Run one side once."""
    watching = await asyncpg.connect(dsn)
    meter = Meter(watching)
    if bare:
        timing = await run_bare_postgres(dsn, processes, STEPS, meter.mark)
    else:
        timing = await run_durable(PostgresStorage(dsn), processes, STEPS, meter.mark)
    await watching.close()
    return Side(timing, meter.counted())


def run_pair(dsn: str, processes: int) -> tuple[Side, Side]:
    """Run the bare program, then ours."""
    gc.collect()
    bare = asyncio.run(run_side(dsn, processes, bare=True))
    gc.collect()
    return bare, asyncio.run(run_side(dsn, processes, bare=False))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("durable steps/s on Postgres, of the barest program's", argv, repeats=11)
    processes = chosen.size(PROCESSES, 20)
    pairs = []
    with lend_server(chosen) as server:
        for number in range(chosen.repeats + (not chosen.tiny)):
            with server.database() as dsn:
                pair = run_pair(dsn, processes)
            if number or chosen.tiny:  # the first one is for imports, caches, the CPU's clock
                pairs.append(pair)
    sides = dict(zip(("bare", "durable"), zip(*pairs, strict=True), strict=True))
    times = {name: [side.timing for side in each] for name, each in sides.items()}
    steps = {name: [run.steps / run.steps_s for run in each] for name, each in times.items()}
    everything = {name: [run.steps / run.all_s for run in each] for name, each in times.items()}
    cpu = {name: [run.cpu_s * 1e6 / run.steps for run in each] for name, each in times.items()}
    log = {
        name: [side.counted.wal_bytes / side.timing.steps for side in each]
        for name, each in sides.items()
    }
    transactions = {
        name: [side.counted.transactions * 1e3 / side.timing.steps for side in each]
        for name, each in sides.items()
    }
    tell(f"{processes:,} processes × {STEPS}: steps/s", steps)
    tell("with spawning and ending", everything)
    tell("CPU µs a step, this program's", cpu, ".1f")
    tell("bytes of log a step", log)
    tell("writing transactions per 1,000 steps", transactions, ".2f")
    conclude("ratio, everything", ratios(everything["durable"], everything["bare"]))
    conclude("ratio, log", ratios(log["durable"], log["bare"]), at_most=MAY_WRITE)
    conclude(
        "ratio, transactions",
        ratios(transactions["durable"], transactions["bare"]),
        at_most=MAY_WRITE,
    )
    conclude("ratio, steps", ratios(steps["durable"], steps["bare"]), at_least=MUST_REACH)


if __name__ == "__main__":
    main()
