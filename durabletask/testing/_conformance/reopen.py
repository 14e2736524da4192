"""Conformance: what a storage that keeps its data promises when it is closed, or dies.

Every promise here is the same for both: what was answered is there.
"""

from datetime import timedelta

import pytest

from durabletask.errors import LeaseLostError
from durabletask.storage import (
    Action,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Lease,
    Leave,
    Parent,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.corpus import BIG_PAYLOAD, HOSTILE_NAMES, PAYLOADS
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    World,
    event,
    latest,
    made,
    needs,
    new,
    step,
    unit,
)


class ReopenConformance(ConformanceBase):
    """Closing and opening again, and dying and opening again."""

    async def _again(self, w: World, lease: Lease, *, crash: bool) -> None:
        """Reopen the storage, as a program does that stops in good order, or that is killed."""
        if not crash:
            await w.storage.close_lease(lease)
            await w.storage.close()
        w.storage = await self.reopen(w.storage, crash=crash)

    @needs(reopen=True)
    async def test_everything_answered_is_there_again(self) -> None:
        """G1 F003 F007: every kind of record survives, closed or killed, once and twice."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                await self._fill(w, lease)
                lease = await w.after(lease, "host-2")
                before = await w.everything()
                for turn in range(2):
                    await self._again(w, lease, crash=crash)
                    assert await w.everything() == before
                    assert await w.ids(limit=3) == [each.row.process_id for each in before if each]
                    # An identity that has had its lease gets none again, also after this.
                    lease = await w.after(await w.host(f"next-{turn}"), f"last-{turn}")

    async def _fill(self, w: World, lease: Lease) -> None:
        later = w.clock.now() + timedelta(days=3)
        parent = Parent("grand", 2, 1, "child")
        await w.add(*HOSTILE_NAMES[:9], tags={"a": "1"}, context=b"{}", parent=parent)
        await w.add("later", start_at=later, deadline_at=later)
        w.clock.advance(1)
        rows = await w.add("many", "end", "bad", "park", "gone", "sus", lease=lease)
        await w.sent(*(event("many", f"e{n}", it) for n, it in enumerate(PAYLOADS)))
        places = (step("a", payload, index=n) for n, payload in enumerate(PAYLOADS))
        failed = Checkpoint(Kind.DO, "failed", 0, Form.ERROR, b'{"type":"E"}')
        await w.done(
            lease,
            unit(rows[0], 1, *places, failed, latest("v", b"1")),
            unit(rows[0], 5, latest("v", b"2"), step("big", BIG_PAYLOAD), consumes=(2, 4)),
            unit(rows[0], 6, status=Status.WAITING, wake_at=later),
            unit(rows[1], 1, step("a"), ending=Ending(Status.FAILED, Form.ERROR, b"1")),
            unit(rows[2], 1, step("a"), ending=QUARANTINE),
            unit(rows[3], 1, status=Status.WAITING, wake_at=later, leave=Leave.PARKED),
            unit(rows[4], 1, ending=FINISH),
        )
        await w.ask("sus", Action.SUSPEND, reason=b'"why"')
        await w.storage.purge(["gone"])

    @needs(reopen=True)
    async def test_the_next_host_goes_on_where_it_was(self) -> None:
        """S4.10: claims, epochs, held checkpoints, dedup, mailbox and incarnations go on."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                row, gone = await w.add("p", "gone", lease=lease)
                await w.sent(event("p", "e1"), event("p", "e2"))
                await w.done(
                    lease,
                    unit(row, 7, step("a"), latest("v", b"7"), consumes=(1,)),
                    unit(gone, 1, ending=FINISH),
                )
                await w.storage.purge(["gone"])
                await self._again(w, lease, crash=crash)
                with pytest.raises(LeaseLostError):
                    await w.commit(lease, unit(row, 8, step("late")))
                lease = await w.host("host-2")
                claimed = (await w.take(lease))["p"]
                assert (claimed.row.epoch, claimed.row.seq) == (2, 0)
                assert [each.key for each in claimed.checkpoints] == ["a", "v"]
                assert [each.event_id for each in claimed.events] == ["e2"]
                held, replaced, twice = await w.commit(
                    lease,
                    unit(claimed.row, 1, step("a", b"2")),
                    unit(claimed.row, 2, latest("v", b"8")),
                    unit(claimed.row, 3, consumes=(1,)),
                )
                assert [each.epoch for each in held.held] == [1]
                assert (replaced.refused, replaced.held) == (None, ())
                assert twice.refused is Refusal.NOT_IN_MAILBOX
                assert await w.payloads("p") == {"a": b"1", "v": b"8"}
                old, fresh = await w.send(event("p", "e1"), event("p", "e3"))
                assert old.event is not None
                assert old.event.consumed
                assert fresh.event is not None
                assert fresh.event.position == 3
                assert (await w.held("gone", lease)).incarnation > gone.incarnation

    @needs(reopen=True)
    async def test_a_creation_is_known_again(self) -> None:
        """G9 F006: after a restart the same creation is fresh, another one is not."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                row, _ = await w.add("end", "live", lease=lease)
                await w.finish(lease, row)
                await self._again(w, lease, crash=crash)
                for process_id in ("end", "live"):
                    same, other = await w.storage.create(
                        [new(process_id), new(process_id, creation_id="other")]
                    )
                    assert (same.fresh, other.fresh) == (True, False)
                (next_one,) = await w.storage.create([new("end", creation_id="n", replace=True)])
                assert next_one.fresh
                assert made(next_one).incarnation > row.incarnation
                await self._again(w, await w.host("host-2"), crash=crash)
                assert (await w.row("end")).incarnation == made(next_one).incarnation
                assert (await w.history("end")).checkpoints == ()

    @needs(reopen=True)
    async def test_a_death_of_the_program_counts_and_a_stop_does_not(self) -> None:
        """Rule 12 F114: killed holding a process is a death unless it had recorded something."""
        for crash in (False, True):
            async with self.world() as w:
                await w.add("poison", "sound")
                for number in range(3):
                    lease = await w.host(f"host-{number}")
                    taken = await w.take(lease)
                    assert taken["poison"].row.deaths == (number if crash else 0)
                    assert taken["sound"].row.deaths == 0
                    await w.done(lease, unit(taken["sound"].row, 1, step(f"k{number}")))
                    await self._again(w, lease, crash=crash)

    @needs(reopen=True)
    async def test_parked_and_waiting_processes_stay_so(self) -> None:
        """G7 rule 10: after a restart a parked one sleeps on, and wakes when due or when called."""
        for crash in (False, True):
            async with self.world() as w:
                lease = await w.host()
                due, called, ready = await w.add("due", "called", "ready", lease=lease)
                wake_at = w.clock.now() + timedelta(days=30)
                await w.done(
                    lease,
                    unit(due, 1, status=Status.WAITING, wake_at=wake_at, leave=Leave.PARKED),
                    unit(called, 1, status=Status.WAITING, leave=Leave.PARKED),
                    unit(ready, 1, status=Status.WAITING, leave=Leave.PARKED),
                )
                await w.sent(event("ready", "e1"))
                await self._again(w, lease, crash=crash)
                lease = await w.host("host-2")
                claims = await w.claim(lease)
                assert [each.row.process_id for each in claims.claimed] == ["ready"]
                assert claims.next_at == wake_at
                await w.sent(event("called", "e1"))
                assert list(await w.take(lease)) == ["called"]
                await w.rest(lease, timedelta(days=30))
                assert list(await w.take(lease)) == ["due"]

    @needs(reopen=True)
    async def test_closing_is_safe_to_repeat(self) -> None:
        """`close` gives back what it holds; a second one does nothing, and the data stays."""
        async with self.world() as w:
            await w.add("p")
            await w.storage.close()
            await w.storage.close()
            w.storage = await self.reopen(w.storage)
            assert await w.ids() == ["p"]
