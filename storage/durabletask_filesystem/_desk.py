"""Creating, delivering and purging: what clients write."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import durabletask_filesystem._records as _records
from durabletask.errors import StorageCorruptError
from durabletask.storage import (
    Created,
    Delivered,
    Event,
    NewEvent,
    NewProcess,
    Refusal,
)
from durabletask_filesystem._commit import check_payload
from durabletask_filesystem._history import Library
from durabletask_filesystem._log import DamageError, Log
from durabletask_filesystem._mailboxes import Mailboxes, arrival
from durabletask_filesystem._records import PurgeRecord
from durabletask_filesystem._state import OFFSET_MASK, SEGMENT_SHIFT
from durabletask_filesystem._table import Table

_UNKNOWN = Delivered(Refusal.UNKNOWN_PROCESS)
_FINISHED = Delivered(Refusal.FINISHED)
_MAILBOX_FULL = Delivered(Refusal.MAILBOX_FULL)


class Desk:
    """Takes what comes from outside."""

    def __init__(self, log: Log, table: Table, library: Library, mailboxes: Mailboxes) -> None:
        self._log = log
        self._table = table
        self._library = library
        self._mailboxes = mailboxes

    # --- creating ------------------------------------------------------------------------

    def create(
        self, news: Sequence[NewProcess], host: str | None, now: datetime
    ) -> tuple[Created, ...]:
        """Create processes; see the seam for the rules.

        Raises:
            StorageCorruptError: An id exists and its record is known to be damaged; nothing was
                written.
            DamageError: Likewise, found only now: those before it are written.
            InvalidArgumentError: An input is not JSON; nothing was written.
        """
        for new in news:
            check_payload(new.input)
            check_id(new.process_id, self._table)
        return tuple([self._create(new, host, now) for new in news])

    def _create(self, new: NewProcess, host: str | None, now: datetime) -> Created:
        process_id = new.process_id
        proc = self._table.procs.get(process_id)
        incarnation = 1
        if proc is None:
            last = self._library.last_word(process_id)
            if last is not None:
                incarnation = last.incarnation + 1
            if last is not None and not isinstance(last, PurgeRecord):
                proc = self._library.finished(process_id)
        if proc is not None:
            row = self._library.row(proc)
            fresh = row.creation_id == new.creation_id
            if fresh or not (new.replace and proc.finished_at is not None):
                return Created(row, fresh)
            if proc.owner is not None:
                return Created(None, refused=Refusal.BUSY)  # terminated, and not let go
            incarnation = proc.incarnation + 1
        taker = host if new.start_at is None or new.start_at <= now else None
        record = _records.creation(new, incarnation, now, taker)
        offset = self._log.append(_records.encode(record))
        proc = self._table.apply_new(record, self._log.number, offset)
        if taker is not None:
            proc.keys = b""
        return Created(self._library.row(proc, record), True)

    # --- delivering ----------------------------------------------------------------------

    def deliver(
        self, events: Sequence[NewEvent], mailbox_max: int, now: datetime
    ) -> tuple[Delivered, ...]:
        """Put events into mailboxes; see the seam for the rules."""
        for event in events:
            check_payload(event.payload)
            check_id(event.process_id, self._table)
        return tuple([self._deliver(event, mailbox_max, now) for event in events])

    def _deliver(self, new: NewEvent, mailbox_max: int, now: datetime) -> Delivered:
        proc = self._table.procs.get(new.process_id)
        if proc is None:
            return self._deliver_late(new)
        # Known first: a repeat after a lost answer must find what it wrote, even if the
        # mailbox has filled since.
        mail = self._mailboxes.open(proc)
        earlier = self._mailboxes.earlier(proc, new.event_id)
        if earlier is not None:
            return Delivered(event=earlier, owner=proc.owner)
        if len(mail.pending) >= mailbox_max:
            return _MAILBOX_FULL
        number, spot = self._log.number, proc.spot
        prev = spot & OFFSET_MASK if spot >> SEGMENT_SHIFT == number else 0
        record = arrival(proc, new, now)(prev)
        offset = self._log.append(_records.encode(record))
        owner = proc.owner
        self._table.apply_event(proc, record, number, offset)
        event = Event(record.position, new.event_id, new.name, new.payload, now)
        return Delivered(event=event, owner=owner)

    def _deliver_late(self, new: NewEvent) -> Delivered:
        proc = self._library.finished(new.process_id)
        if proc is None:
            return _UNKNOWN
        earlier = self._mailboxes.earlier(proc, new.event_id)
        return _FINISHED if earlier is None else Delivered(event=earlier, owner=proc.owner)

    # --- purging -------------------------------------------------------------------------

    def purge(self, process_ids: Sequence[str], now: datetime) -> tuple[Refusal | None, ...]:
        """Remove finished processes; see the seam for the rules."""
        return tuple([self._purge(process_id, now) for process_id in process_ids])

    def _purge(self, process_id: str, now: datetime) -> Refusal | None:
        if process_id in self._table.procs:
            return Refusal.NOT_FINISHED
        if process_id in self._table.held:
            return Refusal.BUSY
        proc = self._library.finished(process_id)
        if proc is None:
            return Refusal.UNKNOWN_PROCESS
        with suppress(DamageError):  # a broken history can be purged all the same
            for number, size in self._library.weigh(proc).items():
                self._table.dead[number] = self._table.dead.get(number, 0) + size
        record = PurgeRecord(process_id, proc.incarnation, now)
        offset = self._log.append(_records.encode(record))
        self._table.apply_purge(record, self._log.number, offset)
        return None


def check_id(process_id: str, table: Table) -> None:
    """Refuse a process whose records cannot be told.

    Raises:
        StorageCorruptError: Its creation, or what ended it, is damaged.
    """
    if process_id in table.damage and process_id not in table.procs:
        raise StorageCorruptError(
            f"process {process_id!r} is damaged: {table.damage[process_id]}",
            hint="python -m durabletask_filesystem repair DIR",
        )
