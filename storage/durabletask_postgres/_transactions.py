"""Writing in one transaction with the user's own rows, on the user's connection or on one of ours.

Responsible for who begins and ends what, and for what an error means for the
user's transaction. A process's row is never locked here: a transaction of the
user's may stay open for long.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

import durabletask_postgres._clients as _clients
from durabletask.errors import (
    InvalidArgumentError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import (
    DONE,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Unit,
    UnitOutcome,
)
from durabletask_postgres._batch import BUSY, Mark
from durabletask_postgres._connections import Connections
from durabletask_postgres._refusals import gave_way, is_locked
from durabletask_postgres._rows import checkpoint, refusal
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import DRIVER_ERRORS, storage_error, uncommitted

_BEGIN = "begin isolation level read committed"
_COMMIT = "commit"
_ROLLBACK = "rollback"

Place = tuple[int, str, str]
"""Number of a process, kind and key of a checkpoint."""


def check_open(connection: Any) -> None:
    """Raise unless it is a connection of asyncpg with an open transaction.

    Raises:
        InvalidArgumentError: It is not; nothing was written.
    """
    if not isinstance(connection, asyncpg.Connection | PoolConnectionProxy):
        raise InvalidArgumentError(
            f"connection= takes a connection of asyncpg, not {type(connection).__name__}; "
            "nothing was written",
            hint="with a pool: async with pool.acquire() as connection, connection.transaction():",
        )
    if connection.is_closed():
        raise InvalidArgumentError("the connection is closed; nothing was written")
    if not connection.is_in_transaction():
        raise InvalidArgumentError(
            "the connection has no open transaction; nothing was written",
            hint="async with connection.transaction(): around it and the rows that belong to it",
        )


async def create_in(connection: Any, statements: Statements, process: NewProcess) -> Created:
    """Create a process in the user's transaction; see `Transactions.create_in`."""

    async def fetch(statement: str, *args: object) -> Any:
        try:
            # A savepoint: who meets the same id in another transaction gives up, and goes on.
            async with connection.transaction():
                return await connection.fetch(statement, *args)
        except DRIVER_ERRORS as error:
            raise uncommitted(error) from error

    (created,) = await _clients.create(fetch, statements, [process], None)
    return created


async def deliver_in(
    connection: Any, statements: Statements, event: NewEvent, mailbox_max: int
) -> Delivered:
    """Deliver an event in the user's transaction; see `Transactions.deliver_in`."""
    try:
        ((refused,),) = await connection.fetch(
            statements["post_letter"],
            event.process_id,
            event.event_id,
            event.name,
            event.payload,
            mailbox_max,
        )
    except DRIVER_ERRORS as error:
        raise uncommitted(error) from error
    return Delivered(None if refused is None else refusal(refused))


async def tell_in(connection: Any, statements: Statements, message: str) -> None:
    """Send a message to the hosts with the commit of the user's transaction.

    Raises:
        StorageError: What it says; the user's transaction has failed.
    """
    try:
        await connection.execute(statements["notify_within"], statements.schema, message)
    except DRIVER_ERRORS as error:
        raise uncommitted(error) from error


