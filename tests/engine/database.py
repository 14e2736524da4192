"""A database of dictionaries: a storage in memory with the transactions of its users beside it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from random import Random
from typing import Any

import msgspec

from durabletask import MemoryStorage, ProcessHost
from durabletask._memory_process import begin
from durabletask.errors import InvalidArgumentError, StorageUnavailableError
from durabletask.storage import (
    DONE,
    FINISHED,
    Checkpoint,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Refusal,
    Unit,
    UnitOutcome,
)
from tests.engine.world import Hook, Wire, World, nothing


class Connection:
    """One connection: what is written through it counts when its transaction is committed."""

    def __init__(self, database: "Database") -> None:
        self.database = database
        self.is_open = False
        self.lost = False
        self.staged: list[Callable[[], object]] = []
        self.created: dict[str, tuple[NewProcess, Created]] = {}
        self.locks = ExitStack()

    async def write(self, key: str, value: object) -> None:
        """Write a new row into the user's own table."""
        if key in self.database.table:
            raise LookupError(f"{key!r} is there already")
        if self.lost:
            raise ConnectionError("the connection was lost")
        if self.is_open:
            self.staged.append(lambda: self.database.table.__setitem__(key, value))
        else:
            self.database.table[key] = value

    def begin(self) -> None:
        """Begin a transaction."""
        self.is_open = True

    def commit(self) -> None:
        """Let everything count."""
        self.locks.close()
        for apply in self.staged:
            apply()
        self.rollback()

    def rollback(self) -> None:
        """Let nothing count."""
        self.locks.close()
        self.staged, self.created, self.is_open = [], {}, False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit at the end, or roll back where something is raised."""
        self.begin()
        try:
            yield
        except BaseException:
            self.rollback()
            raise
        self.commit()


class Database(MemoryStorage):
    """A storage with `Transactions`.

    Attributes:
        table: The user's own.
        before_commit: Awaited before a transaction of `transact` is committed.
        after_commit: Awaited after that; what it raises hides the answer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.table: dict[str, object] = {}
        self.before_commit: Hook = nothing
        self.after_commit: Hook = nothing

    async def create_in(self, connection: Any, process: NewProcess) -> Created:
        self._check(connection)
        if process.process_id in connection.created:
            first, created = connection.created[process.process_id]
            return Created(created.row, first.creation_id == process.creation_id)
        there = self._processes.get(process.process_id)
        if there is not None or self._busy[process.process_id]:
            return self._create(process, None, self._now())
        connection.locks.enter_context(self.hold(process.process_id))

        def create() -> None:
            self._create(process, None, self._now())
            self._hint([process.process_id])

        connection.staged.append(create)
        created = Created(begin(process, self._now(), 1).row(), True)
        connection.created[process.process_id] = process, created
        return created

    async def deliver_in(self, connection: Any, event: NewEvent, *, mailbox_max: int) -> Delivered:
        self._check(connection)
        process = self._processes.get(event.process_id)
        if process is None:
            return Delivered(Refusal.UNKNOWN_PROCESS)
        if process.ending is not None:
            return Delivered(Refusal.FINISHED)

        def deliver() -> None:
            self._deliver(event, self._now(), mailbox_max)
            self._hint([event.process_id])

        connection.staged.append(deliver)
        return Delivered()

    async def transact(
        self,
        lease: Lease,
        unit: Unit,
        body: Callable[[Any], Awaitable[bytes]],
    ) -> UnitOutcome:
        # A repeat looks before the body runs; here that is all the same to the first time.
        if outcome := self._refusal(lease, unit):
            return outcome
        connection = Connection(self)
        connection.begin()
        try:
            payload = await body(connection)
            if not connection.is_open:
                raise InvalidArgumentError("the transaction was ended by its function")
            await self.before_commit("transact")
            outcome = self._refusal(lease, unit)
        except BaseException as error:
            connection.rollback()
            if connection.lost:
                raise StorageUnavailableError("the connection was lost") from error
            raise
        if outcome:
            connection.rollback()
            return outcome
        connection.commit()
        checkpoint: Checkpoint = msgspec.structs.replace(
            unit.checkpoints[0],
            payload=payload,
            epoch=unit.epoch,
            seq=unit.seq,
            at=self._now(),
        )
        self._processes[unit.process_id].record(checkpoint)
        await self.after_commit("transact")
        return DONE

    def _refusal(self, lease: Lease, unit: Unit) -> UnitOutcome | None:
        host = self._hosts.holding(lease)
        process = self._processes.get(unit.process_id)
        if self._busy[unit.process_id]:
            return UnitOutcome(Refusal.BUSY)
        if process is None or (process.incarnation, process.epoch, process.owner) != (
            unit.incarnation,
            unit.epoch,
            host.host_id,
        ):
            return UnitOutcome(Refusal.NOT_OWNER)
        if process.status in FINISHED:
            return UnitOutcome(Refusal.FINISHED)
        place = unit.checkpoints[0]
        held = process.find(place.kind, place.key, place.index)
        return UnitOutcome(held=(held,)) if held is not None else None

    def _check(self, connection: Any) -> None:
        if not isinstance(connection, Connection) or connection.database is not self:
            raise InvalidArgumentError(f"{connection!r} is no connection of this database")
        if not connection.is_open:
            raise InvalidArgumentError("the connection has no open transaction")


class DatabaseWire(Wire):
    """One host's line to a database."""

    storage: Database

    async def create_in(self, connection: Any, process: NewProcess) -> Created:
        return await self.storage.create_in(connection, process)

    async def deliver_in(self, connection: Any, event: NewEvent, *, mailbox_max: int) -> Delivered:
        return await self.storage.deliver_in(connection, event, mailbox_max=mailbox_max)

    async def transact(
        self,
        lease: Lease,
        unit: Unit,
        body: Callable[[Any], Awaitable[bytes]],
    ) -> UnitOutcome:
        self.calls.append("transact")
        await self.before("transact")
        answer = await self.storage.transact(lease, unit, body)
        await self.after("transact")
        return answer


def database_of(world: World) -> Database:
    """Return the database of a world, which it has from the first call on."""
    if not isinstance(world.storage, Database):
        world.storage = Database(world.clock, lease_ttl_s=None)
    return world.storage


def host_of(world: World, *processes: Any, **options: Any) -> ProcessHost:
    """Make a host on the database of a world; see `World.host`."""
    wire = DatabaseWire(database_of(world))
    options.setdefault("label", f"host-{len(world.wires)}")
    options.setdefault("random", Random(len(world.wires)))
    host = ProcessHost(wire, processes=processes, clock=world.clock, **options)
    world.wires[host] = wire
    return host


class DatabaseUser:
    """The user's side of a database, as the conformance suite asks for it."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        yield Connection(self.database)

    def transaction(self, connection: Connection) -> AbstractAsyncContextManager[None]:
        return connection.transaction()

    async def end(self, connection: Connection) -> None:
        connection.commit()

    async def put(self, connection: Connection, key: str) -> None:
        await connection.write(key, True)

    async def rows(self) -> list[str]:
        return sorted(self.database.table)
