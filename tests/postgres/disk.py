"""A server whose pages are damaged, and what stands on them.

Responsible for saying which processes a page belongs to. Refuses to know what
a storage makes of it.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import count

import asyncpg

from durabletask.storage import Ending, Form, ProcessRow, Status
from durabletask.testing._conformance.world import World, event, step, unit
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.damage import damage
from tests.postgres.stores import connected, make, new_world

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

ALL = [f"p{number:02}" for number in range(100)]

LONG = b'"' + b"x" * 550 + b'"'
"""Ten of these fill a page."""

ELSEWHERE = random.Random(1).randbytes(5_000)
"""So long, and so hard to compress, that it is kept apart from its row."""

Fill = Callable[[World, str], Awaitable[Sequence[ProcessRow]]]


@dataclass(frozen=True)
class Damaged:
    """A schema of which a page cannot be read.

    Attributes:
        world: A storage in it.
        dsn: The DSN of its database.
        schema: Its name.
        rows: The processes as they were.
        lost: The ids of those of which something stands on the page.
    """

    world: World
    dsn: str
    schema: str
    rows: Sequence[ProcessRow]
    lost: set[str]

    @property
    def whole(self) -> set[str]:
        """The ids of all others."""
        return {row.process_id for row in self.rows} - self.lost


class Disk:
    """A server whose pages are damaged, in a schema of its own for each test."""

    def __init__(self, server: ThrowAwayPostgres) -> None:
        self.server = server
        self.dsn = server.dsn
        self._numbers = count()

    async def schema(self) -> str:
        """Make a schema."""
        name = f"x{next(self._numbers)}"
        await make(self.dsn, name)
        return name

    def world(self, schema: str) -> AbstractAsyncContextManager[World]:
        """Open a storage in a schema."""
        return new_world(self.dsn, schema, lease_ttl_s=LONG_S)

    @asynccontextmanager
    async def damaged(self, table: str, fill: Fill, *, far: bool = False) -> AsyncIterator[Damaged]:
        """Fill a schema, then damage a page of a table, or of the long values of it."""
        schema = await self.schema()
        async with self.world(schema) as world:
            rows = await fill(world, self.dsn)
        relation = f"{schema}.{table}"
        damage(self.server, self._values_of(relation) if far else relation, page=2)
        lost = await self._unreadable(relation, rows)
        assert 0 < len(lost) < 20
        async with self.world(schema) as world:
            yield Damaged(world, self.dsn, schema, rows, lost)

    def _values_of(self, relation: str) -> str:
        query = f"select reltoastrelid::regclass from pg_class where oid = '{relation}'::regclass"
        return self.server.sql(query)

    async def _unreadable(self, relation: str, rows: Sequence[ProcessRow]) -> set[str]:
        query = f"select * from {relation} where process_no = $1"
        found: set[str] = set()
        async with connected(self.dsn, enable_seqscan="off", enable_bitmapscan="off") as connection:
            for row in rows:
                try:
                    await connection.fetch(query, row.incarnation)
                except asyncpg.DataCorruptedError:
                    found.add(row.process_id)
        return found

    async def expire(self, schema: str) -> None:
        """Let all leases have ended."""
        async with connected(self.dsn) as connection:
            await connection.execute(
                f"update {schema}.lease set expires_at = now() - interval '1 s'"
            )


# --- how the schema is filled ------------------------------------------------------------


async def idle(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that nobody holds."""
    return await world.add(*ALL, input=LONG)


async def idle_with_far_inputs(world: World, dsn: str) -> Sequence[ProcessRow]:
    """The same; their inputs are kept elsewhere."""
    return await world.add(*ALL[:30], input=ELSEWHERE)


async def running(world: World, dsn: str, payload: bytes = LONG) -> Sequence[ProcessRow]:
    """Processes of a host, each with a step."""
    lease = await world.host("me")
    rows = await world.add(*ALL, lease=lease, input=LONG)
    await world.done(lease, *(unit(row, 1, step("a", payload)) for row in rows))
    return rows


async def stepped(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that nobody holds any more, each with a step."""
    lease = await world.host("me")
    rows = await world.add(*ALL, lease=lease, input=b"{}")
    await world.done(lease, *(unit(row, 1, step("a", LONG)) for row in rows))
    await world.storage.close_lease(lease)
    return rows


async def running_with_far_steps(world: World, dsn: str) -> Sequence[ProcessRow]:
    """The same; the results of the steps are kept elsewhere."""
    return await running(world, dsn, ELSEWHERE)


async def told(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes of a host, each with a step and an event that the host has not heard of."""
    rows = await running(world, dsn)
    await world.sent(*(event(row.process_id, "e", LONG) for row in rows))
    return rows


async def lettered(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that nobody holds, each with a letter of a user's transaction."""
    rows = await idle(world, dsn)
    async with connected(dsn) as connection, connection.transaction():
        for each in ALL:
            letter = event(each, "e", LONG)
            await world.transactions.deliver_in(connection, letter, mailbox_max=9)
    return rows


async def finished(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that have ended."""
    rows = await running(world, dsn)
    ending = Ending(Status.COMPLETED, Form.VALUE, b"1")
    await world.done(await world.host("me"), *(unit(row, 2, ending=ending) for row in rows))
    return rows
