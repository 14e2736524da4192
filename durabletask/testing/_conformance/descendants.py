"""Conformance: what is asked of a process and is for its descendants too."""

from durabletask.storage import (
    CHILD_ENDED,
    Action,
    Ending,
    Form,
    Lease,
    Leave,
    Parent,
    ProcessRow,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    CANCEL,
    FAIL,
    FINISH,
    TERMINATE,
    World,
    child,
    needs,
    parent_of,
    unit,
)


class DescendantConformance(ConformanceBase):
    """Cancelling and terminating a family."""

    async def _line(self, w: World, lease: Lease) -> dict[str, ProcessRow]:
        """Have a line of four, each the child of the one before; the third has finished."""
        rows = {"1": await w.held("1", lease)}
        for above, below in (("1", "2"), ("2", "3"), ("3", "4")):
            await w.done(lease, unit(rows[above], 1, spawns=(child(rows[above], below),)))
            rows[below] = (await w.take(lease))[below].row
        await w.done(lease, unit(rows["3"], 2, ending=FINISH))
        await w.news(lease)
        return rows

    async def test_a_request_to_cancel_is_one_to_all_descendants(self) -> None:
        """Rule 7: pending in each unfinished one, also below a finished one; news to the owners."""
        async with self.world() as w:
            lease = await w.host()
            await self._line(w, lease)
            await w.add("stranger", parent=Parent("1", 99, 0, "child"))
            await w.ask("1", Action.CANCEL, reason=b'"why"')
            reasons = {row.process_id: row.cancel_reason for row in await w.listed()}
            asked = b'"why"'
            assert reasons == {"1": asked, "2": asked, "3": None, "4": asked, "stranger": None}
            assert sorted(await w.news(lease)) == ["1", "2", "4"]

    async def test_cancelled_children_that_never_started_have_ended(self) -> None:
        """Rule 7: each is told to its live parent; who was asked before keeps its reason."""
        async with self.world() as w:
            lease = await w.host()
            parent, _ = await w.family(lease)
            await w.ask("c", Action.CANCEL, reason=b"1")
            await w.done(lease, unit(parent, 2, spawns=(child(parent, "new", "new"),)))
            await w.done(lease, unit(parent, 3, leave=Leave.RELEASED))
            await w.ask("p", Action.CANCEL, reason=b"2")
            assert (await w.row("c")).cancel_reason == b"1"
            never = await w.row("new")
            assert (never.status, never.ending) == (Status.CANCELLED, CANCEL)
            claimed = (await w.take(lease))["p"]
            assert claimed.row.cancel_reason == b"2"
            assert [each.name for each in claimed.events] == [f"{CHILD_ENDED}cancelled"]

    async def test_a_cancelled_parent_that_compensates_asks_nobody(self) -> None:
        """Rule 8: what changes nothing for the parent changes nothing for its children."""
        async with self.world() as w:
            lease = await w.host()
            parent, _ = await w.family(lease)
            await w.done(lease, unit(parent, 2, status=Status.COMPENSATING))
            await w.ask("p", Action.CANCEL)
            assert (await w.row("c")).cancel_reason is None

    async def test_all_descendants_are_terminated(self) -> None:
        """S2.10: with the same ending; finished ones keep theirs, and nobody ended is told."""
        async with self.world() as w:
            lease = await w.host()
            rows = await self._line(w, lease)
            mailboxes = {each: await w.mailbox(each) for each in rows}
            await w.ask("1", Action.TERMINATE)
            found = {row.process_id: row for row in await w.listed()}
            assert {each: row.status for each, row in found.items()} == {
                "1": Status.TERMINATED,
                "2": Status.TERMINATED,
                "3": Status.COMPLETED,
                "4": Status.TERMINATED,
            }
            assert found["4"].ending == TERMINATE
            assert {found[each].owner for each in ("1", "2", "4")} == {lease.host_id}
            assert {each: await w.mailbox(each) for each in rows} == mailboxes
            assert sorted(await w.news(lease)) == ["1", "2", "4"]

    async def test_who_ends_by_the_same_request_is_not_told(self) -> None:
        """G10: of a line that is terminated at once nobody hears of the next one's end."""
        async with self.world() as w:
            lease = await w.host()
            rows = {"z": await w.held("z", lease)}
            # Of one instant, and each id before that of its parent: no order may depend on either.
            for above, below in (("z", "y"), ("y", "x"), ("x", "w")):
                await w.done(lease, unit(rows[above], 1, spawns=(child(rows[above], below),)))
                rows[below] = (await w.take(lease))[below].row
            await w.ask("z", Action.TERMINATE)
            for process_id in rows:
                found = await w.history(process_id)
                assert (found.row.status, found.events) == (Status.TERMINATED, ()), process_id

    async def test_to_terminate_again_ends_who_was_born_since(self) -> None:
        """S2.10: what is terminated already stays so, and its descendants end."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            ended = await w.ask("p", Action.TERMINATE)
            await w.add("late", parent=parent_of(parent))
            again = Ending(Status.TERMINATED, Form.ERROR, b"2")
            assert (await w.ask("p", Action.TERMINATE, ending=again)).ending == ended.ending
            assert (await w.row("late")).ending == again
            assert (await w.row(row.process_id)).ending == TERMINATE

    async def test_suspend_resume_and_retry_are_for_one_process(self) -> None:
        """S2.09: a child goes on while its parent is suspended, resumed, or tried again."""
        async with self.world() as w:
            lease = await w.host()
            parent, _ = await w.family(lease)
            before = await w.history("c")
            await w.ask("p", Action.SUSPEND)
            await w.ask("p", Action.RESUME)
            await w.done(lease, unit(parent, 2, ending=FAIL))
            await w.retry(await w.row("p"))
            assert await w.history("c") == before

    @needs(busy=True)
    async def test_a_request_with_a_busy_descendant_is_made_later(self) -> None:
        """G13: busy as a whole, or done as a whole; asked again it is done."""
        async with self.world() as w:
            lease = await w.host()
            await self._line(w, lease)
            control = w.control("1", Action.TERMINATE)
            async with w.holding("4"):
                (answer,) = await w.request(control)
                assert answer.refused is Refusal.BUSY
                assert (await w.row("1")).ending is None
            assert (await w.request(control))[0].refused is None
            assert (await w.row("4")).ending == TERMINATE

    @needs(reopen=True)
    async def test_a_family_is_there_again(self) -> None:
        """G1 G11: who is whose child, and what was told, survives, for later ends and requests."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                rows = await self._line(w, lease)
                told = await w.mailbox("2")
                assert len(told) == 1
                await w.done(lease, unit(rows["1"], 9, spawns=(child(rows["1"], "5", "5"),)))
                lease = await w.after(lease, "host-2")
                before = await w.everything()
                if not crash:
                    await w.storage.close()
                w.storage = await self.reopen(w.storage, crash=crash)
                assert await w.everything() == before
                lease = await w.host("host-3")
                row = (await w.take(lease))["2"].row
                await w.done(lease, unit(row, 1, ending=FAIL))
                (end,) = await w.mailbox("1")
                assert end.name == f"{CHILD_ENDED}failed"
                await w.ask("1", Action.TERMINATE)
                statuses = {each.process_id: each.status for each in await w.listed()}
                assert statuses["4"] is statuses["5"] is Status.TERMINATED
                assert await w.mailbox("2") == told
