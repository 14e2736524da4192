"""`proc.report`: the process says how far it is, and whoever looks on sees it."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process
from durabletask.errors import SerializationError
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, settle, virtual


@dataclass
class Progress:
    """How far."""

    done: int


async def nop() -> None:
    """Do nothing; a step."""


def reports(world: World, host: Any) -> list[bytes]:
    """Return what a host has written of a progress, in order."""
    return [
        held.payload
        for unit in world.wires[host].units
        for held in unit.checkpoints
        if held.kind == "report"
    ]


@virtual
async def test_the_latest_is_seen_from_outside(world: World) -> None:
    """S2.12 (custom status): `info().progress` is the last report, as plain values, also after."""

    async def process(proc: Process) -> None:
        await proc.report("begun")
        await proc.event("go", key="first")
        await proc.report(Progress(5), type=Progress)
        await proc.event("go", key="second")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        assert (await handle.info()).progress == "begun"
        await handle.raise_event("go")
        await settle()
        assert (await handle.info()).progress == {"done": 5}
        (listed,) = [info async for info in host.list()]
        assert listed.progress is None
        await handle.raise_event("go")
        await handle.result()
        assert (await handle.info()).progress == {"done": 5}
        (entry,) = [each for each in await handle.history() if each.kind == "report"]
        assert (entry.value, entry.form) == ({"done": 5}, "value")


@virtual
async def test_none_is_told_by_a_process_that_reports_nothing(world: World) -> None:
    """`info().progress` is None where nothing was reported."""

    async def process(proc: Process) -> None:
        await proc.do("step", nop)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.result()
        assert (await handle.info()).progress is None


@virtual
async def test_it_is_durable_when_it_returns(world: World) -> None:
    """Rule 1: when `report` returns, the record survives a crash at once."""
    seen: list[Any] = []

    async def process(proc: Process) -> None:
        for n in range(3):
            await proc.report(n)
            seen.append(world.keys("p"))

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert seen == [[("report", "progress", "value")]] * 3


@virtual
async def test_what_is_recalled_is_not_reported_again(world: World) -> None:
    """A resumed run writes no report that an earlier run had made, and each that is new."""

    async def process(proc: Process) -> None:
        for n in range(5):
            await proc.do(f"step {n}", nop)
            await proc.report(n)
        await proc.event("go")
        await proc.report("gone on")

    await world.begin_and_die(process)
    async with world.host(process) as host:
        handle = host.get("p")
        await settle()
        assert (await handle.info()).progress == 4
        assert len(reports(world, host)) <= 1  # of the last one nobody knows that it is recorded
        await handle.raise_event("go")
        await handle.result()
        assert (await handle.info()).progress == "gone on"


@virtual
async def test_a_key_that_is_no_more_does_not_silence_it(world: World) -> None:
    """Rule 1: a renamed key leaves a call that nobody asks for; new reports are written anyway."""
    name = "old"

    async def process(proc: Process) -> None:
        await proc.do(name, nop)
        await proc.report("one")
        await proc.event("go")
        await proc.report("two")
        await proc.event("on")

    await world.begin_and_die(process)
    name = "new"
    async with world.host(process) as host:
        handle = host.get("p")
        await handle.raise_event("go")
        await asyncio.sleep(1)
        assert (await handle.info()).progress == "two"


@virtual
async def test_beside_a_branch_that_is_still_recalling(world: World) -> None:
    """Rule 1: what one branch reports anew is written, whatever another has yet to recall."""

    async def ahead(proc: Process) -> None:
        await proc.delay("ahead", timedelta(seconds=10))
        await proc.report("ahead")

    async def behind(proc: Process) -> None:
        await asyncio.sleep(5)
        await proc.do("one", nop)
        await asyncio.sleep(1000)

    async def process(proc: Process) -> None:
        await asyncio.gather(ahead(proc), behind(proc))

    await world.begin_and_die(process, after_s=8)
    async with world.host(process) as host:
        await asyncio.sleep(4)
        assert (await host.get("p").info()).progress == "ahead"


@virtual
async def test_a_wait_of_the_same_name_stays_visible(world: World) -> None:
    """`info().waits` shows an event named as the record of the progress is."""

    async def process(proc: Process) -> None:
        async def tell() -> None:
            await asyncio.sleep(5)
            await proc.report(1)

        await asyncio.gather(proc.event("progress"), tell())

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(10)
        info = await handle.info()
        assert [wait.name for wait in info.waits] == ["progress"]
        await handle.raise_event("progress")
        await handle.result()


@virtual
async def test_a_value_without_a_form_is_refused(world: World) -> None:
    """Rule 2: what has no exact JSON form is an error at the call, and nothing is recorded."""

    async def process(proc: Process) -> None:
        with pytest.raises(SerializationError, match="progress"):
            await proc.report(float("inf"))

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert world.keys("p") == []


@virtual
async def test_a_cancellation_during_a_report_is_met_at_the_next_call(world: World) -> None:
    """Rule 6: a report is not cancelled; both runs meet the cancellation at the call behind it."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(0.5):
                await proc.report("here")
                seen.append("reported")
                await proc.do("next", nop)
                seen.append("next")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")

    first = world.host(process)

    async def slowly(call: str) -> None:
        await asyncio.sleep(1 if call == "commit" else 0)

    world.wires[first].after = slowly
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(60)
    world.kill(first)
    assert seen == ["reported", "timeout"]
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == ["reported", "timeout"] * 2


def test_dead_at_every_call() -> None:
    """F001-F004: dead at each storage call and await, the last report stands at the end."""

    async def process(proc: Process) -> str:
        await proc.report("begun")
        for n in range(2):
            await proc.do(f"step {n}", nop)
            await proc.report(n)
        await proc.report("done")
        return "done"

    report = crash_everywhere(process, pairs=True)
    differing = [line for each in report.differences for line in each.what]
    # The count in the record is of the run that wrote it.
    assert [line for line in differing if "report 'progress' holds" not in line] == []
    assert [line for line in differing if '"done"' not in line.partition("instead")[0]] == []
    assert report.deaths > 50
