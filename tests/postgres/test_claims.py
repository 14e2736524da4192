"""Claims: nothing acknowledged is overlooked, nothing is taken twice, and idling is cheap."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import cast

import pytest

from durabletask.storage import DONE, ProcessRow, Status, Unit
from durabletask.testing._conformance.world import NAME, World, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres._sql import Statements
from tests.postgres.gates import new_gate, plant, wait_blocked
from tests.postgres.server import Postgres
from tests.postgres.stores import Schemas, connected, held, make, new_world

CLAIM_LOCK = """
select pg_advisory_xact_lock('durabletask.claim_mark'::regclass::oid::integer, host_no::integer)
from durabletask.fence
"""
"""By which the claims of one host wait for each other."""

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

Take = Callable[[], Awaitable[Sequence[str]]]
Units = Callable[[ProcessRow, ProcessRow], Sequence[Unit]]


def one_step(p: ProcessRow, q: ProcessRow) -> Sequence[Unit]:
    """A lone step."""
    return [unit(p, 2, step("meanwhile"))]


def steps(p: ProcessRow, q: ProcessRow) -> Sequence[Unit]:
    """Steps of several processes."""
    return [unit(p, 2, step("meanwhile")), unit(q, 2, step("too"))]


def change(p: ProcessRow, q: ProcessRow) -> Sequence[Unit]:
    """A unit that changes its process's row too."""
    return [unit(p, 2, step("meanwhile"), status=Status.WAITING)]


WAYS = pytest.mark.parametrize("units", [one_step, steps, change])
"""Each goes to the database by a statement of its own."""


