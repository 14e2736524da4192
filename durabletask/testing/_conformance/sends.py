"""Conformance: events that a unit sends are delivered with what it records, once."""

from functools import partial

from durabletask.storage import (
    CHILD_ENDED,
    DONE,
    Leave,
    NewEvent,
    Refusal,
    Status,
    Unit,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    child,
    event,
    needs,
    step,
    unit,
)


class SendConformance(ConformanceBase):
    """Sending to other processes."""

    async def test_an_event_is_sent_with_the_unit(self) -> None:
        """G11 I23: to free, held, parked ones and to itself, in order, as if delivered."""
        async with self.world() as w:
            lease = await w.host()
            row, _, parked = await w.add("p", "held", "parked", lease=lease)
            await w.add("free")
            await w.done(lease, unit(parked, 1, status=Status.WAITING, leave=Leave.PARKED))
            await w.sent(event("free", "e0"))
            ids = ("free", "held", "parked", "p", "free")
            sends = tuple(event(each, f"e{n}", b"%d" % n) for n, each in enumerate(ids, start=1))
            await w.rest(lease, 1)
            await w.done(lease, unit(row, 1, step("a"), sends=sends))
            found = await w.mailbox("free")
            assert [(each.position, each.event_id) for each in found] == [
                (1, "e0"),
                (2, "e1"),
                (3, "e5"),
            ]
            assert (found[1].name, found[1].payload, found[1].at) == ("ping", b"1", w.clock.now())
            claims = await w.claim(lease)
            told = {each.row.process_id: each.fresh for each in claims.claimed}
            assert told == {"free": True, "parked": True, "held": False, "p": False}

    async def test_a_refused_unit_sends_nothing(self) -> None:
        """I9 I23: overtaken, stale, without its event or its status: no mailbox has anything."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.add("q")
            await w.done(lease, unit(row, 1, step("a"), status=Status.COMPENSATING))
            sends = (event("q", "e1"),)
            outcomes = await w.commit(
                lease,
                unit(row, 2, step("a", b"2"), sends=sends),
                unit(row, 3, step("b"), epoch=row.epoch - 1, sends=sends),
                unit(row, 4, step("b"), consumes=(1,), sends=sends),
                unit(row, 5, step("b"), status=Status.WAITING, sends=sends),
            )
            assert [each.refused for each in outcomes] == [
                None,
                Refusal.NOT_OWNER,
                Refusal.NOT_IN_MAILBOX,
                Refusal.ILLEGAL_TRANSITION,
            ]
            assert await w.mailbox("q") == []

    async def test_a_receiver_that_cannot_take_it_refuses_the_whole_unit(self) -> None:
        """G11: unknown, finished or full: nothing is recorded, spawned or sent; it is named."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.add("fine", "full", "nearly")
            await w.finish(lease, await w.held("over", lease))
            await w.sent(event("full", "e1"), event("full", "e2"), event("nearly", "e1"))
            before = await w.everything()
            cases: tuple[tuple[Refusal, str, tuple[NewEvent, ...]], ...] = (
                (Refusal.UNKNOWN_PROCESS, "none", (event("none", "x"),)),
                (Refusal.FINISHED, "over", (event("over", "x"),)),
                (Refusal.MAILBOX_FULL, "full", (event("full", "x"),)),
                (Refusal.MAILBOX_FULL, "nearly", (event("nearly", "x"), event("nearly", "y"))),
            )
            for refused, culprit, events in cases:
                (outcome,) = await w.commit(
                    lease,
                    unit(
                        row,
                        1,
                        step("a"),
                        sends=(event("fine", "x"), *events),
                        spawns=(child(row, "c"),),
                        mailbox_max=2,
                        status=Status.WAITING,
                    ),
                )
                assert (outcome.refused, outcome.culprit) == (refused, culprit)
                assert await w.everything() == before
            sends = (event("fine", "x"), event("nearly", "x"))
            await w.done(lease, unit(row, 2, step("a"), sends=sends, mailbox_max=2))

    async def test_the_same_event_id_is_the_same_event(self) -> None:
        """G8: known to its receiver it is not sent again, though that is full or has ended."""
        async with self.world() as w:
            lease = await w.host()
            row, over = await w.add("p", "over", lease=lease)
            await w.add("full")
            await w.sent(event("over", "e1"), event("full", "e1", b"1"))
            await w.done(lease, unit(over, 1, ending=FINISH))
            sends = (event("over", "e1"), event("full", "e1", b"2"))
            await w.done(lease, unit(row, 1, step("a"), sends=sends, mailbox_max=1))
            assert [each.payload for each in await w.mailbox("full")] == [b"1"]
            twice = (event("p", "e1"), event("p", "e1"))
            await w.done(lease, unit(row, 2, step("b"), sends=twice))
            assert len(await w.mailbox("p")) == 1

    async def test_a_repeated_unit_sends_nothing_twice(self) -> None:
        """DESIGN 5 G8: after a lost answer, and when the event has been consumed since."""
        async with self.world() as w:
            lease = await w.host()
            row, other = await w.add("p", "q", lease=lease)
            sending = unit(row, 1, step("a"), sends=(event("q", "e1"), event("q", "e2")))
            await w.done(lease, sending)
            await w.done(lease, unit(other, 1, step("a"), consumes=(1,)))
            before = await w.everything()
            w.clock.advance(1)
            assert await w.commit(lease, sending) == [DONE]
            assert await w.everything() == before

    async def test_a_unit_may_send_to_a_child_that_it_spawns(self) -> None:
        """G11: the child is there with its first event, in one claim."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            sends = (event("c", "e1"),)
            await w.done(lease, unit(row, 1, step("a"), spawns=(child(row, "c"),), sends=sends))
            assert [each.event_id for each in (await w.take(lease))["c"].events] == ["e1"]

    async def test_a_child_that_is_spawned_can_be_sent_too_much(self) -> None:
        """F101: its mailbox is as full as any: nothing is spawned, sent or recorded."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.add("q")
            before = await w.everything()
            events = [event("c", "e1"), event("q", "e1"), event("c", "e2"), event("c", "e3")]
            spawning = partial(unit, row, spawns=(child(row, "c"),), mailbox_max=2)
            (outcome,) = await w.commit(lease, spawning(1, step("a"), sends=tuple(events)))
            assert (outcome.refused, outcome.culprit) == (Refusal.MAILBOX_FULL, "c")
            assert await w.everything() == before
            await w.done(lease, spawning(2, step("a"), sends=tuple(events[:3])))
            assert [each.event_id for each in await w.mailbox("c")] == ["e1", "e2"]

    async def test_what_one_unit_sends_the_next_may_consume(self) -> None:
        """G6: units of a batch see the events of those before them, of other processes too."""
        async with self.world() as w:
            lease = await w.host()
            p, q = await w.add("p", "q", lease=lease)
            await w.done(
                lease,
                unit(p, 1, step("a"), sends=(event("q", "e1"), event("p", "e1"))),
                unit(q, 1, step("a"), consumes=(1,), sends=(event("p", "e2"),)),
                unit(p, 2, step("b"), consumes=(1, 2)),
            )
            assert await w.mailbox("p") == await w.mailbox("q") == []

    async def test_events_of_a_batch_arrive_in_its_order(self) -> None:
        """G8: many senders to one receiver, between deliveries: positions without gaps."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add(*(f"p{n}" for n in range(5)), lease=lease)
            await w.add("q")
            units: list[Unit] = [
                unit(row, turn, step(f"k{turn}"), sends=(event("q", f"{row.process_id}/{turn}"),))
                for turn in range(1, 5)
                for row in rows
            ]
            await w.sent(event("q", "first"))
            await w.done(lease, *units)
            await w.sent(event("q", "last"))
            found = await w.mailbox("q")
            assert [each.position for each in found] == list(range(1, 23))
            expected = [each.sends[0].event_id for each in units]
            assert [each.event_id for each in found] == ["first", *expected, "last"]

    async def test_a_last_unit_may_send(self) -> None:
        """G11: with an ending and with a leave; to its parent it arrives before the end does."""
        async with self.world() as w:
            lease = await w.host()
            parent, leaves = await w.add("p", "leaves", lease=lease)
            await w.done(lease, unit(parent, 1, spawns=(child(parent, "c"),)))
            row = (await w.take(lease))["c"].row
            await w.done(
                lease,
                unit(leaves, 1, leave=Leave.RELEASED, sends=(event("p", "e1"),)),
                unit(row, 1, ending=FINISH, sends=(event("p", "e2"),)),
            )
            names = [each.name for each in await w.mailbox("p")]
            assert names == ["ping", "ping", f"{CHILD_ENDED}completed"]

    async def test_who_sends_to_itself_does_not_sleep_over_it(self) -> None:
        """C37: a unit that sends to its own process and parks it leaves it claimable."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            parks = {"status": Status.WAITING, "leave": Leave.PARKED}
            await w.done(lease, unit(row, 1, sends=(event("p", "e1"),), **parks))
            assert len((await w.take(lease))["p"].events) == 1

    async def test_who_is_set_aside_still_receives(self) -> None:
        """G13: a quarantined receiver takes what is sent, as it takes what is delivered."""
        async with self.world() as w:
            lease = await w.host()
            row, bad = await w.add("p", "bad", lease=lease)
            await w.done(lease, unit(bad, 1, ending=QUARANTINE))
            await w.done(lease, unit(row, 1, step("a"), sends=(event("bad", "e1"),)))
            assert len(await w.mailbox("bad")) == 1

    @needs(busy=True)
    async def test_a_unit_with_a_busy_receiver_goes_again_in_order(self) -> None:
        """G6 G13: nothing of it or behind it is written; its neighbours are; a repeat does it."""
        async with self.world() as w:
            lease = await w.host()
            row, other = await w.add("p", "q", lease=lease)
            await w.add("busy", "free")
            sends = (event("free", "e1"), event("busy", "e1"))
            units = [unit(row, 1, step("a"), sends=sends), unit(row, 2, step("b"), ending=FINISH)]
            async with w.holding("busy"):
                *mine, theirs = await w.commit(lease, *units, unit(other, 1, step("a")))
                assert [each.refused for each in mine] == [Refusal.BUSY] * 2
                assert theirs == DONE
                assert await w.mailbox("free") == []
            await w.done(lease, *units)
            assert list(await w.payloads("p")) == ["a", "b"]
            assert len(await w.mailbox("busy")) == len(await w.mailbox("free")) == 1

    async def test_a_refused_unit_that_is_repeated_is_not_taken_for_written(self) -> None:
        """G1: the answer to it was lost, and a later unit of its process stood in the batch."""
        async with self.world() as w:
            lease = await w.host()
            row, other = await w.add("p", "q", lease=lease)
            sends = (event("nobody", "e1"),)
            refused = unit(row, 1, step("a"), sends=sends, status=Status.WAITING)
            batch = [
                refused,
                unit(row, 2, step("b"), status=Status.RUNNING),
                unit(other, 1, step("a"), sends=(event("p", "e2"),)),
                unit(other, 2, step("b"), status=Status.WAITING),
            ]
            first = await w.commit(lease, *batch)
            assert [each.refused for each in first] == [Refusal.UNKNOWN_PROCESS, None, None, None]
            assert await w.commit(lease, *batch) == first
            assert [each.key for each in (await w.history("p")).checkpoints] == ["b"]
            # Nothing is against it any more: it is written, behind what overtook it.
            await w.add("nobody")
            assert await w.commit(lease, *batch) == [DONE] * 4
            assert [each.event_id for each in await w.mailbox("nobody")] == ["e1"]
            snapshot = await w.history("p")
            assert {each.key for each in snapshot.checkpoints} == {"a", "b"}
            assert (snapshot.row.status, snapshot.row.seq) == (Status.RUNNING, 2)
            assert [each.event_id for each in await w.mailbox("p")] == ["e2"]
            await w.done(lease, unit(row, 3, step("c"), status=Status.WAITING))
            assert (await w.row("p")).status is Status.WAITING
