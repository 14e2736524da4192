"""The filesystem store answers as MemoryStorage does, whatever is asked and however it dies.

On the synchronous core and a simulated disk: 4,000 steps with a look at
everything after each are seconds there. That `FileSystemStorage` hands calls
to the core and back unchanged is for the conformance suite to see.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, settings

from durabletask.storage import (
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    ProcessStorage,
    Query,
    Refusal,
    Snapshot,
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock
from durabletask.testing.disk import SimulatedFolder
from durabletask.testing.machine import StorageMachine
from durabletask_filesystem._requests import (
    Ask,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    ListPage,
    OpenLease,
    Purge,
    Read,
    Renew,
    Request,
)
from durabletask_filesystem._store import Store


class CoreStorage:
    """A `ProcessStorage` that asks the core in the caller's own thread."""

    def __init__(self, folder: SimulatedFolder, clock: VirtualClock) -> None:
        self.folder = folder
        self.clock = clock
        self.store = Store.open(folder, clock, segment_bytes_max=2_000, entropy=bytes)

    def ask(self, request: Request) -> Any:
        (answer,) = self.store.apply([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        created: Sequence[Created] = self.ask(Create(tuple(processes), lease))
        return created

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        delivered: Sequence[Delivered] = self.ask(Deliver(tuple(events), mailbox_max))
        return delivered

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        answers: Sequence[Controlled] = self.ask(Ask(tuple(controls)))
        return answers

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        found: Sequence[Snapshot | None] = self.ask(Read(tuple(process_ids), history))
        return found

    async def list(self, query: Query) -> Page:
        page: Page = self.ask(ListPage(query))
        return page

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        refusals: Sequence[Refusal | None] = self.ask(Purge(tuple(process_ids)))
        return refusals

    async def open_lease(self, host_id: str, label: str) -> Lease:
        lease: Lease = self.ask(OpenLease(host_id, label))
        return lease

    async def renew(self, lease: Lease) -> Lease:
        renewed: Lease = self.ask(Renew(lease))
        return renewed

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        claims: Claims = self.ask(
            Claim(lease, claim_id, tuple(names), count_max, dict(rooms or {}))
        )
        return claims

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        outcomes: Sequence[UnitOutcome] = self.ask(Commit(lease, tuple(units)))
        return outcomes

    async def close_lease(self, lease: Lease) -> None:
        self.ask(CloseLease(lease))

    async def close(self) -> None:
        self.store.close()


class FileSystemMachine(StorageMachine):
    """Segments of 2,000 bytes, sealed, merged, killed and opened again as it comes."""

    def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        return CoreStorage(SimulatedFolder(), clock)

    async def reopen(self, storage: ProcessStorage, *, crash: bool) -> ProcessStorage:
        assert isinstance(storage, CoreStorage)
        folder = storage.folder.after_process_crash() if crash else storage.folder
        await storage.close()  # after a crash it writes to a disk that nobody looks at any more
        return CoreStorage(folder, storage.clock)

    async def compact(self, storage: ProcessStorage) -> None:
        assert isinstance(storage, CoreStorage)
        storage.store.compact()


TestFileSystemMachine = FileSystemMachine.TestCase
TestFileSystemMachine.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
