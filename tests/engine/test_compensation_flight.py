"""Compensation and what runs beside the failure: steps in flight, waits, cancelled steps."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, Status, current_step
from durabletask.errors import ProcessFailedError, StepError
from tests.engine.test_compensation import Books, run_to_end, undos
from tests.engine.world import World, virtual


@pytest.mark.parametrize("shape", ["gather", "task group", "left behind"])
def test_steps_in_flight_are_awaited_and_undone(shape: str) -> None:
    """Rule 8: a sibling fails while a step with undo is in its body: it ends, and is undone."""

    @virtual
    async def body(world: World) -> None:
        books = Books()

        async def process(proc: Process) -> None:
            slow = proc.do("slow", books.book, "slow", 5.0, undo=books.cancel)
            quick = proc.do("quick", books.book, "quick", undo=books.cancel)
            if shape == "gather":
                await asyncio.gather(slow, quick, proc.do("pay", books.fail))
            elif shape == "task group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(slow)
                    group.create_task(quick)
                    group.create_task(proc.do("pay", books.fail))
            else:
                task = asyncio.create_task(slow)
                await quick
                await asyncio.sleep(0)
                assert not task.done()
                raise ValueError("no")

        async with world.host(process) as host:
            error = await run_to_end(host, process)
            assert isinstance(error, ProcessFailedError)
            assert books.undone == ["receipt slow", "receipt quick"]
            assert ("do", "slow", "value") in world.keys("p")

    body()


@virtual
async def test_a_step_in_flight_is_reason_enough(world: World) -> None:
    """Rule 8: nothing is registered yet, but what is in flight will have to be undone."""
    books = Books()

    async def process(proc: Process) -> None:
        slow = proc.do("slow", books.book, "slow", 5.0, undo=books.cancel)
        await asyncio.gather(slow, proc.do("pay", books.fail))

    async with world.host(process) as host:
        await run_to_end(host, process)
        assert books.undone == ["receipt slow"]


@pytest.mark.parametrize("delay_s", [0.0, 100.0])
def test_a_step_in_flight_that_fails_leaves_nothing_to_undo(delay_s: float) -> None:
    """Rule 8: it is not tried again; the process has simply failed, and nothing was decided."""

    @virtual
    async def body(world: World) -> None:
        books = Books()

        async def fails_late() -> str:
            await asyncio.sleep(5)
            raise ConnectionError("no answer")

        async def process(proc: Process) -> None:
            policy = RetryPolicy(attempts_max=None, delay_s=delay_s, delay_max_s=100)
            slow = proc.do("slow", fails_late, undo=books.cancel, retry=policy)
            await asyncio.gather(slow, proc.do("pay", books.fail))

        async with world.host(process) as host:
            error = await run_to_end(host, process)
            assert str(error.__cause__) == "ValueError: no"
            assert world.clock.monotonic_s() < 10
            assert undos(world) == []

    body()


@virtual
async def test_waits_beside_the_failure_are_interrupted(world: World) -> None:
    """Rule 8: other tasks that wait are interrupted: they record nothing and can begin nothing."""
    books = Books()
    seen: list[str] = []

    async def waits(proc: Process) -> None:
        try:
            await proc.event("never")
        except asyncio.CancelledError as error:
            seen.append(type(error).__name__)
            await proc.do("in except", books.book, "in except")
        finally:
            seen.append("left")

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        await asyncio.gather(waits(proc), proc.do("pay", books.fail))

    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(5)
        info = await host.get("p").info()
        assert (info.status, info.waits) == (Status.COMPENSATING, ())
        assert info.compensation is not None
        assert info.compensation.open == ("hotel",)
        assert seen == ["ProcessInterrupted", "left"]
        assert books.done == ["hotel"]
        assert [key for key in world.keys("p") if key[1] in ("never", "in except")] == [
            ("wait", "never", "value")
        ]


@virtual
async def test_a_cancelled_step_with_undo_is_let_finish(world: World) -> None:
    """Rule 6: asyncio.timeout cuts no step with undo; the timeout is met at the next call."""
    books = Books()
    seen: list[str] = []

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(5):
                await proc.do("slow", books.book, "slow", 20.0, undo=books.cancel)
                seen.append("slow is over")
                await proc.do("next", books.book, "next")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")
        raise ValueError("no")

    await world.begin_and_die(process, after_s=30)
    assert books.done == ["slow"]
    assert world.keys("p")[:2] == [("do", "slow", "value"), ("do", "next", "cancelled")]
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        with pytest.raises(ProcessFailedError):
            await host.get("p").result()
    assert seen == ["slow is over", "timeout"] * 2
    assert books.undone == ["receipt slow"]


@virtual
async def test_a_cancelled_step_with_undo_that_fails_is_not_tried_again(world: World) -> None:
    """Rule 6: its failure is its outcome, since whoever cancelled it waits for no more attempts."""
    books = Books()
    attempts: list[int] = []

    async def fails_late() -> str:
        attempts.append(current_step().attempt)
        await asyncio.sleep(20)
        raise ConnectionError("no answer")

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.do("slow", fails_late, undo=books.cancel, retry=RetryPolicy())
        except StepError as error:
            return str(error)
        return "value"

    async with world.host(process) as host:
        assert await run_to_end(host, process) == "ConnectionError: no answer"
        assert attempts == [1]


@virtual
async def test_a_cancelled_step_with_undo_ends_within_its_timeout(world: World) -> None:
    """Rule 6: let finish, but not longer than the step's own timeout allows."""
    books = Books()

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.do("slow", books.book, "slow", 1000.0, undo=books.cancel, timeout=9)
        except StepError as error:
            return type(error).__name__
        return "value"

    async with world.host(process) as host:
        assert await run_to_end(host, process) == "StepTimeoutError"
        assert 9 <= world.clock.monotonic_s() < 15


