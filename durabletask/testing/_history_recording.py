"""Writes down what a program asks of its storage, what it is answered, and what its steps do.

Sees what the program sees: a lost answer is lost here too. Refuses to judge.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from durabletask._errors import (
    InvalidArgumentError,
    LeaseLostError,
    LimitExceededError,
    StorageAccessError,
    StorageBusyError,
    StorageFormatError,
    StorageUnavailableError,
)
from durabletask._model import (
    Claims,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    Query,
    Refusal,
    Snapshot,
    Unit,
    UnitOutcome,
)
from durabletask._process import Process
from durabletask._steps import current_step
from durabletask._storage import Hints, ProcessStorage
from durabletask.testing._history_file import History
from durabletask.testing._history_records import (
    AnyOperation,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    Execute,
    Phase,
    Purge,
    Renew,
    See,
    Taken,
    creation_digest,
    digest,
    ending_text,
    write_of,
)

T = TypeVar("T")

NOTHING_WRITTEN = (
    InvalidArgumentError,
    LeaseLostError,
    LimitExceededError,
    StorageAccessError,
    StorageBusyError,
    StorageFormatError,
    StorageUnavailableError,
)
"""After these a call has certainly done nothing; after anything else that is unknown."""

READ_MAX = 1_000


class RecordingStorage:
    """Wraps a storage and writes every request and answer into a history.

    A request is written down before it is made, an answer before the caller
    hears of it. Hints go through if the wrapped storage gives any.
    """

    def __init__(self, storage: ProcessStorage, history: History) -> None:
        """Wrap a storage for one start of a program.

        Args:
            storage: The real one.
            history: A `HistoryFile` of its own for each start of a program, or
                a `HistoryList` shared by all hosts of one event loop.
        """
        self._storage = storage
        self._history = history
        if isinstance(storage, Hints):
            # Only then: a host sleeps longer where it is told that there will be hints.
            self.subscribe = storage.subscribe

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; see `ProcessStorage`."""
        host_id = "" if lease is None else lease.host_id
        asked = [
            Create(
                phase=Phase.INVOKE,
                process_id=new.process_id,
                host_id=host_id,
                creation_id=new.creation_id,
                digest=creation_digest(new.name, new.input),
                replace=new.replace,
            )
            for new in processes
        ]
        return await self._ask(
            asked,
            lambda: self._storage.create(processes, lease),
            lambda answers: [_created(each, host_id) for each in answers],
        )

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes; see `ProcessStorage`."""
        asked = [
            Deliver(
                phase=Phase.INVOKE,
                process_id=event.process_id,
                event_id=event.event_id,
                name=event.name,
                digest=digest(event.payload),
            )
            for event in events
        ]
        return await self._ask(
            asked,
            lambda: self._storage.deliver(events, mailbox_max=mailbox_max),
            lambda answers: [_delivered(each) for each in answers],
        )

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        """Read processes; see `ProcessStorage`. Not written down."""
        return await self._storage.read(process_ids, history=history)

    async def list(self, query: Query) -> Page:
        """List processes; see `ProcessStorage`. Not written down."""
        return await self._storage.list(query)

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        """Remove finished processes; see `ProcessStorage`."""
        return await self._ask(
            [Purge(phase=Phase.INVOKE, process_id=process_id) for process_id in process_ids],
            lambda: self._storage.purge(process_ids),
            lambda answers: [Purge(phase=_phase(each), why=each or "") for each in answers],
        )

    async def open_lease(self, host_id: str, label: str) -> Lease:
        """Begin a host's right to write; see `ProcessStorage`."""
        return await self._ask(
            [Renew(phase=Phase.INVOKE, host_id=host_id)],
            lambda: self._storage.open_lease(host_id, label),
            lambda _: [Renew(phase=Phase.OK)],
        )

    async def renew(self, lease: Lease) -> Lease:
        """Prolong a lease; see `ProcessStorage`."""
        return await self._ask(
            [Renew(phase=Phase.INVOKE, host_id=lease.host_id)],
            lambda: self._storage.renew(lease),
            lambda _: [Renew(phase=Phase.OK)],
        )

    async def claim(
        self, lease: Lease, claim_id: str, names: Sequence[str], *, count_max: int
    ) -> Claims:
        """Take claimable processes; see `ProcessStorage`."""
        asked = Claim(
            phase=Phase.INVOKE, host_id=lease.host_id, claim_id=claim_id, count_max=count_max
        )
        return await self._ask(
            [asked],
            lambda: self._storage.claim(lease, claim_id, names, count_max=count_max),
            lambda claims: [Claim(phase=Phase.OK, taken=_taken(claims))],
        )

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units; see `ProcessStorage`."""
        return await self._ask(
            [_commit(unit, lease.host_id) for unit in units],
            lambda: self._storage.commit(lease, units),
            lambda outcomes: [_committed(each) for each in outcomes],
        )

    async def close_lease(self, lease: Lease) -> None:
        """End a lease; see `ProcessStorage`."""
        await self._ask(
            [CloseLease(phase=Phase.INVOKE, host_id=lease.host_id)],
            lambda: self._storage.close_lease(lease),
            lambda _: [CloseLease(phase=Phase.OK)],
        )

    async def close(self) -> None:
        """Give back files, threads and connections; see `ProcessStorage`. Not written down."""
        await self._storage.close()

    async def _ask(
        self,
        asked: Sequence[AnyOperation],
        act: Callable[[], Awaitable[T]],
        answers: Callable[[T], Sequence[AnyOperation]],
    ) -> T:
        calls = [self._history.next_call() for _ in asked]
        self._write(calls, asked)
        try:
            result = await act()
        except BaseException as error:
            # A cancelled call too: its outcome is unknown, and that is written down at once.
            phase = Phase.FAIL if isinstance(error, NOTHING_WRITTEN) else Phase.INFO
            why = f"{type(error).__name__}: {error}"
            self._write(calls, [type(each)(phase=phase, why=why) for each in asked])
            raise
        self._write(calls, answers(result))
        return result

    def _write(self, calls: Sequence[int], operations: Sequence[AnyOperation]) -> None:
        who, at_s = self._history.who, self._history.now_s()
        self._history.write(
            [
                msgspec.structs.replace(each, who=who, call=call, at_s=at_s)
                for call, each in zip(calls, operations, strict=True)
            ]
        )


class Effects:
    """The outside world as the steps of a process touch it, in a history of what they did.

    Args:
        history: May be that of the `RecordingStorage`, or another file.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    def __call__(self) -> None:
        """Have the effect of the present step, in one instant; async steps and sync ones.

        Raises:
            WrongContextError: The caller is not inside a step.
        """
        with self.during():
            pass

    def saw(self, proc: Process, key: str, value: T) -> T:
        """Write down what user code was given by a durable call, and return it.

        Args:
            proc: The process that made the call.
            key: Of the call.
            value: Told apart by its `repr`, so that must not name an address.
        """
        name, call = self._history.who, self._history.next_call()
        seen = See(
            phase=Phase.INVOKE,
            who=name,
            call=call,
            at_s=self._history.now_s(),
            process_id=proc.id,
            place=proc.idempotency_key(key),
            digest=digest(repr(value).encode()),
        )
        self._history.write([seen])
        return value

    @contextmanager
    def during(self) -> Iterator[None]:
        """Have an effect that begins before the block and ends with it."""
        step = current_step()
        run, call = step.run, self._history.next_call()
        begun = Execute(
            phase=Phase.INVOKE,
            who=self._history.who,
            call=call,
            at_s=self._history.now_s(),
            process_id=step.process_id,
            host_id=run.services.host_id,
            incarnation=run.incarnation,
            generation=run.generation,
            epoch=run.epoch,
            key=step.key,
            index=step.index,
            attempt=step.attempt,
        )
        self._history.write([begun])
        yield
        # What is cancelled or raises in the block has begun and never ended, as after a kill.
        ended = Execute(
            phase=Phase.OK, who=self._history.who, call=call, at_s=self._history.now_s()
        )
        self._history.write([ended])


