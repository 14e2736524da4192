"""How long from spawning a process to its result, on Postgres, when nothing else runs?

One host, one process at a time, of 1 step and of 10, in turns; from before
`spawn` until `result()` has returned. A bare insert and commit of one row
beside it says what a commit costs at that moment. The 99th percentile shows
whether some poll interval is in the way.
"""

import asyncio
from collections.abc import Sequence
from time import perf_counter

import asyncpg

from benchmarks._bare_postgres import ONE_STEP, TABLES
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server, percentiles
from benchmarks._work import step
from durabletask import Process, ProcessHost
from durabletask_postgres import PostgresStorage

EACH_PER_ROUND = 200
LENGTHS = (1, 10)
MUST_REACH_MS = {1: 3.0, 10: 6.0}
TAIL_MAX = 3.0

Rounds = list[tuple[float, float]]


async def measure(dsn: str, rounds: int, each: int) -> tuple[dict[int, Rounds], Rounds]:
    """Return (p50, p99) in ms of each round: by number of steps, and of a bare commit."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    insert = await connection.prepare(ONE_STEP)
    host = ProcessHost(PostgresStorage(dsn))

    @host.process
    async def work(proc: Process, steps: int) -> int:
        for number in range(steps):
            await proc.do(f"step {number}", step, number)
        return steps

    durable: dict[int, Rounds] = {steps: [] for steps in LENGTHS}
    bare: Rounds = []
    async with host:
        for turn in range(-1, rounds):  # the first is for caches and plans
            ours: dict[int, list[float]] = {steps: [] for steps in LENGTHS}
            theirs = []
            for number in range(each):
                for steps in LENGTHS:
                    process_id = f"process/{turn}.{number}.{steps}"
                    begun_s = perf_counter()
                    handle = await host.spawn(work, process_id, steps)
                    await handle.result()
                    ours[steps].append((perf_counter() - begun_s) * 1e3)
                begun_s = perf_counter()
                await insert.fetch(number, f"commit {turn}", 1, b"1")
                theirs.append((perf_counter() - begun_s) * 1e3)
            if turn >= 0:
                bare.append(percentiles(theirs))
                for steps in LENGTHS:
                    durable[steps].append(percentiles(ours[steps]))
    await connection.close()
    return durable, bare


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("from spawn to result on an idle host, Postgres", argv, 5)
    with lend_server(chosen) as server, server.database() as dsn:
        durable, bare = asyncio.run(measure(dsn, chosen.repeats, chosen.size(EACH_PER_ROUND, 2)))
    shown = {
        "a bare insert + commit, p50": [p50 for p50, _ in bare],
        "a bare insert + commit, p99": [p99 for _, p99 in bare],
    }
    for steps, rounds in durable.items():
        shown[f"process of {steps}, p50"] = [p50 for p50, _ in rounds]
        shown[f"process of {steps}, p99"] = [p99 for _, p99 in rounds]
    tell(f"ms, {chosen.repeats} rounds", shown, ".2f")
    commits = [p50 for p50, _ in bare]
    for steps, rounds in durable.items():
        middle = [p50 for p50, _ in rounds]
        conclude(f"ratio, process of {steps} to a bare commit", ratios(middle, commits))
        conclude(f"ms p50, process of {steps}", middle, at_most=MUST_REACH_MS[steps])
    conclude("ratio, p99 to p50 of a bare commit", [p99 / p50 for p50, p99 in bare])
    tails = [p99 / p50 for rounds in durable.values() for p50, p99 in rounds]
    conclude("ratio, p99 to p50", tails, at_most=TAIL_MAX)


if __name__ == "__main__":
    main()
