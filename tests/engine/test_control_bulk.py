"""What can be asked of many processes at once: by the filter of `list`, never by mistake."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import InvalidArgumentError, InvalidIdError, ProcessFailedError
from tests.engine.world import World, settle, virtual

VERBS = ["cancel", "terminate", "suspend", "resume", "retry", "purge"]


async def waits(proc: Process) -> None:
    await proc.event("go")


async def other(proc: Process) -> None:
    await proc.event("go")


async def empty(proc: Process) -> None: ...


async def by_status(world: World) -> dict[str, list[str]]:
    """Return the ids by status."""
    found: dict[str, list[str]] = {}
    async with ProcessClient(world.storage) as client:
        async for info in client.list():
            found.setdefault(info.status.value, []).append(info.id)
    return found


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("nothing", [{}, {"prefix": ""}, {"tags": {}}, {"name": None}])
@virtual
async def test_without_a_filter_nothing_is_done(
    world: World, verb: str, nothing: dict[str, Any]
) -> None:
    """A filter that was forgotten, or holds an empty variable, must not mean every process."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p")
        await settle()
        with pytest.raises(InvalidArgumentError, match=rf"{verb}\(all=True\)"):
            await getattr(host, verb)(**nothing)
        assert (await handle.info()).status is Status.WAITING


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("empty", [{"prefix": ""}, {"tags": {}}, {"status": []}], ids=str)
@virtual
async def test_an_empty_part_of_a_filter_is_refused(
    world: World, verb: str, empty: dict[str, Any]
) -> None:
    """Beside a full part too: a variable that was never filled must not mean all of a name."""
    async with ProcessClient(world.storage) as client:
        with pytest.raises(
            InvalidArgumentError, match=f"{next(iter(empty))}=.*nothing was written"
        ):
            await getattr(client, verb)(name="waits", **empty)


@pytest.mark.parametrize("verb", VERBS)
@virtual
async def test_a_wrong_filter_is_refused(world: World, verb: str) -> None:
    """A misspelt filter, all together with one, and a status that cannot be, are named."""
    async with ProcessClient(world.storage) as client:
        ask = getattr(client, verb)
        with pytest.raises(InvalidArgumentError, match="by nmae="):
            await ask(nmae="waits")
        with pytest.raises(InvalidArgumentError, match="not both"):
            await ask(all=True, name="waits")
        with pytest.raises(InvalidArgumentError, match="aware datetime"):
            await ask(created_from=5)
        with pytest.raises(InvalidIdError):
            await ask(name="\n")
    wrong = {"purge": "running", "retry": "completed", "resume": "failed"}.get(verb, "completed")
    async with ProcessClient(world.storage) as client:
        with pytest.raises(InvalidArgumentError, match=f"{verb} is not possible for what is"):
            await getattr(client, verb)(status=wrong)


@virtual
async def test_cancel_by_filter_counts_and_leaves_the_others(world: World) -> None:
    """S1.09, S2.18: exactly what the filter finds is asked, and counted."""
    async with world.host(waits, other, empty) as host:
        for number in range(4):
            await host.spawn(waits, f"w{number}", tags={"team": "a" if number < 2 else "b"})
            await host.spawn(other, f"o{number}", tags={"team": "a"})
        await (await host.spawn(empty, "w-done")).result()
        await settle()
        assert await host.cancel(name="waits", tags={"team": "a"}, reason="closed") == 2
        assert await host.cancel(prefix="o", status="waiting") == 4
        assert await host.cancel(prefix="nobody") == 0
        await asyncio.sleep(1)
    found = await by_status(world)
    assert found == {
        "cancelled": ["o0", "o1", "o2", "o3", "w0", "w1"],
        "waiting": ["w2", "w3"],
        "completed": ["w-done"],
    }
    assert world.row("w0").cancel_reason == b'"closed"'


@virtual
async def test_all_means_all(world: World) -> None:
    """S2.09, S2.10, S2.11: with all=True every process that it is possible for, and no other."""
    async with world.host(waits, empty) as host:
        for number in range(5):
            await host.spawn(waits, f"w{number}")
        await (await host.spawn(empty, "done")).result()
        await settle()
        assert await host.suspend(all=True, reason="maintenance") == 5
        assert (await by_status(world))["suspended"] == [f"w{number}" for number in range(5)]
        assert await host.suspend(all=True) == 5, "asked again, and still so"
        assert await host.resume(all=True) == 5
        assert await host.resume(all=True) == 0
        await settle()
        assert await host.terminate(all=True, output=1) == 5
        await settle()
        assert await host.purge(all=True) == 6
    assert await by_status(world) == {}


@virtual
async def test_more_than_one_batch(world: World) -> None:
    """S2.18: what does not fit into one request goes in several, each process once."""
    async with world.host(waits) as host:
        for number in range(2_100):
            await host.spawn(waits, f"p{number}", start_at=timedelta(days=1))
        wire = world.wires[host]
        wire.calls.clear()
        assert await host.cancel(name="waits") == 2_100
        assert wire.calls.count("request") == 3
        assert await host.cancel(name="waits") == 0, "they had never begun, so they have ended"
        assert await host.purge(status="cancelled", recursive=False) == 2_100


@virtual
async def test_retry_by_filter(world: World) -> None:
    """S2.18: every failed process of a name goes on after the fix."""
    broken = [True]

    async def step() -> str:
        if broken[0]:
            raise ValueError("not yet")
        return "now"

    async def process(proc: Process) -> str:
        return await proc.do("step", step)

    async with world.host(process) as host:
        handles = [await host.spawn(process, f"p{number}") for number in range(3)]
        for handle in handles:
            with pytest.raises(ProcessFailedError):
                await handle.result()
        broken[0] = False
        assert await host.retry(name="process", from_key="no such key") == 0
        assert await host.retry(name="process") == 3
        assert [await handle.result() for handle in handles] == ["now"] * 3
        assert await host.retry(name="process") == 0


@virtual
async def test_bulk_by_parent_and_time(world: World) -> None:
    """S2.18: the filters of parent, creation and end work in bulk as they do in a list."""

    async def parent(proc: Process) -> None:
        for number in range(2):
            await proc.spawn(f"child{number}", waits, process_id=f"c{number}")

    async with world.host(parent, waits) as host:
        handle = await host.spawn(parent, "p")
        await handle.result()
        noon = world.clock.now() + timedelta(hours=1)
        await host.spawn(waits, "w")
        await settle()
        assert await host.terminate(parent="p") == 2
        assert await host.terminate(created_from=noon) == 0
        assert await host.purge(finished_until=noon) == 3
        assert await host.terminate(created_until=noon) == 1
