"""Conformance: what `create` and `read` promise, and which ids are different ids."""

import asyncio
from datetime import timedelta

import msgspec
import pytest

from durabletask.errors import LeaseLostError
from durabletask.storage import (
    DONE,
    NO_INDEX,
    Action,
    Form,
    Kind,
    NewProcess,
    Parent,
    ProcessRow,
    Query,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.corpus import HOSTILE_NAMES, INDEPENDENT_PAIRS
from durabletask.testing._conformance.world import (
    FINISH,
    NAME,
    QUARANTINE,
    event,
    latest,
    made,
    new,
    step,
    unit,
)


class CreationConformance(ConformanceBase):
    """Creating and reading processes."""

    async def test_a_process_begins_as_it_was_asked_for(self) -> None:
        """S4.18: one creation holds the whole input, and every other field begins at its start."""
        async with self.world() as w:
            now = w.clock.now()
            asked = NewProcess(
                process_id="p",
                name="transfer",
                input=b'["alice",10]',
                input_digest="ab12",
                creation_id="c1",
                start_at=now + timedelta(days=1),
                deadline_at=now + timedelta(days=2),
                tags={"team": "red", "": "empty key", "empty value": ""},
                context=b'{"trace":"x"}',
                parent=Parent("grand", 3, 2, "child/1"),
            )
            expected = ProcessRow(
                process_id="p",
                name="transfer",
                input=b'["alice",10]',
                input_digest="ab12",
                creation_id="c1",
                status=Status.RUNNING,
                created_at=now,
                updated_at=now,
                start_at=now + timedelta(days=1),
                deadline_at=now + timedelta(days=2),
                tags={"team": "red", "": "empty key", "empty value": ""},
                context=b'{"trace":"x"}',
                parent=Parent("grand", 3, 2, "child/1"),
            )
            (created,) = await w.storage.create([asked])
            assert created.fresh
            incarnation = made(created).incarnation
            assert incarnation >= 1
            expected = msgspec.structs.replace(expected, incarnation=incarnation)
            assert created.row == expected
            snapshot = await w.history("p")
            assert snapshot.row == expected
            assert (snapshot.checkpoints, snapshot.events) == ((), ())

    async def test_a_repeated_creation_finds_its_own(self) -> None:
        """G9: the same creation id is fresh again after a lost answer, and changes nothing."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            (again,) = await w.storage.create([new("p")], lease)
            assert again.fresh
            assert again.row == row
            await w.done(lease, unit(row, 1, step("a"), status=Status.WAITING))
            before = await w.everything()
            (later,) = await w.storage.create([new("p", input=b"[2]", name="other")])
            assert later.fresh
            assert later.row == await w.row("p")
            assert await w.everything() == before

    async def test_an_id_that_exists_is_answered_with_what_is_there(self) -> None:
        """S0.01: another creation of a live id is not fresh, merges nothing, shows the first."""
        async with self.world() as w:
            (row,) = await w.add("p", tags={"a": "1"})
            other = new("p", creation_id="other", input=b"[2]", name="else", tags={"b": "2"})
            (answer,) = await w.storage.create([other])
            assert not answer.fresh
            assert answer.row == row
            assert await w.row("p") == row

    async def test_a_finished_process_is_still_there(self) -> None:
        """Rule 13: a finished id is answered with the finished process until it is purged."""
        async with self.world() as w:
            lease = await w.host()
            await w.finish(lease, await w.held("p", lease))
            (answer,) = await w.storage.create([new("p", creation_id="other")], lease)
            assert not answer.fresh
            assert made(answer).status is Status.COMPLETED
            assert made(answer).owner is None

    async def test_in_a_batch_the_first_of_an_id_wins(self) -> None:
        """Answers stand in the order asked; an id that repeats in a batch is the first's."""
        async with self.world() as w:
            batch = [
                new("b", creation_id="1"),
                new("a", creation_id="2"),
                new("b", creation_id="3", input=b"[3]"),
                new("b", creation_id="1"),
            ]
            answers = await w.storage.create(batch)
            assert [made(each).process_id for each in answers] == ["b", "a", "b", "b"]
            assert [made(each).creation_id for each in answers] == ["1", "2", "1", "1"]
            assert [each.fresh for each in answers] == [True, True, False, True]

    async def test_fifty_concurrent_creators_make_one_process(self) -> None:
        """G9 I15: of 50 concurrent creations of one id one is fresh; all are told of the same."""
        async with self.world() as w:
            batches = [
                [new("p", creation_id=f"c{n}", input=b"[%d]" % n), new(f"q{n}")] for n in range(50)
            ]
            answers = await asyncio.gather(*(w.storage.create(batch) for batch in batches))
            assert [first.fresh for first, _ in answers].count(True) == 1
            assert len({(made(first).creation_id, made(first).input) for first, _ in answers}) == 1
            assert all(second.fresh for _, second in answers)
            assert sorted(await w.ids()) == sorted(["p", *(f"q{n}" for n in range(50))])

    async def test_a_thousand_processes_are_one_batch(self) -> None:
        """1,000 processes are created, read and purged in one call each."""
        async with self.world() as w:
            lease = await w.host()
            ids = [f"p{number:04}" for number in range(1_000)]
            rows = await w.add(*ids, lease=lease)
            assert {row.epoch for row in rows} == {1}
            snapshots = await w.storage.read(ids)
            assert [each.row.process_id for each in snapshots if each is not None] == ids
            await w.done(lease, *(unit(row, 1, step("a"), ending=FINISH) for row in rows))
            assert list(await w.storage.purge(ids)) == [None] * 1_000
            assert await w.ids() == []

    # --- replace -------------------------------------------------------------------------

    async def test_replace_begins_the_next_incarnation(self) -> None:
        """A finished process makes way: nothing of its history, mailbox or result is left."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease, tags={"old": "1"})
            await w.sent(event("p", "e1"), event("p", "e2"))
            await w.done(lease, unit(row, 1, step("a"), consumes=(1,), ending=FINISH))
            w.clock.advance(60)
            asked = new("p", creation_id="second", replace=True, input=b"[2]", input_digest="d2")
            (created,) = await w.storage.create([asked])
            assert created.fresh
            assert made(created).incarnation > row.incarnation
            snapshot = await w.history("p")
            assert (snapshot.checkpoints, snapshot.events) == ((), ())
            assert snapshot.row == created.row
            assert snapshot.row == ProcessRow(
                process_id="p",
                name=NAME,
                input=b"[2]",
                input_digest="d2",
                creation_id="second",
                status=Status.RUNNING,
                created_at=w.clock.now(),
                updated_at=w.clock.now(),
                incarnation=made(created).incarnation,
            )
            await w.sent(event("p", "e1"))
            assert [each.position for each in (await w.history("p")).events] == [1]

    async def test_a_repeated_replace_does_not_replace_its_own(self) -> None:
        """A repeat of a replacing creation finds it, even when that has finished meanwhile."""
        async with self.world() as w:
            lease = await w.host()
            await w.finish(lease, await w.held("p", lease))
            asked = new("p", creation_id="second", replace=True)
            (created,) = await w.storage.create([asked], lease)
            await w.finish(lease, made(created))
            (again,) = await w.storage.create([asked], lease)
            assert again.fresh
            assert made(again).incarnation == made(created).incarnation
            assert made(again).status is Status.COMPLETED

    async def test_replace_spares_what_has_not_finished(self) -> None:
        """Only a finished process makes way, not a live, waiting, suspended or quarantined one."""
        async with self.world() as w:
            lease = await w.host()
            live, waiting, suspended, bad = await w.add("l", "w", "s", "q", lease=lease)
            await w.done(
                lease,
                unit(waiting, 1, status=Status.WAITING),
                unit(bad, 1, ending=QUARANTINE),
            )
            await w.ask("s", Action.SUSPEND)
            before = await w.everything()
            ids = [row.process_id for row in (live, waiting, suspended, bad)]
            answers = await w.storage.create(
                [new(each, creation_id="second", replace=True) for each in ids]
            )
            assert [each.fresh for each in answers] == [False] * 4
            rows = (live, waiting, suspended, bad)
            assert [made(each).incarnation for each in answers] == [row.incarnation for row in rows]
            assert await w.everything() == before

    async def test_a_unit_of_an_earlier_incarnation_is_refused(self) -> None:
        """G5: after replace, a late unit of the former process changes nothing of the new one."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.finish(lease, row, seq=1)
            (second,) = await w.storage.create(
                [new("p", creation_id="second", replace=True)], lease
            )
            assert made(second).epoch == 1
            assert made(second).incarnation > row.incarnation
            (outcome,) = await w.commit(lease, unit(row, 2, step("late")))
            assert outcome.refused is Refusal.NOT_OWNER
            assert await w.payloads("p") == {}

    # --- with a lease --------------------------------------------------------------------

    async def test_created_with_a_lease_it_is_held_at_once(self) -> None:
        """A spawn and its first step need no claim in between: epoch 1, owned, and writable."""
        async with self.world() as w:
            lease = await w.host()
            (row,) = await w.add("p", lease=lease)
            assert (row.owner, row.owner_label) == (lease.host_id, lease.label)
            assert (row.epoch, row.seq, row.started_at) == (1, 0, w.clock.now())
            assert await w.take(lease) == {}
            assert await w.commit(lease, unit(row, 1, step("a"))) == [DONE]

    async def test_created_with_a_lease_but_for_later_it_is_not_held(self) -> None:
        """A start in the future waits for a claim, even if created with a lease."""
        async with self.world() as w:
            lease = await w.host()
            start_at = w.clock.now() + timedelta(seconds=1)
            (row,) = await w.add("p", lease=lease, start_at=start_at)
            assert (row.owner, row.epoch, row.started_at) == (None, 0, None)
            (past,) = await w.add("q", lease=lease, start_at=w.clock.now())
            assert past.owner == lease.host_id

    async def test_a_creation_takes_nobody_elses_process(self) -> None:
        """With a lease, an id that exists keeps its owner, or none."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("p")
            (answer,) = await w.storage.create([new("p")], lease)
            assert made(answer).owner is None
            assert made(answer).epoch == 0
            assert list(await w.take(lease)) == ["p"]

    async def test_a_creation_with_a_lost_lease_writes_nothing(self) -> None:
        """G5: a fenced host creates nothing, not even what exists nowhere."""
        async with self.world() as w:
            lease = await w.host()
            await w.storage.close_lease(lease)
            with pytest.raises(LeaseLostError):
                await w.storage.create([new("p"), new("q")], lease)
            assert list(await w.storage.read(["p", "q"])) == [None, None]

    # --- reading -------------------------------------------------------------------------

    async def test_reading_answers_in_the_order_asked(self) -> None:
        """One answer per id asked for, None where there is none, also when an id repeats."""
        async with self.world() as w:
            await w.add("a", "b")
            found = await w.storage.read(["b", "none", "a", "b"])
            assert [each and each.row.process_id for each in found] == ["b", None, "a", "b"]
            assert list(await w.storage.read([])) == []

    async def test_reading_brings_the_history_only_if_asked(self) -> None:
        """Without `history` there are no checkpoints and events, with it there are all."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a")))
            (plain,) = await w.storage.read(["p"])
            assert plain is not None
            assert (plain.checkpoints, plain.events) == ((), ())
            full = await w.history("p")
            assert (len(full.checkpoints), len(full.events)) == (1, 1)
            assert plain.row == full.row

    async def test_what_was_handed_in_or_out_can_be_changed_freely(self) -> None:
        """C22: changing a dict that was given or returned changes nothing that is stored."""
        async with self.world() as w:
            given = {"a": "1"}
            (created,) = await w.storage.create([new("p", tags=given)])
            given["b"] = "2"
            made(created).tags["c"] = "3"
            (await w.row("p")).tags["d"] = "4"
            (await w.listed())[0].tags["e"] = "5"
            lease = await w.host()
            (await w.take(lease))["p"].row.tags["f"] = "6"
            assert (await w.row("p")).tags == {"a": "1"}

    # --- ids -----------------------------------------------------------------------------

    async def test_any_legal_id_is_an_id(self) -> None:
        """F121 S4.16: hostile ids come back exactly, in every call that takes or returns one."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add(*HOSTILE_NAMES, lease=lease)
            assert [row.process_id for row in rows] == list(HOSTILE_NAMES)
            await w.sent(*(event(each, "e", b'"%d"' % n) for n, each in enumerate(HOSTILE_NAMES)))
            payloads = [b"%d" % number for number in range(len(rows))]
            await w.done(
                lease,
                *(unit(row, 1, step("a", it)) for row, it in zip(rows, payloads, strict=True)),
            )
            lease = await w.after(lease, "host-2")
            taken = await w.take(lease, count_max=1_000)
            assert sorted(taken) == sorted(HOSTILE_NAMES)
            for number, each in enumerate(HOSTILE_NAMES):
                assert await w.payloads(each) == {"a": payloads[number]}
                assert [it.payload for it in taken[each].events] == [b'"%d"' % number]
                assert await w.ids(prefix=each, limit=10) == [
                    one for one in sorted(HOSTILE_NAMES) if one.startswith(each)
                ]
                await w.finish(lease, taken[each].row)
            assert sorted(await w.ids()) == sorted(HOSTILE_NAMES)
            assert list(await w.storage.purge(HOSTILE_NAMES)) == [None] * len(HOSTILE_NAMES)

    async def test_ids_that_look_alike_are_different(self) -> None:
        """S4.16: "1" and "10", cases, NFC and NFD share no step, no event and no purge."""
        for one, other in INDEPENDENT_PAIRS:
            async with self.world() as w:
                lease = await w.host()
                first, second = await w.add(one, other, lease=lease)
                await w.sent(event(one, "e"))
                await w.done(lease, unit(first, 1, step("a", b'"one"')))
                assert (await w.history(other)).checkpoints == ()
                assert (await w.history(other)).events == ()
                await w.done(lease, unit(second, 1, step("a", b'"other"')))
                await w.finish(lease, first)
                assert list(await w.storage.purge([one])) == [None]
                assert list(await w.storage.read([one])) == [None]
                assert await w.payloads(other) == {"a": b'"other"'}

    async def test_any_legal_text_is_a_key_a_name_a_tag_an_event(self) -> None:
        """F121: hostile names of keys, events, functions, tags and hosts stay what they are."""
        async with self.world() as w:
            lease = await w.storage.open_lease("host-1", HOSTILE_NAMES[0])
            tags = {each: each for each in HOSTILE_NAMES}
            row = await w.held("p", lease, tags=tags)
            await w.add(*(f"n{n}" for n in range(3)), name=HOSTILE_NAMES[0])
            await w.sent(*(event("p", each, name=each) for each in HOSTILE_NAMES))
            await w.done(
                lease,
                unit(row, 1, *(step(each) for each in HOSTILE_NAMES)),
                unit(row, 2, *(latest(each) for each in HOSTILE_NAMES)),
            )
            snapshot = await w.history("p")
            found = [(each.kind, each.key, each.index) for each in snapshot.checkpoints]
            assert found == [
                (kind, each, NO_INDEX) for kind in (Kind.DO, Kind.VAR) for each in HOSTILE_NAMES
            ]
            assert [each.name for each in snapshot.events] == list(HOSTILE_NAMES)
            assert [each.event_id for each in snapshot.events] == list(HOSTILE_NAMES)
            assert snapshot.row.tags == tags
            assert snapshot.row.owner_label == HOSTILE_NAMES[0]
            for each in HOSTILE_NAMES:
                assert await w.ids(tags={each: each}) == ["p"]
            assert len(await w.take(lease, names=[HOSTILE_NAMES[0]])) == 3
            assert {each.form for each in snapshot.checkpoints} == {Form.VALUE}
            assert (await w.storage.list(Query(name=HOSTILE_NAMES[1]))).rows == ()
