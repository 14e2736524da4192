"""How long after `kill -9` of a host with 1,000 processes in flight do all go on, on another?

Two programs on one database, each a host with default settings. One has 1,000
processes, each in its third step; it is killed. The clock runs from before the
kill until the last of them has recorded that step on the other host, which had
nothing to do before. The server sees the dead host's session end. The same
with hosts that were given a pool, and so have no session that others could see
end, as behind a pooler: then the lease decides.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg

from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import Server, lend_server, program
from benchmarks._work import step
from durabletask import Process, ProcessHost
from durabletask_postgres import PostgresStorage

PROCESSES = 1_000
LEASE_TTL_S = 15.0
TINY_TTL_S = 1.5
HANGS_S = 60.0
"""Beyond the lease's time; who waits longer for the other's processes will never get them."""

SEEN_MAX_S = 2.0
BEYOND_LEASE_MAX_S = 1.0


@asynccontextmanager
async def open_storage(dsn: str, way: str, ttl_s: float) -> AsyncIterator[PostgresStorage]:
    """Lend a storage whose end others see, or do not."""
    if way == "seen":
        yield PostgresStorage(dsn, lease_ttl_s=ttl_s)
        return
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        yield PostgresStorage(pool, lease_ttl_s=ttl_s)


async def run(role: str, dsn: str, way: str, ttl_s: float, count: int) -> None:
    """Be the host that dies, or the one that goes on."""
    left = count
    over = asyncio.Event()
    recorded_s: list[float] = []

    def count_down() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    async def third() -> int:
        if role == "victim":
            count_down()
            await asyncio.Event().wait()
        return 3

    async def work(proc: Process) -> None:
        await proc.do("first", step, 1)
        await proc.do("second", step, 2)
        await proc.do("third", third)
        recorded_s.append(perf_counter())
        count_down()

    async with open_storage(dsn, way, ttl_s) as storage:
        async with ProcessHost(storage, processes=[work]) as host:
            if role == "victim":
                await asyncio.gather(*(host.spawn(work, f"process/{n}") for n in range(count)))
                await over.wait()
                print("in flight", flush=True)
                await asyncio.Event().wait()
            print("ready", flush=True)
            async with asyncio.timeout(ttl_s + HANGS_S):
                await over.wait()
        print(json.dumps({"first": min(recorded_s), "last": max(recorded_s)}), flush=True)


def take_over(server: Server, way: str, ttl_s: float, count: int) -> tuple[float, float]:
    """Kill a host; return the seconds until the first and the last of its processes went on."""
    with server.database() as dsn:
        passed = (dsn, way, ttl_s, count)
        with (
            program(__file__, "survivor", *passed) as survivor,
            program(__file__, "victim", *passed) as victim,
        ):
            assert survivor.stdout is not None
            assert victim.stdout is not None
            assert survivor.stdout.readline() == b"ready\n"
            assert victim.stdout.readline() == b"in flight\n"
            killed_s = perf_counter()
            victim.kill()
            told = json.loads(survivor.stdout.readline())
    return told["first"] - killed_s, told["last"] - killed_s


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] in (["survivor"], ["victim"]):
        role, dsn, way, *numbers = arguments
        return asyncio.run(run(role, dsn, way, float(numbers[0]), int(numbers[1])))
    chosen = options("takeover of a killed host's processes, Postgres", arguments, 5)
    count = chosen.size(PROCESSES, 10)
    ttl_s = TINY_TTL_S if chosen.tiny else LEASE_TTL_S
    found: dict[str, list[tuple[float, float]]] = {"seen": [], "unseen": []}
    with lend_server(chosen) as server:
        for _ in range(chosen.repeats):
            for way, each in found.items():
                each.append(take_over(server, way, ttl_s, count))
    shown = {}
    for way, each in found.items():
        shown[f"session {way} to end, first goes on"] = [first for first, _ in each]
        shown[f"session {way} to end, all go on"] = [last for _, last in each]
    tell(f"s after the kill, {count:,} processes", shown, ".2f")
    seen, unseen = ([last for _, last in each] for each in found.values())
    conclude("ratio, seen to unseen", ratios(seen, unseen))
    conclude(
        "s beyond the lease's time, unseen", [s - ttl_s for s in unseen], at_most=BEYOND_LEASE_MAX_S
    )
    conclude("s until all go on, seen", seen, at_most=SEEN_MAX_S)
    return None


if __name__ == "__main__":
    main()
