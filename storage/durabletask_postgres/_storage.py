"""`PostgresStorage`: processes in one Postgres database, for any number of hosts.

Responsible for the methods of the seam, for what belongs to a lease while it
lasts, and for hints. What happens to a process is for the functions of the
schema to say; connections, migrations and the heartbeat have modules of their
own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import asyncpg
from asyncpg import Record

import durabletask_postgres._clients as _clients
import durabletask_postgres._transactions as _transactions
from durabletask.errors import (
    InvalidArgumentError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import (
    DONE,
    Claims,
    Clock,
    Control,
    Controlled,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    Query,
    Refusal,
    Snapshot,
    SystemClock,
    Unit,
    UnitOutcome,
)
from durabletask_postgres._commits import Commits
from durabletask_postgres._connections import Connections
from durabletask_postgres._damage import Salvage
from durabletask_postgres._ear import Ear
from durabletask_postgres._gathering import Gathering
from durabletask_postgres._heart import Heart
from durabletask_postgres._migrate import ensure_schema
from durabletask_postgres._notify import Notifier, new_instance, told
from durabletask_postgres._retention import Retention
from durabletask_postgres._rows import (
    claimed_of,
    cursor_after,
    query_columns,
    row_of,
    snapshot_of,
)
from durabletask_postgres._sql import DEFAULT_SCHEMA, Statements
from durabletask_postgres._subscribers import Subscribers

_log = logging.getLogger("durabletask")

LEASE_TTL_S = 15.0
"""A host whose session cannot be seen to end is replaced after this; renewed every third of it."""

CONNECTIONS_MAX = 4
CONNECT_TIMEOUT_S = 10.0

DELIVER_MAX = 1_000
"""Events in one round trip, or so many times `DELIVER_BYTES` of their payloads."""

DELIVER_BYTES = 8 * 1024

WITNESS_LOOK_S = 0.4
"""Between two looks at the other hosts' sessions, which cost more than the rest of a claim. Known
to `fence_the_dead` too."""

_SYSTEM_CLOCK = SystemClock()


class PostgresStorage:
    """A `ProcessStorage`, `Hints` and `Transactions` in a Postgres database, version 14 or newer.

    Everything opens at the first call, on the loop that makes it.

    Args:
        source: A DSN, or an asyncpg pool. With a pool there is no heartbeat of
            its own: leases are renewed on the caller's loop, and a host that
            dies is replaced when its lease ends.
        schema: Where the tables are: 1 to 63 of a-z, 0-9 and _.
        lease_ttl_s: How long a host that cannot be seen to have died keeps its
            processes.
        connections_max: Work connections of this object, from 1; a host has one
            more for its heartbeat, a client while it waits for results.
        notify: Whether hosts and clients tell each other with NOTIFY; without,
            they look every `poll_s`. Behind a pooler it is off by itself.
        migrate: Whether a schema that is missing or older is brought up to
            date; else that is an error.
        statement_cache_size: As asyncpg's; 0 behind a pooler that takes no
            prepared statements.
        retention: How long finished processes are kept; None for ever. They
            are purged in batches by each host.
        connect_timeout_s: For a new connection.

    Raises:
        InvalidArgumentError: An argument cannot be used; nothing was opened.
    """

    def __init__(
        self,
        source: "str | asyncpg.Pool[Record]",
        *,
        schema: str = DEFAULT_SCHEMA,
        lease_ttl_s: float = LEASE_TTL_S,
        connections_max: int = CONNECTIONS_MAX,
        notify: bool = True,
        migrate: bool = True,
        statement_cache_size: int | None = None,
        retention: timedelta | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._statements = Statements(schema)
        self._clock: Clock = _SYSTEM_CLOCK
        self._ttl_s = _checked("lease_ttl_s", lease_ttl_s)
        self._migrate = migrate
        self._notify = notify
        self._instance = new_instance()
        self._connections = Connections(
            source,
            self._statements,
            connections_max=int(_checked("connections_max", connections_max)),
            statement_cache_size=statement_cache_size,
            connect_timeout_s=_checked("connect_timeout_s", connect_timeout_s),
            setup=self._set_up,
        )
        self._fetch = self._connections.fetch
        self._salvage = Salvage(self._fetch, self._statements)
        # By the limit of the mailbox, of which a program has one.
        self._deliveries: dict[int, Gathering[NewEvent, Delivered]] = {}
        self._notifier = Notifier(self._fetch, self._statements, self._instance)
        self._commits = Commits(self._connections, self._statements, self._clock)
        self._bodies = _transactions.Bodies(self._connections, self._statements)
        self._retention = Retention(self._fetch, self._statements["purge_finished"], retention)
        self._hearts: dict[str, Heart] = {}
        self._leases: set[str] = set()
        # By host: the claims that were not answered.
        self._lost_claims: dict[str, set[str]] = {}
        self._looked_s = 0.0
        self._subscribers = Subscribers(self._attune)
        self._ear: Ear | None = None
        if notify and self._connections.can_dial:
            self._ear = Ear(self._connections, self._statements, self._instance, self._heard)

    async def _set_up(self, connection: Any) -> None:
        await ensure_schema(connection, self._statements, migrate=self._migrate)

    # --- any client ----------------------------------------------------------------------

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; an id that exists is answered with what is there."""
        _clients.check_size("create", processes)
        answers = await _clients.create(self._fetch, self._statements, processes, lease)
        if lease is not None:
            for each in answers:
                if each.row is not None and each.row.owner == lease.host_id:
                    parent = each.row.parent
                    above = None if parent is None else parent.incarnation
                    self._commits.know(each.row.incarnation, each.row.process_id, above)
        self._tell(
            [
                each.row.process_id
                for each in answers
                if each.row is not None and each.fresh and each.row.owner is None
            ]
        )
        return answers

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes, in the given order."""
        deliveries = self._deliveries.get(mailbox_max)
        if deliveries is None:

            async def flush(events: Sequence[NewEvent]) -> Sequence[Delivered]:
                return await _clients.deliver(self._fetch, self._statements, events, mailbox_max)

            deliveries = Gathering(flush, DELIVER_MAX, _weight)
            self._deliveries[mailbox_max] = deliveries
        answers = await deliveries.ask(events)
        stored = [
            (event.process_id, answer.owner)
            for event, answer in zip(events, answers, strict=True)
            if answer.event is not None
        ]
        # What a host elsewhere holds is no news to one here, which would claim for nothing.
        self._subscribers.tell(
            [each for each, owner in stored if owner is None or owner in self._leases]
        )
        self._notify_others([each for each, owner in stored if owner not in self._leases])
        return answers

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        """Ask something of processes, in the given order."""
        _clients.check_size("request", controls)
        answers = await _clients.request(self._fetch, self._statements, controls)
        told = [process_id for _, concerned in answers for process_id in concerned]
        if told:
            self._tell(told)
        return [answer for answer, _ in answers]

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        """Read processes; None where there is no such id."""
        _clients.check_size("read", process_ids)
        if not process_ids:
            return []
        records = await self._salvage.read(list(set(process_ids)), history=history)
        found = {each["process_id"]: each for each in records}
        return [
            snapshot_of(found[process_id]) if process_id in found else None
            for process_id in process_ids
        ]

    async def list(self, query: Query) -> Page:
        """List processes in order of creation."""
        records = await self._salvage.list(*query_columns(query))
        rows = tuple(row_of(each) for each in records[: query.limit])
        return Page(rows, cursor_after(rows[-1]) if len(records) > query.limit else None)

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        """Remove finished processes with everything of theirs."""
        _clients.check_size("purge", process_ids)
        return await _clients.purge(self._fetch, self._statements, process_ids)

    # --- hosts ---------------------------------------------------------------------------

    async def open_lease(self, host_id: str, label: str) -> Lease:
        """Begin a host's right to write, or prolong it."""
        statement = self._statements["open_lease"]
        ((_, now_at),) = await self._fetch(statement, host_id, label, self._ttl_s)
        lease = Lease(host_id, label, self._ttl_s, now_at)
        self._leases.add(host_id)
        if self._connections.can_dial and host_id not in self._hearts:
            await self._start_heart(lease)
        self._retention.begin()
        return lease

    async def _start_heart(self, lease: Lease) -> None:
        heart = self._hearts[lease.host_id] = Heart(
            self._connections,
            self._statements,
            lease,
            instance=self._instance,
            on_news=self._heard if self._notify else None,
            clock=self._clock,
        )
        heart.start()
        try:
            await heart.ready()
        except StorageUnavailableError as error:
            # It goes on trying; until then the end of the lease is all that others see.
            _log.warning("host %s has no heartbeat yet: %s", lease.host_id, error)
        self._attune()

    async def renew(self, lease: Lease) -> Lease:
        """Prolong a lease."""
        heart = self._hearts.get(lease.host_id)
        if heart is not None:
            return await heart.renew()
        statement = self._statements["renew"]
        ((now_at,),) = await self._fetch(statement, lease.host_id, self._ttl_s)
        return Lease(lease.host_id, lease.label, self._ttl_s, now_at)

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        """Take claimable processes, and hear what is new for those already held."""
        now_s = self._clock.monotonic_s()
        by_witness = now_s - self._looked_s >= WITNESS_LOOK_S
        if by_witness:
            self._looked_s = now_s
        await self._commits.check(lease)
        lost = self._lost_claims.setdefault(lease.host_id, set())
        try:
            header, *records = await self._salvage.claim(
                lease.host_id,
                claim_id,
                list(names),
                [(rooms or {}).get(name) for name in names],
                count_max,
                by_witness,
                claim_id in lost,
            )
        except (StorageUnknownError, asyncio.CancelledError):
            lost.add(claim_id)
            raise
        lost.discard(claim_id)
        for each in records:
            self._commits.know(each["process_no"], each["process_id"], each["parent_incarnation"])
        return Claims(
            tuple(claimed_of(each) for each in records),
            header["now_at"],
            None if header["more"] else header["next_at"],
            header["more"],
        )

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units of processes that the lease holds, in one go."""
        answers, told = await self._commits.commit(lease, units)
        if told:
            self._tell(told)
        return answers

    async def close_lease(self, lease: Lease) -> None:
        """End a lease; what it still holds is claimable at once, without a death."""
        try:
            await self._fetch(self._statements["close_lease"], lease.host_id)
        finally:
            await self._forget(lease)
        self._tell([None])

    async def _forget(self, lease: Lease) -> None:
        self._leases.discard(lease.host_id)
        self._lost_claims.pop(lease.host_id, None)
        self._commits.forget(lease)
        heart = self._hearts.pop(lease.host_id, None)
        if heart is not None:
            self._attune()
            await heart.close()

    async def close(self) -> None:
        """Give back connections and threads. Safe to repeat; the data stays."""
        await self._retention.close()
        if self._ear is not None:
            await self._ear.close()
        hearts, self._hearts = list(self._hearts.values()), {}
        for heart in hearts:
            await heart.close()
        for deliveries in self._deliveries.values():
            await deliveries.close()
        await self._notifier.close()
        await self._connections.close()

    # --- in transactions of the user's -----------------------------------------------------

    async def create_in(self, connection: Any, process: NewProcess) -> Created:
        """Create a process in the user's open transaction."""
        _transactions.check_open(connection)
        await self._be_ready()
        created = await _transactions.create_in(connection, self._statements, process)
        if created.fresh:
            await self._tell_in(connection, process.process_id)
        return created

    async def deliver_in(self, connection: Any, event: NewEvent, *, mailbox_max: int) -> Delivered:
        """Deliver an event in the user's open transaction."""
        _transactions.check_open(connection)
        await self._be_ready()
        statements = self._statements
        answer = await _transactions.deliver_in(connection, statements, event, mailbox_max)
        if answer.refused is None:
            await self._tell_in(connection, event.process_id)
        return answer

    async def transact(
        self, lease: Lease, unit: Unit, body: Callable[[Any], Awaitable[bytes]]
    ) -> UnitOutcome:
        """Run `body` in a new transaction that also records its result; both or neither."""
        outcome = await self._bodies.transact(lease, self._commits.mark(lease), unit, body)
        if outcome is DONE:
            self._commits.told(lease, unit)
        return outcome

    async def _be_ready(self) -> None:
        """Have the schema brought up to date, which the user's connection cannot do."""
        if not self._connections.ready:
            await self._fetch(self._statements["now"])

    async def _tell_in(self, connection: Any, process_id: str) -> None:
        """Tell hosts of a process once the user's transaction is committed."""
        if self._notify and not self._connections.pooled:
            await _transactions.tell_in(connection, self._statements, told("", process_id))

    # --- hints ---------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Call back on the caller's loop when something may have changed."""
        return self._subscribers.add(callback)

    def _attune(self) -> None:
        """Have an ear for as long as there is somebody to hear, and no heart that hears as well."""
        if self._ear is None:
            return
        if self._hearts:
            self._ear.end()
        elif self._subscribers:
            self._ear.open()
        else:
            self._ear.rest()

    def _tell(self, process_ids: "Sequence[str | None]") -> None:
        """Tell everybody, here and elsewhere."""
        self._subscribers.tell(process_ids)
        self._notify_others(process_ids)

    def _notify_others(self, process_ids: "Sequence[str | None]") -> None:
        if self._notify and process_ids and not self._connections.pooled:
            self._notifier.tell(process_ids[0] if len(process_ids) == 1 else None)

    def _heard(self, process_id: str | None) -> None:
        self._subscribers.tell([process_id])


def _weight(event: NewEvent) -> int:
    return 1 + len(event.payload) // DELIVER_BYTES


def _checked(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidArgumentError(f"{name} must be a number above 0, not {value!r}")
    return value
