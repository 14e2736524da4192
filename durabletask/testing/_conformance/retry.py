"""Conformance: what a retry puts aside, what it gives back, and for whom it is refused."""

import asyncio

from durabletask.storage import (
    NO_INDEX,
    Action,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Lease,
    Place,
    ProcessRow,
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
    World,
    bare,
    event,
    latest,
    needs,
    step,
    unit,
)


def place(key: str, kind: Kind = Kind.DO, index: int = NO_INDEX) -> Place:
    """Return where a checkpoint is found."""
    return Place(kind, key, index)


class RetryConformance(ConformanceBase):
    """Going on after a failure."""

    async def _failed(self, w: World, lease: Lease, ending: Ending = FAIL) -> ProcessRow:
        """Have a process "p" that recorded a, b, v, c and consumed its first event, and ended."""
        row = await w.held("p", lease)
        await w.sent(event("p", "e1"), event("p", "e2"), event("p", "e3"))
        await w.done(
            lease,
            unit(row, 1, step("a")),
            unit(row, 2, step("b"), latest("v"), consumes=(1,)),
            unit(row, 3, step("c", b"3"), consumes=(3,)),
            unit(row, 4, ending=ending),
        )
        return await w.row("p")

    async def test_a_retried_process_goes_on_with_what_it_has(self) -> None:
        """Rule 9 S2.12: live again, no ending, claimable at once; all else is kept."""
        async with self.world() as w:
            lease = await w.host()
            for ending in (FAIL, QUARANTINE):
                row = await self._failed(w, lease, ending)
                before = await w.history("p")
                w.clock.advance(1)
                retried = await w.retry(row)
                assert (retried.status, retried.ending) == (Status.RUNNING, None)
                assert (retried.finished_at, retried.owner, retried.wake_at) == (None, None, None)
                assert (retried.started_at, retried.input) == (row.started_at, row.input)
                assert (retried.incarnation, retried.generation) == (row.incarnation, 0)
                after = await w.history("p")
                assert (after.checkpoints, after.events) == (before.checkpoints, before.events)
                assert after.forgotten == ()
                taken = (await w.take(lease))["p"]
                assert [each.key for each in taken.checkpoints] == ["a", "b", "v", "c"]
                assert [each.event_id for each in taken.events] == ["e2"]
                await w.finish(lease, taken.row)
                assert list(await w.storage.purge(["p"])) == [None]

    async def test_what_a_retry_forgets_is_put_aside_and_stays_to_be_seen(self) -> None:
        """Rule 9: no claim hands it out, `read` shows it as it was, its place is free again."""
        async with self.world() as w:
            lease = await w.host()
            row = await self._failed(w, lease)
            before = await w.history("p")
            await w.retry(row, forget=(place("c"), place("a")))
            found = await w.history("p")
            assert [each.key for each in found.checkpoints] == ["b", "v"]
            a, b, v, c = before.checkpoints
            assert (found.checkpoints, found.forgotten) == ((b, v), (a, c))
            taken = (await w.take(lease))["p"]
            assert taken.checkpoints == (b, v)
            await w.done(lease, unit(taken.row, 1, step("c", b"4")))
            found = await w.history("p")
            assert [(each.key, each.payload) for each in found.checkpoints][-1] == ("c", b"4")
            assert found.forgotten == (a, c)

    async def test_a_place_is_kind_key_and_index(self) -> None:
        """Rule 9: what is forgotten is what is named; what is not there is passed over."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            many = [step("a", index=index) for index in range(8)]
            await w.done(
                lease,
                unit(row, 1, *many, step("a", kind=Kind.EVENT, index=3)),
                unit(row, 2, ending=FAIL),
            )
            forget = (place("a", index=3), place("a"), place("b"), place("a", Kind.VAR, 3))
            await w.retry(await w.row("p"), forget=forget)
            found = await w.history("p")
            assert bare(found.forgotten) == [step("a", index=3)]
            assert len(found.checkpoints) == 8

    async def test_what_was_forgotten_twice_is_seen_twice(self) -> None:
        """Rule 9: each attempt that a retry put aside stays, in the order recorded."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p")
            for turn in (1, 2, 3):
                row = (await w.take(lease))["p"].row
                failed = Checkpoint(Kind.DO, "a", NO_INDEX, Form.ERROR, b"%d" % turn)
                await w.done(lease, unit(row, 1, failed), unit(row, 2, ending=FAIL))
                await w.retry(await w.row("p"), forget=(place("a"),))
            found = await w.history("p")
            assert [each.payload for each in found.forgotten] == [b"1", b"2", b"3"]
            assert [each.epoch for each in found.forgotten] == sorted(
                {each.epoch for each in found.forgotten}
            )
            assert (await w.take(lease))["p"].checkpoints == ()

    async def test_a_retry_puts_consumed_events_back(self) -> None:
        """Rule 9 G8: at their old positions; unknown and unconsumed ones are passed over."""
        async with self.world() as w:
            lease = await w.host()
            row = await self._failed(w, lease)
            await w.retry(row, forget=(place("b"),), restores=(1, 2, 99))
            taken = (await w.take(lease))["p"]
            assert [each.position for each in taken.events] == [1, 2]
            assert [each.consumed for each in (await w.history("p")).events] == [False, False, True]
            (again,) = await w.send(event("p", "e1"))
            assert again.event is not None
            assert (again.event.position, again.event.consumed) == (1, False)
            await w.done(lease, unit(taken.row, 1, step("b"), consumes=(1, 2)))
            (outcome,) = await w.commit(lease, unit(taken.row, 2, consumes=(3,)))
            assert outcome.refused is Refusal.NOT_IN_MAILBOX

    async def test_a_retry_may_go_on_with_the_compensation(self) -> None:
        """Rule 8: failed while it compensated, it goes on as such and still cannot complete."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(
                lease,
                unit(row, 1, step("undo", kind=Kind.DECISION), status=Status.COMPENSATING),
                unit(row, 2, ending=FAIL),
            )
            retried = await w.retry(await w.row("p"), status=Status.COMPENSATING)
            assert retried.status is Status.COMPENSATING
            row = (await w.take(lease))["p"].row
            (outcome,) = await w.commit(lease, unit(row, 1, ending=FINISH))
            assert outcome.refused is Refusal.ILLEGAL_TRANSITION

    async def test_only_failed_and_quarantined_processes_are_retried(self) -> None:
        """Rule 9: what completed, was cancelled, terminated or lives is refused, unchanged."""
        async with self.world() as w:
            lease = await w.host()
            for ending in (FINISH, CANCEL, TERMINATE):
                row = await w.held(ending.status, lease)
                await w.done(lease, unit(row, 1, step("a"), ending=ending))
            await w.add("running", "suspended")
            await w.ask("suspended", Action.SUSPEND)
            before = await w.everything()
            ids = [FINISH.status, CANCEL.status, TERMINATE.status, "running", "suspended"]
            rows = [await w.row(each) for each in ids]
            answers = await w.request(
                *(
                    w.control(
                        row.process_id,
                        Action.RETRY,
                        incarnation=row.incarnation,
                        epoch=row.epoch + more,
                        forget=(place("a"),),
                    )
                    for row in rows
                    for more in (0, 1)
                )
            )
            assert {each.refused for each in answers} == {Refusal.ILLEGAL_TRANSITION}
            assert await w.everything() == before

    async def test_a_retry_is_of_the_history_that_its_caller_has_read(self) -> None:
        """DESIGN 5: in another epoch or incarnation it is refused, and forgets nothing."""
        async with self.world() as w:
            lease = await w.host()
            row = await self._failed(w, lease)
            before = await w.everything()
            for epoch, incarnation in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                (answer,) = await w.request(
                    w.control(
                        "p",
                        Action.RETRY,
                        incarnation=row.incarnation + incarnation,
                        epoch=row.epoch + epoch,
                        forget=(place("a"),),
                        restores=(1,),
                    )
                )
                assert (answer.refused, answer.row) == (Refusal.NOT_OWNER, None)
                assert await w.everything() == before

    async def test_of_two_retries_one_counts(self) -> None:
        """DESIGN 5: ten at once, with other ids, are one retry; the epoch tells them apart."""
        async with self.world() as w:
            lease = await w.host()
            row = await self._failed(w, lease)
            read = {"incarnation": row.incarnation, "epoch": row.epoch}
            controls = [w.control("p", Action.RETRY, **read) for _ in range(10)]
            answers = await asyncio.gather(*(w.request(each) for each in controls))
            refused = [each.refused for (each,) in answers]
            assert refused.count(None) == 1
            assert refused.count(Refusal.ILLEGAL_TRANSITION) == 9
            # It fails again: what was meant for the first failure is not for this one.
            taken = (await w.take(lease))["p"].row
            await w.done(lease, unit(taken, 1, ending=FAIL))
            late = await w.request(w.control("p", Action.RETRY, **read))
            assert late[0].refused is Refusal.NOT_OWNER

    async def test_a_late_copy_of_a_retry_changes_nothing(self) -> None:
        """DESIGN 5: after the process has failed again, the copy starts no third attempt."""
        async with self.world() as w:
            lease = await w.host()
            row = await self._failed(w, lease)
            control = w.control(
                "p",
                Action.RETRY,
                incarnation=row.incarnation,
                epoch=row.epoch,
                forget=(place("a"),),
                restores=(1,),
            )
            assert (await w.request(control))[0].refused is None
            taken = (await w.take(lease))["p"].row
            await w.done(lease, unit(taken, 1, step("a"), consumes=(1,)))
            await w.done(lease, unit(taken, 2, ending=FAIL))
            before = await w.everything()
            (late,) = await w.request(control)
            assert late.refused is None
            assert late.row is not None
            assert late.row.status is Status.FAILED
            assert await w.everything() == before

    async def test_a_retry_is_the_end_of_an_epoch(self) -> None:
        """G5 I8: the last owner's late units are refused, those that were recorded too."""
        async with self.world() as w:
            lease = await w.host()
            row = await self._failed(w, lease)
            retried = await w.retry(row, forget=(place("a"),))
            assert retried.epoch > row.epoch
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(row, 1, step("a")),
                unit(row, 4, ending=FAIL),
                unit(row, 5, step("d")),
            )
            assert {each.refused for each in outcomes} == {Refusal.NOT_OWNER}
            assert await w.everything() == before
            assert (await w.take(lease))["p"].row.epoch > retried.epoch

    async def test_a_retry_begins_with_no_deaths(self) -> None:
        """Rule 12: what was set aside for killing its hosts has all its lives again."""
        async with self.world() as w:
            await w.add("p")
            lease = await w.host("host-0")
            for number in range(1, 4):
                await w.take(lease)
                await w.kill(lease)
                lease = await w.host(f"host-{number}")
            row = (await w.take(lease))["p"].row
            assert row.deaths == 3
            await w.done(lease, unit(row, 1, ending=QUARANTINE))
            await w.retry(await w.row("p"))
            assert (await w.take(lease))["p"].row.deaths == 0

    async def test_a_retried_process_ends_anew(self) -> None:
        """G10: with another ending and time; what was asked before the failure still holds."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.ask("p", Action.CANCEL, reason=b'"why"')
            await w.done(
                lease, unit(row, 1, step("a"), meets_cancel=True), unit(row, 2, ending=FAIL)
            )
            await w.retry(await w.row("p"))
            taken = (await w.take(lease))["p"].row
            assert (taken.cancel_reason, taken.cancel_met) == (b'"why"', True)
            await w.rest(lease, 5)
            await w.done(lease, unit(taken, 1, ending=FINISH))
            found = await w.row("p")
            assert (found.status, found.ending) == (Status.COMPLETED, FINISH)
            assert found.finished_at == w.clock.now()

    @needs(reopen=True)
    async def test_what_was_asked_and_forgotten_is_there_again(self) -> None:
        """G1: requests, their ids, what they cover and what they put aside survive."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                row = await self._failed(w, lease)
                await w.retry(row, forget=(place("a"), place("c")), restores=(1,))
                late = w.control("p", Action.SUSPEND, reason=b'"why"')
                await w.request(late)
                await w.ask("p", Action.CANCEL, reason=b'"stop"')
                await w.add("compensates")
                taken = (await w.take(lease))["compensates"].row
                compensates = unit(taken, 1, status=Status.COMPENSATING)
                await w.done(lease, compensates)
                await w.ask("compensates", Action.SUSPEND)
                lease = await w.after(lease, "host-2")
                before = await w.everything()
                if not crash:
                    await w.storage.close_lease(lease)
                    await w.storage.close()
                w.storage = await self.reopen(w.storage, crash=crash)
                assert await w.everything() == before
                resumed = await w.ask("compensates", Action.RESUME)
                assert resumed.status is Status.COMPENSATING
                assert (await w.ask("p", Action.RESUME)).suspend_reason is None
                assert (await w.request(late))[0].refused is None
                found = await w.history("p")
                assert (found.row.status, found.row.cancel_reason) == (Status.RUNNING, b'"stop"')
                assert [each.key for each in found.forgotten] == ["a", "c"]
                claimed = (await w.take(await w.host("host-3")))["p"]
                assert [each.key for each in claimed.checkpoints] == ["b", "v"]
                assert [each.position for each in claimed.events] == [1, 2]
