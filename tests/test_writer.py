"""Group commit: one batch on its way, whatever gathers is the next, nobody is forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from durabletask import MemoryStorage
from durabletask._group import GroupCommit
from durabletask._repeat import repeat_unknown
from durabletask._writer import Writer
from durabletask.errors import (
    LeaseLostError,
    ProcessBusyError,
    StorageAccessError,
    StorageError,
    StorageFailedError,
    StorageRewoundError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import (
    DONE,
    Checkpoint,
    Form,
    Kind,
    Lease,
    NewProcess,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock, run_virtual

LEASE = Lease("host", "label", None, datetime(2026, 1, 1, tzinfo=UTC))


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


# --- Writer -----------------------------------------------------------------------------------


class Faulty(MemoryStorage):
    """Raises what it is told, before or after it has done its work."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, lease_ttl_s=None)
        self.clock = clock
        self.before: list[Exception | None] = []
        self.after: list[Exception | None] = []
        self.batches: list[Sequence[Unit]] = []

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        self.batches.append(list(units))
        if self.before and (error := self.before.pop(0)) is not None:
            raise error
        answer = await super().commit(lease, units)
        if self.after and (error := self.after.pop(0)) is not None:
            raise error
        return answer


async def prepared(storage: MemoryStorage, *ids: str) -> Lease:
    lease = await storage.open_lease("host", "label")
    new = [
        NewProcess(process_id=each, name="f", input=b"{}", input_digest="d", creation_id="c")
        for each in ids or ("p",)
    ]
    await storage.create(new, lease)
    return lease


def unit(seq: int, key: str = "", payload: bytes = b"1", process_id: str = "p") -> Unit:
    checkpoint = Checkpoint(Kind.DO, key or f"k{seq}", -1, Form.VALUE, payload)
    return Unit(process_id=process_id, incarnation=1, epoch=1, seq=seq, checkpoints=(checkpoint,))


def writer_of(
    storage: MemoryStorage, lease: Lease, broken: list[Exception], **limits: int
) -> Writer:
    options: dict[str, Any] = {"units_max": 1000, "bytes_max": 10**9, **limits}
    return Writer(storage, lease, on_broken=broken.append, **options)


def test_an_outage_is_waited_out_with_the_same_batch() -> None:
    """F003, F009: unavailable and unknown: the same batch again, in order, each record once."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage)
        storage.before = [StorageUnavailableError("down")] * 3
        storage.after = [StorageUnknownError("lost")] * 3
        broken: list[Exception] = []
        writer = writer_of(storage, lease, broken)
        answers = [writer.submit(unit(n)) for n in range(1, 6)]
        assert [await each for each in answers] == [DONE] * 5
        assert len(storage.batches) == 7
        assert all(batch == storage.batches[0] for batch in storage.batches)
        found = storage._processes["p"].snapshot(history=True).checkpoints
        assert [each.key for each in found] == [f"k{n}" for n in range(1, 6)]
        assert broken == []
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


@pytest.mark.parametrize(
    "error",
    [
        LeaseLostError("fenced"),
        StorageRewoundError("back in time"),
        StorageFailedError("fsync"),
        OSError("odd"),
        KeyError("odd"),
    ],
)
def test_what_cannot_be_repeated_breaks_the_writer_loudly(error: Exception) -> None:
    """F005, F009: a lost lease, a failed storage, a backend's bug: told once, to all waiters."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage)
        storage.before = [error]
        broken: list[Exception] = []
        writer = writer_of(storage, lease, broken)
        answers = [writer.submit(unit(n)) for n in range(1, 4)]
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert all(isinstance(each, Exception) for each in results)
        assert len(broken) == 1
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


def test_a_batch_is_cut_by_bytes() -> None:
    """S1.15 (rule 14): no commit above bytes_max, but a larger unit goes alone; order is kept."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage)
        writer = writer_of(storage, lease, [], bytes_max=100)
        sizes = [40, 40, 40, 500, 10, 10, 90, 1]
        answers = [
            writer.submit(unit(n, payload=b'"' + b"x" * (size - 2) + b'"' if size > 2 else b"1"))
            for n, size in enumerate(sizes, 1)
        ]
        await asyncio.gather(*answers)
        cut = [[each.seq for each in batch] for batch in storage.batches]
        assert [seq for batch in cut for seq in batch] == list(range(1, 9))
        for batch in storage.batches:
            size = sum(len(c.payload) for each in batch for c in each.checkpoints)
            assert size <= 100 or len(batch) == 1
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


def test_back_off_is_bounded() -> None:
    """F140: an outage of ten minutes costs a bounded number of attempts."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage)
        storage.before = [StorageUnavailableError("down")] * 100_000
        writer = writer_of(storage, lease, [])
        answer = writer.submit(unit(1))
        await asyncio.sleep(600)
        assert 100 < len(storage.batches) < 1000
        storage.before = []
        assert await answer == DONE
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


