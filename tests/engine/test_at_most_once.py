"""`do(at_most_once=True)`: the start is recorded first, and nothing ever starts twice."""

import asyncio
import threading
from typing import Any

import pytest

from durabletask import Process, ProcessHost, RetryPolicy, Status
from durabletask.errors import InvalidArgumentError, StepError, StepInterruptedError
from durabletask.testing import VirtualClock
from durabletask.testing.crash import CrashPoint, Fate, InMemory, Program, Search
from tests.engine.world import World, virtual


async def nop() -> None:
    """Do nothing; a step."""


@virtual
async def test_the_start_is_recorded_before_the_function_runs(world: World) -> None:
    """Rule 3 (at_most_once): when the body runs its start is durable; then the outcome is."""
    seen: list[Any] = []

    async def charge(amount: int) -> int:
        seen.append(world.keys("p"))
        return amount

    async def process(proc: Process) -> int:
        return await proc.do("charge", charge, 5, at_most_once=True)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == 5
        kinds = [entry.kind for entry in await handle.history()]
    assert seen == [[("start", "charge", "value")]]
    assert kinds == ["start", "do"]


@virtual
async def test_a_start_without_an_outcome_is_not_run_again(world: World) -> None:
    """F002 (at_most_once): the host dies in the step; later runs meet the same recorded error."""
    ran: list[int] = []
    seen: list[str] = []

    async def charge() -> None:
        ran.append(1)
        await asyncio.sleep(100)

    async def process(proc: Process) -> str:
        try:
            await proc.do("charge", charge, at_most_once=True)
        except StepInterruptedError as error:
            seen.append(str(error))
        await proc.event("go")
        return "asked a human"

    await world.begin_and_die(process)
    second = world.host(process)
    await second.start()
    await asyncio.sleep(10)
    world.kill(second)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "asked a human"
    assert ran == [1]
    assert "'charge' of process 'p' was begun" in seen[0]
    assert seen == [seen[0]] * 2
    assert ("do", "charge", "error") in world.keys("p")


@virtual
async def test_a_sync_step_is_not_run_again(world: World) -> None:
    """F002 (at_most_once): the same for a step on a thread."""
    ran: list[int] = []
    dead = threading.Event()
    loop = asyncio.get_running_loop()

    def die() -> None:
        world.kill(first)
        dead.set()

    def charge() -> None:
        ran.append(1)
        loop.call_soon_threadsafe(die)
        assert dead.wait(10)

    async def process(proc: Process) -> str:
        try:
            await proc.do("charge", charge, at_most_once=True)
        except StepInterruptedError:
            return "interrupted"
        return "done"

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == "interrupted"
    assert ran == [1]


@virtual
async def test_no_default_retries_it(world: World) -> None:
    """at_most_once and `retry=` exclude each other; defaults of process and host do not apply."""
    ran: list[int] = []

    async def fail() -> None:
        ran.append(1)
        raise ConnectionError("lost")

    async def process(proc: Process) -> str:
        with pytest.raises(InvalidArgumentError, match="at_most_once and retry"):
            proc.do("charge", fail, at_most_once=True, retry=RetryPolicy())
        with pytest.raises(StepError, match="lost"):
            await proc.do("charge", fail, at_most_once=True)
        return "fine"

    host = world.host(retry=RetryPolicy(attempts_max=3))
    host.process(retry=RetryPolicy(attempts_max=5))(process)
    async with host:
        assert await (await host.spawn(process, "p")).result() == "fine"
    assert ran == [1]


@virtual
async def test_cancelled_by_user_code(world: World) -> None:
    """Rule 6: such a step is cancelled as any other, while its start is recorded too."""
    seen: list[str] = []
    ran: list[int] = []

    async def slow() -> None:
        ran.append(1)
        await asyncio.sleep(100)

    async def process(proc: Process) -> None:
        for key, after_s in (("body", 5.0), ("start", 0.5)):
            try:
                async with asyncio.timeout(after_s):
                    await proc.do(key, slow, at_most_once=True)
            except TimeoutError:
                seen.append(key)
        await proc.event("go")

    first = world.host(process)

    async def slowly(call: str) -> None:
        await asyncio.sleep(1 if call == "commit" else 0)

    world.wires[first].after = slowly
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(60)
    world.kill(first)
    assert seen == ["body", "start"]
    assert ran == [1]
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["body", "start"] * 2
    assert ran == [1]
    assert [key for kind, key, form in world.keys("p") if form == "cancelled"] == ["body", "start"]


