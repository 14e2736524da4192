"""What can happen to one stored process: the rules of the seam as plain state transitions.

No clock, no leases, no neighbours: time and identities come in as values, and
nothing here can fail halfway. `MemoryStorage` keeps the processes and the
hosts; every other backend is compared with what these two do.
"""

from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

import msgspec

from durabletask._model import (
    CHILD_ENDED,
    DONE,
    EVENTS_KEPT,
    Checkpoint,
    Claimed,
    Delivered,
    Ending,
    Event,
    Leave,
    NewEvent,
    NewProcess,
    Parent,
    Place,
    ProcessRow,
    Refusal,
    Snapshot,
    Status,
    Unit,
    UnitOutcome,
)
from durabletask._transitions import CLAIMABLE, FINISHED, may_follow

_Slot: TypeAlias = tuple[str, str, int]
"""(kind, key, index), what a checkpoint is found by."""

NOT_OWNER = UnitOutcome(refused=Refusal.NOT_OWNER)
BUSY = UnitOutcome(refused=Refusal.BUSY)
_FINISHED = UnitOutcome(refused=Refusal.FINISHED)
_NOT_IN_MAILBOX = UnitOutcome(refused=Refusal.NOT_IN_MAILBOX)
_ILLEGAL = UnitOutcome(refused=Refusal.ILLEGAL_TRANSITION)

_ENDINGS = FINISHED | {Status.QUARANTINED}

_FEW = 4  # searched faster than hashed, and most waiting processes have no more


class Mailbox(msgspec.Struct, gc=False, eq=False):
    """The events of one process; made by its first event, since most processes get none."""

    events: dict[int, Event] = msgspec.field(default_factory=dict)
    positions: dict[str, int] = msgspec.field(default_factory=dict)
    unconsumed: dict[int, Event] = msgspec.field(default_factory=dict)
    last: int = 0

    def known(self, event_id: str) -> Event | None:
        """Return the event that arrived under this id, consumed or not."""
        position = self.positions.get(event_id)
        return None if position is None else self.events[position]

    def add(self, event: Event) -> None:
        """Keep an event, behind all others."""
        self.last = event.position
        self.positions[event.event_id] = event.position
        self.events[event.position] = event
        if not event.consumed:
            self.unconsumed[event.position] = event

    def consume(self, position: int) -> None:
        """Mark an unconsumed event as taken; it stays in the history."""
        event = self.unconsumed.pop(position)
        self.events[position] = msgspec.structs.replace(event, consumed=True)

    def restore(self, position: int) -> None:
        """Put a consumed event back where it was."""
        event = self.events.get(position)
        if event is not None and event.consumed:
            self.events[position] = msgspec.structs.replace(event, consumed=False)
            self.unconsumed = {
                each.position: each for each in self.events.values() if not each.consumed
            }

    def forget(self, keep: int) -> None:
        """Drop the ends of children, and the consumed events but for the latest `keep` of them."""
        consumed = [each for each in self.events.values() if each.consumed]
        untaken = [each for each in self.unconsumed.values() if each.name.startswith(CHILD_ENDED)]
        for event in (*consumed[: max(len(consumed) - keep, 0)], *untaken):
            del self.events[event.position]
            del self.positions[event.event_id]
            self.unconsumed.pop(event.position, None)


class Asked(msgspec.Struct, gc=False):
    """What was asked of a process from outside; made by the first request.

    Attributes:
        status_after: What SUSPENDED stands in front of; None otherwise.
        request_ids: Of the latest requests.
        forgotten: What retries have put aside, in the order recorded.
    """

    cancel_reason: bytes | None = None
    cancel_met: bool = False
    suspend_reason: bytes | None = None
    status_after: Status | None = None
    request_ids: tuple[str, ...] = ()
    forgotten: tuple[Checkpoint, ...] = ()


_NOTHING_ASKED = Asked()


