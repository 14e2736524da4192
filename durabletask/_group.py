"""Group commit: whatever has gathered goes out as one batch.

Flush when idle, no timer: a lone item costs one flush, a thousand concurrent
ones cost the same one. One batch is on its way at a time; what comes in
meanwhile is the next. Knows nothing of what the items mean.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, cast
from weakref import WeakKeyDictionary

T = TypeVar("T")
R = TypeVar("R")


class GroupCommit(Generic[T, R]):
    """Gathers items and hands them to `flush` in batches, one batch at a time."""

    def __init__(
        self,
        flush: Callable[[list[T]], Awaitable[Sequence[R]]],
        items_max: int,
        before_take: Callable[[], None] | None = None,
    ) -> None:
        self._flush = flush
        self._before_take = before_take
        self._items_max = items_max
        self._loop = asyncio.get_running_loop()
        self._items: list[T] = []
        self._answers: list[asyncio.Future[R]] = []
        self._in_flight: list[asyncio.Future[R]] = []
        self._aside: set[asyncio.Future[R]] = set()
        # By a cancelled future: the one that took its place, or the outcome that came meanwhile.
        self._followers: dict[asyncio.Future[R], asyncio.Future[R]] = {}
        self._late: WeakKeyDictionary[asyncio.Future[R], _Outcome[R]] = WeakKeyDictionary()
        self._wake: asyncio.Future[None] | None = None
        self._broken: BaseException | None = None
        self.task = self._loop.create_task(self._run(), name="durabletask group commit")

    def submit(self, item: T) -> "asyncio.Future[R]":
        """Add an item to the next batch and return the future of its answer.

        Cancelling the future does not take the item back; `follow` gives a
        new future for it.
        """
        # Not by `create_future`, which is slower; every step makes one.
        answer: asyncio.Future[R] = asyncio.Future(loop=self._loop)
        if self._broken is not None:
            _fail(answer, self._broken)
            return answer
        self._items.append(item)
        self._answers.append(answer)
        if self._wake is not None:
            self.nudge()
        return answer

    def nudge(self) -> None:
        """Make a batch leave even if nothing was submitted; `before_take` may add to it."""
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    def follow(self, answer: "asyncio.Future[R]") -> "asyncio.Future[R]":
        """Return a new future for an item whose first one was cancelled."""
        follower: asyncio.Future[R] = self._loop.create_future()
        late = self._late.pop(answer, None)
        if late is not None:
            late.settle(follower)
        elif self._broken is not None:
            _fail(follower, self._broken)
        else:
            self._followers[answer] = follower
        return follower

    def take_back(self, place: int) -> "asyncio.Future[R]":
        """Take an item out of the batch on its way, for its flush to say; return its answer.

        What the flush then answers in its place goes to nobody. Whoever takes
        an item back gives it to `put_first` again.

        Args:
            place: Where it stands in the batch as the flush got it, from 0.
        """
        answer = self._in_flight[place]
        self._in_flight[place] = self._loop.create_future()
        self._aside.add(answer)
        return answer

    def put_first(self, items: "Sequence[T]", answers: "Sequence[asyncio.Future[R]]") -> None:
        """Give items that were taken back to the next batch, before all that wait for it."""
        if self._broken is not None:
            return
        self._aside.difference_update(answers)
        self._items[:0] = items
        self._answers[:0] = answers
        self.nudge()

    async def wait_idle(self) -> None:
        """Wait until everything submitted so far has its answer."""
        while self._broken is None:
            waiting = (*self._answers, *self._in_flight, *self._aside)
            pending = [answer for answer in waiting if not answer.done()]
            if not pending:
                return
            await asyncio.wait(pending)

    async def close(self, error: BaseException) -> None:
        """Send nothing any more; whoever still waits, and every later item, meets `error`."""
        self.abandon(error)
        self.task.cancel()
        await asyncio.wait([self.task])

    def abandon(self, error: BaseException) -> None:
        """Send nothing from now on; everybody meets `error`."""
        if self._broken is None:
            self._broken = error
        for answer in (*self._in_flight, *self._answers, *self._aside):
            self._settle(answer, _Outcome(None, self._broken))
        self._items, self._answers, self._in_flight, self._aside = [], [], [], set()

    async def _run(self) -> None:
        # A cancelled loop (asyncio.run tearing down) must never flush again: what is submitted
        # from now on comes from code that is being cancelled by nobody we know.
        try:
            while True:
                if not self._items:
                    self._wake = self._loop.create_future()
                    await self._wake
                if self._before_take is not None:
                    self._before_take()
                    if not self._items:
                        continue
                items, answers = self._take()
                self._in_flight = answers
                try:
                    outcomes = await self._flush(items)
                except Exception as error:  # noqa: BLE001  (handed to every waiter, none is lost)
                    for answer in answers:
                        self._settle(answer, _Outcome(None, error))
                else:
                    for answer, outcome in zip(answers, outcomes, strict=True):
                        try:
                            answer.set_result(outcome)
                        except asyncio.InvalidStateError:  # its waiter was cancelled
                            self._settle(answer, _Outcome(outcome, None))
                self._in_flight = []
                del items, answers  # they would stay until the next batch, which may be far
        except asyncio.CancelledError:
            self.abandon(asyncio.CancelledError("the host's loop is shutting down"))
            raise

    def _settle(self, answer: "asyncio.Future[R]", outcome: "_Outcome[R]") -> None:
        """Give an outcome to whoever waits for it now; keep it for one who has yet to ask."""
        while answer.cancelled() and answer in self._followers:
            answer = self._followers.pop(answer)
        if answer.done():
            self._late[answer] = outcome
        else:
            outcome.settle(answer)

    def _take(self) -> "tuple[list[T], list[asyncio.Future[R]]]":
        size = self._items_max
        if len(self._items) <= size:
            items, answers = self._items, self._answers
            self._items, self._answers = [], []
        else:
            items, answers = self._items[:size], self._answers[:size]
            del self._items[:size], self._answers[:size]
        return items, answers


class _Outcome(Generic[R]):
    """What became of an item."""

    __slots__ = ("_error", "_value")

    def __init__(self, value: R | None, error: BaseException | None) -> None:
        self._value = value
        self._error = error

    def settle(self, answer: "asyncio.Future[R]") -> None:
        if self._error is not None:
            _fail(answer, self._error)
        else:
            answer.set_result(cast("R", self._value))


def _fail(answer: "asyncio.Future[R]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
        # Not every waiter is still there, and that is no news to report at exit.
        answer.exception()
