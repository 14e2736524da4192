"""`proc.version`: which version of the code a process began under."""

import asyncio
from typing import Any

import pytest

from durabletask import Process
from durabletask.errors import InvalidArgumentError
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, quarantined, virtual


async def nop() -> None:
    """Do nothing; a step."""


@pytest.mark.parametrize(("old", "new"), [(1, 2), ("spring", "autumn"), (1, "autumn")])
def test_later_runs_return_what_the_first_recorded(old: Any, new: Any) -> None:
    """Versions: a process goes on under the version it began with; a new one has the new one."""

    @virtual
    async def body(world: World) -> None:
        current = old

        async def process(proc: Process) -> Any:
            version = await proc.version("pricing", current)
            await proc.event("go")
            return version

        await world.begin_and_die(process)
        current = new
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            assert await host.get(process, "p").result() == old
            handle = await host.spawn(process, "q")
            await handle.raise_event("go")
            assert await handle.result() == new
        assert ("version", "pricing", "value") in world.keys("p")

    body()


@virtual
async def test_added_to_code_that_runs(world: World) -> None:
    """Versions: who had come past an added call is recalling there, and so known as the old one."""
    added = False

    async def process(proc: Process) -> int:
        await proc.do("before", nop)
        version = 1
        if added:
            version = await proc.version("pricing", 1 if proc.resuming else 2)
        if proc.id == "early":
            await proc.event("wait", key="early")
        await proc.do("after", nop)
        await proc.event("go")
        return version

    async def early(proc: Process) -> int:
        await proc.event("let pass")
        return await process(proc)

    first = world.host(process, early)
    await first.start()
    await first.spawn(process, "past")
    await first.spawn(early, "not yet")
    await asyncio.sleep(1)
    world.kill(first)
    added = True
    second = world.host(process, early)
    await second.start()
    await second.raise_event("not yet", "let pass")
    await asyncio.sleep(1)
    world.kill(second)
    async with world.host(process, early) as host:
        for id in ("past", "not yet"):
            await host.raise_event(id, "go")
        assert await host.get(process, "past").result() == 1
        assert await host.get(early, "not yet").result() == 2


@pytest.mark.parametrize("current", [None, True, 1.5, b"1"])
def test_what_names_no_version_is_refused(current: Any) -> None:
    """Bad input gets a clear error and changes nothing: a version is an int or a str."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> None:
            with pytest.raises(InvalidArgumentError, match="version 'pricing'"):
                proc.version("pricing", current)

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()
        assert world.keys("p") == []

    body()


@virtual
async def test_its_key_is_one_of_the_durable_calls(world: World) -> None:
    """Rule 4: a key recorded as a version and asked for as a step quarantines."""
    is_step = False

    async def process(proc: Process) -> None:
        if is_step:
            await proc.do("pricing", nop)
        await proc.version("pricing", 1)
        await proc.event("go")

    await world.begin_and_die(process)
    is_step = True
    await quarantined(world, process, "recorded as version")


def test_dead_at_every_call() -> None:
    """F001-F003: dead at each storage call and await, the version stays."""

    async def process(proc: Process) -> str:
        first = await proc.version("a", 1)
        second, _ = await asyncio.gather(proc.version("b", "x"), proc.do("step", nop))
        return f"{first}{second}"

    report = crash_everywhere(process, callbacks=True)
    report.check()
    assert report.expected["crashing", "came to"] == b'"1x"'
