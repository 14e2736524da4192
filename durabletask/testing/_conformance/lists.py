"""Conformance: what listing and purging promise."""

from datetime import timedelta

import pytest

from durabletask.errors import InvalidArgumentError
from durabletask.storage import (
    Action,
    Ending,
    Form,
    Parent,
    ProcessRow,
    Query,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    QUARANTINE,
    World,
    event,
    new,
    step,
    unit,
)


class ListConformance(ConformanceBase):
    """Listing processes page by page, and removing finished ones."""

    async def test_the_order_is_that_of_creation(self) -> None:
        """By (created_at, process_id), ascending, whatever happened to a process since."""
        async with self.world() as w:
            lease = await w.host()
            await w.add("m", "z", "B", "a", "\u00e9", "\U0001f4a9", "\uffff", lease=lease)
            w.clock.advance(timedelta(microseconds=1))
            await w.add("A", "0")
            await w.finish(lease, await w.row("m"))
            expected = ["B", "a", "m", "z", "\u00e9", "\uffff", "\U0001f4a9", "0", "A"]
            assert await w.ids() == expected
            assert await w.ids(limit=2) == expected

    async def test_pages_hold_each_process_once(self) -> None:
        """S2.18: no page is larger than asked, and the last one has no cursor."""
        async with self.world() as w:
            for _ in range(5):
                await w.add(*(f"p{w.clock.now():%f}-{number}" for number in range(5)))
                w.clock.advance(0.001)
            sizes, found, cursor = [], [], None
            while True:
                page = await w.storage.list(Query(limit=7, cursor=cursor))
                sizes.append(len(page.rows))
                found += [row.process_id for row in page.rows]
                cursor = page.cursor
                if cursor is None:
                    break
            assert max(sizes) <= 7
            assert found == await w.ids()
            assert len(set(found)) == 25
            assert (await w.storage.list(Query(prefix="none"))).cursor is None

    async def test_a_cursor_neither_repeats_nor_skips(self) -> None:
        """C33: what exists throughout is listed once, whatever is created or purged meanwhile."""
        async with self.world() as w:
            lease = await w.host()
            rows: dict[str, ProcessRow] = {}
            for number in range(20):
                for row in await w.add(f"k{number:02}", f"x{number:02}", lease=lease):
                    rows[row.process_id] = row
                w.clock.advance(0.001)
            await w.done(
                lease,
                *(unit(rows[each], 1, ending=FINISH) for each in rows if each.startswith("x")),
            )
            found: list[str] = []
            cursor, turn = None, 0
            while True:
                page = await w.storage.list(Query(limit=5, cursor=cursor))
                found += [row.process_id for row in page.rows]
                cursor = page.cursor
                if cursor is None:
                    break
                last = page.rows[-1].process_id
                purged = [f"x{(turn * 3 + more) % 20:02}" for more in range(3)]
                purged += [last] if last.startswith("x") else []
                await w.storage.purge(purged)
                await w.add(f"a{turn}", f"y{turn}", f"zz{turn}")
                turn += 1
                assert turn < 100, "a listing must come to an end"
            kept = [each for each in found if each.startswith("k")]
            assert kept == [f"k{number:02}" for number in range(20)]
            assert len(found) == len(set(found))

    async def test_every_filter_must_match(self) -> None:
        """Status, name, prefix, tags, times and parent: alone and together, as text and no more."""
        async with self.world() as w:
            await self._add_four(w)
            lease = await w.host()
            taken = await w.take(lease, names=["alpha", "beta"], count_max=2)
            failed = Ending(Status.FAILED, Form.ERROR, b"1")
            w.clock.advance(10)
            await w.done(
                lease,
                unit(taken["a%1"].row, 1, ending=failed),
                unit(taken["a_2"].row, 1, status=Status.WAITING),
            )
            start = w.clock.now() - timedelta(seconds=50)
            second = timedelta(seconds=1)
            for expected, query in (
                (["a%1"], {"statuses": frozenset({Status.FAILED})}),
                (["a%1", "a_2"], {"statuses": frozenset({Status.FAILED, Status.WAITING})}),
                ([], {"statuses": frozenset()}),
                (["ab3", "A_4"], {"name": "beta"}),
                ([], {"name": "Beta"}),
                (["a%1", "a_2", "ab3"], {"prefix": "a"}),
                (["a_2"], {"prefix": "a_"}),
                (["a%1"], {"prefix": "a%"}),
                (["A_4"], {"prefix": "A"}),
                ([], {"prefix": "%"}),
                (["a_2", "ab3"], {"tags": {"team": "red"}}),
                (["ab3"], {"tags": {"team": "red", "size": "xl"}}),
                ([], {"tags": {"team": "r%d"}}),
                (["ab3", "A_4"], {"parent_id": "a%1"}),
                ([], {"parent_id": "a"}),
                (["a_2", "ab3", "A_4"], {"created_from": start + 5 * second}),
                (["a%1"], {"created_until": start + 5 * second}),
                (
                    ["a_2"],
                    {"created_from": start + 5 * second, "created_until": start + 15 * second},
                ),
                (["a%1"], {"finished_from": start + 45 * second}),
                ([], {"finished_from": start + 55 * second}),
                ([], {"finished_until": start + 45 * second}),
                (["a%1"], {"finished_until": start + 55 * second}),
                (["ab3"], {"name": "beta", "prefix": "a", "tags": {"team": "red"}}),
                ([], {"name": "alpha", "prefix": "ab"}),
                (["a%1", "a_2", "ab3", "A_4"], {}),
            ):
                assert await w.ids(**query) == expected, query
                assert await w.ids(limit=1, **query) == expected, query

    async def _add_four(self, w: World) -> None:
        parent = Parent("a%1", 1, 0, "child")
        for asked in (
            new("a%1", name="alpha"),
            new("a_2", name="alpha", tags={"team": "red"}),
            new("ab3", name="beta", tags={"team": "red", "size": "xl"}, parent=parent),
            new("A_4", name="beta", tags={"team": "green"}, parent=parent),
        ):
            await w.storage.create([asked])
            w.clock.advance(10)

    async def test_a_foreign_cursor_is_refused(self) -> None:
        """A text that no page gave is an error, not an empty or a first page."""
        async with self.world() as w:
            await w.add("p")
            for cursor in ("", "x", "0", "none of ours", "\u00e9", "[]", "-1", "a" * 300):
                with pytest.raises(InvalidArgumentError):
                    await w.storage.list(Query(cursor=cursor))

    async def test_a_listing_shows_a_process_as_it_is(self) -> None:
        """A row in a listing is the row that `read` shows, in every situation."""
        async with self.world() as w:
            lease = await w.host()
            held, ended, bad = await w.add("held", "ended", "bad", lease=lease, tags={"a": "b"})
            await w.add("later", start_at=w.clock.now() + timedelta(days=1))
            await w.done(
                lease,
                unit(held, 1, step("a"), status=Status.WAITING, wake_at=w.clock.now()),
                unit(ended, 1, ending=FINISH),
                unit(bad, 1, ending=QUARANTINE),
            )
            await w.sent(event("held", "e1"))
            for row in await w.listed():
                assert row == await w.row(row.process_id)

    # --- purge ---------------------------------------------------------------------------

    async def test_purge_removes_everything_of_a_finished_process(self) -> None:
        """S2.11: row, history and mailbox are gone from every call, and for good."""
        async with self.world() as w:
            lease = await w.host()
            row = await w.held("p", lease)
            await w.sent(event("p", "e1"))
            await w.done(lease, unit(row, 1, step("a"), ending=FINISH))
            assert list(await w.storage.purge(["p"])) == [None]
            assert list(await w.storage.read(["p"], history=True)) == [None]
            assert await w.ids() == []
            (answer,) = await w.send(event("p", "e1"))
            assert answer.refused is Refusal.UNKNOWN_PROCESS
            (outcome,) = await w.commit(lease, unit(row, 2, step("b")))
            assert outcome.refused in {Refusal.NOT_OWNER, Refusal.FINISHED}
            assert list(await w.storage.purge(["p"])) == [Refusal.UNKNOWN_PROCESS]

    async def test_purge_spares_what_has_not_finished(self) -> None:
        """S0.11: running, waiting, suspended and quarantined ones stay; each id by itself."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("run", "wait", "stop", "bad", "end", lease=lease)
            await w.done(
                lease,
                unit(rows[1], 1, status=Status.WAITING),
                unit(rows[3], 1, ending=QUARANTINE),
                unit(rows[4], 1, ending=FINISH),
            )
            await w.ask("stop", Action.SUSPEND)
            answers = await w.storage.purge(["run", "none", "wait", "stop", "end", "bad"])
            assert list(answers) == [
                Refusal.NOT_FINISHED,
                Refusal.UNKNOWN_PROCESS,
                Refusal.NOT_FINISHED,
                Refusal.NOT_FINISHED,
                None,
                Refusal.NOT_FINISHED,
            ]
            assert await w.ids() == ["bad", "run", "stop", "wait"]
            await w.done(lease, unit(rows[0], 1, step("a")))

    async def test_purge_removes_only_that_process(self) -> None:
        """S4.15: the neighbours "1" and "10" keep their steps and events."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("1", "10", "100", lease=lease)
            await w.sent(*(event(row.process_id, "e1") for row in rows))
            await w.done(lease, *(unit(row, 1, step("a"), ending=FINISH) for row in rows))
            before = await w.everything()
            assert list(await w.storage.purge(["1"])) == [None]
            assert await w.everything() == before[1:]

    async def test_a_purged_id_begins_anew_as_the_next_incarnation(self) -> None:
        """Created again it has no past, and its number says that it is another process."""
        async with self.world() as w:
            lease = await w.host()
            latest = 0
            for turn in (1, 2, 3):
                row = await w.held("p", lease, creation_id=f"c{turn}")
                assert row.epoch == 1
                assert row.incarnation > latest
                latest = row.incarnation
                snapshot = await w.history("p")
                assert (snapshot.checkpoints, snapshot.events) == ((), ())
                await w.sent(event("p", "e1"))
                await w.done(lease, unit(row, 1, step("a"), consumes=(1,), ending=FINISH))
                assert list(await w.storage.purge(["p"])) == [None]
            stale = row
            row = await w.held("p", lease)
            (outcome,) = await w.commit(lease, unit(stale, 1, step("late")))
            assert outcome.refused is Refusal.NOT_OWNER
            assert await w.payloads("p") == {}
