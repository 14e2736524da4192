"""Hosts that die again and again: resuming converges, and the deaths are counted."""

import asyncio

import pytest

from durabletask import Process
from tests.engine.world import World, settle, virtual


@pytest.mark.parametrize("first", range(1, 7))
@pytest.mark.parametrize("second", [1, 2, 3, 4])
def test_dying_while_resuming_converges(first: int, second: int) -> None:
    """F004, F008: killed at the nth storage call of a start, and again at the next: all is well."""

    @virtual
    async def body(world: World) -> None:
        recorded: list[str] = []

        async def step(name: str) -> str:
            recorded.append(name)
            return name

        async def process(proc: Process) -> str:
            got = [await proc.do(f"s{n}", step, f"s{n}") for n in range(3)]
            got.append(await proc.event("go", str))
            got.append(await proc.do("last", step, "last"))
            return " ".join(got)

        await world.begin_and_die(process)
        for nth in (first, second, first):
            host = world.host(process)
            await host.start()
            count = 0

            async def die(call: str) -> None:
                nonlocal count
                count += 1
                if count == nth:  # noqa: B023  (the host of this round)
                    world.kill(host)  # noqa: B023
                    await asyncio.get_running_loop().create_future()

            world.wires[host].before = die
            await asyncio.sleep(60)
            if not world.wires[host].dead:
                world.kill(host)
        async with world.host(process) as last:
            await last.raise_event("p", "go", "went")
            assert await last.get(process, "p").result() == "s0 s1 s2 went last"
        assert recorded == ["s0", "s1", "s2", "last"]

    body()


@virtual
async def test_deaths_without_a_record_in_between_are_counted(world: World) -> None:
    """F114 (for rule 12): a death that nothing was recorded before counts; a record resets."""

    async def process(proc: Process) -> str:
        await proc.event("one")
        return await proc.event("two", str)

    await world.begin_and_die(process)
    assert world.row("p").deaths == 0
    for deaths in (1, 2, 3):
        host = world.host(process)
        await host.start()
        await settle()
        world.kill(host)
        assert world.row("p").deaths == deaths
    host = world.host(process)
    await host.start()
    await host.raise_event("p", "one")
    await settle()
    world.kill(host)
    assert world.row("p").deaths == 0
    async with world.host(process) as last:
        await last.raise_event("p", "two", "done")
        assert await last.get(process, "p").result() == "done"
