"""What a unit, or a request, does to other processes: children, events, the news of an end.

Everything is looked up and decided before the first record is made, since what
is being written cannot be read yet.
"""

from datetime import datetime
from typing import NamedTuple

import msgspec

import durabletask_filesystem._records as _records
from durabletask.storage import (
    CHILD_ENDED,
    FINISHED,
    Action,
    Ending,
    NewEvent,
    NewProcess,
    Parent,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask_filesystem._group import Group
from durabletask_filesystem._history import Library
from durabletask_filesystem._log import DamageError
from durabletask_filesystem._mailboxes import Mailboxes, arrival
from durabletask_filesystem._records import ControlRecord
from durabletask_filesystem._state import Proc
from durabletask_filesystem._table import Table


class Birth(NamedTuple):
    """A child to be created."""

    new: NewProcess
    incarnation: int


class Plan(NamedTuple):
    """What a unit does to others: every child is created, or its end is told again; then events."""

    children: tuple[Birth | Proc, ...]
    events: tuple[NewEvent, ...]


class Reach:
    """How one process reaches others."""

    def __init__(self, table: Table, library: Library, mailboxes: Mailboxes) -> None:
        self._table = table
        self._library = library
        self._mailboxes = mailboxes

    # --- deciding ------------------------------------------------------------------------

    def plan(self, unit: Unit) -> Plan | UnitOutcome:
        """Decide what a unit spawns and sends, or why it cannot."""
        children: dict[str, Birth | Proc | None] = {}
        for new in unit.spawns:
            process_id = new.process_id
            try:
                there = self._find(process_id)
                if process_id in children or (
                    there is not None and there.more.parent != new.parent
                ):
                    return UnitOutcome(refused=Refusal.OTHER_ORIGIN, culprit=process_id)
                if there is None:
                    children[process_id] = Birth(new, self.next_incarnation(process_id))
                else:
                    children[process_id] = there if there.status in FINISHED else None
            except DamageError:
                return UnitOutcome(refused=Refusal.BUSY, culprit=process_id)
        events = self._plan_events(unit)
        if isinstance(events, UnitOutcome):
            return events
        return Plan(tuple(each for each in children.values() if each is not None), events)

    def _plan_events(self, unit: Unit) -> tuple[NewEvent, ...] | UnitOutcome:
        coming: dict[str, dict[str, None]] = {}
        counts: dict[str, int] = {}
        events: list[NewEvent] = []
        for event in unit.sends:
            process_id = event.process_id
            try:
                receiver = self._find(process_id)
                refused, is_known = self._look_at(unit, event, receiver, counts)
            except DamageError:
                return UnitOutcome(refused=Refusal.BUSY, culprit=process_id)
            if refused is not None:
                return UnitOutcome(refused=refused, culprit=process_id)
            ids = coming.setdefault(process_id, {})
            if not is_known and event.event_id not in ids:
                ids[event.event_id] = None
                events.append(event)
        return tuple(events)

    def _look_at(
        self, unit: Unit, event: NewEvent, receiver: Proc | None, counts: dict[str, int]
    ) -> tuple[Refusal | None, bool]:
        """Return why a receiver cannot get an event, and whether it has it already."""
        process_id = event.process_id
        waiting = 0
        if receiver is not None:
            if self._mailboxes.earlier(receiver, event.event_id) is not None:
                return None, True
            if receiver.status in FINISHED:
                return Refusal.FINISHED, False
            waiting = len(self._mailboxes.open(receiver).pending)
        elif all(new.process_id != process_id for new in unit.spawns):
            return Refusal.UNKNOWN_PROCESS, False
        counts[process_id] = counts.get(process_id, 0) + 1
        is_full = waiting + counts[process_id] > unit.mailbox_max
        return (Refusal.MAILBOX_FULL if is_full else None), False

    def _find(self, process_id: str) -> Proc | None:
        """Return a process, finished or not.

        Raises:
            DamageError: What there is of it cannot be read.
        """
        proc = self._table.procs.get(process_id)
        if proc is not None:
            return proc
        if process_id in self._table.damage:
            raise DamageError(0, 0, self._table.damage[process_id])
        return self._library.finished(process_id)

    def next_incarnation(self, process_id: str) -> int:
        """Return the incarnation of a process that is not there, once it is created.

        Raises:
            DamageError: What became of the one before cannot be read.
        """
        last = self._library.last_word(process_id)
        return 1 if last is None else last.incarnation + 1

    def prepare(self, proc: Proc) -> None:
        """Read what telling of the end of a process needs."""
        parent = proc.more.parent
        if parent is not None:
            self._mailboxes.try_to_open(self._told(parent))

    def _told(self, parent: Parent) -> Proc | None:
        above = self._table.procs.get(parent.process_id)
        if above is None or (above.incarnation, above.generation) != (
            parent.incarnation,
            parent.generation,
        ):
            return None
        return above

    # --- doing ---------------------------------------------------------------------------

    def carry_out(self, group: Group, proc: Proc, unit: Unit, plan: Plan, now: datetime) -> None:
        """Create the children and send the events of a unit that is about to be written."""
        for child in plan.children:
            if isinstance(child, Proc):
                assert child.ending is not None
                again = f"+{unit.epoch}.{unit.seq}"
                self.tell_parent(group, child, child.ending, now, again)
            else:
                self._bear(group, proc, unit, child, now)
        for event in plan.events:
            receiver = self._table.procs[event.process_id]
            group.add(receiver, arrival(receiver, event, now))
            self._table.stirred[event.process_id] = None

    def _bear(self, group: Group, proc: Proc, unit: Unit, birth: Birth, now: datetime) -> None:
        new, incarnation = birth
        record = _records.creation(new, incarnation, now, None)
        group.add(None, lambda _: record)
        self._table.stirred[new.process_id] = None
        extra = proc.more
        if extra.cancel_reason is None or extra.cancel_met or unit.meets_cancel:
            return
        reason = extra.cancel_reason

        def ask(prev: int) -> ControlRecord:
            return ControlRecord(
                new.process_id,
                incarnation,
                now,
                prev=prev,
                action=Action.CANCEL,
                reason=msgspec.Raw(reason),
                outer=_records.outer_of(reason),
            )

        group.add(self._table.procs[new.process_id], ask)

    def tell_parent(
        self, group: Group, child: Proc, ending: Ending, now: datetime, again: str = ""
    ) -> None:
        """Put the end of a process into the mailbox of its parent, if that is still there."""
        parent = child.more.parent
        above = None if parent is None else self._told(parent)
        if parent is None or above is None or ending.status not in FINISHED:
            return
        where = f"{parent.generation}:{parent.key}:{child.incarnation}.{child.epoch}{again}"
        event = NewEvent(
            process_id=above.id,
            event_id=f"{CHILD_ENDED}{where}",
            name=f"{CHILD_ENDED}{ending.status}",
            payload=ending.payload,
        )
        if above.mail is None or hash(event.event_id) not in above.mail.ids:
            group.add(above, arrival(above, event, now))
            self._table.stirred[above.id] = None
