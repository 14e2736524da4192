"""Conformance: what a mailbox promises: kept, once, in order, bounded, and heard of."""

import asyncio
from datetime import timedelta

from durabletask.storage import DONE, Delivered, Event, Hints, Leave, Refusal, Status
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    event,
    new,
    step,
    unit,
)


class EventConformance(ConformanceBase):
    """Delivering and consuming events."""

    async def test_an_event_is_kept_until_it_is_consumed(self) -> None:
        """G8 S2.02: raised before anyone runs the process, it is there when someone does."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p")
            now = w.clock.now()
            (answer,) = await w.send(event("p", "e1", b"[1]", "approved"))
            kept = Event(1, "e1", "approved", b"[1]", now)
            assert answer == Delivered(event=kept)
            await w.rest(lease, 60)
            assert (await w.take(lease))["p"].events == (kept,)
            assert (await w.history("p")).events == (kept,)

    async def test_events_stand_in_the_order_of_arrival(self) -> None:
        """G8 I12 C32: positions are 1, 2, 3, … within each process, over batches and names."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p", "q")
            for turn in range(5):
                await w.sent(
                    event("p", f"b{9 - turn}", name="b"),
                    event("q", f"q{turn}"),
                    event("p", f"a{turn}", name="a"),
                )
            expected = [name for turn in range(5) for name in (f"b{9 - turn}", f"a{turn}")]
            taken = await w.take(lease)
            assert [each.event_id for each in taken["p"].events] == expected
            assert [each.position for each in taken["p"].events] == list(range(1, 11))
            assert [each.event_id for each in (await w.history("p")).events] == expected
            assert [each.position for each in taken["q"].events] == [1, 2, 3, 4, 5]

    async def test_concurrent_deliveries_all_get_a_place(self) -> None:
        """G8: 50 concurrent deliveries to one process get 50 positions, none twice."""
        async with self.world() as w:
            await w.add("p")
            answers = await asyncio.gather(*(w.send(event("p", f"e{n}")) for n in range(50)))
            positions = [each.event.position for (each,) in answers if each.event is not None]
            assert sorted(positions) == list(range(1, 51))
            found = (await w.history("p")).events
            assert [each.position for each in found] == list(range(1, 51))
            assert {each.event_id: each.position for each in found} == {
                f"e{n}": position for n, position in enumerate(positions)
            }

    # --- once ----------------------------------------------------------------------------

    async def test_the_same_event_id_is_the_same_event(self) -> None:
        """G8 C31: repeated, it is answered with the first, in a batch and out of it."""
        async with self.world() as w:
            await w.add("p")
            first, again, other = await w.send(
                event("p", "e1", b"1"), event("p", "e1", b"2", "else"), event("p", "e2")
            )
            assert first.event is not None
            assert again.event == first.event
            assert again.refused is None
            assert other.event is not None
            assert other.event.position == 2
            w.clock.advance(1)
            (late,) = await w.send(event("p", "e1", b"3"))
            assert late.event == first.event
            assert len((await w.history("p")).events) == 2

    async def test_a_consumed_event_is_not_delivered_again(self) -> None:
        """G8 I11: a repeat after the event was consumed finds it consumed."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, consumes=(1,)))
            (again,) = await w.send(event("p", "e1"))
            assert again.refused is None
            assert again.event is not None
            assert (again.event.position, again.event.consumed) == (1, True)
            lease = await w.after(lease, "host-2")
            assert (await w.take(lease))["p"].events == ()

    async def test_a_repeat_finds_its_event_whatever_happened_since(self) -> None:
        """Three outcomes: a repeat is not refused because the box filled or the process ended."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            (first,) = await w.send(event("p", "e1"), mailbox_max=1)
            (full,) = await w.send(event("p", "e2"), mailbox_max=1)
            (again,) = await w.send(event("p", "e1"), mailbox_max=1)
            assert full.refused is Refusal.MAILBOX_FULL
            assert (again.refused, again.event) == (None, first.event)
            await w.done(lease, unit(row, 1, ending=FINISH))
            (late,) = await w.send(event("p", "e1"), mailbox_max=1)
            assert (late.refused, late.event) == (None, first.event)

    async def test_an_event_id_belongs_to_its_process(self) -> None:
        """The same event id to another process, or to the next incarnation, is another event."""
        async with self.world() as w:
            lease = await w.host()
            row, _ = await w.add("p", "q", lease=lease)
            await w.sent(event("p", "e1"), event("q", "e1"))
            assert len((await w.history("q")).events) == 1
            await w.finish(lease, row)
            await w.storage.purge(["p"])
            await w.add("p")
            assert (await w.history("p")).events == ()
            await w.sent(event("p", "e1"))
            assert len((await w.history("p")).events) == 1

    # --- refused -------------------------------------------------------------------------

    async def test_an_event_to_nobody_is_refused_and_not_kept(self) -> None:
        """S2.02: nothing waits for a process of that id to be created later."""
        async with self.world() as w:
            await w.add("q")
            nobody, somebody = await w.send(event("p", "e1"), event("q", "e1"))
            assert nobody == Delivered(Refusal.UNKNOWN_PROCESS)
            assert somebody.refused is None
            await w.add("p")
            assert (await w.history("p")).events == ()
            await w.sent(event("p", "e1"))

    async def test_a_finished_process_takes_no_event(self) -> None:
        """I14: the mailbox closes with the end; a quarantined one stays open."""
        async with self.world() as w:
            lease = await w.host()
            done, bad = await w.add("done", "bad", lease=lease)
            await w.done(lease, unit(done, 1, ending=FINISH), unit(bad, 1, ending=QUARANTINE))
            to_done, to_bad = await w.send(event("done", "e1"), event("bad", "e1"))
            assert to_done.refused is Refusal.FINISHED
            assert to_bad.refused is None
            assert (await w.history("done")).events == ()

    async def test_a_mailbox_is_bounded_by_what_is_unconsumed(self) -> None:
        """Rule 14: at the limit a new event is refused; consuming makes room; others are free."""
        async with self.world() as w:
            lease = await w.host()
            row, _ = await w.add("p", "q", lease=lease)
            batch = [event("p", "1"), event("p", "2"), event("p", "3"), event("q", "1")]
            answers = await w.send(*batch, mailbox_max=2)
            assert [each.refused for each in answers] == [None, None, Refusal.MAILBOX_FULL, None]
            await w.done(lease, unit(row, 1, consumes=(1,)))
            answers = await w.send(event("p", "3"), event("p", "4"), mailbox_max=2)
            assert [each.refused for each in answers] == [None, Refusal.MAILBOX_FULL]
            found = (await w.history("p")).events
            assert [(each.position, each.event_id) for each in found] == [
                (1, "1"),
                (2, "2"),
                (3, "3"),
            ]

    # --- consuming -----------------------------------------------------------------------

    async def test_an_event_is_consumed_with_its_checkpoint(self) -> None:
        """G8 C30: taking and recording are one write; the mailbox keeps the rest, in order."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(*(event("p", f"e{number}") for number in range(1, 6)))
            await w.done(lease, unit(row, 1, step("a"), consumes=(2, 4)))
            found = (await w.history("p")).events
            assert [each.consumed for each in found] == [False, True, False, True, False]
            lease = await w.after(lease, "host-2")
            claimed = (await w.take(lease))["p"]
            assert [each.position for each in claimed.events] == [1, 3, 5]
            assert not any(each.consumed for each in claimed.events)
            assert [each.key for each in claimed.checkpoints] == ["a"]

    async def test_an_event_is_consumed_once(self) -> None:
        """I11: one consumed already, or one that never was, refuses the whole unit."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"), event("p", "e2"))
            await w.done(lease, unit(row, 1, step("a"), consumes=(1,)))
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(row, 2, step("b"), consumes=(1,)),
                unit(row, 3, step("c"), consumes=(2, 3)),
                unit(row, 4, step("d"), consumes=(0,)),
                unit(row, 5, step("e"), consumes=(2, 1), ending=FINISH),
            )
            assert {each.refused for each in outcomes} == {Refusal.NOT_IN_MAILBOX}
            assert await w.everything() == before
            await w.done(lease, unit(row, 6, step("b"), consumes=(2,)))

    async def test_an_overtaken_unit_consumes_nothing(self) -> None:
        """G8 C30: when the checkpoint was held, its event stays in the mailbox for another."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a")))
            (outcome,) = await w.commit(lease, unit(row, 2, step("a"), consumes=(1,)))
            assert outcome.held
            lease = await w.after(lease, "host-2")
            assert [each.position for each in (await w.take(lease))["p"].events] == [1]

    # --- hearing of it -------------------------------------------------------------------

    async def test_an_owner_hears_of_an_event_in_its_next_claim(self) -> None:
        """An event for a held process is news to its owner: once, with the whole mailbox."""
        async with self.world() as w:
            lease = await w.host()
            row, _ = await w.add("p", "q", lease=lease)
            await w.sent(event("p", "e1"), event("p", "e2"))
            await w.done(lease, unit(row, 1, step("a"), consumes=(1,)))
            (answer,) = await w.send(event("p", "e3"))
            assert answer.owner == lease.host_id
            news = await w.news(lease)
            assert list(news) == ["p"]
            assert not news["p"].fresh
            assert news["p"].checkpoints == ()
            assert [each.event_id for each in news["p"].events] == ["e2", "e3"]
            assert news["p"].row == await w.row("p")
            assert await w.news(lease) == {}
            await w.send(event("p", "e3"))
            assert await w.news(lease) == {}, "a repeat is no news"
            await w.sent(event("p", "e4"))
            assert list(await w.news(lease)) == ["p"]

    async def test_news_takes_no_room_in_a_claim(self) -> None:
        """News of every held process comes along with as many fresh ones as were asked for."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p", "q", lease=lease)
            await w.add("free-1", "free-2")
            await w.sent(event("p", "e1"), event("q", "e1"))
            claims = await w.claim(lease, count_max=1)
            fresh = [each.row.process_id for each in claims.claimed if each.fresh]
            news = [each.row.process_id for each in claims.claimed if not each.fresh]
            assert (len(fresh), sorted(news)) == (1, ["p", "q"])
            assert claims.more

    async def test_news_is_for_the_owner_only(self) -> None:
        """After a change of owner the mailbox is handed out with the claim, and is no news too."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, leave=Leave.RELEASED))
            claims = await w.claim(lease)
            assert [(each.fresh, len(each.events)) for each in claims.claimed] == [(True, 1)]
            assert await w.news(lease) == {}
            await w.sent(event("p", "e2"))
            lease = await w.after(lease, "host-2")
            claims = await w.claim(lease)
            assert [(each.fresh, len(each.events)) for each in claims.claimed] == [(True, 2)]

    async def test_an_event_wakes_a_parked_process(self) -> None:
        """Rule 10: a parked process is claimable as soon as an event arrives, before its wake."""
        async with self.world() as w:
            lease = await w.host()
            row, other = await w.add("p", "q", lease=lease)
            wake_at = w.clock.now() + timedelta(days=1)
            for each, at in ((row, wake_at), (other, None)):
                await w.done(
                    lease,
                    unit(each, 1, status=Status.WAITING, wake_at=at, leave=Leave.PARKED),
                )
            assert await w.take(lease) == {}
            (answer,) = await w.send(event("p", "e1"))
            assert answer.owner is None
            assert list(await w.take(lease)) == ["p"]
            await w.sent(event("q", "e1"))
            taken = await w.take(lease)
            assert [each.event_id for each in taken["q"].events] == ["e1"]
            assert taken["q"].row.status is Status.WAITING

    async def test_an_event_that_was_not_heard_of_does_not_sleep(self) -> None:
        """G8 I16 C37: parked while news was on its way, a process is claimable at once."""
        async with self.world() as w:
            lease = await w.host()
            row, other = await w.add("p", "q", lease=lease)
            await w.sent(event("q", "e1"))
            assert list(await w.news(lease)) == ["q"]
            await w.sent(event("p", "e1"))
            await w.done(
                lease,
                unit(row, 1, status=Status.WAITING, leave=Leave.PARKED),
                unit(other, 1, status=Status.WAITING, leave=Leave.PARKED),
            )
            assert list(await w.take(lease)) == ["p"], "q's event was heard of: it may sleep"

    async def test_hints_tell_of_events_and_ends(self) -> None:
        """Where there are hints, an event, a new process and an end each make one; then none."""
        async with self.world() as w:
            if not isinstance(w.storage, Hints):
                return  # a storage may leave hints out; polling alone is correct
            lease = await w.host()
            row = await w.held("p", lease)
            told: set[str | None] = set()
            heard = asyncio.Event()

            def callback(process_id: str | None) -> None:
                told.add(process_id)
                heard.set()

            async def wait_told(process_id: str) -> None:
                while not told & {process_id, None}:
                    heard.clear()
                    await asyncio.wait_for(heard.wait(), 10)
                told.clear()

            stop = w.storage.subscribe(callback)
            await w.sent(event("p", "e1"))
            await wait_told("p")
            await w.storage.create([new("fresh")])
            await wait_told("fresh")
            assert await w.commit(lease, unit(row, 1, ending=FINISH)) == [DONE]
            await wait_told("p")
            stop()
            stop()
            await w.storage.create([new("unheard")])
            await asyncio.sleep(0)
            assert told == set()
