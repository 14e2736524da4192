"""Where a connection comes from and where it goes when it has been used.

Two kinds: our own few connections over a DSN, and a pool that the user has
made. Knows counting and queues; refuses to know what runs on a connection.
The latest one returned is the first to be used again, without a reset in
between, since nothing of ours leaves anything in a session.
"""

import asyncio
import logging
from collections import deque
from typing import Protocol

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from durabletask.errors import StorageFailedError, StorageUnavailableError
from durabletask_postgres._dial import Dialer
from durabletask_postgres._line import Connection, Line, Record, ServerFacts, facts_of
from durabletask_postgres._trouble import DRIVER_ERRORS, storage_error

_log = logging.getLogger("durabletask")

CLOSE_TIMEOUT_S = 1.0
FULL_RETRY_S = 5.0
"""How long a server that refused one more connection is not asked for another."""

SEEN_MAX = 1_000
"""Sessions of a given pool that are remembered as looked at."""

_TOO_MANY = "53300"


class Pool(Protocol):
    """Lends connections, each to one user at a time."""

    async def take(self) -> Line:
        """Return a connection that nobody else uses.

        Raises:
            StorageError: There is none; nothing was sent on one.
        """
        ...

    def next(self) -> Line | None:
        """Return what `take` would return at once, or None if that cannot be said."""
        ...

    async def give_back(self, line: Line) -> None:
        """Take a connection back; one that is broken or inside of a transaction is ended."""
        ...

    def distrust(self) -> None:
        """Take note that an answer was lost: what is idle may be as dead without knowing it."""
        ...

    async def close(self) -> None:
        """Lend no more. Safe to repeat."""
        ...


class OwnPool:
    """A few connections over a DSN, opened on demand."""

    def __init__(self, dialer: Dialer, connections_max: int) -> None:
        """Lend at most `connections_max`, fewer where the server has no more."""
        self._dialer = dialer
        self._most = connections_max
        self._room = connections_max
        self._idle: list[Line] = []
        self._open = 0
        self._waiters: deque[asyncio.Future[Line | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self) -> Line:
        """Return the connection that came back last, or a new one, or wait for one."""
        while not self._closed:
            while self._idle:
                line = self._idle.pop()
                if line.usable:
                    return line
                self._drop(line)
            given = await (self._dialled() if self._open < self._room else self._waited())
            if given is not None:
                return given
        raise StorageFailedError("the storage is closed", hint="make a new one")

    def next(self) -> Line | None:
        """Return the connection that came back last, if it is usable."""
        line = self._idle[-1] if self._idle else None
        return line if line is not None and line.usable else None

    async def give_back(self, line: Line) -> None:
        """Take a connection back and hand it to whoever waits longest."""
        if self._closed:
            self._open -= 1
            await _hang_up(line)
        elif not line.usable:
            self._drop(line)
            self._wake(None)
        elif not self._wake(line):
            self._idle.append(line)

    def distrust(self) -> None:
        """End what is idle; else each of them would cost a wait of its own, one after the other."""
        while self._idle:
            self._drop(self._idle.pop())

    async def close(self) -> None:
        """Close what is idle, and what is in use when it comes back."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._wake(None):
            pass
        lines, self._idle = self._idle, []
        self._open -= len(lines)
        for line in lines:
            await _hang_up(line)

    async def _dialled(self) -> Line | None:
        """Open a connection; None where the server has no more but we have some already."""
        self._open += 1
        try:
            return await self._dialer.dial()
        except StorageUnavailableError as error:
            self._open -= 1
            if getattr(error.__cause__, "sqlstate", None) == _TOO_MANY and self._open > 0:
                self._be_content()
                return None
            self._wake(None)
            raise
        except BaseException:
            self._open -= 1
            self._wake(None)
            raise

    async def _waited(self) -> Line | None:
        """Wait for a connection; None means that it is worth looking again."""
        waiter: asyncio.Future[Line | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # It had come in the same moment.
                line = waiter.result()
                if not self._wake(line) and line is not None:
                    self._idle.append(line)
            raise

    def _wake(self, line: Line | None) -> bool:
        """Give a connection, or the sign to look again, to who waits longest, if anybody does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(line)
                return True
        return False

    def _drop(self, line: Line) -> None:
        self._open -= 1
        line.terminate()

    def _be_content(self) -> None:
        self._room = self._open
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(FULL_RETRY_S, self._try_more)

    def _try_more(self) -> None:
        self._timer = None
        self._room = self._most
        self._wake(None)


class GivenPool:
    """A pool of the user's. It stays open; how many and how they are set up is its business."""

    def __init__(self, pool: "asyncpg.Pool[Record]", query: str, timeout_s: float) -> None:
        """Lend from a pool.

        Args:
            pool: The user's.
            query: The statement `server`.
            timeout_s: How long to wait for a connection of it.
        """
        self._pool = pool
        self._query = query
        self._timeout_s = timeout_s
        self._seen: dict[int, ServerFacts] = {}

    async def take(self) -> Line:
        """Return a connection of the pool, its server looked at once for each session."""
        if self._pool.is_closing():
            raise StorageFailedError(
                "the pool that was given to the storage is closed",
                hint="stop the host and close the storage first, then the pool",
            )
        try:
            await self._pool  # makes the first connections of a pool that nobody has awaited yet
            connection = await self._pool.acquire(timeout=self._timeout_s)
            try:
                return Line(connection, await self._look_at(connection))
            except BaseException:
                connection.terminate()
                await self._pool.release(connection)
                raise
        except DRIVER_ERRORS as error:
            raise storage_error(error, sent=False) from error

    def next(self) -> Line | None:
        """Return None: which connection it will be is the pool's affair."""
        return None

    async def give_back(self, line: Line) -> None:
        """Give a connection back to its pool, which resets it."""
        assert isinstance(line.connection, PoolConnectionProxy)
        if line.usable:
            line.detach()
        else:
            line.terminate()
        try:
            await self._pool.release(line.connection)
        except DRIVER_ERRORS as error:
            # What was asked has been answered; a pool that cannot clean up ends the session.
            _log.debug("a connection was not taken back by its pool: %s", error)

    def distrust(self) -> None:
        """Leave the pool as it is; others may be using it well."""

    async def close(self) -> None:
        """Leave the pool as it is."""

    async def _look_at(self, connection: Connection) -> ServerFacts:
        pid = connection.get_server_pid()
        facts = self._seen.get(pid)
        if facts is None:
            async with asyncio.timeout(self._timeout_s):
                facts = await facts_of(connection, self._query)
            facts.check()
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            self._seen[pid] = facts
        return facts


async def _hang_up(line: Line) -> None:
    if line.usable:
        try:
            await line.connection.close(timeout=CLOSE_TIMEOUT_S)
        except DRIVER_ERRORS as error:
            _log.debug("a connection did not close in order: %s", error)
    line.terminate()
