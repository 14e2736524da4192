"""Group commit: whatever has gathered goes to the storage as one batch.

Flush when idle, no timer: a lone step costs one commit, a thousand concurrent
ones cost the same one. One batch is on its way at a time; what comes in
meanwhile is the next. Knows nothing of what the items mean.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

from durabletask._errors import (
    LeaseLostError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask._lease import contract_broken
from durabletask._model import Lease, Unit, UnitOutcome
from durabletask._storage import ProcessStorage

_log = logging.getLogger("durabletask")

T = TypeVar("T")
R = TypeVar("R")

BACKOFF_MIN_S = 0.02
BACKOFF_MAX_S = 2.0
UNKNOWN_REPEATS_MAX = 8
"""For calls from outside: about four seconds, then the caller learns that the answer is unknown."""


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

    async def wait_idle(self) -> None:
        """Wait until everything submitted so far has its answer."""
        while (pending := [a for a in self._answers + self._in_flight if not a.done()]) and (
            self._broken is None
        ):
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
        for answer in self._in_flight + self._answers:
            self._settle(answer, _Outcome(None, self._broken))
        self._items, self._answers, self._in_flight = [], [], []

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


async def repeat_unknown(
    call: Callable[[], Awaitable[R]], repeats_max: float = UNKNOWN_REPEATS_MAX
) -> R:
    """Make a repeatable call until its answer arrives.

    Once an answer was lost, "unavailable" is no answer either: it says that
    the repeat wrote nothing, and not what the first call did.

    Raises:
        StorageUnknownError: It never arrived; the write may or may not have happened.
        StorageUnavailableError: Nothing was written.
    """
    wait_s = BACKOFF_MIN_S
    lost: StorageUnknownError | None = None
    repeats = 0
    while True:
        try:
            return await call()
        except StorageUnknownError as error:
            lost = error
        except StorageUnavailableError:
            if lost is None:
                raise
        if repeats >= repeats_max:
            raise lost
        repeats += 1
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, BACKOFF_MAX_S)


class Standing(Protocol):
    """A run that can say, at the moment of a flush, what its status has become."""

    def standing(self) -> Unit | None:
        """Return the unit that records it, or None if that is recorded already."""
        ...


class Writer:
    """All writes of a host's processes, in order per process, through one group commit.

    During an outage it repeats the same batch for as long as the lease lasts;
    user code only sees a step that takes long.
    """

    def __init__(
        self,
        storage: ProcessStorage,
        lease: Lease,
        *,
        units_max: int,
        bytes_max: int,
        on_broken: Callable[[Exception], None],
    ) -> None:
        self._storage = storage
        self._lease = lease
        self._bytes_max = bytes_max
        self._on_broken = on_broken
        self._restless: list[Standing] = []
        self._group = GroupCommit(self._flush, units_max, self._ask_standing)
        self.task = self._group.task
        self.submit = self._group.submit
        self.follow = self._group.follow
        self.close = self._group.close
        self.abandon = self._group.abandon

    def mark(self, run: Standing) -> None:
        """Have `run.standing()` asked when the next batch leaves.

        Asked then and not now, so that a wait that begins and ends within one
        batch, or a step that starts beside it, costs no record of its own.
        """
        self._restless.append(run)
        self._group.nudge()

    async def wait_idle(self) -> None:
        """Wait until everything submitted or marked so far is recorded."""
        self._ask_standing()
        await self._group.wait_idle()

    def _ask_standing(self) -> None:
        runs, self._restless = self._restless, []
        for run in runs:
            unit = run.standing()
            if unit is not None:
                self._group.submit(unit)

    async def _flush(self, units: list[Unit]) -> Sequence[UnitOutcome]:
        outcomes: list[UnitOutcome] = []
        for batch in _split(units, self._bytes_max):
            outcomes += await self._commit(batch)
        return outcomes

    async def _commit(self, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        wait_s = BACKOFF_MIN_S
        while True:
            try:
                return await self._storage.commit(self._lease, units)
            except (StorageUnavailableError, StorageUnknownError) as error:
                _log.warning("storage: %s; the same batch goes again in %.2f s", error, wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, BACKOFF_MAX_S)
            except (LeaseLostError, StorageFailedError) as error:
                self._on_broken(error)
                raise
            except Exception as error:
                failed = contract_broken(error)
                self._on_broken(failed)
                raise failed from error


def _split(units: list[Unit], bytes_max: int) -> Sequence[Sequence[Unit]]:
    """Cut a batch where its payloads exceed `bytes_max`; a larger unit goes alone."""
    total = 0
    for unit in units:
        for checkpoint in unit.checkpoints:
            total += len(checkpoint.payload)
        if unit.ending is not None:
            total += len(unit.ending.payload)
    if total <= bytes_max:
        return [units]
    sizes = [_payload_bytes(unit) for unit in units]
    batches: list[list[Unit]] = [[]]
    room = bytes_max
    for unit, size in zip(units, sizes, strict=True):
        if size > room and batches[-1]:
            batches.append([])
            room = bytes_max
        batches[-1].append(unit)
        room -= size
    return batches


def _payload_bytes(unit: Unit) -> int:
    size = 0 if unit.ending is None else len(unit.ending.payload)
    for checkpoint in unit.checkpoints:
        size += len(checkpoint.payload)
    return size
