"""Calls that go together: their order, their answers, and whose fault is whose."""

import asyncio

import pytest

from durabletask.errors import StorageUnavailableError
from durabletask_postgres._gathering import Gathering
from durabletask_postgres._trouble import UnexpectedError


class Server:
    """Answers items with their doubles, when it is let; notes what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.bad: dict[int, Exception] = {}

    async def flush(self, items: list[int]) -> list[int]:
        """Answer."""
        self.batches.append(items)
        await self.gate.wait()
        for item in items:
            if item in self.bad:
                raise self.bad[item]
        return [2 * item for item in items]


async def test_what_comes_meanwhile_goes_together_and_in_order() -> None:
    """A lone call goes at once; all that come while it is on its way are one call, in order."""
    server = Server()
    gathering = Gathering(server.flush, 100)
    calls = [asyncio.create_task(gathering.ask([1]))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls += [asyncio.create_task(gathering.ask(items)) for items in ([2, 3], [4], [])]
    await asyncio.sleep(0)
    server.gate.set()
    assert await asyncio.gather(*calls) == [[2], [4, 6], [8], []]
    assert server.batches == [[1], [2, 3, 4]]


async def test_a_round_trip_has_a_limit() -> None:
    """Calls are put together up to the limit and never torn; a larger one goes alone."""
    server = Server()
    server.gate.set()
    gathering = Gathering(server.flush, 3)
    asked = ([1, 2], [3], [4], [5, 6, 7, 8], [9])
    answers = await asyncio.gather(*(gathering.ask(items) for items in asked))
    assert answers == [[2 * item for item in items] for items in asked]
    assert server.batches == [[1, 2, 3], [4], [5, 6, 7, 8], [9]]


async def test_what_is_heavy_fills_a_round_trip_sooner() -> None:
    """The limit is one of weight: large payloads are not gathered by the thousand."""
    server = Server()
    server.gate.set()
    gathering = Gathering(server.flush, 10, lambda item: item)
    answers = await asyncio.gather(*(gathering.ask([item]) for item in (4, 5, 2, 11, 1)))
    assert answers == [[8], [10], [4], [22], [2]]
    assert server.batches == [[4, 5], [2], [11], [1]]


async def test_a_cancelled_caller_takes_nothing_along() -> None:
    """Who is cancelled hears nothing; the others' answers are theirs."""
    server = Server()
    gathering = Gathering(server.flush, 100)
    calls = [asyncio.create_task(gathering.ask([item])) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls[0].cancel()
    server.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [[4], [6]]


async def test_an_outage_is_everybodys() -> None:
    """An error of the storage reaches each that waits for that round trip, and no later one."""
    server = Server()
    server.bad[2] = StorageUnavailableError("down")
    server.gate.set()
    gathering = Gathering(server.flush, 100)
    answers = await asyncio.gather(
        *(gathering.ask([item]) for item in (1, 2)), return_exceptions=True
    )
    assert all(isinstance(answer, StorageUnavailableError) for answer in answers)
    assert await gathering.ask([3]) == [6]


async def test_an_unexpected_error_is_one_callers() -> None:
    """What the database chokes on fails the call that brought it; its neighbours go again."""
    server = Server()
    server.bad[2] = UnexpectedError("what is this?", "XX000")
    server.gate.set()
    gathering = Gathering(server.flush, 100)
    answers = await asyncio.gather(
        *(gathering.ask([item]) for item in (1, 2, 3)), return_exceptions=True
    )
    assert answers[0] == [2]
    assert isinstance(answers[1], UnexpectedError)
    assert answers[2] == [6]


async def test_nobody_is_left_waiting() -> None:
    """A fault of ours ends every call that waits with it, instead of leaving it to wait."""
    server = Server()
    server.bad[1] = ZeroDivisionError()
    gathering = Gathering(server.flush, 1)
    calls = [asyncio.create_task(gathering.ask([item])) for item in (1, 2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running = gathering._task
    assert running is not None
    server.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, ZeroDivisionError) for answer in answers)
    with pytest.raises(ZeroDivisionError):
        await running


async def test_closing_waits_for_answers() -> None:
    """Closing returns when everything asked before has its answer; without any, at once."""
    server = Server()
    gathering = Gathering(server.flush, 100)
    await gathering.close()
    call = asyncio.create_task(gathering.ask([1]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    server.gate.set()
    await gathering.close()
    assert await call == [2]


def test_another_loop_asks_for_itself() -> None:
    """On a second loop nothing is gathered: the flush itself says whether it may be used there."""
    server = Server()
    server.gate.set()
    gathering = Gathering(server.flush, 100)
    assert asyncio.run(gathering.ask([1])) == [2]
    assert asyncio.run(gathering.ask([2])) == [4]
