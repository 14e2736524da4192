"""Mistakes in the program set the process aside: unseen by its code, compensating nothing."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process
from durabletask.errors import ProcessQuarantinedError
from tests.engine.world import World, virtual, watched


async def nop() -> None:
    """Do nothing; a step."""


async def one() -> int:
    return 1


async def double(n: int) -> int:
    return 2 * n


async def _sequential(proc: Process) -> None:
    await proc.do("key", one)
    await proc.do("key", one)


async def _gathered(proc: Process) -> None:
    await asyncio.gather(proc.do("key", one), proc.do("key", one))


async def _settled(proc: Process) -> None:
    await asyncio.gather(proc.do("key", one), proc.do("key", one), return_exceptions=True)
    await asyncio.sleep(1)
    await proc.do("went on", one)


async def _recursive(proc: Process, depth: int = 3) -> None:
    await proc.do("key", one)
    if depth:
        await _recursive(proc, depth - 1)


async def _kinds(proc: Process) -> None:
    await proc.do("key", one)
    await proc.get("key", 1)


async def _events(proc: Process) -> None:
    await asyncio.gather(proc.event("key"), proc.event("key"))


async def _vars(proc: Process) -> None:
    await proc.var("key", 1)
    await proc.var("key", 1)


async def _streams(proc: Process) -> None:
    await asyncio.gather(anext(proc.events("key")), anext(proc.events("key")))


async def _grouped(proc: Process) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(proc.delay("key", timedelta(days=1)))
        group.create_task(proc.do("key", one))


@pytest.mark.parametrize(
    "body",
    [_sequential, _gathered, _settled, _recursive, _kinds, _events, _vars, _streams, _grouped],
)
def test_a_key_used_twice_quarantines(body: Any) -> None:
    """F105, S2.13 (rule 4): in sequence, in gather, in recursion: set aside, key and fix named."""

    @virtual
    async def test(world: World) -> None:
        seen: list[str] = []
        process = watched(body, seen)
        async with world.host(process) as host:
            await host.spawn(process, "p")
            with pytest.raises(ProcessQuarantinedError, match="'key' was used twice") as caught:
                await host.get("p").result()
            assert "give each call its own key" in str(caught.value)
        assert seen == []
        assert not {"compensation", "went on"} & {key for _, key, _ in world.keys("p")}
        assert world.row("p").owner is None

    test()


@virtual
async def test_a_loop_with_keys_of_its_own_is_no_conflict(world: World) -> None:
    """F105: f"ship/{n}" in a loop, and events() beside event(), are different keys."""

    async def process(proc: Process) -> int:
        total = 0
        for n in range(5):
            total += await proc.do(f"ship/{n}", double, n)
        total += await proc.event("e", int)
        async for value in proc.events("e", int):
            total += value
            break
        return total

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("e", 100)
        await handle.raise_event("e", 1000)
        assert await handle.result() == 1120
