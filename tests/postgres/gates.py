"""Places at which the database waits for the test, and mistakes planted into its functions.

A commit is stopped after everything is written and before it is done, by a
trigger that fires at that moment and whichever way the row was written. So a
test decides what happens while a commit is on its way, without a sleep.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from durabletask_postgres._sql import Statements
from tests.postgres.stores import PATIENCE_S, Connection, connected

_NUMBERS = itertools.count(1)

_TRIGGER = """
create or replace function durabletask.test_wait() returns trigger
language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(tg_argv[0]::bigint);
    return null;
end
$$;
create constraint trigger {name} after insert on durabletask.{table}
deferrable initially deferred
for each row when ({condition}) execute function durabletask.test_wait({number});
"""


class Gate:
    """Holds back the commits of certain rows until it is opened."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number

    async def wait(self, count: int = 1) -> None:
        """Wait until so many commits stand before it."""
        async with asyncio.timeout(PATIENCE_S):
            while len(await self.held()) < count:
                pass

    async def held(self) -> list[int]:
        """Return the sessions that stand before it."""
        return await blocked_by(self._connection, [self._connection.get_server_pid()])

    async def wait_behind(self) -> None:
        """Wait until somebody waits for one of the sessions that stand before it."""
        async with asyncio.timeout(PATIENCE_S):
            while not await blocked_by(self._connection, await self.held()):
                pass

    async def open(self) -> None:
        """Let everybody pass, now and later."""
        await self._connection.execute("select pg_advisory_unlock_all()")


@asynccontextmanager
async def new_gate(dsn: str, schema: str, table: str, condition: str) -> AsyncIterator[Gate]:
    """Yield a gate before the commits that insert certain rows; it opens at the end.

    Args:
        dsn: Of the database.
        schema: The schema; no other test may use it any more.
        table: Where the rows are inserted.
        condition: Which rows, in SQL about `new`.
    """
    number = next(_NUMBERS)
    text = _TRIGGER.format(name=f"gate_{number}", table=table, condition=condition, number=number)
    async with connected(dsn) as connection:
        await connection.fetch("select pg_advisory_lock($1)", number)
        await connection.execute(Statements(schema).rewrite(text))
        yield Gate(connection, number)


async def blocked_by(looking: Connection, pids: list[int]) -> list[int]:
    """Return the sessions that wait for one of these."""
    # In a transaction pg_stat_activity goes on showing what it showed first.
    question = """
        select distinct l.pid from pg_locks l
        where not l.granted and pg_blocking_pids(l.pid) && $1::integer[]
    """
    return [each["pid"] for each in await looking.fetch(question, pids)]


async def wait_blocked(holder: Connection, count: int) -> None:
    """Wait until so many sessions wait for something that this connection holds."""
    async with asyncio.timeout(PATIENCE_S):
        while len(await blocked_by(holder, [holder.get_server_pid()])) < count:
            pass


async def fence_behind(dsn: str, schema: str, key: str) -> None:
    """Let a host lose its lease with the very commit that records a step under a key."""
    text = """
        create function durabletask.test_fence() returns trigger language plpgsql as $$
        begin
            update durabletask.fence set fenced_at = now();
            return null;
        end
        $$;
        create trigger test_fence after insert on durabletask.checkpoint
        for each row when (new.key = KEY) execute function durabletask.test_fence();
    """
    async with connected(dsn) as connection:
        await connection.execute(Statements(schema).rewrite(text.replace("KEY", f"'{key}'")))


async def plant(dsn: str, schema: str, function: str, old: str, new: str) -> None:
    """Put a mistake, or a place to wait at, into a function of a schema.

    Args:
        dsn: Of the database.
        schema: The schema; no other test may use it any more.
        function: Its name.
        old: A piece of its text, which is there just once.
        new: What takes its place; both speak of the schema `durabletask`.
    """
    rewrite = Statements(schema).rewrite
    source = "select pg_get_functiondef(to_regproc($1)::oid)"
    connection = await asyncpg.connect(dsn)
    try:
        text = await connection.fetchval(source, f"{schema}.{function}")
        assert text.count(rewrite(old)) == 1, f"{old!r} is not once in {function}"
        await connection.execute(text.replace(rewrite(old), rewrite(new)))
    finally:
        await connection.close()
