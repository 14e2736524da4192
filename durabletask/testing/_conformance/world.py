"""What the conformance tests are written with: one storage, its clock, and short words.

Knows the seam and nothing of any backend; what differs between backends is
asked of the suite that opened the storage.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from durabletask.storage import (
    DONE,
    NO_INDEX,
    Action,
    Checkpoint,
    Claimed,
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    Ending,
    Event,
    Form,
    Kind,
    Lease,
    NewEvent,
    NewProcess,
    Parent,
    ProcessRow,
    ProcessStorage,
    Query,
    Snapshot,
    Status,
    Transactions,
    Unit,
    UnitOutcome,
)
from durabletask.testing._time import VirtualClock

Test = TypeVar("Test", bound=Callable[..., Any])

NAME = "order"
MAILBOX_MAX = 100
FINISH = Ending(Status.COMPLETED, Form.VALUE, b'"finished"')
QUARANTINE = Ending(Status.QUARANTINED, Form.ERROR, b'{"type":"KeyConflictError"}')
FAIL = Ending(Status.FAILED, Form.ERROR, b'{"type":"ValueError"}')
TERMINATE = Ending(Status.TERMINATED, Form.ERROR, b'{"type":"ProcessTerminatedError"}')
CANCEL = Ending(Status.CANCELLED, Form.ERROR, b'{"type":"ProcessCancelledError"}')


class Suite(Protocol):
    """What a world asks of the suite that opened it."""

    async def kill(self, world: "World", lease: Lease) -> None:
        """Make the host of a lease dead, so that the next host's claim takes over."""
        ...

    def holding(
        self, storage: ProcessStorage, process_id: str
    ) -> AbstractAsyncContextManager[None]:
        """Let another open transaction hold a process meanwhile."""
        ...

    def user(self, storage: ProcessStorage) -> "User":
        """Return the user's side of the database."""
        ...


class User(Protocol):
    """The user of a storage with `Transactions`: what is theirs in the same database."""

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """Open a connection of the user's, without a transaction."""
        ...

    def transaction(self, connection: Any) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction; commit it at the end, roll it back where something is raised."""
        ...

    async def end(self, connection: Any) -> None:
        """Commit the open transaction behind the back of whoever began it."""
        ...

    async def put(self, connection: Any, key: str) -> None:
        """Write a row into a table of the user's; it fails if the row is there already."""
        ...

    async def rows(self) -> list[str]:
        """Return the keys of all rows that are committed, sorted."""
        ...


def needs(
    *,
    hosts: int = 1,
    hosts_at_most: int | None = None,
    reopen: bool = False,
    busy: bool = False,
    transactions: bool = False,
) -> Callable[[Test], Test]:
    """Say what a storage must be able to do, for a test to be one of its promises.

    Args:
        hosts: So many hosts at a time.
        hosts_at_most: Takes no more hosts than this.
        reopen: Keeps its data when closed or crashed.
        busy: Can be held by somebody else's open transaction.
        transactions: Is a `Transactions` too.
    """
    asked = {"reopen": reopen, "holding": busy, "user": transactions}

    def mark(test: Test) -> Test:
        test.needs = (hosts, hosts_at_most, {each for each in asked if asked[each]})  # type: ignore[attr-defined]
        return test

    return mark


def applies(test: object, hosts_max: int | None, filled_in: set[str]) -> bool:
    """Return whether a test is a promise of a storage whose suite has filled in these methods."""
    hosts, hosts_at_most, asked = getattr(test, "needs", (1, None, set()))
    if hosts_max is not None and hosts_max < hosts:
        return False
    if hosts_at_most is not None and (hosts_max is None or hosts_max > hosts_at_most):
        return False
    return filled_in >= asked


def new(process_id: str, **fields: Any) -> NewProcess:
    """Return a process to create; its creation id is `c/<id>` unless given."""
    rest = {"name": NAME, "input": b"[1]", "input_digest": "d1", "creation_id": f"c/{process_id}"}
    return NewProcess(process_id=process_id, **{**rest, **fields})


def step(
    key: str, payload: bytes = b"1", *, kind: Kind = Kind.DO, index: int = NO_INDEX
) -> Checkpoint:
    """Return a checkpoint of which the first write wins."""
    return Checkpoint(kind, key, index, Form.VALUE, payload)


def latest(key: str, payload: bytes = b"1", *, kind: Kind = Kind.VAR) -> Checkpoint:
    """Return a checkpoint that replaces an older one."""
    return Checkpoint(kind, key, NO_INDEX, Form.VALUE, payload, replaces=True)