def keys(storage: MemoryStorage, process_id: str = "p") -> list[str]:
    found = storage._processes[process_id].snapshot(history=True).checkpoints
    return [each.key for each in found]


def test_a_busy_process_waits_in_order_and_alone() -> None:
    """G6 G13: what is busy goes again later, in order, however it was submitted; others go on."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage, "p", "q")
        writer = writer_of(storage, lease, [])
        with storage.hold("p"):
            answers = [writer.submit(unit(n)) for n in range(1, 4)]
            assert await writer.submit(unit(1, process_id="q")) == DONE
            answers.append(writer.submit(unit(4)))
            for n in range(2, 60):
                assert await writer.submit(unit(n, process_id="q")) == DONE
                answers.append(writer.submit(unit(n + 3)))
                await asyncio.sleep(0.05)
            assert not any(each.done() for each in answers)
            assert keys(storage) == []
        assert await asyncio.gather(*answers) == [DONE] * len(answers)
        assert keys(storage) == [f"k{n}" for n in range(1, len(answers) + 1)]
        assert await writer.submit(unit(100)) == DONE
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


@pytest.mark.parametrize("limits", [{}, {"units_max": 3}, {"bytes_max": 4}])
def test_a_busy_process_that_comes_and_goes_keeps_its_order(limits: dict[str, int]) -> None:
    """G6: busy off and on, in small batches and cut ones, nothing overtakes and nothing is lost."""

    async def main(clock: VirtualClock) -> None:
        random = Random(7)
        storage = Faulty(clock)
        ids = ("p", "q", "r")
        lease = await prepared(storage, *ids)
        broken: list[Exception] = []
        writer = writer_of(storage, lease, broken, **limits)
        answers = []

        async def disturb(process_id: str) -> None:
            for _ in range(30):
                with storage.hold(process_id):
                    await asyncio.sleep(random.random() / 10)
                await asyncio.sleep(random.random() / 10)

        disturbing = [asyncio.create_task(disturb(each)) for each in ids]
        for n in range(1, 201):
            answers += [writer.submit(unit(n, process_id=each)) for each in ids]
            if random.random() < 0.5:
                await asyncio.sleep(random.random() / 20)
        await asyncio.gather(*disturbing)
        assert await asyncio.gather(*answers) == [DONE] * 600
        for each in ids:
            assert keys(storage, each) == [f"k{n}" for n in range(1, 201)]
        assert broken == []
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


def test_a_busy_process_costs_little_and_is_named_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F140: ten minutes busy: about one try a second, one line a minute, which names it."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage, "p", "q")
        writer = writer_of(storage, lease, [])
        with storage.hold("p"), storage.hold("q"):
            answer = writer.submit(unit(1))
            other = writer.submit(unit(1, process_id="q"))
            await asyncio.sleep(0.5)
            assert caplog.messages == []
            await asyncio.sleep(600)
        assert 600 < sum(len(batch) for batch in storage.batches) < 1300
        told = [each for each in caplog.messages if "cannot be written" in each]
        assert 9 <= len(told) <= 11
        assert all("'p', 'q'" in each for each in told[1:])
        assert [await answer, await other] == [DONE, DONE]
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


@pytest.mark.parametrize("ends", ["close", "abandon", "lease"])
def test_who_waits_for_a_busy_process_meets_the_end(ends: str) -> None:
    """G5 F009: what is held back does not outlive the writer, cancelled and followed or not."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage, "p")
        broken: list[Exception] = []
        writer = writer_of(storage, lease, broken)
        with storage.hold("p"):
            answer, cancelled = writer.submit(unit(1)), writer.submit(unit(2))
            await asyncio.sleep(1)
            cancelled.cancel()
            follower = writer.follow(cancelled)
            if ends == "close":
                await writer.close(StorageFailedError("over"))
            elif ends == "abandon":
                writer.abandon(StorageFailedError("over"))
            else:
                storage.fence("host")
                await asyncio.sleep(2)
                assert isinstance(broken[0], LeaseLostError)
                await writer.close(StorageFailedError("over"))
            for each in (answer, follower):
                with pytest.raises(StorageError, match=r"over|lost"):
                    await each
        await asyncio.sleep(5)
        assert keys(storage) == []

    run_virtual(main)


