"""Whatever a role, a database or an administrator has set, what is promised is kept."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlencode

import asyncpg
import pytest

from durabletask import Process, ProcessHost, Status
from durabletask.errors import InvalidIdError
from durabletask.storage import Leave
from durabletask.testing._conformance.world import FINISH, event, new, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres._sql import Statements
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.server import Postgres, sql
from tests.postgres.stores import PATIENCE_S, Connection, Schemas, connected, make, new_world

WRITTEN = ("process", "checkpoint", "event", "letter", "fence", "claim_mark")

# Deferred, so that it sees what holds at the moment of the commit.
SPY = """
create table durabletask.seen (place text, value text);
create function durabletask.see() returns trigger language plpgsql as $$
begin
    if tg_relid <> 'durabletask.seen'::regclass then
        insert into durabletask.seen
        values (tg_table_name || ' ' || lower(tg_op), current_setting('synchronous_commit'));
    end if;
    return null;
end $$;
"""
SPY_ON = """
create constraint trigger spy after insert or update or delete on durabletask.{table}
deferrable initially deferred for each row execute function durabletask.see();
"""


@contextmanager
def settings_of(postgres: Postgres, **settings: str) -> Iterator[str]:
    """Yield a DSN of a role for which somebody has set this."""
    role = postgres.new_name()
    sql(postgres.dsn, f"create role {role} login superuser")
    for name, value in settings.items():
        sql(postgres.dsn, f"alter role {role} set {name} = {value}")
    try:
        yield postgres.dsn.replace("postgres@", f"{role}@", 1)
    finally:
        sql(postgres.dsn, f"drop owned by {role} cascade", f"drop role {role}")


@pytest.mark.parametrize(
    ("setting", "kept"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
)
async def test_what_is_answered_is_durable_whatever_is_set(
    postgres: Postgres, free_schema: str, setting: str, kept: str
) -> None:
    """F056: each transaction that writes what is told waits for the disk; more is left alone."""
    with settings_of(postgres, synchronous_commit=setting) as dsn:
        await make(postgres.dsn, free_schema)
        rewrite = Statements(free_schema).rewrite
        async with new_world(dsn, free_schema) as world, connected(dsn) as user:
            for text in (SPY, *(SPY_ON.format(table=table) for table in WRITTEN)):
                await user.execute(rewrite(text))
            lease = await world.host("me")
            await world.add("unheld", "end")
            rows = await world.add("p", "q", lease=lease)
            await world.done(lease, unit(rows[0], 1, step("a")))
            await world.done(lease, *(unit(row, 2, step("b")) for row in rows))
            await world.sent(event("p", "e1"))
            await world.done(lease, unit(rows[0], 3, step("c"), consumes=(1,)))
            await world.done(lease, unit(rows[1], 3, leave=Leave.RELEASED))
            assert len(await world.take(lease)) == 3
            async with user.transaction():
                storage = cast("PostgresStorage", world.storage)
                await storage.deliver_in(user, event("p", "e2"), mailbox_max=9)
                await storage.create_in(user, new("mine"))
            await world.done(lease, unit(rows[0], 4, ending=FINISH))
            assert list(await world.storage.purge(["p"])) == [None]
            await world.storage.close_lease(lease)
            seen = await user.fetch(f"select distinct place, value from {free_schema}.seen")
    assert {each["value"] for each in seen} == {kept}
    assert {each["place"] for each in seen} >= {
        *("process insert", "process update", "process delete", "checkpoint insert"),
        *("event insert", "event update", "letter insert", "fence update", "claim_mark insert"),
    }


ODD = {
    "datestyle": "'SQL, DMY'",
    "timezone": "'Pacific/Apia'",
    "intervalstyle": "'sql_standard'",
    "search_path": "''",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "default_transaction_isolation": "'repeatable read'",
    "extra_float_digits": "-15",
    "client_encoding": "LATIN1",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "row_security": "off",
}


async def test_odd_settings_change_nothing(postgres: Postgres, free_schema: str) -> None:
    """F074: dates, zones, quoting, paths, encodings and isolation of a role's own choice."""
    hostile = "it's \\ \u00e9\u2028 %_ \U0001f4a9"
    payload = b'{"a":"\\u0000 \\\\ \xc3\xa9"}'
    with settings_of(postgres, **ODD) as dsn:
        await make(postgres.dsn, free_schema)
        async with (
            new_world(dsn, free_schema) as world,
            new_world(postgres.dsn, free_schema) as plain,
        ):
            lease = await world.host("me")
            (row,) = await world.add(hostile, lease=lease, tags={hostile: hostile}, input=payload)
            await world.done(lease, unit(row, 1, step(hostile, payload), status=Status.WAITING))
            await world.sent(event(hostile, hostile, payload, hostile))
            found = await world.history(hostile)
            assert found == await plain.history(hostile)
            assert found.row.tags == {hostile: hostile}
            assert found.row.input == found.checkpoints[0].payload == payload
            assert (found.events[0].name, found.events[0].payload) == (hostile, payload)
            assert found.row.created_at == row.created_at
            assert await world.ids(prefix="it's \\") == [hostile]
            assert await world.ids(tags={hostile: hostile}) == [hostile]
            assert await world.ids(created_until=row.created_at) == []


