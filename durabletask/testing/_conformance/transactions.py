"""Conformance: what goes through a transaction of the user's is committed with it, or never was.

For storages with `Transactions`; see `ConformanceBase.user`.
"""

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from durabletask.errors import InvalidArgumentError, LeaseLostError
from durabletask.storage import (
    DONE,
    NO_INDEX,
    Action,
    Checkpoint,
    Form,
    Kind,
    Leave,
    ProcessRow,
    Refusal,
    Unit,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    MAILBOX_MAX,
    World,
    event,
    made,
    needs,
    new,
    step,
    unit,
)


def blank(row: ProcessRow, seq: int, key: str = "t") -> Unit:
    """Return the unit of a transaction: one checkpoint, whose payload is yet to come."""
    return unit(row, seq, Checkpoint(Kind.TRANSACTION, key, NO_INDEX, Form.VALUE, b""))


class _UndoError(Exception):
    """What a user raises to roll back."""


class Body:
    """A body that writes a row of the user's, and counts how often it runs."""

    def __init__(self, world: World, row: str, payload: bytes = b'"result"') -> None:
        self.world = world
        self.row = row
        self.payload = payload
        self.runs = 0
        self.error: Exception | None = None

    async def __call__(self, connection: Any) -> bytes:
        self.runs += 1
        await self.world.user.put(connection, self.row)
        if self.error is not None:
            raise self.error
        return self.payload


