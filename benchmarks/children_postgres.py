"""How long do 1,000 children take, spawned and joined by one parent, on Postgres?

The parent calls them all in one `asyncio.gather`; each makes one step and
returns. That is a creation, a claim, a record, an end and the news of it for
each, and in the parent two records. Beside it as many bare rows, each
inserted and committed by itself on one connection: what a program does that
keeps its children in a table.
"""

import asyncio
import gc
import logging
from collections.abc import Sequence
from time import perf_counter

import asyncpg

from benchmarks._bare_postgres import ONE_STEP, TABLES
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server
from benchmarks._work import step
from durabletask import Process, ProcessHost
from durabletask_postgres import PostgresStorage

CHILDREN = 1_000
MUST_REACH_S = 1.5


async def run_children(dsn: str, count: int) -> float:
    """Return the seconds from the parent's first call to the return of its last."""
    host = ProcessHost(PostgresStorage(dsn))
    taken_s: list[float] = []

    @host.process
    async def child(proc: Process, number: int) -> int:
        return await proc.do("step", step, number)

    @host.process
    async def parent(proc: Process, count: int) -> None:
        begun_s = perf_counter()
        calls = (proc.call(f"child {number}", child, number) for number in range(count))
        results = await asyncio.gather(*calls)
        taken_s.append(perf_counter() - begun_s)
        assert results == list(range(count))

    async with host:
        await (await host.spawn(parent, "parent", count)).result()
    return taken_s[0]


async def run_bare(dsn: str, count: int) -> float:
    """Return the seconds that as many row commits take, one after the other."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    insert = await connection.prepare(ONE_STEP)
    begun_s = perf_counter()
    for number in range(count):
        await insert.fetch(number, "step", 1, b"1")
    taken_s = perf_counter() - begun_s
    await connection.close()
    return taken_s


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("children spawned and joined by one parent, Postgres", argv, repeats=7)
    logging.getLogger("durabletask").setLevel(logging.ERROR)
    count = chosen.size(CHILDREN, 5)
    bare: list[float] = []
    ours: list[float] = []
    with lend_server(chosen) as server:
        if not chosen.tiny:
            with server.database() as dsn:
                asyncio.run(run_children(dsn, count))  # imports, caches, the CPU's clock
        for _ in range(chosen.repeats):
            gc.collect()
            with server.database() as dsn:
                bare.append(asyncio.run(run_bare(dsn, count)))
                ours.append(asyncio.run(run_children(dsn, count)))
    tell(f"s for {count:,}", {"bare row commits": bare, "children": ours}, ".3f")
    conclude("ratio, children to bare commits", ratios(ours, bare))
    conclude(f"s, {count:,} children", ours, at_most=MUST_REACH_S)


if __name__ == "__main__":
    main()
