"""Requests on Postgres: from several connections at once, and in the way of what hosts record."""

import asyncio
from random import Random

import pytest

from durabletask.storage import (
    DONE,
    FINISHED,
    NEXT,
    REQUESTS_KEPT,
    Action,
    Control,
    Controlled,
    Kind,
    Leave,
    Refusal,
    Status,
    UnitOutcome,
)
from durabletask.testing._conformance.world import FINISH, World, child, step, unit
from tests.postgres.gates import new_gate, plant, wait_blocked
from tests.postgres.server import Postgres
from tests.postgres.stores import (
    PATIENCE_S,
    Connection,
    Schemas,
    connected,
    held,
    make,
    new_world,
)

FINISHED_BEFORE = Controlled(Refusal.FINISHED)


async def patient(dsn: str, schema: str, *functions: str) -> None:
    """Let functions wait for a row for as long as it takes."""
    for function in functions:
        await plant(dsn, schema, function, "lock_timeout TO '100ms'", "lock_timeout TO '0'")


# --- racing with each other --------------------------------------------------------------------


async def test_many_requests_at_once_leave_one_legal_status(schemas: Schemas) -> None:
    """Issue 4 point 2: 50 mixed ones over three storages, beside a host: one story fits them."""
    random = Random(50)
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema) as a,
            new_world(schemas.dsn, schema) as b,
            new_world(schemas.dsn, schema) as c,
            connected(schemas.dsn) as connection,
        ):
            lease = await a.host("me")
            for number in range(6):
                row = await a.held(f"p{number}", lease)

                async def ask(world: World, action: Action, row: str = f"p{number}") -> Controlled:
                    while True:
                        (answer,) = await world.request(world.control(row, action))
                        if answer.refused is not Refusal.BUSY:
                            return answer

                mix = [*Action] if number % 2 else [Action.SUSPEND, Action.RESUME, Action.CANCEL]
                asks = [ask(random.choice((a, b, c)), random.choice(mix)) for _ in range(50)]
                units = [
                    a.commit(lease, unit(row, seq, step(f"s{seq}"), status=Status.WAITING))
                    for seq in range(1, 6)
                ]
                answers, outcomes = (
                    await asyncio.gather(*asks),
                    await asyncio.gather(*units),
                )
                found = await a.row(row.process_id)
                ended = [each.row for each in answers if each.row and each.row.finished_at]
                assert (
                    (found.status is Status.TERMINATED) == bool(ended) == (Action.TERMINATE in mix)
                )
                assert all(each.status is Status.TERMINATED for each in ended)
                assert bool(NEXT[found.status]) == (found.status not in FINISHED)
                assert found.owner == lease.host_id
                assert {each[0].refused for each in outcomes} <= {None, Refusal.FINISHED}
                assert (
                    await connection.fetchval(
                        f"select cardinality(request_ids) from {schema}.process"
                        f" where process_id = '{row.process_id}'"
                    )
                    <= REQUESTS_KEPT
                )


