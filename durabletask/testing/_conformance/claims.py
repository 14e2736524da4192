"""Conformance: what a claim promises: who gets which process, when, and only once."""

import asyncio
from datetime import timedelta

from durabletask.storage import DONE, Leave, Refusal, Status
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    event,
    needs,
    step,
    unit,
)

TICK = timedelta(microseconds=1)


class ClaimConformance(ConformanceBase):
    """Taking processes for execution."""

    async def test_a_claim_hands_out_everything_of_a_process(self) -> None:
        """S4.10 S4.12: with input, checkpoints, mailbox; owner, epoch and first start are set."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p", input=b'["alice"]')
            await w.sent(event("p", "e1"), event("p", "e2"))
            await w.rest(lease, 2)
            started_at = w.clock.now()
            row = (await w.take(lease))["p"].row
            assert (row.owner, row.owner_label) == (lease.host_id, lease.label)
            assert (row.epoch, row.seq, row.started_at) == (1, 0, started_at)
            await w.done(lease, unit(row, 4, step("a"), consumes=(1,)))
            lease = await w.after(lease, "host-2")
            await w.rest(lease, 2)
            claims = await w.claim(lease)
            assert claims.now_at == w.clock.now()
            (claimed,) = claims.claimed
            assert (claimed.row.epoch, claimed.row.seq) == (2, 0)
            assert claimed.row.started_at == started_at
            assert claimed.row.input == b'["alice"]'
            assert claimed.row.owner == "host-2"
            assert claimed.damage is None
            assert [each.key for each in claimed.checkpoints] == ["a"]
            assert [each.event_id for each in claimed.events] == ["e2"]
            assert claimed.row == await w.row("p")

    async def test_epochs_only_rise(self) -> None:
        """G5 I7 C04: every claim of a process has a higher epoch than any before it."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            epochs = [row.epoch]
            for number in range(2, 6):
                if number % 2:
                    lease = await w.after(lease, f"host-{number}")
                else:
                    await w.done(lease, unit(row, 1, leave=Leave.RELEASED))
                row = (await w.take(lease))["p"].row
                epochs.append(row.epoch)
            await w.kill(lease)
            lease = await w.host("host-6")
            epochs.append((await w.take(lease))["p"].row.epoch)
            assert epochs == [1, 2, 3, 4, 5, 6]

    async def test_a_held_process_is_not_taken_twice(self) -> None:
        """G5: what is held is handed out to nobody, its owner included."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p")
            assert list(await w.take(lease)) == ["p"]
            assert (await w.claim(lease)).claimed == ()
            assert (await w.row("p")).epoch == 1

    async def test_concurrent_claims_share_no_process(self) -> None:
        """G5: ten concurrent claims of ten take a hundred processes, each once."""
        async with self.world() as w:
            lease = await w.host()
            ids = [f"p{number:03}" for number in range(100)]
            await w.add(*ids)
            claims = await asyncio.gather(*(w.take(lease, count_max=10) for _ in range(10)))
            assert sorted(each for taken in claims for each in taken) == ids
            assert {len(taken) for taken in claims} == {10}

    @needs(hosts=2)
    async def test_hosts_share_no_process(self) -> None:
        """G5: two hosts that claim at once get different processes, and together all."""
        async with self.world() as w:
            first, second = await w.host("host-1"), await w.host("host-2")
            ids = [f"p{number}" for number in range(20)]
            await w.add(*ids)
            one, two = await asyncio.gather(
                w.take(first, count_max=10), w.take(second, count_max=10)
            )
            assert sorted([*one, *two]) == sorted(ids)
            assert {each.row.owner for each in two.values()} == {"host-2"}

    # --- how many, which -----------------------------------------------------------------

    async def test_a_claim_takes_no_more_than_asked(self) -> None:
        """C13: at most `count_max`, `more` if there were more, and the rest by later claims."""
        async with self.world() as w:
            lease = await w.host()
            await w.add(*(f"p{number}" for number in range(5)))
            found = []
            for _ in range(3):
                claims = await w.claim(lease, count_max=2)
                found.append((len(claims.claimed), claims.more))
            assert found == [(2, True), (2, True), (1, False)]
            claims = await w.claim(lease, count_max=0)
            assert (claims.claimed, claims.more, claims.next_at) == ((), False, None)

    async def test_the_longest_claimable_is_taken_first(self) -> None:
        """G12: by when it became claimable: created, start, wake, release, event; none starves."""
        async with self.world() as w:
            lease = await w.host()
            start = w.clock.now()
            released, parked, woken = await w.add("released", "parked", "woken", lease=lease)
            await w.add("starts-at-3", start_at=start + timedelta(seconds=3))
            wake_at = start + timedelta(seconds=5)
            park = Leave.PARKED
            await w.done(
                lease,
                unit(parked, 1, status=Status.WAITING, wake_at=wake_at, leave=park),
                unit(woken, 1, status=Status.WAITING, leave=park),
            )
            await w.rest(lease, 1)
            await w.add("created-at-1")
            await w.rest(lease, 1)
            await w.sent(event("woken", "e1"))
            await w.rest(lease, 2)
            await w.done(lease, unit(released, 1, leave=Leave.RELEASED))
            await w.rest(lease, 2)
            await w.add("created-at-6")
            await w.rest(lease, 1)
            order = []
            for _ in range(6):
                order += list(await w.take(lease, count_max=1))
            assert order == [
                "created-at-1",
                "woken",
                "starts-at-3",
                "released",
                "parked",
                "created-at-6",
            ]

    async def test_only_the_names_asked_for_are_taken(self) -> None:
        """S0.10: a process whose function no host names stays, visible and unclaimed."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("a", name="alpha")
            await w.add("b", name="beta")
            await w.add("c", name="ALPHA")
            claims = await w.claim(lease, names=["beta", "gamma"])
            assert [each.row.process_id for each in claims.claimed] == ["b"]
            assert not claims.more
            assert (await w.claim(lease, names=[])).claimed == ()
            assert (await w.row("a")).epoch == 0
            assert list(await w.take(lease, names=["alpha", "beta"])) == ["a"]

    # --- when ----------------------------------------------------------------------------

    async def test_a_start_in_the_future_is_waited_for(self) -> None:
        """S1.02 S2.07: `start_at` not come is not claimed; `next_at` tells when; then it is."""
        async with self.world() as w:
            lease = await w.host()
            start_at = w.clock.now() + timedelta(hours=1)
            await w.add("p", start_at=start_at)
            await w.add("q", start_at=start_at + timedelta(hours=1))
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at, claims.more) == ((), start_at, False)
            await w.rest(lease, timedelta(hours=1) - TICK)
            assert await w.take(lease) == {}
            await w.rest(lease, TICK)
            claims = await w.claim(lease)
            assert [each.row.process_id for each in claims.claimed] == ["p"]
            assert claims.next_at == start_at + timedelta(hours=1)

    async def test_a_parked_process_comes_back_when_it_is_due(self) -> None:
        """G7 C40: not a microsecond early; `next_at` tells when; handed out with its wait."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            wake_at = w.clock.now() + timedelta(days=365)
            await w.done(
                lease,
                unit(row, 1, step("a"), status=Status.WAITING, wake_at=wake_at, leave=Leave.PARKED),
            )
            parked = await w.row("p")
            assert (parked.parked, parked.owner, parked.wake_at) == (True, None, wake_at)
            await w.rest(lease, timedelta(days=365) - TICK)
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at) == ((), wake_at)
            await w.rest(lease, TICK)
            taken = (await w.take(lease))["p"]
            assert (taken.row.status, taken.row.wake_at) == (Status.WAITING, wake_at)
            assert (taken.row.parked, taken.row.epoch, taken.row.deaths) == (False, 2, 0)

    async def test_a_parked_process_without_a_wake_waits_for_an_event(self) -> None:
        """Rule 10: parked with nothing due, time alone never brings it back."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, status=Status.WAITING, leave=Leave.PARKED))
            await w.rest(lease, timedelta(days=400))
            lease = await w.host()
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at) == ((), None)

    async def test_a_released_process_is_claimable_at_once(self) -> None:
        """S4.13: released in a drain it is free, keeps its status, and is not parked."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            wake_at = w.clock.now() + timedelta(days=1)
            await w.done(
                lease,
                unit(row, 1, status=Status.WAITING, wake_at=wake_at),
                unit(row, 2, step("a"), leave=Leave.RELEASED),
            )
            found = await w.row("p")
            assert (found.owner, found.parked, found.status) == (None, False, Status.WAITING)
            taken = (await w.take(lease))["p"]
            assert (taken.row.wake_at, taken.row.deaths) == (wake_at, 0)
            assert len(taken.checkpoints) == 1

    async def test_next_at_is_of_the_names_asked_for_and_of_free_processes(self) -> None:
        """What is held, ended, set aside or of other names makes nobody wake up for it."""
        async with self.world() as w:
            lease = await w.host()
            later = w.clock.now() + timedelta(hours=1)
            await w.add("other", name="beta", start_at=later)
            held, ended, bad = await w.add("held", "ended", "bad", lease=lease)
            await w.done(
                lease,
                unit(held, 1, status=Status.WAITING, wake_at=later),
                unit(ended, 1, status=Status.WAITING, wake_at=later),
                unit(ended, 2, ending=FINISH),
                unit(bad, 1, status=Status.WAITING, wake_at=later),
                unit(bad, 2, ending=QUARANTINE),
            )
            assert (await w.claim(lease)).next_at is None
            assert (await w.claim(lease, names=["beta"])).next_at == later

    # --- repeats -------------------------------------------------------------------------

    async def test_a_repeated_claim_returns_what_it_took(self) -> None:
        """After a lost answer the same claim id brings the same processes, and no others."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("a", "b", "c", "d")
            first = await w.take(lease, claim_id="once", count_max=2)
            again = await w.take(lease, claim_id="once", count_max=2)
            assert list(again) == list(first)
            assert [each.row.epoch for each in again.values()] == [1, 1]
            rest = await w.take(lease, claim_id="twice", count_max=4)
            assert sorted([*first, *rest]) == ["a", "b", "c", "d"]
            assert list(await w.take(lease, claim_id="twice", count_max=4)) == list(rest)

    async def test_a_repeated_claim_leaves_out_what_is_no_longer_held(self) -> None:
        """As far as it is still held: ended and released ones are not handed out again."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("kept", "ended", "released")
            taken = await w.take(lease, claim_id="once")
            rows = {key: each.row for key, each in taken.items()}
            await w.done(
                lease,
                unit(rows["kept"], 1, step("a")),
                unit(rows["ended"], 1, ending=FINISH),
                unit(rows["released"], 1, leave=Leave.RELEASED),
            )
            again = await w.take(lease, claim_id="once")
            assert list(again) == ["kept"]
            assert [each.key for each in again["kept"].checkpoints] == ["a"]
            assert again["kept"].row.epoch == rows["kept"].epoch
            assert (await w.row("released")).owner is None
            assert list(await w.take(lease)) == ["released"]
            assert list(await w.take(lease, claim_id="once")) == ["kept"]

    async def test_a_repeated_claim_brings_its_news_again(self) -> None:
        """G8: news whose answer was lost comes with the repeat, so no event is slept over."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.add("free")
            first = await w.claim(lease, claim_id="once")
            again = await w.claim(lease, claim_id="once")
            assert sorted(each.row.process_id for each in again.claimed) == ["free", "p"]
            assert {each.fresh for each in again.claimed} == {True, False}
            assert again.claimed == first.claimed
            assert await w.commit(lease, unit(row, 1, step("a"), consumes=(1,))) == [DONE]
            (outcome,) = await w.commit(lease, unit(row, 2, consumes=(1,)))
            assert outcome.refused is Refusal.NOT_IN_MAILBOX
