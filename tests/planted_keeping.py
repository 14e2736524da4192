"""Mistakes that storages make with events, ids, listing and purging."""

import unicodedata
from datetime import datetime
from typing import Any

import msgspec
import pytest

from durabletask._memory import MemoryStorage
from durabletask._memory_hosts import Host
from durabletask._memory_process import Mailbox, ProcessState
from durabletask.storage import (
    Created,
    Delivered,
    Event,
    Leave,
    NewEvent,
    NewProcess,
    Page,
    Query,
    Refusal,
)
from tests.planted_storage import planted

# --- events ------------------------------------------------------------------------------


@planted
def no_deduplication(patch: pytest.MonkeyPatch) -> None:
    """C31: the same event id is stored twice."""
    patch.setattr(Mailbox, "known", lambda _self, _event_id: None)


@planted
def deduplication_of_the_unconsumed(patch: pytest.MonkeyPatch) -> None:
    """C31: an event that was consumed can arrive again."""
    known = Mailbox.known

    def waiting(self: Mailbox, event_id: str) -> Event | None:
        event = known(self, event_id)
        return None if event is None or event.consumed else event

    patch.setattr(Mailbox, "known", waiting)


@planted
def last_in_first_out(patch: pytest.MonkeyPatch) -> None:
    """C32: the mailbox is handed out from its end."""
    unconsumed = ProcessState.unconsumed
    patch.setattr(ProcessState, "unconsumed", lambda self: unconsumed(self)[::-1])


@planted
def consumed_twice(patch: pytest.MonkeyPatch) -> None:
    """I11: nothing looks whether an event is still there."""

    def consume(self: Mailbox, position: int) -> None:
        self.unconsumed.pop(position, None)

    patch.setattr(ProcessState, "_has_all", lambda _self, _positions: True)
    patch.setattr(Mailbox, "consume", consume)


@planted
def mailbox_without_limit(patch: pytest.MonkeyPatch) -> None:
    """Rule 14: the limit is never looked at."""
    deliver = ProcessState.deliver
    patch.setattr(
        ProcessState, "deliver", lambda self, new, now, _: deliver(self, new, now, 1_000_000)
    )


@planted
def limit_counts_the_consumed(patch: pytest.MonkeyPatch) -> None:
    """Rule 14: a mailbox that was full once stays full."""
    deliver = ProcessState.deliver

    def total(self: ProcessState, new: NewEvent, now: datetime, mailbox_max: int) -> Delivered:
        used = 0 if self.mailbox is None else len(self.mailbox.events)
        if used >= mailbox_max and self.mailbox and not self.mailbox.known(new.event_id):
            return Delivered(Refusal.MAILBOX_FULL)
        return deliver(self, new, now, mailbox_max)

    patch.setattr(ProcessState, "deliver", total)


@planted
def event_sleeps_with_the_parked(patch: pytest.MonkeyPatch) -> None:
    """C37: an event that arrived before the parking and was not heard of wakes nobody."""
    leave = ProcessState._leave

    def deaf(self: ProcessState, how: Leave, now: datetime) -> None:
        self.news = False
        leave(self, how, now)

    patch.setattr(ProcessState, "_leave", deaf)


@planted
def events_wake_nobody(patch: pytest.MonkeyPatch) -> None:
    """C36: a parked process sleeps on although an event arrived."""
    deliver = ProcessState.deliver

    def asleep(self: ProcessState, *args: Any) -> Delivered:
        parked, at = self.parked, self.claimable_at
        answer = deliver(self, *args)
        if parked:
            self.parked, self.claimable_at = parked, at
        return answer

    patch.setattr(ProcessState, "deliver", asleep)


@planted
def owners_hear_nothing(patch: pytest.MonkeyPatch) -> None:
    """C36: an event for a held process is no news."""
    deliver = ProcessState.deliver

    def silent(self: ProcessState, *args: Any) -> Delivered:
        answer = deliver(self, *args)
        self.news = False
        return answer

    patch.setattr(ProcessState, "deliver", silent)


@planted
def news_lost_with_the_answer(patch: pytest.MonkeyPatch) -> None:
    """G8: a repeated claim brings the processes again, but not the news."""
    remember = Host.remember
    patch.setattr(
        Host, "remember", lambda self, claim_id, taken, _news: remember(self, claim_id, taken, ())
    )


