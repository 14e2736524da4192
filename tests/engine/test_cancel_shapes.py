"""Cancelled from outside, in the shapes that processes come in."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient, RetryPolicy, Status
from durabletask._model import Kind
from durabletask._notes import WaitNote, kind_of
from durabletask.errors import ProcessCancelledError, ProcessFailedError, StepError
from durabletask.storage import Unit
from tests.engine.world import World, settle, virtual


def units_of(world: World, process_id: str = "p") -> list[Unit]:
    return [
        unit for wire in world.wires.values() for unit in wire.units
        if unit.process_id == process_id
    ]  # fmt: skip


def met_by(world: World, process_id: str = "p") -> list[list[tuple[str, str]]]:
    """Return what each unit recorded with which the process met a request to cancel."""
    return [
        [(each.kind.value, each.key) for each in unit.checkpoints]
        for unit in units_of(world, process_id)
        if unit.meets_cancel
    ]


async def fails() -> None:
    raise ValueError("fails")


@virtual
async def test_all_open_waits_are_met_in_one_unit(world: World) -> None:
    """Rule 7: an event, a delay, a race and a child side by side: one record for all, once."""

    async def child(proc: Process) -> None:
        await proc.event("never")

    async def process(proc: Process) -> list[str]:
        outcomes = await asyncio.gather(
            proc.event("a"),
            proc.delay("b", timedelta(days=1)),
            proc.race("c", proc.event("c1"), proc.delay("c2", timedelta(days=1))),
            proc.call("d", child),
            proc.event("e", timeout=timedelta(days=1)),
            return_exceptions=True,
        )
        await proc.event("after")
        return [f"{type(each).__name__}: {each}" for each in outcomes]

    async with world.host(process, child) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel("no more")
        await asyncio.sleep(1)
        await handle.raise_event("after")
        assert await handle.result() == ["ProcessCancelledError: no more"] * 5
    (met,) = met_by(world)
    assert sorted(met) == [
        ("call", "d"), ("delay", "b"), ("event", "a"), ("event", "e"), ("race", "c"),
    ]  # fmt: skip
    assert world.row("p/1.0/d").status is Status.CANCELLED
    assert world.row("p").cancel_met


@virtual
async def test_waits_of_a_dead_host_are_met_in_one_unit(world: World) -> None:
    """Rule 7: asked while no host runs: the waits that were open then are met together."""

    async def process(proc: Process) -> list[str]:
        await proc.do("before", asyncio.sleep, 0)
        outcomes = await asyncio.gather(
            proc.event("a"), proc.delay("b", timedelta(days=1)), return_exceptions=True
        )
        await proc.event("after")
        return [type(each).__name__ for each in outcomes]

    await world.begin_and_die(process)
    client = world.host(process)
    async with client:
        handle = client.get(process, "p")
        # Asked before this host has had a turn to claim it.
        await handle.cancel()
        await asyncio.sleep(1)
        await handle.raise_event("after")
        assert await handle.result() == ["ProcessCancelledError"] * 2
    (met,) = met_by(world)
    assert sorted(met) == [("delay", "b"), ("event", "a")]


@virtual
async def test_a_step_in_flight_keeps_its_outcome(world: World) -> None:
    """Rule 7: what has an effect is recorded with its result; the next new call is cancelled."""
    seen: list[Any] = []

    async def long() -> str:
        await asyncio.sleep(10)
        return "done"

    async def process(proc: Process) -> str:
        seen.append(await proc.do("long", long))
        try:
            await proc.do("next", long)
        except ProcessCancelledError as error:
            seen.append(str(error))
            return "undone"
        return "not cancelled"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel("because")
        assert await handle.result() == "undone"
    assert seen == ["done", "because"]
    assert met_by(world) == [[("do", "next")]]


@virtual
async def test_a_process_that_only_sleeps_ends_as_it_is(world: World) -> None:
    """Rule 7: cooperative: who makes no further durable call completes, visibly asked."""

    async def process(proc: Process) -> str:
        await asyncio.sleep(10)
        return "slept"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel()
        assert await handle.result() == "slept"
    row = world.row("p")
    assert row.cancel_reason is not None
    assert not row.cancel_met


@virtual
async def test_a_pause_between_attempts_is_cut_short(world: World) -> None:
    """Rule 7, S3.07: a step that would be tried for ever is not, wherever the request finds it."""

    async def process(proc: Process) -> None:
        policy = RetryPolicy(attempts_max=None, delay_s=1000, delay_max_s=1000)
        await proc.do("s", fails, retry=policy)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(10)
        await handle.cancel()
        with pytest.raises(ProcessCancelledError):
            await handle.result(timeout=1)
    assert met_by(world) == [[("do", "s")]]


@virtual
async def test_asked_in_an_attempt_it_is_met_by_the_pause_after(world: World) -> None:
    """Rule 7: an attempt in flight is let finish; when it fails there is no further one."""
    attempts: list[int] = []

    async def slow_failure() -> None:
        attempts.append(1)
        await asyncio.sleep(10)
        raise ValueError

    async def process(proc: Process) -> None:
        policy = RetryPolicy(attempts_max=None, delay_s=1)
        await proc.do("s", slow_failure, retry=policy)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5)
        await handle.cancel()
        with pytest.raises(ProcessCancelledError):
            await handle.result(timeout=10)
    assert len(attempts) == 1


@virtual
async def test_twice_is_once(world: World) -> None:
    """Rule 7: a second request changes nothing, whatever its reason."""

    async def process(proc: Process) -> list[str]:
        seen = []
        for number in range(2):
            try:
                await proc.event(f"e{number}", timeout=100)
            except Exception as error:
                seen.append(f"{type(error).__name__}: {error}"[:24])
        return seen

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel("first")
        await handle.cancel("second")
        await asyncio.sleep(1)
        await handle.cancel("third")
        await handle.raise_event("unknown")  # news that still tells of the request
        assert await handle.result() == ["ProcessCancelledError: f", "EventTimeoutError: no ev"]


@virtual
async def test_news_that_still_tell_of_it(world: World) -> None:
    """Rule 7: while the record that it was met is on its way, the storage tells of it again."""

    async def process(proc: Process) -> str:
        with suppress(ProcessCancelledError):
            await proc.event("never")
        return await proc.event("go", str)

    host = world.host(process)
    async with host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)

        async def slow(call: str) -> None:
            if call == "commit":
                await asyncio.sleep(5)

        world.wires[host].before = slow
        await handle.cancel()
        await asyncio.sleep(1)
        assert not world.row("p").cancel_met
        await handle.raise_event("other")
        await asyncio.sleep(20)
        await handle.raise_event("go", "once")
        assert await handle.result() == "once"
    assert len(met_by(world)) == 1


@virtual
async def test_a_wait_that_is_not_reached_again_yet(world: World) -> None:
    """Rule 7: a resumed run is asked before it is back at one of its waits: that is met too."""

    async def later(proc: Process) -> None:
        await asyncio.sleep(5)
        await proc.event("b")

    async def process(proc: Process) -> list[str]:
        both = (proc.event("a"), later(proc))
        outcomes = await asyncio.gather(*both, return_exceptions=True)
        return [type(each).__name__ for each in outcomes]

    await world.begin_and_die(process, after_s=10)
    async with world.host(process) as host:
        handle = host.get(process, "p")
        await asyncio.sleep(1)
        await handle.cancel()
        assert await handle.result() == ["ProcessCancelledError"] * 2
    (met,) = met_by(world)
    assert sorted(met) == [("event", "a"), ("event", "b")]


@virtual
async def test_many_steps_beside_many_waits_that_are_not_reached_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 5: each step that begins meanwhile looks for one such wait and not at all of them."""
    looks = 0

    def counted(note: WaitNote) -> Kind:
        nonlocal looks
        looks += 1
        return kind_of(note)

    async def process(proc: Process) -> None:
        steps = (proc.do(f"s{n}", asyncio.sleep, 100) for n in range(50))
        waits = (proc.event(f"e{n}") for n in range(50))
        await asyncio.gather(*steps, *waits)

    await world.begin_and_die(process)
    await ProcessClient(world.storage).get("p").cancel()
    monkeypatch.setattr("durabletask._notes.kind_of", counted)
    async with world.host(process) as host:
        with pytest.raises(ProcessCancelledError):
            await host.get("p").result()
    assert 50 <= looks <= 50 + 50


