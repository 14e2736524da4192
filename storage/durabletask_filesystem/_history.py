"""Reading what is on disk of a process: its row, its history, or that it is gone.

A process's records lie in one or more segments, chained backwards within each;
the newest segment is found from memory, the older ones by their indexes. A
hash is only a hint: what is found is read, and must name the process.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from durabletask.storage import Checkpoint, Event, Kind, ProcessRow
from durabletask_filesystem._frames import OVERHEAD_BYTES
from durabletask_filesystem._index import id_hash
from durabletask_filesystem._log import DamageError, Log, Segment
from durabletask_filesystem._records import (
    EventRecord,
    NewRecord,
    PurgeRecord,
    Record,
    UnitRecord,
    decode,
    to_checkpoint,
    to_ending,
    to_event,
    whole,
)
from durabletask_filesystem._state import (
    BORN_SHIFT,
    OFFSET_MASK,
    SEGMENT_SHIFT,
    Mail,
    Proc,
    add_key,
    slot,
)
from durabletask_filesystem._table import Table

Trail = NewRecord | UnitRecord | EventRecord


class History(NamedTuple):
    """What was recorded of one process, in the order recorded."""

    creation: NewRecord
    checkpoints: tuple[Checkpoint, ...]
    events: tuple[Event, ...]


class Library:
    """Finds records by process."""

    def __init__(self, log: Log, table: Table) -> None:
        self._log = log
        self._table = table

    # --- places --------------------------------------------------------------------------

    def read(self, segment: Segment, offset: int) -> Record:
        """Return the record at a place.

        Raises:
            DamageError: It is broken, or intact and unreadable.
        """
        payload = self._log.payload(segment, offset)
        try:
            return decode(payload)
        except msgspec.DecodeError as error:
            raise DamageError(segment.number, offset, f"unreadable record: {error}") from error

    def _places(self, process_id: str, spot: int) -> "list[tuple[Segment, int, int]]":
        """Return where records may be, newest first: segment, last offset, creation offset."""
        log = self._log
        places = []
        if spot >> SEGMENT_SHIFT == log.number and spot & OFFSET_MASK:
            places.append((log.active, spot & OFFSET_MASK, spot >> BORN_SHIFT & OFFSET_MASK))
        if len(log.segments) > 1:
            wanted = id_hash(process_id)
            for segment in reversed(log.segments[:-1]):
                assert segment.index is not None
                for last, born in segment.index.find(wanted):
                    if last:
                        places.append((segment, last, born))
        return places

    def last_word(self, process_id: str) -> UnitRecord | PurgeRecord | None:
        """Return the record that ended or purged a process, or None if there is no such process.

        Only for ids that are not among the unfinished.

        Raises:
            DamageError: The record cannot be read.
        """
        for segment, last, _ in self._places(process_id, self._table.gone.get(process_id, 0)):
            record = self.read(segment, last)
            if isinstance(record, UnitRecord | PurgeRecord) and record.id == process_id:
                return record
        return None

    def finished(self, process_id: str) -> Proc | None:
        """Return a finished process; None if there is none, or it was purged."""
        record = self.last_word(process_id)
        if not isinstance(record, UnitRecord) or record.state is None:
            return None
        return _as_finished(record)

    def creation(self, proc: Proc) -> NewRecord:
        """Return the record of a process's creation.

        Raises:
            DamageError: It cannot be read, or is not there.
        """
        spot = proc.spot or self._table.gone.get(proc.id, 0)
        for segment, _, born in self._places(proc.id, spot):
            if born:
                record = self.read(segment, born)
                if isinstance(record, NewRecord) and record.id == proc.id:
                    return record
        raise DamageError(self._log.number, 0, f"the creation of {proc.id!r} is not there")

    def trail(self, proc: Proc) -> list[Trail]:
        """Return all records of a process, oldest first, beginning with its creation.

        Raises:
            DamageError: One of them cannot be read.
        """
        records = [record for record, _, _ in self._walk(proc)]
        records.reverse()
        return records

    def weigh(self, proc: Proc) -> dict[int, int]:
        """Return how many bytes a process takes, by number of segment.

        Raises:
            DamageError: A record cannot be read.
        """
        weights: dict[int, int] = {}
        for _, segment, offset in self._walk(proc):
            size = len(self._log.payload(segment, offset)) + OVERHEAD_BYTES
            weights[segment.number] = weights.get(segment.number, 0) + size
        return weights

    def _walk(self, proc: Proc) -> Iterator[tuple[Trail, Segment, int]]:
        """Yield the records of a process with their places, newest first, back to its creation."""
        spot = proc.spot or self._table.gone.get(proc.id, 0)
        for segment, last, _ in self._places(proc.id, spot):
            offset = last
            while offset:
                record = self.read(segment, offset)
                if not isinstance(record, NewRecord | UnitRecord | EventRecord):
                    raise DamageError(segment.number, offset, "a record of another kind")
                if record.id != proc.id:
                    if offset == last:
                        break  # two ids of one hash
                    raise DamageError(segment.number, offset, "a record of another process")
                yield record, segment, offset
                if isinstance(record, NewRecord):
                    return
                offset = record.prev
        raise DamageError(self._log.number, 0, f"the creation of {proc.id!r} is not there")

    # --- what the seam asks for ----------------------------------------------------------

    def row(self, proc: Proc, new: NewRecord | None = None) -> ProcessRow:
        """Return a process as it crosses the seam.

        Raises:
            DamageError: Its creation cannot be read.
        """
        if new is None:
            new = self.creation(proc)
        owner = proc.owner
        return ProcessRow(
            process_id=proc.id,
            name=proc.name,
            input=whole(new.input, new.outer),
            input_digest=new.digest,
            creation_id=new.creation_id,
            status=proc.status,
            created_at=proc.created_at,
            updated_at=proc.updated_at,
            incarnation=proc.incarnation,
            generation=proc.generation,
            epoch=proc.epoch,
            seq=proc.seq,
            start_at=new.start_at,
            started_at=proc.started_at,
            deadline_at=new.deadline_at,
            wake_at=proc.wake_at,
            finished_at=proc.finished_at,
            owner=owner,
            owner_label=None if owner is None else self._table.hosts.get(owner),
            parked=proc.parked,
            deaths=proc.deaths,
            tags=dict(new.tags),
            context=new.context,
            parent=new.parent,
            ending=proc.ending,
        )

    def history(self, trail: list[Trail]) -> History:
        """Return the checkpoints and events among a process's records."""
        checkpoints: dict[tuple[Kind, str, int], Checkpoint] = {}
        events: list[EventRecord] = []
        consumed: set[int] = set()
        for record in trail:
            if isinstance(record, UnitRecord):
                for each in record.checkpoints:
                    place = each.kind, each.key, each.index
                    # One that replaces becomes the latest, in place of the older.
                    earlier = checkpoints.pop(place, None)
                    if earlier is not None and (earlier.epoch, earlier.seq) == (
                        record.epoch,
                        record.seq,
                    ):
                        checkpoints[place] = earlier
                    else:
                        checkpoints[place] = to_checkpoint(each, record)
                consumed.update(record.consumes)
            elif isinstance(record, EventRecord):
                events.append(record)
        creation = trail[0]
        assert isinstance(creation, NewRecord)
        return History(
            creation,
            tuple(checkpoints.values()),
            tuple(to_event(each, consumed=each.position in consumed) for each in events),
        )

    def pending(self, proc: Proc) -> tuple[Event, ...]:
        """Return the mailbox of a process, in order of position; reads no further back than needed.

        Raises:
            DamageError: A record cannot be read.
        """
        mail = proc.mail
        if mail is None:
            history = self.load(proc)
            return tuple(event for event in history.events if not event.consumed)
        if not mail.pending:
            return ()
        found: list[Event] = []
        for record, _, _ in self._walk(proc):
            if isinstance(record, EventRecord) and record.position in mail.pending:
                found.append(to_event(record, consumed=False))
                if len(found) == len(mail.pending):
                    break
        found.reverse()
        return tuple(found)

    def load(self, proc: Proc) -> History:
        """Read a process's history, and remember its slots and mailbox from now on.

        Raises:
            DamageError: A record cannot be read.
        """
        history = self.history(self.trail(proc))
        keys: bytes | set[int] = b""
        for each in history.checkpoints:
            keys = add_key(keys, slot(each.kind, each.key, each.index))
        proc.keys = keys
        if history.events:
            proc.mail = mailbox(history.events)
        return history


def mailbox(events: tuple[Event, ...]) -> Mail:
    """Return what is remembered of a mailbox."""
    return Mail(
        {hash(event.event_id): event.position for event in events},
        {event.position: None for event in events if not event.consumed},
    )


def _as_finished(record: UnitRecord) -> Proc:
    proc = record.state
    assert proc is not None
    if record.ending is not None:
        proc.ending = to_ending(record.ending)
    return proc
