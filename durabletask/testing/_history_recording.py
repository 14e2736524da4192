"""Writes down what a program asks of its storage, and what it is answered.

Sees what the program sees: a lost answer is lost here too. Refuses to judge.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from durabletask._errors import (
    InvalidArgumentError,
    LeaseLostError,
    LimitExceededError,
    StorageAccessError,
    StorageBusyError,
    StorageError,
    StorageFormatError,
    StorageUnavailableError,
)
from durabletask._model import (
    Claims,
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
    Unit,
    UnitOutcome,
)
from durabletask._storage import Hints, ProcessStorage, Transactions
from durabletask.testing._history_file import History
from durabletask.testing._history_lines import (
    commit_line,
    committed_line,
    create_line,
    created_line,
    deliver_line,
    delivered_line,
    phase_of,
    request_line,
    requested_line,
    taken_of,
)
from durabletask.testing._history_records import (
    AnyOperation,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    Phase,
    Purge,
    Renew,
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
    hears of it. Hints and transactions go through if the wrapped storage has any.
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
        if isinstance(storage, Transactions):
            self._transactions = storage
            self.create_in = self._create_in
            self.deliver_in = self._deliver_in
            self.transact = self._transact

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; see `ProcessStorage`."""
        host_id = "" if lease is None else lease.host_id
        return await self._ask(
            [create_line(new, host_id) for new in processes],
            lambda: self._storage.create(processes, lease),
            lambda answers: [created_line(each, host_id) for each in answers],
        )

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes; see `ProcessStorage`."""
        return await self._ask(
            [deliver_line(event) for event in events],
            lambda: self._storage.deliver(events, mailbox_max=mailbox_max),
            lambda answers: [delivered_line(each) for each in answers],
        )

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        """Ask something of processes; see `ProcessStorage`."""
        return await self._ask(
            [request_line(control) for control in controls],
            lambda: self._storage.request(controls),
            lambda answers: [requested_line(each) for each in answers],
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
            lambda answers: [Purge(phase=phase_of(each), why=each or "") for each in answers],
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
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        """Take claimable processes; see `ProcessStorage`."""
        asked = Claim(
            phase=Phase.INVOKE, host_id=lease.host_id, claim_id=claim_id, count_max=count_max
        )
        return await self._ask(
            [asked],
            lambda: self._storage.claim(lease, claim_id, names, count_max=count_max, rooms=rooms),
            lambda claims: [Claim(phase=Phase.OK, taken=taken_of(claims))],
        )

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units; see `ProcessStorage`."""
        return await self._ask(
            [commit_line(unit, lease.host_id) for unit in units],
            lambda: self._storage.commit(lease, units),
            lambda outcomes: [committed_line(each) for each in outcomes],
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

    # --- in transactions of the user's -------------------------------------------------------

    async def _create_in(self, connection: Any, process: NewProcess) -> Created:
        """Create a process; whether it is there is for the user's transaction to decide."""
        return await self._ask(
            [create_line(process, "")],
            lambda: self._transactions.create_in(connection, process),
            lambda answer: [Create(phase=Phase.INFO if answer.refused is None else Phase.FAIL)],
        )

    async def _deliver_in(self, connection: Any, event: NewEvent, *, mailbox_max: int) -> Delivered:
        """Deliver an event; whether it arrives is for the user's transaction to decide."""
        return await self._ask(
            [deliver_line(event)],
            lambda: self._transactions.deliver_in(connection, event, mailbox_max=mailbox_max),
            lambda answer: [Deliver(phase=Phase.INFO if answer.refused is None else Phase.FAIL)],
        )

    async def _transact(
        self, lease: Lease, unit: Unit, body: Callable[[Any], Awaitable[bytes]]
    ) -> UnitOutcome:
        """Run a body and record its result; nothing is asked before there is one."""
        calls: list[int] = []

        async def recorded(connection: Any) -> bytes:
            payload = await body(connection)
            (checkpoint,) = unit.checkpoints
            whole = msgspec.structs.replace(checkpoint, payload=payload)
            asked = msgspec.structs.replace(unit, checkpoints=(whole,))
            calls.append(self._history.next_call())
            self._write(calls[-1:], [commit_line(asked, lease.host_id)])
            return payload

        try:
            outcome = await self._transactions.transact(lease, unit, recorded)
        except BaseException as error:
            # What is no error of a storage is the user's, with which all was rolled back.
            undone = isinstance(error, Exception) and not isinstance(error, StorageError)
            failed = undone or isinstance(error, NOTHING_WRITTEN)
            phase, why = Phase.FAIL if failed else Phase.INFO, f"{type(error).__name__}: {error}"
            self._write(calls[-1:], [Commit(phase=phase, why=why)] * len(calls[-1:]))
            raise
        self._write(calls[-1:], [committed_line(outcome)] * len(calls[-1:]))
        return outcome

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