class ProcessState(msgspec.Struct, gc=False, eq=False, kw_only=True):
    """One process; the fields that `ProcessRow` has too mean the same here.

    Attributes:
        claimable_at: Since when, or from when, a host may take it; None while
            it is held, parked without a due time, or in no claimable status.
        news: An event or a request has arrived that its owner has not heard of.
        few: The checkpoints in the order recorded, while there are at most
            four; then they are in `many`, whose order is that too.
    """

    process_id: str
    name: str
    input: bytes
    input_digest: str
    creation_id: str
    created_at: datetime
    updated_at: datetime
    claimable_at: datetime | None
    status: Status = Status.RUNNING
    incarnation: int = 1
    generation: int = 0
    epoch: int = 0
    seq: int = 0
    start_at: datetime | None = None
    started_at: datetime | None = None
    deadline_at: datetime | None = None
    wake_at: datetime | None = None
    finished_at: datetime | None = None
    owner: str | None = None
    owner_label: str | None = None
    parked: bool = False
    news: bool = False
    deaths: int = 0
    tags: dict[str, str] | None = None
    context: bytes | None = None
    parent: Parent | None = None
    ending: Ending | None = None
    few: tuple[Checkpoint, ...] = ()
    many: dict[_Slot, Checkpoint] | None = None
    mailbox: Mailbox | None = None
    asked: Asked | None = None

    # --- what others see -----------------------------------------------------------------

    def row(self) -> ProcessRow:
        """Return the process as the seam shows it; shares nothing that can change."""
        asked = self.asked or _NOTHING_ASKED
        return ProcessRow(
            process_id=self.process_id,
            name=self.name,
            input=self.input,
            input_digest=self.input_digest,
            creation_id=self.creation_id,
            status=self.status,
            created_at=self.created_at,
            updated_at=self.updated_at,
            incarnation=self.incarnation,
            generation=self.generation,
            epoch=self.epoch,
            seq=self.seq,
            start_at=self.start_at,
            started_at=self.started_at,
            deadline_at=self.deadline_at,
            wake_at=self.wake_at,
            finished_at=self.finished_at,
            owner=self.owner,
            owner_label=self.owner_label,
            parked=self.parked,
            deaths=self.deaths,
            tags=dict(self.tags) if self.tags else {},
            context=self.context,
            parent=self.parent,
            ending=self.ending,
            cancel_reason=asked.cancel_reason,
            cancel_met=asked.cancel_met,
            suspend_reason=asked.suspend_reason,
        )

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Return the checkpoints in the order recorded."""
        return self.few if self.many is None else tuple(self.many.values())

    def events(self) -> tuple[Event, ...]:
        """Return every event that arrived, in order of position."""
        return () if self.mailbox is None else tuple(self.mailbox.events.values())

    def unconsumed(self) -> tuple[Event, ...]:
        """Return the mailbox, in order of position."""
        return () if self.mailbox is None else tuple(self.mailbox.unconsumed.values())

    def snapshot(self, *, history: bool) -> Snapshot:
        """Return the row, with the history if asked for."""
        if not history:
            return Snapshot(self.row())
        forgotten = () if self.asked is None else self.asked.forgotten
        return Snapshot(self.row(), self.checkpoints(), self.events(), forgotten)

    def as_claimed(self, *, fresh: bool) -> Claimed:
        """Return the process as a claim hands it out, or as news."""
        checkpoints = self.checkpoints() if fresh else ()
        return Claimed(self.row(), fresh, checkpoints, self.unconsumed())

    # --- ownership -----------------------------------------------------------------------

    def take(self, host_id: str, label: str, now: datetime) -> None:
        """Give the process to a host, under the next epoch."""
        self.epoch += 1
        self.seq = 0
        self.owner, self.owner_label = host_id, label
        self.parked = self.news = False
        self.claimable_at = None
        self.started_at = self.started_at or now
        self.updated_at = now

    def let_go(self, now: datetime, *, died: bool) -> None:
        """Take the process from its owner, which died or closed its lease."""
        if died and not self.seq:  # nothing was recorded since it was claimed
            self.deaths += 1
        self.owner = self.owner_label = None
        self.parked = self.news = False
        self.claimable_at = now if self.status in CLAIMABLE else None
        self.updated_at = now

    # --- events --------------------------------------------------------------------------

    def deliver(self, new: NewEvent, now: datetime, mailbox_max: int) -> Delivered:
        """Put an event into the mailbox, or say why not."""
        mailbox = self.mailbox or Mailbox()
        # Known first: a repeat after a lost answer must find what it wrote, even if the
        # process has ended or its mailbox has filled since.
        if earlier := mailbox.known(new.event_id):
            return Delivered(event=earlier, owner=self.owner)
        if self.status in FINISHED:
            return Delivered(Refusal.FINISHED)
        if len(mailbox.unconsumed) >= mailbox_max:
            return Delivered(Refusal.MAILBOX_FULL)
        event = Event(mailbox.last + 1, new.event_id, new.name, new.payload, now)
        mailbox.add(event)
        self.mailbox = mailbox
        self.stir(now)
        return Delivered(event=event, owner=self.owner)

    def stir(self, now: datetime) -> None:
        """Take note that there is something for whoever holds the process, or is to take it."""
        self.news = self.owner is not None
        if self.parked:
            self.parked = False
            self.claimable_at = now if self.status in CLAIMABLE else None

    # --- units ---------------------------------------------------------------------------

    def apply(
        self,
        host_id: str,
        unit: Unit,
        now: datetime,
        others: "Callable[[ProcessState, Unit, datetime], UnitOutcome] | None" = None,
    ) -> UnitOutcome:
        """Record all of a unit, or nothing of it.

        What is asked first decides: ownership, repeat, finished, held
        checkpoints, mailbox, transition, other processes.

        Args:
            others: Does what the unit does to others, and then answers DONE;
                or does nothing and says why.
        """
        if unit.epoch != self.epoch or unit.incarnation != self.incarnation:
            return NOT_OWNER
        checkpoints = unit.checkpoints
        if unit.seq <= self.seq:
            if not self._was_refused(unit):
                return self._answer_again(unit)
            # Later units have said since how the process stands.
            unit = msgspec.structs.replace(unit, status=None, wake_at=None)
        if self.owner != host_id:
            return _FINISHED if self.status in FINISHED else NOT_OWNER
        if self.status in FINISHED:
            return self._leave_ended(unit, now)
        if checkpoints and (held := self._held(unit)):
            return UnitOutcome(held=held)
        if unit.consumes and not self._has_all(unit.consumes):
            return _NOT_IN_MAILBOX
        if (
            unit.status is not None or unit.ending is not None or unit.restart is not None
        ) and not self._may_become(unit):
            return _ILLEGAL
        if others is not None and (answer := others(self, unit, now)) is not DONE:
            return answer

        # Nothing was written until here; from here on nothing can be refused.
        epoch = self.epoch
        seq = unit.seq
        self.seq = max(self.seq, seq)
        self.updated_at = now
        self.deaths = 0
        for each in checkpoints:
            self.record(
                Checkpoint(
                    each.kind,
                    each.key,
                    each.index,
                    each.form,
                    each.payload,
                    each.replaces,
                    epoch,
                    seq,
                    now,
                )
            )
        if unit.consumes and self.mailbox is not None:
            for position in unit.consumes:
                self.mailbox.consume(position)
        if unit.meets_cancel and self.asked is not None:
            self.asked.cancel_met = self.asked.cancel_reason is not None
        if unit.status is not None:
            self._become(unit.status, unit.wake_at)
        if unit.restart is not None:
            self._restart(unit.restart)
        if unit.ending is not None:
            self.end(unit.ending, now)
            self.owner = self.owner_label = None
        elif unit.leave is not None:
            self._leave(unit.leave, now)
        return DONE

    def _was_refused(self, unit: Unit) -> bool:
        """Return whether nothing is recorded of a unit that reaches others, later ones being."""
        if not (unit.spawns or unit.sends):
            return False
        return not any(self.find(each.kind, each.key, each.index) for each in unit.checkpoints)

    def _answer_again(self, unit: Unit) -> UnitOutcome:
        """Answer a unit that is not newer than the last one applied: written, or overtaken."""
        held = self._held(unit)
        return UnitOutcome(held=held) if held else DONE

    def _held(self, unit: Unit) -> tuple[Checkpoint, ...]:
        """Return the first-wins checkpoints of a unit that another unit has recorded."""
        held: list[Checkpoint] = []
        for each in unit.checkpoints:
            if each.replaces:
                continue
            found = self.find(each.kind, each.key, each.index)
            if found is not None and (found.epoch, found.seq) != (unit.epoch, unit.seq):
                held.append(found)
        return tuple(held)

    def _has_all(self, positions: tuple[int, ...]) -> bool:
        if self.mailbox is None or len(set(positions)) < len(positions):
            return False
        return all(position in self.mailbox.unconsumed for position in positions)

    def _may_become(self, unit: Unit) -> bool:
        status = self.standing
        if unit.status is not None:
            if unit.status not in CLAIMABLE or not may_follow(status, unit.status):
                return False
            status = unit.status
        if unit.restart is not None and not may_follow(status, Status.RUNNING):
            return False
        if unit.ending is None:
            return True
        if self.status is Status.SUSPENDED:
            return False
        return unit.ending.status in _ENDINGS and may_follow(status, unit.ending.status)

    @property
    def standing(self) -> Status:
        """The status, or what SUSPENDED stands in front of."""
        if self.asked is not None and self.asked.status_after is not None:
            return self.asked.status_after
        return self.status

    def _become(self, status: Status, wake_at: datetime | None) -> None:
        self.wake_at = wake_at
        if self.status is Status.SUSPENDED and self.asked is not None:
            self.asked.status_after = status
        else:
            self.status = status

    def _restart(self, input: bytes) -> None:
        self.generation += 1
        self.input = input
        self.few, self.many = (), None
        if self.mailbox is not None:
            self.mailbox.forget(EVENTS_KEPT)
        if self.asked is not None:
            self.asked.forgotten = ()
            if self.asked.cancel_met:
                self.asked.cancel_reason, self.asked.cancel_met = None, False
        self._become(Status.RUNNING, None)

    def end(self, ending: Ending, now: datetime) -> None:
        """Give the process its last word; its owner, if it has one, stays."""
        self.status = ending.status
        self.ending = ending
        self.finished_at = now if ending.status in FINISHED else None
        self.wake_at = self.claimable_at = None
        self.parked = self.news = False
        if self.asked is not None:
            self.asked.suspend_reason = self.asked.status_after = None

    def _leave_ended(self, unit: Unit, now: datetime) -> UnitOutcome:
        """Let the owner let go of what has ended without it; it can write nothing else."""
        if unit.leave is None or unit.checkpoints or unit.ending or unit.spawns or unit.sends:
            return _FINISHED
        self.seq = max(self.seq, unit.seq)
        self.updated_at = now
        self.owner = self.owner_label = None
        self.news = False
        return DONE

    def _leave(self, leave: Leave, now: datetime) -> None:
        # An event that the host has not heard of must not sleep with the process.
        self.parked = leave is Leave.PARKED and not self.news
        self.owner = self.owner_label = None
        self.news = False
        if self.status not in CLAIMABLE:
            self.claimable_at = None
        else:
            self.claimable_at = self.wake_at if self.parked else now

    # --- checkpoints ---------------------------------------------------------------------

    def find(self, kind: str, key: str, index: int) -> Checkpoint | None:
        """Return the checkpoint recorded there, if any."""
        if self.many is not None:
            return self.many.get((kind, key, index))
        for each in self.few:
            if each.key == key and each.index == index and each.kind == kind:
                return each
        return None

    def forget(self, places: tuple[Place, ...]) -> None:
        """Put checkpoints aside; they stay to be seen."""
        wanted = {(each.kind, each.key, each.index) for each in places}
        if not wanted:
            return
        asked = self.asked = self.asked or Asked()
        kept: list[Checkpoint] = []
        for each in self.checkpoints():
            if (each.kind, each.key, each.index) in wanted:
                asked.forgotten = (*asked.forgotten, each)
            else:
                kept.append(each)
        self.few, self.many = (), None
        for each in kept:
            self.record(each)

    def record(self, new: Checkpoint) -> None:
        """Record a checkpoint as the latest, in place of an older one of the same place."""
        earlier = self.find(new.kind, new.key, new.index)
        if earlier is not None:
            if (earlier.epoch, earlier.seq) == (new.epoch, new.seq):
                return  # twice in one unit: the first stands
            if self.many is None:
                self.few = tuple(each for each in self.few if each is not earlier)
            else:
                del self.many[new.kind, new.key, new.index]
        if self.many is not None:
            self.many[new.kind, new.key, new.index] = new
        elif len(self.few) < _FEW:
            self.few = (*self.few, new)
        else:
            self.many = {(each.kind, each.key, each.index): each for each in self.few}
            self.many[new.kind, new.key, new.index] = new
            self.few = ()


def begin(new: NewProcess, now: datetime, incarnation: int) -> ProcessState:
    """Return a process as it begins."""
    start_at = new.start_at
    return ProcessState(
        process_id=new.process_id,
        name=new.name,
        input=new.input,
        input_digest=new.input_digest,
        creation_id=new.creation_id,
        created_at=now,
        updated_at=now,
        claimable_at=now if start_at is None or start_at <= now else start_at,
        incarnation=incarnation,
        start_at=start_at,
        deadline_at=new.deadline_at,
        tags=dict(new.tags) if new.tags else None,
        context=new.context,
        parent=new.parent,
    )
