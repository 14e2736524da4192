"""Cancelled from outside: once, durably, at every moment of every kind of durable call."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import msgspec
import pytest

from durabletask import Process, ProcessClient, RetryPolicy, Status
from durabletask._failure import was_cancelled
from durabletask.errors import EventTimeoutError, StepError
from durabletask.storage import Form, Unit
from tests.engine.moments import Played, Plot, Scenario, Stage, every_turn, play

Body = Callable[[Process, Stage], Awaitable[object]]


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


# --- one for each kind of durable call ------------------------------------------------------


async def steps(proc: Process, stage: Stage) -> None:
    await proc.do("a", stage.act, "a")
    await proc.do("b", stage.act, "b", 2.0)


async def values(proc: Process, stage: Stage) -> None:
    await proc.get("id", partial(stage.act, "id"))
    counter = await proc.var("count", 0)
    await counter.set(1)
    await proc.version("v", 2)
    await proc.report("half")
    await proc.do("a", stage.act, "a", undo=partial(_undo, stage))
    await proc.do("once", stage.act, "once", 1.0, at_most_once=True)


async def _undo(stage: Stage, _: object) -> None:
    await stage.act("undo a")


async def delay(proc: Process, stage: Stage) -> None:
    await proc.do("a", stage.act, "a")
    await proc.delay("wait", seconds(3))


async def event(proc: Process, stage: Stage) -> None:
    await proc.event("go", str)
    with suppress(EventTimeoutError):
        await proc.event("never", timeout=seconds(3))
    async for _ in proc.events("more", str):
        break


async def race(proc: Process, stage: Stage) -> None:
    await proc.race("first", proc.event("never"), proc.delay("d", seconds(2)))
    await proc.race("second", proc.event("go", str), proc.delay("d", seconds(200)))


async def timeouts(proc: Process, stage: Stage) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await proc.event("never")
    with suppress(TimeoutError):
        async with proc.timeout("limit", seconds(2)):
            await proc.event("never", key="never again")


async def mapped(proc: Process, stage: Stage) -> None:
    async def item(number: int) -> str:
        return await stage.act(f"item {number}", number % 2)

    await proc.map("each", item, range(4), concurrency=2)


async def gathered(proc: Process, stage: Stage) -> None:
    await asyncio.gather(
        proc.event("go", str), proc.delay("wait", seconds(3)), proc.do("a", stage.act, "a", 2.0)
    )


async def grouped(proc: Process, stage: Stage) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(proc.event("go", str))
        group.create_task(proc.delay("wait", seconds(3)))
        group.create_task(proc.do("a", stage.act, "a", 2.0))


async def retried(proc: Process, stage: Stage) -> None:
    policy = RetryPolicy(attempts_max=3, delay_s=2)
    with suppress(StepError):
        await proc.do("a", stage.fail, "a", retry=policy)


async def children(proc: Process, stage: Stage) -> None:
    child = await proc.spawn("spawned", waits_a_while)
    await proc.call("called", waits_a_while)
    await child.result()


async def waits_a_while(proc: Process) -> str:
    await proc.delay("child's", seconds(3))
    return "child"


async def sent(proc: Process, stage: Stage) -> None:
    await proc.raise_event("send", proc.id, "mine", 1)
    await proc.event("mine", int)
    await asyncio.sleep(1)
    await proc.do("a", stage.act, "a")


BODIES: dict[str, Body] = {
    body.__name__: body
    for body in (
        steps, values, delay, event, race, timeouts, mapped, gathered, grouped, retried,
        children, sent,
    )
}  # fmt: skip
SIDE_BY_SIDE = {"mapped", "gathered", "grouped"}


def scenario(body: Body, style: str, stage: Stage) -> Scenario:
    """Return a process of that body that lets a cancellation through, catches it or rolls back."""

    async def process(proc: Process) -> str:
        try:
            await body(proc, stage)
            await proc.do("last", stage.act, "last")
        except Exception as error:
            if style == "through" or not was_cancelled(error):
                raise
            if style == "rolls back":
                await proc.do("rollback", stage.act, "rollback")
                raise
            return "caught"
        return "done"

    return Scenario([process, waits_a_while], [("go", "x", 4.0), ("more", "y", 0.0)])


async def cancel(client: ProcessClient) -> None:
    await client.get("p").cancel("enough")


def meets(unit: Unit) -> bool:
    return unit.process_id == "p" and unit.meets_cancel


def cancelled_marks(played: Played) -> set[tuple[int, int]]:
    """Return by which units ProcessCancelledErrors were recorded."""
    found = set()
    for each in played.checkpoints():
        if each.form is Form.ERROR and b"ProcessCancelledError" in each.payload:
            found.add((each.epoch, each.seq))
    return found


def assert_legal(played: Played, style: str, about: str) -> None:
    row = played.snapshots["p"].row
    came = played.came_to()
    assert row.status in (Status.CANCELLED, Status.COMPLETED), (about, row.status, came)
    assert len(cancelled_marks(played)) == row.cancel_met, (about, cancelled_marks(played))
    ending = row.ending
    assert ending is not None
    if not row.cancel_met:
        assert row.epoch == 0 or msgspec.json.decode(ending.payload) == "done", (about, came)
    elif style == "caught":
        assert msgspec.json.decode(ending.payload) == "caught", (about, came)
    else:
        assert row.status is Status.CANCELLED, (about, came)
        assert b"enough" in ending.payload
    if style == "rolls back" and row.cancel_met:
        assert ("do", "rollback", -1, "value") in played.recorded(), about


@pytest.mark.parametrize("style", ["through", "caught", "rolls back"])
@pytest.mark.parametrize("name", BODIES)
def test_cancelled_at_every_turn(name: str, style: str) -> None:
    """S1.09 (rule 7): whenever it comes: met once, in one unit, and each step ran once."""
    make = partial(scenario, BODIES[name], style)
    for turn in every_turn(make, 1 if style == "caught" else 4):
        about = f"{name}, {style}, turn {turn}"
        played = play(make, Plot(turn, cancel))
        assert_legal(played, style, about)
        assert name == "retried" or max(played.effects.values(), default=0) <= 1, about


@pytest.mark.parametrize("style", ["through", "caught", "rolls back"])
@pytest.mark.parametrize("name", BODIES)
def test_cancelled_and_resumed(name: str, style: str) -> None:
    """S1.09 (rules 2, 7): the host dies when it is met: the next one comes to the same end."""
    make = partial(scenario, BODIES[name], style)
    for turn in every_turn(make, 7):
        about = f"{name}, {style}, turn {turn}"
        once = play(make, Plot(turn, cancel))
        again = play(make, Plot(turn, cancel, dies=meets))
        assert again.died == once.snapshots["p"].row.cancel_met, about
        assert again.came_to() == once.came_to(), about
        assert cancelled_marks(again) == cancelled_marks(once), about
        if name not in SIDE_BY_SIDE:
            assert again.recorded() == once.recorded(), about


@pytest.mark.parametrize("style", ["through", "caught"])
@pytest.mark.parametrize("name", BODIES)
def test_cancelled_while_its_host_dies(name: str, style: str) -> None:
    """S1.09 (rule 7): the host dies before it hears of the request: the next one meets it."""
    make = partial(scenario, BODIES[name], style)
    for turn in every_turn(make, 7):
        played = play(make, Plot(turn, cancel, dies_then=True))
        assert_legal(played, style, f"{name}, {style}, turn {turn}")
