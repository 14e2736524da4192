"""How long does a lone step take on Postgres, in multiples of a bare insert and commit of its row?

One process, one step at a time; after each step a bare program inserts the
same row into a table of the same columns and the same key, by a prepared
statement on a connection of its own. Nothing else runs, so there is nothing to
share a commit with.
"""

import asyncio
from collections.abc import Sequence
from time import perf_counter

import asyncpg

from benchmarks._bare_postgres import ONE_STEP, TABLES
from benchmarks._frame import options
from benchmarks._postgres import lend_server
from benchmarks._work import Rounds, step
from durabletask import Process, ProcessHost
from durabletask_postgres import PostgresStorage

PAIRS_PER_ROUND = 100
WARM_UP = 20
MUST_REACH = 1.3


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
            told.add(theirs, ours)

    async with host:
        await (await host.spawn(work, "process")).result()
    await connection.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("latency of a lone step on Postgres, of a bare insert + commit", argv, 20)
    with lend_server(chosen) as server, server.database() as dsn:
        told = asyncio.run(measure(dsn, chosen.repeats, chosen.size(PAIRS_PER_ROUND, 3)))
    told.tell("bare insert + commit", at_most=MUST_REACH)


if __name__ == "__main__":
    main()
