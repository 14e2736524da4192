"""What a host tells those who watch it."""

import asyncio
from typing import Any

import pytest

from durabletask import (
    Observer,
    Process,
    ProcessChange,
    RetryPolicy,
    StepChange,
)
from durabletask.errors import ProcessFailedError, StepError
from tests.engine.world import World, settle, virtual


class Recorder:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.processes: list[tuple[str, str | None, bool]] = []
        self.steps: list[tuple[str, int, str, str | None]] = []

    def on_process(self, change: ProcessChange) -> None:
        self.processes.append((change.process_id, change.status, change.resumed))

    def on_step(self, change: StepChange) -> None:
        self.steps.append((change.key, change.attempt, change.phase.value, change.error))


class Broken:
    """Raises at everything."""

    def on_process(self, change: ProcessChange) -> None:
        raise RuntimeError("observer is broken")

    def on_step(self, change: StepChange) -> None:
        raise RuntimeError("observer is broken")


async def nop() -> None:
    """Do nothing; a step."""


@virtual
async def test_runs_are_told(world: World) -> None:
    """S2.15 (shape): a run's begin and end, whether it resumes, and None for an interrupt."""
    recorder: Observer = Recorder()
    assert isinstance(recorder, Recorder)

    async def process(proc: Process) -> None:
        await proc.do("step", nop)
        await proc.event("go")

    async def failing(proc: Process) -> None:
        raise ValueError

    host = world.host(process, failing, observers=[recorder])
    await host.start()
    await host.spawn(process, "p")
    with pytest.raises(ProcessFailedError):
        await (await host.spawn(failing, "f")).result()
    await settle()
    await host.stop()
    async with world.host(process, failing, observers=[recorder]) as again:
        await again.raise_event("p", "go")
        await again.get("p").result()
    assert [each for each in recorder.processes if each[0] == "p"] == [
        ("p", "running", False),
        ("p", None, True),
        ("p", "running", True),
        ("p", "completed", True),
    ]
    assert [each[1] for each in recorder.processes if each[0] == "f"] == ["running", "failed"]


@virtual
async def test_attempts_are_told_and_recalled_steps_are_not(world: World) -> None:
    """Each attempt's start and end with the error's class, not its message; recalls are silent."""
    recorder = Recorder()
    tries: list[int] = []

    async def flaky() -> None:
        tries.append(1)
        if len(tries) < 2:
            raise ValueError("secret message")

    async def bad() -> None:
        raise KeyError("secret message")

    async def slow() -> None:
        await asyncio.sleep(100)

    async def process(proc: Process) -> None:
        await proc.do("flaky", flaky, retry=RetryPolicy(delay_s=1))
        await proc.get("value", 1)
        with pytest.raises(StepError):
            await proc.do("bad", bad)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await proc.do("slow", slow)
        await proc.event("go")

    first = world.host(process, observers=[recorder])
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(20)
    told = [
        ("flaky", 1, "started", None),
        ("flaky", 1, "failed", "ValueError"),
        ("flaky", 2, "started", None),
        ("flaky", 2, "succeeded", None),
        ("value", 1, "started", None),
        ("value", 1, "succeeded", None),
        ("bad", 1, "started", None),
        ("bad", 1, "failed", "KeyError"),
        ("slow", 1, "started", None),
        ("slow", 1, "cancelled", None),
    ]
    assert recorder.steps == told
    await first.stop()
    async with world.host(process, observers=[recorder]) as second:
        await second.raise_event("p", "go")
        await asyncio.sleep(20)
        await second.get("p").result()
    assert recorder.steps == told


@virtual
async def test_an_observer_that_raises_changes_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Observers never fail a process: what they raise is logged, the others still hear."""
    recorder = Recorder()

    async def process(proc: Process) -> int:
        await proc.do("step", nop)
        return 1

    async with world.host(process, observers=[Broken(), recorder]) as host:
        assert await (await host.spawn(process, "p")).result() == 1
        await settle()
    assert "observer is broken" in caplog.text
    assert [each[2] for each in recorder.steps] == ["started", "succeeded"]
    assert [each[1] for each in recorder.processes] == ["running", "completed"]


@virtual
async def test_a_watched_host_records_the_same(world: World) -> None:
    """With and without observers the same history comes of the same process."""

    async def bad() -> None:
        raise ValueError("bad")

    async def process(proc: Process) -> Any:
        results = [await proc.do("a", asyncio.sleep, 0, "a")]
        try:
            await proc.do("bad", bad)
        except StepError as error:
            results.append(str(error))
        return results

    async with world.host(process) as plain, world.host(process, observers=[Recorder()]) as seen:
        first = await (await plain.spawn(process, "p")).result()
        second = await (await seen.spawn(process, "q")).result()
    assert first == second
    assert world.keys("p") == world.keys("q")
