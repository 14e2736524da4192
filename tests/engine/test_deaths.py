"""Hosts that die again and again: resuming converges, and the deaths are counted."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from durabletask import Process, ProcessHost, Status, current_step
from durabletask.errors import ProcessQuarantinedError
from tests.engine.world import Wire, World, settle, virtual


async def nop() -> None:
    """Do nothing."""


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


def deadly_host(world: World, process: Callable[..., Coroutine[Any, Any, Any]]) -> ProcessHost:
    """Return a host that dies as soon as a step named "poison" begins in it."""
    host = world.host(process)
    killers[host] = lambda: world.kill(host)
    return host


killers: dict[ProcessHost, Callable[[], None]] = {}


async def poison(host: ProcessHost) -> None:
    """End the program."""
    killers[host]()
    await asyncio.get_running_loop().create_future()


@virtual
async def test_what_hosts_die_of_is_set_aside(world: World) -> None:
    """Rule 12 S1.13 F114: so many deaths without a record quarantine it, and `retry` goes on."""
    hosts: list[ProcessHost] = []
    calm = False

    async def process(proc: Process) -> str:
        await proc.do("before", nop)
        if not calm:
            await proc.do("poison", poison, hosts[-1])
        return "well"

    for round in range(40):
        host = deadly_host(world, process)
        hosts.append(host)
        await host.start()
        if round == 0:
            await host.spawn(process, "p")
        await asyncio.sleep(30)
        if not world.wires[host].dead:
            break
        assert world.row("p").deaths == round  # the first death came behind a record
    assert world.row("p").status is Status.QUARANTINED
    assert round == 21
    handle = hosts[-1].get(process, "p")
    with pytest.raises(ProcessQuarantinedError, match="20 hosts in a row died"):
        await handle.result()
    calm = True
    await handle.retry()
    assert await handle.result(60) == "well"
    await hosts[-1].stop()


@virtual
async def test_suspects_run_one_at_a_time(world: World) -> None:
    """Rule 12: so that a death is its own; innocent ones are cleared by getting to their wait."""
    hosts: list[ProcessHost] = []
    running: set[str] = set()
    most = 0

    async def slow(name: str) -> None:
        nonlocal most
        wire = current_step().run.services.writer.storage
        assert isinstance(wire, Wire)
        if wire.dead:
            return  # in a killed host, which does not know it
        running.add(name)
        most = max(most, len(running))
        await asyncio.sleep(1)
        running.discard(name)

    async def innocent(proc: Process) -> str:
        return await proc.event("go", str)

    async def busy(proc: Process) -> None:
        await proc.do("slow", slow, proc.id)

    for round in range(4):
        host = world.host(innocent, busy)
        hosts.append(host)
        await host.start()
        if round == 0:
            for n in range(5):
                await host.spawn(innocent, f"innocent/{n}")
                await host.spawn(busy, f"busy/{n}")
        await asyncio.sleep(0.5)
        world.kill(host)
        running.clear()
    assert {world.row(f"busy/{n}").deaths for n in range(5)} == {4}
    assert {world.row(f"innocent/{n}").deaths for n in range(5)} == {3}
    most = 0
    async with world.host(innocent, busy) as last:
        for n in range(5):
            await last.get(busy, f"busy/{n}").result()
            await last.raise_event(f"innocent/{n}", "go", "went")
            assert await last.get(innocent, f"innocent/{n}").result() == "went"
    assert most == 1
