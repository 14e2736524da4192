"""All that is in memory of a store: the unfinished processes, and who may run them.

Changed by records only, with the same code when a record is written and when
it is read again. Knows no files; a place in them is a number (`Proc.spot`).
"""

from array import array
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from sys import intern

from durabletask.storage import CLAIMABLE, FINISHED, Leave, Status
from durabletask_filesystem._records import (
    ClaimRecord,
    EndRecord,
    EventRecord,
    LeaseRecord,
    NewRecord,
    PurgeRecord,
    Record,
    StateRecord,
    UnitRecord,
    to_ending,
)
from durabletask_filesystem._state import (
    BORN_SHIFT,
    OFFSET_MASK,
    SEGMENT_SHIFT,
    Proc,
    add_key,
    slot,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Return whole microseconds since 1970."""
    return (moment - EPOCH) // _MICROSECOND


Due = tuple[datetime, str, int, Proc]
"""Since or from when a process is claimable; equals by id, then anyhow."""


class Table:
    """The state of a store.

    Attributes:
        procs: Every process that has not finished, by id.
        gone: Spots of those finished or purged since the last sealing, by id.
        hosts: Labels of the hosts whose lease is open, by identity.
        news: Ids of held processes with an event that the owner has not heard of.
        damage: What is wrong with a process, by id.
        dead: Bytes known to be of no use any more, by number of segment.
        latest: Time of the last record; the clock may be set back, the store's time may not.
        ended: Identities of the hosts whose lease has ended.
        births: Microseconds since 1970 and offset of each creation in the active segment.
    """

    def __init__(self) -> None:
        self.procs: dict[str, Proc] = {}
        self.gone: dict[str, int] = {}
        self.hosts: dict[str, str] = {}
        self.news: dict[str, None] = {}
        self.damage: dict[str, str] = {}
        self.births: tuple[array[int], array[int]] = (array("q"), array("I"))
        self.dead: dict[int, int] = {}
        self.latest = EPOCH
        self.ended: set[str] = set()
        # By name. Entries are never removed, only recognised as stale.
        self._due: dict[str, list[Due]] = {}
        self._ties = count()

    # --- records -------------------------------------------------------------------------

    def replay(self, record: Record, number: int, offset: int) -> None:
        """Apply a record that is at this place."""
        at = getattr(record, "at", None)
        if at is not None and at > self.latest:
            self.latest = at
        match record:
            case UnitRecord():
                proc = self.procs.get(record.id)
                if proc is not None and proc.incarnation == record.incarnation:
                    self.apply_unit(proc, record, number, offset)
                elif record.state is not None:
                    self.gone[record.id] = _spot(self.gone.get(record.id, 0), number, offset)
            case NewRecord():
                self.apply_new(record, number, offset)
            case EventRecord():
                proc = self.procs.get(record.id)
                if proc is not None and proc.incarnation == record.incarnation:
                    self.apply_event(proc, record, number, offset)
            case ClaimRecord():
                self.apply_claim(record, number)
            case EndRecord():
                self.apply_end(record, number)
            case LeaseRecord():
                self.hosts[record.host] = record.label
            case PurgeRecord():
                self.apply_purge(record, number, offset)
            case StateRecord():
                self.apply_state(record, number)
            case _:
                pass  # heads and batches frame the others

    def apply_new(self, record: NewRecord, number: int, offset: int) -> Proc:
        """A process is created."""
        at = record.at
        spot = number << SEGMENT_SHIFT | offset << BORN_SHIFT | offset
        proc = Proc(
            record.id,
            intern(record.name),
            Status.RUNNING,
            at,
            at,
            record.incarnation,
            start_at=record.start_at,
            spot=spot,
        )
        self.procs[record.id] = proc
        self.gone.pop(record.id, None)
        self.damage.pop(record.id, None)
        self.births[0].append(micros(at))
        self.births[1].append(offset)
        if record.host is not None:
            proc.owner = record.host
            proc.epoch = 1
            proc.started_at = at
        else:
            self.make_due(proc, max(at, record.start_at or at))
        return proc

    def apply_unit(self, proc: Proc, unit: UnitRecord, number: int, offset: int) -> None:
        """A unit is written; nothing of it can be refused any more."""
        proc.seq = unit.seq
        proc.epoch = unit.epoch
        proc.updated_at = unit.at
        proc.deaths = 0
        spot = proc.spot
        if spot >> SEGMENT_SHIFT == number:
            proc.spot = (spot & ~OFFSET_MASK) | offset
        else:
            proc.spot = number << SEGMENT_SHIFT | offset
        keys = proc.keys
        if keys is not None:
            for each in unit.checkpoints:
                keys = add_key(keys, slot(each.kind, each.key, each.index))
            proc.keys = keys
        if unit.consumes and proc.mail is not None:
            for position in unit.consumes:
                proc.mail.pending.pop(position, None)
        if unit.status is not None:
            proc.status = unit.status
            proc.wake_at = unit.wake_at
        if unit.ending is not None:
            self._end(proc, unit)
        elif unit.leave is not None:
            self._leave(proc, unit.leave, unit.at)

    def _end(self, proc: Proc, unit: UnitRecord) -> None:
        ending = unit.ending
        assert ending is not None
        proc.status = ending.status
        proc.owner = proc.wake_at = proc.due_at = proc.keys = proc.mail = None
        self.news.pop(proc.id, None)
        if ending.status in FINISHED:
            proc.finished_at = unit.at
            del self.procs[proc.id]
            self.gone[proc.id] = proc.spot
        else:
            proc.ending = to_ending(ending)

    def _leave(self, proc: Proc, leave: Leave, at: datetime) -> None:
        proc.parked = leave is Leave.PARKED
        proc.owner = proc.keys = proc.mail = None
        self.news.pop(proc.id, None)
        if proc.status in CLAIMABLE:
            self.make_due(proc, proc.wake_at if proc.parked else at)

    def apply_event(self, proc: Proc, event: EventRecord, number: int, offset: int) -> None:
        """An event arrives."""
        proc.spot = _spot(proc.spot, number, offset)
        proc.events = event.position
        if proc.mail is not None:
            proc.mail.ids[hash(event.event_id)] = event.position
            proc.mail.pending[event.position] = None
        if proc.owner is not None:
            self.news[proc.id] = None
        elif proc.parked:
            proc.parked = False
            if proc.status in CLAIMABLE:
                self.make_due(proc, event.at)

    def apply_claim(self, claim: ClaimRecord, number: int) -> None:
        """A host takes processes."""
        for process_id, epoch in claim.taken:
            proc = self.procs.get(process_id)
            if proc is None:
                continue  # its creation is unreadable; `damage` says so
            proc.epoch = epoch
            proc.seq = 0
            proc.owner = claim.host
            proc.parked = False
            proc.due_at = None
            proc.started_at = proc.started_at or claim.at
            proc.updated_at = claim.at
            proc.spot = _touched(proc.spot, number)

    def apply_end(self, end: EndRecord, number: int) -> None:
        """A lease ends."""
        self.hosts.pop(end.host, None)
        self.ended.add(end.host)
        for process_id in end.held:
            proc = self.procs.get(process_id)
            if proc is None:
                continue
            if end.dead and not proc.seq:
                proc.deaths += 1
            proc.owner = proc.keys = proc.mail = None
            proc.parked = False
            proc.updated_at = end.at
            proc.spot = _touched(proc.spot, number)
            self.news.pop(process_id, None)
            if proc.status in CLAIMABLE:
                self.make_due(proc, end.at)

    def apply_purge(self, record: PurgeRecord, number: int, offset: int) -> None:
        """A finished process is removed; its creation, if it is here, is no birth any more."""
        self.gone[record.id] = number << SEGMENT_SHIFT | offset
        self.damage.pop(record.id, None)

    def apply_state(self, record: StateRecord, number: int) -> None:
        """A process stands where compaction says."""
        earlier = self.procs.get(record.id)
        proc = record.state
        proc.spot = _touched(earlier.spot if earlier else 0, number)
        self.adopt(proc)

    def adopt(self, proc: Proc) -> None:
        """Take a process as it stands in an index."""
        proc.name = intern(proc.name)
        self.procs[proc.id] = proc
        if proc.due_at is not None:
            self.make_due(proc, proc.due_at)

    def note_damage(self, process_id: str, what: str, number: int, offset: int) -> None:
        """A record of this process cannot be read; its history leads there, and fails there."""
        self.damage[process_id] = what
        proc = self.procs.get(process_id)
        if proc is not None:
            proc.spot = _spot(proc.spot, number, offset)

    # --- what is due ---------------------------------------------------------------------

    def make_due(self, proc: Proc, due_at: datetime | None) -> None:
        """Make a process claimable from a moment on, or not at all."""
        proc.due_at = due_at
        if due_at is not None:
            heap = self._due.setdefault(proc.name, [])
            heappush(heap, (due_at, proc.id, next(self._ties), proc))

    def take_due(self, names: Iterable[str], now: datetime, count_max: int) -> list[Proc]:
        """Return up to `count_max` processes of these names, longest claimable first.

        They are no longer due; whoever calls claims them.
        """
        heaps = self._heaps(names)
        taken: list[Proc] = []
        while len(taken) < count_max:
            heap = min(heaps, key=_first, default=None)
            if heap is None or heap[0][0] > now:
                break
            proc = heappop(heap)[3]
            proc.due_at = None
            taken.append(proc)
            heaps = [each for each in heaps if self._fresh(each)]
        return taken

    def next_due(self, names: Iterable[str]) -> datetime | None:
        """Return when the next process of these names is claimable, past or future."""
        return min((heap[0][0] for heap in self._heaps(names)), default=None)

    def _heaps(self, names: Iterable[str]) -> list[list[Due]]:
        heaps = (self._due.get(name) for name in dict.fromkeys(names))
        return [heap for heap in heaps if heap and self._fresh(heap)]

    def _fresh(self, heap: list[Due]) -> bool:
        """Drop stale entries from the top; return whether one is left."""
        while heap:
            due_at, _, _, proc = heap[0]
            if proc.due_at is due_at and self.procs.get(proc.id) is proc:
                return True
            heappop(heap)
        return False

    # --- sealing -------------------------------------------------------------------------

    def spots(self, number: int) -> Iterator[tuple[str, int]]:
        """Yield id and spot of every process that a segment touches."""
        for process_id, spot in self.gone.items():
            if spot >> SEGMENT_SHIFT == number:
                yield process_id, spot
        for proc in self.procs.values():
            if proc.spot >> SEGMENT_SHIFT == number:
                yield proc.id, proc.spot

    def live(self, number: int) -> list[Proc]:
        """Return the unfinished processes that a segment touches."""
        return [proc for proc in self.procs.values() if proc.spot >> SEGMENT_SHIFT == number]

    def begin_segment(self) -> None:
        """Forget what only the sealed segment's index has to know."""
        self.gone = {}
        self.births = (array("q"), array("I"))


def _first(heap: list[Due]) -> tuple[datetime, str]:
    return heap[0][0], heap[0][1]


def _spot(spot: int, number: int, offset: int) -> int:
    """Return the spot after a record at `offset`."""
    if spot >> SEGMENT_SHIFT == number:
        return spot & ~OFFSET_MASK | offset
    return number << SEGMENT_SHIFT | offset


def _touched(spot: int, number: int) -> int:
    """Return the spot after a change without a record of the process's own."""
    return spot if spot >> SEGMENT_SHIFT == number else number << SEGMENT_SHIFT
