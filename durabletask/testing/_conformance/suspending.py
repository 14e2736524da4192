"""Conformance: a suspended process does not run, loses nothing, and goes on as it was."""

from datetime import timedelta

from durabletask.storage import (
    Action,
    Kind,
    Leave,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FAIL,
    FINISH,
    QUARANTINE,
    event,
    step,
    unit,
)


class SuspensionConformance(ConformanceBase):
    """Suspend and resume."""

    async def test_a_suspended_process_shows_why_and_goes_on_as_it_was(self) -> None:
        """S2.09: reason in the row until it is resumed; running, waiting, compensating again."""
        async with self.world() as w:
            lease = await w.host()
            for status in (Status.RUNNING, Status.WAITING, Status.COMPENSATING):
                row = await w.held(status, lease)
                await w.done(lease, unit(row, 1, status=status, leave=Leave.RELEASED))
                suspended = await w.ask(status, Action.SUSPEND, reason=b'"audit"')
                assert suspended.status is Status.SUSPENDED
                assert suspended.suspend_reason == b'"audit"'
            assert (await w.claim(lease)).claimed == ()
            for status in (Status.RUNNING, Status.WAITING, Status.COMPENSATING):
                resumed = await w.ask(status, Action.RESUME)
                assert (resumed.status, resumed.suspend_reason) == (status, None)
            assert len(await w.take(lease)) == 3

    async def test_a_second_suspension_changes_nothing(self) -> None:
        """S2.09: the first reason stays, and one resume is enough."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p")
            await w.ask("p", Action.SUSPEND, reason=b"1")
            assert (await w.ask("p", Action.SUSPEND, reason=b"2")).suspend_reason == b"1"
            assert (await w.ask("p", Action.RESUME)).status is Status.RUNNING
            assert list(await w.take(lease)) == ["p"]

    async def test_what_fell_due_meanwhile_runs_at_resume(self) -> None:
        """S2.09: events gather, time passes, nothing runs; resumed it is claimed with all of it."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            wake_at = w.clock.now() + timedelta(seconds=1)
            parks = {"status": Status.WAITING, "leave": Leave.PARKED}
            await w.done(lease, unit(row, 1, **parks, wake_at=wake_at))
            await w.ask("p", Action.SUSPEND)
            await w.sent(event("p", "e1"), event("p", "e2"))
            await w.rest(lease, 5)
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at, claims.more) == ((), None, False)
            await w.ask("p", Action.RESUME)
            taken = (await w.take(lease))["p"]
            assert (taken.row.status, taken.row.wake_at) == (Status.WAITING, wake_at)
            assert [each.event_id for each in taken.events] == ["e1", "e2"]

    async def test_resumed_a_parked_process_is_claimable_at_once(self) -> None:
        """S2.09: parked before or while suspended, it is looked at, long before its wait is due."""
        async with self.world() as w:
            lease = await w.host()
            before, meanwhile = await w.add("before", "meanwhile", lease=lease)
            wake_at = w.clock.now() + timedelta(days=30)
            parks = {"status": Status.WAITING, "leave": Leave.PARKED, "wake_at": wake_at}
            await w.done(lease, unit(before, 1, **parks))
            for process_id in ("before", "meanwhile"):
                await w.ask(process_id, Action.SUSPEND)
            await w.news(lease)
            await w.done(lease, unit(meanwhile, 1, **parks))
            assert (await w.claim(lease)).claimed == ()
            for process_id in ("before", "meanwhile"):
                assert (await w.ask(process_id, Action.RESUME)).status is Status.WAITING
            assert sorted(await w.take(lease)) == ["before", "meanwhile"]

    async def test_a_start_in_the_future_is_waited_for_after_a_resume_too(self) -> None:
        """S1.02: suspended and resumed before its time, a process still begins at its time."""
        async with self.world() as w:
            lease = await w.host()
            start_at = w.clock.now() + timedelta(hours=1)
            await w.add("p", start_at=start_at)
            await w.ask("p", Action.SUSPEND)
            assert (await w.claim(lease)).next_at is None
            await w.ask("p", Action.RESUME)
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at) == ((), start_at)

    async def test_the_owner_of_a_suspended_process_still_records(self) -> None:
        """S2.09: steps count; a status is for the time after; an ending is refused, whole."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            assert (await w.ask("p", Action.SUSPEND)).owner == lease.host_id
            assert (await w.news(lease))["p"].row.status is Status.SUSPENDED
            wake_at = w.clock.now() + timedelta(days=1)
            await w.done(lease, unit(row, 1, step("a"), status=Status.WAITING, wake_at=wake_at))
            before = await w.history("p")
            assert (before.row.status, before.row.wake_at) == (Status.SUSPENDED, wake_at)
            for ending in (FINISH, FAIL, QUARANTINE):
                (outcome,) = await w.commit(lease, unit(row, 2, step("b"), ending=ending))
                assert outcome.refused is Refusal.ILLEGAL_TRANSITION
                assert await w.history("p") == before
            resumed = await w.ask("p", Action.RESUME)
            assert (resumed.status, resumed.wake_at) == (Status.WAITING, wake_at)
            assert resumed.owner == lease.host_id
            assert (await w.news(lease))["p"].row.status is Status.WAITING
            await w.done(lease, unit(row, 3, step("b"), ending=FINISH))

    async def test_compensation_stays_one_way_behind_a_suspension(self) -> None:
        """Rule 8: what a host records of a suspended process follows what it was, and is."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.ask("p", Action.SUSPEND)
            decision = step("undo", b'["a"]', kind=Kind.DECISION)
            await w.done(lease, unit(row, 1, decision, status=Status.COMPENSATING))
            assert (await w.row("p")).status is Status.SUSPENDED
            (outcome,) = await w.commit(lease, unit(row, 2, status=Status.RUNNING))
            assert outcome.refused is Refusal.ILLEGAL_TRANSITION
            assert (await w.ask("p", Action.RESUME)).status is Status.COMPENSATING

    async def test_a_suspended_process_can_be_cancelled_and_terminated(self) -> None:
        """Issue 4.2: the request to cancel waits for the resume; terminated it ends at once."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("cancel", "terminate", lease=lease)
            await w.done(lease, *(unit(row, 1, leave=Leave.PARKED) for row in rows))
            for row in rows:
                await w.ask(row.process_id, Action.SUSPEND, reason=b'"stop"')
            pending = await w.ask("cancel", Action.CANCEL, reason=b'"why"')
            assert (pending.status, pending.cancel_reason) == (Status.SUSPENDED, b'"why"')
            assert await w.take(lease) == {}
            ended = await w.ask("terminate", Action.TERMINATE)
            assert (ended.status, ended.suspend_reason) == (Status.TERMINATED, None)
            await w.ask("cancel", Action.RESUME)
            assert (await w.take(lease))["cancel"].row.cancel_reason == b'"why"'
