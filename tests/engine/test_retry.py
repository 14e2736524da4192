"""Retries: durable waits, counted attempts, who decides, and when to give up."""

import asyncio
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, Status, current_step
from durabletask.errors import (
    InvalidArgumentError,
    SerializationError,
    StepError,
    StepTimeoutError,
)
from tests.engine.world import World, virtual


class Expected(Exception):
    """What the tests give up on."""


def flaky(world: World, fail: int, log: list[tuple[int, float]]) -> Any:
    """Return a step that fails so many times, and notes attempt and time."""

    async def step() -> str:
        log.append((current_step().attempt, world.clock.monotonic_s()))
        if len(log) <= fail:
            raise ValueError(f"failure {len(log)}")
        return "ok"

    return step


@virtual
async def test_attempts_delays_and_cap(world: World) -> None:
    """S1.03, S2.05 (rule 11): base delay, factor, largest delay, number of attempts."""
    log: list[tuple[int, float]] = []
    policy = RetryPolicy(attempts_max=6, delay_s=1, factor=3, delay_max_s=10)

    async def process(proc: Process) -> str:
        return await proc.do("step", flaky(world, 5, log), retry=policy)

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "ok"
    assert [attempt for attempt, _ in log] == [1, 2, 3, 4, 5, 6]
    assert [at for _, at in log] == pytest.approx([0, 1, 4, 13, 23, 33], abs=0.01)


@virtual
async def test_the_last_failure_is_recorded_when_attempts_are_over(world: World) -> None:
    """S1.03 (rule 11): after attempts_max the last error is the outcome, on every run."""
    log: list[tuple[int, float]] = []

    async def process(proc: Process) -> str:
        with pytest.raises(StepError, match="failure 3") as caught:
            await proc.do("step", flaky(world, 99, log), retry=RetryPolicy(attempts_max=3))
        await proc.event("go")
        return str(caught.value)

    await world.begin_and_die(process, after_s=10)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "ValueError: failure 3"
    assert len(log) == 3


@virtual
async def test_for_ever_with_a_constant_delay(world: World) -> None:
    """S0.03: attempts_max=None, delay_s=5, factor=1: until it works."""
    log: list[tuple[int, float]] = []
    policy = RetryPolicy(attempts_max=None, delay_s=5, factor=1)

    async def process(proc: Process) -> str:
        return await proc.do("step", flaky(world, 500, log), retry=policy)

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "ok"
        history = await host.get("p").history()
    assert world.clock.monotonic_s() == pytest.approx(2500, abs=1)
    assert [each.kind for each in history] == ["retry", "do"]
    assert history[0].attempts == 500
    assert len(history[0].errors) <= 10


@virtual
async def test_a_retry_wait_survives_crashes(world: World) -> None:
    """S3.06, F088 (rule 11): the due time is kept, attempts are counted on."""
    log: list[tuple[int, float]] = []
    errors: list[str] = []
    policy = RetryPolicy(attempts_max=3, delay_s=100, factor=2, delay_max_s=1000)

    async def step() -> str:
        log.append((current_step().attempt, world.clock.monotonic_s()))
        errors.append(str(current_step().previous_error))
        if len(log) < 3:
            raise ValueError(f"failure {len(log)}")
        return "ok"

    async def process(proc: Process) -> str:
        return await proc.do("step", step, retry=policy)

    await world.begin_and_die(process, after_s=30)
    for _ in range(6):
        host = world.host(process)
        await host.start()
        await asyncio.sleep(30)
        world.kill(host)
    async with world.host(process) as last:
        assert await last.get(process, "p").result() == "ok"
    assert log == [
        (1, 0.0),
        (2, pytest.approx(100, abs=0.1)),
        (3, pytest.approx(300, abs=0.1)),
    ]
    assert errors == ["None", "ValueError: failure 1", "ValueError: failure 2"]


@virtual
async def test_a_crash_in_an_attempt_does_not_count_it(world: World) -> None:
    """Rule 11: attempts count failures that were recorded; a crash in one runs it again."""
    log: list[int] = []

    async def step() -> str:
        log.append(current_step().attempt)
        if len(log) == 1:
            raise ValueError("first")
        if len(log) == 2:
            await asyncio.sleep(1000)
        return "ok"

    async def process(proc: Process) -> str:
        return await proc.do("step", step, retry=RetryPolicy(attempts_max=2, delay_s=1))

    await world.begin_and_die(process, after_s=10)
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == "ok"
    assert log == [1, 2, 2]


@virtual
async def test_a_retry_wait_is_visible(world: World) -> None:
    """Rule 10: while it waits for its next attempt the process is waiting, until when is known."""
    log: list[tuple[int, float]] = []

    async def process(proc: Process) -> str:
        return await proc.do("step", flaky(world, 1, log), retry=RetryPolicy(delay_s=50))

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        info = await handle.info()
        assert info.status is Status.WAITING
        (wait,) = info.waits
        assert (wait.kind, wait.key, wait.due_at) == ("retry", "step", info.wake_at)
        assert await handle.result() == "ok"
        assert (await handle.info()).waits == ()


