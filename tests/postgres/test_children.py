"""Children on Postgres: many at once in few round trips, ends told across hosts, no deadlock."""

import asyncio
from datetime import UTC, datetime
from random import Random
from typing import Any, cast

import pytest

from durabletask.storage import (
    CHILD_ENDED,
    DONE,
    Action,
    Kind,
    ProcessRow,
    Refusal,
    Status,
    Unit,
    UnitOutcome,
)
from durabletask.testing._conformance.world import (
    FINISH,
    World,
    child,
    event,
    made,
    new,
    step,
    unit,
)
from durabletask_postgres import PostgresStorage
from durabletask_postgres._in_turn import CHANGES_MAX, TURN_MAX, in_turn, turn_columns
from durabletask_postgres._sql import Statements
from tests.postgres.stores import Schemas, connected, held, new_world

COUNT = 1_000

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""


def called(row: ProcessRow, key: str, seq: int, position: int) -> Unit:
    """Return the unit that records a child's result and takes the event of its end."""
    recorded = step(key, kind=Kind.CALL)
    return unit(row, seq, recorded, consumes=(position,), status=Status.RUNNING)


async def test_a_thousand_children_cost_few_round_trips(
    schemas: Schemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 4: spawned by one process each with a unit, ended, and joined one by one."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            parent = await world.held("p", lease)
            commits = cast("PostgresStorage", world.storage)._commits
            asked: list[str] = []
            fetch = commits._connections.fetch

            async def counted(statement: str, *args: Any, **options: Any) -> Any:
                asked.append(statement)
                return await fetch(statement, *args, **options)

            monkeypatch.setattr(commits._connections, "fetch", counted)
            spawns = [
                unit(
                    parent,
                    number,
                    step(f"k{number}", kind=Kind.CHILD),
                    spawns=(child(parent, f"c{number}", f"k{number}"),),
                )
                for number in range(1, COUNT + 1)
            ]
            await world.done(lease, *spawns)
            assert len(asked) == COUNT / TURN_MAX
            kids = await world.take(lease, count_max=COUNT)
            assert len(kids) == COUNT
            asked.clear()
            await world.done(lease, *(unit(kid.row, 1, ending=FINISH) for kid in kids.values()))
            assert len(asked) == COUNT / TURN_MAX
            (told,) = (await world.news(lease)).values()
            assert {each.name for each in told.events} == {f"{CHILD_ENDED}completed"}
            asked.clear()
            await world.done(
                lease,
                *(
                    called(parent, f"k{each.position}", COUNT + each.position, each.position)
                    for each in told.events
                ),
            )
            assert len(asked) == COUNT / TURN_MAX
            assert len((await world.history("p")).checkpoints) == 2 * COUNT


async def test_a_parent_that_is_not_known_is_told_all_the_same(schemas: Schemas) -> None:
    """Rule 7 G13: that a process is a child the database knows, whoever else has forgotten it."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            parent, kid = await world.family(lease)
            cast("PostgresStorage", world.storage)._commits.parents.clear()
            (alone,) = await world.add("alone", lease=lease)
            await world.done(
                lease,
                unit(alone, 1, step("a"), ending=FINISH),
                unit(kid, 1, step("a"), ending=FINISH),
            )
            (told,) = (await world.news(lease)).values()
            assert told.row.process_id == parent.process_id
            assert [each.name for each in told.events] == [f"{CHILD_ENDED}completed"]


async def test_a_held_parent_holds_up_the_end_of_its_child_only(schemas: Schemas) -> None:
    """G13: whose child or receiver it is goes again later; the others are done."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            _, kid = await world.family(lease)
            rows = await world.add(*(f"q{number}" for number in range(12)), lease=lease)
            units = [
                unit(row, 1, step("a"), sends=(event("q0", f"to {row.process_id}"),))
                for row in rows
            ]
            units.insert(5, unit(kid, 1, ending=FINISH))
            units.insert(7, unit(rows[11], 2, step("b"), sends=(event("p", "e"),)))
            busy = UnitOutcome(refused=Refusal.BUSY)
            async with held(schemas.dsn, schema, "p"):
                for _ in range(2):  # the second time it is known that somebody sits on rows
                    outcomes = await world.commit(lease, *units)
                    for place, outcome in enumerate(outcomes):
                        about_p = place == 5 or units[place].process_id == "q11"
                        assert (outcome.refused is Refusal.BUSY) == about_p or outcome == DONE
                    assert outcomes[5].refused is Refusal.BUSY
                    assert outcomes[7].refused is Refusal.BUSY
            assert busy not in await world.commit(lease, *units)
            assert (await world.row("c")).status is Status.COMPLETED


async def test_an_id_that_comes_into_being_beside_a_spawn_is_found(schemas: Schemas) -> None:
    """Section 3 rule: an open transaction holds the child's id: busy, then of other origin."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            p, q = await world.add("p", "q", lease=lease)
            units = [
                unit(p, 1, step("c", kind=Kind.CHILD), spawns=(child(p, "other"), child(p, "x"))),
                unit(q, 1, step("c", kind=Kind.CHILD), spawns=(child(q, "mine"),)),
            ]
            async with user.transaction():
                made(await world.transactions.create_in(user, new("x")))
                outcomes = await world.commit(lease, *units)
                assert outcomes == [UnitOutcome(refused=Refusal.BUSY), DONE]
            (refused, again) = await world.commit(lease, *units)
            assert (refused.refused, refused.culprit) == (Refusal.OTHER_ORIGIN, "x")
            assert again == DONE
            assert set(await world.ids()) == {"mine", "p", "q", "x"}


async def test_families_of_two_hosts_do_not_lock_each_other_out(database: str) -> None:
    """F055: parents and children end, spawn, send and are cancelled by two hosts: no deadlock."""
    random = Random(55)
    # So soon that a deadlock is found before anybody gives up waiting.
    dsn = f"{database}&deadlock_timeout=5ms"
    async with (
        new_world(dsn, "durabletask", lease_ttl_s=LONG_S) as one,
        new_world(dsn, "durabletask", lease_ttl_s=LONG_S) as two,
        new_world(dsn, "durabletask", lease_ttl_s=LONG_S) as client,
    ):
        hosts = [(one, await one.host("one")), (two, await two.host("two"))]
        roots = await one.add(*(f"root{number}" for number in range(6)), lease=hosts[0][1])
        for row in roots:
            kids = tuple(child(row, f"{row.process_id}/{number}") for number in range(8))
            await one.done(hosts[0][1], unit(row, 1, step("c", kind=Kind.CHILD), spawns=kids))
        ids = [row.process_id for row in await one.listed()]

        async def work(world: World, lease: Any) -> None:
            rows = {row.process_id: row for row in roots} if world is one else {}
            for seq in range(2, 14):
                rows |= {
                    each: kid.row for each, kid in (await world.take(lease, count_max=6)).items()
                }
                batch = [_something(random, row, seq, ids) for row in rows.values()]
                random.shuffle(batch)
                await world.commit(lease, *batch)

        async def ask() -> None:
            for each in random.sample(ids, 20):
                await client.request(client.control(each, Action.CANCEL))

        await asyncio.gather(work(*hosts[0]), work(*hosts[1]), ask(), ask())
    async with connected(database) as connection:
        query = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await connection.fetchval(query) == 0


def _something(random: Random, row: ProcessRow, seq: int, ids: list[str]) -> Unit:
    match random.randrange(4):
        case 0:
            return unit(row, seq, ending=FINISH)
        case 1:
            to = (event(random.choice(ids), f"{row.process_id}/{seq}/{n}") for n in range(3))
            return unit(row, seq, step(f"s{seq}"), sends=tuple(to))
        case 2:
            name = f"{row.process_id}/{seq}"
            return unit(row, seq, step(f"c{seq}"), spawns=(child(row, name, f"c{seq}"),))
        case _:
            return unit(row, seq, step(f"w{seq}"), status=Status.WAITING)


# --- which way a unit goes ---------------------------------------------------------------------


def _places(*units: Unit) -> list[tuple[int, Unit]]:
    return list(enumerate(units))


def _row(number: int) -> ProcessRow:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return ProcessRow(
        process_id=f"p{number}",
        name="x",
        input=b"1",
        input_digest="d",
        creation_id="c",
        status=Status.RUNNING,
        created_at=at,
        updated_at=at,
        incarnation=number,
    )


def test_what_reaches_nobody_goes_all_at_once() -> None:
    """Section 7: steps and plain changes of other processes are not drawn into the slow way."""
    rows = [_row(number) for number in range(6)]
    plain = [unit(row, 1, step("a")) for row in rows]
    plain += [unit(row, 2, step("b"), status=Status.WAITING) for row in rows]
    assert in_turn(_places(*plain), {}) == set()
    sends = unit(rows[0], 3, step("c"), sends=(event("p4", "e"),))
    assert in_turn(_places(*plain, sends), {}) == {0, 4}
    ends = unit(rows[1], 3, ending=FINISH)
    assert in_turn(_places(*plain, ends), {}) == set()
    assert in_turn(_places(*plain, ends), {1: 5}) == {1, 5}
    many = [unit(rows[2], seq, status=Status.WAITING) for seq in range(3, 3 + CHANGES_MAX)]
    assert in_turn(_places(*plain, *many), {}) == {2}


def test_columns_fit_the_statement() -> None:
    """There is an array for each parameter of the statement."""
    text = Statements()["commit_in_turn"]
    row = _row(1)
    found = turn_columns(_places(unit(row, 1, step("a"), spawns=(child(row, "c"),))))
    assert f"${len(found) + 8})" in text
