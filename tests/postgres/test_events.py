"""Events: in order per sender whichever way they come, none skipped, and nobody waits for any."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from durabletask.errors import InvalidArgumentError
from durabletask.storage import Delivered, Leave, Refusal, Status
from durabletask.testing._conformance.world import FINISH, World, event, step, unit
from durabletask_postgres import PostgresStorage
from tests.postgres.gates import new_gate
from tests.postgres.server import Postgres
from tests.postgres.stores import Connection, Schemas, connected, make, new_world

MAILBOX_MAX = 100


async def post(world: World, connection: Connection, *events: str) -> list[Delivered]:
    """Raise events at process "p" in the open transaction of a connection."""
    storage = cast("PostgresStorage", world.storage)
    return [
        await storage.deliver_in(connection, event("p", each), mailbox_max=MAILBOX_MAX)
        for each in events
    ]


async def mailbox(world: World) -> list[tuple[int, str]]:
    """Return positions and ids of the events of process "p"."""
    return [(each.position, each.event_id) for each in (await world.history("p")).events]


async def test_events_that_commit_in_another_order_than_they_came_are_all_found(
    postgres: Postgres, free_schema: str
) -> None:
    """F100: the first of two raisers waits before its commit; a host that looks misses none."""
    await make(postgres.dsn, free_schema)
    async with (
        new_world(postgres.dsn, free_schema) as world,
        new_world(postgres.dsn, free_schema) as first,
        new_world(postgres.dsn, free_schema) as second,
        new_gate(postgres.dsn, free_schema, "event", "new.event_id = 'slow'") as gate,
    ):
        lease = await world.host("me")
        row = await world.held("p", lease)
        slow = asyncio.create_task(first.send(event("p", "slow")))
        await gate.wait()
        quick = asyncio.create_task(second.send(event("p", "quick")))
        await gate.wait_behind()
        # The host meets a mailbox that is being written to: it neither waits nor skips.
        assert await world.news(lease) == {}
        await gate.open()
        assert [each.refused for each in [*await slow, *await quick]] == [None, None]
        news = await world.news(lease)
        assert [each.event_id for each in news["p"].events] == ["slow", "quick"]
        await world.done(lease, unit(row, 1, consumes=(1, 2)))


async def test_an_event_of_an_open_transaction_stops_nobody(schemas: Schemas) -> None:
    """Issue 3 point 5: while it is open, steps, changes, other events and claims go on."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            row = await world.held("p", lease)
            async with user.transaction():
                assert [each.refused for each in await post(world, user, "open")] == [None]
                await world.done(lease, unit(row, 1, step("a")))
                await world.done(lease, unit(row, 2, step("b"), status=Status.WAITING))
                await world.sent(event("p", "e1"))
                assert [each.event_id for each in (await world.news(lease))["p"].events] == ["e1"]
                await world.done(lease, unit(row, 3, consumes=(1,), leave=Leave.RELEASED))
                assert list(await world.take(lease)) == ["p"]
            news = await world.news(lease)
            assert [each.event_id for each in news["p"].events] == ["open"]


async def test_a_transaction_raises_no_more_than_a_mailbox_holds(schemas: Schemas) -> None:
    """Rule 14: what is on its way counts; what another open transaction has raised is not seen."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            await world.add("p")
            await world.sent(*(event("p", f"before {number}") for number in range(97)))
            async with user.transaction():
                answers = await post(world, user, "e1", "e2", "e3", "e4", "e5")
            full = Refusal.MAILBOX_FULL
            assert [each.refused for each in answers] == [None, None, None, full, full]
            assert len((await world.take(await world.host("me")))["p"].events) == MAILBOX_MAX


async def test_an_event_of_a_transaction_that_is_rolled_back_never_was(schemas: Schemas) -> None:
    """G10: neither it nor a gap is left; with the same id it can be raised again."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            await world.held("p", lease)
            transaction = user.transaction()
            await transaction.start()
            await post(world, user, "e1")
            await transaction.rollback()
            assert await world.news(lease) == {}
            async with user.transaction():
                await post(world, user, "e1")
            assert [each.event_id for each in (await world.news(lease))["p"].events] == ["e1"]
            assert await mailbox(world) == [(1, "e1")]