@pytest.mark.parametrize("who", ["step", "process", "host", "none"])
def test_the_nearest_policy_counts(who: str) -> None:
    """S0.03 (rule 11): the step's own policy, else the process's, else the host's, else none."""

    @virtual
    async def body(world: World) -> None:
        log: list[tuple[int, float]] = []

        def policy(n: int) -> RetryPolicy:
            return RetryPolicy(attempts_max=n, delay_s=0)

        host = world.host(retry=None if who == "none" else policy(2))

        @host.process(retry=policy(3) if who in ("step", "process") else None)
        async def process(proc: Process) -> None:
            own = policy(4) if who == "step" else None
            with pytest.raises(StepError):
                await proc.do("step", flaky(world, 99, log), retry=own)

        async with host:
            await (await host.spawn(process, "p")).result()
        assert len(log) == {"step": 4, "process": 3, "host": 2, "none": 1}[who]

    body()


@virtual
async def test_a_step_can_switch_the_default_off(world: World) -> None:
    """Rule 11: RetryPolicy(attempts_max=1) under a default that retries: one attempt."""
    log: list[tuple[int, float]] = []

    async def process(proc: Process) -> None:
        with pytest.raises(StepError):
            await proc.do("step", flaky(world, 9, log), retry=RetryPolicy(attempts_max=1))

    async with world.host(process, retry=RetryPolicy(attempts_max=5)) as host:
        await (await host.spawn(process, "p")).result()
    assert len(log) == 1


@virtual
async def test_give_up_on_and_retry_if(world: World) -> None:
    """S0.04, S2.05 (rule 11): classes and a predicate that end the attempts at once."""
    log: list[str] = []

    async def step(kind: str) -> None:
        log.append(kind)
        raise Expected("no") if kind == "expected" else ValueError(kind)

    def hopeful(error: Exception) -> bool:
        return "hopeless" not in str(error)

    policies = {
        "expected": RetryPolicy(attempts_max=3, delay_s=0, give_up_on=(Expected,)),
        "base": RetryPolicy(attempts_max=3, delay_s=0, give_up_on=(LookupError, Expected)),
        "hopeless": RetryPolicy(attempts_max=3, delay_s=0, retry_if=hopeful),
    }

    async def process(proc: Process) -> None:
        for key, policy in policies.items():
            with pytest.raises(StepError):
                await proc.do(key, step, key, retry=policy)

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert log == ["expected", "base", "base", "base", "hopeless"]


@virtual
async def test_the_total_time_ends_the_attempts(world: World) -> None:
    """S2.05 (rule 11): no attempt begins later than timeout_s after the first, restarts too."""
    log: list[tuple[int, float]] = []
    policy = RetryPolicy(attempts_max=None, delay_s=10, factor=1, timeout_s=45)

    async def process(proc: Process) -> None:
        with pytest.raises(StepError):
            await proc.do("step", flaky(world, 999, log), retry=policy)

    await world.begin_and_die(process, after_s=25)
    async with world.host(process) as host:
        await host.get("p").result()
    assert [at for _, at in log] == pytest.approx([0, 10, 20, 30, 40], abs=0.1)


@virtual
async def test_the_total_time_ends_an_attempt_in_flight(world: World) -> None:
    """S3.07 (schedule to close): timeout_s ends the whole, an attempt that hangs too."""
    begun: list[float] = []

    async def hang() -> None:
        begun.append(world.clock.monotonic_s())
        await asyncio.sleep(20 if current_step().attempt == 1 else 1000)
        raise ConnectionError

    async def process(proc: Process) -> str:
        policy = RetryPolicy(attempts_max=None, delay_s=10, timeout_s=45)
        with pytest.raises(StepTimeoutError) as caught:
            await proc.do("hang", hang, retry=policy)
        return str(caught.value)

    async with world.host(process) as host:
        message = await (await host.spawn(process, "p")).result()
    assert "the time of all its attempts together was over" in message
    assert begun == pytest.approx([0, 30], abs=0.1)
    assert world.clock.monotonic_s() == pytest.approx(45, abs=0.1)


@virtual
async def test_the_total_time_goes_on_while_no_host_runs(world: World) -> None:
    """S2.05 (rule 11): an attempt that fell due in a downtime beyond timeout_s does not begin."""
    log: list[tuple[int, float]] = []
    policy = RetryPolicy(attempts_max=None, delay_s=10, factor=1, timeout_s=45)

    async def process(proc: Process) -> str:
        with pytest.raises(StepError) as caught:
            await proc.do("step", flaky(world, 999, log), retry=policy)
        await proc.event("go")
        return caught.value.type

    await world.begin_and_die(process, after_s=15)
    await asyncio.sleep(3600)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "ValueError"
    assert [attempt for attempt, _ in log] == [1, 2]


