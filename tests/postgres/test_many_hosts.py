"""Hosts that die are replaced as soon as it can be seen, and those that live never are."""

import asyncio
import itertools
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import pytest

from durabletask import Process, ProcessClient, ProcessHost
from durabletask.errors import LeaseLostError, StorageError
from durabletask.storage import Lease
from durabletask.testing._conformance.world import World, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres._sql import Statements
from durabletask_postgres._storage import WITNESS_LOOK_S
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.pooler import Pooler
from tests.postgres.server import Postgres
from tests.postgres.stores import PATIENCE_S, Schemas, connected, held, make, new_world

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

GRACE_S = 0.5
"""Nobody concludes anything from a session that is gone before his own has lasted so long."""


async def until_taken(world: World, lease: Lease) -> list[str]:
    """Claim until there is something to take."""
    async with asyncio.timeout(PATIENCE_S):
        while not (taken := await world.take(lease)):
            pass
    return list(taken)


async def until_taken_by(world: World, lease: Lease, count_max: int) -> int:
    """Claim so many at a time until there is something to take; return how many that were."""
    async with asyncio.timeout(PATIENCE_S):
        while not (claims := await world.claim(lease, count_max=count_max)).claimed:
            pass
    assert claims.more
    return len(claims.claimed)


async def owners(schemas: Schemas, schema: str) -> dict[str | None, int]:
    """Return how many processes each host has."""
    query = (
        "select f.host_id, count(*) from durabletask.process p"
        " left join durabletask.fence f on f.host_no = p.owner_no group by f.host_id"
    )
    async with connected(schemas.dsn) as connection:
        found = await connection.fetch(Statements(schema).rewrite(query))
    return {each["host_id"]: each["count"] for each in found}


async def look_for(world: World, lease: Lease, seconds: float) -> list[str]:
    """Claim for so long by the server's time; return what was taken."""
    first = (await world.claim(lease)).now_at
    found: list[str] = []
    while True:
        claims = await world.claim(lease)
        found += [each.row.process_id for each in claims.claimed if each.fresh]
        if (claims.now_at - first).total_seconds() > seconds:
            return found


async def seconds_left(schemas: Schemas, schema: str) -> float:
    """Return how long the shortest lease would have lasted yet."""
    query = "select min(extract(epoch from expires_at - now())) from durabletask.lease"
    async with connected(schemas.dsn) as connection:
        return float(await connection.fetchval(Statements(schema).rewrite(query)))


async def test_a_host_whose_sessions_are_gone_is_replaced_long_before_its_lease_ends(
    schemas: Schemas,
) -> None:
    """G11 S1.01: a killed program's sessions end with it; the others see it and go on."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as other:
            lease = await other.host("other")
            async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as dying:
                old = await dying.host("dying")
                row = await dying.held("p", old)
                await dying.done(old, unit(row, 1, step("a")))
            # The storage is closed and its lease is not, as if the program had been killed.
            assert await until_taken(other, lease) == ["p"]
            assert [each.key for each in (await other.history("p")).checkpoints] == ["a"]
            assert (await other.row("p")).epoch == 2
            assert await seconds_left(schemas, schema) > LONG_S / 2


async def test_schemas_of_one_database_do_not_speak_for_each_other(
    postgres: Postgres, free_schema: str
) -> None:
    """G11: the first host of one schema dies; that of another one lives and has the same number."""
    neighbour = f"{free_schema}_b"
    for name in (free_schema, neighbour):
        await make(postgres.dsn, name)
    async with (
        new_world(postgres.dsn, neighbour, lease_ttl_s=LONG_S) as living,
        new_world(postgres.dsn, free_schema, lease_ttl_s=LONG_S) as other,
    ):
        theirs = await living.host("living")
        await living.held("p", theirs)
        async with new_world(postgres.dsn, free_schema, lease_ttl_s=LONG_S) as dying:
            await dying.held("p", await dying.host("dying"))
            lease = await other.host("other")
        assert await until_taken(other, lease) == ["p"]
        assert (await living.row("p")).owner == "living"
    async with connected(postgres.dsn) as connection:
        await connection.execute(f"drop schema {neighbour} cascade")


async def test_a_fenced_host_is_refused_for_good(schemas: Schemas) -> None:
    """G4 F016 S2.14: whoever was taken for dead can neither write, claim nor renew any more."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as zombie,
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as other,
            connected(schemas.dsn) as connection,
        ):
            old = await zombie.host("zombie")
            row = await zombie.held("p", old)
            end = "update durabletask.lease set expires_at = now() - interval '1 s'"
            await connection.execute(Statements(schema).rewrite(end))
            assert await until_taken(other, await other.host("other")) == ["p"]
            with pytest.raises(LeaseLostError):
                await zombie.commit(old, unit(row, 1, step("late")))
            with pytest.raises(LeaseLostError):
                await zombie.claim(old)
            with pytest.raises(LeaseLostError):
                await zombie.storage.renew(old)
            with pytest.raises(LeaseLostError):
                await zombie.host("zombie")
            with pytest.raises(LeaseLostError):
                await zombie.add("q", lease=old)
            assert await other.payloads("p") == {}
            assert await other.ids() == ["p"]