def test_a_cancelled_wait_for_a_busy_process_can_be_followed() -> None:
    """F107: cancelling the waiter takes nothing back, busy or not."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage, "p")
        writer = writer_of(storage, lease, [])
        with storage.hold("p"):
            answer = writer.submit(unit(1))
            idle = asyncio.create_task(writer.wait_idle())
            await asyncio.sleep(1)
            answer.cancel()
            follower = writer.follow(answer)
            again = writer.submit(unit(2))
            await asyncio.sleep(1)
            assert not idle.done()
        assert await follower == DONE
        assert await again == DONE
        await idle
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


class Overtaking(Faulty):
    """Refuses the first unit of each batch as busy, and writes the others."""

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        return [UnitOutcome(Refusal.BUSY), *await super().commit(lease, units[1:])]


def test_a_storage_that_lets_units_overtake_is_failed() -> None:
    """G6 G15: a repeat of the busy unit would count as written: fail stop, never fail wrong."""

    async def main(clock: VirtualClock) -> None:
        storage = Overtaking(clock)
        lease = await prepared(storage, "p")
        broken: list[Exception] = []
        writer = writer_of(storage, lease, broken)
        answers = [writer.submit(unit(n)) for n in range(1, 4)]
        await asyncio.wait(answers[1:])
        assert isinstance(broken[0], StorageFailedError)
        assert "'p'" in str(broken[0])
        await writer.close(broken[0])
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(each) for each in results] == [StorageFailedError] * 3

    run_virtual(main)


def test_a_password_that_was_changed_is_waited_out_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F009: what a person has to put right is told as an error; the batch goes when it is."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage)
        storage.before = [StorageAccessError("password refused")] * 10
        writer = writer_of(storage, lease, [])
        assert await writer.submit(unit(1)) == DONE
        told = [each for each in caplog.records if "password refused" in each.getMessage()]
        assert [each.levelname for each in told] == ["ERROR"] * 10
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


class Standing:
    """A run whose status changes `changes` times."""

    def __init__(self, changes: int) -> None:
        self.changes = changes
        self.asked = 0

    def standing(self) -> Unit | None:
        self.asked += 1
        return unit(100 + self.asked) if self.asked <= self.changes else None


def test_a_status_is_asked_for_when_the_batch_leaves() -> None:
    """Rule 10: `mark` makes a batch leave; however often it is called, one question a batch."""

    async def main(clock: VirtualClock) -> None:
        storage = Faulty(clock)
        lease = await prepared(storage)
        writer = writer_of(storage, lease, [])
        run = Standing(1)
        for _ in range(50):
            writer.mark(run)
        await writer.wait_idle()
        assert sum(len(batch) for batch in storage.batches) == 1
        unchanged = Standing(0)
        writer.mark(unchanged)
        await writer.wait_idle()
        assert unchanged.asked >= 1
        assert sum(len(batch) for batch in storage.batches) == 1
        await writer.close(StorageFailedError("over"))

    run_virtual(main)


def test_repeat_unknown_gives_up_in_the_end() -> None:
    """F096: a call from outside is repeated for some seconds, then the caller learns: unknown."""

    async def main(clock: VirtualClock) -> None:
        calls: list[float] = []

        async def lost() -> None:
            calls.append(clock.monotonic_s())
            raise StorageUnknownError("lost")

        with pytest.raises(StorageUnknownError):
            await repeat_unknown(lost)
        assert 5 <= len(calls) <= 20
        assert 1 < clock.monotonic_s() < 30

        async def refused() -> None:
            calls.append(0)
            raise StorageUnavailableError("down")

        calls.clear()
        with pytest.raises(StorageUnavailableError):
            await repeat_unknown(refused)
        assert len(calls) == 1

    run_virtual(main)


def test_a_busy_process_is_asked_again_for_four_seconds() -> None:
    """G13: a call from outside outlasts a short transaction of others; then it is refused."""

    async def main(clock: VirtualClock) -> None:
        free_at_s = 3.0

        async def busy() -> str:
            if clock.monotonic_s() < free_at_s:
                raise ProcessBusyError("p")
            return "written"

        assert await repeat_unknown(busy) == "written"
        free_at_s, begun_s = float("inf"), clock.monotonic_s()
        with pytest.raises(ProcessBusyError):
            await repeat_unknown(busy)
        assert 3 < clock.monotonic_s() - begun_s < 6

        lost: list[Exception] = [StorageUnknownError("lost")]

        async def first_lost() -> None:
            raise lost.pop() if lost else ProcessBusyError("p")

        # "Nothing was written" would be said of the repeat, not of what came before it.
        with pytest.raises(StorageUnknownError):
            await repeat_unknown(first_lost)

    run_virtual(main)
