"""How long until 10,000 interrupted processes have all gone on, on Postgres?

A program makes 10,000 processes, each of 5 recorded steps and a sixth that
never ends, and dies without a word, or stops in order. A fresh program then
opens the same database; the clock runs from before the host's start until the
sixth step of the last process is recorded. After a death that includes the
half second for which nobody may conclude anything from a missing session.
Imports are not counted. The ratio is to what the first five steps took when
they were made.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence

from benchmarks._frame import conclude, fresh_program, options, ratios, tell
from benchmarks._postgres import lend_server
from benchmarks._work import run_to_sixth
from durabletask import Limits, ProcessHost
from durabletask_postgres import PostgresStorage

COUNT = 10_000
MUST_REACH_S = 1.5


async def run(dsn: str, count: int, how: str) -> None:
    """Run all processes up to their sixth step, or resume them over it; print the seconds."""
    logging.getLogger("durabletask").setLevel(logging.ERROR)  # a stop tells what it interrupts
    host = ProcessHost(PostgresStorage(dsn), limits=Limits(resident_max=2 * count), drain_s=0)
    # To end them all is another question.
    seconds = await run_to_sixth(host, count, first=how != "resume", end=False)
    print(json.dumps({"s": seconds}), flush=True)
    if how != "stop":
        os._exit(0)
    await host.stop()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["child"]:
        return asyncio.run(run(arguments[1], int(arguments[2]), arguments[3]))
    chosen = options("resuming interrupted processes, Postgres", arguments, 5)
    count = chosen.size(COUNT, 20)
    made: dict[str, list[float]] = {"stop": [], "die": []}
    resumed: dict[str, list[float]] = {"stop": [], "die": []}
    with lend_server(chosen) as server:
        for _ in range(chosen.repeats):
            for how, seconds in resumed.items():
                with server.database() as dsn:
                    made[how].append(fresh_program(__file__, "child", dsn, count, how)["s"])
                    told = fresh_program(__file__, "child", dsn, count, "resume")
                    seconds.append(told["s"])
    shown = {
        "first run of 5 steps": made["die"] + made["stop"],
        "resume after a stop": resumed["stop"],
        "resume after a death": resumed["die"],
    }
    tell(f"s, {count:,} processes", shown, ".2f")
    conclude("ratio, resume after a death to first run", ratios(resumed["die"], made["die"]))
    conclude("s until all have gone on, after a stop", resumed["stop"], at_most=MUST_REACH_S)
    conclude("s until all have gone on, after a death", resumed["die"], at_most=MUST_REACH_S)
    return None


if __name__ == "__main__":
    main()
