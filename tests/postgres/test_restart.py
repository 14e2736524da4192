"""Restarts on Postgres: nothing grows, and what a host was told last is found again."""

import pytest

from durabletask.errors import StorageRewoundError
from durabletask.storage import CHILD_ENDED, EVENTS_KEPT, Action, Kind, Leave, Place, Status
from durabletask.testing._conformance.world import QUARANTINE, World, event, step, unit
from tests.postgres.stores import Connection, Schemas, connected, new_world

RESTARTS = 30


async def _counted(connection: Connection, schema: str) -> dict[str, int]:
    return {
        table: await connection.fetchval(f"select count(*) from {schema}.{table}")
        for table in ("process", "checkpoint", "forgotten", "event", "letter")
    }


async def test_a_process_that_restarts_does_not_grow(schemas: Schemas) -> None:
    """Issue 4 point 1: after each there are as many rows as before it, of every sort."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            row = await world.held("p", lease)
            for number in range(RESTARTS):
                await world.done(lease, unit(row, 3 * number + 1, step("a"), step("b")))
                await world.sent(event("p", f"untaken child {number}", name=f"{CHILD_ENDED}failed"))
                await world.done(lease, unit(row, 3 * number + 2, restart=b"[2]"))
                assert await _counted(connection, schema) == {
                    "process": 1,
                    "checkpoint": 0,
                    "forgotten": 0,
                    "event": 0,
                    "letter": 0,
                }
            found = await world.row("p")
            assert (found.generation, found.input, found.seq) == (
                RESTARTS,
                b"[2]",
                3 * RESTARTS - 1,
            )
            assert await connection.fetchval(f"select unconsumed from {schema}.process") == 0


async def test_of_consumed_events_the_latest_stay(schemas: Schemas) -> None:
    """EVENTS_KEPT: exactly so many, by position; a late copy of one of them is known."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            row = await world.held("p", lease)
            count = EVENTS_KEPT + 3
            events = [event("p", f"e{number}") for number in range(1, count + 1)]
            await world.send(*events, mailbox_max=2 * count)
            await world.done(lease, unit(row, 1, consumes=tuple(range(1, count))))
            await world.done(lease, unit(row, 2, restart=b"1"))
            kept = await connection.fetch(
                f"select position, consumed from {schema}.event order by position"
            )
            assert [each["position"] for each in kept] == [*range(3, count + 1)]
            assert [each["consumed"] for each in kept] == [True] * EVENTS_KEPT + [False]
            await world.send(events[2], events[0], mailbox_max=2 * count)
            history = await world.history("p")
            assert [each.event_id for each in history.events][-2:] == [f"e{count}", "e1"]
            assert history.events[-1].position == count + 1


async def _told_of_a_restart(world: World) -> None:
    lease = await world.host("me")
    row, other = await world.add("p", "q", lease=lease)
    await world.done(lease, unit(row, 1, step("a")))  # which the host was told last, until
    await world.done(lease, unit(row, 2, restart=b"1"))
    await world.done(lease, unit(other, 1, step("a"), status=Status.WAITING))


async def test_what_a_restart_has_removed_is_not_missed(schemas: Schemas) -> None:
    """F131: the last checkpoint that a host was told of is gone, and nothing is rewound."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world:
            await _told_of_a_restart(world)


async def test_a_restart_that_was_lost_is_missed(schemas: Schemas) -> None:
    """Rewound: the database holds the generation before the one that the host was told of."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            row, other = await world.add("p", "q", lease=lease)
            await world.done(lease, unit(row, 1, step("a")))
            before = f"create table {schema}.kept as select * from {schema}.process"
            await connection.execute(before)
            await world.done(lease, unit(row, 2, restart=b"1"))
            await connection.execute(
                f"update {schema}.process p set seq = k.seq, generation = k.generation"
                f" from {schema}.kept k where k.process_no = p.process_no"
            )
            with pytest.raises(StorageRewoundError):
                await world.commit(lease, unit(other, 1, step("a"), status=Status.WAITING))
            await connection.execute(f"drop table {schema}.kept")


async def test_people_see_what_was_asked_and_forgotten(schemas: Schemas) -> None:
    """S1.20: the views show the reasons as JSON, and what a retry has put aside."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as connection:
            lease = await world.host("me")
            row = await world.held("p", lease)
            await world.done(lease, unit(row, 1, step("a", b'{"n":7}'), ending=QUARANTINE))
            await world.ask(
                "p",
                Action.RETRY,
                incarnation=row.incarnation,
                epoch=row.epoch,
                forget=(Place(Kind.DO, "a", -1),),
            )
            await world.ask("p", Action.CANCEL, reason=b'"why"')
            await world.ask("p", Action.SUSPEND, reason=b'"wait"')
            process = await connection.fetchrow(f"select * from {schema}.process_view")
            assert process is not None
            assert (process["status"], process["suspended_because"]) == ("suspended", '"wait"')
            assert (process["cancel_because"], process["cancel_met"]) == ('"why"', False)
            forgotten = await connection.fetchrow(f"select * from {schema}.forgotten_view")
            assert forgotten is not None
            assert (forgotten["key"], forgotten["payload"]) == ("a", '{"n":7}')
            assert await world.payloads("p") == {}
            lease = await world.after(lease, "host-2")
            assert await world.take(lease) == {}
            await world.ask("p", Action.RESUME)
            taken = (await world.take(lease))["p"].row
            await world.done(lease, unit(taken, 1, leave=Leave.RELEASED))