@virtual
async def test_a_child_is_cancelled_before_its_parent_waits(world: World) -> None:
    """Rule 7: the end of a child that was cancelled with its parent does not come first."""

    async def child(proc: Process) -> None:
        raise AssertionError("never run")

    async def process(proc: Process) -> None:
        await proc.do("before", asyncio.sleep, 1)
        await proc.call("c", child)

    host = world.host(process, child)

    async def late_answers(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(5)

    async def late_claims(call: str) -> None:
        if call == "claim":
            await asyncio.sleep(8 - world.clock.monotonic_s())

    async with host:
        handle = await host.spawn(process, "p")
        await settle()
        world.wires[host].after, world.wires[host].before = late_answers, late_claims
        await asyncio.sleep(7)
        assert world.row("p/1.0/c").epoch == 0
        await handle.cancel("both")
        assert world.row("p/1.0/c").status is Status.CANCELLED
        await asyncio.sleep(2)
        world.wires[host].up()
        with pytest.raises(ProcessCancelledError, match="both"):
            await handle.result()


@virtual
async def test_never_started_it_ends_at_once(world: World) -> None:
    """Rule 7: no host has ever run it: cancelled without any of its code."""
    ran: list[int] = []

    async def process(proc: Process) -> None:
        ran.append(1)

    client = world.host(process)
    async with world.host(process) as host:
        handle = await host.spawn(process, "p", start_at=timedelta(hours=1))
        await handle.cancel("no need")
        with pytest.raises(ProcessCancelledError, match="no need"):
            await handle.result(timeout=1)
    del client
    assert not ran


@virtual
async def test_asked_while_a_host_drains(world: World) -> None:
    """Rules 5, 7: a drain records its steps; the next host meets the request."""

    async def process(proc: Process) -> str:
        await proc.do("long", asyncio.sleep, 5)
        try:
            await proc.do("next", asyncio.sleep, 1)
        except ProcessCancelledError:
            return "cancelled"
        return "not"

    host = world.host(process)
    await host.start()
    handle = await host.spawn(process, "p")
    await asyncio.sleep(1)
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(1)
    other = world.host(process)
    await other.start()
    await other.get("p").cancel()
    await stopping
    assert await other.get(process, "p").result() == "cancelled"
    await other.stop()
    assert handle.id == "p"
    assert met_by(world) == [[("do", "next")]]


@pytest.mark.parametrize("first", ["request", "task"])
def test_user_code_cancels_in_the_same_moment(first: str) -> None:
    """Rules 6, 7: one of both is recorded for the wait; the other one is not lost."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []
        inner: list[asyncio.Task[Any]] = []

        async def waits(proc: Process) -> None:
            for number in range(3):
                try:
                    await proc.event(f"e{number}")
                except ProcessCancelledError:
                    seen.append("request")
                except asyncio.CancelledError:
                    seen.append("task")
                    raise

        async def process(proc: Process) -> str:
            task = asyncio.create_task(waits(proc))
            inner.append(task)
            await asyncio.wait([task])
            with suppress(ProcessCancelledError):
                await proc.do("last", asyncio.sleep, 0)
            return "ended"

        async with world.host(process) as host:
            handle = await host.spawn(process, "p")
            await asyncio.sleep(1)
            assert host._session is not None
            run = host._session.runs["p"]
            if first == "task":
                inner[0].cancel()
            await world.storage.request([_control(host)])
            run.cancel(b'"both"')
            if first == "request":
                inner[0].cancel()
            assert await handle.result() == "ended"
            assert "task" in seen
            assert world.row("p").cancel_met
        assert len(met_by(world)) == 1

    body()


def _control(host: Any) -> Any:
    from durabletask._control import to_cancel

    return to_cancel("p", "r", "both", host.failures)


@virtual
async def test_a_timeout_fires_while_a_child_is_created(world: World) -> None:
    """Rule 6: user code gives up while the spawn is on its way: the wait ends, the child lives."""

    async def child(proc: Process) -> str:
        await proc.event("go")
        return "child"

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(3):
                await proc.call("c", child)
        except TimeoutError:
            await proc.event("end")
            return "gave up"
        return "got it"

    host = world.host(process, child)

    async def slow(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(5)

    await host.start()
    world.wires[host].after = slow
    await host.spawn(process, "p")
    await asyncio.sleep(30)
    assert ("call", "c", "cancelled") in world.keys("p")
    world.kill(host)
    async with world.host(process, child) as second:
        handle = second.get(process, "p")
        await handle.raise_event("end")
        assert await handle.result() == "gave up"
        assert world.row("p/1.0/c").status is Status.WAITING


@virtual
async def test_a_timeout_fires_while_a_failed_attempt_is_recorded(world: World) -> None:
    """Rule 6, S3.07: a failed attempt is no outcome: the step is cancelled, before its pause."""
    policy = RetryPolicy(attempts_max=None, delay_s=100_000, delay_max_s=100_000)

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(3):
                await proc.do("s", fails, retry=policy)
        except TimeoutError:
            await proc.event("go")
            return "timed out"
        return "not"

    host = world.host(process)

    async def slow(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(5)

    await host.start()
    world.wires[host].after = slow
    await host.spawn(process, "p")
    await asyncio.sleep(100)
    assert ("do", "s", "cancelled") in world.keys("p")
    world.kill(host)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result(timeout=100) == "timed out"


@virtual
async def test_asked_while_a_child_is_created(world: World) -> None:
    """Rule 7: the call that spawns is met by the wait that follows; the child is born with it."""

    async def child(proc: Process) -> str:
        await proc.event("go")
        return "child"

    async def process(proc: Process) -> str:
        return await proc.call("c", child)

    host = world.host(process, child)

    async def slow(call: str) -> None:
        if call == "commit":
            await asyncio.sleep(5)

    await host.start()
    world.wires[host].before = world.wires[host].after = slow
    handle = await host.spawn(process, "p")
    await asyncio.sleep(2)
    await handle.cancel()
    with pytest.raises(ProcessCancelledError):
        await handle.result()
    await asyncio.sleep(60)
    assert world.row("p/1.0/c").status is Status.CANCELLED
    await host.stop()


@virtual
async def test_an_error_around_it_fails_the_process(world: World) -> None:
    """Rule 9: an error of the rollback is what ends it, as failed, with the request noted."""

    async def process(proc: Process) -> None:
        try:
            await proc.event("never")
        except ProcessCancelledError:
            await proc.do("rollback", fails)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel()
        with pytest.raises(ProcessFailedError) as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, StepError)
    assert world.row("p").status is Status.FAILED


@virtual
async def test_a_parked_or_released_process_is_woken(world: World) -> None:
    """Rule 7: whoever does not run it now, it is claimed to meet the request."""

    async def process(proc: Process) -> None:
        await proc.event("never")

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    await first.stop()
    other = world.host()
    await other.start()  # knows no function: it can ask, and cannot run
    await other.get("p").cancel()
    await other.stop()
    assert world.row("p").status is not Status.CANCELLED
    async with world.host(process) as host:
        with pytest.raises(ProcessCancelledError):
            await host.get("p").result()
