"""What a process can say, one function for each verb, and processes of any two of them.

Each has keys of its own, by the place where it stands, and returns what a process can return.
Between them they act by `stage`, under names that are the keys of their steps, with the index.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import combinations_with_replacement

from durabletask import Process, RetryPolicy, current_step
from durabletask.errors import StepError
from tests.engine.database import Connection
from tests.engine.moments import Scenario, Stage

Verb = Callable[[Process, Stage, str], Awaitable[object]]

SECOND = timedelta(seconds=1)


async def do(proc: Process, stage: Stage, at: str) -> object:
    return await proc.do(f"{at} do", stage.act, f"{at} do")


async def get(proc: Process, stage: Stage, at: str) -> object:
    return await proc.get(f"{at} get", partial(stage.act, f"{at} get"))


async def var(proc: Process, stage: Stage, at: str) -> object:
    cursor = await proc.var(f"{at} var", 0)
    while cursor.value < 2:
        await cursor.set(cursor.value + 1)
    return cursor.value


async def delay(proc: Process, stage: Stage, at: str) -> object:
    went = await proc.delay(f"{at} delay", SECOND)
    return went.actual >= went.desired


async def event(proc: Process, stage: Stage, at: str) -> object:
    return await proc.event("go", str, key=f"{at} event")


async def stream(proc: Process, stage: Stage, at: str) -> object:
    heard = []
    async for each in proc.events(f"{at} stream", str):
        heard.append(each)
        if len(heard) == 2:
            break
    return heard


async def race(proc: Process, stage: Stage, at: str) -> object:
    soon = proc.delay("soon", SECOND)
    first = await proc.race(f"{at} race", proc.event(f"{at} late"), soon)
    await proc.raise_event(f"{at} too late", proc.id, f"{at} late", None)
    return first.winner


async def timeout(proc: Process, stage: Stage, at: str) -> object:
    with suppress(TimeoutError):
        async with proc.timeout(f"{at} timeout", SECOND):
            await proc.event("never", key=f"{at} never")
        return "in time"
    return "timed out"


async def mapped(proc: Process, stage: Stage, at: str) -> object:
    return await proc.map(f"{at} map", stage.act, [f"{at} map[0]", f"{at} map[1]"])


async def spawn(proc: Process, stage: Stage, at: str) -> object:
    child = await proc.spawn(f"{at} spawn", small, at)
    return await child.result()


async def call(proc: Process, stage: Stage, at: str) -> object:
    return await proc.call(f"{at} call", small, at)


async def small(proc: Process, at: str) -> str:
    return await proc.get("small", f"child of {at}")


async def send(proc: Process, stage: Stage, at: str) -> object:
    await proc.raise_event(f"{at} send", proc.id, f"{at} mine", at)
    return await proc.event(f"{at} mine", str)


async def report(proc: Process, stage: Stage, at: str) -> object:
    await proc.report({"at": "begun"})
    await proc.report({"at": at})
    return None


async def version(proc: Process, stage: Stage, at: str) -> object:
    return await proc.version(f"{at} version", 3)


async def once(proc: Process, stage: Stage, at: str) -> object:
    try:
        return await proc.do(f"{at} once", stage.act, f"{at} once", at_most_once=True)
    except StepError:
        return f"{at} once"  # begun by a host that died: not known, and the same to this process


async def undoable(proc: Process, stage: Stage, at: str) -> object:
    async def undo(name: str) -> None:
        await stage.act(f"undo of {name}")

    return await proc.do(f"{at} undoable", stage.act, f"{at} undoable", undo=undo)


async def retried(proc: Process, stage: Stage, at: str) -> object:
    policy = RetryPolicy(attempts_max=2, delay_s=1)
    try:
        await proc.do(f"{at} retried", stage.fail, f"{at} retried", retry=policy)
    except StepError as error:
        return error.message
    return None


async def beating(proc: Process, stage: Stage, at: str) -> object:
    """The attempt that works knows from a heartbeat how far the one before it was."""

    async def step() -> object:
        await stage.act(f"{at} beating")
        attempt = current_step()
        if attempt.attempt == 1:
            await attempt.heartbeat("half")
            raise ValueError("half way")
        return attempt.heartbeat_details

    return await proc.do(f"{at} beating", step, retry=RetryPolicy(attempts_max=3, delay_s=1))


async def transaction(proc: Process, stage: Stage, at: str) -> object:
    async def write(connection: Connection) -> str:
        await stage.act(f"{at} transaction")
        await connection.write(f"{at} row", at)
        return at

    return await proc.transaction(f"{at} transaction", write)


VERBS: tuple[Verb, ...] = (
    do, get, var, delay, event, stream, race, timeout, mapped, spawn, call, send, report, version,
    once, undoable, retried, beating, transaction,
)  # fmt: skip
PAIRS = tuple(combinations_with_replacement(VERBS, 2))


def events_for(*verbs: Verb) -> list[tuple[str, str, float]]:
    """Return what a process of these verbs is sent: before anybody waits for it, and later."""
    early = [(f"{at} stream", "x", 0.0) for at, verb in enumerate(verbs, 1) if verb is stream]
    later = [("go", f"{at}") for at, verb in enumerate(verbs, 1) if verb is event]
    later += [(f"{at} stream", "y") for at, verb in enumerate(verbs, 1) if verb is stream]
    return early + [(name, word, 0.0 if place else 2.0) for place, (name, word) in enumerate(later)]


def in_turn(first: Verb, second: Verb, stage: Stage) -> Scenario:
    """Return a process that does one and then the other."""

    async def process(proc: Process) -> list[object]:
        return [await first(proc, stage, "1"), await second(proc, stage, "2")]

    return Scenario([process, small], events_for(first, second))


def side_by_side(first: Verb, second: Verb, stage: Stage) -> Scenario:
    """Return a process that does both at once."""

    async def process(proc: Process) -> list[object]:
        return list(await asyncio.gather(first(proc, stage, "1"), second(proc, stage, "2")))

    return Scenario([process, small], events_for(first, second))
