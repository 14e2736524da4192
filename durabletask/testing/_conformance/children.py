"""Conformance: children are created with what their parent records, or not at all."""

from durabletask.storage import (
    DONE,
    Action,
    Kind,
    Leave,
    Parent,
    Refusal,
    Status,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import (
    FINISH,
    child,
    needs,
    new,
    parent_of,
    step,
    unit,
)


class ChildConformance(ConformanceBase):
    """Spawning."""

    async def test_a_child_is_created_with_the_unit_that_spawns_it(self) -> None:
        """G11: with its parent in the row, without an owner, claimable at once or later."""
        async with self.world() as w:
            lease = await w.host()
            parent = await w.held("p", lease)
            later = w.clock.now().replace(year=w.clock.now().year + 1)
            spawns = (
                child(parent, "c1", tags={"team": "red"}, input=b"[7]", context=b"{}"),
                child(parent, "c2", "other", start_at=later, deadline_at=later),
            )
            await w.done(lease, unit(parent, 1, step("child", kind=Kind.CHILD), spawns=spawns))
            assert await w.payloads("p") == {"child": b"1"}
            row = await w.row("c1")
            assert (row.parent, row.owner) == (parent_of(parent), None)
            assert (row.name, row.input, row.input_digest) == ("order", b"[7]", "d1")
            assert (row.creation_id, row.tags, row.context) == ("c/c1", {"team": "red"}, b"{}")
            assert (row.status, row.epoch, row.created_at) == (Status.RUNNING, 0, w.clock.now())
            assert (await w.row("c2")).parent == Parent("p", parent.incarnation, 0, "other")
            assert await w.ids(parent_id="p") == ["c1", "c2"]
            claims = await w.claim(lease)
            assert [each.row.process_id for each in claims.claimed] == ["c1"]
            assert claims.next_at == later

    async def test_a_refused_unit_spawns_nothing(self) -> None:
        """I9 I23 G11: overtaken, stale, finished, without its event or its status: no child."""
        async with self.world() as w:
            lease = await w.host()
            row, over = await w.add("p", "over", lease=lease)
            await w.done(lease, unit(row, 1, step("a"), status=Status.COMPENSATING))
            await w.done(lease, unit(over, 1, ending=FINISH))
            outcomes = await w.commit(
                lease,
                unit(row, 2, step("a", b"2"), spawns=(child(row, "c1"),)),
                unit(row, 3, step("b"), epoch=row.epoch + 1, spawns=(child(row, "c2"),)),
                unit(row, 4, step("b"), consumes=(1,), spawns=(child(row, "c3"),)),
                unit(row, 5, step("b"), status=Status.RUNNING, spawns=(child(row, "c4"),)),
                unit(over, 2, step("b"), spawns=(child(over, "c5"),)),
            )
            assert [each.refused for each in outcomes] == [
                None,
                Refusal.NOT_OWNER,
                Refusal.NOT_IN_MAILBOX,
                Refusal.ILLEGAL_TRANSITION,
                Refusal.FINISHED,
            ]
            assert len(outcomes[0].held) == 1
            assert await w.ids() == ["over", "p"]

    async def test_a_childs_id_may_be_of_no_other_origin(self) -> None:
        """Issue 4.1: another call's, generation's or nobody's: refused whole, naming the id."""
        async with self.world() as w:
            lease = await w.host()
            parent = await w.held("p", lease)
            await w.add("nobody's")
            await w.add("other key's", parent=parent_of(parent, "other"))
            await w.add("other process's", parent=Parent("q", parent.incarnation, 0, "child"))
            await w.add(
                "next incarnation's", parent=Parent("p", parent.incarnation + 1, 0, "child")
            )
            await w.add("next generation's", parent=Parent("p", parent.incarnation, 1, "child"))
            over = await w.held("over", lease, parent=parent_of(parent, "other"))
            await w.done(lease, unit(over, 1, ending=FINISH))
            before = await w.everything()
            ids = [row.process_id for row in await w.listed()]
            for seq, process_id in enumerate(ids, start=1):
                spawns = (child(parent, "fresh"), child(parent, process_id, replace=True))
                (outcome,) = await w.commit(lease, unit(parent, seq, step("a"), spawns=spawns))
                assert outcome.refused is Refusal.OTHER_ORIGIN, process_id
                assert outcome.culprit == process_id
                assert await w.everything() == before
            await w.done(lease, unit(parent, 20, step("a"), spawns=(child(parent, "fresh"),)))

    async def test_a_child_that_exists_is_taken_for_done(self) -> None:
        """G9: of the same origin, whatever it was created with: it is left as it is."""
        async with self.world() as w:
            lease = await w.host()
            parent, row = await w.family(lease)
            await w.done(lease, unit(row, 1, step("work"), status=Status.WAITING))
            before = await w.history("c")
            again = child(parent, "c", creation_id="another", input=b"[2]", name="other")
            await w.done(lease, unit(parent, 2, step("a"), spawns=(again, child(parent, "d", "d"))))
            assert await w.history("c") == before
            assert (await w.row("d")).parent == parent_of(parent, "d")
            assert await w.mailbox("p") == []

    async def test_a_repeated_unit_spawns_nothing_twice(self) -> None:
        """DESIGN 5: repeated after a lost answer, also when the child was purged since."""
        async with self.world() as w:
            lease = await w.host()
            parent = await w.held("p", lease)
            spawning = unit(parent, 1, step("a"), spawns=(child(parent, "c"),))
            await w.done(lease, spawning)
            before = await w.everything()
            w.clock.advance(1)
            assert await w.commit(lease, spawning) == [DONE]
            assert await w.everything() == before
            await w.finish(lease, (await w.take(lease))["c"].row)
            await w.storage.purge(["c"])
            assert await w.commit(lease, spawning) == [DONE]
            assert await w.ids() == ["p"]

    async def test_children_of_one_batch_are_all_created(self) -> None:
        """G11: a hundred units of one process and of many, each with its children."""
        async with self.world() as w:
            lease = await w.host()
            rows = await w.add("p", "q", "r", lease=lease)
            await w.done(
                lease,
                *(
                    unit(
                        row,
                        seq,
                        step(f"k{seq}"),
                        spawns=tuple(
                            child(row, f"{row.process_id}/{seq}/{n}", f"k{seq}/{n}")
                            for n in range(3)
                        ),
                    )
                    for seq in range(1, 21)
                    for row in rows
                ),
            )
            for row in rows:
                assert len(await w.ids(parent_id=row.process_id)) == 60
            assert len(await w.take(lease, count_max=1_000)) == 180

    async def test_a_last_unit_may_spawn(self) -> None:
        """G11: the children of a unit with an ending, or with a leave, are there with it."""
        async with self.world() as w:
            lease = await w.host()
            ends, leaves = await w.add("ends", "leaves", lease=lease)
            await w.done(
                lease,
                unit(ends, 1, ending=FINISH, spawns=(child(ends, "c1"),)),
                unit(leaves, 1, leave=Leave.PARKED, spawns=(child(leaves, "c2"),)),
            )
            taken = await w.take(lease)
            assert sorted(taken) == ["c1", "c2"]
            await w.finish(lease, taken["c1"].row)
            assert await w.mailbox("ends") == []

    @needs(busy=True)
    async def test_a_unit_with_a_busy_child_goes_again_in_order(self) -> None:
        """G6 G13: its later units are busy too, its neighbours are written; a repeat does all."""
        async with self.world() as w:
            lease = await w.host()
            row, other = await w.add("p", "q", lease=lease)
            units = [
                unit(row, 1, step("a"), spawns=(child(row, "c"),)),
                unit(row, 2, step("b"), status=Status.WAITING),
                unit(row, 3, step("d")),
            ]
            async with w.holding("c"):
                *mine, theirs = await w.commit(lease, *units, unit(other, 1, step("a")))
                assert [each.refused for each in mine] == [Refusal.BUSY] * 3
                assert theirs == DONE
                assert await w.payloads("p") == {}
            await w.done(lease, *units)
            assert list(await w.payloads("p")) == ["a", "b", "d"]
            assert (await w.row("c")).parent == parent_of(row)

    async def test_a_child_that_replaces_another_is_no_other_origin(self) -> None:
        """G9: an id that was purged may be a child's; it begins as the next incarnation."""
        async with self.world() as w:
            lease = await w.host()
            gone = await w.held("c", lease)
            await w.finish(lease, gone)
            await w.storage.purge(["c"])
            parent, row = await w.family(lease)
            assert row.incarnation > gone.incarnation
            await w.add("d")
            (outcome,) = await w.commit(lease, unit(parent, 2, spawns=(child(parent, "d"),)))
            assert (outcome.refused, outcome.culprit) == (Refusal.OTHER_ORIGIN, "d")
            (answer,) = await w.storage.create([new("c", creation_id="x")])
            assert not answer.fresh

    async def test_a_child_is_born_with_the_request_that_is_pending(self) -> None:
        """Rule 7: spawned while its parent was asked and has not met it; afterwards it is not."""
        async with self.world() as w:
            lease = await w.host()
            parent = await w.held("p", lease)
            await w.ask("p", Action.CANCEL, reason=b'"why"')
            await w.done(
                lease,
                unit(parent, 1, step("a"), spawns=(child(parent, "before", "1"),)),
                unit(parent, 2, step("b"), spawns=(child(parent, "with", "2"),), meets_cancel=True),
                unit(parent, 3, step("c"), spawns=(child(parent, "after", "3"),)),
            )
            taken = await w.take(lease)
            assert {key: each.row.cancel_reason for key, each in taken.items()} == {
                "before": b'"why"',
                "with": None,
                "after": None,
            }
            assert taken["before"].row.status is Status.RUNNING
            assert not taken["before"].row.cancel_met
