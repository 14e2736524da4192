"""Conformance: what can be asked of a process from outside, and that a repeat changes nothing."""

import asyncio
from datetime import timedelta

from durabletask.storage import DONE, REQUESTS_KEPT, Action, Leave, Refusal, Status
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    CANCEL,
    FAIL,
    FINISH,
    TERMINATE,
    World,
    event,
    new,
    step,
    unit,
)


class RequestConformance(ConformanceBase):
    """Cancel and terminate; repeats, batches, news and races of all requests."""

    # --- cancel -----------------------------------------------------------------------------

    async def test_a_request_to_cancel_is_pending_until_it_is_met(self) -> None:
        """Rule 7: reason in the row at once; met with what a unit records; the reason stays."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            asked = await w.ask("p", Action.CANCEL, reason=b'"too late"')
            assert (asked.cancel_reason, asked.cancel_met) == (b'"too late"', False)
            assert (asked.status, asked.owner, asked.ending) == (Status.RUNNING, "host-1", None)
            await w.done(lease, unit(row, 1, step("a")))
            assert not (await w.row("p")).cancel_met
            await w.done(lease, unit(row, 2, step("b"), meets_cancel=True))
            met = await w.row("p")
            assert (met.cancel_reason, met.cancel_met) == (b'"too late"', True)
            await w.done(lease, unit(row, 3, step("c"), ending=FINISH))
            assert (await w.row("p")).status is Status.COMPLETED

    async def test_there_is_one_request_to_cancel_for_all_time(self) -> None:
        """Rule 7: a second one, before or after the first was met, changes nothing; no news."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.ask("p", Action.CANCEL, reason=b'"first"')
            assert list(await w.news(lease)) == ["p"]
            for meets in (False, True):
                await w.done(lease, unit(row, 1 + meets, step(f"k{meets}"), meets_cancel=meets))
                again = await w.ask("p", Action.CANCEL, reason=b'"second"')
                assert (again.cancel_reason, again.cancel_met) == (b'"first"', meets)
                assert await w.news(lease) == {}

    async def test_only_a_pending_request_can_be_met(self) -> None:
        """A unit that meets what nobody asked for leaves nothing for a later request to find."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, step("a"), meets_cancel=True))
            found = await w.row("p")
            assert (found.cancel_reason, found.cancel_met) == (None, False)
            assert not (await w.ask("p", Action.CANCEL)).cancel_met

    async def test_what_compensates_cannot_be_cancelled(self) -> None:
        """A process in compensation finishes it: to cancel it changes nothing; suspended too."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, status=Status.COMPENSATING))
            assert (await w.ask("p", Action.CANCEL)).cancel_reason is None
            await w.ask("p", Action.SUSPEND)
            assert (await w.ask("p", Action.CANCEL)).cancel_reason is None
            resumed = await w.ask("p", Action.RESUME)
            assert (resumed.status, resumed.cancel_reason) == (Status.COMPENSATING, None)

    async def test_what_was_never_started_is_cancelled_at_once(self) -> None:
        """S2.07: claimable, for later or suspended: it ends with the ending given, for good."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("now", "held up")
            await w.add("later", start_at=w.clock.now() + timedelta(days=1))
            await w.ask("held up", Action.SUSPEND)
            for process_id in ("now", "later", "held up"):
                row = await w.ask(process_id, Action.CANCEL, reason=b'"no need"')
                assert (row.status, row.ending) == (Status.CANCELLED, CANCEL)
                assert (row.finished_at, row.epoch) == (w.clock.now(), 0)
                assert (row.cancel_reason, row.suspend_reason) == (b'"no need"', None)
            await w.rest(lease, timedelta(days=2))
            lease = await w.host()
            assert (await w.claim(lease)).claimed == ()
            assert list(await w.storage.purge(["now", "later", "held up"])) == [None] * 3

    async def test_who_was_started_once_is_not_cancelled_at_once(self) -> None:
        """Rule 7: released without a record, it still meets the request in its own code."""
        async with self.world() as w:
            lease = await w.host()
            await w.done(lease, unit(await w.held("p", lease), 1, leave=Leave.RELEASED))
            row = await w.ask("p", Action.CANCEL, reason=b'"why"')
            assert (row.status, row.ending) == (Status.RUNNING, None)
            assert (await w.take(lease))["p"].row.cancel_reason == b'"why"'

    async def test_a_parked_process_comes_back_to_be_cancelled(self) -> None:
        """Rule 7 G12: asked to cancel it is claimable at once, long before its wait is due."""
        async with self.world() as w:
            lease = await w.host()
            due, called = await w.add("due", "called", lease=lease)
            wake_at = w.clock.now() + timedelta(days=30)
            parks = {"status": Status.WAITING, "leave": Leave.PARKED}
            await w.done(lease, unit(due, 1, **parks, wake_at=wake_at), unit(called, 1, **parks))
            for process_id in ("due", "called"):
                assert not (await w.ask(process_id, Action.CANCEL)).parked
            taken = await w.take(lease)
            assert sorted(taken) == ["called", "due"]
            assert taken["due"].row.wake_at == wake_at
            assert {each.row.cancel_reason for each in taken.values()} == {b"null"}

    # --- terminate --------------------------------------------------------------------------

    async def test_a_terminated_process_has_ended(self) -> None:
        """S2.10: status, ending and time of the end at once; its history and mailbox stay."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            wake_at = w.clock.now() + timedelta(days=1)
            await w.done(lease, unit(row, 1, step("a"), status=Status.WAITING, wake_at=wake_at))
            await w.done(lease, unit(row, 2, leave=Leave.PARKED))
            w.clock.advance(1)
            ended = await w.ask("p", Action.TERMINATE)
            assert (ended.status, ended.ending) == (Status.TERMINATED, TERMINATE)
            assert (ended.finished_at, ended.wake_at) == (w.clock.now(), None)
            assert (ended.owner, ended.parked) == (None, False)
            found = await w.history("p")
            assert [each.key for each in found.checkpoints] == ["a"]
            assert [each.event_id for each in found.events] == ["e1"]
            (answer,) = await w.send(event("p", "e2"))
            assert answer.refused is Refusal.FINISHED
            await w.storage.renew(lease)
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at) == ((), None)

    async def test_the_owner_of_a_terminated_process_can_only_let_go(self) -> None:
        """G10 I14: it is news to it; every unit of its is refused but the one that leaves."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a")))
            ended = await w.ask("p", Action.TERMINATE)
            assert (ended.owner, ended.owner_label) == (lease.host_id, lease.label)
            (news,) = (await w.news(lease)).values()
            assert (news.row.status, news.row.ending) == (Status.TERMINATED, TERMINATE)
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(row, 2, step("b")),
                unit(row, 3, step("c"), consumes=(1,)),
                unit(row, 4, status=Status.WAITING),
                unit(row, 5, ending=FINISH),
                unit(row, 6, step("d"), leave=Leave.RELEASED),
            )
            assert {each.refused for each in outcomes} == {Refusal.FINISHED}
            assert await w.everything() == before
            assert await w.commit(lease, unit(row, 1, step("a"))) == [DONE]  # a late copy
            await w.done(lease, unit(row, 7, leave=Leave.RELEASED))
            left = await w.row("p")
            assert (left.owner, left.status, left.ending) == (None, Status.TERMINATED, TERMINATE)
            (outcome,) = await w.commit(lease, unit(row, 8, step("e")))
            assert outcome.refused in {Refusal.FINISHED, Refusal.NOT_OWNER}
            assert await w.take(lease) == {}

    async def test_a_terminated_process_is_purged_once_it_was_let_go(self) -> None:
        """S2.11: while its host may still be in it, neither purge nor replace takes it away."""
        async with self.world() as w:
            lease = await w.host()
            first, second = await w.add("p", "q", lease=lease)
            for process_id in ("p", "q"):
                await w.ask(process_id, Action.TERMINATE)
            assert list(await w.storage.purge(["p", "q"])) == [Refusal.BUSY] * 2
            (created,) = await w.storage.create([new("q", creation_id="next", replace=True)])
            assert (created.row, created.refused) == (None, Refusal.BUSY)
            await w.done(lease, unit(first, 1, leave=Leave.RELEASED))
            assert list(await w.storage.purge(["p", "q"])) == [None, Refusal.BUSY]
            await w.kill(lease)
            await w.claim(await w.host("host-2"))
            assert list(await w.storage.purge(["q"])) == [None]
            assert second.owner == "host-1"

    async def test_to_terminate_twice_is_to_terminate_once(self) -> None:
        """S2.10: another request finds it so; what has ended otherwise is refused, unchanged."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("t")
            first = await w.ask("t", Action.TERMINATE)
            w.clock.advance(5)
            second = await w.ask("t", Action.TERMINATE, ending=FAIL)
            assert (second.ending, second.finished_at) == (first.ending, first.finished_at)
            for ending in (FINISH, FAIL, CANCEL):
                row = await w.held(ending.status, lease)
                await w.done(lease, unit(row, 1, ending=ending))
                before = await w.everything()
                (answer,) = await w.request(w.control(ending.status, Action.TERMINATE))
                assert (answer.refused, answer.row) == (Refusal.FINISHED, None)
                assert await w.everything() == before

    # --- repeats ----------------------------------------------------------------------------

    async def test_a_late_copy_of_a_request_changes_nothing(self) -> None:
        """DESIGN 5: the same request id is the same request, and the answer shows how it stands."""
        async with self.world() as w:
            await w.add("p")
            suspend = w.control("p", Action.SUSPEND)
            assert (await w.request(suspend))[0].refused is None
            await w.ask("p", Action.RESUME)
            w.clock.advance(1)
            before = await w.everything()
            (late,) = await w.request(suspend)
            assert late.refused is None
            assert late.row is not None
            assert late.row.status is Status.RUNNING
            assert await w.everything() == before

    async def test_the_latest_requests_are_known(self) -> None:
        """DESIGN 5: of so many of the latest, each late copy is harmless."""
        async with self.world() as w:
            await w.add("p")
            made = [
                w.control("p", Action.RESUME if number % 2 else Action.SUSPEND)
                for number in range(REQUESTS_KEPT)
            ]
            for control in made:
                await w.request(control)
            before = await w.everything()
            w.clock.advance(1)
            for control in made:
                assert (await w.request(control))[0].refused is None
                assert await w.everything() == before

    async def test_a_repeat_finds_its_request_whatever_happened_since(self) -> None:
        """DESIGN 5: granted before it ended, the repeat is granted; a new request is refused."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            asked = [w.control("p", each) for each in (Action.CANCEL, Action.SUSPEND)]
            first = await w.request(*asked)
            await w.ask("p", Action.RESUME)
            await w.done(lease, unit(row, 1, ending=FINISH))
            again = await w.request(*asked)
            assert [each.refused for each in (*first, *again)] == [None] * 4
            assert {each.row.status for each in again if each.row} == {Status.COMPLETED}
            (answer,) = await w.request(w.control("p", Action.CANCEL))
            assert answer.refused is Refusal.FINISHED

    async def test_requests_of_a_replaced_process_are_not_those_of_the_next(self) -> None:
        """G9: the next incarnation begins unasked, and knows no request of the one before."""
        async with self.world() as w:
            await w.add("p")
            suspend = w.control("p", Action.SUSPEND, request_id="r")
            await w.request(suspend)
            await w.ask("p", Action.TERMINATE)
            await w.storage.purge(["p"])
            await w.add("p", creation_id="second")
            row = await w.row("p")
            assert (row.status, row.suspend_reason, row.cancel_reason) == (
                Status.RUNNING,
                None,
                None,
            )
            (answer,) = await w.request(suspend)
            assert answer.row is not None
            assert answer.row.status is Status.SUSPENDED

    # --- batches, news, races ---------------------------------------------------------------

    async def test_requests_of_a_batch_are_answered_each_by_itself(self) -> None:
        """G13: in the order given; refused and unknown ones do not touch the others."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p", "q")
            await w.finish(lease, await w.held("end", lease))
            answers = await w.request(
                w.control("p", Action.SUSPEND, reason=b"1"),
                w.control("none", Action.SUSPEND),
                w.control("end", Action.SUSPEND),
                w.control("p", Action.RESUME),
                w.control("q", Action.SUSPEND),
                w.control("p", Action.RETRY, incarnation=1),
                w.control("p", Action.TERMINATE),
            )
            assert [each.refused for each in answers] == [
                None,
                Refusal.UNKNOWN_PROCESS,
                Refusal.FINISHED,
                None,
                None,
                Refusal.ILLEGAL_TRANSITION,
                None,
            ]
            assert [None if each.row is None else each.row.status for each in answers] == [
                Status.SUSPENDED,
                None,
                None,
                Status.RUNNING,
                Status.SUSPENDED,
                None,
                Status.TERMINATED,
            ]

    async def test_a_thousand_requests_are_one_batch(self) -> None:
        """Rule 14: as many as the seam allows, each answered."""
        async with self.world() as w:
            ids = [f"p{number:03}" for number in range(1_000)]
            await w.add(*ids)
            answers = await w.request(*(w.control(each, Action.SUSPEND) for each in ids))
            rows = [each.row for each in answers]
            assert [row.process_id for row in rows if row] == ids
            assert {row.status for row in rows if row} == {Status.SUSPENDED}

    async def test_an_owner_hears_of_every_request_once(self) -> None:
        """G12: each is news in its next claim, without room in it; a repeated claim brings it."""
        async with self.world() as w:
            lease = await w.host()
            await w.held("p", lease)
            for action in (Action.CANCEL, Action.SUSPEND, Action.RESUME, Action.TERMINATE):
                await w.ask("p", action)
                first = await w.claim(lease, count_max=0, claim_id=f"c/{action}")
                assert [each.fresh for each in first.claimed] == [False]
                assert first.claimed[0].row == await w.row("p")
                again = await w.claim(lease, count_max=0, claim_id=f"c/{action}")
                assert again.claimed == first.claimed
                assert await w.news(lease) == {}

    async def test_a_request_that_was_not_heard_of_does_not_sleep(self) -> None:
        """C37: parked by a host that has not heard of it, the process is claimable at once."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.ask("p", Action.CANCEL)
            await w.done(lease, unit(row, 1, status=Status.WAITING, leave=Leave.PARKED))
            assert not (await w.row("p")).parked
            assert (await w.take(lease))["p"].row.cancel_reason == b"null"

    async def test_requests_reach_what_a_dead_host_holds(self) -> None:
        """Issue 4.2 G12: each counts while nobody has noticed the death, and for the next host."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("cancel", "terminate", "suspend", lease=lease)
            await w.done(lease, *(unit(row, 1, step("a")) for row in rows))
            await w.kill(lease)
            for action in (Action.CANCEL, Action.TERMINATE, Action.SUSPEND):
                await w.ask(action, action)
            lease = await w.host("host-2")
            taken = await w.take(lease)
            assert {key: each.row.cancel_reason for key, each in taken.items()} == {
                "cancel": b"null"
            }
            assert list(await w.storage.purge(["terminate"])) == [None]
            await w.ask("suspend", Action.RESUME)
            assert list(await w.take(lease)) == ["suspend"]

    async def test_fifty_concurrent_requests_leave_one_legal_status(self) -> None:
        """Issue 4.2: whatever goes first, all later answers follow from it, and all agree."""
        async with self.world() as w:
            lease = await w.host()
            parked = await w.held("parked", lease)
            await w.done(lease, unit(parked, 1, status=Status.WAITING, leave=Leave.PARKED))
            await w.held("held", lease)
            await w.add("free")
            for process_id in ("held", "parked", "free"):
                await self._ask_at_once(w, process_id)

    async def _ask_at_once(self, w: World, process_id: str) -> None:
        mixed = (Action.SUSPEND, Action.CANCEL, Action.RESUME, Action.RETRY, Action.TERMINATE)
        controls = [w.control(process_id, mixed[number % 5]) for number in range(50)]
        answers = await asyncio.gather(*(w.request(each) for each in controls))
        found = await w.row(process_id)
        for control, (answer,) in zip(controls, answers, strict=True):
            if control.action is Action.RETRY:
                assert answer.refused is Refusal.ILLEGAL_TRANSITION
            elif answer.refused is None:
                assert answer.row is not None
            else:
                assert answer.refused is Refusal.FINISHED
                assert control.action is not Action.TERMINATE or found.status is Status.CANCELLED
        assert found.status in {Status.TERMINATED, Status.CANCELLED}
        assert found.finished_at is not None
        assert found.ending == (TERMINATE if found.status is Status.TERMINATED else CANCEL)
        again = await asyncio.gather(*(w.request(each) for each in controls[-REQUESTS_KEPT:]))
        assert {each.refused for (each,) in again} <= {
            None,
            Refusal.FINISHED,
            Refusal.ILLEGAL_TRANSITION,
        }
        assert await w.row(process_id) == found
