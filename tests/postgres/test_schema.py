"""What the database knows too is what the library knows: rules, words and times."""

import asyncio
import itertools
import re
from datetime import UTC, datetime, timedelta

import pytest

from durabletask.storage import (
    CHILD_ENDED,
    CLAIMABLE,
    EVENTS_KEPT,
    FINISHED,
    REQUESTS_KEPT,
    Action,
    Refusal,
    Status,
    may_follow,
)
from durabletask.testing._conformance.world import NAME, step, unit
from durabletask_postgres._rows import refusal
from durabletask_postgres._sql import FOLDER, Statements
from tests.postgres.server import Postgres
from tests.postgres.stores import PATIENCE_S, Schemas, connected, make, new_world

FUNCTIONS = "\n".join(path.read_text() for path in sorted(FOLDER.glob("migrations/*.sql")))


async def test_the_transition_table_is_the_library_s(schemas: Schemas) -> None:
    """Section 3 rule 9: of all pairs of statuses the database lets those follow that NEXT does."""
    with schemas.new() as schema:
        query = Statements(schema).rewrite("select durabletask.may_follow($1, $2)")
        async with connected(schemas.dsn) as connection:
            for before, after in itertools.product(Status, repeat=2):
                found = await connection.fetchval(query, before, after)
                assert (before, after, found) == (before, after, may_follow(before, after))


@pytest.mark.parametrize(
    ("function", "statuses"), [("is_finished", FINISHED), ("is_claimable", CLAIMABLE)]
)
async def test_the_sets_of_statuses_are_the_library_s(
    schemas: Schemas, function: str, statuses: frozenset[Status]
) -> None:
    """FINISHED and CLAIMABLE mean the same in SQL, for every status there is."""
    with schemas.new() as schema:
        query = Statements(schema).rewrite(f"select durabletask.{function}($1)")
        async with connected(schemas.dsn) as connection:
            found = {each for each in Status if await connection.fetchval(query, each)}
        assert found == statuses


def test_the_database_s_refusals_are_words_of_the_seam() -> None:
    """Each refusal that a function can give is understood, and says the same."""
    for each in Refusal:
        assert refusal(each.value) is each
    assert refusal("busy") is Refusal.BUSY
    for each in (Refusal.UNKNOWN_PROCESS, Refusal.NOT_FINISHED, Refusal.MAILBOX_FULL):
        assert f"'{each.value}'" in FUNCTIONS


def test_the_database_s_numbers_and_names_are_the_library_s() -> None:
    """How much is kept, and how the end of a child is named, is said in SQL as in the seam."""
    assert f"v_kept constant integer := {REQUESTS_KEPT};" in FUNCTIONS
    assert f"v_events_kept constant integer := {EVENTS_KEPT};" in FUNCTIONS
    assert set(re.findall("'durabletask:[a-z]*:", FUNCTIONS)) == {f"'{CHILD_ENDED}"}
    for action in Action:
        assert f"'{action}'" in FUNCTIONS


WAITS_MAX = {
    "claim": "1s",
    "commit_in_turn": "100ms",
    "commit_units": "100ms",
    "create_processes": "100ms",
    "deliver": "100ms",
    "purge": "100ms",
    "record_steps": "100ms",
    "record_within": "5s",
    "request": "100ms",
    "reserve": "5s",
}


async def test_nobody_waits_for_long_for_what_a_user_holds(schemas: Schemas) -> None:
    """G13: what locks a process or an id gives up; without a limit the tests of it stand still."""
    query = """
        select p.proname, split_part(c.setting, '=', 2)
        from pg_proc p cross join unnest(p.proconfig) as c (setting)
        where p.pronamespace = $1::text::regnamespace and c.setting like 'lock_timeout=%'
    """
    with schemas.new() as schema:
        async with connected(schemas.dsn) as connection:
            found = dict(tuple(each) for each in await connection.fetch(query, schema))
    assert found == WAITS_MAX


async def test_nothing_depends_on_the_clock_of_a_transaction(
    postgres: Postgres, free_schema: str
) -> None:
    """FAILURES C09: a claim that waited for long has the time of now, and not of its beginning."""
    assert "now()" not in FUNCTIONS.replace("durabletask.clock()", "")
    await make(postgres.dsn, free_schema)
    async with connected(postgres.dsn) as connection, connection.transaction():
        first = await connection.fetchval(f"select {free_schema}.clock()")
        assert await connection.fetchval(f"select {free_schema}.clock() > $1", first)


