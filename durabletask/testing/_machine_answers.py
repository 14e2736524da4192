"""What of a storage's answers a machine compares, and what is the storage's own choice.

Incarnations are any numbers that rise, and the end of a child has any id that
begins as the seam says: both are left out here, and looked at by `learn`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from durabletask.storage import (
    CHILD_ENDED,
    Checkpoint,
    Claimed,
    Claims,
    Controlled,
    Created,
    Delivered,
    Event,
    Lease,
    ProcessRow,
    Snapshot,
)


def rows_of(answer: Any) -> Iterator[ProcessRow]:
    """Yield the rows in an answer, in the order in which answers are compared."""
    match answer:
        case ProcessRow():
            yield answer
        case Created() | Snapshot() | Claimed() | Controlled():
            yield from rows_of(answer.row)
        case Claims():
            yield from rows_of(_in_order(answer))
        case [*several]:
            for each in several:
                yield from rows_of(each)


def _in_order(claims: Claims) -> list[Claimed]:
    return sorted(claims.claimed, key=lambda each: (each.fresh, each.row.process_id))


def _row(row: ProcessRow) -> ProcessRow:
    parent = row.parent
    if parent is not None:
        parent = msgspec.structs.replace(parent, incarnation=1)
    return msgspec.structs.replace(row, updated_at=row.created_at, incarnation=1, parent=parent)


def _event(event: Event) -> Event:
    if not event.name.startswith(CHILD_ENDED):
        return event
    return msgspec.structs.replace(event, event_id=event.event_id.rpartition(":")[0])


def _history(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return checkpoints in order of their units.

    Which is that of the history, but for a unit that was refused and is written later than
    others of its process: where that stands is the storage's choice.
    """
    return sorted(checkpoints, key=lambda each: (each.epoch, each.seq))


def comparable(answer: Any) -> Any:
    """Return an answer without what is the storage's own choice."""
    match answer:
        case ProcessRow():
            return _row(answer)
        case Event():
            return _event(answer)
        case Created() | Controlled():
            fresh = answer.fresh if isinstance(answer, Created) else False
            return comparable(answer.row), fresh, answer.refused
        case Snapshot():
            events = comparable(answer.events)
            return _row(answer.row), _history(answer.checkpoints), events, answer.forgotten
        case Delivered():
            owner = answer.owner if answer.event else None
            return answer.refused, comparable(answer.event), owner
        case Lease():
            return answer.host_id, answer.label, answer.now_at
        case Claimed():
            events = comparable(answer.events)
            return answer.fresh, _row(answer.row), _history(answer.checkpoints), events
        case Claims():
            next_at = None if answer.more else answer.next_at
            claimed = comparable(_in_order(answer))
            return claimed, answer.now_at, next_at, answer.more
        case [*several]:
            return [comparable(each) for each in several]
        case _:
            return answer
