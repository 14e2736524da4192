"""Conformance: a process that somebody else's open transaction holds stops itself only.

For storages that can be held so; see `ConformanceBase.holding`. Whether a unit
that only adds first-wins checkpoints is held too is the storage's choice.
"""

from durabletask.storage import DONE, Action, Refusal, Status, UnitOutcome
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import FINISH, event, made, needs, new, step, unit

BUSY = UnitOutcome(refused=Refusal.BUSY)


class BusyConformance(ConformanceBase):
    """What BUSY means."""

    @needs(busy=True)
    async def test_a_busy_process_holds_up_no_other(self) -> None:
        """G13: of a batch, the held process's units are refused as busy; the others are written."""
        async with self.world() as w:
            lease = await w.host()
            a, b, c = await w.add("a", "b", "c", lease=lease)
            async with w.holding("b"):
                outcomes = await w.commit(
                    lease,
                    unit(a, 1, step("x"), status=Status.WAITING),
                    unit(b, 1, step("x"), status=Status.WAITING),
                    unit(c, 1, step("x"), ending=FINISH),
                )
            assert outcomes == [DONE, BUSY, DONE]
            held = await w.history("b")
            assert (held.row, held.checkpoints) == (b, ())
            assert list(await w.payloads("a")) == list(await w.payloads("c")) == ["x"]

    @needs(busy=True)
    async def test_what_was_busy_goes_again_in_order(self) -> None:
        """G6: once a unit is refused as busy so are the later ones; a repeat records them all."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            units = [
                unit(row, 1, step("a"), status=Status.WAITING),
                unit(row, 2, step("b")),
                unit(row, 3, step("c"), consumes=(1,), status=Status.RUNNING),
                unit(row, 4, step("d"), ending=FINISH),
            ]
            async with w.holding("p"):
                assert await w.commit(lease, *units) == [BUSY] * 4
                assert await w.commit(lease, *units[:1]) == [BUSY]
                assert (await w.history("p")).checkpoints == ()
            assert await w.commit(lease, *units) == [DONE] * 4
            found = await w.history("p")
            assert [each.key for each in found.checkpoints] == ["a", "b", "c", "d"]
            assert found.row.status is Status.COMPLETED

    @needs(busy=True)
    async def test_a_busy_id_is_no_answer_to_a_creation(self) -> None:
        """G9: of a batch, the held id is busy and has no row; asked again it is created."""
        async with self.world() as w:
            batch = [new("a"), new("b"), new("c")]
            async with w.holding("b"):
                answers = await w.storage.create(batch)
            assert [each.refused for each in answers] == [None, Refusal.BUSY, None]
            assert [each.fresh for each in answers] == [True, False, True]
            assert answers[1].row is None
            assert await w.ids() == ["a", "c"]
            again = await w.storage.create(batch)
            assert [each.fresh for each in again] == [True] * 3
            assert made(again[1]) == await w.row("b")

    @needs(busy=True)
    async def test_a_busy_process_takes_its_event_later(self) -> None:
        """G10: of a batch, the event to the held process is busy and not stored; the others are."""
        async with self.world() as w:
            await w.add("a", "b", "c")
            events = [event(each, "e1") for each in ("a", "b", "c")]
            async with w.holding("b"):
                answers = await w.send(*events)
            assert [each.refused for each in answers] == [None, Refusal.BUSY, None]
            assert (await w.history("b")).events == ()
            await w.sent(*events)
            for each in ("a", "b", "c"):
                assert len((await w.history(each)).events) == 1

    @needs(busy=True)
    async def test_a_busy_process_is_purged_later(self) -> None:
        """G13: of a batch, the held process is busy and stays; the others are removed."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("a", "b", "c", lease=lease)
            await w.done(lease, *(unit(row, 1, ending=FINISH) for row in rows))
            async with w.holding("b"):
                assert list(await w.storage.purge(["a", "b", "c"])) == [None, Refusal.BUSY, None]
            assert await w.ids() == ["b"]
            assert list(await w.storage.purge(["b"])) == [None]

    @needs(busy=True)
    async def test_a_busy_process_is_asked_later(self) -> None:
        """G13: of a batch, the held process is busy and unchanged; the others are asked."""
        async with self.world() as w:
            await w.add("a", "b", "c")
            controls = [w.control(each, Action.SUSPEND) for each in ("a", "b", "c")]
            async with w.holding("b"):
                answers = await w.request(*controls)
            assert [each.refused for each in answers] == [None, Refusal.BUSY, None]
            assert (await w.row("b")).status is Status.RUNNING
            again = await w.request(*controls)
            assert [each.refused for each in again] == [None] * 3
            assert (await w.row("b")).status is Status.SUSPENDED
