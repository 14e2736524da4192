"""The storage in memory: for tests, and the model that every other backend is compared with.

Responsible for what lies between processes: batches, hosts, claims, listing,
hints and the snapshot file. What may happen to one process is for
`_memory_process` to say. No method waits inside, so each of them is atomic.
Nothing survives the program unless it is saved.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from heapq import nsmallest
from os import PathLike
from pathlib import Path

from durabletask._clock import Clock, SystemClock
from durabletask._errors import LimitExceededError
from durabletask._memory_hosts import Host, Hosts
from durabletask._memory_kin import Kin
from durabletask._memory_list import check_limit, cursor_after, matches, position, read_cursor
from durabletask._memory_process import BUSY, NOT_OWNER, ProcessState, begin
from durabletask._memory_queue import ClaimQueue
from durabletask._memory_requests import descends, grant, is_known, refusal, remember
from durabletask._memory_save import Saved, bring_back, put_away, read_file, write_file
from durabletask._model import (
    DONE,
    Claimed,
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
from durabletask._transitions import FINISHED

BATCH_MAX = 1_000
"""Of `create`, `read` and `purge`, as the seam says."""

LEASE_TTL_S = 15.0

_SYSTEM_CLOCK = SystemClock()
_Callback = Callable[[str | None], None]


class MemoryStorage:
    """A `ProcessStorage` and `Hints` in this program's memory.

    Any number of hosts may share one object, as they would a database.

    Args:
        clock: The storage's time.
        lease_ttl_s: How long a lease holds unless renewed; None for leases
            without end.
    """

    def __init__(
        self, clock: Clock = _SYSTEM_CLOCK, *, lease_ttl_s: float | None = LEASE_TTL_S
    ) -> None:
        self._clock = clock
        self._latest = clock.now()
        self._processes: dict[str, ProcessState] = {}
        self._purged: dict[str, int] = {}
        self._queue = ClaimQueue(self._processes)
        self._kin = Kin(self._processes, self._begin, self._stirred)
        self._hosts = Hosts(lease_ttl_s)
        self._subscribers: dict[object, tuple[asyncio.AbstractEventLoop, _Callback]] = {}
        self._busy: Counter[str] = Counter()

    # --- any client ----------------------------------------------------------------------

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; an id that exists is answered with what is there."""
        _check_size("create", processes)
        host = None if lease is None else self._hosts.holding(lease)
        now = self._now()
        answers = [self._create(new, host, now) for new in processes]
        free = [each.row for each in answers if each.fresh and each.row and not each.row.owner]
        self._hint([row.process_id for row in free])
        return answers

    def _create(self, new: NewProcess, host: Host | None, now: datetime) -> Created:
        if self._busy[new.process_id]:
            return Created(None, refused=Refusal.BUSY)
        there = self._processes.get(new.process_id)
        if there is not None and not (
            new.replace
            and there.status in FINISHED
            and there.creation_id != new.creation_id  # else a repeat would replace its own
        ):
            return Created(there.row(), there.creation_id == new.creation_id)
        if there is not None and there.owner is not None:
            return Created(None, refused=Refusal.BUSY)  # terminated, and not let go
        process = self._begin(new, now)
        if host is not None and process.claimable_at == now:
            process.take(host.host_id, host.label, now)
        return Created(process.row(), True)

    def _begin(self, new: NewProcess, now: datetime) -> ProcessState:
        there = self._processes.get(new.process_id)
        before = self._purged.pop(new.process_id, 0) if there is None else there.incarnation
        if there is not None:
            self._kin.remove(there)
        process = begin(new, now, before + 1)
        self._processes[new.process_id] = process
        self._kin.add(process)
        self._queue.push(process)
        return process

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes, in the given order."""
        now = self._now()
        answers = [self._deliver(event, now, mailbox_max) for event in events]
        self._hint(
            [each.process_id for each, answer in zip(events, answers, strict=True) if answer.event]
        )
        return answers

    def _deliver(self, event: NewEvent, now: datetime, mailbox_max: int) -> Delivered:
        if self._busy[event.process_id]:
            return Delivered(Refusal.BUSY)
        process = self._processes.get(event.process_id)
        if process is None:
            return Delivered(Refusal.UNKNOWN_PROCESS)
        answer = process.deliver(event, now, mailbox_max)
        self._stirred(process)
        return answer

    def _stirred(self, process: ProcessState) -> None:
        """Take note of what may have become claimable, or news to its owner."""
        self._queue.push(process)
        host = None if process.owner is None else self._hosts.get(process.owner)
        if host is not None and process.news:
            host.news[process.process_id] = None

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        """Ask something of processes, in the given order."""
        _check_size("request", controls)
        now = self._now()
        return [self._request(control, now) for control in controls]

    def _request(self, control: Control, now: datetime) -> Controlled:
        if self._busy[control.process_id]:
            return Controlled(Refusal.BUSY)
        process = self._processes.get(control.process_id)
        if process is None:
            return Controlled(Refusal.UNKNOWN_PROCESS)
        if is_known(process, control):
            return Controlled(row=process.row())
        if (refused := refusal(process, control)) is not None:
            return Controlled(refused)
        descendants = self._kin.unfinished_below(process) if descends(process, control) else []
        touched = [each.process_id for each in descendants]
        touched += [each.parent.process_id for each in (process, *descendants) if each.parent]
        if any(self._busy[process_id] for process_id in touched):
            return Controlled(Refusal.BUSY)
        remember(process, control)
        told: list[str | None] = [process.process_id, *(each.process_id for each in descendants)]
        ended = [each for each in (process, *descendants) if grant(each, control, now)]
        for each in ended:  # all of them by now, so that none is told of another
            told += self._kin.tell_parent(each, now)
        for each in (process, *descendants):
            self._stirred(each)
        self._hint(told)
        return Controlled(row=process.row())

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        """Read processes; None where there is no such id."""
        _check_size("read", process_ids)
        found = [self._processes.get(process_id) for process_id in process_ids]
        return [None if each is None else each.snapshot(history=history) for each in found]

    async def list(self, query: Query) -> Page:
        """List processes in order of creation."""
        check_limit(query)
        behind = None if query.cursor is None else read_cursor(query.cursor)
        found = (
            each
            for each in self._processes.values()
            if (behind is None or position(each) > behind) and matches(each, query)
        )
        page = nsmallest(query.limit + 1, found, key=position)
        more = len(page) > query.limit
        page = page[: query.limit]
        return Page(tuple(each.row() for each in page), cursor_after(page[-1]) if more else None)

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        """Remove finished processes with everything of theirs."""
        _check_size("purge", process_ids)
        return [self._purge(process_id) for process_id in process_ids]

    def _purge(self, process_id: str) -> Refusal | None:
        if self._busy[process_id]:
            return Refusal.BUSY
        process = self._processes.get(process_id)
        if process is None:
            return Refusal.UNKNOWN_PROCESS
        if process.status not in FINISHED:
            return Refusal.NOT_FINISHED
        if process.owner is not None:
            return Refusal.BUSY  # terminated, and not let go
        self._kin.remove(process)
        del self._processes[process_id]
        self._purged[process_id] = process.incarnation
        return None

    # --- hosts ---------------------------------------------------------------------------

    async def open_lease(self, host_id: str, label: str) -> Lease:
        """Begin a host's right to write, or prolong it."""
        return self._hosts.open(host_id, label, self._now())

    async def renew(self, lease: Lease) -> Lease:
        """Prolong a lease."""
        host = self._hosts.holding(lease)
        return self._hosts.open(host.host_id, host.label, self._now())

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
        host = self._hosts.holding(lease)
        now = self._now()
        for other in self._hosts.ended(now):
            if other is not host:
                self._fence(other.host_id, now, died=True)
        if claim_id not in host.claims:
            self._claim(host, claim_id, names, count_max, rooms or {}, now)
        claimed = self._handed_out(host, claim_id)
        counts = Counter(each.row.name for each in claimed if each.fresh)
        next_at = self._queue.next_at(_with_room(names, rooms or {}, counts))
        more = next_at is not None and next_at <= now
        return Claims(claimed, now, None if more else next_at, more)

    def _claim(
        self,
        host: Host,
        claim_id: str,
        names: Sequence[str],
        count_max: int,
        rooms: Mapping[str, int],
        now: datetime,
    ) -> None:
        news = tuple(each.process_id for each in self._held(host, host.news) if each.news)
        host.news.clear()
        for process_id in news:
            self._processes[process_id].news = False
        taken: list[tuple[str, int, int]] = []
        counts: Counter[str] = Counter()
        while len(taken) < count_max:
            process = self._queue.pop(_with_room(names, rooms, counts), now)
            if process is None:
                break
            counts[process.name] += 1
            process.take(host.host_id, host.label, now)
            taken.append((process.process_id, process.incarnation, process.epoch))
        host.remember(claim_id, tuple(taken), news)

    def _handed_out(self, host: Host, claim_id: str) -> tuple[Claimed, ...]:
        """Return what a claim took and heard, as far as the host still holds it."""
        taken, news = host.claims[claim_id]
        still = {
            process.process_id: process
            for process in self._held(host, [process_id for process_id, _, _ in taken])
        }
        fresh = [
            still[process_id].as_claimed(fresh=True)
            for process_id, incarnation, epoch in taken
            if process_id in still
            and (still[process_id].incarnation, still[process_id].epoch) == (incarnation, epoch)
        ]
        return (*fresh, *(each.as_claimed(fresh=False) for each in self._held(host, news)))

    def _held(self, host: Host, process_ids: Iterable[str]) -> Iterable[ProcessState]:
        for process_id in process_ids:
            process = self._processes.get(process_id)
            if process is not None and process.owner == host.host_id:
                yield process

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units of processes that the lease holds, in one go."""
        host_id = self._hosts.holding(lease).host_id
        now = self._now()
        processes = self._processes
        outcomes = []
        told: list[str | None] = []
        # Of the processes that have a unit refused as busy, so that no later one overtakes it.
        busy: set[str] | None = set() if self._busy.total() else None
        for unit in units:
            if busy is not None and (unit.process_id in busy or self._is_busy(unit)):
                busy.add(unit.process_id)
                outcomes.append(BUSY)
                continue
            process = processes.get(unit.process_id)
            if process is None:
                outcomes.append(NOT_OWNER)
                continue
            reaches = unit.spawns or unit.sends
            outcome = process.apply(host_id, unit, now, self._kin.reach if reaches else None)
            outcomes.append(outcome)
            if outcome is not DONE:
                continue
            if reaches:
                told += [child.process_id for child in unit.spawns]
                told += [event.process_id for event in unit.sends]
            if unit.ending is not None and process.parent is not None:
                told += self._kin.tell_parent(process, now)
            if unit.leave is not None or unit.ending is not None:
                self._queue.push(process)
                told.append(unit.process_id)
        self._hint(told)
        return outcomes

    def _is_busy(self, unit: Unit) -> bool:
        """Return whether a process that the unit writes to is held."""
        touched = [unit.process_id]
        touched += [child.process_id for child in unit.spawns]
        touched += [event.process_id for event in unit.sends]
        process = self._processes.get(unit.process_id)
        if unit.ending is not None and process is not None and process.parent is not None:
            touched.append(process.parent.process_id)
        return any(self._busy[process_id] for process_id in touched)

    async def close_lease(self, lease: Lease) -> None:
        """End a lease; what it still holds is claimable at once, without a death."""
        if self._hosts.get(lease.host_id) is not None:
            self._fence(lease.host_id, self._now(), died=False)

    async def close(self) -> None:
        """Do nothing: there is nothing to give back, and the data stays."""

    # --- hints ---------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Call back on the caller's loop when something may have changed."""
        token = object()
        self._subscribers[token] = asyncio.get_running_loop(), callback

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    def _hint(self, process_ids: Sequence[str | None]) -> None:
        if not process_ids:
            return
        for token, (loop, _) in self._subscribers.items():
            loop.call_soon(self._tell, token, process_ids)

    def _tell(self, token: object, process_ids: Sequence[str | None]) -> None:
        for process_id in process_ids:
            if token not in self._subscribers:
                return
            self._subscribers[token][1](process_id)

    # --- for tests, and the snapshot -----------------------------------------------------

    @contextmanager
    def hold(self, process_id: str) -> Iterator[None]:
        """Let every write to a process be refused as busy, as an open transaction would.

        It need not exist yet. It is claimed and read as ever.
        """
        self._busy[process_id] += 1
        try:
            yield
        finally:
            self._busy[process_id] -= 1

    def fence(self, host_id: str) -> None:
        """End a host's right to write as if its lease had ended: what it held lost its owner."""
        self._fence(host_id, self._now(), died=True)

    def crash(self) -> None:
        """Do what a crash of everything does: no host survives it, what was answered does."""
        for host in self._hosts:
            self.fence(host.host_id)

    def claimable_since(self, names: Sequence[str]) -> tuple[datetime, ...]:
        """Return since when each process is claimable that a claim of these names could take."""
        now = self._now()
        return tuple(
            sorted(
                each.claimable_at
                for each in self._processes.values()
                if each.name in names and each.claimable_at is not None and each.claimable_at <= now
            )
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into a JSON file, durably, replacing it as a whole.

        Raises:
            OSError: It cannot be written; the file is as it was.
        """
        write_file(
            Path(path),
            Saved(
                processes=tuple(put_away(each) for each in self._processes.values()),
                purged=self._purged,
                fenced=(*sorted(self._hosts.fenced), *(host.host_id for host in self._hosts)),
            ),
        )

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        clock: Clock = _SYSTEM_CLOCK,
        *,
        lease_ttl_s: float | None = LEASE_TTL_S,
    ) -> "MemoryStorage":
        """Return a storage with what a file of `save` holds.

        The hosts of that time are gone: what they held is claimable, and
        counts a death where nothing had been recorded since it was claimed.

        Raises:
            StorageFormatError: The file is no snapshot, or one of a newer version.
            StorageCorruptError: It is a snapshot but cannot be read.
            OSError: It cannot be opened.
        """
        saved = read_file(Path(path))
        storage = cls(clock, lease_ttl_s=lease_ttl_s)
        storage._purged = dict(saved.purged)
        storage._hosts.fenced.update(saved.fenced)
        storage._bring_back(saved)
        return storage

    def _bring_back(self, saved: Saved) -> None:
        now = self._now()
        for each in saved.processes:
            process = bring_back(each)
            if process.owner is not None:
                process.let_go(now, died=True)
            self._processes[process.process_id] = process
            self._kin.add(process)
            self._queue.push(process)

    def _fence(self, host_id: str, now: datetime, *, died: bool) -> None:
        self._hosts.fence(host_id)
        for process in self._processes.values():
            if process.owner == host_id:
                process.let_go(now, died=died)
                self._queue.push(process)
        self._hint([None])

    def _now(self) -> datetime:
        """Return the storage's time; where the clock is set back it stands, and nothing is lost.

        What was released "now" would otherwise not be claimable until then.
        """
        self._latest = max(self._latest, self._clock.now())
        return self._latest


def _with_room(
    names: Iterable[str], rooms: Mapping[str, int], counts: Mapping[str, int]
) -> Iterable[str]:
    """Return the names of which more may be taken than so many."""
    return [name for name in names if name not in rooms or counts[name] < rooms[name]]


def _check_size(what: str, batch: Sequence[object]) -> None:
    if len(batch) > BATCH_MAX:
        raise LimitExceededError(
            f"{what} takes at most {BATCH_MAX:,} at once, not {len(batch):,}; nothing was written",
            hint="split the batch",
        )
