"""The writer and processes that somebody else holds: in order, by themselves, without haste."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from durabletask.errors import (
    LeaseLostError,
    StorageError,
    StorageFailedError,
)
from durabletask.storage import (
    DONE,
    Lease,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock, run_virtual
from tests.test_writer import Faulty, keys, prepared, unit, writer_of


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
