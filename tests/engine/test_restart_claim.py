"""A restart whose next generation is claimed before the run that restarts has left."""

import asyncio

from durabletask import Process
from tests.engine.world import World, virtual


@virtual
async def test_the_next_generation_is_claimed_while_the_old_run_still_ends(world: World) -> None:
    """Issue 4: a claim that is quicker than the answer to the restart is run, not dropped."""

    async def again(proc: Process, turn: int) -> int:
        if turn < 3:
            proc.restart(turn + 1)
        return turn

    host = world.host(again)
    line = world.wires[host]

    async def slowly(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(5)

    async with host:
        line.after = slowly
        handle = await host.spawn(again, "p", 0)
        async with asyncio.timeout(60):
            assert await handle.result() == 3
        line.up()
