"""How many durable steps a second, of those that DBOS makes, on the same server in the same minute?

`make bench-dbos`, or `python -m benchmarks.dbos`. The first run makes a virtual
environment below `build/` and installs `requirements.txt` into it, for which
it needs a package index. 1,000 processes of 10 steps on either side, all
spawned before the first step, counted until the last step has returned. DBOS
is run in several ways and the quickest of them counts.
"""

import asyncio
import gc
import json
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import Server, lend_server
from benchmarks._work import run_durable
from benchmarks.idle_latency_postgres import measure
from durabletask_postgres import PostgresStorage

HERE = Path(__file__).parent
PROCESSES = 1_000
STEPS = 10
IDLE = 100
MUST_REACH = 100.0

POOLS = (0, 6)
"""Connections of DBOS's pool: its default of 20, and what was quickest here on two cores."""


class Way(NamedTuple):
    """One way to run DBOS: its concurrency, and the size of its pool, 0 for its default."""

    how: str
    pool: int

    def __str__(self) -> str:
        return f"DBOS, {self.how}, pool of {self.pool or 'its default'}"


WAYS = tuple(Way(how, pool) for how in ("coroutines", "threads") for pool in POOLS)


def environment(folder: Path) -> Path:
    """Return the Python of the peer's environment; make it if this is the first time."""
    wanted = (HERE / "requirements.txt").read_text()
    ready = folder / "ready"
    python = folder / "bin" / "python"
    if not ready.exists() or ready.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"]
        subprocess.run([str(part) for part in install], check=True)
        ready.write_text(wanted)
    return python


def run_peer(python: Path, server: Server, way: Way, processes: int, idle: int) -> dict[str, Any]:
    """Run DBOS once in a new program and a new database; return what it told."""
    with server.database() as dsn:
        command = [python, HERE / "peer.py", dsn, way.how, way.pool, processes, STEPS, idle]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def run_ours(server: Server, processes: int) -> float:
    """Run ours once in a new database; return its steps/s."""
    gc.collect()
    with server.database() as dsn:
        timing = asyncio.run(run_durable(PostgresStorage(dsn), processes, STEPS))
    return timing.steps / timing.steps_s


def idle_ours(server: Server, idle: int) -> dict[int, float]:
    """Return p50 in ms from spawn to result on an idle host, by number of steps."""
    with server.database() as dsn:
        durable, _ = asyncio.run(measure(dsn, 1, idle))
    return {steps: rounds[0][0] for steps, rounds in durable.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("durable steps/s on Postgres, of those of DBOS", argv, 3)
    processes, idle = chosen.size(PROCESSES, 10), chosen.size(IDLE, 5)
    python = environment(chosen.folder / "dbos-environment")
    speeds: dict[str, list[float]] = {"ours": []}
    quickest: list[float] = []
    idles: dict[str, list[float]] = {}
    ways = WAYS
    with lend_server(chosen) as server:
        if not chosen.tiny:
            run_ours(server, processes)  # imports, caches, the CPU's clock
        for _ in range(chosen.repeats):
            speeds["ours"].append(run_ours(server, processes))
            for steps, p50 in idle_ours(server, idle).items():
                idles.setdefault(f"ours, {steps}", []).append(p50)
            told = {way: run_peer(python, server, way, processes, idle) for way in ways}
            for way, answer in told.items():
                speeds.setdefault(str(way), []).append(processes * STEPS / answer["s"])
            best = min(told, key=lambda way: float(told[way]["s"]))
            quickest.append(processes * STEPS / told[best]["s"])
            for steps in (1, 10):
                p50 = min(answer[str(steps)][0] for answer in told.values())
                idles.setdefault(f"DBOS, {steps}", []).append(p50)
            ways = (best,)  # the other ways have had their chance
    tell(f"{processes:,} × {STEPS}: steps/s", speeds)
    tell("ms from start to result, idle, p50, by steps", idles, ".2f")
    for steps in (1, 10):
        ratio = ratios(idles[f"ours, {steps}"], idles[f"DBOS, {steps}"])
        conclude(f"ratio, idle process of {steps} to DBOS", ratio)
    conclude(
        "ratio, steps to DBOS", ratios(speeds["ours"], quickest), at_least=MUST_REACH, form=".0f"
    )


if __name__ == "__main__":
    main()
