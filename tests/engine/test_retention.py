"""Retention: what has finished long ago goes by itself, and nothing else ever does."""

import asyncio
import logging
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from durabletask import Process
from durabletask.errors import InvalidArgumentError, StorageUnavailableError, UnknownProcessError
from tests.engine.world import World, virtual

HOUR = timedelta(hours=1)


async def empty(proc: Process) -> None: ...


async def other(proc: Process) -> None: ...


async def fails(proc: Process) -> None:
    raise ValueError("no")


async def waits(proc: Process) -> None:
    await proc.event("go")


async def left(world: World) -> list[str]:
    """Return the ids of what there is."""
    return sorted(world.storage._processes)


@virtual
async def test_what_has_finished_is_purged_after_its_time(world: World) -> None:
    """S0.11: however it ended; not before its time, and not much later."""
    async with world.host(empty, fails, waits, retention=HOUR) as host:
        for fn, process_id in ((empty, "done"), (fails, "failed"), (waits, "terminated")):
            await host.spawn(fn, process_id)
        await host.get("terminated").terminate()
        await asyncio.sleep(3590)
        assert await left(world) == ["done", "failed", "terminated"]
        await asyncio.sleep(3600 / 10)
        assert await left(world) == []
        with pytest.raises(UnknownProcessError):
            await host.get("done").info()


@virtual
async def test_what_has_not_finished_is_never_removed(world: World) -> None:
    """S0.11: running, waiting, suspended and quarantined ones stay, however old they are."""

    async def conflict(proc: Process) -> None:
        await proc.do("a", asyncio.sleep, 0)
        await proc.do("a", asyncio.sleep, 0)

    async def runs(proc: Process) -> None:
        await proc.do("long", asyncio.sleep, 1e6)

    world.allow(days=40)
    async with world.host(waits, conflict, runs, retention=HOUR, drain_s=0) as host:
        for fn in (waits, conflict, runs):
            await host.spawn(fn, fn.__name__)
        suspended = await host.spawn(waits, "suspended")
        await host.spawn(empty_later := waits, "later", start_at=timedelta(days=100))
        await asyncio.sleep(1)
        await suspended.suspend()
        await asyncio.sleep(86_400 * 5)
        assert await left(world) == ["conflict", "later", "runs", "suspended", "waits"]
    assert empty_later is waits


@virtual
async def test_by_name(world: World) -> None:
    """S0.11: each name has its own time; a name without one is kept for ever."""
    keep = {"empty": HOUR, "other": timedelta(hours=20)}
    world.allow(days=3)
    async with world.host(empty, other, fails, retention=keep) as host:
        for fn in (empty, other, fails):
            await host.spawn(fn, fn.__name__)
        await asyncio.sleep(2 * 3600)
        assert await left(world) == ["fails", "other"]
        await asyncio.sleep(20 * 3600)
        assert await left(world) == ["fails"]


@virtual
async def test_many_go_in_batches(world: World) -> None:
    """S0.11: a backlog goes in batches of at most 1,000, all in one round."""
    async with world.host(empty, retention=HOUR) as host:
        await asyncio.gather(*(host.spawn(empty, f"p{number}") for number in range(2_500)))
        sizes: list[int] = []
        purge = world.storage.purge

        async def count(process_ids: Any) -> Any:
            sizes.append(len(process_ids))
            return await purge(process_ids)

        world.storage.purge = count  # type: ignore[method-assign]
        await asyncio.sleep(3600 * 1.2)
        assert await left(world) == []
    assert sizes == [1_000, 1_000, 500]


@virtual
async def test_it_is_cheap_when_there_is_nothing_to_do(world: World) -> None:
    """S0.11: one look every ten minutes at most where things are kept for long."""
    async with world.host(waits, retention=timedelta(days=30)) as host:
        await host.spawn(waits, "p")
        looks: list[str] = []

        async def count(call: str) -> None:
            if call in ("list", "purge"):
                looks.append(call)

        world.wires[host].before = count
        await asyncio.sleep(7_200)
        assert 8 <= looks.count("list") <= 12
        assert "purge" not in looks


@virtual
async def test_hosts_that_start_together_do_not_look_together(world: World) -> None:
    """S0.11: each pause is spread by chance."""
    at: list[float] = []

    async def note(call: str) -> None:
        if call == "list":
            at.append(world.clock.monotonic_s())

    hosts = [world.host(waits, retention=HOUR, random=Random(seed)) for seed in range(5)]
    for host in hosts:
        world.wires[host].before = note
        await host.start()
    await asyncio.sleep(300)
    for host in hosts:
        await host.stop()
    assert len(set(at)) == len(at) == 5
    assert max(at) - min(at) > 30


@virtual
async def test_an_outage_only_makes_it_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """S0.11: a storage that does not answer is logged and asked again at the next round."""
    async with world.host(empty, retention=HOUR) as host:
        await (await host.spawn(empty, "p")).result()
        failures = [1, 2, 3]

        async def fail(call: str) -> None:
            if call == "list" and failures:
                failures.pop()
                raise StorageUnavailableError("down")

        world.wires[host].before = fail
        with caplog.at_level(logging.WARNING, "durabletask"):
            await asyncio.sleep(2 * 3600)
        assert await left(world) == []
    assert "was not purged: down" in caplog.text
    assert not failures


@pytest.mark.parametrize("wrong", [timedelta(0), timedelta(-1), 5, {"empty": timedelta(0)}])
def test_a_wrong_retention_is_refused(wrong: Any) -> None:
    """S0.11: zero would purge what nobody has read yet."""

    @virtual
    async def refuse(world: World) -> None:
        with pytest.raises(InvalidArgumentError, match=r"retention.*above zero"):
            world.host(empty, retention=wrong)

    refuse()
