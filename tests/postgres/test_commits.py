"""Commits: one process that cannot be written stops itself only, and what was told is there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TypeVar, cast

import asyncpg
import pytest

from durabletask import Process, ProcessHost
from durabletask.errors import ProcessBusyError, StorageRewoundError, StorageUnknownError
from durabletask.storage import DONE, Action, Kind, Leave, Refusal, Status, UnitOutcome
from durabletask.testing._conformance.world import FINISH, World, event, made, new, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres._pools import OwnPool
from durabletask_postgres._sql import Statements
from tests.postgres.stores import PATIENCE_S, Schemas, connected, held, new_world

T = TypeVar("T")

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

BUSY = UnitOutcome(refused=Refusal.BUSY)


# --- somebody else's locks ---------------------------------------------------------------------


async def test_a_locked_process_among_many_holds_up_none_of_them(schemas: Schemas) -> None:
    """G13: of 100 changes and 100 steps those of the held row are busy, while it is held."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            rows = await world.add(*(f"p{number}" for number in range(100)), lease=lease)
            units = [unit(row, 1, step("a"), status=Status.WAITING) for row in rows]
            units += [unit(row, 2, step("b")) for row in rows]
            async with held(schemas.dsn, schema, "p50"):
                for _ in range(2):  # the second time it is known that somebody sits on rows
                    outcomes = await world.commit(lease, *units)
                    assert outcomes == [
                        BUSY if each.process_id == "p50" else DONE for each in units
                    ]
                assert (await world.history("p50")).checkpoints == ()
            await world.done(lease, *units)
            assert list(await world.payloads("p50")) == ["a", "b"]


async def test_a_place_that_another_transaction_is_taking_holds_up_its_process_only(
    schemas: Schemas,
) -> None:
    """F053 G13: a row on its way under the same key is waited for shortly, by its process only."""
    with schemas.new() as schema:
        copy = Statements(schema).rewrite("""
            insert into durabletask.checkpoint
                (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
            values ($1, now(), 1, 1, -1, 0, false, 'do', 'a', 'value', '"other"')
        """)
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as other:
            lease = await world.host("me")
            rows = await world.add(*(f"p{number}" for number in range(20)), lease=lease)
            units = [unit(row, 1, step("a")) for row in rows]
            async with other.transaction():
                await other.execute(copy, rows[7].incarnation)
                outcomes = await world.commit(lease, *units)
                assert outcomes == [BUSY if each.process_id == "p7" else DONE for each in units]
            # It was this very unit: its answer was lost and its backend went on.
            await world.done(lease, *units)
            assert await world.payloads("p7") == {"a": b'"other"'}