async def test_a_held_process_among_many_holds_up_none_of_them(schemas: Schemas) -> None:
    """G13: the request for it is busy, and so is the one for what it is below; others are done."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            ids = [f"p{number}" for number in range(20)]
            rows = await world.add(*ids, lease=lease)
            await world.done(lease, unit(rows[3], 1, step("c"), spawns=(child(rows[3], "kid"),)))
            controls = [world.control(each, Action.CANCEL) for each in ids]
            async with held(schemas.dsn, schema, "kid"):
                answers = await world.request(*controls)
                assert [each.refused for each in answers] == [
                    Refusal.BUSY if each == "p3" else None for each in ids
                ]
                assert (await world.row("p3")).cancel_reason is None
            assert [each.refused for each in await world.request(*controls)] == [None] * 20
            assert (await world.row("kid")).status is Status.CANCELLED


# --- in the way of a unit ------------------------------------------------------------------------


async def ended_both_ways(postgres: Postgres, schema: str) -> tuple[Controlled, UnitOutcome]:
    """Ask a process to end while the commit of its own end is on its way; return both answers."""
    await patient(postgres.dsn, schema, "request")
    async with (
        new_world(postgres.dsn, schema) as world,
        new_world(postgres.dsn, schema) as other,
        new_gate(postgres.dsn, schema, "checkpoint", "new.key = 'last'") as gate,
    ):
        lease = await world.host("me")
        row = await world.held("p", lease)
        ending = asyncio.create_task(world.commit(lease, unit(row, 1, step("last"), ending=FINISH)))
        await gate.wait()
        asking = asyncio.create_task(other.request(other.control("p", Action.TERMINATE)))
        await gate.wait_behind()
        await gate.open()
        ((outcome,), (answer,)) = await ending, await asking
        return answer, outcome


async def test_a_request_waits_for_a_unit_on_its_way(postgres: Postgres, free_schema: str) -> None:
    """G10 I1: what the host is told has ended has ended so, and the request comes too late."""
    await make(postgres.dsn, free_schema)
    assert await ended_both_ways(postgres, free_schema) == (FINISHED_BEFORE, DONE)


async def test_a_request_that_reads_before_it_locks_is_found_out(
    postgres: Postgres, free_schema: str
) -> None:
    """DESIGN 5: without the lock a completed process is terminated after all."""
    await make(postgres.dsn, free_schema)
    await plant(postgres.dsn, free_schema, "lock_kin", "order by p.process_no + 0 for update", "")
    answer, outcome = await ended_both_ways(postgres, free_schema)
    assert (answer.refused, outcome) == (None, DONE)


@pytest.mark.parametrize("reaching", [False, True])
async def test_a_unit_waits_for_a_request_on_its_way(
    postgres: Postgres, free_schema: str, reaching: bool
) -> None:
    """G10 I14: whichever way the unit goes it finds the process terminated, and writes nothing."""
    await make(postgres.dsn, free_schema)
    await patient(postgres.dsn, free_schema, "commit_units", "commit_in_turn")
    async with (
        new_world(postgres.dsn, free_schema) as world,
        new_world(postgres.dsn, free_schema) as other,
        new_gate(postgres.dsn, free_schema, "event", "new.name like 'durabletask:%'") as gate,
    ):
        lease = await world.host("me")
        parent, kid = await world.family(lease)
        asking = asyncio.create_task(other.request(other.control(kid.process_id, Action.TERMINATE)))
        await gate.wait()
        unfinished = unit(kid, 9, step("late"), status=Status.WAITING, meets_cancel=reaching)
        writing = asyncio.create_task(world.commit(lease, unfinished))
        await gate.wait_behind()
        await gate.open()
        assert [each.refused for each in await asking] == [None]
        assert await writing == [UnitOutcome(refused=Refusal.FINISHED)]
        assert "late" not in await world.payloads(kid.process_id)
        assert parent.process_id in await world.news(lease)


async def test_a_child_on_its_way_does_not_escape(postgres: Postgres, free_schema: str) -> None:
    """Section 3 rule 7: a spawn that is being committed is waited for, and its child is asked."""
    await make(postgres.dsn, free_schema)
    await patient(postgres.dsn, free_schema, "request")
    async with (
        new_world(postgres.dsn, free_schema) as world,
        new_world(postgres.dsn, free_schema) as other,
        new_gate(postgres.dsn, free_schema, "process", "new.process_id = 'kid'") as gate,
    ):
        lease = await world.host("me")
        row = await world.held("p", lease)
        spawn = unit(row, 1, step("child", kind=Kind.CHILD), spawns=(child(row, "kid"),))
        spawning = asyncio.create_task(world.commit(lease, spawn))
        await gate.wait()
        asking = asyncio.create_task(other.request(other.control("p", Action.TERMINATE)))
        await gate.wait_behind()
        await gate.open()
        assert await spawning == [DONE]
        assert [each.refused for each in await asking] == [None]
        assert (await world.row("kid")).status is Status.TERMINATED


@pytest.mark.parametrize("known", [True, False])
async def test_every_way_of_a_step_finds_a_terminated_process(
    schemas: Schemas, known: bool
) -> None:
    """I14: the lone one, the batch, and those that are looked at: refused, and nothing is there."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            rows = await world.add("p", "q", lease=lease)
            await world.done(lease, *(unit(row, 1, step("a")) for row in rows))
            await world.done(lease, unit(rows[1], 2, step("b")))  # the session is known
            await world.ask("p", Action.TERMINATE)
            if not known:
                await world.news(lease)
            finished = UnitOutcome(refused=Refusal.FINISHED)
            late, fine = unit(rows[0], 2, step("b")), unit(rows[1], 3, step("c"))
            assert await world.commit(lease, late) == [finished]
            assert await world.commit(lease, late, fine) == [finished, DONE]
            assert await world.commit(lease, unit(rows[0], 1, step("a"))) == [DONE]
            assert list(await world.payloads("p")) == ["a"]
            await world.done(lease, unit(rows[0], 3, leave=Leave.RELEASED))
            assert await world.storage.purge(["p"]) == [None]