async def test_short_timeouts_cost_time_and_nothing_else(
    postgres: Postgres, free_schema: str
) -> None:
    """F068: with 50 ms for everything no process fails, and no session waits in a transaction."""
    shortest = {
        "statement_timeout": "50",
        "lock_timeout": "50",
        "idle_in_transaction_session_timeout": "50",
        "idle_session_timeout": "50",
    }
    await make(postgres.dsn, free_schema)
    with settings_of(postgres, **shortest) as dsn:
        storage = PostgresStorage(
            f"{dsn}&{urlencode({'application_name': free_schema})}", schema=free_schema
        )
        async with (
            ProcessHost(storage, processes=[three_steps]) as host,
            connected(postgres.dsn) as looking,
        ):
            handles = [await host.spawn(three_steps, f"p{number}") for number in range(30)]
            waiting = asyncio.gather(*(each.result(timeout=PATIENCE_S) for each in handles))
            query = "select state from pg_stat_activity where application_name = $1"
            while not waiting.done():
                states = [each["state"] for each in await looking.fetch(query, free_schema)]
                assert "idle in transaction" not in states
            assert await waiting == [[1, 2, 3]] * 30


async def three_steps(proc: Process) -> list[int]:
    return [await proc.do(f"step {number}", int, number) for number in (1, 2, 3)]


async def test_ten_connections_are_enough_for_five_hosts() -> None:
    """Issue 3 point 4: each has one for its heart; they share the rest, and all gets done."""
    settings = {"max_connections": 13, "superuser_reserved_connections": 3}
    with ThrowAwayPostgres(settings=settings) as server:
        server.sql("create role app login")
        server.sql("create schema app authorization app")
        dsn = server.dsn_of("postgres", user="app")
        hosts = [
            ProcessHost(
                PostgresStorage(dsn, schema="app"), processes=[three_steps], label=f"host-{number}"
            )
            for number in range(5)
        ]
        await asyncio.gather(*(host.start() for host in hosts))
        spawned = await asyncio.gather(
            *(
                host.spawn(three_steps, f"{number}/{host_number}")
                for number in range(40)
                for host_number, host in enumerate(hosts)
            )
        )
        results = await asyncio.gather(*(each.result(timeout=2 * PATIENCE_S) for each in spawned))
        assert results == [[1, 2, 3]] * 200
        await asyncio.gather(*(host.stop() for host in hosts))


async def test_nul_in_ids_is_refused_and_in_values_it_is_kept(schemas: Schemas) -> None:
    """Issue 3, bad input: Postgres' text cannot hold it, our bytes can."""

    async def echo(proc: Process, value: str) -> str:
        return await proc.do("echo", lambda: value + "\x00")

    with schemas.new() as schema:
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessHost(storage, processes=[echo]) as host:
            for bad in ("\x00", "a\x00b"):
                with pytest.raises(InvalidIdError):
                    await host.spawn(echo, bad, "x")
                with pytest.raises(InvalidIdError):
                    await host.raise_event("p", bad, "x")
            handle = await host.spawn(echo, "p", "\x00\u2028")
            assert await handle.result(timeout=PATIENCE_S) == "\x00\u2028\x00"


class DictRecord(asyncpg.Record):
    """A class of records that a user likes better."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


async def test_a_pool_of_the_users_keeps_its_own_codecs(schemas: Schemas) -> None:
    """Issue 3 point 4: what an application has taught its pool changes nothing of ours."""

    async def teach(connection: Connection) -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
            )
        await connection.set_type_codec(
            "bytea",
            encoder=lambda data: "\\x" + data.hex(),
            decoder=lambda text: bytearray.fromhex(text[2:]),
            schema="pg_catalog",
        )
        await connection.set_type_codec("text", encoder=str, decoder=str, schema="pg_catalog")

    with schemas.new() as schema:
        async with asyncpg.create_pool(
            schemas.dsn, min_size=0, max_size=3, init=teach, record_class=DictRecord
        ) as pool:
            storage = PostgresStorage(pool, schema=schema)
            async with ProcessHost(storage, processes=[three_steps]) as host:
                handle = await host.spawn(three_steps, "p", tags={"team": "red"})
                assert await handle.result(timeout=PATIENCE_S) == [1, 2, 3]
                assert (await handle.info()).tags == {"team": "red"}
                assert len(await handle.history()) == 3
                for tags, found in (({"team": "red"}, ["p"]), ({"team": "blue"}, [])):
                    assert [each.id async for each in host.list(tags=tags)] == found
