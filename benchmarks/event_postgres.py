"""How long from raising an event on one host until a process goes on, on another, by Postgres?

Two programs on one database, each a host. One runs a process that waits for
the event; the other raises it, with the time by the machine's clock as its
payload, and the process notes how old it is. It is raised only after the wait
was recorded. A bare insert and commit of one row is timed beside each.
"""

import asyncio
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import asyncpg

from benchmarks._bare_postgres import ONE_STEP, TABLES
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server, percentiles, program
from durabletask import Process, ProcessHandle, ProcessHost
from durabletask_postgres import PostgresStorage

EVENTS_PER_ROUND = 100
LOOK_S = 0.005
HANGS_S = 60.0
"""A round that needs longer will never end: the other host is gone."""

P50_MAX_MS = 10.0
P99_MAX_MS = 50.0


async def receive(dsn: str, rounds: int, count: int) -> None:
    """Be the host that receives, until standard input ends."""
    host = ProcessHost(PostgresStorage(dsn))

    @host.process
    async def work(proc: Process, count: int) -> list[float]:
        ages_s = []
        for number in range(count):
            raised_s = await proc.event("tick", float, key=f"tick {number}")
            ages_s.append(perf_counter() - raised_s)
        return ages_s

    async with host:
        for turn in range(rounds):
            await host.spawn(work, f"process/{turn}", count)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def until_waiting_for(handle: ProcessHandle[Any], key: str) -> None:
    """Return when the wait of this key is recorded; an earlier one may still be."""
    while all(  # noqa: ASYNC110  (nothing tells)
        wait.key != key for wait in (await handle.info()).waits
    ):
        await asyncio.sleep(LOOK_S)


async def send(dsn: str, rounds: int, count: int) -> tuple[list[float], ...]:
    """Be the host that raises; return p50 and p99 in ms of each round, and of bare commits."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    insert = await connection.prepare(ONE_STEP)
    told: tuple[list[float], ...] = ([], [], [])
    async with ProcessHost(PostgresStorage(dsn)) as host, asyncio.timeout(HANGS_S * rounds):
        for turn in range(rounds):
            handle = host.get(f"process/{turn}")
            theirs = []
            for number in range(count):
                await until_waiting_for(handle, f"tick {number}")
                begun_s = perf_counter()
                await insert.fetch(turn, f"commit {number}", 1, b"1")
                theirs.append((perf_counter() - begun_s) * 1e3)
                await handle.raise_event("tick", perf_counter())
            ages_s: list[float] = await handle.result()
            p50, p99 = percentiles([age_s * 1e3 for age_s in ages_s])
            for values, value in zip(told, (p50, p99, percentiles(theirs)[0]), strict=True):
                values.append(value)
    await connection.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["child"]:
        asyncio.run(receive(arguments[1], int(arguments[2]), int(arguments[3])))
        return
    chosen = options("an event from one host to another, Postgres", arguments, 10)
    rounds, count = chosen.repeats, chosen.size(EVENTS_PER_ROUND, 3)
    with (
        lend_server(chosen) as server,
        server.database() as dsn,
        program(__file__, "child", dsn, rounds, count) as receiver,
    ):
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"ready\n"
        p50, p99, commit = asyncio.run(send(dsn, rounds, count))
    tell(
        f"ms, {rounds} rounds of {count}",
        {"a bare insert + commit, p50": commit, "event, p50": p50, "event, p99": p99},
        ".2f",
    )
    conclude("ratio, p50 to a bare commit", ratios(p50, commit))
    conclude("ms, p50", p50, at_most=P50_MAX_MS)
    conclude("ms, p99", p99, at_most=P99_MAX_MS)


if __name__ == "__main__":
    main()