@virtual
async def test_a_timeout_is_an_ordinary_failure(world: World) -> None:
    """`timeout=` ends such a step with its own error, and not as interrupted."""

    async def process(proc: Process) -> str:
        with pytest.raises(StepError) as caught:
            await proc.do("slow", asyncio.sleep, 100, at_most_once=True, timeout=5)
        return type(caught.value).__name__

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "StepTimeoutError"


# --- drains -----------------------------------------------------------------------------------


@virtual
async def test_a_drain_waits_for_it(world: World) -> None:
    """S1.14 (at_most_once): a stop lets the step end, also when its start is still on its way."""
    ran: list[int] = []

    async def slow() -> str:
        ran.append(1)
        await asyncio.sleep(10)
        return "done"

    async def process(proc: Process) -> str:
        return await proc.do("slow", slow, at_most_once=True)

    first = world.host(process)

    async def slowly(call: str) -> None:
        await asyncio.sleep(2 if call == "commit" else 0)

    world.wires[first].after = slowly
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    await first.stop(drain_s=60)
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == "done"
    assert ran == [1]


@virtual
async def test_a_drain_names_what_it_leaves(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A stop that cannot wait longer says which at_most_once steps it leaves without an outcome."""

    async def process(proc: Process) -> str:
        try:
            await proc.do("charge", asyncio.sleep, 100, at_most_once=True)
        except StepInterruptedError:
            return "interrupted"
        return "done"

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    await first.stop(drain_s=5)
    assert "1 of these steps are at_most_once" in caplog.text
    assert "'p' 'charge'" in caplog.text
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == "interrupted"


@virtual
async def test_a_drain_does_not_name_what_has_ended(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Only steps whose outcome is missing are named."""

    async def process(proc: Process) -> None:
        await proc.do("charge", nop, at_most_once=True)
        await proc.do("slow", asyncio.sleep, 100)

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    await first.stop(drain_s=5)
    assert "which run again" in caplog.text
    assert "at_most_once" not in caplog.text


# --- crashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [Fate.DIE_BEFORE, Fate.DIE_AFTER, None])
def test_dead_at_every_call(fate: Fate | None) -> None:
    """F001-F004: dead at each storage call or await, and again: the body never runs twice."""
    ran: list[int] = []

    async def charge() -> str:
        ran.append(1)
        await asyncio.sleep(0)
        return "charged"

    async def process(proc: Process) -> str:
        await proc.do("before", nop)
        try:
            came = await proc.do("charge", charge, at_most_once=True)
        except StepInterruptedError:
            came = "not known"
        return await proc.get("came", came)

    def host(storage: Any, clock: VirtualClock, random: Any) -> ProcessHost:
        return ProcessHost(storage, processes=[process], clock=clock, random=random)

    async def main(host: ProcessHost) -> None:
        await (await host.spawn(process, "p")).result()

    search = Search(Program(host=host, main=main, survivor=InMemory), reset=ran.clear)
    life = search.undisturbed().lives[0]
    points = (
        [CrashPoint(step) for step in range(life.steps)]
        if fate is None
        else [CrashPoint(call.number, fate) for call in life.calls]
    )
    ends = set()
    for point in points:
        first = search.try_points((point,))
        pairs: list[tuple[CrashPoint, ...]] = [(point,)]
        if fate is not None and len(first.lives) > 1:
            pairs += [(point, CrashPoint(call.number, fate)) for call in first.lives[1].calls]
        for each in pairs:
            story = search.try_points(each)
            (snapshot,) = story.snapshots
            assert story.problem is None
            assert snapshot.row.status is Status.COMPLETED
            assert snapshot.row.ending is not None
            ends.add(snapshot.row.ending.payload)
            assert len(ran) <= 1
    assert ends == {b'"charged"', b'"not known"'}
    assert search.report.deaths > 10