@virtual
async def test_a_cancelled_error_of_nobody_is_a_failure(world: World) -> None:
    """Rule 3: a library that raises CancelledError in a step with undo has failed it."""
    books = Books()

    async def strange() -> str:
        raise asyncio.CancelledError("by the library")

    async def process(proc: Process) -> str:
        try:
            return await proc.do("strange", strange, undo=books.cancel)
        except StepError as error:
            return str(error)

    async with world.host(process) as host:
        assert await run_to_end(host, process) == "CancelledError: by the library"


@virtual
async def test_a_task_group_that_cancels_is_met_again(world: World) -> None:
    """Rule 6: the overtaken cancellation in a task of the function is met by a resumed run too."""
    books = Books()
    seen: list[str] = []

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        try:
            async with asyncio.timeout(5):
                await asyncio.gather(
                    proc.do("a", books.book, "a", 20.0, undo=books.cancel),
                    proc.do("b", books.book, "b", 1.0, undo=books.cancel),
                )
            seen.append("values")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")
        raise ValueError("no")

    await world.begin_and_die(process, after_s=30)
    assert ("overtaken", "a", "value") in world.keys("p")
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        with pytest.raises(ProcessFailedError):
            await host.get("p").result()
    assert seen == ["timeout", "timeout"]
    assert books.undone == ["receipt a", "receipt b", "receipt hotel"]


@virtual
async def test_children_are_tasks_as_others(world: World) -> None:
    """Rule 8: steps of nested tasks register with the process, in order of completion."""
    books = Books()

    async def leg(proc: Process, name: str, seconds: float) -> None:
        await proc.do(f"{name} 1", books.book, f"{name} 1", seconds, undo=books.cancel)
        await proc.do(f"{name} 2", books.book, f"{name} 2", seconds, undo=books.cancel)

    async def process(proc: Process) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(leg(proc, "slow", 3.0))
            group.create_task(leg(proc, "quick", 2.0))
        await proc.event("go")
        raise ValueError("no")

    await world.begin_and_die(process, after_s=30)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        with pytest.raises(ProcessFailedError):
            await host.get("p").result()
    assert books.undone == [
        f"receipt {name}" for name in ("slow 2", "quick 2", "slow 1", "quick 1")
    ]


