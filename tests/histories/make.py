"""Writes the histories that later releases must resume: `python -m tests.histories.make VERSION`.

Once for each release that records something new. What is there is never written again.
"""

import asyncio
import sys
from pathlib import Path

from durabletask import ProcessClient
from durabletask.testing import VirtualClock, export_history, run_virtual
from tests.engine.database import host_of
from tests.engine.world import World
from tests.histories.programs import DONE, SCENARIOS, Scenario

FOLDER = Path(__file__).parent


def play(scenario: Scenario) -> bytes:
    """Run a scenario until its host dies, and return its histories, one a line."""

    async def main(clock: VirtualClock) -> bytes:
        world = World(clock)
        host = host_of(world, scenario.fn, *scenario.others)
        if scenario.slow_commit_s:

            async def slowly(call: str) -> None:
                if call == "commit":
                    await asyncio.sleep(scenario.slow_commit_s)

            world.wires[host].before = slowly
        await host.start()
        await host.spawn(scenario.fn, "p", *scenario.args)
        begun_s = clock.monotonic_s()
        await asyncio.sleep(0.1)
        await scenario.before(host)
        await asyncio.sleep(begun_s + scenario.after_s - clock.monotonic_s())
        world.kill(host)
        async with ProcessClient(world.storage, clock=clock) as client:
            await scenario.asleep(client)
            ids = [info.id async for info in client.list()]
            return b"".join([await export_history(client, each) + b"\n" for each in ids])

    DONE.clear()
    return run_virtual(main)


def main(version: str) -> None:
    """Write what is not there yet."""
    for name, scenario in SCENARIOS.items():
        path = FOLDER / f"v{version}_{name}.jsonl"
        if path.exists():
            print(f"{path.name}: there is one already")
            continue
        path.write_bytes(play(scenario))
        print(f"{path.name}: written")


if __name__ == "__main__":
    main(sys.argv[1])
