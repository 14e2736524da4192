"""Listing processes: by every filter, page by page, in a stable order."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient, RetryPolicy, Status
from durabletask.errors import InvalidArgumentError, InvalidIdError
from tests.engine.world import World, settle, virtual


async def waits(proc: Process) -> None:
    await proc.event("go")


async def empty(proc: Process) -> None: ...


async def parent(proc: Process) -> None:
    await proc.spawn("a", empty, process_id="child/a")
    await proc.spawn("b", waits, process_id="child/b")


async def ids(client: ProcessClient, **filter: Any) -> list[str]:
    """Return the ids that a listing gives."""
    return [info.id async for info in client.list(**filter)]


@virtual
async def test_every_filter_alone_and_together(world: World) -> None:
    """S2.18: status, name, prefix, tags, created and finished ranges, parent; all must match."""
    marks: list[datetime] = []
    async with world.host(waits, empty, parent) as host:
        await host.spawn(waits, "w/1", tags={"team": "a", "kind": "x"})
        await host.spawn(empty, "e/1", tags={"team": "a"})
        await asyncio.sleep(60)
        marks.append(world.clock.now())
        await host.spawn(waits, "w/2", tags={"team": "b"})
        await asyncio.sleep(60)
        await host.spawn(parent, "p")
        await asyncio.sleep(60)
        marks.append(world.clock.now())
        await host.raise_event("w/1", "go")
        await asyncio.sleep(1)

        assert await ids(host) == ["e/1", "w/1", "w/2", "child/a", "child/b", "p"]
        assert await ids(host, status="waiting") == ["w/2", "child/b"]
        done = ["e/1", "w/1", "child/a", "p"]
        assert await ids(host, status=[Status.COMPLETED, "failed"]) == done
        assert await ids(host, name="waits") == ["w/1", "w/2", "child/b"]
        assert await ids(host, prefix="w/") == ["w/1", "w/2"]
        assert await ids(host, tags={"team": "a"}) == ["e/1", "w/1"]
        assert await ids(host, tags={"team": "a", "kind": "x"}) == ["w/1"]
        assert await ids(host, created_from=marks[0]) == ["w/2", "child/a", "child/b", "p"]
        assert await ids(host, created_until=marks[0]) == ["e/1", "w/1"]
        assert await ids(host, finished_from=marks[1]) == ["w/1"]
        assert await ids(host, finished_until=marks[0]) == ["e/1"]
        assert await ids(host, parent="p") == ["child/a", "child/b"]
        assert await ids(host, parent="p", status="completed") == ["child/a"]
        assert await ids(host, name="waits", created_until=marks[0], prefix="w") == ["w/1"]
        assert await ids(host, prefix="nobody") == []
        child = await host.get("child/a").info()
        assert child.parent == "p"


@virtual
async def test_bounds_are_half_open(world: World) -> None:
    """S2.18: ..._from is included and ..._until is not: ranges side by side share nothing."""
    async with world.host(waits) as host:
        for number in range(3):
            await host.spawn(waits, f"p{number}", start_at=timedelta(days=1))
            await asyncio.sleep(10)
        at = (await host.get("p1").info()).created_at
        assert await ids(host, created_from=at) == ["p1", "p2"]
        assert await ids(host, created_until=at) == ["p0"]
        assert await ids(host, created_from=at, created_until=at) == []


@pytest.mark.parametrize("size", [1, 3, 10, 1_000])
@virtual
async def test_pages_give_each_process_once(world: World, size: int) -> None:
    """S2.18: the cursor goes on where the page ended, whatever is spawned or purged meanwhile."""
    async with world.host(waits, empty) as host:
        for number in range(10):
            await host.spawn(waits, f"p{number}", start_at=timedelta(days=1))
        await (await host.spawn(empty, "gone")).result()
        found: list[str] = []
        cursor: str | None = None
        turns = 0
        while True:
            page = await host.list_page(cursor=cursor, limit=size, name="waits")
            assert len(page.processes) <= size
            found += [info.id for info in page.processes]
            turns += 1
            if turns == 1:
                await host.purge(prefix="gone")
                await asyncio.sleep(1)
                await host.spawn(waits, "new", start_at=timedelta(days=1))
            cursor = page.cursor
            if cursor is None:
                break
    assert [each for each in found if each != "new"] == [f"p{number}" for number in range(10)]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("limit", [0, 1, 99, 100, 101, 250, 999])
@virtual
async def test_a_limit_cuts_the_listing(world: World, limit: int) -> None:
    """S2.18: so many at most, over as many pages as it takes."""
    async with ProcessClient(world.storage, processes=[empty], clock=world.clock) as client:
        for number in range(250):
            await client.spawn(empty, f"p{number:03}")
        assert len(await ids(client, limit=limit)) == min(limit, 250)
        assert len(await ids(client)) == 250


@virtual
async def test_wrong_filters_are_refused(world: World) -> None:
    """S2.18: what no process could ever match is named instead of giving an empty list."""
    wrong: list[dict[str, Any]] = [
        {"state": "running"},
        {"status": "sleeping"},
        {"status": 5},
        {"created_from": datetime(2030, 1, 1)},
        {"finished_until": "yesterday"},
        {"name": ""},
        {"tags": {"": "x"}},
    ]
    async with ProcessClient(world.storage) as client:
        for filter in wrong:
            with pytest.raises((InvalidArgumentError, InvalidIdError)):
                await ids(client, **filter)
            with pytest.raises((InvalidArgumentError, InvalidIdError)):
                await client.list_page(**filter)
        for limit in (0, 1_001, True, "5"):
            with pytest.raises(InvalidArgumentError, match="limit must be 1 to 1,000"):
                await client.list_page(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="cursor"):
            await client.list_page(cursor="no cursor")


@virtual
async def test_info_has_every_timestamp_and_what_it_waits_for(world: World) -> None:
    """S1.12, S2.08: created, started, updated, finished, wake, start, deadline; waits; host."""

    async def process(proc: Process) -> None:
        await proc.report({"done": 3})
        await proc.event("go", key="wait for go", timeout=timedelta(hours=1))

    async with world.host(process, label="host in the attic") as host:
        begun = world.clock.now()
        handle = await host.spawn(process, "p", deadline=timedelta(days=1), tags={"team": "a"})
        await asyncio.sleep(10)
        info = await handle.info()
        assert info.created_at == info.started_at == begun
        assert info.finished_at is None
        assert begun <= info.updated_at <= world.clock.now()
        assert info.wake_at is not None
        assert timedelta(hours=1) <= info.wake_at - begun < timedelta(hours=1, seconds=1)
        assert info.deadline_at == begun + timedelta(days=1)
        assert (info.host, info.reason, info.progress) == ("host in the attic", None, {"done": 3})
        (wait,) = info.waits
        assert (wait.kind, wait.key, wait.name, wait.due_at) == (
            "event",
            "wait for go",
            "go",
            info.wake_at,
        )
        await handle.raise_event("go")
        await handle.result()
        info = await handle.info()
        assert info.finished_at is not None
        assert (info.host, info.waits, info.status) == (None, (), Status.COMPLETED)


@virtual
async def test_info_shows_attempts_and_children(world: World) -> None:
    """S1.12: how many attempts have failed, and for which child a process waits."""

    async def flaky() -> None:
        raise ValueError("again")

    async def retries(proc: Process) -> None:
        await proc.do("flaky", flaky, retry=RetryPolicy(attempts_max=5, delay_s=60, factor=1))

    async def calls(proc: Process) -> None:
        await proc.call("child", waits, process_id="c")

    async with world.host(retries, calls, waits) as host:
        first = await host.spawn(retries, "r")
        second = await host.spawn(calls, "p")
        await asyncio.sleep(90)
        (wait,) = (await first.info()).waits
        assert (wait.kind, wait.key, wait.attempts) == ("retry", "flaky", 2)
        (wait,) = (await second.info()).waits
        assert (wait.kind, wait.key, wait.name) == ("call", "child", "c")
        await host.raise_event("c", "go")
        await second.result()
        kinds = [(each.kind, each.key) for each in await second.history()]
        assert ("call", "child") in kinds


@virtual
async def test_a_process_that_no_host_can_run_says_why(world: World) -> None:
    """S0.10: a function that nobody has is visible with the reason, in a listing too."""
    async with ProcessClient(world.storage, processes=[empty], clock=world.clock) as client:
        await client.spawn(empty, "p")
        assert (await client.get("p").info()).reason is None
    async with world.host(waits) as host:
        await settle()
        (info,) = [each async for each in host.list()]
        assert info.reason == "no process function named 'empty' is registered on this host"
        assert info.status is Status.RUNNING
        assert info.host is None
