"""Conformance: what a lease promises: one writer, takeover without an operator, deaths counted."""

import pytest

from durabletask.errors import LeaseLostError, StorageBusyError
from durabletask.storage import DONE, Leave, Status
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    event,
    latest,
    needs,
    new,
    step,
    unit,
)


class LeaseConformance(ConformanceBase):
    """Opening, renewing, losing and closing leases."""

    async def test_a_lease_says_whose_it_is_and_how_long(self) -> None:
        """A lease carries identity, label, time to live and the storage's time."""
        async with self.world() as w:
            lease = await w.storage.open_lease("host-1", "web 3")
            assert (lease.host_id, lease.label, lease.now_at) == ("host-1", "web 3", w.clock.now())
            assert lease.ttl_s is None or lease.ttl_s > 0
            w.clock.advance(1)
            renewed = await w.storage.renew(lease)
            assert renewed.now_at == w.clock.now()
            assert (renewed.host_id, renewed.ttl_s) == (lease.host_id, lease.ttl_s)

    async def test_opening_again_renews_and_loses_nothing(self) -> None:
        """A repeat with the same identity is the same lease: what it held it holds."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            again = await w.host()
            assert again.host_id == lease.host_id
            assert await w.commit(again, unit(row, 1, step("a"))) == [DONE]
            assert await w.commit(lease, unit(row, 2, step("b"))) == [DONE]
            assert (await w.row("p")).deaths == 0

    @needs(hosts_at_most=1)
    async def test_a_second_host_is_told_that_the_storage_is_taken(self) -> None:
        """Where one host fits, a second identity is refused, until the first closes its lease."""
        async with self.world() as w:
            lease = await w.host("host-1")
            row = await w.held("p", lease)
            with pytest.raises(StorageBusyError):
                await w.host("host-2")
            assert await w.commit(lease, unit(row, 1, step("a"))) == [DONE]
            await w.storage.close_lease(lease)
            assert list(await w.take(await w.host("host-2"))) == ["p"]

    async def test_closing_a_lease_frees_what_it_held(self) -> None:
        """S4.13: claimable at once and without a death; the host writes no more; safe to repeat."""
        async with self.world() as w:
            lease = await w.host()
            row, _ = await w.add("p", "q", lease=lease)
            await w.done(lease, unit(row, 1, step("a")))
            await w.storage.close_lease(lease)
            await w.storage.close_lease(lease)
            with pytest.raises(LeaseLostError):
                await w.commit(lease, unit(row, 2, step("b")))
            found = await w.row("p")
            assert (found.owner, found.owner_label, found.deaths) == (None, None, 0)
            taken = await w.take(await w.host("host-2"))
            assert sorted(taken) == ["p", "q"]
            assert {each.row.deaths for each in taken.values()} == {0}
            assert await w.payloads("p") == {"a": b"1"}

    async def test_a_dead_hosts_processes_are_taken_over(self) -> None:
        """G12 S1.01: the next host's claim takes what a dead one held, with all it recorded."""
        async with self.world() as w:
            lease = await w.host()
            row, ended, parked, free = await w.add("p", "ended", "parked", "free", lease=lease)
            await w.sent(event("p", "e1"), event("p", "e2"))
            await w.done(
                lease,
                unit(row, 1, step("a"), latest("v"), consumes=(1,), status=Status.WAITING),
                unit(ended, 1, ending=FINISH),
                unit(parked, 1, status=Status.WAITING, leave=Leave.PARKED),
                unit(free, 1, leave=Leave.RELEASED),
            )
            await w.kill(lease)
            taken = await w.take(await w.host("host-2"))
            assert sorted(taken) == ["free", "p"]
            claimed = taken["p"]
            assert (claimed.row.owner, claimed.row.epoch) == ("host-2", 2)
            assert claimed.row.status is Status.WAITING
            assert [each.key for each in claimed.checkpoints] == ["a", "v"]
            assert [each.event_id for each in claimed.events] == ["e2"]

    async def test_a_late_writer_is_refused_for_good(self) -> None:
        """G5 C01 C06 C07: after a takeover the old host cannot write, claim, create, renew."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.kill(lease)
            second = await w.host("host-2")
            assert (await w.take(second))["p"].row.epoch == 2
            before = await w.everything()
            with pytest.raises(LeaseLostError):
                await w.commit(lease, unit(row, 1, step("late")))
            with pytest.raises(LeaseLostError):
                await w.commit(lease, unit(row, 1, step("late"), epoch=2), unit(row, 2))
            with pytest.raises(LeaseLostError):
                await w.claim(lease)
            with pytest.raises(LeaseLostError):
                await w.storage.create([new("q")], lease)
            with pytest.raises(LeaseLostError):
                await w.storage.renew(lease)
            assert await w.everything() == before

    @needs(hosts=2)
    async def test_a_live_lease_is_left_alone(self) -> None:
        """G5: another host's claim takes nothing from one that renews, however long it lives."""
        async with self.world() as w:
            first, second = await w.host("host-1"), await w.host("host-2")
            row = await w.held("p", first)
            for seq in range(1, 10):
                w.clock.advance(0.7 * (first.ttl_s or 60.0))
                first, second = await w.storage.renew(first), await w.storage.renew(second)
                assert (await w.claim(second)).claimed == ()
                await w.done(first, unit(row, seq, step(f"k{seq}")))
            assert (await w.row("p")).epoch == 1

    @needs(hosts=2)
    async def test_only_the_dead_hosts_processes_change_hands(self) -> None:
        """G5: a living host keeps what it holds when its neighbour is fenced."""
        async with self.world() as w:
            first, second = await w.host("host-1"), await w.host("host-2")
            await w.add("a", lease=first)
            row = await w.held("b", second)
            if first.ttl_s is None:
                return  # such a storage sees deaths in its own way, and tests that itself
            w.clock.advance(first.ttl_s * 0.6)
            second = await w.storage.renew(second)
            w.clock.advance(first.ttl_s * 0.6)
            assert list(await w.take(second)) == ["a"]
            await w.done(second, unit(row, 1, step("x")))
            assert (await w.row("b")).epoch == 1

    # --- deaths --------------------------------------------------------------------------

    async def test_deaths_are_counted_while_nothing_is_recorded(self) -> None:
        """Rule 12 S1.13: each host that dies holding a process counts, until one records."""
        async with self.world() as w:
            await w.add("poison", "sound")
            deaths = []
            for number in range(1, 4):
                lease = await w.host(f"host-{number}")
                taken = await w.take(lease)
                deaths.append(taken["poison"].row.deaths)
                await w.done(lease, unit(taken["sound"].row, 1, step(f"k{number}")))
                await w.kill(lease)
            lease = await w.host("host-4")
            taken = await w.take(lease)
            deaths.append(taken["poison"].row.deaths)
            assert deaths == [0, 1, 2, 3]
            assert taken["sound"].row.deaths == 0
            await w.done(lease, unit(taken["poison"].row, 1, step("at last")))
            assert (await w.row("poison")).deaths == 0
            await w.kill(lease)
            assert (await w.take(await w.host("host-5")))["poison"].row.deaths == 0

    async def test_a_clean_release_resets_deaths(self) -> None:
        """Rule 12: a host that lets a process go has survived it."""
        async with self.world() as w:
            lease = await w.host()
            await w.held("p", lease)
            await w.kill(lease)
            lease = await w.host("host-2")
            row = (await w.take(lease))["p"].row
            assert row.deaths == 1
            await w.done(lease, unit(row, 1, leave=Leave.RELEASED))
            assert (await w.row("p")).deaths == 0

    async def test_what_nobody_held_counts_no_death(self) -> None:
        """Released, parked and never claimed processes are not suspects when a host dies."""
        async with self.world() as w:
            lease = await w.host()
            parked, released = await w.add("parked", "released", lease=lease)
            await w.add("never")
            await w.done(
                lease,
                unit(parked, 1, status=Status.WAITING, leave=Leave.PARKED),
                unit(released, 1, leave=Leave.RELEASED),
            )
            await w.kill(lease)
            lease = await w.host("host-2")
            await w.sent(event("parked", "e1"))
            taken = await w.take(lease)
            assert sorted(taken) == ["never", "parked", "released"]
            assert {each.row.deaths for each in taken.values()} == {0}

    async def test_a_lease_that_was_never_given_is_refused(self) -> None:
        """F015: an identity that the storage does not know writes nothing."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.storage.close_lease(lease)
            lease = await w.host("host-2")
            await w.storage.close_lease(lease)
            for stranger in (lease, type(lease)("nobody", "x", lease.ttl_s, lease.now_at)):
                with pytest.raises(LeaseLostError):
                    await w.commit(stranger, unit(row, 1, step("a")))
            assert await w.payloads("p") == {}
