"""A limit on how many processes of one name a host takes at once."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.errors import RegistrationError, StorageUnavailableError, StorageUnknownError
from tests.engine.world import World, virtual


class Gauge:
    """How many bodies run at once, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0

    async def work(self, seconds: float = 10) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(seconds)
        self.now -= 1
        self.done += 1


def limited(
    world: World, gauge: Gauge, limit: int | None, **options: Any
) -> tuple[ProcessHost, Any]:
    """Return a host and its function, of which so many run at once."""

    async def process(proc: Process) -> None:
        await proc.do("work", gauge.work)

    host = world.host(**options)
    host.process(concurrency=limit)(process)
    return host, process


@pytest.mark.parametrize("limit", [1, 3])
@virtual
async def test_no_more_than_the_limit_run_at_once(world: World, limit: int) -> None:
    """Issue 4.3: the others wait in the storage; all of them run in the end, at full width."""
    gauge = Gauge()
    host, process = limited(world, gauge, limit)
    async with host:
        handles = [await host.spawn(process, f"p{number}") for number in range(9)]
        begun_s = world.clock.monotonic_s()
        for handle in handles:
            await handle.result()
        took_s = world.clock.monotonic_s() - begun_s
    assert (gauge.most, gauge.done) == (limit, 9)
    assert took_s < 10 * 9 / limit + 2, "a place that is free is taken at once"


@virtual
async def test_spawned_all_at_once(world: World) -> None:
    """Issue 4.3: spawns that are on their way together hold their places too."""
    gauge = Gauge()
    host, process = limited(world, gauge, 2)
    async with host:
        handles = await asyncio.gather(*(host.spawn(process, f"p{n}") for n in range(20)))
        await asyncio.gather(*(handle.result() for handle in handles))
    assert (gauge.most, gauge.done) == (2, 20)


@virtual
async def test_resumed_all_at_once(world: World) -> None:
    """Issue 4.3: what a dead host leaves behind is taken as there is room, not all of it."""
    gauge = Gauge()
    host, process = limited(world, gauge, None)
    await host.start()
    for number in range(8):
        await host.spawn(process, f"p{number}")
    await asyncio.sleep(1)
    world.kill(host)
    gauge = Gauge()
    host, process = limited(world, gauge, 2)
    async with host:
        await asyncio.gather(*(host.get(f"p{number}").result() for number in range(8)))
    assert (gauge.most, gauge.done) == (2, 8)


@virtual
async def test_other_names_are_not_held_up(world: World) -> None:
    """Issue 4.3: a name that is full does not stop the others, limited or not."""
    gauge, free = Gauge(), Gauge()
    host, process = limited(world, gauge, 1)

    @host.process
    async def unlimited(proc: Process) -> None:
        await proc.do("work", free.work)

    async with host:
        slow = [await host.spawn(process, f"s{number}") for number in range(5)]
        await asyncio.sleep(0.5)
        for number in range(5):
            await host.spawn(unlimited, f"u{number}", start_at=timedelta(seconds=1))
        await asyncio.sleep(2)
        assert (gauge.now, free.now) == (1, 5)
        await asyncio.gather(*(handle.result() for handle in slow))


@virtual
async def test_other_hosts_take_what_is_left(world: World) -> None:
    """Issue 4.3: the limit is that of one host; what it cannot take is there for others."""
    first, second = Gauge(), Gauge()
    host, process = limited(world, first, 1)
    other, _ = limited(world, second, 2)
    async with host, other:
        handles = [await host.spawn(process, f"p{number}") for number in range(6)]
        await asyncio.gather(*(handle.result() for handle in handles))
    assert (first.most, second.most) == (1, 2)
    assert first.done + second.done == 6


@virtual
async def test_a_full_name_makes_no_busy_loop(world: World) -> None:
    """Issue 4.3: while there is no room the storage is not asked over and over for that name."""
    gauge = Gauge()
    host, process = limited(world, gauge, 1, poll_s=1.0)
    async with host:
        for number in range(50):
            await host.spawn(process, f"p{number}")
        await asyncio.sleep(2)
        wire = world.wires[host]
        wire.calls.clear()
        await asyncio.sleep(100)
        claims = wire.calls.count("claim")
    assert gauge.done >= 10
    assert claims < 250


