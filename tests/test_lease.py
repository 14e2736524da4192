"""The lease: renewed in time, trusted for less than it lasts, and lost for good."""

import asyncio
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from durabletask import MemoryStorage
from durabletask._lease import Trust, keep_renewed
from durabletask.errors import (
    LeaseLostError,
    StorageError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import Lease
from durabletask.testing import VirtualClock, run_virtual

TTL_S = 30.0
START = datetime(2026, 1, 1, tzinfo=UTC)


def lease_at(now_at: datetime, ttl_s: float | None = TTL_S) -> Lease:
    return Lease("host", "label", ttl_s, now_at)


class Renewals(MemoryStorage):
    """A storage whose `renew` fails as told."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, lease_ttl_s=TTL_S)
        self.clock = clock
        self.error: Exception | None = None
        self.hangs = False
        self.at: list[float] = []

    async def renew(self, lease: Lease) -> Lease:
        self.at.append(self.clock.monotonic_s())
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return await super().renew(lease)


async def begun(clock: VirtualClock) -> tuple[Renewals, Trust, list[Exception], asyncio.Task[None]]:
    """Open a lease and keep it renewed."""
    storage, broken = Renewals(clock), list[Exception]()
    trust = Trust(clock)
    lease = await storage.open_lease("host", "label")
    trust.take(lease, clock.monotonic_s())
    task = asyncio.create_task(keep_renewed(storage, lease, trust, clock, broken.append))
    return storage, trust, broken, task


def test_trust_ends_before_the_lease_does() -> None:
    """F016, F080: from 0.8 of its time on, counted from the question, nothing may begin."""

    async def main(clock: VirtualClock) -> None:
        trust = Trust(clock)
        asked_s = clock.monotonic_s()
        await asyncio.sleep(5)  # the answer took five seconds
        trust.take(lease_at(clock.now()), asked_s)
        await asyncio.sleep(TTL_S * 0.8 - 5 - 0.01)
        assert trust.holds
        await asyncio.sleep(0.02)
        assert not trust.holds
        trust.close()

    run_virtual(main)


def test_an_answer_that_took_too_long_gives_no_trust() -> None:
    """F016: a renewal that arrives after its own time is over restores nothing."""

    async def main(clock: VirtualClock) -> None:
        trust = Trust(clock)
        asked_s = clock.monotonic_s()
        await asyncio.sleep(TTL_S)
        trust.take(lease_at(clock.now()), asked_s)
        assert not trust.holds
        trust.take(lease_at(clock.now()), clock.monotonic_s())
        assert trust.holds
        trust.close()

    run_virtual(main)


def test_a_lease_without_end_is_trusted_for_ever() -> None:
    """Storage that sees a host die: no renewals, no withdrawal of trust."""

    async def main(clock: VirtualClock) -> None:
        trust = Trust(clock)
        trust.take(lease_at(clock.now(), None), clock.monotonic_s())
        await keep_renewed(
            MemoryStorage(clock), lease_at(START, None), trust, clock, lambda _: None
        )
        await asyncio.sleep(10**6)
        assert trust.holds

    run_virtual(main)


def test_it_is_renewed_every_third_of_its_time() -> None:
    """S3.02: trust holds without a gap for as long as renewals are answered."""

    async def main(clock: VirtualClock) -> None:
        storage, trust, broken, task = await begun(clock)
        for _ in range(300):
            await asyncio.sleep(1)
            assert trust.holds
        assert len(storage.at) == 30
        assert broken == []
        task.cancel()
        trust.close()

    run_virtual(main)


@pytest.mark.parametrize("error", [StorageUnavailableError("down"), StorageUnknownError("lost")])
def test_an_outage_withdraws_trust_and_its_end_gives_it_back(error: StorageError) -> None:
    """F009, F016: renewals that fail: trust ends in time; the next answer restores it."""

    async def main(clock: VirtualClock) -> None:
        storage, trust, broken, task = await begun(clock)
        storage.error = error
        await asyncio.sleep(TTL_S * 0.8 + 0.1)
        assert not trust.holds
        waiting = trust.regained()
        storage.error = None
        await asyncio.wait_for(waiting, TTL_S)
        assert trust.holds
        assert broken == []
        task.cancel()
        trust.close()

    run_virtual(main)


def test_a_renewal_that_hangs_withdraws_trust() -> None:
    """F016: no answer at all: trust ends by its own timer, whoever waits for the storage."""

    async def main(clock: VirtualClock) -> None:
        storage, trust, _, task = await begun(clock)
        storage.hangs = True
        await asyncio.sleep(TTL_S)
        assert not trust.holds
        task.cancel()
        trust.close()

    run_virtual(main)


@pytest.mark.parametrize(
    "error", [LeaseLostError("fenced"), StorageFailedError("poisoned"), OSError("odd")]
)
def test_what_ends_the_lease_is_told_once(error: Exception) -> None:
    """F009, F016: a lost lease, a failed storage or a backend's bug ends the renewals, loudly."""

    async def main(clock: VirtualClock) -> None:
        storage, trust, broken, task = await begun(clock)
        storage.error = error
        await asyncio.sleep(200)
        assert len(broken) == 1
        assert isinstance(broken[0], StorageError)
        assert task.done()
        assert task.exception() is None
        trust.close()

    run_virtual(main)


def test_the_storages_time_is_a_lower_bound() -> None:
    """F083, G7: whatever the host's wall clock says, `now` is never ahead of the storage's."""

    async def main(clock: VirtualClock) -> None:
        trust = Trust(clock)
        storage_at = datetime(2030, 5, 5, tzinfo=UTC)
        await asyncio.sleep(3)  # the storage read its clock three seconds ago
        trust.take(Lease("host", "label", None, storage_at), 0.0)
        assert trust.now() <= storage_at + timedelta(seconds=3)
        clock.shift(timedelta(days=100))
        await asyncio.sleep(10)
        assert trust.now() == storage_at + timedelta(seconds=10)
        trust.observe(storage_at + timedelta(seconds=60))
        assert trust.now() == storage_at + timedelta(seconds=60)
        trust.close()

    run_virtual(main)


async def test_the_time_of_the_storage_is_never_overstated() -> None:
    """G8: by whatever fractions of a microsecond time passes, no delay can be over early."""
    random = Random(5)
    for _ in range(300):
        clock = VirtualClock()
        clock.advance(random.random())
        trust = Trust(clock)
        trust.observe(clock.now())
        for _ in range(10):
            clock.advance(random.random() / random.choice((1, 1e3, 1e6)))
            assert trust.now() <= clock.now()
            assert clock.now() - trust.now() < timedelta(microseconds=3)


async def test_the_time_of_the_storage_does_not_go_back() -> None:
    """G8: an answer that was long on its way bounds less well; what was due stays due."""
    clock = VirtualClock()
    trust = Trust(clock)
    trust.observe(START)
    clock.advance(10)
    before = trust.now()
    trust.observe(START + timedelta(seconds=8))  # answered two seconds ago
    assert trust.now() == before
    clock.advance(1.5)
    assert trust.now() == before
    clock.advance(1.5)
    assert trust.now() == START + timedelta(seconds=11)
    trust.observe(START - timedelta(days=1))  # set back by somebody
    assert trust.now() == START - timedelta(days=1)


def test_a_renewal_that_failed_is_asked_for_again_soon() -> None:
    """F009: one failure costs no trust; a long outage is asked about ever more rarely."""

    async def main(clock: VirtualClock) -> None:
        storage, trust, broken, task = await begun(clock)
        await asyncio.sleep(TTL_S / 3 + 0.1)
        storage.error = StorageUnavailableError("down")
        await asyncio.sleep(TTL_S / 3)
        storage.error = None
        await asyncio.sleep(TTL_S / 6)
        assert storage.at == [TTL_S / 3, TTL_S * 2 / 3, TTL_S * 2 / 3 + 0.5]
        assert trust.holds
        storage.error = StorageUnavailableError("down")
        asked = len(storage.at)
        await asyncio.sleep(TTL_S * 10)
        assert 25 <= len(storage.at) - asked <= 40
        assert not trust.holds
        assert broken == []
        task.cancel()
        trust.close()

    run_virtual(main)