async def seen_after_a_takeover(
    dsn: str, schema: str, take: Take, units: Units = one_step, *, lock: str = "for share"
) -> bool:
    """Return whether a claim that takes over hands out what is acknowledged while it waits.

    Args:
        dsn: Of the database.
        schema: With a host "new" that has a lease.
        take: Claims for that host, and returns the keys of the checkpoints handed out.
        units: What the other host commits.
        lock: How its lone steps hold the fence.
    """
    expire = Statements(schema).rewrite(
        "update durabletask.lease l set expires_at = now() from durabletask.fence f"
        " where f.host_no = l.host_no and f.host_id = 'old'"
    )
    async with (
        new_world(dsn, schema, lease_ttl_s=LONG_S) as old,
        new_gate(dsn, schema, "checkpoint", "new.key = 'meanwhile'") as gate,
    ):
        commits = cast("PostgresStorage", old.storage)._commits
        assert "for share" in commits._step
        commits._step = commits._step.replace("for share", lock)
        lease = await old.host("old")
        rows = await old.add("p", "q", lease=lease)
        await old.done(lease, unit(rows[0], 1, step("before")))
        commit = asyncio.create_task(old.commit(lease, *units(*rows)))
        await gate.wait()
        async with connected(dsn) as connection:
            await connection.execute(expire)
        taking = asyncio.create_task(_until(take))
        waiting = asyncio.create_task(gate.wait_behind())
        await asyncio.wait({taking, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        await asyncio.wait([waiting])
        await gate.open()
        assert set(await commit) == {DONE}
        keys = await taking
        assert keys[0] == "before"
        return "meanwhile" in keys


async def _until(take: Take) -> Sequence[str]:
    """Take until there is something: a claim waits a second and no longer for a lock."""
    while not (keys := await take()):
        pass
    return keys


async def take_by_storage(world: World) -> Sequence[str]:
    """Claim as every host does."""
    taken = await world.take(await world.host("new"))
    return [each.key for each in taken["p"].checkpoints] if "p" in taken else []


@WAYS
async def test_what_is_acknowledged_while_a_claim_waits_is_handed_out(
    postgres: Postgres, free_schema: str, units: Units
) -> None:
    """G1 G4: the claim waits for the commit on its way, and reads after it, with what it wrote."""
    await make(postgres.dsn, free_schema)
    async with new_world(postgres.dsn, free_schema, lease_ttl_s=LONG_S) as other:
        take = partial(take_by_storage, other)
        assert await seen_after_a_takeover(postgres.dsn, free_schema, take, units)


@pytest.mark.parametrize("units", [one_step, steps])  # a change holds its process's row besides
async def test_a_fence_held_with_a_weaker_lock_is_found_out(
    postgres: Postgres, free_schema: str, units: Units
) -> None:
    """FAILURES C03: with FOR KEY SHARE the claim passes by and misses an acknowledged step."""
    weaker = "for key share"
    await make(postgres.dsn, free_schema)
    await plant(postgres.dsn, free_schema, "hold_fence", "for share", weaker)
    async with new_world(postgres.dsn, free_schema, lease_ttl_s=LONG_S) as other:
        take = partial(take_by_storage, other)
        assert not await seen_after_a_takeover(postgres.dsn, free_schema, take, units, lock=weaker)


async def test_a_claim_with_one_snapshot_is_found_out(postgres: Postgres, free_schema: str) -> None:
    """DESIGN 5: read with a snapshot older than the lock, an acknowledged step is missed."""
    await make(postgres.dsn, free_schema)
    statements = Statements(free_schema)
    await plant(postgres.dsn, free_schema, "check_isolation", "<> 'read committed'", "= 'none'")
    async with new_world(postgres.dsn, free_schema, lease_ttl_s=LONG_S) as other:
        await other.host("new")

        async def take() -> Sequence[str]:
            async with (
                connected(postgres.dsn) as connection,
                connection.transaction(isolation="repeatable_read"),
            ):
                rows = await connection.fetch(
                    statements["claim"], "new", "one", [NAME], [None], 1, False, False
                )
                return [key for row in rows[1:] for key in row["keys"]]

        assert not await seen_after_a_takeover(postgres.dsn, free_schema, take)


# --- repeats and late copies -------------------------------------------------------------------


async def test_a_claim_whose_answer_was_lost_is_answered_again(schemas: Schemas) -> None:
    """G4: it runs on without its client, and its repeat waits for it and gets the same process."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema) as world,
            connected(schemas.dsn) as gate,
            connected(schemas.dsn) as lost,
        ):
            lease = await world.host("me")
            await world.add("p")
            claim = Statements(schema)["claim"]
            async with gate.transaction():
                await gate.execute(Statements(schema).rewrite(CLAIM_LOCK))
                first = asyncio.create_task(
                    lost.fetch(claim, "me", "one", [NAME], [None], 10, False, False)
                )
                await wait_blocked(gate, 1)
                first.cancel()
                lost.terminate()
                storage = cast("PostgresStorage", world.storage)
                storage._lost_claims.setdefault(lease.host_id, set()).add("one")
                repeat = asyncio.create_task(world.take(lease, claim_id="one"))
                await wait_blocked(gate, 2)
            assert (await repeat)["p"].row.epoch == 1


async def test_a_late_copy_of_a_claim_takes_nothing(schemas: Schemas) -> None:
    """G4: it comes after its repeat, which found nothing, and when there is something to take."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as late:
            lease = await world.host("me")
            storage = cast("PostgresStorage", world.storage)
            storage._lost_claims.setdefault(lease.host_id, set()).add("one")
            assert await world.take(lease, claim_id="one") == {}
            await world.add("p")
            claim = Statements(schema)["claim"]
            rows = await late.fetch(claim, "me", "one", [NAME], [None], 10, False, False)
            assert [row["process_id"] for row in rows] == [None]
            assert (await world.row("p")).owner is None
            assert list(await world.take(lease, claim_id="two")) == ["p"]


# --- many hosts, many processes ----------------------------------------------------------------


async def test_hosts_that_claim_at_once_share(schemas: Schemas) -> None:
    """G4: of 3,000 processes and three hosts each is taken once, and nobody goes short."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema) as a,
            new_world(schemas.dsn, schema) as b,
            new_world(schemas.dsn, schema) as c,
        ):
            for first in range(0, 3_000, 1_000):
                await a.add(*(f"p{number}" for number in range(first, first + 1_000)))
            taken = await asyncio.gather(*(_take_all(world) for world in (a, b, c)))
        assert sorted(chain(*taken)) == sorted(f"p{number}" for number in range(3_000))
        assert min(len(each) for each in taken) > 300


async def _take_all(world: World) -> list[str]:
    lease = await world.host(f"host-{id(world)}")
    found: list[str] = []
    while part := await world.take(lease, count_max=100):
        found += part
    return found


async def test_in_place_of_what_is_locked_nothing_is_taken_before_its_time(
    schemas: Schemas,
) -> None:
    """G7: the one that is due is held by somebody; the next one is due in an hour, and stays."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            await world.add("due")
            await world.add("later", start_at=datetime.now(UTC) + timedelta(hours=1))
            async with held(schemas.dsn, schema, "due"):
                assert await world.take(lease, count_max=1) == {}
            assert list(await world.take(lease, count_max=2)) == ["due"]


async def test_what_nobody_can_run_costs_a_claim_nothing(schemas: Schemas) -> None:
    """G13: 100,000 claimable processes of foreign names and as many finished ones are not read."""
    with schemas.new() as schema:
        rewrite = Statements(schema).rewrite
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            await world.host("me")
            await world.add("p", "q")
            await connection.execute(rewrite(MANY))
            claim = Statements(schema)["claim"]
            for analyzed, room in ((False, None), (False, 10), (True, None), (True, 10)):
                if analyzed:
                    await connection.execute(rewrite("analyze durabletask.process"))
                undone = connection.transaction()
                await undone.start()
                rows = await connection.fetch(claim, "me", "one", [NAME], [room], 10, True, False)
                read = await connection.fetchrow(READ, schema)
                await undone.rollback()
                assert [row["process_id"] for row in rows[1:]] == ["p", "q"]
                assert read is not None
                assert read["by_scan"] == 0, (analyzed, room)
                assert read["by_index"] < 100, (analyzed, room)


MANY = """
insert into durabletask.process (
    process_id, name, status, claimable_at, finished_at, created_at, updated_at, creation_id,
    input_digest, input)
select 'f' || n, case when n % 2 = 0 then NAME else 'foreign' end,
    case when n % 2 = 0 then 'completed' else 'running' end,
    case when n % 2 = 1 then now() end, case when n % 2 = 0 then now() end,
    now(), now(), 'c', 'd', '1'
from generate_series(1, 200000) n
""".replace("NAME", f"'{NAME}'")

READ = """
select sum(seq_tup_read) as by_scan, sum(idx_tup_fetch) as by_index
from pg_stat_xact_user_tables where schemaname = $1 and relname = 'process'
"""