@virtual
async def test_a_place_comes_back_however_a_process_leaves(world: World) -> None:
    """Issue 4.3: by an end, a failure, a quarantine, a request from outside."""
    gauge = Gauge()
    host = world.host()

    @host.process(concurrency=1)
    async def process(proc: Process, how: str) -> None:
        if how == "fail":
            raise ValueError("no")
        if how == "conflict":
            await proc.do("a", asyncio.sleep, 0)
            await proc.do("a", asyncio.sleep, 0)
        if how == "wait":
            await proc.event("go")
        await proc.do("work", gauge.work, 1)

    async with host:
        for turn, how in enumerate(["fail", "conflict", "wait", "wait", "wait", "work"]):
            handle = await host.spawn(process, f"p{turn}", how)
            await asyncio.sleep(3)
            if turn == 2:
                await handle.terminate()
            if turn == 3:
                await handle.suspend()
            if turn == 4:
                await handle.cancel()
        await host.get("p5").result(timeout=10)
    assert gauge.done == 1


@pytest.mark.parametrize("call", ["claim", "create"])
@virtual
async def test_places_are_not_lost_with_answers(world: World, call: str) -> None:
    """Issue 4.3: outages and lost answers neither lose places nor go beyond the limit."""
    gauge = Gauge()
    host, process = limited(world, gauge, 2)
    async with host:
        turns = [0]

        async def lose(name: str) -> None:
            turns[0] += 1
            if name == call and turns[0] % 3 == 0:
                raise StorageUnknownError("lost")

        async def refuse(name: str) -> None:
            turns[0] += 1
            if name == "claim" and turns[0] % 5 == 0:
                raise StorageUnavailableError("down")

        world.wires[host].after, world.wires[host].before = lose, refuse
        handles = [await host.spawn(process, f"p{number}") for number in range(10)]
        await asyncio.gather(*(handle.result() for handle in handles))
    assert gauge.done == 10
    assert gauge.most == 2


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2"])
def test_a_wrong_limit_is_refused(wrong: Any) -> None:
    """Issue 4.3: a limit under which nothing could ever run is a mistake in the program."""

    async def process(proc: Process) -> None: ...

    with pytest.raises(RegistrationError, match="concurrency must be at least 1"):
        ProcessHost(MemoryStorage()).process(concurrency=wrong)(process)


@virtual
async def test_limits_cost_an_idle_host_no_questions(world: World) -> None:
    """Issue 3: with ten limited names, some full, it claims as often as with none."""
    gauge = Gauge()
    asked: list[int] = []
    for limit in (None, 1):
        host = world.host(poll_s=1.0)

        def register(number: int, host: ProcessHost = host, limit: int | None = limit) -> Any:
            async def process(proc: Process) -> None:
                await proc.do("work", gauge.work, 10_000)

            return host.process(name=f"{limit} {number}", concurrency=limit)(process)

        functions = [register(number) for number in range(10)]
        async with host:
            for number, function in enumerate(functions[:3] * 2):
                await host.spawn(function, f"{limit} {number}")
            await asyncio.sleep(10)
            wire = world.wires[host]
            wire.calls.clear()
            await asyncio.sleep(100)
            asked.append(wire.calls.count("claim"))
            world.kill(host)
    assert asked[1] <= asked[0] + 2
    assert asked[0] <= 130


@virtual
async def test_suspects_take_places_too(world: World) -> None:
    """Issue 4.3: those that three hosts have died with, while they are held back and afterwards."""

    async def process(proc: Process) -> None:
        await proc.event("go")

    async def slow(proc: Process) -> None:
        await proc.do("work", asyncio.sleep, 20)

    ids = [f"p{number}" for number in range(3)]
    for turn in range(4):
        host = world.host(process, slow)
        await host.start()
        if turn == 0:
            await host.spawn(slow, "first")
            for process_id in ids:
                await host.spawn(process, process_id)
        await asyncio.sleep(1)
        world.kill(host)
    assert {world.row(each).deaths for each in ids} >= {3}
    host = world.host(slow)
    host.process(concurrency=1)(process)
    async with host:
        for _ in range(4):
            await asyncio.sleep(10)  # at first "first" is the suspect that runs
            assert [world.row(each).owner is not None for each in ids].count(True) == 1
        for each in ids:
            await host.raise_event(each, "go")
        await asyncio.gather(*(host.get(each).result() for each in ids))
