"""What the server's list of sessions says, and locks to hold calls up with.

For tests that need a call to hang until they say so, without sleeping.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

LOOKS_MAX = 20_000
"""Looks at the server, before something counts as hung; each takes some tenths of a ms."""

HOLD = "select pg_advisory_xact_lock_shared($1), pg_backend_pid() as pid"
"""A call that hangs for as long as the number is barred; returns the session it ran in."""


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
