"""What needs no lease: creations, deliveries and requests, of which one that is held up goes alone.

Held up by somebody's transaction, or by something that cannot be read.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from asyncpg import Record

from durabletask.errors import LimitExceededError, StorageUnavailableError
from durabletask.storage import (
    FINISHED,
    Control,
    Controlled,
    Created,
    Delivered,
    Event,
    Lease,
    NewEvent,
    NewProcess,
    ProcessRow,
    Refusal,
)
from durabletask_postgres._line import Fetch
from durabletask_postgres._refusals import is_damage, is_locked
from durabletask_postgres._rows import (
    control_columns,
    created_row,
    creation_columns,
    refusal,
    row_of,
)
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import NOTHING_WRITTEN, UnexpectedError, partly

_log = logging.getLogger("durabletask")

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

BATCH_MAX = 1_000
"""Of `create`, `request`, `read` and `purge`, as the seam says."""


def check_size(what: str, batch: Sequence[object]) -> None:
    """Raise LimitExceededError if there is more in a batch than the seam lets through."""
    if len(batch) > BATCH_MAX:
        raise LimitExceededError(
            f"{what} takes at most {BATCH_MAX:,} at once, not {len(batch):,}; nothing was written",
            hint="split the batch",
        )


def _whole(
    call: Callable[Concatenate[Fetch, P], Awaitable[R]],
) -> Callable[Concatenate[Fetch, P], Awaitable[R]]:
    """Let a call of several statements raise only what is true of all of them; see `partly`."""

    @wraps(call)
    async def told(fetch: Fetch, /, *args: P.args, **kwargs: P.kwargs) -> R:
        answered = False

        async def noted(statement: str, *values: object) -> Sequence[Record]:
            nonlocal answered
            records = await fetch(statement, *values)
            answered |= bool(records)  # of whatever is written there is one
            return records

        try:
            return await call(noted, *args, **kwargs)
        except NOTHING_WRITTEN as error:
            if answered:
                raise partly(error) from error
            raise

    return told


@_whole
async def create(
    fetch: Fetch, statements: Statements, processes: Sequence[NewProcess], lease: Lease | None
) -> list[Created]:
    """Create processes, and read those that were there before."""

    async def attempt(part: Sequence[NewProcess]) -> list[Created]:
        host_id = None if lease is None else lease.host_id
        made = await fetch(statements["create"], host_id, *creation_columns(part))
        rows = {each[0]: (each[1], each[2]) for each in made}
        answers: list[Created | None] = []
        for new in part:
            number, now_at = rows.get(new.process_id, (None, None))
            if number is None or now_at is None:
                answers.append(None)
                continue
            at_once = lease is not None and (new.start_at is None or new.start_at <= now_at)
            owner = (lease.host_id, lease.label) if lease is not None and at_once else None
            answers.append(Created(created_row(new, number, now_at, owner), True))
        there = await _read(
            fetch,
            statements,
            {new.process_id for new, made in zip(part, answers, strict=True) if made is None},
        )
        return [
            made or _existing(new, there.get(new.process_id))
            for new, made in zip(part, answers, strict=True)
        ]

    answers: list[Created] = [Created(None, refused=Refusal.BUSY)] * len(processes)
    for places in _turns(processes):
        part = [processes[place] for place in places]
        created = await _isolating(attempt, part, Created(None, refused=Refusal.BUSY))
        for place, answer in zip(places, created, strict=True):
            answers[place] = answer
    return answers


def _turns(processes: Sequence[NewProcess]) -> list[list[int]]:
    """Return the places of a batch cut so that no part has an id twice, in order per id."""
    turns: list[list[int]] = []
    seen: dict[str, int] = {}
    for place, new in enumerate(processes):
        turn = seen[new.process_id] = seen.get(new.process_id, -1) + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(place)
    return turns


def _existing(new: NewProcess, row: ProcessRow | None) -> Created:
    # Neither made nor found: it was purged in between, and asking again will make it.
    if row is None:
        return Created(None, refused=Refusal.BUSY)
    fresh = row.creation_id == new.creation_id
    if new.replace and not fresh and row.status in FINISHED and row.owner is not None:
        return Created(None, refused=Refusal.BUSY)  # terminated, and its host has yet to let go
    return Created(row, fresh)


async def _read(
    fetch: Fetch, statements: Statements, process_ids: set[str]
) -> dict[str, ProcessRow]:
    if not process_ids:
        return {}
    rows = [row_of(each) for each in await fetch(statements["read"], list(process_ids))]
    return {row.process_id: row for row in rows}


@_whole
async def deliver(
    fetch: Fetch, statements: Statements, events: Sequence[NewEvent], mailbox_max: int
) -> list[Delivered]:
    """Put events into mailboxes, in the given order."""
    if not events:
        return []
    columns = (
        [each.process_id for each in events],
        [each.event_id for each in events],
        [each.name for each in events],
        [each.payload for each in events],
    )
    try:
        try:
            records = await fetch(statements["deliver"], *columns, mailbox_max, False)
        except StorageUnavailableError as error:
            if not is_locked(error):
                raise
            records = await fetch(statements["deliver"], *columns, mailbox_max, True)
    except UnexpectedError as error:
        if not is_damage(error):
            raise
        if len(events) == 1:
            _log.error("no event reaches process %s: %s", ascii(events[0].process_id), error)
            return [Delivered(Refusal.BUSY)]
        middle = len(events) // 2
        first = await deliver(fetch, statements, events[:middle], mailbox_max)
        return first + await deliver(fetch, statements, events[middle:], mailbox_max)
    return [_delivered(new, each) for new, each in zip(events, records, strict=True)]


def _delivered(new: NewEvent, record: Record) -> Delivered:
    _, refused, owner, position, name, payload, at, consumed = record
    if refused is not None:
        return Delivered(refusal(refused))
    event = Event(
        position,
        new.event_id,
        new.name if name is None else name,
        new.payload if payload is None else payload,
        at,
        consumed,
    )
    return Delivered(event=event, owner=owner)


@_whole
async def request(
    fetch: Fetch, statements: Statements, controls: Sequence[Control]
) -> list[tuple[Controlled, Sequence[str]]]:
    """Ask something of processes; return the answers, each with the ids of whom it concerned."""

    async def attempt(part: Sequence[Control]) -> list[tuple[Controlled, Sequence[str]]]:
        records = await fetch(statements["request"], *control_columns(part))
        return [
            (Controlled(row=row_of(each)), each["told"])
            if each["refused"] is None
            else (Controlled(refusal(each["refused"])), ())
            for each in records
        ]

    return await _isolating(attempt, controls, (Controlled(Refusal.BUSY), ()))


@_whole
async def purge(
    fetch: Fetch, statements: Statements, process_ids: Sequence[str]
) -> list[Refusal | None]:
    """Remove finished processes; of one asked for twice the second is unknown."""

    async def attempt(part: Sequence[str]) -> list[Refusal | None]:
        found: dict[str, str | None] = dict(
            tuple(each) for each in await fetch(statements["purge"], list(part))
        )
        answers: list[Refusal | None] = []
        for process_id in part:
            refused = found[process_id]
            answers.append(None if refused is None else refusal(refused))
            if refused is None:
                found[process_id] = Refusal.UNKNOWN_PROCESS
        return answers

    return await _isolating(attempt, process_ids, Refusal.BUSY)


async def _isolating(
    attempt: Callable[[Sequence[T]], Awaitable[list[R]]], items: Sequence[T], busy: R
) -> list[R]:
    """Attempt a batch, in parts if one of them is held up, which is then `busy`.

    In order: of two items about one process the first is attempted first.
    """
    if not items:
        return []
    try:
        return await attempt(items)
    except StorageUnavailableError as error:
        if not is_locked(error) and not is_damage(error):
            raise
        if len(items) == 1:
            return [busy]
    middle = len(items) // 2
    first: list[Any] = await _isolating(attempt, items[:middle], busy)
    return first + await _isolating(attempt, items[middle:], busy)