def unit(row: ProcessRow, seq: int, *checkpoints: Checkpoint, **fields: Any) -> Unit:
    """Return a unit of the process in the epoch and incarnation of `row`, unless given."""
    rest = {
        "process_id": row.process_id,
        "incarnation": row.incarnation,
        "epoch": row.epoch,
        "checkpoints": checkpoints,
    }
    return Unit(seq=seq, **{**rest, **fields})


def event(process_id: str, event_id: str, payload: bytes = b"null", name: str = "ping") -> NewEvent:
    """Return an event to deliver."""
    return NewEvent(process_id=process_id, event_id=event_id, name=name, payload=payload)


def parent_of(row: ProcessRow, key: str = "child") -> Parent:
    """Return a durable call of a process that spawns."""
    return Parent(row.process_id, row.incarnation, row.generation, key)


def child(row: ProcessRow, process_id: str, key: str = "child", **fields: Any) -> NewProcess:
    """Return a child of a process to spawn."""
    return new(process_id, **{"parent": parent_of(row, key), **fields})


def made(created: Created) -> ProcessRow:
    """Return the process of a creation that was not refused."""
    assert created.row is not None
    return created.row


def bare(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return checkpoints as they were given, without what the storage fills in."""
    return [
        Checkpoint(each.kind, each.key, each.index, each.form, each.payload, each.replaces)
        for each in checkpoints
    ]


class World:
    """One storage under test, and the time that it lives by.

    Attributes:
        storage: The storage; another object after it was reopened.
        clock: Its clock, moved by hand.
    """

    def __init__(self, suite: Suite, storage: ProcessStorage, clock: VirtualClock) -> None:
        self.storage = storage
        self.clock = clock
        self._suite = suite
        self._claims = 0
        self._requests = 0

    # --- hosts ---------------------------------------------------------------------------

    async def host(self, host_id: str = "host-1") -> Lease:
        """Open the lease of a host, labelled `label of <id>`."""
        return await self.storage.open_lease(host_id, f"label of {host_id}")

    async def after(self, lease: Lease, host_id: str) -> Lease:
        """Close one host's lease and open another's: a change that every storage can do."""
        await self.storage.close_lease(lease)
        return await self.host(host_id)

    async def rest(self, lease: Lease, by: timedelta | float) -> None:
        """Let time pass for a host that keeps its lease."""
        self.clock.advance(by)
        await self.storage.renew(lease)

    async def kill(self, lease: Lease) -> None:
        """Make a host dead, as far as the storage can see it."""
        await self._suite.kill(self, lease)

    def holding(self, process_id: str) -> AbstractAsyncContextManager[None]:
        """Let another open transaction hold a process meanwhile."""
        return self._suite.holding(self.storage, process_id)

    @property
    def transactions(self) -> Transactions:
        """The storage, as one that writes in transactions of its users."""
        assert isinstance(self.storage, Transactions)
        return self.storage

    @property
    def user(self) -> User:
        """The user's side of the database."""
        return self._suite.user(self.storage)

    async def claim(
        self,
        lease: Lease,
        *,
        names: Sequence[str] = (NAME,),
        count_max: int = 100,
        rooms: Mapping[str, int] | None = None,
        claim_id: str | None = None,
    ) -> Claims:
        """Claim under a new claim id, unless given one."""
        self._claims += 1
        return await self.storage.claim(
            lease, claim_id or f"claim-{self._claims}", names, count_max=count_max, rooms=rooms
        )

    async def take(self, lease: Lease, **options: Any) -> dict[str, Claimed]:
        """Claim, and return what was taken by process id, in order."""
        claims = await self.claim(lease, **options)
        return {each.row.process_id: each for each in claims.claimed if each.fresh}

    async def news(self, lease: Lease) -> dict[str, Claimed]:
        """Claim nothing, and return what is new by process id."""
        claims = await self.claim(lease, count_max=0)
        assert not any(each.fresh for each in claims.claimed)
        return {each.row.process_id: each for each in claims.claimed}

    # --- writing -------------------------------------------------------------------------

    async def add(
        self, *process_ids: str, lease: Lease | None = None, **fields: Any
    ) -> list[ProcessRow]:
        """Create processes, in one batch; with a lease they are held by it."""
        created = await self.storage.create([new(each, **fields) for each in process_ids], lease)
        assert all(each.fresh for each in created)
        return [made(each) for each in created]

    async def held(self, process_id: str, lease: Lease, **fields: Any) -> ProcessRow:
        """Create one process that the lease holds."""
        (row,) = await self.add(process_id, lease=lease, **fields)
        assert row.owner == lease.host_id
        return row

    async def family(self, lease: Lease) -> tuple[ProcessRow, ProcessRow]:
        """Return a held process "p" that has spawned "c" with its unit 1, and "c", held too."""
        parent = await self.held("p", lease)
        spawned = Checkpoint(Kind.CHILD, "child", NO_INDEX, Form.VALUE, b"1")
        await self.done(lease, unit(parent, 1, spawned, spawns=(child(parent, "c"),)))
        return parent, (await self.take(lease))["c"].row

    async def commit(self, lease: Lease, *units: Unit) -> list[UnitOutcome]:
        """Commit units in one batch."""
        return list(await self.storage.commit(lease, units))

    async def done(self, lease: Lease, *units: Unit) -> None:
        """Commit units in one batch; all are written."""
        assert await self.commit(lease, *units) == [DONE] * len(units)

    async def finish(self, lease: Lease, row: ProcessRow, seq: int = 1_000) -> None:
        """End a process as completed."""
        await self.done(lease, unit(row, seq, ending=FINISH))

    async def send(self, *events: NewEvent, mailbox_max: int = MAILBOX_MAX) -> list[Delivered]:
        """Deliver events in one batch."""
        return list(await self.storage.deliver(events, mailbox_max=mailbox_max))

    async def sent(self, *events: NewEvent) -> None:
        """Deliver events in one batch; all are taken."""
        assert [each.refused for each in await self.send(*events)] == [None] * len(events)

    def control(self, process_id: str, action: Action, **fields: Any) -> Control:
        """Return a request under a new id, with the ending that goes with its action."""
        self._requests += 1
        ending = {Action.CANCEL: CANCEL, Action.TERMINATE: TERMINATE}.get(action)
        rest = {"request_id": f"request-{self._requests}", "ending": ending}
        return Control(process_id=process_id, action=action, **{**rest, **fields})

    async def request(self, *controls: Control) -> list[Controlled]:
        """Make requests in one batch."""
        return list(await self.storage.request(controls))

    async def ask(self, process_id: str, action: Action, **fields: Any) -> ProcessRow:
        """Make one request, which is granted; return the process as the answer shows it."""
        (answer,) = await self.request(self.control(process_id, action, **fields))
        assert answer.refused is None, (process_id, action, answer.refused)
        assert answer.row is not None
        assert answer.row == await self.row(process_id)
        return answer.row

    async def retry(self, row: ProcessRow, **fields: Any) -> ProcessRow:
        """Retry a process as its caller has read it."""
        read = {"incarnation": row.incarnation, "epoch": row.epoch}
        return await self.ask(row.process_id, Action.RETRY, **{**read, **fields})

    async def mailbox(self, process_id: str) -> list[Event]:
        """Return the unconsumed events of a process that exists."""
        return [each for each in (await self.history(process_id)).events if not each.consumed]

    # --- reading -------------------------------------------------------------------------

    async def row(self, process_id: str) -> ProcessRow:
        """Return a process that exists."""
        return (await self.history(process_id)).row

    async def history(self, process_id: str) -> Snapshot:
        """Return a process that exists, with checkpoints and events."""
        (snapshot,) = await self.storage.read([process_id], history=True)
        assert snapshot is not None
        return snapshot

    async def payloads(self, process_id: str) -> dict[str, bytes]:
        """Return the payloads of a process's checkpoints by key, in the order recorded."""
        return {each.key: each.payload for each in (await self.history(process_id)).checkpoints}

    async def everything(self) -> list[Snapshot | None]:
        """Return all there is, to see that nothing changed."""
        ids = [row.process_id for row in await self.listed()]
        return list(await self.storage.read(ids, history=True))

    async def listed(self, **query: Any) -> list[ProcessRow]:
        """Return every process that a query finds, page by page."""
        rows: list[ProcessRow] = []
        cursor: str | None = None
        while True:
            page = await self.storage.list(Query(**{"limit": 1_000, **query}, cursor=cursor))
            rows += page.rows
            cursor = page.cursor
            if cursor is None:
                return rows

    async def ids(self, **query: Any) -> list[str]:
        """Return the ids of every process that a query finds."""
        return [row.process_id for row in await self.listed(**query)]
