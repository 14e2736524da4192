"""`retry` of a failed process: what it puts aside, what it keeps, and what it will not do."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessHandle, ProcessHost, RetryPolicy, Status
from durabletask.errors import (
    InvalidArgumentError,
    ProcessFailedError,
    ProcessStateError,
    StepError,
    StepInterruptedError,
)
from durabletask.storage import Controlled, Refusal
from tests.engine.retrying import Steps, failed, forgotten
from tests.engine.world import World, settle, virtual

Returned = list[Any]


@virtual
async def test_only_what_ended_it_runs_again(world: World) -> None:
    """Rule 9: the checkpoint whose error ended it is put aside; the rest is recalled."""
    steps = Steps("b")

    async def process(proc: Process) -> Returned:
        return [await proc.do(name, steps.step, name) for name in ("a", "b", "c")]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle, "ValueError: b is broken")
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == ["a", "b", "c"]
        assert await forgotten(handle) == [("do", "b")]
        entry = next(each for each in await handle.history() if each.forgotten)
        assert str(entry.error) == "ValueError: b is broken"
    assert steps.ran == ["a", "b", "b", "c"]


@virtual
async def test_a_retry_that_fails_again_can_be_retried_again(world: World) -> None:
    """Rule 9: every failed attempt stays in the history."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        return await proc.do("a", steps.step, "a")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        for _ in range(3):
            await failed(handle)
            await handle.retry()
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == "a"
        assert await forgotten(handle) == [("do", "a")] * 4


@virtual
async def test_failures_that_were_handled_are_kept(world: World) -> None:
    """Rule 9: a failure that the process had handled is no cause of its end and is recalled."""
    steps = Steps("first", "fallback")

    async def process(proc: Process) -> str:
        try:
            return await proc.do("first", steps.step, "first")
        except StepError:
            return await proc.do("fallback", steps.step, "fallback")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle, "fallback is broken")
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == "fallback"
    assert steps.ran == ["first", "fallback", "fallback"]


class Refused(Exception):
    """An error of the process itself."""


@pytest.mark.parametrize("shape", ["cause", "context", "none", "group", "nested"])
@virtual
async def test_the_failure_behind_an_error_is_found(world: World, shape: str) -> None:
    """Rule 9: raised from it, while handling it, or as a group: the step behind runs again."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        try:
            return await proc.do("a", steps.step, "a")
        except StepError as error:
            if shape == "cause":
                raise Refused("broken") from error
            if shape == "none":
                raise Refused("broken") from None
            if shape == "group":
                raise ExceptionGroup("broken", [KeyError("x"), error]) from None
            if shape == "nested":
                raise ExceptionGroup("broken", [ExceptionGroup("x", [error])]) from None
            raise Refused("broken")  # noqa: B904  (what is being handled is what is to be found)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == "a"


@virtual
async def test_all_failures_of_a_task_group_run_again(world: World) -> None:
    """Rule 9: each member of a group is a cause; what succeeded beside them is kept."""
    steps = Steps("b", "c")

    async def process(proc: Process) -> Returned:
        results = await asyncio.gather(
            *(proc.do(name, steps.step, name) for name in "abcd"), return_exceptions=True
        )
        errors = [each for each in results if isinstance(each, Exception)]
        if errors:
            raise ExceptionGroup("broken", errors)
        return results

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry()
        assert await handle.result() == list("abcd")
    assert sorted(steps.ran) == ["a", "b", "b", "c", "c", "d"]


@virtual
async def test_an_error_of_the_code_puts_nothing_aside(world: World) -> None:
    """Rule 9: where no record is to blame, the mended code goes on with all that is recorded."""
    steps = Steps()
    mended = [False]

    async def process(proc: Process) -> str:
        await proc.do("a", steps.step, "a")
        if not mended[0]:
            raise Refused("broken code")
        return "mended"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        mended[0] = True
        await handle.retry()
        assert await handle.result() == "mended"
        assert await forgotten(handle) == []
    assert steps.ran == ["a"]


@virtual
async def test_a_registered_error_and_an_item_of_map(world: World) -> None:
    """Rule 9: an error that comes back as itself, and one item of many, are found too."""
    broken = {3}
    ran: list[int] = []

    async def step(number: int) -> int:
        ran.append(number)
        if number in broken:
            raise Refused(f"broken {number}")
        return number

    async def process(proc: Process) -> Returned:
        return await proc.map("items", step, range(6), concurrency=1)

    async with world.host(process, errors=[Refused]) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        broken.clear()
        await handle.retry()
        assert await handle.result() == list(range(6))
    assert ran == [0, 1, 2, 3, 3, 4, 5]


@virtual
async def test_retries_of_a_step_begin_anew(world: World) -> None:
    """Rule 9, S3.01: the attempts that are used up are put aside with the step's failure."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        policy = RetryPolicy(attempts_max=3, delay_s=1)
        return await proc.do("a", steps.step, "a", retry=policy)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        assert len(steps.ran) == 3
        await handle.retry()
        await failed(handle)
        assert len(steps.ran) == 6
        assert await forgotten(handle) == [("retry", "a"), ("do", "a")]


