"""A process that somebody else's transaction holds, a storage that went back in time or is shut."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient
from durabletask.errors import (
    ProcessBusyError,
    StorageAccessError,
    StorageError,
    StorageRewoundError,
    StorageUnavailableError,
    StorageUnknownError,
)
from tests.engine.world import Hook, World, nothing, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


async def simple(proc: Process) -> str:
    await proc.do("one", nop)
    return "done"


def raising(call: str, error: Exception, times: float = 1) -> Hook:
    """Return a hook that raises at the first calls of a name."""
    left = [times]

    async def hook(name: str) -> None:
        if name == call and left[0] > 0:
            left[0] -= 1
            raise error

    return hook


@virtual
async def test_a_busy_process_of_a_host_waits_and_the_others_go_on(world: World) -> None:
    """G13: steps of a held process take long and are recorded; a neighbour ends meanwhile."""

    async def two(proc: Process) -> list[int]:
        return [await proc.do("one", lambda: 1), await proc.do("two", lambda: 2)]

    async with world.host(two) as host:
        with world.storage.hold("p"), pytest.raises(ProcessBusyError):
            await host.spawn(two, "p")
        handle = await host.spawn(two, "p")
        with world.storage.hold("p"):
            other = await host.spawn(two, "q")
            assert await other.result(timeout=1.0) == [1, 2]
            await asyncio.sleep(60)
            assert world.keys("p") == []
        assert await handle.result(timeout=2.0) == [1, 2]


@pytest.mark.parametrize("by_client", [False, True])
def test_a_caller_outlasts_a_short_transaction_of_others(by_client: bool) -> None:
    """G9 G10: spawn and raise_event wait about four seconds; then the refusal names the id."""

    @virtual
    async def body(world: World) -> None:
        async def waits(proc: Process) -> str:
            return await proc.event("go", str)

        async with world.host(waits) as host:
            client: ProcessClient = host
            if by_client:
                client = ProcessClient(world.storage, processes=[waits])

            async def shortly(call: Callable[[], Any]) -> None:
                with world.storage.hold("p"):
                    asking = asyncio.create_task(call())
                    await asyncio.sleep(2)
                    assert not asking.done()
                await asking

            async def too_long(call: Callable[[], Any]) -> None:
                with world.storage.hold("p"):
                    begun_s = world.clock.monotonic_s()
                    with pytest.raises(StorageUnavailableError, match="'p'"):
                        await call()
                    assert 3 < world.clock.monotonic_s() - begun_s < 6

            await too_long(lambda: client.spawn(waits, "p"))
            await shortly(lambda: client.spawn(waits, "p"))
            await too_long(lambda: client.raise_event("p", "go", "late"))
            await shortly(lambda: client.raise_event("p", "go", "now"))
            assert await client.get(waits, "p").result() == "now"

    body()


@virtual
async def test_a_spawn_beside_a_busy_one_does_not_wait_for_it(world: World) -> None:
    """G13: creations of one batch: the held id waits by itself."""
    async with world.host(simple) as host:
        with world.storage.hold("p"):
            busy = asyncio.create_task(host.spawn(simple, "p"))
            others = [asyncio.create_task(host.spawn(simple, f"q{n}")) for n in range(5)]
            begun_s = world.clock.monotonic_s()
            for each in others:
                assert await (await each).result() == "done"
            assert world.clock.monotonic_s() - begun_s < 0.5
            assert not busy.done()
        assert await (await busy).result() == "done"


@pytest.mark.parametrize("patient", [True, False])
def test_a_creation_whose_answer_was_lost_is_run_although_it_is_busy(patient: bool) -> None:
    """G1 F003: it may be ours, so it is asked for until known, whether or not anybody waits."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(simple) as host:
            wire = world.wires[host]
            held = world.storage.hold("p")

            async def lose(call: str) -> None:
                if call == "create":
                    wire.after = nothing
                    held.__enter__()
                    raise StorageUnknownError("the answer was lost")

            wire.after = lose
            spawning = asyncio.create_task(host.spawn(simple, "p"))
            await asyncio.sleep(10)
            assert not spawning.done()
            assert world.row("p").owner is not None
            if not patient:
                spawning.cancel()
                await settle()
            held.__exit__(None, None, None)
            assert await host.get(simple, "p").result(timeout=5.0) == "done"

    body()


@pytest.mark.parametrize("call", ["commit", "claim", "renew", "create"])
def test_a_storage_that_went_back_in_time_ends_the_session(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """G15: what is in memory is dropped, all goes on from what is stored, under a new identity."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> str:
            try:
                await proc.do("one", nop)
                await proc.delay("pause", timedelta(seconds=30))
                await proc.do("two", nop)
                return "done"
            except Exception as error:
                seen.append(repr(error))
                raise

        world.storage._hosts._ttl_s = 15.0
        async with world.host(process) as host:
            handle = await host.spawn(process, "p")
            await asyncio.sleep(1)
            assert host._session is not None
            before = host._session.lease.host_id
            world.wires[host].before = raising(call, StorageRewoundError("at LSN 7"))
            await (await host.spawn(process, "q")).result()
            assert await handle.result() == "done"
            # Not after the old lease's time: it is given back.
            assert world.clock.monotonic_s() < 40
            assert host._session.lease.host_id != before
        assert seen == []

    body()
    told = [each for each in caplog.records if "back in time" in each.getMessage()]
    assert [each.levelname for each in told] == ["ERROR"]


@virtual
async def test_missing_rights_are_told_at_start(world: World) -> None:
    """Bad input: a wrong password is the caller's error when the host starts."""
    host = world.host(simple)
    world.wires[host].before = raising("open_lease", StorageAccessError("wrong password"))
    with pytest.raises(StorageAccessError, match="wrong password"):
        await host.start()


@pytest.mark.parametrize("call", ["commit", "claim", "renew", "open_lease", "read"])
def test_rights_that_were_taken_away_are_waited_for(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F009: ten seconds without rights: told as errors, no user code sees it, all completes."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> str:
            await proc.do("one", nop)
            await proc.delay("pause", timedelta(seconds=1))
            await proc.do("two", nop)
            return "done"

        world.storage._hosts._ttl_s = 15.0
        elsewhere = world.host(process)
        async with world.host() as host, elsewhere:
            handle = await elsewhere.spawn(process, "p")
            watching = asyncio.create_task(host.get(process, "p").result())
            await settle()
            for each in (host, elsewhere):
                world.wires[each].before = raising(call, StorageAccessError("no right"), times=8)
            if call == "open_lease":
                world.storage.crash()
            assert await handle.result() == "done"
            assert await watching == "done"
            await asyncio.sleep(30)

    body()
    told = [each for each in caplog.records if "no right" in each.getMessage()]
    assert len(told) >= 8
    assert {each.levelname for each in told} == {"ERROR"}


@virtual
async def test_a_client_that_never_had_the_right_to_look_is_told(world: World) -> None:
    """Bad input: waiting for a result with a wrong password is an error, not a long wait."""
    host = world.host(simple)
    world.wires[host].before = raising("read", StorageAccessError("wrong password"))
    async with host:
        await asyncio.sleep(1)
        with pytest.raises(StorageError, match="wrong password"):
            await host.get(simple, "none").result()
