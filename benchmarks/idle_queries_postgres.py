"""How many transactions a second does an idle host ask of Postgres?

Hosts with 100 processes that wait for an event, and with ten functions more
that have a limit (`concurrency=`). Counted by the server
(`xact_commit` of their database), after a while in which everything settles
and in which sessions that have nothing more to do report what they did: a
busy one reports every second, an idle one within ten. Renewal, polling and
whatever else a host does count.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import committed, lend_server
from durabletask import Process, ProcessHost
from durabletask_postgres import PostgresStorage

PROCESSES = 100
LIMITED = 10
SETTLE_S = 12.0
WINDOW_S = 30.0
HOSTS = (1, 3)
MUST_REACH = 2.0


async def work(proc: Process) -> None:
    """Wait for what never comes."""
    await proc.event("never", int)


def new_work() -> Callable[[Process], Coroutine[Any, Any, None]]:
    """Return another function."""

    async def limited(proc: Process) -> None:
        await proc.event("never", int)

    return limited


async def idle_rate(dsn: str, hosts: int, settle_s: float, window_s: float) -> float:
    """Let hosts be idle for a while; return transactions a second of each."""
    running = [ProcessHost(PostgresStorage(dsn), processes=[work]) for _ in range(hosts)]
    for host in running:
        for number in range(LIMITED):
            host.process(name=f"limited {number}", concurrency=1)(new_work())
        await host.start()
    await asyncio.gather(
        *(running[0].spawn(work, f"process/{number}") for number in range(PROCESSES))
    )
    await asyncio.sleep(settle_s)
    before = await committed(dsn)
    begun_s = perf_counter()
    await asyncio.sleep(window_s)
    after = await committed(dsn)
    took_s = perf_counter() - begun_s
    for host in running:
        await host.stop()
    return (after - before) / took_s / hosts


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("transactions/s of an idle host on Postgres", argv, 1)
    settle_s, window_s = (0.1, 0.1) if chosen.tiny else (SETTLE_S, WINDOW_S)
    found: dict[int, list[float]] = {hosts: [] for hosts in HOSTS}
    with lend_server(chosen) as server:
        for _ in range(chosen.repeats):
            for hosts, rates in found.items():
                with server.database() as dsn:
                    rates.append(asyncio.run(idle_rate(dsn, hosts, settle_s, window_s)))
    tell("transactions/s of each host", {f"{n} running": each for n, each in found.items()}, ".2f")
    one, three = found.values()
    conclude("ratio, of three running to one", ratios(three, [max(each, 0.01) for each in one]))
    conclude("transactions/s of an idle host", one + three, at_most=MUST_REACH)


if __name__ == "__main__":
    main()