@virtual
async def test_jitter_only_shortens(world: World) -> None:
    """Rule 11: with jitter each wait is shortened at random, never lengthened."""
    log: list[tuple[int, float]] = []
    policy = RetryPolicy(attempts_max=30, delay_s=10, factor=1, jitter=0.5)

    async def process(proc: Process) -> str:
        return await proc.do("step", flaky(world, 20, log), retry=policy)

    async with world.host(process, random=Random(3)) as host:
        await (await host.spawn(process, "p")).result()
    gaps = [after - before for (_, before), (_, after) in pairwise(log)]
    assert all(4.99 <= gap <= 10.01 for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 10


@virtual
async def test_each_attempt_has_its_own_timeout(world: World) -> None:
    """S1.02, S3.07: timeout= is per attempt; a timed-out attempt is retried."""
    attempts: list[int] = []

    async def slow() -> str:
        attempts.append(current_step().attempt)
        if len(attempts) < 3:
            await asyncio.sleep(1000)
        return "ok"

    async def process(proc: Process) -> str:
        return await proc.do("slow", slow, timeout=5, retry=RetryPolicy(delay_s=1, factor=1))

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "ok"
    assert attempts == [1, 2, 3]
    assert world.clock.monotonic_s() == pytest.approx(12, abs=0.1)


@virtual
async def test_a_timeout_can_be_given_up_on(world: World) -> None:
    """Rule 11: StepTimeoutError is an exception like others to give_up_on."""

    async def slow() -> None:
        await asyncio.sleep(1000)

    async def process(proc: Process) -> None:
        policy = RetryPolicy(attempts_max=9, give_up_on=(StepTimeoutError,))
        with pytest.raises(StepTimeoutError):
            await proc.do("slow", slow, timeout=5, retry=policy)

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert world.clock.monotonic_s() == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    "policy",
    [
        {"attempts_max": 0},
        {"attempts_max": -1},
        {"delay_s": -1},
        {"delay_s": float("nan")},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"delay_max_s": -1},
        {"jitter": 2},
        {"jitter": -0.1},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"give_up_on": ValueError},
        {"give_up_on": ("ValueError",)},
        {"give_up_on": (5,)},
        {"retry_if": "yes"},
    ],
)
def test_a_senseless_policy_is_refused(policy: dict[str, Any]) -> None:
    """Bad input: refused where the policy is made, before any step can fail under it."""
    with pytest.raises(InvalidArgumentError):
        RetryPolicy(**policy)


@virtual
async def test_a_predicate_that_raises_does_not_repeat_the_step(world: World) -> None:
    """Rule 3: whatever retry_if does, the failed step has a recorded outcome on every run."""
    ran: list[int] = []

    async def bad() -> None:
        ran.append(1)
        raise ValueError("bad")

    def broken(error: Exception) -> bool:
        raise RuntimeError("broken predicate")

    async def process(proc: Process) -> str:
        with pytest.raises(Exception) as caught:
            await proc.do("bad", bad, retry=RetryPolicy(retry_if=broken))
        await proc.event("go")
        return str(caught.value)

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get(process, "p").result()
    assert ran == [1]


@virtual
async def test_a_very_long_delay_is_cut_not_an_error(world: World) -> None:
    """F087: a wait beyond the calendar must not become an unrecorded OverflowError."""
    ran: list[int] = []

    async def bad() -> None:
        ran.append(1)
        raise ValueError("bad")

    async def process(proc: Process) -> None:
        policy = RetryPolicy(delay_s=1e12, delay_max_s=1e12)
        await proc.do("bad", bad, retry=policy)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(10)
        assert world.row("p").status is Status.WAITING or world.row("p").ending is not None
        if world.row("p").ending is not None:
            assert ("do", "bad", "error") in world.keys("p")
        assert handle.id == "p"


@virtual
async def test_a_result_without_a_form_is_not_retried(world: World) -> None:
    """Rule 2: the effect has happened: SerializationError ends the attempts at once."""
    ran: list[int] = []

    async def odd() -> Any:
        ran.append(1)
        return object()

    async def process(proc: Process) -> None:
        with pytest.raises(SerializationError):
            await proc.do("odd", odd, retry=RetryPolicy(attempts_max=None, delay_s=0))

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert ran == [1]


@virtual
async def test_sync_steps_are_retried_too(world: World) -> None:
    """Rule 11: a sync step has attempts, previous error and backoff like an async one."""
    seen: list[str] = []

    def step() -> int:
        seen.append(str(current_step().previous_error))
        if len(seen) < 3:
            raise OSError(len(seen))
        return len(seen)

    async def process(proc: Process) -> int:
        return await proc.do("step", step, retry=RetryPolicy(delay_s=1))

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 3
    assert seen == ["None", "OSError: 1", "OSError: 2"]