@virtual
async def test_an_event_that_timed_out_is_waited_for_again(world: World) -> None:
    """Rule 9: the deadline that was over is put aside with it, and counts from the retry on."""

    async def process(proc: Process) -> int:
        return await proc.event("n", int, timeout=60)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle, "EventTimeoutError")
        await handle.retry()
        await asyncio.sleep(50)
        await handle.raise_event("n", 5)
        assert await handle.result() == 5


@virtual
async def test_a_timeout_runs_again_with_what_it_had_cancelled(world: World) -> None:
    """Rule 9: `proc.timeout` begins anew; the call that it had cut off is no longer cancelled."""

    async def process(proc: Process) -> int:
        async with proc.timeout("deadline", timedelta(minutes=1)):
            return await proc.event("n", int)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle, "TimeoutError")
        await handle.retry()
        await asyncio.sleep(50)
        await handle.raise_event("n", 5)
        assert await handle.result(timeout=5) == 5
        assert ("event", "n") in await forgotten(handle)


@virtual
async def test_an_at_most_once_step_may_run_again_when_somebody_says_so(world: World) -> None:
    """Rule 9: its start is put aside with its failure, so that the retry really runs it."""
    ran: list[int] = []

    async def step() -> str:
        ran.append(1)
        if len(ran) == 1:
            await asyncio.sleep(1e6)
        return "done"

    async def process(proc: Process) -> str:
        return await proc.do("once", step, at_most_once=True)

    await world.begin_and_die(process)
    async with world.host(process) as host:
        handle = host.get(process, "p")
        with pytest.raises(ProcessFailedError) as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, StepInterruptedError)
        await handle.retry()
        assert await handle.result() == "done"
    assert len(ran) == 2


# --- from a key on ------------------------------------------------------------------------


@virtual
async def test_from_a_key_everything_recorded_since_runs_again(world: World) -> None:
    """Rule 9: from the first record of the key on, in the order recorded; what was before stays."""
    steps = Steps("d")

    async def process(proc: Process) -> Returned:
        return [await proc.do(name, steps.step, name) for name in "abcd"]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        await handle.retry(from_key="b")
        assert await handle.result() == list("abcd")
        assert await forgotten(handle) == [("do", "b"), ("do", "c"), ("do", "d")]
    assert steps.ran == list("abcdbcd")


@virtual
async def test_events_that_were_taken_since_come_back_in_order(world: World) -> None:
    """Rule 9: an event belongs to who takes it: what is put aside gives its events back."""
    steps = Steps("end")

    async def process(proc: Process) -> Returned:
        first = await proc.event("n", int, key="first")
        await proc.do("middle", steps.step, "middle")
        race = proc.event("n", int, key="second")
        won = await proc.race("race", race, proc.delay("never", timedelta(days=1)))
        third = await proc.event("n", int, key="third")
        await proc.do("end", steps.step, "end")
        return [first, won.of(race), third]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        for number in range(3):
            await handle.raise_event("n", number)
        await failed(handle)
        steps.broken.clear()
        await handle.retry(from_key="middle")
        assert await handle.result(timeout=5) == [0, 1, 2]
    assert steps.ran == ["middle", "end"] * 2