# --- ids, lists, purge -------------------------------------------------------------------


@planted
def ids_are_normalised(patch: pytest.MonkeyPatch) -> None:
    """S4.16: NFC and NFD of one text are taken for one process."""
    create = MemoryStorage._create

    def nfc(self: MemoryStorage, new: NewProcess, *args: Any) -> Created:
        process_id = unicodedata.normalize("NFC", new.process_id)
        return create(self, msgspec.structs.replace(new, process_id=process_id), *args)

    patch.setattr(MemoryStorage, "_create", nfc)


@planted
def purge_by_prefix(patch: pytest.MonkeyPatch) -> None:
    """S4.16: cleaning "1" cleans "10" as well."""
    purge = MemoryStorage._purge

    def sweeping(self: MemoryStorage, process_id: str) -> Refusal | None:
        refusal = purge(self, process_id)
        if refusal is None:
            for other in [each for each in self._processes if each.startswith(process_id)]:
                del self._processes[other]
        return refusal

    patch.setattr(MemoryStorage, "_purge", sweeping)


@planted
def purge_of_the_living(patch: pytest.MonkeyPatch) -> None:
    """S0.11: purging does not look whether the process has finished."""

    def purge(self: MemoryStorage, process_id: str) -> Refusal | None:
        gone = self._processes.pop(process_id, None)
        if gone is None:
            return Refusal.UNKNOWN_PROCESS
        self._purged[process_id] = gone.incarnation
        return None

    patch.setattr(MemoryStorage, "_purge", purge)


@planted
def incarnations_forgotten(patch: pytest.MonkeyPatch) -> None:
    """G5: an id that was purged begins again as its own first incarnation."""
    purge = MemoryStorage._purge

    def forget(self: MemoryStorage, process_id: str) -> Refusal | None:
        refusal = purge(self, process_id)
        self._purged.pop(process_id, None)
        return refusal

    patch.setattr(MemoryStorage, "_purge", forget)


@planted
def replace_of_the_living(patch: pytest.MonkeyPatch) -> None:
    """A running process makes way for a new one of its id."""
    create = MemoryStorage._create

    def ruthless(self: MemoryStorage, new: NewProcess, *args: Any) -> Created:
        there = self._processes.get(new.process_id)
        if there is not None and new.replace and there.creation_id != new.creation_id:
            self._purged[new.process_id] = there.incarnation
            del self._processes[new.process_id]
        return create(self, new, *args)

    patch.setattr(MemoryStorage, "_create", ruthless)


@planted
def creation_without_its_id(patch: pytest.MonkeyPatch) -> None:
    """G9: a repeat after a lost answer is told that somebody else made the process."""
    create = MemoryStorage._create

    def stranger(self: MemoryStorage, new: NewProcess, *args: Any) -> Created:
        known = new.process_id in self._processes
        created = create(self, new, *args)
        return Created(created.row, created.fresh and not known)

    patch.setattr(MemoryStorage, "_create", stranger)


@planted
def cursor_by_offset(patch: pytest.MonkeyPatch) -> None:
    """C33: a cursor counts rows, so a purge in between makes the next page skip some."""
    listing = MemoryStorage.list

    async def counted(self: MemoryStorage, query: Query) -> Page:
        whole = await listing(self, msgspec.structs.replace(query, cursor=None, limit=1_000))
        start = 0 if query.cursor is None else int(query.cursor)
        end = start + query.limit
        return Page(whole.rows[start:end], str(end) if end < len(whole.rows) else None)

    patch.setattr(MemoryStorage, "list", counted)


@planted
def prefix_as_a_pattern(patch: pytest.MonkeyPatch) -> None:
    """F121: `_` and `%` in a prefix match anything, as in LIKE."""
    listing = MemoryStorage.list

    async def like(self: MemoryStorage, query: Query) -> Page:
        if query.prefix is not None and query.prefix[-1:] in {"_", "%"}:
            query = msgspec.structs.replace(query, prefix=query.prefix[:-1])
        return await listing(self, query)

    patch.setattr(MemoryStorage, "list", like)
