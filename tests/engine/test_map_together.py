"""`proc.map` together with what else ends or holds a process: cancel, undo, timeout, groups."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, current_step
from durabletask.errors import ProcessCancelledError, ProcessFailedError
from tests.engine.world import World, virtual


async def nop() -> None:
    """Do nothing; a step."""


def forms(world: World) -> dict[int, str]:
    """Return by index how each item is recorded."""
    snapshot = world.storage._processes["p"].snapshot(history=True)
    return {held.index: held.form.value for held in snapshot.checkpoints if held.key == "items"}


@virtual
async def test_cancelled_from_outside(world: World) -> None:
    """Rule 7: items in flight end, the next one meets the request, and every run sees the same."""
    begun: list[int] = []
    seen: list[str] = []

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(5)
        return n

    async def process(proc: Process) -> str:
        try:
            await proc.map("items", item, range(6), concurrency=2)
        except ProcessCancelledError as error:
            seen.append(str(error))
        await proc.do("after", nop)
        await proc.event("go")
        return "tidied"

    first = world.host(process)
    await first.start()
    handle = await first.spawn(process, "p")
    await asyncio.sleep(1)
    await handle.cancel("enough")
    await asyncio.sleep(60)
    world.kill(first)
    assert {0: "value", 1: "value", 2: "error"}.items() <= forms(world).items()
    count = len(begun)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "tidied"
    assert seen == ["enough", "enough"]
    assert len(begun) == count <= 3


@virtual
async def test_cancelled_from_outside_between_two_runs(world: World) -> None:
    """Rule 7: requested while no host runs, it is met by the first item that is left, durably."""
    seen: list[str] = []

    async def item(n: int) -> int:
        await asyncio.sleep(100 if n == 1 else 1)
        return n

    async def process(proc: Process) -> str:
        try:
            await proc.map("items", item, range(6), concurrency=2)
        except ProcessCancelledError as error:
            seen.append(str(error))
        await proc.event("go")
        return "tidied"

    await world.begin_and_die(process, after_s=2.5)
    client = world.host(process)
    async with client:
        await client.get("p").cancel("enough")
        await client.raise_event("p", "go")
        assert await client.get(process, "p").result() == "tidied"
    assert seen == ["enough"]


@virtual
async def test_what_was_done_before_is_undone(world: World) -> None:
    """Rule 8: an item that fails ends the process, and the steps before are undone."""
    undone: list[str] = []

    async def reserve() -> str:
        return "seat"

    async def release(what: str) -> None:
        undone.append(what)

    async def item(n: int) -> int:
        if n == 2:
            raise ValueError("item 2")
        return n

    async def process(proc: Process) -> None:
        await proc.do("reserve", reserve, undo=release)
        await proc.map("items", item, range(4))

    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError, match="item 2"):
            await (await host.spawn(process, "p")).result()
    assert undone == ["seat"]


@virtual
async def test_a_run_that_only_collects_undos_begins_no_item(world: World) -> None:
    """Rule 8: taken over while it is undone, a process comes past the map and runs none of it."""
    begun: list[int] = []
    undone: list[str] = []

    async def reserve() -> str:
        return "seat"

    async def release(what: str) -> None:
        undone.append(what)
        await asyncio.sleep(10 if len(undone) == 1 else 0)

    async def item(n: int) -> None:
        begun.append(n)
        await asyncio.sleep(100)

    async def fail() -> None:
        await asyncio.sleep(5)
        raise ValueError("enough")

    async def process(proc: Process) -> None:
        await proc.do("reserve", reserve, undo=release)
        mapping = asyncio.create_task(proc.map("items", item, range(4), timeout=20))
        await proc.do("fail", fail)
        await mapping

    await world.begin_and_die(process, after_s=28)
    assert undone == ["seat"]
    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError, match="enough"):
            await host.get("p").result()
    assert begun == [0, 1, 2, 3]
    assert undone == ["seat"] * 2


@virtual
async def test_a_durable_timeout_around_it(world: World) -> None:
    """A durable timeout cancels the items in flight, once for all runs."""
    begun: list[int] = []
    seen: list[str] = []

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(4)
        return n

    async def process(proc: Process) -> None:
        try:
            async with proc.timeout("limit", timedelta(seconds=10)):
                await proc.map("items", item, range(20), concurrency=2)
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")

    await world.begin_and_die(process, after_s=60)
    assert forms(world) == dict.fromkeys(range(4), "value") | {4: "cancelled", 5: "cancelled"}
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["timeout"] * 2
    assert begun == list(range(6))


@virtual
async def test_a_durable_timeout_that_ended_while_nothing_ran(world: World) -> None:
    """A durable timeout that was over at a resume lets no further item begin."""
    begun: list[int] = []

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(4)
        return n

    async def process(proc: Process) -> str:
        try:
            async with proc.timeout("limit", timedelta(seconds=30)):
                await proc.map("items", item, range(20), concurrency=2)
        except TimeoutError:
            return "timeout"
        return "done"

    await world.begin_and_die(process, after_s=5)
    await asyncio.sleep(100)
    count = len(begun)
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == "timeout"
    assert len(begun) == count


@virtual
async def test_two_maps_side_by_side_in_a_group(world: World) -> None:
    """A failing map cancels its sibling in a TaskGroup, and a resumed run sees the same group."""
    seen: list[Any] = []

    async def item(n: int) -> int:
        await asyncio.sleep(n)
        if n == 3:
            raise ValueError("three")
        return n

    async def process(proc: Process) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(proc.map("good", item, [1, 2, 100], concurrency=2))
                group.create_task(proc.map("bad", item, [1, 3]))
        except* Exception as errors:
            seen.append([str(error) for error in errors.exceptions])
        await proc.event("go")

    await world.begin_and_die(process, after_s=200)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == [["ValueError: three"]] * 2


@virtual
async def test_items_that_wait_for_a_retry_are_waits(world: World) -> None:
    """S3.06 (map): while all items left wait for their next attempt, the process waits, visibly."""

    async def item(n: int) -> int:
        if current_step().attempt == 1:
            raise ConnectionError
        return n

    async def process(proc: Process) -> list[int]:
        return await proc.map("items", item, range(3), retry=RetryPolicy(delay_s=60))

    await world.begin_and_die(process, after_s=10)
    async with world.host(process) as host:
        handle = host.get(process, "p")
        await asyncio.sleep(1)
        info = await handle.info()
        assert info.status == "waiting"
        assert [(wait.kind, wait.index) for wait in info.waits] == [("retry", n) for n in range(3)]
        assert await handle.result() == [0, 1, 2]


@virtual
async def test_a_map_left_behind_ends_with_the_process(world: World) -> None:
    """What is not awaited when the function returns records nothing more."""
    left: list[asyncio.Task[Any]] = []

    async def process(proc: Process) -> str:
        left.append(asyncio.create_task(proc.map("items", asyncio.sleep, [5, 5], concurrency=1)))
        await asyncio.sleep(1)
        return "over"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "over"
        with suppress(asyncio.CancelledError, Exception):
            await left[0]
    assert forms(world) == {}


@virtual
async def test_results_that_were_quicker_than_their_cancellation(world: World) -> None:
    """Rule 6: all results won, so both runs see them; the cancellation is met at the next call."""
    seen: list[Any] = []

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(0.5):
                seen.append(await proc.map("items", nothing_but, [1, 2]))
                await proc.do("next", nop)
        except TimeoutError:
            seen.append("timeout")
        await proc.do("behind", nop)
        await proc.event("go")

    first = world.host(process)

    async def slowly(call: str) -> None:
        await asyncio.sleep(1 if call == "commit" else 0)

    world.wires[first].after = slowly
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(60)
    assert first._session is not None
    assert not first._session.runs["p"].gated, "nothing is left to be met"
    world.kill(first)
    assert seen == [[1, 2], "timeout"]
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == [[1, 2], "timeout"] * 2
    assert ("do", "next", "cancelled") in world.keys("p")


async def nothing_but(n: int) -> int:
    """Return the item."""
    return n
