"""Requests from outside beside crashes, drains and each other: one legal status in the end."""

import asyncio
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import (
    ProcessCancelledError,
    ProcessError,
    ProcessFailedError,
    ProcessTerminatedError,
)
from tests.engine.world import World, settle, virtual

VERBS = ("cancel", "terminate", "suspend", "resume", "retry", "raise_event", "info", "purge")


async def leaf(proc: Process) -> None:
    await proc.event("never")


async def process(proc: Process) -> int:
    done = 0
    await proc.spawn("child", leaf, process_id="child")
    for turn in range(5):
        await proc.do(f"step{turn}", asyncio.sleep, 0.01)
        await proc.event("n", key=f"n{turn}", timeout=None)
        done += 1
    return done


async def until_ended(world: World, process_id: str) -> Status:
    """Return the status with which a process ended, after so much time as it takes."""
    for _ in range(200):
        await asyncio.sleep(1)
        status = world.row(process_id).status
        if status not in (Status.RUNNING, Status.WAITING, Status.COMPENSATING):
            return status
    return world.row(process_id).status


@pytest.mark.parametrize("seed", range(20))
@virtual
async def test_fifty_mixed_requests_leave_one_legal_status(world: World, seed: int) -> None:
    """S1.09, S2.09-S2.11: from three clients at once, while it runs: nothing hangs, nothing breaks.

    Whatever they did, the process can still be ended, and stands as it says.
    """
    random = Random(seed)
    refusals: list[str] = []

    async def ask(client: ProcessClient) -> None:
        await asyncio.sleep(random.random() * 0.2)
        verb = random.choice(VERBS)
        handle = client.get("p")
        try:
            await getattr(handle, verb)(*(["n"] if verb == "raise_event" else []))
        except ProcessError as error:
            refusals.append(type(error).__name__)

    async with world.host(process, leaf) as host:
        handle = await host.spawn(process, "p")
        clients = [host, ProcessClient(world.storage), ProcessClient(world.storage)]
        await asyncio.gather(*(ask(random.choice(clients)) for _ in range(50)))
        known = {info.id: info async for info in host.list()}
        if "p" in known:
            if known["p"].status is Status.SUSPENDED:
                await handle.resume()
            ends: dict[Status, Any] = {
                Status.CANCELLED: ProcessCancelledError,
                Status.TERMINATED: ProcessTerminatedError,
                Status.FAILED: ProcessFailedError,
            }
            status = await until_ended(world, "p")
            if status in ends:
                with pytest.raises(ends[status]):
                    await handle.result()
            elif status is not Status.COMPLETED:
                await handle.terminate()
                with pytest.raises(ProcessTerminatedError):
                    await handle.result()
            assert not host._session or "p" not in host._session.runs
            info = await handle.info()
            assert info.finished_at is not None
            assert info.host is None
        for client in clients[1:]:
            await client._watch.close(ProcessError("", "over"))


@pytest.mark.parametrize("verb", ["cancel", "terminate", "suspend"])
@virtual
async def test_a_process_of_a_dead_host_can_be_asked(world: World, verb: str) -> None:
    """S1.09, S2.09, S2.10: asked while its host is dead; the next host finds it asked."""
    await world.begin_and_die(leaf)
    async with ProcessClient(world.storage) as client:
        await getattr(client.get("p"), verb)("from afar")
    async with world.host(leaf) as host:
        handle = host.get("p")
        if verb == "cancel":
            with pytest.raises(ProcessCancelledError, match="from afar"):
                await handle.result(timeout=60)
        elif verb == "terminate":
            with pytest.raises(ProcessTerminatedError, match="from afar"):
                await handle.result(timeout=60)
        else:
            await asyncio.sleep(60)
            assert (await handle.info()).host is None
            await handle.resume()
            await handle.raise_event("never")
            assert await handle.result(timeout=60) is None


@pytest.mark.parametrize("verb", ["cancel", "terminate", "suspend"])
@pytest.mark.parametrize("after", [False, True])
@virtual
async def test_the_host_dies_as_it_hears_of_a_request(world: World, verb: str, after: bool) -> None:
    """S1.09, S2.09, S2.10: the request is durable when it returns, whoever hears of it."""
    host = world.host(leaf)
    await host.start()
    handle = await host.spawn(leaf, "p")
    await settle()
    async with ProcessClient(world.storage) as client:
        await getattr(client.get("p"), verb)("now")
        if after:
            await asyncio.sleep(0.05)
        world.kill(host)
    async with world.host(leaf) as host:
        handle = host.get("p")
        if verb == "suspend":
            await asyncio.sleep(60)
            assert (await handle.info()).status is Status.SUSPENDED
            await handle.resume()
            await handle.raise_event("never")
            await handle.result(timeout=60)
        else:
            error: Any = ProcessCancelledError if verb == "cancel" else ProcessTerminatedError
            with pytest.raises(error, match="now"):
                await handle.result(timeout=60)


@virtual
async def test_a_drain_meets_requests(world: World) -> None:
    """S2.09: asked while its host stops, it is the next host that does what was asked."""

    async def slow(proc: Process) -> None:
        await proc.do("slow", asyncio.sleep, 10)
        await proc.event("never")

    async with world.host(slow) as host:
        for name in ("a", "b", "c"):
            await host.spawn(slow, name)
        await asyncio.sleep(1)
        stopping = asyncio.create_task(host.stop())
        await asyncio.sleep(1)
        async with ProcessClient(world.storage) as client:
            await client.get("a").cancel()
            await client.get("b").terminate()
            await client.get("c").suspend()
        await stopping
    async with world.host(slow) as host:
        with pytest.raises(ProcessCancelledError):
            await host.get("a").result(timeout=60)
        with pytest.raises(ProcessTerminatedError):
            await host.get("b").result(timeout=60)
        assert (await host.get("c").info()).status is Status.SUSPENDED
        assert [kind for kind, _, _ in world.keys("c")][:1] == ["do"], "the step was recorded"


@virtual
async def test_a_request_for_a_family(world: World) -> None:
    """S1.09, S2.10: children of children are asked too; those that have ended stay as they are."""

    async def middle(proc: Process) -> None:
        await proc.spawn("leaf", leaf, process_id=f"{proc.id}/leaf")
        await proc.event("never")

    async def top(proc: Process) -> None:
        await proc.call("gone", empty, process_id=f"{proc.id}/gone")
        await proc.spawn("middle", middle, process_id=f"{proc.id}/middle")
        await proc.event("never")

    async def empty(proc: Process) -> None: ...

    async with world.host(top, middle, leaf, empty) as host:
        for name in ("c", "t"):
            await host.spawn(top, name)
        await asyncio.sleep(1)
        await host.get("c").cancel("all of you")
        await host.get("t").terminate("all of you", output=5)
        await asyncio.sleep(1)
        found = {info.id: info async for info in host.list()}
        for below in ("", "/middle", "/middle/leaf"):
            assert found[f"c{below}"].status is Status.CANCELLED
            assert found[f"c{below}"].cancel_reason == "all of you"
            assert found[f"t{below}"].status is Status.TERMINATED
        assert found["c/gone"].status is found["t/gone"].status is Status.COMPLETED
        assert await host.get("t").purge() == 4
        assert await host.purge(prefix="c", finished_until=world.clock.now() + timedelta(1)) == 4