@virtual
async def test_an_unfinished_delay_is_not_met(world: World) -> None:
    """Rule 8: a failing sibling ends a delay without a record, and compensation begins at once."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        await asyncio.gather(proc.delay("long", timedelta(days=30)), proc.do("pay", books.fail))

    async with world.host(process) as host:
        await run_to_end(host, process)
        assert world.clock.monotonic_s() < 5
        assert [key for key in world.keys("p") if key[1] == "long"] == [("wait", "long", "value")]
        assert books.undone == ["receipt hotel"]


@virtual
async def test_a_task_left_behind_cannot_cut_off_undos(world: World) -> None:
    """Rule 8: what still cancels the function's task, which is over, cuts no undo off."""
    books = Books()
    tasks: list[asyncio.Task[None]] = []

    async def meddle(main: "asyncio.Task[Any]") -> None:
        for _ in range(30):
            await asyncio.sleep(1)
            main.cancel()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        await proc.do("flight", books.book, "flight", undo=books.slowly_cancel)
        main = asyncio.current_task()
        assert main is not None
        tasks.append(asyncio.create_task(meddle(main)))
        raise ValueError("no")

    async with world.host(process) as host:
        await run_to_end(host, process)
        assert books.undone == ["receipt flight", "receipt hotel"]
        assert len(tasks) == 1


@virtual
async def test_a_cancellation_left_on_the_task_hits_nothing(world: World) -> None:
    """Rule 8: the function cancels its own task and raises: undone at once, in the same run."""
    books = Books()
    runs: list[asyncio.Task[str]] = []

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        runs.append(asyncio.create_task(proc.do("slow", books.book, "slow", 5.0)))
        await asyncio.sleep(1)
        main = asyncio.current_task()
        assert main is not None
        main.cancel()
        raise ValueError("no")

    async with world.host(process) as host:
        error = await run_to_end(host, process)
        assert str(error.__cause__) == "ValueError: no"
        assert (len(runs), books.done, books.undone) == (1, ["hotel", "slow"], ["receipt hotel"])


@virtual
async def test_a_failure_that_overtook_is_met_again(world: World) -> None:
    """Rule 6: a step that was let finish and failed then: a resumed run meets the timeout too."""
    books = Books()
    seen: list[str] = []

    async def fails_late() -> str:
        await asyncio.sleep(20)
        raise ConnectionError("no answer")

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(5):
                await asyncio.gather(
                    proc.do("a", fails_late, undo=books.cancel),
                    proc.do("b", books.book, "b", 1.0, undo=books.cancel),
                    return_exceptions=True,
                )
            seen.append("values")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")

    await world.begin_and_die(process, after_s=30)
    assert [key for key in world.keys("p") if key[1] == "a"] == [
        ("do", "a", "error"),
        ("overtaken", "a", "value"),
    ]
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["timeout", "timeout"]


@virtual
async def test_a_cancelled_error_of_nobody_in_a_cancelled_step(world: World) -> None:
    """Rules 3 and 6: let finish, it raises CancelledError by itself: a failure, as always."""
    books = Books()

    async def strange() -> str:
        await asyncio.sleep(20)
        raise asyncio.CancelledError("by the library")

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.do("strange", strange, undo=books.cancel)
        except StepError as error:
            return str(error)
        return "value"

    async with world.host(process) as host:
        assert await run_to_end(host, process) == "CancelledError: by the library"


@virtual
async def test_a_step_that_is_let_finish_does_not_hold_up_a_stop(world: World) -> None:
    """Rule 5: a group that has cancelled its tasks cancels none again; the engine does."""
    books = Books()

    async def process(proc: Process) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(proc.do("slow", books.book, "slow", 1000.0, undo=books.cancel))
            group.create_task(proc.do("pay", books.fail))

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=2)
    assert world.clock.monotonic_s() < 5
    assert world.keys("p") == [("do", "pay", "error")]


@virtual
async def test_a_body_that_swallows_an_interrupt_is_cancelled_again(world: World) -> None:
    """Rule 5: a step with undo that lets the first cancellation pass by does not hold up a stop."""
    swallowed: list[float] = []

    async def stubborn() -> str:
        while len(swallowed) < 3:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                swallowed.append(world.clock.monotonic_s())
        return "value"

    async def process(proc: Process) -> None:
        await proc.do("stubborn", stubborn, undo=Books().cancel)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=2)
    assert len(swallowed) == 3
    assert world.clock.monotonic_s() < 10
    assert world.keys("p") == []