@virtual
async def test_a_key_that_was_never_recorded_is_refused(world: World) -> None:
    """Rule 9: a misspelt key writes nothing."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        return await proc.do("a", steps.step, "a")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        with pytest.raises(InvalidArgumentError, match="recorded nothing under 'b'"):
            await handle.retry(from_key="b")
        assert (await handle.info()).status is Status.FAILED


# --- quarantine, compensation -----------------------------------------------------


@virtual
async def test_a_quarantined_process_goes_on_with_what_it_has(world: World) -> None:
    """Rule 4, rule 9: after the fix it goes on; nothing is put aside and no step runs again."""
    steps = Steps()
    mended = [False]

    async def process(proc: Process) -> str:
        await proc.do("a", steps.step, "a")
        return await proc.do("b" if mended[0] else "a", steps.step, "b")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5)
        assert (await handle.info()).status is Status.QUARANTINED
        mended[0] = True
        await handle.retry()
        await asyncio.sleep(1)
        assert await handle.result() == "b"
        assert await forgotten(handle) == []
    assert steps.ran == ["a", "b"]


@virtual
async def test_once_undoing_has_begun_a_retry_goes_on_with_that(world: World) -> None:
    """Rule 8, rule 9: failed undos run again, done ones do not, and the function never goes on."""
    steps = Steps("fail", "undo b")

    async def undo(name: str) -> None:
        await steps.step(f"undo {name}")

    async def process(proc: Process) -> None:
        once = RetryPolicy(attempts_max=1)
        for name in "abc":
            await proc.do(name, steps.step, name, undo=undo, retry=once)
        await proc.do("fail", steps.step, "fail")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle, "fail is broken")
        with pytest.raises(ProcessStateError, match="begun to undo"):
            await handle.retry(from_key="fail")
        steps.broken.clear()
        await handle.retry()
        await failed(handle, "fail is broken")
        compensation = (await handle.info()).compensation
        assert compensation is not None
        assert set(compensation.done) == set("abc")
        assert await forgotten(handle) == [("undo", "b")]
        with pytest.raises(ProcessStateError, match="everything of it is undone"):
            await handle.retry()
    assert steps.ran == ["a", "b", "c", "fail", "undo c", "undo b", "undo a", "undo b"]


# --- racing with others -----------------------------------------------------------------------


@virtual
async def test_somebody_else_retries_it_too(world: World) -> None:
    """Rule 9: of two that retry at once one is granted; nothing is put aside twice."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        await proc.do("a", steps.step, "a")
        await proc.event("go")
        return "went"

    async def attempt(handle: ProcessHandle[Any]) -> bool:
        try:
            await handle.retry()
        except ProcessStateError:
            return False
        return True

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        granted = await asyncio.gather(*(attempt(handle) for _ in range(10)))
        assert granted.count(True) == 1
        await handle.raise_event("go")
        assert await handle.result() == "went"
        assert await forgotten(handle) == [("do", "a")]


@virtual
async def test_a_process_that_changes_meanwhile_is_read_again(world: World) -> None:
    """Rule 9: what was read is checked by the storage; where it is old, it is read anew."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        return await proc.do("a", steps.step, "a")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        steps.broken.clear()
        request, refusals = world.storage.request, [2]

        async def stale(controls: Any) -> Any:
            if refusals[0]:
                refusals[0] -= 1
                return [Controlled(Refusal.NOT_OWNER)]
            return await request(controls)

        world.storage.request = stale  # type: ignore[method-assign]
        await handle.retry()
        assert await handle.result() == "a"
        refusals[0] = 0


@virtual
async def test_what_is_put_aside_is_not_recalled_after_a_crash(world: World) -> None:
    """Rule 9: a host that dies in the retried run hands over what counts, and nothing else."""
    steps = Steps("a")

    async def process(proc: Process) -> str:
        first = await proc.do("a", steps.step, "a")
        await proc.event("go")
        return first

    host = world.host(process)
    await host.start()
    handle = await host.spawn(process, "p")
    await failed(handle)
    steps.broken.clear()
    await handle.retry()
    await settle()
    world.kill(host)
    other: ProcessHost = world.host(process)
    async with other:
        await other.raise_event("p", "go")
        assert await other.get(process, "p").result() == "a"
    assert steps.ran == ["a", "a"]


@virtual
async def test_a_timeout_that_the_error_left_begins_anew(world: World) -> None:
    """Rule 9: with all its time, counted from the retry; one that was over before stays over."""
    steps = Steps("b")
    world.allow(days=2)

    async def process(proc: Process) -> str:
        async with proc.timeout("before", timedelta(hours=1)):
            await proc.do("a", steps.step, "a")
        try:
            async with proc.timeout("around", timedelta(minutes=1)):
                await proc.do("b", steps.step, "b")
                await proc.event("never")
        except TimeoutError:
            return "in time"
        return "never"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await failed(handle)
        await asyncio.sleep(86_400)  # a human looks at it
        steps.broken.clear()
        await handle.retry()
        await asyncio.sleep(59)
        assert (await handle.info()).status is Status.WAITING
        assert await handle.result() == "in time"
        assert sorted(await forgotten(handle)) == [
            ("do", "b"),
            ("timeout", "around"),
            ("wait", "around"),
        ]
    assert steps.ran == ["a", "b", "b"]
