"""Any two requests from outside on one process, together or in turn, behind each storage call."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import ProcessError
from tests.engine.moments import Plot, Scenario, Stage, cancel, play
from tests.engine.verbs import small


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
        async def undo(name: str) -> None:
            await stage.act(f"undo of {name}")

        async def process(proc: Process) -> str:
            await proc.do("a", stage.act, "a", 0.5, undo=undo)
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