async def test_one_sender_s_events_keep_their_order_whichever_way_they_come(
    schemas: Schemas,
) -> None:
    """G10: in transactions, several in one, and directly: what was acknowledged first is first."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            await world.held("p", lease)
            sent: list[str] = []
            for turn in range(4):
                async with user.transaction():
                    sent += [f"a{turn}", f"b{turn}"]
                    await post(world, user, *sent[-2:])
                if turn % 2:
                    await world.news(lease)
                sent.append(f"c{turn}")
                await world.sent(event("p", sent[-1]))
                async with user.transaction():
                    sent.append(f"d{turn}")
                    await post(world, user, sent[-1])
            await world.news(lease)
            assert await mailbox(world) == list(enumerate(sent, 1))


async def test_two_that_move_letters_at_once_move_each_once(
    postgres: Postgres, free_schema: str
) -> None:
    """G10: a delivery and a claim that find the same letters: one order, no copy."""
    await make(postgres.dsn, free_schema)
    async with (
        new_world(postgres.dsn, free_schema) as world,
        new_world(postgres.dsn, free_schema) as other,
        connected(postgres.dsn) as user,
        new_gate(postgres.dsn, free_schema, "event", "new.event_id = 'e1'") as gate,
    ):
        lease = await world.host("me")
        await world.held("p", lease)
        async with user.transaction():
            await post(world, user, "e1", "e2", "e3")
        delivery = asyncio.create_task(other.send(event("p", "last")))
        await gate.wait()
        assert await world.news(lease) == {}
        await gate.open()
        await delivery
        news = await world.news(lease)
        assert [each.event_id for each in news["p"].events] == ["e1", "e2", "e3", "last"]
        assert await mailbox(world) == [(1, "e1"), (2, "e2"), (3, "e3"), (4, "last")]


async def test_the_same_event_by_two_ways_is_one(schemas: Schemas) -> None:
    """G10 F101: delivered and posted under one id, in either order and twice: it is there once."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            await world.held("p", lease)
            await world.sent(event("p", "e1"))
            async with user.transaction():
                assert [each.refused for each in await post(world, user, "e1", "e2")] == [None] * 2
            async with user.transaction():
                await post(world, user, "e2")
            await world.sent(event("p", "e2"))
            await world.news(lease)
            assert await mailbox(world) == [(1, "e1"), (2, "e2")]


async def test_an_event_to_a_parked_process_wakes_it_from_a_transaction_too(
    schemas: Schemas,
) -> None:
    """G7 rule 10: parked without a due time, it is claimable once the transaction has committed."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            row = await world.held("p", lease)
            await world.done(lease, unit(row, 1, status=Status.WAITING, leave=Leave.PARKED))
            async with user.transaction():
                await post(world, user, "e1")
                assert await world.take(lease) == {}
            taken = await world.take(lease)
            assert [each.event_id for each in taken["p"].events] == ["e1"]


async def test_a_letter_that_meets_a_finished_process_is_dropped(schemas: Schemas) -> None:
    """G9: posted while it ran, committed after it had ended: no event, no trace, nobody stuck."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            row = await world.held("p", lease)
            async with user.transaction():
                await post(world, user, "e1")
                await world.done(lease, unit(row, 1, ending=FINISH))
            assert await world.news(lease) == {}
            assert await mailbox(world) == []
            assert await user.fetchval(f"select count(*) from {schema}.letter") == 0
            async with user.transaction():
                assert [each.refused for each in await post(world, user, "e2")] == [
                    Refusal.FINISHED
                ]


async def test_purging_takes_the_letters_along(schemas: Schemas) -> None:
    """Nothing of a purged process is left in any table; a letter that commits later is dropped."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            row = await world.held("p", lease)
            async with user.transaction():
                await post(world, user, "e1")
                await world.done(lease, unit(row, 1, step("a"), ending=FINISH))
                assert list(await world.storage.purge(["p"])) == [None]
            await world.held("p", lease)
            assert await world.news(lease) == {}
            await world.sent(event("p", "e2"))
            assert await mailbox(world) == [(1, "e2")]
            tables: Sequence[str] = ("checkpoint", "letter")
            for table in tables:
                assert await user.fetchval(f"select count(*) from {schema}.{table}") == 0


async def test_a_connection_without_a_transaction_is_refused(schemas: Schemas) -> None:
    """Issue 3, bad input: nothing was written, and the message says what to write."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as user:
            lease = await world.host("me")
            await world.held("p", lease)
            with pytest.raises(InvalidArgumentError, match="no open transaction") as caught:
                await post(world, user, "e1")
            assert "connection.transaction()" in str(caught.value)
            assert await world.news(lease) == {}
