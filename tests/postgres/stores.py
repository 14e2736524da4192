"""Storages over schemas that nobody else uses, living by the real time or by a virtual clock.

Responsible for schemas that are ready at once and empty again afterwards, and
for the one function by which the database tells the time. Refuses to know
what a test does with its storage.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Self, TypeAlias, TypeVar, cast

import asyncpg

from durabletask.storage import Clock, NewProcess, ProcessStorage
from durabletask.testing import VirtualClock, conformance
from durabletask.testing._conformance.world import World
from durabletask_postgres import PostgresStorage
from durabletask_postgres._migrate import ensure_schema
from durabletask_postgres._rows import creation_columns
from durabletask_postgres._sql import Statements
from tests.postgres.server import Postgres

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

PATIENCE_S = 30.0
"""What takes longer hangs."""

LEASE_TTL_S = 3_600.0
"""Of a lease in virtual time: so long that its heart, which lives by the real one, never beats."""

_TABLES = (
    "process",
    "checkpoint",
    "forgotten",
    "event",
    "letter",
    "fence",
    "lease",
    "claim_mark",
)

_TESTED = """
create table durabletask.user_row (key text primary key);
create table durabletask.test_time (now_at timestamptz not null);
insert into durabletask.test_time values (clock_timestamp());
create or replace function durabletask.clock() returns timestamptz
language sql volatile
begin atomic
    select now_at from durabletask.test_time;
end;
"""

_EMPTY = "\n".join(f"delete from durabletask.{table};" for table in _TABLES)
_EMPTY_TESTED = f"{_EMPTY}\ndelete from durabletask.user_row;"


class Schemas:
    """Schemas with all migrations in the common database; one that comes back is used again.

    Making one costs as much as some tests; emptying one costs nothing, as all are emptied in one
    session, which ends with this.
    """

    def __init__(self, postgres: Postgres) -> None:
        self.dsn = postgres.dsn
        self._postgres = postgres
        self._free: dict[bool, list[str]] = {True: [], False: []}
        self._loop = asyncio.new_event_loop()
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            aside(self._loop, self._connection.close())
        self._loop.close()

    @contextmanager
    def new(self, *, virtual: bool = False) -> Iterator[str]:
        """Yield the name of an empty schema.

        Args:
            virtual: The database's time stands still in it, see `AtTime`; and the user has a
                table in it.
        """
        name = self.take(virtual=virtual)
        try:
            yield name
        finally:
            self.give_back(name, virtual=virtual)

    def take(self, *, virtual: bool = False) -> str:
        """Return the name of an empty schema."""
        if self._free[virtual]:
            return self._free[virtual].pop()
        name = self._postgres.new_name()
        aside(self._loop, make(self.dsn, name, virtual=virtual))
        return name

    def give_back(self, name: str, *, virtual: bool = False) -> None:
        """Empty a schema that nobody uses any more, and keep it for the next test."""
        text = Statements(name).rewrite(_EMPTY_TESTED if virtual else _EMPTY)
        self.run(text)
        self._free[virtual].append(name)

    def run(self, text: str, *args: object) -> None:
        """Run a statement in the session of these schemas, below a running loop too."""
        aside(self._loop, self._run(text, args))

    async def _run(self, text: str, args: tuple[object, ...]) -> None:
        if self._connection is None:
            settings = {"synchronous_commit": "off"}
            self._connection = await asyncpg.connect(self.dsn, server_settings=settings)
        await self._connection.execute(text, *args)


class SchemaUser:
    """The user's side of a virtual schema, as the conformance suite asks for it."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn = dsn
        rewrite = Statements(schema).rewrite
        self._insert = rewrite("insert into durabletask.user_row values ($1)")
        self._select = rewrite('select key from durabletask.user_row order by key collate "C"')

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        # So that a call which waits for ever for another connection of the test fails.
        return connected(self._dsn, statement_timeout=f"{PATIENCE_S:g}s")

    def transaction(self, connection: Connection) -> AbstractAsyncContextManager[Any]:
        return connection.transaction()

    async def end(self, connection: Any) -> None:
        await connection.execute("commit")

    async def put(self, connection: Any, key: str) -> None:
        await connection.execute(self._insert, key)

    async def rows(self) -> list[str]:
        async with connected(self._dsn) as connection:
            return [each["key"] for each in await connection.fetch(self._select)]


class AtTime:
    """A storage whose database lives by a clock: it is set before each call, if it has moved."""

    def __init__(
        self, storage: ProcessStorage, clock: Clock, schemas: Schemas, schema: str
    ) -> None:
        self.storage = storage
        self._clock = clock
        self._schemas = schemas
        self._set = Statements(schema).rewrite("update durabletask.test_time set now_at = $1")
        self._at: datetime | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self.storage, name)
        if not asyncio.iscoroutinefunction(call):
            return cast("Callable[..., Any]", call)

        async def in_time(*args: Any, **options: Any) -> Any:
            self._pass()
            return await call(*args, **options)

        return in_time

    def _pass(self) -> None:
        if self._at != (now := self._clock.now()):
            self._schemas.run(self._set, now)
            self._at = now


def at_time(storage: ProcessStorage, clock: Clock, schemas: Schemas, schema: str) -> ProcessStorage:
    """Return a storage whose database lives by a clock; the schema must be a virtual one."""
    return cast("ProcessStorage", AtTime(storage, clock, schemas, schema))


@asynccontextmanager
async def new_world(dsn: str, schema: str, **options: Any) -> AsyncIterator[World]:
    """Yield a storage in a schema, by the real time, in the words of the conformance suite."""
    storage = PostgresStorage(dsn, schema=schema, **options)
    try:
        yield World(conformance.StorageConformance(), storage, VirtualClock())
    finally:
        await storage.close()


@asynccontextmanager
async def connected(dsn: str, **settings: str) -> AsyncIterator[Connection]:
    """Yield a connection of the test's own, with settings of its session."""
    connection = await asyncpg.connect(dsn, server_settings=settings)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def held(dsn: str, schema: str, process_id: str) -> AsyncIterator[None]:
    """Let another transaction hold a process meanwhile, or the id of one that it has created."""
    statements = Statements(schema)
    lock = "select 1 from durabletask.process where process_id = $1 for update"
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("begin")
        if not await connection.fetch(statements.rewrite(lock), process_id):
            new = NewProcess(
                process_id=process_id, name="x", input=b"1", input_digest="d", creation_id="held"
            )
            await connection.fetch(statements["create"], None, *creation_columns([new]))
        yield
        await connection.execute("rollback")
    finally:
        await connection.close()


async def make(dsn: str, name: str, *, virtual: bool = False) -> None:
    """Make a schema with all migrations; see `Schemas.new`."""
    connection = await asyncpg.connect(dsn)
    try:
        statements = Statements(name)
        await ensure_schema(connection, statements)
        if virtual:
            await connection.execute(statements.rewrite(_TESTED))
    finally:
        await connection.close()


async def fence_all(storage: ProcessStorage, host_id: str) -> None:
    """Let a new host find that the leases of all others have ended, and go."""
    lease = await storage.open_lease(host_id, "janitor")
    await storage.claim(lease, "fence", (), count_max=0)
    await storage.close_lease(lease)


def aside(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop, on another thread, and wait for it; below a running loop too."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(loop.run_until_complete, work).result()