async def test_locked_ids_and_mailboxes_hold_up_no_batch(schemas: Schemas) -> None:
    """G13: creations, events and purges of a batch around one that is held are done."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            ids = [f"p{number}" for number in range(30)]
            async with held(schemas.dsn, schema, "p13"):
                await world.add(*ids[:13], *ids[14:])
            await world.add("p13")
            async with held(schemas.dsn, schema, "p13"):
                answers = await world.send(*(event(each, "e1") for each in ids))
            assert [each.refused for each in answers if each.refused] == [Refusal.BUSY]
            assert answers[13].refused is Refusal.BUSY


async def test_a_person_who_locks_a_row_in_psql_stops_that_process_only(schemas: Schemas) -> None:
    """G13: neighbours on the same host begin and end meanwhile; the held one ends afterwards."""

    async def body(proc: Process) -> str:
        await proc.do("one", str)
        await proc.event("go", str)
        return await proc.do("two", lambda: proc.id)

    with schemas.new() as schema:
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessHost(storage, processes=[body]) as host:
            stuck = await host.spawn(body, "stuck")
            await _until(stuck.info, lambda info: info.status is Status.WAITING)
            async with held(schemas.dsn, schema, "stuck"):
                raising = asyncio.create_task(stuck.raise_event("go", "on"))
                for number in range(20):
                    handle = await host.spawn(body, f"p{number}")
                    await handle.raise_event("go", "on")
                    assert await handle.result(timeout=PATIENCE_S) == f"p{number}"
                assert (await stuck.info()).status is Status.WAITING
            with suppress(ProcessBusyError):  # where the others took longer than it asks again
                await raising
            await stuck.raise_event("go", "on")
            assert await stuck.result(timeout=PATIENCE_S) == "stuck"


async def test_batches_in_any_order_do_not_lock_each_other_out(database: str) -> None:
    """F055: commits, deliveries, creations, purges, claims of the same processes: no deadlock."""
    random = Random(55)
    ids = [f"p{number}" for number in range(20)]
    ends = [f"end{number}" for number in range(20)]
    # So soon that a deadlock is found before anybody gives up waiting.
    dsn = f"{database}&deadlock_timeout=5ms"

    def shuffled(names: list[str]) -> list[str]:
        return random.sample(names, len(names))

    async with (
        new_world(dsn, "durabletask") as host,
        new_world(dsn, "durabletask") as a,
        new_world(dsn, "durabletask") as b,
    ):
        lease = await host.host("me")
        rows = {row.process_id: row for row in await host.add(*ids, lease=lease)}

        async def commit() -> None:
            for seq in range(1, 41):
                batch = [unit(rows[each], seq, status=Status.WAITING) for each in shuffled(ids)]
                await host.commit(lease, *batch)
                await host.claim(lease)

        async def deliver(world: World) -> None:
            for number in range(40):
                events = [event(each, f"{id(world)}/{number}") for each in shuffled(ids + ends)]
                await world.send(*events)

        async def replace(world: World) -> None:
            for number in range(20):
                fresh = [
                    new(each, replace=True, creation_id=f"{id(world)}/{number}")
                    for each in shuffled(ends)
                ]
                created = await world.storage.create(fresh, lease)
                ours = [made(each) for each in created if each.fresh]
                await world.commit(lease, *(unit(row, 1, ending=FINISH) for row in ours))
                if number % 3 == 0:
                    await world.storage.purge(shuffled(ends))

        await asyncio.gather(commit(), deliver(a), deliver(b), replace(a), replace(b))
    async with connected(database) as connection:
        query = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await connection.fetchval(query) == 0


# --- a database that went back in time ---------------------------------------------------------


async def forget(schemas: Schemas, schema: str, key: str) -> None:
    """Take a checkpoint back, as a replica does that was promoted without it."""
    async with connected(schemas.dsn) as connection:
        query = f"delete from {schema}.checkpoint where key = $1 returning key"
        assert await connection.fetchval(query, key) == key


def new_sessions(world: World) -> None:
    """End the sessions, as whatever takes a server back in time does."""
    pool = cast("PostgresStorage", world.storage)._connections._pool
    for line in cast("OwnPool", pool)._idle:
        line.terminate()


WAYS = pytest.mark.parametrize("count", [1, 2, 0])
"""A lone step, several steps, a change: each a statement of its own."""


@WAYS
async def test_an_acknowledged_step_that_is_gone_is_noticed(schemas: Schemas, count: int) -> None:
    """Issue 3 point 6: the next commit, of whatever sort, writes nothing and says so."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            rows = await world.add("p", "q", lease=lease)
            await world.done(lease, unit(rows[0], 1, step("a")))
            await forget(schemas, schema, "a")
            new_sessions(world)
            units = [unit(row, 2, step("b")) for row in rows[:count]]
            units = units or [unit(rows[1], 2, step("b"), status=Status.WAITING)]
            with pytest.raises(StorageRewoundError):
                await world.commit(lease, *units)
            assert await world.payloads("p") == await world.payloads("q") == {}


async def test_an_acknowledged_transaction_that_is_gone_is_noticed(schemas: Schemas) -> None:
    """Issue 3 point 6: what was told last may have been told by another way than a commit."""

    async def body(connection: object) -> bytes:
        return b"1"

    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            (row,) = await world.add("p", lease=lease)
            await world.done(lease, unit(row, 1, step("a")))
            storage = cast("PostgresStorage", world.storage)
            last = unit(row, 2, step("t", b"", kind=Kind.TRANSACTION))
            assert await storage.transact(lease, last, body) is DONE
            await forget(schemas, schema, "t")
            new_sessions(world)
            with pytest.raises(StorageRewoundError):
                await world.commit(lease, unit(row, 3, step("b")))
            assert await world.payloads("p") == {"a": b"1"}


