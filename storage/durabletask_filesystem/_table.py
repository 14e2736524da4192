"""All that is in memory of a store: the unfinished processes, and who may run them.

Changed by records only, with the same code when a record is written and when
it is read again. Knows no files; a place in them is a number (`Proc.spot`).
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from sys import intern

from durabletask.storage import CLAIMABLE, FINISHED, REQUESTS_KEPT, Action, Leave, Status
from durabletask_filesystem._family import Family
from durabletask_filesystem._records import (
    ClaimRecord,
    ControlRecord,
    EndingRecord,
    EndRecord,
    EventRecord,
    GroupRecord,
    LeaseRecord,
    NewRecord,
    PurgeRecord,
    Record,
    RestartRecord,
    StateRecord,
    UnitRecord,
    to_ending,
    whole,
)
from durabletask_filesystem._state import (
    BORN_SHIFT,
    OFFSET_MASK,
    SEGMENT_SHIFT,
    Extra,
    Proc,
    Reborn,
    add_key,
    slot,
    within,
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
        held: Owners of those that have ended without them, by id.
        family: Who descends from whom.
        news: Ids of held processes of which there is news that the owner has not heard of.
        stirred: Ids of processes to which another, or somebody outside, has done something.
        damage: What is wrong with a process, by id.
        dead: Bytes known to be of no use any more, by number of segment.
        latest: Time of the last record; the clock may be set back, the store's time may not.
        ended: Identities of the hosts whose lease has ended.
        births: Microseconds since 1970 and offset of each creation in the active segment.
    """

    def __init__(self) -> None:
        self.procs: dict[str, Proc] = {}
        self.gone: dict[str, int] = {}
        self.held: dict[str, str] = {}
        self.family = Family(self.procs)
        self.hosts: dict[str, str] = {}
        self.news: dict[str, None] = {}
        self.stirred: dict[str, None] = {}
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
                    self.apply_release(record, number, offset)
            case NewRecord():
                self.apply_new(record, number, offset)
            case EventRecord():
                proc = self.procs.get(record.id)
                if proc is not None and proc.incarnation == record.incarnation:
                    self.apply_event(proc, record, number, offset)
            case GroupRecord():
                for part in record.parts:
                    self.replay(part, number, offset)
            case RestartRecord():
                proc = self.procs.get(record.id)
                if proc is not None and proc.incarnation == record.incarnation:
                    self.apply_restart(proc, record, number, offset)
            case ControlRecord():
                self.apply_control(record, number, offset)
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
        if record.parent is not None:
            proc.extra = Extra(parent=record.parent)
        self.family.add(proc)
        self.gone.pop(record.id, None)
        self.damage.pop(record.id, None)
        if not self.births[1] or self.births[1][-1] != offset:  # a group is there once
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
        if unit.seq > proc.seq or unit.epoch != proc.epoch:  # else it is late
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
            self._become(proc, unit.status, unit.wake_at)
        if unit.ending is not None:
            proc.owner = None
            self._end(proc, unit.ending)
        elif unit.leave is not None:
            self._leave(proc, unit.leave, unit.at)

    def _become(self, proc: Proc, status: Status, wake_at: datetime | None) -> None:
        proc.wake_at = wake_at
        if proc.status is Status.SUSPENDED:
            proc.change(resumes_as=status)
        else:
            proc.status = status

    def _end(self, proc: Proc, ending: EndingRecord) -> None:
        """A process has its last word; whoever holds it now holds it without it."""
        proc.status = ending.status
        proc.parked = False
        proc.wake_at = proc.due_at = proc.keys = proc.mail = None
        self.news.pop(proc.id, None)
        if ending.status in FINISHED:
            del self.procs[proc.id]
            self.gone[proc.id] = proc.spot
            # Its last word can be read; what cannot is found again by whoever asks for it.
            self.damage.pop(proc.id, None)
            self.family.end(proc)
            if proc.owner is not None:
                self.held[proc.id] = proc.owner
                self.news[proc.id] = None
        else:
            proc.ending = to_ending(ending)

    def apply_release(self, unit: UnitRecord, number: int, offset: int) -> None:
        """What has ended is let go by the host that still held it."""
        self.gone[unit.id] = _spot(self.gone.get(unit.id, 0), number, offset)
        self.held.pop(unit.id, None)
        self.news.pop(unit.id, None)

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
        self._stir(proc, event.at)

    def _stir(self, proc: Proc, at: datetime) -> None:
        """There is something for whoever holds the process, or is to take it."""
        if proc.owner is not None:
            self.news[proc.id] = None
        elif proc.parked:
            proc.parked = False
            self.make_due(proc, at if proc.status in CLAIMABLE else None)

    def apply_restart(self, proc: Proc, record: RestartRecord, number: int, offset: int) -> None:
        """A process begins anew: what was recorded is gone, and its mailbox stays."""
        proc.generation += 1
        proc.epoch, proc.seq = record.epoch, record.seq
        proc.updated_at = record.at
        proc.deaths = 0
        # Its history begins here.
        proc.spot = number << SEGMENT_SHIFT | offset << BORN_SHIFT | offset
        if proc.keys is not None:
            proc.keys = b""
        mail = proc.mail
        if mail is not None:
            for position in [each for each in mail.pending if not within(each, record.pending)]:
                del mail.pending[position]
            for known in [each for each, at in mail.ids.items() if not within(at, record.kept)]:
                del mail.ids[known]
        proc.change(reborn=Reborn(record.epoch, record.seq, proc.events, record.kept))
        if record.met:
            proc.change(cancel_reason=None, cancel_met=False)
        self._become(proc, Status.RUNNING, None)
        if record.leave is not None:
            self._leave(proc, record.leave, record.at)
            proc.mail = mail  # it is claimed next, and need not look for what it had consumed

    def apply_control(self, record: ControlRecord, number: int, offset: int) -> None:
        """Something is asked; nothing of it can be refused any more."""
        if record.action is Action.RETRY:
            self._revive(record, number, offset)
            return
        proc = self.procs.get(record.id)
        if proc is None or proc.incarnation != record.incarnation:
            if record.state is not None:
                self.gone[record.id] = _spot(self.gone.get(record.id, 0), number, offset)
            return
        proc.spot = _spot(proc.spot, number, offset)
        if record.request_id:
            requests = (*proc.more.requests, record.request_id)[-REQUESTS_KEPT:]
            proc.change(requests=requests)
        if record.met:
            proc.change(cancel_met=True)
        if record.action is not None:
            proc.updated_at = record.at
            self._obey(proc, record, record.action)

    def _obey(self, proc: Proc, record: ControlRecord, action: Action) -> None:
        if action is Action.CANCEL:
            proc.change(cancel_reason=whole(record.reason, record.outer))
        if record.ending is not None:
            self._end(proc, record.ending)
        elif action is Action.RESUME:
            self._resume(proc, record.at)
        else:
            if action is Action.SUSPEND:
                reason = whole(record.reason, record.outer)
                proc.change(resumes_as=proc.status, suspend_reason=reason)
                proc.status = Status.SUSPENDED
                proc.due_at = None
            self._stir(proc, record.at)

    def _resume(self, proc: Proc, at: datetime) -> None:
        proc.status = proc.standing
        proc.change(resumes_as=None, suspend_reason=None)
        proc.parked = False
        if proc.owner is not None:
            self.news[proc.id] = None
        elif proc.status in CLAIMABLE:
            self.make_due(proc, max(at, proc.start_at or at))

    def _revive(self, record: ControlRecord, number: int, offset: int) -> None:
        """A process that had failed, or was set aside, goes on."""
        assert record.state is not None
        earlier = self.procs.get(record.id)
        before = earlier.spot if earlier is not None else self.gone.pop(record.id, 0)
        proc = copy(record.state)
        proc.spot = _spot(before, number, offset)
        self.adopt(proc)

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
        # Each was let go by a record of its own, unless what ended it could not be read.
        for process_id in [each for each, owner in self.held.items() if owner == end.host]:
            del self.held[process_id]
            self.news.pop(process_id, None)
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
        self.family.drop(record.id)

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
        self.family.add(proc)
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

    def take_due(
        self, names: Iterable[str], now: datetime, count_max: int, rooms: Mapping[str, int]
    ) -> list[Proc]:
        """Return up to `count_max` processes of these names, longest claimable first.

        They are no longer due; whoever calls claims them. Of a name that is in
        `rooms` there are at most so many among them.
        """
        left = {name: rooms.get(name, count_max) for name in names}
        heaps = self._heaps(name for name in left if left[name] > 0)
        taken: list[Proc] = []
        while len(taken) < count_max:
            heap = min(heaps, key=_first, default=None)
            if heap is None or heap[0][0] > now:
                break
            proc = heappop(heap)[3]
            proc.due_at = None
            taken.append(proc)
            left[proc.name] -= 1
            if not left[proc.name]:
                heaps = [each for each in heaps if each is not heap]
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