async def test_what_is_locked_at_a_takeover_follows_later(schemas: Schemas) -> None:
    """G4 F114: its host is refused from the first on, and the death counts for it as well."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as zombie,
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as other,
            connected(schemas.dsn) as connection,
        ):
            old = await zombie.host("zombie")
            await zombie.add("p", "q", lease=old)
            end = "update durabletask.lease set expires_at = now() - interval '1 s'"
            await connection.execute(Statements(schema).rewrite(end))
            lease = await other.host("other")
            async with held(schemas.dsn, schema, "p"):
                assert await until_taken(other, lease) == ["q"]
                with pytest.raises(LeaseLostError):
                    await zombie.storage.renew(old)
                assert await other.take(lease) == {}
            taken = await other.take(lease)
            assert (taken["p"].row.deaths, (await other.row("q")).deaths) == (1, 1)


async def test_what_a_dead_host_had_is_let_go_in_parts(schemas: Schemas) -> None:
    """G11: the first are run while the next are let go, and without a pause until none is left.

    What the claim may run it takes itself, as far as it has room; what it may
    not is let go a thousand at a time, for whoever may.
    """
    ids = [f"p{number}" for number in range(2_500)]
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as other:
            lease = await other.host("other")
            async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as dying:
                old = await dying.host("dying")
                for start in range(0, len(ids), 500):
                    await dying.add(*ids[start : start + 500], lease=old)
            assert await until_taken_by(other, lease, 10) == 10
            assert await owners(schemas, schema) == {"other": 10, "dying": 2_490}
            assert (await other.claim(lease, names=("unknown",), count_max=1)).more
            assert await owners(schemas, schema) == {"other": 10, "dying": 1_490, None: 1_000}
            assert (await other.claim(lease, count_max=0)).more
            assert await owners(schemas, schema) == {"other": 10, "dying": 490, None: 2_000}
            taken, more = 10, True
            while more:
                claims = await other.claim(lease, count_max=1_000)
                assert claims.claimed, "there is a pause before the next part"
                assert {each.row.deaths for each in claims.claimed} == {1}
                taken, more = taken + len(claims.claimed), claims.more
            assert taken == len(ids)
            assert await owners(schemas, schema) == {"other": len(ids)}


async def test_what_two_dead_hosts_had_is_taken_without_a_pause(schemas: Schemas) -> None:
    """G11: a claim with little room says that there is more, and leaves what it could run later."""
    with schemas.new() as schema:
        async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as other:
            lease = await other.host("other")
            for host in ("d1", "d2"):
                async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as dying:
                    old = await dying.host(host)
                    await dying.add(f"{host}.a", f"{host}.b", lease=old)
                    await dying.add(f"{host}.c", f"{host}.d", name="other", lease=old)
            assert await until_taken_by(other, lease, 1) == 1
            taken, more = 1, True
            while more and taken < 4:
                claims = await other.claim(lease, count_max=1)
                taken, more = taken + len(claims.claimed), claims.more
            assert taken == 4
            while more:
                more = (await other.claim(lease, count_max=1)).more
            assert await owners(schemas, schema) == {"other": 4, None: 4}


async def test_a_host_that_lives_is_left_alone(schemas: Schemas) -> None:
    """G4: hosts that look at each other for longer than the grace take nothing from each other."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as a,
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as b,
        ):
            ours, theirs = await a.host("a"), await b.host("b")
            await a.held("p", ours)
            await b.held("q", theirs)
            found = await asyncio.gather(
                look_for(a, ours, 2 * GRACE_S), look_for(b, theirs, 2 * GRACE_S)
            )
            assert list(found) == [[], []]
            assert (await a.row("p")).owner == "a"
            assert (await b.row("q")).owner == "b"