@WAYS
async def test_an_acknowledged_ending_that_is_gone_is_noticed(schemas: Schemas, count: int) -> None:
    """Issue 3 point 6: a process that had left the host and belongs to it again."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            ended, *rows = await world.add("ended", "p", "q", lease=lease)
            await world.finish(lease, ended)
            async with connected(schemas.dsn) as connection:
                await connection.execute(
                    f"update {schema}.process set status = 'running', seq = 0, owner_no ="
                    f" (select host_no from {schema}.fence) where process_id = 'ended'"
                )
            new_sessions(world)
            units = [unit(row, 2, step("b")) for row in rows[:count]]
            units = units or [unit(rows[1], 2, step("b"), status=Status.WAITING)]
            with pytest.raises(StorageRewoundError):
                await world.commit(lease, *units)


@pytest.mark.parametrize("leave", [None, Leave.PARKED])
async def test_a_purge_is_not_taken_for_a_loss(schemas: Schemas, leave: Leave | None) -> None:
    """Issue 3 point 6: an ending whose answer was lost, its repeat, a purge: nothing is missing."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            gone, row = await world.add("gone", "p", lease=lease)
            await world.done(lease, unit(gone, 1, step("a")))
            last = unit(gone, 2, leave=leave) if leave else unit(gone, 2, ending=FINISH)
            async with _answer_lost(world):
                await world.commit(lease, last)
            assert await world.commit(lease, last) == [DONE]
            for table in ("checkpoint", "process"):
                await connection.execute(
                    f"delete from {schema}.{table} where process_no = $1", gone.incarnation
                )
            await world.done(lease, unit(row, 1, step("b")))


async def test_what_was_terminated_and_purged_is_not_taken_for_a_loss(schemas: Schemas) -> None:
    """Issue 3 point 6, S2.10: its host lets it go, which is the last thing that it was told."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            lease = await world.host("me")
            gone, row = await world.add("gone", "p", lease=lease)
            await world.done(lease, unit(gone, 1, step("a")))
            await world.ask("gone", Action.TERMINATE)
            await world.done(lease, unit(gone, 2, leave=Leave.RELEASED))
            assert [*await world.storage.purge(["gone"])] == [None]
            # No step alone, which goes unasked in a session that is known.
            await world.done(lease, unit(row, 1, step("b"), status=Status.WAITING))


@asynccontextmanager
async def _answer_lost(world: World) -> AsyncIterator[None]:
    """Carry out what is asked inside, and lose the answer."""
    connections = cast("PostgresStorage", world.storage)._connections
    fetch = connections.fetch

    async def lose(statement: str, *args: object) -> Sequence[asyncpg.Record]:
        await fetch(statement, *args)
        raise StorageUnknownError("planted: the answer was lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "fetch", lose)
        with pytest.raises(StorageUnknownError):
            yield


async def test_a_host_starts_over_from_what_is_stored(
    schemas: Schemas, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 3 point 6: the lost step runs again, the process ends, and the log says why."""
    ran: list[str] = []

    async def body(proc: Process) -> str:
        await proc.do("first", run, "first")
        await proc.do("second", run, "second")
        await proc.event("go", str)
        await proc.do("third", run, "third")
        return "done"

    async def run(name: str) -> None:
        ran.append(name)

    with schemas.new() as schema:
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessHost(storage, processes=[body], label="me") as host:
            handle = await host.spawn(body, "p")
            await _until(handle.info, lambda info: info.status is Status.WAITING)
            await forget(schemas, schema, "second")
            await forget(schemas, schema, "go")  # the record that the wait began
            await host.raise_event("p", "go", "now")
            assert await handle.result(timeout=30) == "done"
        await storage.close()
    assert ran[:2] == ["first", "second"]
    assert ran.count("first") == 1
    assert ran.count("second") == 2
    assert "third" in ran
    assert any("acknowledged" in each.getMessage() for each in caplog.records)


async def _until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not enough(await ask()):
            pass
