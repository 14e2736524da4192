"""Conformance: what a committed unit promises: atomic, first write wins, harmless to repeat."""

import asyncio
from datetime import timedelta

from durabletask.storage import (
    DONE,
    NO_INDEX,
    Checkpoint,
    Form,
    Kind,
    Leave,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    bare,
    event,
    latest,
    new,
    step,
    unit,
)


class CommitConformance(ConformanceBase):
    """Recording units."""

    async def test_a_checkpoint_is_read_with_who_wrote_it_and_when(self) -> None:
        """A checkpoint comes back as given, with epoch, seq and time filled in by the storage."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            w.clock.advance(5)
            await w.done(lease, unit(row, 3, step("a", b"[1]"), latest("v")))
            now = w.clock.now()
            assert (await w.history("p")).checkpoints == (
                Checkpoint(Kind.DO, "a", NO_INDEX, Form.VALUE, b"[1]", False, 1, 3, now),
                Checkpoint(Kind.VAR, "v", NO_INDEX, Form.VALUE, b"1", True, 1, 3, now),
            )
            after = await w.row("p")
            assert (after.seq, after.updated_at, after.created_at) == (3, now, row.created_at)

    async def test_the_history_is_in_the_order_recorded(self) -> None:
        """G6: by unit, within a unit as given, also across epochs and beyond a few."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            keys = [f"k{(number * 7) % 30}" for number in range(30)]
            for seq in range(1, 6):
                three = keys[seq * 3 - 3 : seq * 3]
                await w.done(lease, unit(row, seq, *(step(key) for key in three)))
            lease = await w.after(lease, "host-2")
            row = (await w.take(lease))["p"].row
            units = [unit(row, seq, step(key)) for seq, key in enumerate(keys[15:], start=1)]
            await w.done(lease, *units)
            assert list(await w.payloads("p")) == keys
            lease = await w.after(lease, "host-3")
            assert [each.key for each in (await w.take(lease))["p"].checkpoints] == keys

    async def test_kind_key_and_index_make_the_place(self) -> None:
        """Equal keys of another kind or index are other checkpoints; all kinds and forms return."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            given = [
                Checkpoint(kind, "k", index, form, b"%d" % number)
                for kind in Kind
                for number, (index, form) in enumerate(
                    zip((NO_INDEX, 0, 49_999), Form, strict=True)
                )
            ]
            await w.done(lease, *(unit(row, seq, each) for seq, each in enumerate(given, start=1)))
            assert bare((await w.history("p")).checkpoints) == given

    # --- the first write wins ------------------------------------------------------------

    async def test_the_first_write_wins(self) -> None:
        """G2 C16: a recorded checkpoint never changes; the later one is told what is held."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(lease, unit(row, 1, step("a", b'"first"')))
            (outcome,) = await w.commit(lease, unit(row, 2, step("a", b'"second"')))
            assert outcome.refused is None
            assert outcome.held == (await w.history("p")).checkpoints
            assert await w.payloads("p") == {"a": b'"first"'}

    async def test_the_first_write_wins_across_owners(self) -> None:
        """G2 C17: the next owner cannot overwrite either, nor a failure become a success."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            failed = Checkpoint(Kind.DO, "a", NO_INDEX, Form.ERROR, b'{"type":"E"}')
            await w.done(lease, unit(row, 7, failed))
            lease = await w.after(lease, "host-2")
            row = (await w.take(lease))["p"].row
            (outcome,) = await w.commit(lease, unit(row, 1, step("a")))
            assert bare(outcome.held) == [failed]
            assert [each.epoch for each in outcome.held] == [1]
            assert bare((await w.history("p")).checkpoints) == [failed]

    async def test_an_overtaken_unit_writes_nothing_at_all(self) -> None:
        """G11: a unit with a held checkpoint writes no other one, no status, event or end."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a"), step("b")))
            before = await w.everything()
            outcomes = await w.commit(
                lease,
                unit(row, 2, latest("v"), step("c"), step("b"), step("a"), consumes=(1,)),
                unit(row, 3, step("a"), status=Status.WAITING, wake_at=w.clock.now()),
                unit(row, 4, step("a"), ending=FINISH),
                unit(row, 5, step("a"), leave=Leave.RELEASED),
            )
            assert [[each.key for each in one.held] for one in outcomes] == [
                ["b", "a"],
                ["a"],
                ["a"],
                ["a"],
            ]
            assert await w.everything() == before
            assert await w.commit(lease, unit(row, 6, step("c"), consumes=(1,))) == [DONE]

    # --- replaces ------------------------------------------------------------------------

    async def test_a_checkpoint_that_replaces_is_the_latest(self) -> None:
        """S4.07 S4.15: a value that replaces overwrites, and stands where it was last recorded."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.done(
                lease,
                unit(row, 1, latest("v", b"1"), step("a")),
                unit(row, 2, latest("v", b"2")),
                unit(row, 3, *(step(f"b{number}") for number in range(9))),
                unit(row, 4, latest("v", b"3"), step("c")),
            )
            found = (await w.history("p")).checkpoints
            assert [each.key for each in found] == [
                "a",
                *(f"b{number}" for number in range(9)),
                "v",
                "c",
            ]
            assert (await w.payloads("p"))["v"] == b"3"
            assert {(each.key, each.seq) for each in found} >= {("v", 4), ("a", 1), ("c", 4)}

    async def test_a_later_owner_replaces_whatever_its_seq(self) -> None:
        """Newer is (epoch, seq): unit 1 of epoch 2 replaces what unit 9 of epoch 1 wrote."""
        async with self.world() as w:
            lease = await w.host()
            await w.done(lease, unit(await w.held("p", lease), 9, latest("v", b"9")))
            lease = await w.after(lease, "host-2")
            row = (await w.take(lease))["p"].row
            assert (row.epoch, row.seq) == (2, 0)
            await w.done(lease, unit(row, 1, latest("v", b"10")))
            assert await w.payloads("p") == {"v": b"10"}

    async def test_a_late_copy_overwrites_nothing_newer(self) -> None:
        """DESIGN 5: a repeat of an earlier unit leaves var, status and wake as they are now."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            wake_at = w.clock.now() + timedelta(hours=1)
            early = unit(row, 1, latest("v", b"1"), status=Status.WAITING, wake_at=wake_at)
            await w.done(lease, early)
            await w.done(lease, unit(row, 2, latest("v", b"2"), status=Status.RUNNING))
            before = await w.everything()
            w.clock.advance(1)
            assert await w.commit(lease, early) == [DONE]
            assert await w.everything() == before

    # --- repeats -------------------------------------------------------------------------

    async def test_a_repeated_batch_is_answered_alike_and_changes_nothing(self) -> None:
        """Unknown is resolved by repeating: same answers, no second effect, no other time."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("p", "q", "r", "s", "t", lease=lease)
            await w.sent(*(event(row.process_id, "e1") for row in rows))
            await w.done(lease, unit(rows[0], 1, step("held", b'"by unit 1"')))
            batch = [
                unit(rows[0], 2, step("held", b'"by unit 2"')),
                unit(rows[0], 3, step("b"), consumes=(1,)),
                unit(rows[1], 1, step("a"), latest("v"), consumes=(1,), status=Status.WAITING),
                unit(rows[2], 1, step("a"), ending=FINISH),
                unit(rows[3], 1, step("a"), leave=Leave.RELEASED),
                unit(rows[4], 1, status=Status.WAITING, leave=Leave.PARKED),
            ]
            first = await w.commit(lease, *batch)
            assert [bool(each.held) for each in first] == [True] + [False] * 5
            before = await w.everything()
            w.clock.advance(60)
            assert await w.commit(lease, *batch) == first
            assert await w.everything() == before
            assert await w.commit(lease, *batch[1:]) == first[1:]

    async def test_a_cancelled_call_can_be_repeated(self) -> None:
        """C19 C20: cancelled at whatever moment, the outcome is unknown; a repeat settles it."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            for turns in range(8):
                one = unit(row, turns + 1, step(f"k{turns}"), latest("v", b"%d" % turns))
                sent = event("p", f"e{turns}")
                jobs = [
                    asyncio.ensure_future(w.storage.commit(lease, [one])),
                    asyncio.ensure_future(w.storage.deliver([sent], mailbox_max=100)),
                    asyncio.ensure_future(w.storage.create([new(f"q{turns}")])),
                ]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)
                await w.done(lease, one)
                await w.sent(sent)
                (created,) = await w.storage.create([new(f"q{turns}")])
                assert created.fresh
            assert list(await w.payloads("p")) == [*(f"k{n}" for n in range(8)), "v"]
            found = (await w.history("p")).events
            assert [each.event_id for each in found] == [f"e{n}" for n in range(8)]

    async def test_the_sequence_may_have_gaps(self) -> None:
        """`seq` rises by at least one; a refused or missing number in between is no gap to fill."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            for seq in (1, 2, 10, 1_000_000):
                await w.done(lease, unit(row, seq, step(f"k{seq}")))
            assert (await w.row("p")).seq == 1_000_000

    # --- batches -------------------------------------------------------------------------

    async def test_neighbours_in_a_batch_are_independent(self) -> None:
        """G13: refused, overtaken and unknown units do not touch the units around them."""
        async with self.world() as w:
            lease = await w.host()
            a, b, c = await w.add("a", "b", "c", lease=lease)
            await w.done(lease, unit(b, 1, step("held")))
            outcomes = await w.commit(
                lease,
                unit(a, 1, step("x")),
                unit(b, 1, step("late"), incarnation=b.incarnation + 9),
                unit(b, 2, step("held")),
                unit(c, 1, step("x")),
                unit(c, 2, step("y"), consumes=(1,)),
                unit(c, 3, step("z"), process_id="none"),
                unit(c, 4, step("w")),
                unit(a, 2, step("y")),
            )
            assert [each.refused for each in outcomes] == [
                None,
                Refusal.NOT_OWNER,
                None,
                None,
                Refusal.NOT_IN_MAILBOX,
                Refusal.NOT_OWNER,
                None,
                None,
            ]
            assert [len(each.held) for each in outcomes] == [0, 0, 1, 0, 0, 0, 0, 0]
            assert list(await w.payloads("a")) == ["x", "y"]
            assert list(await w.payloads("b")) == ["held"]
            assert list(await w.payloads("c")) == ["x", "w"]

    async def test_units_of_one_process_apply_in_the_order_given(self) -> None:
        """G6: a process that runs, waits, runs and ends in one batch has done it in that order."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            outcomes = await w.commit(
                lease,
                unit(row, 1, step("a"), status=Status.WAITING, wake_at=w.clock.now()),
                unit(row, 2, step("a")),
                unit(row, 3, step("b"), consumes=(1,), status=Status.RUNNING),
                unit(row, 4, step("c"), consumes=(1,)),
                unit(row, 5, ending=FINISH),
                unit(row, 6, step("d")),
            )
            assert [each.refused for each in outcomes] == [
                None,
                None,
                None,
                Refusal.NOT_IN_MAILBOX,
                None,
                Refusal.FINISHED,
            ]
            assert [len(each.held) for each in outcomes] == [0, 1, 0, 0, 0, 0]
            assert list(await w.payloads("p")) == ["a", "b"]
            assert (await w.row("p")).status is Status.COMPLETED

    async def test_concurrent_batches_all_count(self) -> None:
        """Fifty concurrent commits, each of ten processes, record each step once."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add(*(f"p{number}" for number in range(50)), lease=lease)
            batches = [
                [unit(row, 1 + turn, step(f"k{turn}")) for row in rows[place : place + 10]]
                for turn in range(10)
                for place in range(0, 50, 10)
            ]
            answers = await asyncio.gather(*(w.storage.commit(lease, each) for each in batches))
            assert all(list(each) == [DONE] * 10 for each in answers)
            for row in rows:
                assert list(await w.payloads(row.process_id)) == [f"k{turn}" for turn in range(10)]

    async def test_a_large_batch_and_an_empty_one(self) -> None:
        """10,000 units are one batch, and none at all are one too."""
        async with self.world() as w:
            lease = await w.host()
            assert await w.commit(lease) == []
            rows = await w.add(*(f"p{number}" for number in range(100)), lease=lease)
            await w.done(
                lease,
                *(unit(row, seq, step(f"k{seq}")) for seq in range(1, 101) for row in rows),
            )
            assert len(await w.payloads("p99")) == 100

    async def test_a_long_history_keeps_every_checkpoint(self) -> None:
        """G2: among 2,000 checkpoints of one process each is still held, and the first wins."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            places = range(2_000)
            await w.done(
                lease, *(unit(row, 1 + n, step("map", b"%d" % n, index=n)) for n in places)
            )
            found = (await w.history("p")).checkpoints
            assert [each.payload for each in found] == [b"%d" % n for n in places]
            outcomes = await w.commit(
                lease, *(unit(row, 3_000 + n, step("map", index=n)) for n in range(0, 2_000, 97))
            )
            assert [each.held[0].index for each in outcomes] == list(range(0, 2_000, 97))
