"""How long until a request to cancel a waiting process is acknowledged, on Postgres?

A client asks, one process after the other; a host in another program holds
them and waits with them. Between two requests a bare insert and commit of one
row on a connection beside it. Also told, and not judged: how long until the
process has ended.
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import asyncpg

from benchmarks._bare_postgres import ONE_STEP, TABLES
from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server, percentiles, program
from durabletask import Process, ProcessClient, ProcessHost, Status
from durabletask.errors import ProcessCancelledError
from durabletask_postgres import PostgresStorage

CANCELS_PER_ROUND = 100
LOOK_S = 0.01
MUST_REACH = 3.0


async def hold(dsn: str, count: int) -> None:
    """Be the host that waits with so many processes, until standard input ends."""
    host = ProcessHost(PostgresStorage(dsn))

    @host.process
    async def work(proc: Process) -> None:
        await proc.event("never")

    async with host:
        handles = [await host.spawn(work, f"process/{number}") for number in range(count)]
        while (  # noqa: ASYNC110  (nothing tells)
            await handles[-1].info()
        ).status is not Status.WAITING:
            await asyncio.sleep(LOOK_S)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def cancel(dsn: str, rounds: int, count: int) -> tuple[list[float], ...]:
    """Return in ms, of each round: the p50 of bare commits, of requests, and until the end."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLES)
    insert = await connection.prepare(ONE_STEP)
    told: tuple[list[float], ...] = ([], [], [])
    async with ProcessClient(PostgresStorage(dsn)) as client:
        for turn in range(rounds):
            times: tuple[list[float], ...] = ([], [], [])
            for number in range(turn * count, (turn + 1) * count):
                handle = client.get(f"process/{number}")
                begun_s = perf_counter()
                await insert.fetch(number, "commit", 1, b"1")
                commit_s = perf_counter()
                await handle.cancel("measured")
                asked_s = perf_counter()
                with suppress(ProcessCancelledError):
                    await handle.result()
                ended_s = perf_counter()
                passed = (commit_s - begun_s, asked_s - commit_s, ended_s - commit_s)
                for values, value in zip(times, passed, strict=True):
                    values.append(value * 1e3)
            for values, each in zip(told, times, strict=True):
                values.append(percentiles(each)[0])
    await connection.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["child"]:
        asyncio.run(hold(arguments[1], int(arguments[2])))
        return
    chosen = options("a request to cancel a waiting process, Postgres", arguments, 10)
    rounds, count = chosen.repeats, chosen.size(CANCELS_PER_ROUND, 3)
    with (
        lend_server(chosen) as server,
        server.database() as dsn,
        program(__file__, "child", dsn, rounds * count) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        commit, asked, ended = asyncio.run(cancel(dsn, rounds, count))
    tell(
        f"ms, p50 of {count}, {rounds} rounds",
        {"a bare insert + commit": commit, "a request": asked, "until it has ended": ended},
        ".2f",
    )
    conclude("ratio, a request to a bare commit", ratios(asked, commit), at_most=MUST_REACH)


if __name__ == "__main__":
    main()