async def test_a_host_without_a_witness_is_replaced_when_its_lease_ends(schemas: Schemas) -> None:
    """G11: where no session tells, nobody concludes anything from there being none."""
    with schemas.new() as schema:
        async with (
            new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as other,
            connected(schemas.dsn) as connection,
        ):
            lease = await other.host("other")
            query = "select host_no from durabletask.open_lease('silent', 'x', 600.0)"
            await connection.fetch(Statements(schema).rewrite(query))
            silent = Lease("silent", "x", LONG_S, other.clock.now())
            await other.held("p", silent)
            assert await look_for(other, lease, 2 * GRACE_S) == []
            end = "update durabletask.lease set expires_at = now() where not witness"
            await connection.execute(Statements(schema).rewrite(end))
            assert await until_taken(other, lease) == ["p"]


async def test_a_session_that_has_just_begun_concludes_nothing(schemas: Schemas) -> None:
    """DESIGN 5: where all sessions ended at once, who is back first must not fence the others.

    It is told when to look again, as soon as it may conclude something, and
    not before it would ask for a look.
    """
    with schemas.new() as schema:
        async with asyncio.timeout(PATIENCE_S):
            for number in itertools.count():
                name = f"dying-{number}"
                async with new_world(schemas.dsn, schema, lease_ttl_s=LONG_S) as dying:
                    await dying.held(name, await dying.host(name))
                async with connected(schemas.dsn) as connection:
                    if await _claims_until_taken(connection, Statements(schema), name):
                        return  # else the machine is too busy: once more


async def _claims_until_taken(connection: Any, statements: Statements, dying: str) -> int:
    """Claim until what a host had that died is taken; return how often it was too early."""
    await connection.fetch(statements["open_lease"], f"young-{dying}", "x", LONG_S)
    for count in itertools.count():
        asked_at = await connection.fetchval("select clock_timestamp()")
        claim = [str(count), ["order"], [None], 10, True, False]
        header, *taken = await connection.fetch(statements["claim"], f"young-{dying}", *claim)
        if taken:
            return count
        assert header["next_at"] - asked_at >= timedelta(seconds=WITNESS_LOOK_S)
        assert header["next_at"] - header["now_at"] <= timedelta(seconds=GRACE_S)
    raise AssertionError


async def test_after_a_restart_of_the_server_nobody_takes_over() -> None:
    """DESIGN 5: a crash ends every session; hosts that live get theirs back and keep their own."""
    with ThrowAwayPostgres() as server:
        await make(server.dsn, "x")
        async with (
            new_world(server.dsn, "x", lease_ttl_s=LONG_S) as a,
            new_world(server.dsn, "x", lease_ttl_s=LONG_S) as b,
            new_world(server.dsn, "x", lease_ttl_s=LONG_S) as c,
        ):
            leases = [await world.host(name) for name, world in zip("abc", (a, b, c), strict=True)]
            for name, world, lease in zip("abc", (a, b, c), leases, strict=True):
                await world.held(name, lease)
            server.restart()
            await asyncio.gather(*(_until_back(world) for world in (a, b, c)))
            found = await asyncio.gather(
                *(
                    look_for(world, lease, 4 * GRACE_S)
                    for world, lease in zip((a, b, c), leases, strict=True)
                )
            )
            assert list(found) == [[], [], []]
            rows = [await a.row(name) for name in "abc"]
            assert [(row.owner, row.epoch) for row in rows] == [("a", 1), ("b", 1), ("c", 1)]


