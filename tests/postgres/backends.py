"""Connections under test, the server's list of sessions, and locks to hold calls up with.

For tests that need a call to hang until they say so, without sleeping.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from durabletask_postgres._connections import Connections
from durabletask_postgres._sql import Statements
from tests.postgres.server import Postgres, moved

LOOKS_MAX = 20_000
"""Looks at the server, before something counts as hung; each takes some tenths of a ms."""

HOLD = "select pg_advisory_xact_lock_shared($1), pg_backend_pid() as pid"
"""A call that hangs for as long as the number is barred; returns the session it ran in."""

PID = "select pg_backend_pid() as pid"
ISOLATION = "select current_setting('transaction_isolation') as level, 1 / $1::int as one"
STATEMENTS = Statements()


class Control:
    """A connection beside those under test."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.connection = connection

    async def bar(self, number: int) -> None:
        """Make `HOLD` hang for a number."""
        await self.connection.execute("select pg_advisory_lock($1)", number)

    async def open(self, number: int) -> None:
        """Let `HOLD` go on for a number."""
        await self.connection.execute("select pg_advisory_unlock($1)", number)

    async def wait_until(self, question: str, *args: object) -> None:
        """Ask until the answer is true.

        Raises:
            AssertionError: It never is.
        """
        for _ in range(LOOKS_MAX):
            if await self.connection.fetchval(question, *args):
                return
        raise AssertionError(f"never true: {question} {args}")

    async def wait_held(self, number: int, count: int = 1) -> None:
        """Wait until so many calls of `HOLD` hang at a number."""
        await self.wait_until(
            "select count(*) = $2 from pg_locks"
            " where locktype = 'advisory' and objid = $1::bigint::oid and not granted",
            number,
            count,
        )

    async def wait_gone(self, pid: int) -> None:
        """Wait until a session has ended."""
        await self.wait_until(
            "select not exists (select from pg_stat_activity where pid = $1)", pid
        )

    async def sessions(self, name: str) -> set[int]:
        """Return the sessions of an application."""
        rows = await self.connection.fetch(
            "select pid from pg_stat_activity where application_name = $1", name
        )
        return {row["pid"] for row in rows}


@asynccontextmanager
async def control_of(dsn: str) -> AsyncIterator[Control]:
    """Yield a control of the server at a DSN."""
    connection = await asyncpg.connect(dsn)
    try:
        yield Control(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def connections_of(source: Any, **options: Any) -> AsyncIterator[Connections]:
    """Yield connections, closed afterwards."""
    connections = Connections(source, STATEMENTS, **options)
    try:
        yield connections
    finally:
        await connections.close()


@asynccontextmanager
async def pool_of(dsn: str, **options: Any) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    """Yield a pool of the user's."""
    pool: Any = asyncpg.create_pool(dsn, min_size=1, max_size=2, **options)
    try:
        yield pool
    finally:
        await pool.close()


def named(dsn: str, name: str) -> str:
    """Return a DSN whose sessions have a name of their own."""
    return f"{dsn}&application_name={name}"


def dsn_as(postgres: Postgres, role: str) -> str:
    """Return the DSN of the common database for another role."""
    _, _, rest = moved(postgres.dsn, postgres.host, postgres.port).partition("@")
    return f"postgresql://{role}@{rest}"
