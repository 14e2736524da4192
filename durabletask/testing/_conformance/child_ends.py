"""Conformance: the end of a child reaches its parent, once, as an event in its mailbox."""

from durabletask.storage import (
    CHILD_ENDED,
    DONE,
    Action,
    Kind,
    Leave,
    Parent,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    CANCEL,
    FAIL,
    FINISH,
    QUARANTINE,
    TERMINATE,
    child,
    event,
    needs,
    parent_of,
    step,
    unit,
)


class ChildEndConformance(ConformanceBase):
    """Being told."""

    async def test_the_end_of_a_child_is_an_event_in_its_parents_mailbox(self) -> None:
        """G11 I23: on each way of ending by itself; named by the status, with its outcome."""
        for ending in (FINISH, FAIL, CANCEL, TERMINATE):
            async with self.world() as w:
                lease = await w.host()
                _, row = await w.family(lease)
                await w.sent(event("p", "e1"))
                await w.rest(lease, 1)
                await w.done(lease, unit(row, 1, step("a"), ending=ending))
                _, told = await w.mailbox("p")
                assert told.name == f"{CHILD_ENDED}{ending.status}"
                assert (told.payload, told.position, told.at) == (ending.payload, 2, w.clock.now())
                assert told.event_id.rpartition(":")[0] == f"{CHILD_ENDED}0:child"

    async def test_a_child_that_is_terminated_or_never_starts_has_ended_too(self) -> None:
        """G11: ended by request, held or free: its parent is told with the request's ending."""
        async with self.world() as w:
            lease = await w.host()
            parent, _ = await w.family(lease)
            await w.done(lease, unit(parent, 2, spawns=(child(parent, "d", "d"),)))
            await w.ask("c", Action.TERMINATE)
            await w.ask("d", Action.CANCEL)
            told = await w.mailbox("p")
            assert [(each.name, each.payload) for each in told] == [
                (f"{CHILD_ENDED}terminated", TERMINATE.payload),
                (f"{CHILD_ENDED}cancelled", CANCEL.payload),
            ]
            assert told[1].event_id.rpartition(":")[0] == f"{CHILD_ENDED}0:d"

    async def test_an_end_is_told_once(self) -> None:
        """G8: a repeated unit or request, or one that changes nothing, tells nothing more."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.done(lease, unit(parent, 2, spawns=(child(parent, "d", "d"),)))
            ending = unit(row, 1, ending=FINISH)
            await w.done(lease, ending)
            request = w.control("d", Action.TERMINATE)
            await w.request(request)
            assert len(await w.mailbox("p")) == 2
            assert await w.commit(lease, ending) == [DONE]
            await w.request(request)
            await w.ask("d", Action.TERMINATE)
            assert len(await w.mailbox("p")) == 2

    async def test_what_is_set_aside_has_not_ended(self) -> None:
        """Rule 4: a quarantined child tells nothing; retried and ended it does, each end anew."""
        async with self.world() as w:
            lease = await w.host()
            _, row = await w.family(lease)
            await w.done(lease, unit(row, 1, ending=QUARANTINE))
            assert await w.mailbox("p") == []
            for ending in (FAIL, FINISH):
                await w.retry(await w.row("c"))
                row = (await w.take(lease))["c"].row
                await w.done(lease, unit(row, 1, ending=ending))
            told = await w.mailbox("p")
            assert [each.name for each in told] == [
                f"{CHILD_ENDED}failed",
                f"{CHILD_ENDED}completed",
            ]
            assert len({each.event_id for each in told}) == 2

    async def test_a_full_mailbox_takes_the_end_of_a_child(self) -> None:
        """Rule 14: beyond its limit too, since nobody could try again."""
        async with self.world() as w:
            lease = await w.host()
            _, row = await w.family(lease)
            await w.send(*(event("p", f"e{n}") for n in range(3)), mailbox_max=3)
            await w.done(lease, unit(row, 1, ending=FINISH))
            assert len(await w.mailbox("p")) == 4
            (answer,) = await w.send(event("p", "e3"), mailbox_max=4)
            assert answer.refused is Refusal.MAILBOX_FULL

    async def test_the_end_of_a_child_wakes_its_parent(self) -> None:
        """G12: a parked one is claimable at once, one that is held has news."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.done(lease, unit(parent, 2, spawns=(child(parent, "d", "d"),)))
            other = (await w.take(lease))["d"].row
            await w.done(lease, unit(row, 1, ending=FINISH))
            (news,) = (await w.news(lease)).values()
            assert (news.row.process_id, len(news.events)) == ("p", 1)
            parks = {"status": Status.WAITING, "leave": Leave.PARKED}
            await w.done(lease, unit(parent, 3, step("got"), consumes=(1,), **parks))
            assert await w.take(lease) == {}
            await w.done(lease, unit(other, 1, ending=FAIL))
            taken = (await w.take(lease))["p"]
            assert [each.name for each in taken.events] == [f"{CHILD_ENDED}failed"]

    async def test_an_end_that_was_not_heard_of_does_not_sleep(self) -> None:
        """C37: the child ends in the batch in which its parent parks: it is claimable at once."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.done(
                lease,
                unit(row, 1, ending=FINISH),
                unit(parent, 2, status=Status.WAITING, leave=Leave.PARKED),
            )
            assert not (await w.row("p")).parked
            assert len((await w.take(lease))["p"].events) == 1

    async def test_a_parent_that_is_set_aside_or_suspended_is_told(self) -> None:
        """G8: it has not finished; what happened meanwhile is there when it goes on."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.done(lease, unit(parent, 2, spawns=(child(parent, "d", "d"),)))
            other = (await w.take(lease))["d"].row
            await w.ask("p", Action.SUSPEND)
            await w.done(lease, unit(row, 1, ending=FINISH))
            await w.ask("p", Action.RESUME)
            await w.done(lease, unit(parent, 3, ending=QUARANTINE))
            await w.done(lease, unit(other, 1, ending=FINISH))
            await w.retry(await w.row("p"))
            assert len((await w.take(lease))["p"].events) == 2

    async def test_only_who_spawned_it_is_told(self) -> None:
        """G8: another incarnation or generation of that id, or an ended one, gets no event."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            strangers = {
                "before": Parent("p", parent.incarnation - 1, 0, "k"),
                "after": Parent("p", parent.incarnation + 1, 0, "k"),
                "next": Parent("p", parent.incarnation, 1, "k"),
                "none": Parent("nobody", 1, 0, "k"),
            }
            for process_id, of in strangers.items():
                await w.finish(lease, await w.held(process_id, lease, parent=of))
            assert await w.mailbox("p") == []
            await w.done(lease, unit(parent, 2, restart=b"[2]"))
            await w.finish(lease, row)
            assert await w.mailbox("p") == []
            parent = await w.row("p")
            await w.done(lease, unit(parent, 3, spawns=(child(parent, "d"),)))
            row = (await w.take(lease))["d"].row
            await w.finish(lease, parent)
            await w.finish(lease, row)
            assert (await w.history("p")).events == ()

    async def test_an_ended_child_that_is_spawned_again_is_told_again(self) -> None:
        """Rule 9: after a retry that forgot the call, the parent hears how its child ended."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.done(lease, unit(row, 1, ending=FAIL))
            await w.done(lease, unit(parent, 2, step("got"), consumes=(1,)))
            again = unit(parent, 3, step("again", kind=Kind.CHILD), spawns=(child(parent, "c"),))
            await w.done(lease, again)
            (told,) = await w.mailbox("p")
            assert (told.name, told.payload) == (f"{CHILD_ENDED}failed", FAIL.payload)
            assert told.event_id.rpartition(":")[0] == f"{CHILD_ENDED}0:child"
            assert await w.commit(lease, again) == [DONE]
            assert len(await w.mailbox("p")) == 1
            assert (await w.row("c")).ending == FAIL
            await w.done(lease, unit(parent, 4, spawns=(child(parent, "c"),)))
            assert len(await w.mailbox("p")) == 2

    @needs(busy=True)
    async def test_the_end_of_a_child_waits_for_its_busy_parent(self) -> None:
        """G11 G13: an end without the telling is none; it goes again when the parent is free."""
        async with self.world() as w:
            lease = await w.host()
            _, row = await w.family(lease)
            ending = unit(row, 1, step("a"), ending=FINISH)
            async with w.holding("p"):
                (outcome,) = await w.commit(lease, ending)
                assert outcome.refused is Refusal.BUSY
                assert (await w.row("c")).ending is None
            await w.done(lease, ending)
            assert len(await w.mailbox("p")) == 1

    async def test_a_child_outlives_its_parent(self) -> None:
        """Issue 4.1: a parent that ends or is purged leaves its children as they are."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.finish(lease, parent)
            await w.storage.purge(["p"])
            await w.done(lease, unit(row, 1, step("a"), ending=FINISH))
            assert (await w.row("c")).parent == parent_of(parent)