async def _until_back(world: World) -> None:
    """Wait until a storage answers again, and its heart holds the witness lock."""
    (heart,) = cast("PostgresStorage", world.storage)._hearts.values()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(StorageError):
                await world.ids()
                if heart.witness:
                    return


# --- hosts as users run them -------------------------------------------------------------------

NEVER_S = 600.0
"""Between two looks of a host that must be told, and a lease that must not end."""


async def waits(proc: Process) -> str:
    """Wait for an event, and say who went on."""
    await proc.do("begun", str)
    return await proc.event("go", str)


async def host_on(schemas: Schemas, schema: str, **options: Any) -> ProcessHost:
    """Start a host with a storage of its own."""
    storage = PostgresStorage(
        schemas.dsn, schema=schema, lease_ttl_s=NEVER_S, notify=options.pop("notify", True)
    )
    host = ProcessHost(storage, processes=[waits], **options)
    await host.start()
    return host


async def test_an_event_wakes_a_process_of_another_host_at_once(schemas: Schemas) -> None:
    """Issue 3 point 3: told by a message, as this host looks by itself every ten minutes."""
    with schemas.new() as schema:
        host = await host_on(schemas, schema, poll_s=NEVER_S)
        await host.spawn(waits, "p")
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessClient(storage, processes=[waits], poll_s=NEVER_S) as client:
            await client.raise_event("p", "go", "now")
            # Who waits for the result is not told by a host of its own, but by a message too.
            assert await client.get(waits, "p").result(timeout=PATIENCE_S) == "now"
        await host.stop()


async def test_polling_alone_is_enough(schemas: Schemas) -> None:
    """FAILURES C36: without any message everything is found, only later."""
    with schemas.new() as schema:
        host = await host_on(schemas, schema, poll_s=0.1, notify=False)
        storage = PostgresStorage(schemas.dsn, schema=schema, notify=False)
        async with ProcessClient(storage, processes=[waits], poll_s=0.1) as client:
            handle = await client.spawn(waits, "p")
            await handle.raise_event("go", "now")
            assert await handle.result(timeout=PATIENCE_S) == "now"
        await host.stop()


async def test_a_host_that_stops_hands_over_at_once(schemas: Schemas) -> None:
    """Issue 3 point 3, S3.02 S4.10: the others are told, take what it held, and count no death."""
    with schemas.new() as schema:
        first = await host_on(schemas, schema, poll_s=NEVER_S, label="first")
        handles = [await first.spawn(waits, f"p{number}") for number in range(20)]
        second = await host_on(schemas, schema, poll_s=NEVER_S, label="second")
        await first.stop()
        for each in handles:
            handle = second.get(waits, each.id)
            async with asyncio.timeout(PATIENCE_S):
                while (await handle.info()).host != "second":
                    pass
            await handle.raise_event("go", "on")
            assert await handle.result(timeout=PATIENCE_S) == "on"
        async with connected(schemas.dsn) as connection:
            assert await connection.fetchval(f"select max(deaths) from {schema}.process") == 0
        await second.stop()


async def test_behind_a_pooler_a_host_is_replaced_when_its_lease_ends(schemas: Schemas) -> None:
    """Issue 3 point 4: no session there tells who lives, so none is missed."""
    with schemas.new() as schema, Pooler(schemas.dsn) as pooler:
        async with new_world(pooler.dsn, schema, lease_ttl_s=LONG_S) as other:
            lease = await other.host("other")
            async with new_world(pooler.dsn, schema, lease_ttl_s=LONG_S) as dying:
                await dying.held("p", await dying.host("dying"))
            assert await look_for(other, lease, 2 * GRACE_S) == []
            async with connected(schemas.dsn) as connection:
                end = "update durabletask.lease set expires_at = now() "
                mine = (
                    " where host_no <> (select host_no from durabletask.fence where host_id = $1)"
                )
                await connection.execute(Statements(schema).rewrite(end + mine), "other")
            assert await until_taken(other, lease) == ["p"]