# --- hints ---------------------------------------------------------------------------------------


async def test_whom_a_request_concerns_is_told(schemas: Schemas) -> None:
    """Issue 4: the owner elsewhere looks at once, and so does who waits for an end."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema) as world,
            new_world(schemas.dsn, schema) as other,
        ):
            lease = await world.host("me")
            await world.held("p", lease)
            told: asyncio.Queue[str | None] = asyncio.Queue()
            end = world.storage.subscribe(told.put_nowait)  # type: ignore[attr-defined]
            for action in (Action.SUSPEND, Action.RESUME, Action.CANCEL, Action.TERMINATE):
                await other.ask("p", action)
                async with asyncio.timeout(PATIENCE_S):
                    while await told.get() not in ("p", None):
                        pass
                assert "p" in await world.news(lease)
            end()


# --- locks ---------------------------------------------------------------------------------------


async def _crossing(postgres: Postgres, schema: str) -> int:
    """Let a commit and a request lock the same family, held up between; return the deadlocks."""
    await patient(postgres.dsn, schema, "request", "commit_in_turn")
    dsn = f"{postgres.dsn}&deadlock_timeout=5ms"
    async with new_world(dsn, schema) as world, new_world(dsn, schema) as other:
        lease = await world.host("me")
        parent = await world.held("p", lease)
        kids = tuple(child(parent, each) for each in ("c1", "c2"))
        await world.done(lease, unit(parent, 1, step("c", kind=Kind.CHILD), spawns=kids))
        rows = {each: claimed.row for each, claimed in (await world.take(lease)).items()}
        async with connected(postgres.dsn) as barrier:
            before = await _deadlocks(barrier)
            async with barrier.transaction():
                await barrier.execute(
                    f"select from {schema}.process where process_id = 'c1' for update"
                )
                asking = asyncio.create_task(other.request(_cancel("p")))
                await wait_blocked(barrier, 1)
                ends = [unit(row, 1, ending=FINISH) for row in rows.values()]
                ending = asyncio.create_task(world.commit(lease, *ends))
                async with connected(postgres.dsn) as looking:
                    await _wait_waiting(looking, 2)
            await asyncio.gather(asking, ending, return_exceptions=True)
            async with asyncio.timeout(PATIENCE_S):
                failed = [each for each in (asking, ending) if each.exception() is not None]
                while failed and await _deadlocks(barrier) == before:
                    pass  # the server counts when the session has nothing to do
            return await _deadlocks(barrier) - before


def _cancel(process_id: str) -> Control:
    return Control(process_id=process_id, action=Action.CANCEL, request_id="r")


async def _deadlocks(connection: Connection) -> int:
    await connection.execute("select pg_stat_clear_snapshot()")
    found: int = await connection.fetchval(
        "select deadlocks from pg_stat_database where datname = current_database()"
    )
    return found


async def _wait_waiting(connection: Connection, count: int) -> None:
    query = "select count(distinct pid) from pg_locks where not granted"
    async with asyncio.timeout(PATIENCE_S):
        while await connection.fetchval(query) < count:
            pass


async def test_ends_and_requests_lock_in_one_order(postgres: Postgres, free_schema: str) -> None:
    """F055: a family that ends while it is asked to: one waits for the other, and both go on."""
    await make(postgres.dsn, free_schema)
    assert await _crossing(postgres, free_schema) == 0


async def test_a_reversed_order_of_locks_is_found_out(postgres: Postgres, free_schema: str) -> None:
    """F055: locked from below by one and from above by the other, they stop each other."""
    await make(postgres.dsn, free_schema)
    await plant(
        postgres.dsn,
        free_schema,
        "commit_in_turn",
        "order by p.process_no + 0 for update)",
        "order by - p.process_no for update)",
    )
    assert await _crossing(postgres, free_schema) > 0