class Bodies:
    """Transactions that run a body of the user's and record its result."""

    def __init__(self, connections: Connections, statements: Statements) -> None:
        self._connections = connections
        self._reserve = statements["reserve"]
        self._record = statements["record_within"]
        self._doubtful: set[Place] = set()

    async def transact(
        self,
        lease: Lease,
        mark: tuple[Any, ...] | Mark,
        unit: Unit,
        body: Callable[[Any], Awaitable[bytes]],
    ) -> UnitOutcome:
        """Run a body and record its result; see `Transactions.transact`."""
        (point,) = unit.checkpoints
        place = (unit.incarnation, str(point.kind), point.key)
        try:
            async with self._connections.use() as connection:
                outcome = await self._run(connection, lease, mark, unit, body, place)
        except StorageUnknownError:
            self._doubtful.add(place)
            raise
        if outcome is not BUSY:
            self._doubtful.discard(place)
        return outcome

    async def _run(
        self,
        connection: Any,
        lease: Lease,
        mark: tuple[Any, ...] | Mark,
        unit: Unit,
        body: Callable[[Any], Awaitable[bytes]],
        place: Place,
    ) -> UnitOutcome:
        (point,) = unit.checkpoints
        async with _ours(connection):
            await connection.execute(_BEGIN)
        if place in self._doubtful:
            try:
                async with _ours(connection):
                    there = await connection.fetch(
                        self._reserve, unit.incarnation, unit.epoch, unit.seq, point.kind, point.key
                    )
            except StorageUnavailableError as error:
                if is_locked(error):
                    return BUSY
                raise
            if there:
                await _roll_back(connection)
                return UnitOutcome(held=tuple(checkpoint(each) for each in there))
        payload = await self._guarded(connection, body)
        async with _ours(connection):
            answer = await connection.fetch(
                self._record,
                *(lease.host_id, *mark, unit.process_id, unit.incarnation, unit.epoch, unit.seq),
                *(point.kind, point.key, point.form, payload),
            )
        if answer:
            await _roll_back(connection)
            refused, *values = answer[0]
            if refused is not None:
                return UnitOutcome(refused=refusal(refused))
            return UnitOutcome(held=(checkpoint(values),))
        return await self._commit(connection, place)

    async def _guarded(self, connection: Any, body: Callable[[Any], Awaitable[bytes]]) -> bytes:
        """Run the body; what it raises comes out after its writes are rolled back."""
        try:
            payload = await body(connection)
        except Exception as error:
            if connection.is_closed() or gave_way(error):
                raise StorageUnavailableError(
                    f"the transaction had to give way, and was rolled back: {error}"
                ) from error
            await _roll_back(connection)
            raise
        if connection.is_closed():
            raise StorageUnavailableError("the connection was lost, and the transaction with it")
        if not connection.is_in_transaction():
            raise InvalidArgumentError(
                "the function has ended its transaction by itself",
                hint="leave commit and rollback to proc.transaction: return, or raise",
            )
        return payload

    async def _commit(self, connection: Any, place: Place) -> UnitOutcome:
        # In doubt from the moment when it is sent: a cancelled wait is a lost answer.
        self._doubtful.add(place)
        try:
            tag = await connection.execute(_COMMIT)
        except asyncpg.PostgresError as error:
            if connection.is_closed():
                raise storage_error(error, sent=True) from error
            self._doubtful.discard(place)
            if gave_way(error):
                raise storage_error(error, sent=False) from error
            raise  # the user's rows break a deferred constraint: an error of the body's
        except DRIVER_ERRORS as error:
            raise storage_error(error, sent=True) from error
        if tag != "COMMIT":
            self._doubtful.discard(place)
            raise _swallowed()
        return DONE


def _swallowed() -> InvalidArgumentError:
    return InvalidArgumentError(
        "a statement of the transaction had failed, so that nothing was committed",
        hint="let the error out of the function, or use a savepoint around that statement",
    )


@asynccontextmanager
async def _ours(connection: Any) -> AsyncIterator[None]:
    """Map the errors of a statement of ours before the commit: in any case nothing is written."""
    try:
        yield
    except asyncpg.InFailedSQLTransactionError as error:
        await _roll_back(connection)
        raise _swallowed() from error
    except DRIVER_ERRORS as error:
        mapped = uncommitted(error)
        if connection.is_closed():
            raise StorageUnavailableError(str(mapped)) from error
        await _roll_back(connection)
        raise mapped from error


async def _roll_back(connection: Any) -> None:
    if connection.is_closed() or not connection.is_in_transaction():
        return
    try:
        await connection.execute(_ROLLBACK)
    except DRIVER_ERRORS:
        connection.terminate()  # which rolls back as well