class TransactionConformance(ConformanceBase):
    """create_in, deliver_in and transact."""

    # --- create_in -----------------------------------------------------------------------

    @needs(transactions=True)
    async def test_a_creation_is_committed_with_the_users_rows(self) -> None:
        """G9: both or neither; once committed it is there as asked for, owned by nobody."""
        async with self.world() as w, w.user.connection() as connection:
            async with w.user.transaction(connection):
                await w.user.put(connection, "order")
                created = await w.transactions.create_in(connection, new("p", tags={"a": "1"}))
                assert created.fresh
                assert await w.ids() == []
            assert await w.user.rows() == ["order"]
            row = await w.row("p")
            assert (row.owner, row.epoch, row.tags) == (None, 0, {"a": "1"})
            assert row.creation_id == made(created).creation_id
            lease = await w.host()
            assert list(await w.take(lease)) == ["p"]

    @needs(transactions=True)
    async def test_a_creation_is_rolled_back_with_the_users_rows(self) -> None:
        """G9: rolled back nothing is left of it, and the id is free."""
        async with self.world() as w, w.user.connection() as connection:
            with suppress(_UndoError):
                async with w.user.transaction(connection):
                    await w.user.put(connection, "order")
                    await w.transactions.create_in(connection, new("p"))
                    raise _UndoError
            assert await w.user.rows() == []
            assert await w.ids() == []
            (created,) = await w.storage.create([new("p", creation_id="other")])
            assert created.fresh

    @needs(transactions=True)
    async def test_an_open_creation_holds_up_nobody(self) -> None:
        """G13: meanwhile the id is busy, for users too; the rest of each batch is written."""
        async with (
            self.world() as w,
            w.user.connection() as connection,
            w.user.connection() as other,
        ):
            lease = await w.host()
            async with w.user.transaction(connection):
                await w.transactions.create_in(connection, new("p"))
                answers = await w.storage.create(
                    [new("a"), new("p", creation_id="other"), new("b")], lease
                )
                assert [each.refused for each in answers] == [None, Refusal.BUSY, None]
                await w.done(lease, unit(made(answers[0]), 1, step("x"), ending=FINISH))
                async with w.user.transaction(other):
                    await w.user.put(other, "before")
                    busy = await w.transactions.create_in(other, new("p", creation_id="third"))
                    assert (busy.refused, busy.row) == (Refusal.BUSY, None)
                    await w.user.put(other, "after")
                assert await w.user.rows() == ["after", "before"]
            (late,) = await w.storage.create([new("p", creation_id="other")], lease)
            assert (late.refused, late.fresh) == (None, False)

    @needs(transactions=True)
    async def test_a_creation_of_a_known_id_is_answered_with_what_is_there(self) -> None:
        """Rule 13: in a transaction too; what is there stays as it is."""
        async with self.world() as w, w.user.connection() as connection:
            (row,) = await w.add("p")
            async with w.user.transaction(connection):
                again = await w.transactions.create_in(connection, new("p"))
                other = await w.transactions.create_in(
                    connection, new("p", creation_id="other", input=b"[2]")
                )
                mine = await w.transactions.create_in(connection, new("q"))
                once_more = await w.transactions.create_in(connection, new("q"))
            assert (again.fresh, again.row) == (True, row)
            assert (other.fresh, other.row) == (False, row)
            assert (mine.fresh, once_more.fresh) == (True, True)
            assert await w.row("p") == row
            assert await w.ids() == ["p", "q"]

    @needs(transactions=True)
    async def test_without_an_open_transaction_nothing_is_written(self) -> None:
        """Bad input: a connection without a transaction, or no connection, is refused."""
        async with self.world() as w, w.user.connection() as connection:
            await w.add("p")
            for wrong in (connection, "dsn"):
                with pytest.raises(InvalidArgumentError):
                    await w.transactions.create_in(wrong, new("q"))
                with pytest.raises(InvalidArgumentError):
                    await w.transactions.deliver_in(
                        wrong, event("p", "e1"), mailbox_max=MAILBOX_MAX
                    )
            assert await w.ids() == ["p"]
            assert (await w.history("p")).events == ()

    # --- deliver_in ----------------------------------------------------------------------

    @needs(transactions=True)
    async def test_events_are_committed_with_the_users_rows(self) -> None:
        """G10: they arrive when the user commits, in order; rolled back they never do."""
        async with self.world() as w, w.user.connection() as connection:
            lease = await w.host()
            await w.held("p", lease)
            with suppress(_UndoError):
                async with w.user.transaction(connection):
                    await self._send(w, connection, "never")
                    raise _UndoError
            async with w.user.transaction(connection):
                for each in ("first", "second", "second"):
                    answer = await self._send(w, connection, each)
                    assert answer is None
                assert await w.news(lease) == {}
            await w.sent(event("p", "third"))
            heard = (await w.news(lease))["p"].events
            assert [each.event_id for each in heard] == ["first", "second", "third"]
            assert [each.position for each in heard] == [1, 2, 3]

    @needs(transactions=True)
    async def test_an_open_delivery_holds_up_nobody(self) -> None:
        """G13: meanwhile the process runs, waits, hears other events and leaves."""
        async with self.world() as w, w.user.connection() as connection:
            lease = await w.host()
            row = await w.held("p", lease)
            async with w.user.transaction(connection):
                assert await self._send(w, connection, "late") is None
                await w.sent(event("p", "early"))
                assert list(await w.news(lease)) == ["p"]
                await w.done(
                    lease,
                    unit(row, 1, step("a"), consumes=(1,)),
                    unit(row, 2, leave=Leave.PARKED),
                )
                assert await w.take(lease) == {}
            # A parked process becomes claimable by what was committed.
            claimed = (await w.take(lease))["p"]
            assert [each.event_id for each in claimed.events] == ["late"]

    @needs(transactions=True)
    async def test_a_delivery_that_cannot_be_is_refused(self) -> None:
        """G10: no such process, or a finished one; one that ends meanwhile drops the event."""
        async with self.world() as w, w.user.connection() as connection:
            lease = await w.host()
            ended, ends = await w.add("ended", "ends", lease=lease)
            await w.finish(lease, ended)
            async with w.user.transaction(connection):
                assert await self._send(w, connection, "e", "none") is Refusal.UNKNOWN_PROCESS
                assert await self._send(w, connection, "e", "ended") is Refusal.FINISHED
                assert await self._send(w, connection, "e", "ends") is None
                await w.finish(lease, ends)
            await w.news(lease)
            assert (await w.history("ends")).events == ()

    async def _send(
        self, w: World, connection: Any, event_id: str, process_id: str = "p"
    ) -> Refusal | None:
        answer = await w.transactions.deliver_in(
            connection, event(process_id, event_id), mailbox_max=MAILBOX_MAX
        )
        return answer.refused

    # --- transact ------------------------------------------------------------------------

    @needs(transactions=True)
    async def test_a_body_is_committed_with_its_record(self) -> None:
        """Issue 3.5: the user's rows and the checkpoint, in one transaction."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            body = Body(w, "row")
            assert await w.transactions.transact(lease, blank(row, 1), body) == DONE
            assert (body.runs, await w.user.rows()) == (1, ["row"])
            (found,) = (await w.history("p")).checkpoints
            assert (found.kind, found.key, found.form) == (Kind.TRANSACTION, "t", Form.VALUE)
            assert (found.payload, found.epoch, found.seq) == (b'"result"', row.epoch, 1)
            await w.done(lease, unit(row, 2, step("a")), unit(row, 3, ending=FINISH))
            assert list(await w.payloads("p")) == ["t", "a"]

    @needs(transactions=True)
    async def test_a_body_that_raises_leaves_nothing(self) -> None:
        """Issue 3.5: its error comes back as it is; no row, no record, and it can run again."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            body = Body(w, "row")
            body.error = _UndoError("no")
            with pytest.raises(_UndoError) as caught:
                await w.transactions.transact(lease, blank(row, 1), body)
            assert caught.value is body.error
            assert (await w.user.rows(), await w.payloads("p")) == ([], {})
            body.error = None
            assert await w.transactions.transact(lease, blank(row, 2), body) == DONE
            assert await w.user.rows() == ["row"]

    @needs(transactions=True)
    async def test_a_repeat_finds_what_was_committed(self) -> None:
        """F003: after a lost answer the record shows as held, and the body does not run again."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            body = Body(w, "row")
            await w.transactions.transact(lease, blank(row, 1), body)
            again = Body(w, "again")
            outcome = await w.transactions.transact(lease, blank(row, 1), again)
            assert outcome.held == (await w.history("p")).checkpoints
            assert await w.user.rows() == ["row"]

    @needs(transactions=True)
    async def test_a_body_that_is_cancelled_can_be_settled(self) -> None:
        """F107: cancelled at whatever moment, a repeat says what holds: both or neither."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            for turns in range(12):
                one, body = blank(row, 1 + turns, f"t{turns}"), Body(w, f"row {turns:02}")
                job = asyncio.ensure_future(w.transactions.transact(lease, one, body))
                for _ in range(turns):
                    await asyncio.sleep(0)
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)
                outcome = await w.transactions.transact(lease, one, body)
                assert outcome.refused is None
                assert (outcome == DONE) or [each.key for each in outcome.held] == [f"t{turns}"]
            assert list(await w.payloads("p")) == [f"t{turns}" for turns in range(12)]
            assert await w.user.rows() == [f"row {turns:02}" for turns in range(12)]

    @needs(transactions=True)
    async def test_a_body_of_a_terminated_process_leaves_nothing(self) -> None:
        """G10 I14: ended before it or meanwhile, though its host still holds it; rolled back."""
        async with self.world() as w:
            lease = await w.host()
            before, meanwhile = await w.add("before", "meanwhile", lease=lease)
            await w.ask("before", Action.TERMINATE)

            async def ended(connection: Any) -> bytes:
                await w.user.put(connection, "meanwhile")
                await w.ask("meanwhile", Action.TERMINATE)
                return b"1"

            for row, body in ((before, Body(w, "before")), (meanwhile, ended)):
                outcome = await w.transactions.transact(lease, blank(row, 1), body)
                assert outcome.refused is Refusal.FINISHED
                assert await w.payloads(row.process_id) == {}
                await w.done(lease, unit(row, 2, leave=Leave.RELEASED))
            assert await w.user.rows() == []

    @needs(transactions=True)
    async def test_a_body_that_comes_too_late_leaves_nothing(self) -> None:
        """G2 G5: recorded already, or of another's process or none: its rows are rolled back."""
        async with self.world() as w:
            lease = await w.host()
            stale = await w.held("p", lease)
            await w.done(lease, unit(stale, 1, leave=Leave.RELEASED))
            row = (await w.take(lease))["p"].row
            t = Checkpoint(Kind.TRANSACTION, "t", NO_INDEX, Form.ERROR, b"{}")
            await w.done(lease, unit(row, 1, t))
            before = await w.everything()
            held = await w.transactions.transact(lease, blank(row, 2), Body(w, "held"))
            assert [each.form for each in held.held] == [Form.ERROR]
            good = blank(row, 3, "u")
            for late in (
                blank(stale, 2, "u"),
                msgspec.structs.replace(good, process_id="none"),
                msgspec.structs.replace(good, incarnation=row.incarnation + 1),
            ):
                outcome = await w.transactions.transact(lease, late, Body(w, "late"))
                assert outcome.refused is Refusal.NOT_OWNER
            assert await w.everything() == before
            assert await w.user.rows() == []

    @needs(transactions=True)
    async def test_an_open_body_keeps_nobody_from_fencing(self) -> None:
        """G5 F016: a host that is fenced while its body runs commits nothing of it."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            body = Body(w, "row")

            async def fenced(connection: Any) -> bytes:
                payload = await body(connection)
                await w.storage.close_lease(lease)
                return payload

            with pytest.raises(LeaseLostError):
                await w.transactions.transact(lease, blank(row, 1), fenced)
            with pytest.raises(LeaseLostError):
                await w.transactions.transact(lease, blank(row, 1), Body(w, "other"))
            assert await w.user.rows() == []
            assert await w.payloads("p") == {}
            taken = (await w.take(await w.host("host-2")))["p"]
            assert taken.row.epoch == row.epoch + 1

    @needs(transactions=True)
    async def test_a_body_overtakes_no_unit(self) -> None:
        """G6: units of a lower seq that are committed meanwhile, or after it, are recorded too."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            body = Body(w, "row")

            async def slow(connection: Any) -> bytes:
                await w.done(lease, unit(row, 1, step("a")))
                return await body(connection)

            await w.transactions.transact(lease, blank(row, 3), slow)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 2, step("b"), consumes=(1,)))
            assert set(await w.payloads("p")) == {"a", "b", "t"}
            assert [each.consumed for each in (await w.history("p")).events] == [True]

    @needs(transactions=True)
    async def test_a_body_that_ends_its_transaction_is_refused(self) -> None:
        """Bad input: then nothing says that both were committed; no record is made."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)

            async def rude(connection: Any) -> bytes:
                await w.user.end(connection)
                return b"1"

            with pytest.raises(InvalidArgumentError):
                await w.transactions.transact(lease, blank(row, 1), rude)
            assert await w.payloads("p") == {}
