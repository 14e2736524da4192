"""How long does a lone step take on Postgres, in multiples of a bare insert and commit of its row?

One process, one step at a time; after each step a bare program inserts the
same row into a table of the same columns and the same key, by a prepared
statement on a connection of its own. Nothing else runs, so there is nothing to
share a commit with.
"""

import asyncio
from collections.abc import Sequence
from statistics import median
from time import perf_counter

import asyncpg

from benchmarks._bare_postgres import ONE_STEP, TABLES
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server
from benchmarks._work import step
from durabletask import Process, ProcessHost
from durabletask_postgres import PostgresStorage

PAIRS_PER_ROUND = 100
WARM_UP = 20
MUST_REACH = 1.3


class Rounds:
    """Latencies of both sides in seconds, a median for each round of pairs."""

    def __init__(self) -> None:
        self.bare: list[float] = []
        self.durable: list[float] = []


async def measure(dsn: str, rounds: int, pairs: int) -> Rounds:
    """Make one process do its steps, with a bare insert behind each."""
    told = Rounds()
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    insert = await connection.prepare(ONE_STEP)
    host = ProcessHost(PostgresStorage(dsn))

    @host.process
    async def work(proc: Process) -> None:
        for number in range(WARM_UP):
            await proc.do(f"warm-up {number}", step, number)
            await insert.fetch(0, f"warm-up {number}", number, b"1")
        for turn in range(rounds):
            ours, theirs = [], []
            for number in range(pairs):
                key = f"step {turn}.{number}"
                begun_s = perf_counter()
                await proc.do(key, step, number)
                between_s = perf_counter()
                await insert.fetch(1, key, number, b"1")
                theirs.append(perf_counter() - between_s)
                ours.append(between_s - begun_s)
            told.durable.append(median(ours))
            told.bare.append(median(theirs))

    async with host:
        await (await host.spawn(work, "process")).result()
    await connection.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("latency of a lone step on Postgres, of a bare insert + commit", argv, 20)
    with lend_server(chosen) as server, server.database() as dsn:
        told = asyncio.run(measure(dsn, chosen.repeats, chosen.size(PAIRS_PER_ROUND, 3)))
    shown = {
        "bare insert + commit": [seconds * 1e6 for seconds in told.bare],
        "lone step": [seconds * 1e6 for seconds in told.durable],
        "what the step costs besides": [
            (ours - theirs) * 1e6 for ours, theirs in zip(told.durable, told.bare, strict=True)
        ],
    }
    tell(f"µs, medians of {chosen.repeats} rounds", shown)
    conclude("ratio, lone step", ratios(told.durable, told.bare), at_most=MUST_REACH)


if __name__ == "__main__":
    main()
