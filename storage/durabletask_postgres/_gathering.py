"""Calls that come while one is on its way go together in the next.

A thousand callers at once cost a few round trips instead of a thousand, and
one connection instead of all, on which the host's own commits would wait
behind them. A lone call goes at once. Refuses to know what the calls ask.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from durabletask.errors import StorageError
from durabletask_postgres._trouble import UnexpectedError

T = TypeVar("T")
R = TypeVar("R")

Call = tuple[Sequence[T], "asyncio.Future[Sequence[R]]"]


class Gathering(Generic[T, R]):
    """Gathers the items of many calls into few, one at a time and in order."""

    def __init__(
        self,
        flush: Callable[[list[T]], Awaitable[Sequence[R]]],
        weight_max: int,
        weigh: Callable[[T], int] = lambda item: 1,
    ) -> None:
        """Ask nothing yet.

        Args:
            flush: Answers items, one answer each, in the same order.
            weight_max: In one flush; a call with more goes alone.
            weigh: Of an item; without it each weighs 1.
        """
        self._flush = flush
        self._weight_max = weight_max
        self._weigh = weigh
        self._waiting: deque[Call[T, R]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[T]) -> Sequence[R]:
        """Return the answers to some items.

        Raises:
            StorageError: What the flush raised; it may have been for others' items too.

        Cancellation: the items may be asked all the same.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            return await self._flush(list(items))  # which refuses another loop than its own
        answer: asyncio.Future[Sequence[R]] = loop.create_future()
        self._waiting.append((items, answer))
        if self._task is None:
            self._task = loop.create_task(self._run(), name="durabletask gathering")
        return await answer

    async def close(self) -> None:
        """Wait until everything asked so far is answered. Safe to repeat."""
        if self._task is not None and self._loop is asyncio.get_running_loop():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        calls: list[Call[T, R]] = []
        try:
            while self._waiting:
                calls = self._take()
                try:
                    await self._answer(calls)
                except UnexpectedError:
                    # It may be the fault of one of them, of which the others know nothing.
                    for call in calls:
                        await self._answer_alone(call)
                except StorageError as error:
                    _fail(calls, error)
        except BaseException as error:
            _fail([*calls, *self._waiting], error)
            self._waiting.clear()
            raise
        finally:
            self._task = None

    def _take(self) -> "list[Call[T, R]]":
        calls = [self._waiting.popleft()]
        room = self._weight_max - self._weight(calls[0])
        while self._waiting and (weight := self._weight(self._waiting[0])) <= room:
            calls.append(self._waiting.popleft())
            room -= weight
        return calls

    def _weight(self, call: "Call[T, R]") -> int:
        return sum(self._weigh(item) for item in call[0])

    async def _answer(self, calls: "list[Call[T, R]]") -> None:
        answers = await self._flush([item for items, _ in calls for item in items])
        start = 0
        for items, answer in calls:
            if not answer.done():  # its caller was cancelled
                answer.set_result(answers[start : start + len(items)])
            start += len(items)

    async def _answer_alone(self, call: "Call[T, R]") -> None:
        try:
            await self._answer([call])
        except StorageError as error:
            _fail([call], error)


def _fail(calls: "list[Call[T, R]]", error: BaseException) -> None:
    for _, answer in calls:
        if not answer.done():
            answer.set_exception(error)
