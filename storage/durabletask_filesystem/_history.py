"""Reading what is on disk of a process: its row, its history, or that it is gone.

A process's records lie in one or more segments, chained backwards within each;
the newest segment is found from memory, the older ones by their indexes. A
hash is only a hint: what is found is read, and must name the process. What
lies before a process's latest restart is not read, but for events that it has
kept.
"""

from collections.abc import Container, Iterator
from copy import copy
from typing import NamedTuple

import msgspec

from durabletask.storage import Checkpoint, Event, Kind, ProcessRow
from durabletask_filesystem._frames import OVERHEAD_BYTES
from durabletask_filesystem._index import id_hash
from durabletask_filesystem._log import DamageError, Log, Segment
from durabletask_filesystem._records import (
    SINGLE,
    ControlRecord,
    EventRecord,
    NewRecord,
    PurgeRecord,
    Record,
    RestartRecord,
    Single,
    UnitRecord,
    decode,
    singles,
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
    within,
)
from durabletask_filesystem._table import Table

Beginning = NewRecord | RestartRecord
LastWord = UnitRecord | ControlRecord | PurgeRecord


class History(NamedTuple):
    """What was recorded of one process, in the order recorded."""

    creation: Beginning
    checkpoints: tuple[Checkpoint, ...]
    events: tuple[Event, ...]
    forgotten: tuple[Checkpoint, ...]


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

    def last_word(self, process_id: str) -> LastWord | None:
        """Return the record that ended or purged a process, or None if there is no such process.

        Only for ids that are not among the unfinished.

        Raises:
            DamageError: The record cannot be read.
        """
        for segment, last, _ in self._places(process_id, self._table.gone.get(process_id, 0)):
            for record in reversed(singles(self.read(segment, last))):
                if isinstance(record, LastWord) and record.id == process_id:
                    return record
        return None

    def finished(self, process_id: str) -> Proc | None:
        """Return a finished process; None if there is none, or it was purged."""
        record = self.last_word(process_id)
        if record is None or isinstance(record, PurgeRecord) or record.state is None:
            return None
        proc = _as_finished(record, record.state)
        proc.owner = self._table.held.get(process_id)
        return proc

    def finished_long_ago(self, process_id: str) -> Proc | None:
        """Do as `finished`, and return None where that cannot be read."""
        try:
            return self.finished(process_id)
        except DamageError:
            return None  # whoever descends from it is cut off; reading it says what is wrong

    def creation(self, proc: Proc) -> Beginning:
        """Return the record of a process's creation, or of its latest restart.

        Raises:
            DamageError: It cannot be read, or is not there.
        """
        spot = proc.spot or self._table.gone.get(proc.id, 0)
        for segment, _, born in self._places(proc.id, spot):
            if born:
                for record in reversed(singles(self.read(segment, born))):
                    if isinstance(record, Beginning) and record.id == proc.id:
                        return record
        raise DamageError(self._log.number, 0, f"the creation of {proc.id!r} is not there")

    def trail(self, proc: Proc, events: Container[int] | None = None) -> list[Single]:
        """Return all records of a process that count, oldest first.

        The first is its creation; or, after a restart, that comes first, but
        for the events from before that it has kept.

        Args:
            proc: The process.
            events: Of the kept ones only these, by position; None means all.

        Raises:
            DamageError: One of them cannot be read.
        """
        records = [record for record, _, _ in self._walk(proc, events)]
        records.reverse()
        return records

    def weigh(self, proc: Proc, *, generation: bool = False) -> dict[int, int]:
        """Return how many bytes a process takes, by number of segment.

        Args:
            proc: The process.
            generation: Only what was recorded since its latest restart, and that.

        Raises:
            DamageError: A record cannot be read.
        """
        weights: dict[int, int] = {}
        for record, segment, offset in self._walk(proc):
            if generation and isinstance(record, NewRecord | EventRecord):
                continue
            size = len(self._log.payload(segment, offset)) + OVERHEAD_BYTES
            weights[segment.number] = weights.get(segment.number, 0) + size
            if generation and isinstance(record, RestartRecord):
                break
        return weights

    def _walk(
        self, proc: Proc, events: Container[int] | None = None
    ) -> Iterator[tuple[Single, Segment, int]]:
        """Yield the records of a process with their places, newest first, back to its creation."""
        spot = proc.spot or self._table.gone.get(proc.id, 0)
        # Positions of events before the restart that was met; None until one is.
        wanted: set[int] | None = None
        for segment, last, _ in self._places(proc.id, spot):
            offset = last
            while offset:
                parts = self._parts(segment, offset, proc.id)
                if not parts:
                    if offset == last:
                        break  # two ids of one hash
                    raise DamageError(segment.number, offset, "a record of another process")
                for record in reversed(parts):
                    if wanted is None:
                        yield record, segment, offset
                        if isinstance(record, RestartRecord):
                            wanted = {at for one, to in record.kept for at in range(one, to + 1)}
                            if events is not None:
                                wanted = {at for at in wanted if at in events}
                    elif isinstance(record, EventRecord) and record.position in wanted:
                        yield record, segment, offset
                        wanted.discard(record.position)
                    if isinstance(record, NewRecord) or (wanted is not None and not wanted):
                        return
                first = parts[0]
                assert not isinstance(first, NewRecord)
                offset = first.prev
        raise DamageError(self._log.number, 0, f"the creation of {proc.id!r} is not there")

    def _parts(self, segment: Segment, offset: int, process_id: str) -> list[Single]:
        """Return what a frame holds of a process, in order."""
        record = self.read(segment, offset)
        if isinstance(record, SINGLE):
            return [record] if record.id == process_id else []
        parts = singles(record)
        if parts[:1] == (record,):
            raise DamageError(segment.number, offset, "a record of another kind")
        return [each for each in parts if isinstance(each, SINGLE) and each.id == process_id]

    # --- what the seam asks for ----------------------------------------------------------

    def row(self, proc: Proc, new: Beginning | None = None) -> ProcessRow:
        """Return a process as it crosses the seam.

        Raises:
            DamageError: Its creation cannot be read.
        """
        if new is None:
            new = self.creation(proc)
        owner = proc.owner
        extra = proc.more
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
            finished_at=extra.finished_at,
            owner=owner,
            owner_label=None if owner is None else self._table.hosts.get(owner),
            parked=proc.parked,
            deaths=proc.deaths,
            tags=dict(new.tags),
            context=new.context,
            parent=new.parent,
            ending=proc.ending,
            cancel_reason=extra.cancel_reason,
            cancel_met=extra.cancel_met,
            suspend_reason=extra.suspend_reason,
        )

    def history(self, trail: list[Single]) -> History:
        """Return the checkpoints and events among a process's records."""
        creation: Beginning | None = None
        forgotten: list[Checkpoint] = []
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
            elif isinstance(record, ControlRecord):
                wanted = {(each.kind, each.key, each.index) for each in record.forget}
                if wanted:
                    places = [each for each in checkpoints if each in wanted]
                    forgotten += [checkpoints.pop(each) for each in places]
                consumed.difference_update(record.restores)
            else:
                creation = record
                if isinstance(record, RestartRecord):
                    consumed = {
                        each.position
                        for each in events
                        if not within(each.position, record.pending)
                    }
        assert creation is not None
        return History(
            creation,
            tuple(checkpoints.values()),
            tuple(to_event(each, consumed=each.position in consumed) for each in events),
            tuple(forgotten),
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
        for record, _, _ in self._walk(proc, mail.pending):
            if isinstance(record, EventRecord) and record.position in mail.pending:
                found.append(to_event(record, consumed=False))
                if len(found) == len(mail.pending):
                    break
        found.reverse()
        return tuple(found)

    def load(self, proc: Proc) -> History:
        """Read a process's history, and remember its slots and mailbox from now on.

        Where the mailbox is known, events that were consumed before the latest
        restart are left out: nobody is handed them, and there may be a thousand.

        Raises:
            DamageError: A record cannot be read.
        """
        mail = proc.mail
        history = self.history(self.trail(proc, None if mail is None else mail.pending))
        keys: bytes | set[int] = b""
        for each in history.checkpoints:
            keys = add_key(keys, slot(each.kind, each.key, each.index))
        proc.keys = keys
        if mail is None and history.events:
            proc.mail = mailbox(history.events)
        return history


def mailbox(events: tuple[Event, ...]) -> Mail:
    """Return what is remembered of a mailbox."""
    return Mail(
        {hash(event.event_id): event.position for event in events},
        {event.position: None for event in events if not event.consumed},
    )


def _as_finished(record: UnitRecord | ControlRecord, state: Proc) -> Proc:
    proc = copy(state)
    if proc.more.finished_at is None:
        proc.change(finished_at=record.at)
    if record.ending is not None:
        proc.ending = to_ending(record.ending)
    return proc
