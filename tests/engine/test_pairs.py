"""Every verb with every other one: dead at every storage call, cancelled at every await.

The processes are generated: two verbs one after the other, and side by side.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import combinations_with_replacement, product

import pytest

from durabletask import Process, ProcessClient, RetryPolicy, Status
from durabletask.errors import ProcessError, StepError
from durabletask.storage import Form, Unit
from tests.engine.moments import Played, Plot, Scenario, Stage, play

Verb = Callable[[Process, Stage, str], Awaitable[object]]

SECOND = timedelta(seconds=1)

# --- the verbs: each has keys of its own, and returns what a process can return ---------------


async def do(proc: Process, stage: Stage, at: str) -> object:
    return await proc.do(f"{at} do", stage.act, f"{at} do")


async def get(proc: Process, stage: Stage, at: str) -> object:
    return await proc.get(f"{at} get", partial(stage.act, f"{at} get"))


async def var(proc: Process, stage: Stage, at: str) -> object:
    cursor = await proc.var(f"{at} var", 0)
    if cursor.value < 1:
        await cursor.set(1)
    return cursor.value


async def delay(proc: Process, stage: Stage, at: str) -> object:
    went = await proc.delay(f"{at} delay", SECOND)
    return went.actual >= went.desired


async def event(proc: Process, stage: Stage, at: str) -> object:
    return await proc.event("go", str, key=f"{at} event")


async def race(proc: Process, stage: Stage, at: str) -> object:
    soon = proc.delay("soon", SECOND)
    return (await proc.race(f"{at} race", proc.event("never"), soon)).winner


async def timeout(proc: Process, stage: Stage, at: str) -> object:
    with suppress(TimeoutError):
        async with proc.timeout(f"{at} timeout", SECOND):
            await proc.event("never", key=f"{at} never")
        return "in time"
    return "timed out"


async def mapped(proc: Process, stage: Stage, at: str) -> object:
    return await proc.map(f"{at} map", stage.act, [f"{at} x", f"{at} y"])


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
    await proc.report({"at": "report"})
    return None


async def version(proc: Process, stage: Stage, at: str) -> object:
    return await proc.version(f"{at} version", 3)


async def once(proc: Process, stage: Stage, at: str) -> object:
    try:
        return await proc.do(f"{at} once", stage.act, f"{at} once", at_most_once=True)
    except StepError:
        return f"{at} once"  # begun by a host that died: not known, and the same to this process


async def undoable(proc: Process, stage: Stage, at: str) -> object:
    undo = partial(_undo, stage, at)
    return await proc.do(f"{at} undoable", stage.act, f"{at} undoable", undo=undo)


async def _undo(stage: Stage, at: str, _: object) -> None:
    await stage.act(f"undo of {at}")


async def retried(proc: Process, stage: Stage, at: str) -> object:
    policy = RetryPolicy(attempts_max=2, delay_s=1)
    try:
        await proc.do(f"{at} retried", stage.fail, f"{at} retried", retry=policy)
    except StepError as error:
        return error.message
    return None


VERBS: tuple[Verb, ...] = (
    do, get, var, delay, event, race, timeout, mapped, spawn, call, send, report, version, once,
    undoable, retried,
)  # fmt: skip
PAIRS = list(combinations_with_replacement(VERBS, 2))


def in_turn(first: Verb, second: Verb, stage: Stage) -> Scenario:
    """Return a process that does one and then the other."""

    async def process(proc: Process) -> list[object]:
        return [await first(proc, stage, "1"), await second(proc, stage, "2")]

    return Scenario([process, small], [("go", "x", 2.0), ("go", "y", 0.0)])


def side_by_side(first: Verb, second: Verb, stage: Stage) -> Scenario:
    """Return a process that does both at once."""

    async def process(proc: Process) -> list[object]:
        return list(await asyncio.gather(first(proc, stage, "1"), second(proc, stage, "2")))

    return Scenario([process, small], [("go", "x", 2.0), ("go", "y", 0.0)])


Compose = Callable[[Verb, Verb, Stage], Scenario]
COMPOSED: tuple[Compose, ...] = (in_turn, side_by_side)


def slices(first: Verb) -> Iterator[tuple[Verb, Verb, str]]:
    """Return the pairs with a verb, and what to call each."""
    for one, two in PAIRS:
        if one is first:
            yield one, two, f"{one.__name__} and {two.__name__}"


def recorded(played: Played) -> set[tuple[str, str, int, str]]:
    """Return what is recorded; a step that runs at most once may have failed by a death."""
    return {
        (kind, key, index, "any" if "once" in key else form)
        for kind, key, index, form in played.recorded()
    }


def meets(unit: Unit) -> bool:
    return unit.process_id == "p" and unit.meets_cancel


async def cancel(client: ProcessClient) -> None:
    await client.get("p").cancel("enough")


@pytest.mark.parametrize("compose", COMPOSED)
@pytest.mark.parametrize("first", VERBS)
def test_dead_at_every_call(first: Verb, compose: Compose) -> None:
    """S1.05 (rules 1, 2; F024): the same result and records; what is recorded ran once."""
    cases = 0
    for one, two, names in slices(first):
        make = partial(compose, one, two)
        expected = play(make, Plot())
        assert expected.status() is Status.COMPLETED, (names, expected.came_to())
        for number, done in product(range(1, expected.calls + 1), (False, True)):
            about = f"{names}, call {number}, {done}"
            played = play(make, Plot(dies_at=(number, done)))
            assert played.came_to() == expected.came_to(), about
            assert recorded(played) == recorded(expected), about
            assert {key: played.effects[key] for key in played.kept} == played.kept, about
            for name, count in played.effects.items():
                assert count <= expected.effects[name] + played.died, (about, name)
            cases += 1
    print(f"{cases} deaths")


@pytest.mark.parametrize("compose", COMPOSED)
@pytest.mark.parametrize("first", VERBS)
def test_cancelled_at_every_await(first: Verb, compose: Compose) -> None:
    """S1.09 (rules 2, 7): met once or not at all; the same where the host dies as it is met."""
    cases = 0
    for one, two, names in slices(first):
        make = partial(compose, one, two)
        for number in range(1, play(make, Plot()).calls + 1):
            about = f"{names}, behind call {number}"
            played = play(make, Plot(acts_at=number, act=cancel))
            row = played.snapshots["p"].row
            ends = Status.CANCELLED if row.cancel_met else Status.COMPLETED
            assert row.status is ends, (about, played.came_to())
            units = {
                (each.epoch, each.seq)
                for each in played.checkpoints()
                if each.form is Form.ERROR and b"ProcessCancelledError" in each.payload
            }
            assert len(units) == row.cancel_met, about
            undone = {name for name in played.effects if name.startswith("undo of")}
            if not row.cancel_met:
                assert not undone, about
            cases += 1
            if compose is side_by_side and number % 3:
                continue  # what is still going on beside it is not the same
            again = play(make, Plot(acts_at=number, act=cancel, dies=meets))
            assert again.died == row.cancel_met, about
            assert again.status() is row.status, (about, again.came_to())
            if compose is in_turn:
                assert again.came_to() == played.came_to(), about
                assert recorded(again) == recorded(played), about
            cases += 1
    print(f"{cases} cancelled")


# --- the verbs from outside -------------------------------------------------------------------


async def terminate(client: ProcessClient) -> None:
    await client.get("p").terminate("enough")


async def suspend(client: ProcessClient) -> None:
    await client.get("p").suspend()


async def resume(client: ProcessClient) -> None:
    await client.get("p").resume()


async def retry(client: ProcessClient) -> None:
    await client.get("p").retry()


async def send_event(client: ProcessClient) -> None:
    await client.raise_event("p", "go", "z")


OUTSIDE = (cancel, terminate, suspend, resume, retry, send_event)


Request = Callable[[ProcessClient], Awaitable[None]]


async def tolerant(request: Request, client: ProcessClient) -> None:
    with suppress(ProcessError):
        await request(client)


async def both(first: Request, second: Request, together: bool, client: ProcessClient) -> None:
    """Ask both, and ten seconds later let go on what is suspended."""
    if together:
        await asyncio.gather(tolerant(first, client), tolerant(second, client))
    else:
        await tolerant(first, client)
        await asyncio.sleep(0.3)
        await tolerant(second, client)
    await asyncio.sleep(10)
    await tolerant(resume, client)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("first", OUTSIDE)
def test_two_requests_at_every_await(first: Request, together: bool) -> None:
    """S1.09, S2.09, S2.10: two requests, at once or in turn: one legal end, each step once."""
    ends: Counter[Status] = Counter()

    def make(stage: Stage) -> Scenario:
        async def process(proc: Process) -> str:
            await proc.do("a", stage.act, "a", 0.5, undo=partial(_undo, stage, "a"))
            await asyncio.gather(proc.event("go", str), proc.call("child", small, "x"))
            await proc.do("b", stage.act, "b", 0.5)
            return "done"

        return Scenario([process, small], [("go", "x", 2.0)])

    for second in OUTSIDE:
        act = partial(both, first, second, together)
        for number in range(1, play(make, Plot()).calls + 1):
            about = f"{first.__name__}, {second.__name__}, behind call {number}"
            played = play(make, Plot(acts_at=number, act=act))
            row = played.snapshots["p"].row
            ends[row.status] += 1
            asked = {first.__name__, second.__name__}
            legal = {Status.COMPLETED}
            if "cancel" in asked:
                legal.add(Status.CANCELLED)
            if "terminate" in asked:
                legal.add(Status.TERMINATED)
            assert row.status in legal, (about, played.came_to())
            assert row.owner is None, about
            assert max(played.effects.values(), default=0) <= 1, (about, played.effects)
    print(dict(ends))
