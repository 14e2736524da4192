"""One connection, what is known of the server at its other end, and one call on it.

Knows how a call ends: answered, refused, lost, cancelled, or committed here
and nowhere else. Refuses to know who shares the connection and what is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import asyncpg

from durabletask.errors import StorageAccessError, StorageUnknownError
from durabletask_postgres._trouble import DRIVER_ERRORS, storage_error

T = TypeVar("T")

Record: TypeAlias = asyncpg.Record
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)

Fetch: TypeAlias = Callable[..., Awaitable[Sequence[Record]]]
"""Run one statement with these parameters as one transaction, as `Connections.fetch` does."""

VERSION_MIN = 140000
"""Functions with a body in the SQL standard's form came with 14."""

_BEGIN = "begin isolation level read committed"
_COMMIT = "commit"
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function of the server that warns; its text is in the server's language."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a connection found at its other end.

    Attributes:
        backend_pid: The server's process that answered.
        backend_start: When that began, as the server writes it; with the pid it names a session.
        pooled: Behind a pooler: the next transaction may meet another session.
        explicit_isolation: READ COMMITTED is not the default and has to be asked for.
        standby: A replica, which only reads.
        read_only: Transactions only read unless told otherwise.
    """

    backend_pid: int
    backend_start: str
    pooled: bool
    standby: bool
    encoding: str
    version_num: int
    fsync: bool
    explicit_isolation: bool
    read_only: bool

    def check(self) -> None:
        """Refuse a server that can never do; a standby may become one that can.

        Raises:
            StorageAccessError: It is too old, not in UTF-8 or reads only.
        """
        if self.version_num < VERSION_MIN:
            raise StorageAccessError(
                f"the server is Postgres {self.version_num // 10_000}",
                hint=f"Postgres {VERSION_MIN // 10_000} is the oldest that will do",
            )
        if self.encoding != "UTF8":
            raise StorageAccessError(
                f"the database is encoded in {self.encoding}, which cannot hold every id",
                hint="create a database with encoding 'UTF8'",
            )
        if self.read_only and not self.standby:
            raise StorageAccessError(
                "transactions of this role or database only read",
                hint="set default_transaction_read_only to off for it",
            )


async def facts_of(connection: Connection, query: str) -> ServerFacts:
    """Ask a server what it is, in one round trip and without a prepared statement.

    A pooler hands out process ids of its own to cancel by, so that they differ
    from the one that the server says it has.
    """
    text = bytearray()

    async def take(part: bytes) -> None:
        text.extend(part)

    await connection.copy_from_query(query, output=take)
    pid, start, standby, encoding, version, fsync, isolation, read_only = (
        text.decode().rstrip("\n").split("\t")
    )
    return ServerFacts(
        backend_pid=int(pid),
        backend_start=start,
        pooled=int(pid) != connection.get_server_pid(),
        standby=standby == "t",
        encoding=encoding,
        version_num=int(version),
        fsync=fsync == "on",
        explicit_isolation=isolation != "read committed",
        read_only=read_only == "on",
    )


class Line:
    """A connection in use by one caller at a time."""

    __slots__ = ("_answer_by_s", "_loop", "_timer", "_warned", "connection", "facts")

    def __init__(self, connection: Connection, facts: ServerFacts) -> None:
        self.connection = connection
        self.facts = facts
        self._loop = asyncio.get_running_loop()
        # One timer that looks, and not one for each call, which would cost a call more than the
        # rest of its way through here.
        self._timer: asyncio.TimerHandle | None = None
        self._answer_by_s: float | None = None
        self._warned = False
        connection.add_log_listener(self._hear)

    @property
    def usable(self) -> bool:
        """Whether it is open and between two transactions."""
        return not self._closed and not self.connection.is_in_transaction()

    @property
    def _closed(self) -> bool:
        try:
            return self.connection.is_closed()
        except asyncpg.InterfaceError:
            return True  # it has ended, and the pool that it came from has taken note

    def detach(self) -> None:
        """Listen no more to what the server says; the connection goes back to its owner."""
        self._stop_timer()
        self.connection.remove_log_listener(self._hear)

    def terminate(self) -> None:
        """End the connection without a word; the server rolls back what is open."""
        self._stop_timer()
        with suppress(asyncpg.InterfaceError):  # it has ended already, as above
            self.connection.terminate()

    async def fetch(
        self, statement: str, args: tuple[object, ...], *, explicit: bool, timeout_s: float
    ) -> list[Record]:
        """Run one statement as one transaction and return its rows.

        Args:
            statement: Its text.
            args: Its parameters.
            explicit: Say READ COMMITTED, because the server's default is another.
            timeout_s: How long to wait for the answer.

        Raises:
            StorageError: What became of it, see `storage_error`. No answer in
                time and a commit that reached no standby are unknown.

        Cancellation: the outcome is unknown and the connection is terminated.
        No request to cancel is sent to the server: it might hit the wait for
        a standby, and so commit here what a failover then loses.
        """
        call = self.connection.fetch
        return await self._call(call, statement, args, explicit=explicit, timeout_s=timeout_s)

    async def write(
        self, statement: str, args: tuple[object, ...], *, explicit: bool, timeout_s: float
    ) -> int:
        """Run one statement that returns no rows, as `fetch` does; return how many it wrote."""
        call = self.connection.execute
        status = await self._call(call, statement, args, explicit=explicit, timeout_s=timeout_s)
        return int(status.rpartition(" ")[2])

    async def _call(
        self,
        call: Callable[..., Coroutine[Any, Any, T]],
        statement: str,
        args: tuple[object, ...],
        *,
        explicit: bool,
        timeout_s: float,
    ) -> T:
        self._warned = False
        self._await_answer(timeout_s)
        try:
            if explicit:
                await self.connection.execute(_BEGIN)
            answer = await call(statement, *args)
            if explicit:
                await self.connection.execute(_COMMIT)
        except asyncpg.PostgresError as error:
            raise storage_error(error, sent=True) from error  # the server answered, or is gone
        except DRIVER_ERRORS as error:
            self.terminate()
            raise storage_error(error, sent=True) from error
        except AttributeError as error:
            # The driver goes on with a protocol that is None where `_look` has ended the connection
            # between two messages of one call: the first was answered in the moment it was late,
            # as happens to a program that was stopped for a while.
            late = self._closed
            self.terminate()
            if not late:
                raise
            raise StorageUnknownError("the answer of Postgres was lost: it was late") from error
        except BaseException:
            # Before asyncpg's own task to cancel the statement has taken its first step.
            self.terminate()
            raise
        finally:
            self._answer_by_s = None
        self.check_standby()
        return answer

    def check_standby(self) -> None:
        """End the connection if a commit on it was told not to wait for a standby any longer.

        Raises:
            StorageUnknownError: It was.
        """
        if self._warned:
            self.terminate()
            raise StorageUnknownError("the commit was recorded here but reached no standby")

    def _await_answer(self, timeout_s: float) -> None:
        """Have the connection ended in `timeout_s`; who waits for the answer then meets that."""
        self._answer_by_s = answer_by_s = self._loop.time() + timeout_s
        timer = self._timer
        if timer is None or timer.when() > answer_by_s:
            self._start_timer(answer_by_s)

    def _start_timer(self, at_s: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_at(at_s, self._look, at_s)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, at_s: float) -> None:
        """End the connection if the answer is late; else look again when the next one would be."""
        self._timer = None
        if self._answer_by_s is None:
            return
        if self._answer_by_s <= at_s:
            self.terminate()
        else:
            self._start_timer(self._answer_by_s)

    def _hear(self, connection: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.server_source_function == _WAIT_FOR_STANDBY:
            self._warned = True
