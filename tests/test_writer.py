"""The writer: what it repeats, what ends it, and in which order it writes."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from durabletask import MemoryStorage
from durabletask._repeat import repeat_unknown
from durabletask._writer import Writer
from durabletask.errors import (
    LeaseLostError,
    ProcessBusyError,
    StorageAccessError,
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
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock, run_virtual


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
