"""Conformance: who may write, which status may follow which, and that an end is the end."""

from datetime import timedelta

from durabletask.storage import (
    DONE,
    FINISHED,
    Action,
    Ending,
    Form,
    Kind,
    Leave,
    Refusal,
    Status,
    may_follow,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    World,
    event,
    latest,
    needs,
    step,
    unit,
)

LIVE = (Status.RUNNING, Status.WAITING, Status.COMPENSATING)
ENDINGS = (*sorted(FINISHED), Status.QUARANTINED)


class StatusConformance(ConformanceBase):
    """Ownership, transitions, endings."""

    # --- who may write -------------------------------------------------------------------

    async def test_only_the_present_epoch_may_write(self) -> None:
        """G5 I8 C01: a unit of an earlier or a later epoch is refused and leaves no trace (I9)."""
        async with self.world() as w:
            lease = await w.host()
            stale = await w.held("p", lease)
            await w.done(lease, unit(stale, 1, leave=Leave.RELEASED))
            row = (await w.take(lease))["p"].row
            assert row.epoch == 2
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(stale, 2, step("a")),
                unit(stale, 99, latest("v"), status=Status.WAITING),
                unit(stale, 100, ending=FINISH),
                unit(row, 1, step("a"), epoch=3),
                unit(row, 1, step("a"), epoch=0),
                unit(row, 1, step("a"), incarnation=row.incarnation + 1),
                unit(row, 1, step("a"), incarnation=row.incarnation - 1),
            )
            assert {each.refused for each in outcomes} == {Refusal.NOT_OWNER}
            assert await w.everything() == before

    async def test_a_process_that_nobody_holds_takes_no_unit(self) -> None:
        """G5: nothing is recorded for a process that was never claimed, was let go, or is none."""
        async with self.world() as w:
            lease = await w.host()
            (free,) = await w.add("free")
            gone = await w.held("gone", lease)
            await w.done(lease, unit(gone, 1, leave=Leave.PARKED))
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(free, 1, step("a")),
                unit(gone, 2, step("a")),
                unit(gone, 1, step("a"), process_id="none"),
            )
            assert [each.refused for each in outcomes] == [Refusal.NOT_OWNER] * 3
            assert await w.everything() == before

    @needs(hosts=2)
    async def test_only_the_owner_may_write(self) -> None:
        """G5: a host with a valid lease cannot write for a process that another one holds."""
        async with self.world() as w:
            first, second = await w.host("host-1"), await w.host("host-2")
            row = await w.held("p", first)
            (outcome,) = await w.commit(second, unit(row, 1, step("a")))
            assert outcome.refused is Refusal.NOT_OWNER
            assert await w.payloads("p") == {}
            await w.done(first, unit(row, 1, step("a")))

    # --- status --------------------------------------------------------------------------

    async def test_status_and_wake_are_set_together(self) -> None:
        """A unit with a status sets `wake_at` too, if only to none; one without leaves both."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            wake_at = w.clock.now() + timedelta(microseconds=1)
            await w.done(lease, unit(row, 1, status=Status.WAITING, wake_at=wake_at))
            found = await w.row("p")
            assert (found.status, found.wake_at) == (Status.WAITING, wake_at)
            await w.done(lease, unit(row, 2, step("a")))
            found = await w.row("p")
            assert (found.status, found.wake_at) == (Status.WAITING, wake_at)
            await w.done(lease, unit(row, 3, status=Status.RUNNING))
            found = await w.row("p")
            assert (found.status, found.wake_at) == (Status.RUNNING, None)

    async def test_the_transition_table_holds(self) -> None:
        """Every pair of a live status and what follows is written or refused as NEXT says."""
        async with self.world() as w:
            lease = await w.host()
            for before in LIVE:
                for after in (*LIVE, *ENDINGS):
                    await self._check_transition(w, before, after)
            assert (await w.storage.claim(lease, "c", ["nobody"], count_max=1)).claimed == ()

    async def _check_transition(self, w: World, before: Status, after: Status) -> None:
        lease = await w.host()
        row = await w.held(f"{before}-{after}", lease)
        await w.done(lease, unit(row, 1, status=before))
        if after in LIVE:
            moved = unit(row, 2, step("a"), status=after)
        else:
            moved = unit(row, 2, step("a"), ending=Ending(after, Form.VALUE, b"1"))
        (outcome,) = await w.commit(lease, moved)
        found = await w.history(row.process_id)
        if may_follow(before, after):
            assert outcome == DONE, (before, after)
            assert found.row.status is after
        else:
            assert outcome.refused is Refusal.ILLEGAL_TRANSITION, (before, after)
            assert (found.row.status, found.row.seq, found.checkpoints) == (before, 1, ())

    async def test_an_illegal_transition_writes_nothing(self) -> None:
        """G11: neither its checkpoint nor its event nor its leaving, and the process goes on."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, status=Status.COMPENSATING))
            before = await w.everything()
            (outcome,) = await w.commit(
                lease,
                unit(row, 2, step("a"), consumes=(1,), status=Status.RUNNING, leave=Leave.RELEASED),
            )
            assert outcome.refused is Refusal.ILLEGAL_TRANSITION
            assert await w.everything() == before
            await w.done(lease, unit(row, 3, step("a"), consumes=(1,)))

    # --- the end -------------------------------------------------------------------------

    async def test_an_ending_is_recorded_whole(self) -> None:
        """G10: status, outcome, time of the end and the last checkpoint are one record."""
        for status in FINISHED:
            async with self.world() as w:
                lease = await w.host()
                row = await w.held("p", lease)
                await w.done(lease, unit(row, 1, status=Status.WAITING, wake_at=w.clock.now()))
                await w.rest(lease, 9)
                ending = Ending(status, Form.ERROR, b'{"type":"E"}')
                await w.done(lease, unit(row, 2, step("last"), ending=ending))
                found = await w.row("p")
                assert (found.status, found.ending) == (status, ending)
                assert found.finished_at == w.clock.now()
                assert (found.owner, found.owner_label, found.parked) == (None, None, False)
                assert await w.payloads("p") == {"last": b"1"}

    async def test_nothing_is_recorded_after_the_end(self) -> None:
        """G10 I14 S4.19 C27: a finished process refuses every later unit of its last owner."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a"), ending=FINISH))
            before = await w.everything()
            failed = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')
            outcomes = await w.commit(
                lease,
                unit(row, 2, step("b")),
                unit(row, 3, latest("v")),
                unit(row, 4, consumes=(1,)),
                unit(row, 5, status=Status.RUNNING),
                unit(row, 6, ending=failed),
                unit(row, 7, leave=Leave.RELEASED),
            )
            assert {each.refused for each in outcomes} == {Refusal.FINISHED}
            assert await w.everything() == before

    async def test_a_finished_process_is_never_taken_again(self) -> None:
        """S4.11 I14: no claim hands it out, not even after its host died or its wake has come."""
        async with self.world() as w:
            lease = await w.host()
            ids = [str(status) for status in FINISHED]
            rows = await w.add(*ids, lease=lease)
            wake_at = w.clock.now() + timedelta(seconds=1)
            for row in rows:
                ending = Ending(Status(row.process_id), Form.VALUE, b"1")
                await w.done(
                    lease,
                    unit(row, 1, status=Status.WAITING, wake_at=wake_at),
                    unit(row, 2, ending=ending),
                )
            await w.rest(lease, 3)
            assert (await w.claim(lease)).claimed == ()
            await w.kill(lease)
            claims = await w.claim(await w.host("host-2"))
            assert (claims.claimed, claims.next_at, claims.more) == ((), None, False)
            assert {row.status for row in await w.listed()} == FINISHED

    async def test_a_quarantined_process_is_set_aside_and_loses_nothing(self) -> None:
        """G13: it has no owner, is not claimed, keeps its history and still receives events."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a"), ending=QUARANTINE))
            found = await w.row("p")
            assert (found.status, found.ending) == (Status.QUARANTINED, QUARANTINE)
            assert (found.owner, found.finished_at) == (None, None)
            await w.sent(event("p", "e2"))
            assert (await w.claim(lease)).claimed == ()
            (outcome,) = await w.commit(lease, unit(row, 2, step("b")))
            assert outcome.refused is Refusal.NOT_OWNER
            snapshot = await w.history("p")
            assert [each.key for each in snapshot.checkpoints] == ["a"]
            assert [each.event_id for each in snapshot.events] == ["e1", "e2"]

    async def test_status_is_no_back_door_to_an_end(self) -> None:
        """A finished status or SUSPENDED by a unit, or an ending that is none, is refused."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(row, 1, status=Status.COMPLETED),
                unit(row, 2, status=Status.QUARANTINED),
                unit(row, 3, ending=Ending(Status.WAITING, Form.VALUE, b"1")),
                unit(row, 4, status=Status.SUSPENDED),
                unit(row, 5, ending=Ending(Status.SUSPENDED, Form.VALUE, b"1")),
            )
            assert {each.refused for each in outcomes} == {Refusal.ILLEGAL_TRANSITION}
            assert await w.everything() == before

    async def test_a_suspended_process_does_not_run(self) -> None:
        """S2.09: it can be let go and is not claimed, whatever comes due or arrives."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            wake_at = w.clock.now() + timedelta(seconds=1)
            await w.done(
                lease,
                unit(row, 1, status=Status.WAITING, wake_at=wake_at),
                unit(row, 2, leave=Leave.PARKED),
            )
            await w.ask("p", Action.SUSPEND)
            await w.sent(event("p", "e1"))
            await w.rest(lease, 5)
            claims = await w.claim(lease)
            assert (claims.claimed, claims.next_at) == ((), None)
            found = await w.row("p")
            assert (found.status, found.owner) == (Status.SUSPENDED, None)

    async def test_a_decision_to_compensate_is_one_way(self) -> None:
        """Rule 8: what compensates is handed to the next owner as such and cannot complete."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            decision = step("undo", b'["a"]', kind=Kind.DECISION)
            await w.done(lease, unit(row, 1, decision, status=Status.COMPENSATING))
            lease = await w.after(lease, "host-2")
            row = (await w.take(lease))["p"].row
            assert row.status is Status.COMPENSATING
            (outcome,) = await w.commit(lease, unit(row, 1, ending=FINISH))
            assert outcome.refused is Refusal.ILLEGAL_TRANSITION
            failed = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')
            await w.done(lease, unit(row, 2, ending=failed))
