"""Process functions that between them make every kind of durable call."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

from durabletask import Process, RetryPolicy
from durabletask._failure import was_cancelled
from durabletask.errors import EventTimeoutError, StepError
from tests.engine.moments import Scenario, Stage

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
