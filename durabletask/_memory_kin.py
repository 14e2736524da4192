"""What one stored process does to others: children, events, and the news of a child's end.

It keeps who is whose child; the processes and the hosts are `MemoryStorage`'s.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

from durabletask._memory_process import Asked, ProcessState
from durabletask._model import (
    CHILD_ENDED,
    DONE,
    NewEvent,
    NewProcess,
    Parent,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask._transitions import FINISHED


class Kin:
    """Parents and children.

    Args:
        processes: All there are.
        begin: Creates a process that does not exist.
        stirred: Told of each process in whose mailbox something was put.
    """

    def __init__(
        self,
        processes: Mapping[str, ProcessState],
        begin: Callable[[NewProcess, datetime], ProcessState],
        stirred: Callable[[ProcessState], None],
    ) -> None:
        self._processes = processes
        self._begin = begin
        self._stirred = stirred
        self._children: dict[str, dict[str, None]] = {}

    def add(self, process: ProcessState) -> None:
        """Remember whose child a process is."""
        if process.parent is not None:
            children = self._children.setdefault(process.parent.process_id, {})
            children[process.process_id] = None

    def remove(self, process: ProcessState) -> None:
        """Forget a process that is purged or replaced."""
        if process.parent is not None:
            children = self._children[process.parent.process_id]
            del children[process.process_id]
            if not children:
                del self._children[process.parent.process_id]

    def unfinished_below(self, process: ProcessState) -> list[ProcessState]:
        """Return the unfinished descendants, also those below a finished one, as `list` would."""
        found: list[ProcessState] = []
        # By id: an id may be created anew below itself, and a line must end.
        seen = {process.process_id}
        rest = [process]
        while rest:
            above = rest.pop()
            for process_id in self._children.get(above.process_id, ()):
                child = self._processes[process_id]
                if _is_child(child, above) and process_id not in seen:
                    seen.add(process_id)
                    rest.append(child)
                    if child.status not in FINISHED:
                        found.append(child)
        found.sort(key=lambda child: (child.created_at, child.process_id))
        return found

    def reach(self, process: ProcessState, unit: Unit, now: datetime) -> UnitOutcome:
        """Spawn and send what a unit spawns and sends: all of it, or say why nothing."""
        names: set[str] = set()
        for new in unit.spawns:
            there = self._processes.get(new.process_id)
            if new.process_id in names or (there is not None and there.parent != new.parent):
                return UnitOutcome(refused=Refusal.OTHER_ORIGIN, culprit=new.process_id)
            names.add(new.process_id)
        if refused := self._refused_send(unit, names):
            return refused
        for new in unit.spawns:
            self._spawn(process, unit, new, now)
        for event in unit.sends:
            receiver = self._processes[event.process_id]
            receiver.deliver(event, now, unit.mailbox_max)
            self._stirred(receiver)
        return DONE

    def _refused_send(self, unit: Unit, born: set[str]) -> UnitOutcome | None:
        coming: dict[str, int] = {}
        for event in unit.sends:
            receiver = self._processes.get(event.process_id)
            if receiver is None and event.process_id not in born:
                return UnitOutcome(refused=Refusal.UNKNOWN_PROCESS, culprit=event.process_id)
            mailbox = None if receiver is None else receiver.mailbox
            if mailbox is not None and mailbox.known(event.event_id):
                continue
            if receiver is not None and receiver.status in FINISHED:
                return UnitOutcome(refused=Refusal.FINISHED, culprit=event.process_id)
            coming[event.process_id] = coming.get(event.process_id, 0) + 1
            waiting = 0 if mailbox is None else len(mailbox.unconsumed)
            if waiting + coming[event.process_id] > unit.mailbox_max:
                return UnitOutcome(refused=Refusal.MAILBOX_FULL, culprit=event.process_id)
        return None

    def _spawn(self, process: ProcessState, unit: Unit, new: NewProcess, now: datetime) -> None:
        there = self._processes.get(new.process_id)
        if there is None:
            child = self._begin(new, now)
            asked = process.asked
            if (
                asked is not None
                and asked.cancel_reason is not None
                and not (asked.cancel_met or unit.meets_cancel)
            ):
                child.asked = Asked(cancel_reason=asked.cancel_reason)
        elif there.status in FINISHED:
            self._tell(there, new.parent, now, f"+{unit.epoch}.{unit.seq}")

    def tell_parent(self, child: ProcessState, now: datetime) -> list[str]:
        """Put the end of a process into its parent's mailbox; return whom there was to tell."""
        if child.status not in FINISHED:
            return []  # set aside, which is no end
        return self._tell(child, child.parent, now, "")

    def _tell(
        self, child: ProcessState, parent: Parent | None, now: datetime, again: str
    ) -> list[str]:
        if parent is None or child.ending is None:
            return []
        above = self._processes.get(parent.process_id)
        if (
            above is None
            or above.incarnation != parent.incarnation
            or above.generation != parent.generation
            or above.status in FINISHED
        ):
            return []
        where = f"{parent.generation}:{parent.key}:{child.incarnation}.{child.epoch}{again}"
        event = NewEvent(
            process_id=parent.process_id,
            event_id=f"{CHILD_ENDED}{where}",
            name=f"{CHILD_ENDED}{child.status}",
            payload=child.ending.payload,
        )
        unbounded = len(above.mailbox.unconsumed) + 1 if above.mailbox is not None else 1
        above.deliver(event, now, unbounded)
        self._stirred(above)
        return [parent.process_id]


def _is_child(child: ProcessState, above: ProcessState) -> bool:
    parent = child.parent
    return parent is not None and (parent.process_id, parent.incarnation) == (
        above.process_id,
        above.incarnation,
    )
