"""The connections of one storage: who may use them, and a call on one of them.

Knows the loop and the process that a storage belongs to, and what has to be
done once before anything else. Refuses to know SQL, except that one statement
says what the server is.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from durabletask.errors import (
    InvalidArgumentError,
    StorageAccessError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
    WrongContextError,
)
from durabletask_postgres._dial import Dialer
from durabletask_postgres._line import Connection, Line, Record, ServerFacts
from durabletask_postgres._pools import GivenPool, OwnPool, Pool
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import DRIVER_ERRORS, NOT_READ_COMMITTED, uncommitted

T = TypeVar("T")

_log = logging.getLogger("durabletask")

CONNECTIONS_MAX = 4
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
"""Two thirds of a lease: a connection that went dead without a word costs time, not the lease. A
call that the server takes longer for is repeated, and then finds its own work done."""

Setup = Callable[[Connection], Awaitable[object]]


class Connections:
    """Connections to one database, opened on demand by the loop that asks first.

    Attributes:
        facts: What the latest connection found at its other end; None before the first.
        explicit_isolation: Whether READ COMMITTED has to be asked for.
    """

    def __init__(
        self,
        source: "str | asyncpg.Pool[Record]",
        statements: Statements,
        *,
        connections_max: int = CONNECTIONS_MAX,
        statement_cache_size: int | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        setup: Setup | None = None,
    ) -> None:
        """Take note of where to connect; nothing is opened yet.

        Args:
            source: A DSN, or a pool, which stays its creator's to close.
            statements: Where the statement `server` is.
            connections_max: At most so many at once; a pool has its own limit.
            statement_cache_size: As asyncpg has it; None means its default,
                or 0 where a pooler is met. Of no effect on a pool.
            connect_timeout_s: For opening a connection, or getting one from the pool.
            answer_timeout_s: For the answer to a call, unless the call says else.
            setup: Run once, on the first connection, before any other call.

        Raises:
            InvalidArgumentError: `connections_max` is not positive, or `source` is neither.
        """
        if connections_max < 1:
            raise InvalidArgumentError(
                f"connections_max is {connections_max}", hint="one is the least that can work"
            )
        if not isinstance(source, str | asyncpg.Pool):
            raise InvalidArgumentError(
                f"a storage needs a DSN or an asyncpg pool, not {type(source).__name__}",
                hint="see that the environment variable which should hold the DSN is set",
            )
        self.facts: ServerFacts | None = None
        self.explicit_isolation = False
        query = statements["server"]
        self._dialer: Dialer | None = None
        self._pool: Pool
        if isinstance(source, str):
            self._dialer = Dialer(source, query, statement_cache_size, connect_timeout_s)
            self._pool = OwnPool(self._dialer, connections_max)
        else:
            self._pool = GivenPool(source, query, connect_timeout_s)
        self._answer_timeout_s = answer_timeout_s
        self._setup = setup
        self._ready = False
        self._readying = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._closed = False

    @property
    def can_dial(self) -> bool:
        """Whether `dial` can work: a DSN was given and not a pool."""
        return self._dialer is not None

    @property
    def ready(self) -> bool:
        """Whether what has to be done once, see `setup`, has been done."""
        return self._ready

    @property
    def pooled(self) -> bool:
        """Whether a pooler stands between us and the server, as far as is known."""
        return self.facts is not None and self.facts.pooled

    @property
    def session(self) -> Line | None:
        """What stands for the server's session that a call made now would run in.

        None if that cannot be said: a new one, a pool's choice, a pooler's.
        """
        return self._pool.next() if self._ready and not self.pooled else None

    async def fetch(
        self, statement: str, *args: object, timeout_s: float | None = None
    ) -> list[Record]:
        """Run one statement as one transaction in READ COMMITTED and return its rows.

        Raises:
            StorageError: Refused, unavailable or unknown, as `storage_error` says.
            WrongContextError: The storage belongs to another loop, or this is
                the child of a fork; nothing was sent.

        Cancellation: the outcome is unknown; the connection is not used again.
        """
        return await self._run(Line.fetch, statement, args, timeout_s)

    async def write(self, statement: str, *args: object) -> int:
        """Run one statement that returns no rows, as `fetch` does; return how many it wrote."""
        return await self._run(Line.write, statement, args, None)

    async def _run(
        self,
        call: Callable[..., Coroutine[Any, Any, T]],
        statement: str,
        args: tuple[object, ...],
        timeout_s: float | None,
    ) -> T:
        line = await self._take()
        try:
            return await call(
                line,
                statement,
                args,
                explicit=self.explicit_isolation,
                timeout_s=self._answer_timeout_s if timeout_s is None else timeout_s,
            )
        except StorageUnknownError:
            self._pool.distrust()
            raise
        except StorageUnavailableError as error:
            if getattr(error.__cause__, "sqlstate", None) == NOT_READ_COMMITTED:
                self.explicit_isolation = True
            raise
        finally:
            await self._pool.give_back(line)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Lend a connection for a transaction of the caller's own making.

        Errors of the body pass as they are. A body that is cancelled, or ends
        inside of a transaction, costs the connection: it is terminated.

        Raises:
            StorageUnknownError: A commit of the body's reached no standby.
        """
        line = await self._take()
        try:
            yield line.connection
            line.check_standby()
        except asyncio.CancelledError:
            line.terminate()
            raise
        finally:
            await self._pool.give_back(line)

    async def dial(self) -> Line:
        """Open a connection of its own for the calling loop, whichever that is.

        Raises:
            StorageUnavailableError: Not now.
            StorageAccessError: Not as things are set up; also where a pool was given.
        """
        if self._dialer is None:
            raise StorageAccessError(
                "a pool gives no connection of its own", hint="give the storage a DSN instead"
            )
        line = await self._dialer.dial()
        if line.facts.standby:
            line.terminate()
            raise StorageUnavailableError("the server is a standby")
        return line

    async def close(self) -> None:
        """Close what is idle, and what is in use when it comes back; safe to repeat.

        A pool that was given stays open. In the child of a fork nothing
        happens: a word on the parent's sockets would end its sessions.
        """
        self._closed = True
        if os.getpid() == self._pid:
            await self._pool.close()

    async def _take(self) -> Line:
        """Return a connection for one use, once everything is set up."""
        self._check_context()
        if not self._ready:
            await self._get_ready()
        line = await self._pool.take()
        if line.facts is not self.facts:
            self._learn(line.facts)
        if line.facts.standby:
            line.terminate()
            await self._pool.give_back(line)
            raise StorageUnavailableError("the server has become a standby")
        return line

    def _check_context(self) -> None:
        if self._closed:
            raise StorageFailedError("the storage is closed", hint="make a new one")
        if os.getpid() != self._pid:
            raise WrongContextError(
                "this storage was made by another process, before a fork",
                hint="make the storage and the host after the fork",
            )
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise WrongContextError(
                "this storage belongs to the event loop that used it first",
                hint="make one storage for each loop",
            )

    async def _get_ready(self) -> None:
        """Do what is done once. Who comes meanwhile waits; after a failure the next one tries."""
        async with self._readying:
            if self._ready:
                return
            line = await self._pool.take()
            try:
                self._learn(line.facts)
                if line.facts.standby:
                    raise StorageAccessError(
                        "the server is a standby, which only reads",
                        hint="connect to the primary; with several hosts in a DSN, "
                        "target_session_attrs=read-write finds it",
                    )
                if self._setup is not None:
                    await self._setup(line.connection)
                self._ready = True
            except DRIVER_ERRORS as error:
                raise uncommitted(error) from error  # what was asked has yet to be sent
            finally:
                if not self._ready:
                    line.terminate()
                await self._pool.give_back(line)

    def _learn(self, facts: ServerFacts) -> None:
        if self.facts is None and not facts.fsync:
            _log.warning(
                "the Postgres server runs with fsync=off: a power cut can lose and damage what "
                "it has acknowledged, and no promise of durability holds"
            )
        self.facts = facts
        self.explicit_isolation |= facts.explicit_isolation
