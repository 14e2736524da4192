"""Conformance: a process that restarts keeps its id, its owner and its mailbox, and no history."""

from datetime import timedelta

from durabletask.storage import (
    DONE,
    EVENTS_KEPT,
    FINISHED,
    NO_INDEX,
    Action,
    Kind,
    Leave,
    Place,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FAIL,
    FINISH,
    event,
    latest,
    needs,
    parent_of,
    step,
    unit,
)


class RestartConformance(ConformanceBase):
    """The next generation."""

    async def test_a_restart_begins_anew_under_the_same_id(self) -> None:
        """S2.14: next generation, new arguments, running; who it is and whose does not change."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease, tags={"team": "red"})
            wake_at = w.clock.now() + timedelta(days=1)
            await w.done(lease, unit(row, 1, step("a"), latest("v")))
            await w.done(lease, unit(row, 2, status=Status.WAITING, wake_at=wake_at))
            await w.rest(lease, 1)
            await w.done(lease, unit(row, 3, restart=b"[2]"))
            found = await w.history("p")
            assert (found.row.generation, found.row.input) == (1, b"[2]")
            assert (found.row.status, found.row.wake_at) == (Status.RUNNING, None)
            assert (found.row.incarnation, found.row.epoch, found.row.seq) == (
                row.incarnation,
                row.epoch,
                3,
            )
            assert (found.row.owner, found.row.started_at) == (lease.host_id, row.started_at)
            assert (found.row.creation_id, found.row.input_digest) == (
                row.creation_id,
                row.input_digest,
            )
            assert (found.row.created_at, found.row.tags) == (row.created_at, {"team": "red"})
            assert (found.checkpoints, found.forgotten) == ((), ())

    async def test_a_restart_makes_every_key_free_again(self) -> None:
        """S2.14: the first write of the new generation wins, and the numbers of units go on."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(
                lease,
                unit(row, 1, step("a", b"1"), *(step(f"b{n}") for n in range(9))),
                unit(row, 2, restart=b"[2]"),
                unit(row, 3, step("a", b"2")),
            )
            (outcome,) = await w.commit(lease, unit(row, 4, step("a", b"3")))
            assert [each.payload for each in outcome.held] == [b"2"]
            assert await w.payloads("p") == {"a": b"2"}
            lease = await w.after(lease, "host-2")
            claimed = (await w.take(lease))["p"]
            assert (claimed.row.generation, claimed.row.input) == (1, b"[2]")
            assert [each.payload for each in claimed.checkpoints] == [b"2"]

    async def test_unconsumed_events_stay(self) -> None:
        """S2.14 G8: at their positions, still in order, but for those that the restart consumes."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(*(event("p", f"e{number}") for number in range(1, 5)))
            await w.done(lease, unit(row, 1, step("a"), consumes=(1,)))
            await w.done(lease, unit(row, 2, restart=b"[2]", consumes=(3,)))
            assert [each.event_id for each in await w.mailbox("p")] == ["e2", "e4"]
            (answer,) = await w.send(event("p", "e5"))
            assert answer.event is not None
            assert answer.event.position == 5
            await w.done(lease, unit(row, 3, step("a"), consumes=(2, 4)))
            (outcome,) = await w.commit(lease, unit(row, 4, restart=b"[3]", consumes=(1,)))
            assert outcome.refused is Refusal.NOT_IN_MAILBOX
            assert (await w.row("p")).generation == 1

    async def test_a_consumed_event_is_known_after_a_restart(self) -> None:
        """G8 C31: the same event id, raised again in the next generation, is the same event."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, restart=b"[2]", consumes=(1,)))
            (again,) = await w.send(event("p", "e1"))
            assert again.event is not None
            assert (again.event.position, again.event.consumed) == (1, True)
            assert await w.mailbox("p") == []

    async def test_of_the_consumed_events_the_latest_are_kept(self) -> None:
        """Rule 14: a restart keeps so many and drops the rest; what is unconsumed always stays."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            total = EVENTS_KEPT + 10
            for start in range(0, total, 500):
                batch = [event("p", f"e{n}") for n in range(start, min(start + 500, total))]
                await w.send(*batch, mailbox_max=total)
            taken = tuple(position for position in range(2, total + 1) if position != 5)
            await w.done(lease, unit(row, 1, step("a"), consumes=taken))
            await w.done(lease, unit(row, 2, restart=b"[2]"))
            found = (await w.history("p")).events
            assert [each.position for each in found if not each.consumed] == [1, 5]
            kept = [each.position for each in found if each.consumed]
            assert kept == list(range(total - EVENTS_KEPT + 1, total + 1))
            (again,) = await w.send(event("p", f"e{total - EVENTS_KEPT}"))
            assert again.event is not None
            assert (again.event.position, again.event.consumed) == (
                total - EVENTS_KEPT + 1,
                True,
            )
            (fresh,) = await w.send(event("p", "new"))
            assert fresh.event is not None
            assert fresh.event.position == total + 1

    async def test_ends_of_children_are_gone_with_the_restart(self) -> None:
        """S2.14: what the generation before has not taken is for nobody; positions go on rising."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.sent(event("p", "e1"))
            await w.finish(lease, row)
            assert [each.position for each in await w.mailbox("p")] == [1, 2]
            await w.done(lease, unit(parent, 2, restart=b"[2]"))
            assert [each.event_id for each in (await w.history("p")).events] == ["e1"]
            await w.sent(event("p", "e2"))
            assert [each.position for each in await w.mailbox("p")] == [1, 3]
            await w.done(lease, unit(parent, 3, step("a"), consumes=(1, 3)))

    async def test_a_restart_may_leave_its_host(self) -> None:
        """S2.14: in one unit; the next generation is claimed afresh, in the next epoch."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, step("a"), status=Status.WAITING))
            await w.done(lease, unit(row, 2, restart=b"[2]", leave=Leave.RELEASED))
            found = await w.row("p")
            assert (found.owner, found.parked, found.status) == (None, False, Status.RUNNING)
            claimed = (await w.take(lease))["p"]
            assert (claimed.row.generation, claimed.row.input) == (1, b"[2]")
            assert (claimed.row.epoch, claimed.row.seq, claimed.checkpoints) == (2, 0, ())

    async def test_a_late_copy_of_a_restart_changes_nothing(self) -> None:
        """DESIGN 5: repeated, alone or in its batch, it restarts nothing a second time."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            batch = [unit(row, 1, latest("v")), unit(row, 2, restart=b"[2]", consumes=(1,))]
            await w.done(lease, *batch)
            await w.done(lease, unit(row, 3, step("b")))
            before = await w.everything()
            w.clock.advance(1)
            assert await w.commit(lease, *batch) == [DONE, DONE]
            assert await w.commit(lease, batch[1]) == [DONE]
            assert await w.everything() == before

    async def test_a_late_step_of_the_generation_before_is_not_recorded(self) -> None:
        """G2 S2.14: its key is free again, and must not get the result of another generation."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            steps = [unit(row, 1, step("a", b"1")), unit(row, 2, step("b", b"1"))]
            await w.done(lease, *steps)
            await w.done(lease, unit(row, 3, restart=b"[2]"))
            for late in steps:
                assert await w.commit(lease, late) == [DONE]
            assert await w.commit(lease, *steps) == [DONE, DONE]
            assert await w.payloads("p") == {}
            await w.done(lease, unit(row, 4, step("a", b"2")))
            assert await w.payloads("p") == {"a": b"2"}

    async def test_a_restart_is_bounded(self) -> None:
        """Issue 4: restarted many times in one batch and in many, it has the history of one."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            for turn in range(10):
                base = turn * 20
                await w.sent(event("p", f"e{turn}"))
                await w.done(
                    lease,
                    *(
                        one
                        for number in range(0, 20, 2)
                        for one in (
                            unit(row, base + number + 1, step("a", b"%d" % (base + number))),
                            unit(row, base + number + 2, restart=b"[%d]" % number),
                        )
                    ),
                )
            found = await w.history("p")
            assert (found.row.generation, found.row.seq, found.checkpoints) == (100, 200, ())
            assert len(await w.mailbox("p")) == 10

    async def test_a_restart_drops_what_a_retry_has_put_aside(self) -> None:
        """S2.14: the forgotten go with the checkpoints; the history begins anew."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, step("a"), step("b")), unit(row, 2, ending=FAIL))
            await w.retry(await w.row("p"), forget=(Place(Kind.DO, "a", NO_INDEX),))
            row = (await w.take(lease))["p"].row
            await w.done(lease, unit(row, 1, restart=b"[2]"))
            found = await w.history("p")
            assert (found.checkpoints, found.forgotten) == ((), ())

    async def test_a_met_request_to_cancel_is_gone_with_the_restart(self) -> None:
        """Rule 7: once per generation; one that is pending still stands in the next."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.ask("p", Action.CANCEL, reason=b"1")
            await w.done(lease, unit(row, 1, restart=b"[2]"))
            found = await w.row("p")
            assert (found.cancel_reason, found.cancel_met) == (b"1", False)
            await w.done(
                lease,
                unit(row, 2, step("a"), meets_cancel=True),
                unit(row, 3, restart=b"[3]"),
            )
            found = await w.row("p")
            assert (found.cancel_reason, found.cancel_met) == (None, False)
            found = await w.ask("p", Action.CANCEL, reason=b"2")
            assert (found.cancel_reason, found.cancel_met) == (b"2", False)

    async def test_what_compensates_or_has_ended_does_not_restart(self) -> None:
        """Rule 8: refused, and nothing changes; behind a suspension too."""
        async with self.world() as w:
            lease = await w.host()
            undoing, hidden, over = await w.add("undoing", "hidden", "over", lease=lease)
            await w.done(
                lease,
                unit(undoing, 1, step("a"), status=Status.COMPENSATING),
                unit(hidden, 1, step("a"), status=Status.COMPENSATING),
                unit(over, 1, step("a"), ending=FINISH),
            )
            await w.ask("hidden", Action.SUSPEND)
            before = await w.everything()
            outcomes = await w.commit(
                lease, *(unit(row, 2, restart=b"[2]") for row in (undoing, hidden, over))
            )
            assert [each.refused for each in outcomes] == [
                Refusal.ILLEGAL_TRANSITION,
                Refusal.ILLEGAL_TRANSITION,
                Refusal.FINISHED,
            ]
            assert await w.everything() == before

    async def test_a_suspended_process_restarts_for_the_time_after(self) -> None:
        """S2.09 S2.14: it begins anew and stays suspended; resumed it runs."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, status=Status.WAITING, wake_at=w.clock.now()))
            await w.ask("p", Action.SUSPEND, reason=b'"why"')
            await w.done(lease, unit(row, 2, restart=b"[2]"))
            found = await w.row("p")
            assert (found.status, found.suspend_reason) == (Status.SUSPENDED, b'"why"')
            assert (found.generation, found.wake_at) == (1, None)
            assert (await w.ask("p", Action.RESUME)).status is Status.RUNNING

    async def test_a_stale_restart_is_refused(self) -> None:
        """G5: of an earlier epoch, it leaves the history of the present owner alone."""
        async with self.world() as w:
            lease = await w.host()
            stale = await w.held("p", lease)
            await w.done(lease, unit(stale, 1, step("a"), leave=Leave.RELEASED))
            row = (await w.take(lease))["p"].row
            before = await w.everything()
            (outcome,) = await w.commit(lease, unit(stale, 2, restart=b"[2]"))
            assert outcome.refused is Refusal.NOT_OWNER
            assert await w.everything() == before
            assert row.status not in FINISHED

    @needs(reopen=True)
    async def test_a_generation_is_there_again(self) -> None:
        """G1 S2.14: arguments, number, mailbox and new records survive; the old ones do not."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                row = await w.held("p", lease)
                await w.sent(event("p", "e1"), event("p", "e2"), event("p", "e3"))
                over = await w.held("c", lease, parent=parent_of(row))
                await w.finish(
                    lease, over
                )  # its end is the fourth event, and gone with the restart
                await w.done(
                    lease,
                    unit(row, 1, step("a", b"1"), latest("v"), consumes=(1,)),
                    unit(row, 2, restart=b"[2]", consumes=(2,)),
                    unit(row, 3, step("b", b"2")),
                )
                lease = await w.after(lease, "host-2")
                before = await w.everything()
                for _ in range(2):
                    if not crash:
                        await w.storage.close()
                    w.storage = await self.reopen(w.storage, crash=crash)
                    assert await w.everything() == before
                lease = await w.host("host-3")
                claimed = (await w.take(lease))["p"]
                assert (claimed.row.generation, claimed.row.input) == (1, b"[2]")
                assert [each.key for each in claimed.checkpoints] == ["b"]
                assert [each.event_id for each in claimed.events] == ["e3"]
                (again,) = await w.send(event("p", "e1"))
                assert again.event is not None
                assert again.event.consumed
                (fifth,) = await w.send(event("p", "e5"))
                assert fifth.event is not None
                assert fifth.event.position == 5