async def test_people_read_json_in_psql(schemas: Schemas) -> None:
    """Issue 3 point 1, S1.20: the views show JSON, who runs what, and what ended how."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            (row,) = await world.add("order/1", lease=lease, tags={"team": "red"})
            await world.done(lease, unit(row, 1, step("charge", b'{"id":7}')))
            query = f"select * from {schema}.process_view"
            process = await connection.fetchrow(query)
            assert process is not None
            assert (process["process_id"], process["name"]) == ("order/1", NAME)
            assert (process["status"], process["host"]) == ("running", "label of me")
            assert (process["input"], process["tags"]) == ("[1]", '{"team": "red"}')
            checkpoint = await connection.fetchrow(f"select * from {schema}.checkpoint_view")
            assert checkpoint is not None
            assert (checkpoint["key"], checkpoint["index"]) == ("charge", None)
            assert checkpoint["payload"] == '{"id":7}'
            await world.finish(lease, row)
            process = await connection.fetchrow(query)
            assert process is not None
            assert (process["status"], process["result"]) == ("completed", '"finished"')
            assert (process["error"], process["host"]) == (None, None)


async def test_one_unreadable_value_does_not_hide_the_others(schemas: Schemas) -> None:
    """G13: in the views a payload that is no JSON is null, and the rest is there."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            row = await world.held("p", lease)
            await world.done(lease, unit(row, 1, step("a", b"\xff\x00{")), unit(row, 2, step("b")))
            rows = await connection.fetch(
                f"select key, payload from {schema}.checkpoint_view order by key"
            )
            assert [tuple(each) for each in rows] == [("a", None), ("b", "1")]


async def test_retention_purges_what_finished_long_ago_in_bounded_batches(
    schemas: Schemas,
) -> None:
    """Issue 3 point 1: oldest first, so many at a time, and what is locked is left for later."""
    with schemas.new() as schema:
        statements = Statements(schema)
        async with (
            new_world(schemas.dsn, schema) as world,
            connected(schemas.dsn) as connection,
            connected(schemas.dsn) as other,
        ):
            lease = await world.host("me")
            ids = [f"p{number}" for number in range(10)]
            rows = await world.add(*ids, lease=lease)
            for row in rows[:8]:
                await world.done(lease, unit(row, 1, step("a")))
                await world.finish(lease, row)
            long_ago = datetime.now(UTC) - timedelta(days=30)
            for number in range(6):
                await connection.execute(
                    f"update {schema}.process set finished_at = $1 where process_id = $2",
                    long_ago + timedelta(minutes=number),
                    ids[number],
                )

            async def purge() -> int:
                keep = timedelta(days=7)
                purged: int = await connection.fetchval(statements["purge_finished"], keep, 2)
                return purged

            async with other.transaction():
                lock = f"select from {schema}.process where process_id = 'p0' for update"
                await other.execute(lock)
                assert await purge() == 2
                assert await world.ids() == ["p0", *ids[3:]]
            assert [await purge(), await purge(), await purge()] == [2, 2, 0]
            assert await world.ids() == ids[6:]
            left = f"select count(*) from {schema}.checkpoint"
            assert await connection.fetchval(left) == 2


async def test_hosts_purge_what_has_finished_long_ago(schemas: Schemas) -> None:
    """Issue 3 point 1: with retention= it goes by itself; what runs or has just finished stays."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            rows = await world.add("old", "new", "live", lease=lease)
            for row in rows[:2]:
                await world.done(lease, unit(row, 1, step("a")))
                await world.finish(lease, row)
            await connection.execute(
                f"update {schema}.process set finished_at = finished_at - interval '8 days'"
                " where process_id = 'old'"
            )
            async with new_world(schemas.dsn, schema, retention=timedelta(days=7)) as other:
                await other.host("other")
                async with asyncio.timeout(PATIENCE_S):
                    while (left := await world.ids()) == ["live", "new", "old"]:
                        pass
        assert left == ["live", "new"]
