"""Mailboxes: what is in them, what was ever in them, and the record of what arrives."""

from collections.abc import Callable
from datetime import datetime

import msgspec

from durabletask.storage import Event, NewEvent
from durabletask_filesystem._history import Library, mailbox
from durabletask_filesystem._log import DamageError
from durabletask_filesystem._records import EventRecord, outer_of
from durabletask_filesystem._state import Mail, Proc


class Mailboxes:
    """The mailboxes of all processes."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def open(self, proc: Proc) -> Mail:
        """Return the mailbox of an unfinished process, which stays in memory from now on.

        Raises:
            DamageError: A record of the process cannot be read.
        """
        mail = proc.mail
        if mail is None:
            mail = Mail({}, {})
            if proc.events:
                mail = mailbox(self._library.history(self._library.trail(proc)).events)
            proc.mail = mail
        return mail

    def try_to_open(self, proc: Proc | None) -> None:
        """Open a mailbox if it can be read."""
        if proc is not None:
            try:
                self.open(proc)
            except DamageError:
                return  # its claim says so; what comes meanwhile is kept

    def earlier(self, proc: Proc, event_id: str) -> Event | None:
        """Return the event that a process has received under this id, consumed or not.

        Raises:
            DamageError: A record of the process cannot be read.
        """
        if not proc.events:
            return None
        if proc.finished_at is None and hash(event_id) not in self.open(proc).ids:
            return None
        events = self._library.history(self._library.trail(proc)).events
        return next((event for event in events if event.event_id == event_id), None)


def arrival(proc: Proc, new: NewEvent, now: datetime) -> Callable[[int], EventRecord]:
    """Return what makes the record of an event that arrives, given the place of the one before."""

    def make(prev: int) -> EventRecord:
        return EventRecord(
            proc.id,
            proc.incarnation,
            proc.events + 1,
            new.event_id,
            new.name,
            now,
            msgspec.Raw(new.payload),
            prev,
            outer_of(new.payload),
        )

    return make
