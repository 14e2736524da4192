"""What beats in the heart of a host: one connection that is always there again.

Responsible for the lease's renewal, the session's witness lock and the ear on
the channel, all on one connection, and for a new one when that is lost.
Refuses to know of threads: everything here runs on one loop.
"""

import asyncio
import logging
import random
from typing import Final

from durabletask.errors import (
    LeaseLostError,
    StorageError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import Clock, Lease
from durabletask_postgres._connections import Connections
from durabletask_postgres._line import Line, Record
from durabletask_postgres._notify import OnNews, listen
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import DRIVER_ERRORS

_log = logging.getLogger("durabletask")

OWN_SHARE: Final = 0.4
"""Of a lease's life: when it is renewed unasked. The host asks every third, so it comes first
unless its loop is blocked."""

CONNECT_SHARE: Final = 1 / 3
"""Of a lease's life: how long a renewal waits for a connection."""

CONNECT_MAX_S: Final = 5.0
"""How long one attempt to connect may take, however long the lease lasts: the next one may do."""

ANSWER_SHARE: Final = 1 / 5
"""Of a lease's life: how long it waits for an answer. A second question on a new connection still
comes in time, while the host trusts its lease."""

FIRST_PAUSE_S: Final = 0.05
FIRST_PAUSES: Final = 100
"""So often the short pause between two attempts to connect: a restart takes seconds, and whoever
is back within half a second of it is not taken for dead."""

LAST_PAUSE_S: Final = 0.25
WITNESS_PAUSE_S: Final = 0.02
WITNESS_PAUSE_MAX_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 1.0


class Pulse:
    """One lease and the connection that keeps it alive.

    Attributes:
        witness: Whether the session holds the witness lock at this moment.
    """

    def __init__(
        self,
        connections: Connections,
        statements: Statements,
        lease: Lease,
        ttl_s: float,
        *,
        instance: str,
        on_news: OnNews | None,
        clock: Clock,
    ) -> None:
        """Prepare; see `Heart`, which passes its arguments on."""
        self.witness = False
        self._connections = connections
        self._statements = statements
        self._lease = lease
        self._ttl_s = ttl_s
        self._instance = instance
        self._on_news = on_news
        self._clock = clock
        self._renewed_s = clock.monotonic_s()
        self._lost: str | None = None
        self._trouble: StorageError | None = None
        self._line: Line | None = None
        self._before: Line | None = None
        self._connected = asyncio.Event()
        self._settled = asyncio.Event()
        self._using = asyncio.Lock()
        self._renewing = asyncio.Lock()

    async def run(self) -> None:
        """Keep connected and the lease renewed, until it is lost or this is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_connected())
            group.create_task(self._keep_renewed())

    async def settled(self) -> None:
        """Wait until a connection stands, with its witness lock where it can have one.

        Raises:
            StorageError: It does not, within a third of the lease's life; why not.
        """
        await self._wait(self._settled)

    async def renew(self) -> Lease:
        """Renew the lease by a question that is asked after this call.

        Raises:
            LeaseLostError: The host has been fenced, for good.
            StorageError: It was not renewed, or that is unknown.
        """
        # One after the other, and never one answer for two: the second asker counts from its own
        # question, and would trust an earlier answer for longer than the lease lasts.
        async with self._renewing:
            try:
                return await self._renewed()
            except StorageUnknownError as error:
                _log.debug("a renewal is asked for again: %s", error)
                try:
                    return await self._renewed()
                except StorageUnavailableError:
                    raise error from None  # true of the second question only

    async def _renewed(self) -> Lease:
        await self._wait(self._connected)
        lease = self._lease
        asked_s = self._clock.monotonic_s()
        (row,) = await self._call("renew", lease.host_id, self._ttl_s)
        self._renewed_s = asked_s
        return Lease(lease.host_id, lease.label, self._ttl_s, row["now_at"])

    async def _keep_renewed(self) -> None:
        while self._lost is None:
            due_s = self._renewed_s + self._ttl_s * OWN_SHARE - self._clock.monotonic_s()
            if due_s > 0:
                await asyncio.sleep(due_s)
                continue
            try:
                await self.renew()
            except LeaseLostError:
                return  # the host hears it when it renews or commits
            except StorageError as error:
                _log.debug("host %s did not renew its lease: %s", self._lease.label, error)
                await asyncio.sleep(LAST_PAUSE_S)

    # --- the connection ----------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        failures = 0
        while self._lost is None:
            try:
                line = await self._dialled()
                failures = 0
                await self._live_with(line)
            except StorageError as error:
                failures += 1
                self._trouble = error
                level = logging.WARNING if failures == 1 else logging.DEBUG
                _log.log(level, "host %s has no heartbeat: %s", self._lease.label, error)
            pause_s = FIRST_PAUSE_S if failures < FIRST_PAUSES else LAST_PAUSE_S
            # Hosts that lost their sessions in one instant shall not all knock in one instant.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _dialled(self) -> Line:
        try:
            async with asyncio.timeout(min(self._ttl_s * CONNECT_SHARE, CONNECT_MAX_S)):
                return await self._connections.dial()
        except TimeoutError:
            raise StorageUnavailableError("Postgres does not answer") from None

    async def _live_with(self, line: Line) -> None:
        """Use a connection for as long as it lasts."""
        lost = asyncio.Event()
        line.connection.add_termination_listener(lambda _: lost.set())
        self._line = line
        try:
            if not line.facts.pooled:
                await self._bear_witness()
            self._connected.set()
            if not line.facts.pooled:
                await self._listen(line)
                await self._insist_on_witness(line)
            self._settled.set()
            await lost.wait()
        finally:
            self._connected.clear()
            self._settled.clear()
            self.witness = False
            self._before = line
            await self._hang_up(line)

    async def _bear_witness(self) -> None:
        (row,) = await self._call("witness", self._lease.host_id)
        self.witness = row["held"]

    async def _insist_on_witness(self, line: Line) -> None:
        """Get the lock from the session before, whose end the server may not have noticed."""
        pause_s = WITNESS_PAUSE_S
        while not self.witness:
            await self.renew()  # says so where the lock was refused because the lease is lost
            if self._before is not None:
                facts = self._before.facts
                await self._call("evict", facts.backend_pid, facts.backend_start)
            await self._bear_witness()
            if not self.witness:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, WITNESS_PAUSE_MAX_S)
            if not line.usable:
                raise StorageUnavailableError("the connection of the heart was lost")

    async def _listen(self, line: Line) -> None:
        if self._on_news is not None:
            schema, timeout_s = self._statements.schema, self._ttl_s * ANSWER_SHARE
            async with self._using:
                await listen(line, schema, self._instance, self._on_news, timeout_s)

    async def _call(self, name: str, *args: object) -> list[Record]:
        async with self._using:
            if self._lost is not None:
                raise LeaseLostError(self._lost)
            line = self._line
            if line is None or not line.usable:
                raise StorageUnavailableError("the connection of the heart was lost")
            try:
                return await line.fetch(
                    self._statements[name],
                    args,
                    explicit=line.facts.explicit_isolation,
                    timeout_s=self._ttl_s * ANSWER_SHARE,
                )
            except LeaseLostError as error:
                self._lost = str(error)
                line.terminate()  # there is nothing left to witness
                raise
            finally:
                if not line.usable:
                    # The news of its end is still on the way to `_live_with`; who asks again
                    # shall wait for the next connection and not meet this one.
                    self._connected.clear()

    async def _wait(self, event: asyncio.Event) -> None:
        if self._lost is not None:
            raise LeaseLostError(self._lost)
        try:
            async with asyncio.timeout(self._ttl_s * CONNECT_SHARE):
                await event.wait()
        except TimeoutError:
            raise StorageUnavailableError(
                f"the heart of host {self._lease.label} has no connection"
            ) from self._trouble

    async def _hang_up(self, line: Line) -> None:
        try:
            if line.usable:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    # Said and not left to the end of the session, which comes some time after.
                    await line.connection.fetch(self._statements["unlock"])
                    await line.connection.close()
        except DRIVER_ERRORS as error:
            _log.debug("the connection of the heart did not close in order: %s", error)
        finally:
            line.terminate()