async def dump(storage: ProcessStorage) -> list[Snapshot]:
    """Read every process of a storage with its history; each as of one instant.

    Raises:
        StorageError: As `list` and `read`.
    """
    found: list[Snapshot] = []
    query: Query | None = Query(limit=READ_MAX)
    while query is not None:
        page = await storage.list(query)
        ids = [row.process_id for row in page.rows]
        snapshots = await storage.read(ids, history=True)
        found += [each for each in snapshots if each is not None]
        query = Query(limit=READ_MAX, cursor=page.cursor) if page.cursor else None
    return found


def _phase(refused: Refusal | None) -> Phase:
    return Phase.OK if refused is None else Phase.FAIL


def _created(answer: Created, host_id: str) -> Create:
    row = answer.row
    if row is None:
        return Create(phase=Phase.FAIL, why=answer.refused or "")
    return Create(
        phase=Phase.OK,
        process_id=row.process_id,
        creation_id=row.creation_id,
        digest=creation_digest(row.name, row.input),
        fresh=answer.fresh,
        owned=answer.fresh and bool(host_id) and row.owner == host_id,
        incarnation=row.incarnation,
        epoch=row.epoch,
    )


def _delivered(answer: Delivered) -> Deliver:
    event = answer.event
    if event is None:
        return Deliver(phase=Phase.FAIL, why=answer.refused or "")
    return Deliver(
        phase=Phase.OK,
        event_id=event.event_id,
        name=event.name,
        digest=digest(event.payload),
        position=event.position,
    )


def _taken(claims: Claims) -> tuple[Taken, ...]:
    return tuple(
        Taken(
            each.row.process_id,
            each.row.incarnation,
            each.row.epoch,
            len(each.checkpoints),
            tuple(event.position for event in each.events),
        )
        for each in claims.claimed
        # A damaged one is handed out to be set aside: its history is what could be read.
        if each.fresh and each.damage is None
    )


def _commit(unit: Unit, host_id: str) -> Commit:
    return Commit(
        phase=Phase.INVOKE,
        process_id=unit.process_id,
        host_id=host_id,
        incarnation=unit.incarnation,
        epoch=unit.epoch,
        seq=unit.seq,
        writes=tuple(write_of(each) for each in unit.checkpoints),
        consumes=unit.consumes,
        ending=ending_text(unit.ending),
        left=unit.leave is not None,
    )


def _committed(outcome: UnitOutcome) -> Commit:
    return Commit(
        phase=_phase(outcome.refused),
        why=outcome.refused or "",
        held=tuple(write_of(each) for each in outcome.held),
    )
