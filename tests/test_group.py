"""Group commit: one batch on its way, whatever gathers is the next, nobody is forgotten."""

import asyncio
from collections.abc import Sequence

import pytest

from durabletask._group import GroupCommit
from durabletask.errors import StorageFailedError, StorageUnknownError


class Gate:
    """A flush that records its batches and answers when told."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def flush(self, items: list[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]


async def rounds(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_gathers_meanwhile_is_the_next_batch() -> None:
    """The heart: a lone item goes at once, a thousand beside it cost the same one commit."""
    gate = Gate()
    group = GroupCommit(gate.flush, 10_000)
    first = group.submit(0)
    await rounds()
    rest = [group.submit(n) for n in range(1, 1001)]
    await rounds()
    assert gate.batches == [[0]]
    gate.open.set()
    assert await first == 0
    assert [await answer for answer in rest] == [n * 10 for n in range(1, 1001)]
    assert [len(batch) for batch in gate.batches] == [1, 1000]
    await group.close(StorageFailedError("over"))


async def test_items_of_one_moment_are_one_batch() -> None:
    """Items submitted before the loop turns leave together."""
    gate = Gate()
    gate.open.set()
    group = GroupCommit(gate.flush, 10_000)
    answers = [group.submit(n) for n in range(50)]
    assert [await each for each in answers] == [n * 10 for n in range(50)]
    assert len(gate.batches) == 1
    await group.close(StorageFailedError("over"))


async def test_batches_are_bounded_and_in_order() -> None:
    """At most `items_max` at once, first come first served (rule 14)."""
    gate = Gate()
    gate.open.set()
    group = GroupCommit(gate.flush, 7)
    answers = [group.submit(n) for n in range(20)]
    await asyncio.gather(*answers)
    assert [n for batch in gate.batches for n in batch] == list(range(20))
    assert max(len(batch) for batch in gate.batches) == 7
    await group.close(StorageFailedError("over"))


async def test_a_cancelled_answer_can_be_followed() -> None:
    """F107: cancelling the waiter takes nothing back; `follow` gives the outcome, at any moment."""
    gate = Gate()
    group = GroupCommit(gate.flush, 10)
    waiting, on_its_way = group.submit(1), None
    await rounds()
    on_its_way = group.submit(2)
    waiting.cancel()
    on_its_way.cancel()
    first = group.follow(waiting)
    second = group.follow(on_its_way)
    second.cancel()
    third = group.follow(second)
    gate.open.set()
    assert await first == 10
    assert await third == 20
    await group.close(StorageFailedError("over"))


async def test_a_cancelled_answer_can_be_followed_after_its_outcome() -> None:
    """F107: the outcome came between the cancellation and the question: it is not lost."""
    gate = Gate()
    group = GroupCommit(gate.flush, 10)
    answer = group.submit(1)
    await rounds()
    answer.cancel()
    gate.open.set()
    await rounds()
    assert await group.follow(answer) == 10
    await group.close(StorageFailedError("over"))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_following_what_failed_gives_the_error(when: str) -> None:
    """F009, F014: a batch that failed, or a writer that closed: the error, never a LookupError."""
    gate = Gate()
    group = GroupCommit(gate.flush, 10)
    answer = group.submit(1)
    await rounds()
    answer.cancel()
    follower = group.follow(answer) if when == "before" else None
    gate.error = StorageFailedError("fsync")
    gate.open.set()
    await rounds()
    with pytest.raises(StorageFailedError, match="fsync"):
        await (follower or group.follow(answer))
    closing = group.submit(2)
    closing.cancel()
    await group.close(StorageFailedError("closed"))
    with pytest.raises(StorageFailedError, match="closed"):
        await group.follow(closing)


async def test_an_error_reaches_every_waiter_and_the_next_batch_goes() -> None:
    """A failed batch fails its own items only."""
    gate = Gate()
    gate.open.set()
    gate.error = StorageUnknownError("lost")
    group = GroupCommit(gate.flush, 10)
    answers = [group.submit(n) for n in range(3)]
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(each) for each in results] == [StorageUnknownError] * 3
    gate.error = None
    assert await group.submit(4) == 40
    await group.close(StorageFailedError("over"))


async def test_close_fails_everybody_now_and_later() -> None:
    """After `close` nothing is flushed; who waits and who comes later meets the error."""
    gate = Gate()
    group = GroupCommit(gate.flush, 10)
    on_its_way = group.submit(1)
    await rounds()
    waiting = group.submit(2)
    await group.close(StorageFailedError("closed"))
    for answer in (on_its_way, waiting, group.submit(3)):
        with pytest.raises(StorageFailedError, match="closed"):
            await answer
    assert gate.batches == [[1]]
    await group.close(StorageFailedError("again"))


async def test_wait_idle() -> None:
    """`wait_idle` returns when everything submitted before has its answer."""
    gate = Gate()
    group = GroupCommit(gate.flush, 1)
    group.submit(1)
    group.submit(2)
    idle = asyncio.create_task(group.wait_idle())
    await rounds()
    assert not idle.done()
    gate.open.set()
    await idle
    assert gate.batches == [[1], [2]]
    await group.wait_idle()
    await group.close(StorageFailedError("over"))


async def test_many_followers_are_cheap() -> None:
    """F116: cancelling 20,000 items on their way is not quadratic."""
    gate = Gate()
    group = GroupCommit(gate.flush, 100_000)
    answers = [group.submit(n) for n in range(20_000)]
    await rounds()
    for answer in answers:
        answer.cancel()
    followers = [group.follow(answer) for answer in answers]
    gate.open.set()
    assert await followers[-1] == 199_990
    await group.close(StorageFailedError("over"))
