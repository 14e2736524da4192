"""Between the database's records and those of the seam: data in, data out.

Knows the order of columns of `process_row` and of the histories; refuses to
know any statement.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
from asyncpg import Record

from durabletask.errors import InvalidArgumentError
from durabletask.storage import (
    Checkpoint,
    Claimed,
    Control,
    Ending,
    Event,
    Form,
    Kind,
    NewProcess,
    Parent,
    ProcessRow,
    Query,
    Refusal,
    Snapshot,
    Status,
)

# By lookup and not by calling the enumerations, which takes ten times as long.
_STATUSES: dict[str, Status] = {each.value: each for each in Status}
_KINDS: dict[str, Kind] = {each.value: each for each in Kind}
_FORMS: dict[str, Form] = {each.value: each for each in Form}
_REFUSALS: dict[str, Refusal] = {each.value: each for each in Refusal} | {"busy": Refusal.BUSY}


def row_of(record: Record) -> ProcessRow:
    """Return the process of a record with the columns of `process_row`."""
    parent = None
    if record["parent_id"] is not None:
        parent = Parent(
            record["parent_id"],
            record["parent_incarnation"],
            record["parent_generation"],
            record["parent_key"],
        )
    status = _STATUSES[record["status"]]
    ending = None
    if record["ending_form"] is not None:
        ending = Ending(status, _FORMS[record["ending_form"]], record["ending_payload"])
    return ProcessRow(
        process_id=record["process_id"],
        name=record["name"],
        input=record["input"],
        input_digest=record["input_digest"],
        creation_id=record["creation_id"],
        status=status,
        created_at=record["created_at"],
        updated_at=record["updated_at"],
        incarnation=record["process_no"],
        generation=record["generation"],
        epoch=record["epoch"],
        seq=record["seq"],
        start_at=record["start_at"],
        started_at=record["started_at"],
        deadline_at=record["deadline_at"],
        wake_at=record["wake_at"],
        finished_at=record["finished_at"],
        owner=record["owner"],
        owner_label=record["owner_label"],
        parked=record["parked"],
        deaths=record["deaths"],
        tags={} if record["tags"] is None else orjson.loads(record["tags"]),
        context=record["context"],
        parent=parent,
        ending=ending,
        cancel_reason=record["cancel_reason"],
        cancel_met=record["cancel_met"],
        suspend_reason=record["suspend_reason"],
    )


def snapshot_of(record: Record) -> Snapshot:
    """Return a process with the history that its record has, if any."""
    row = row_of(record)
    if "gone_kinds" not in record:  # it was not asked for its history
        return Snapshot(row)
    return Snapshot(row, _checkpoints(record), _events(record), _checkpoints(record, "gone_"))


def claimed_of(record: Record) -> Claimed:
    """Return a process as a claim hands it out; what cannot be read is its damage."""
    row = row_of(record)
    if record["damage"] is not None:
        return Claimed(row, record["fresh"], damage=record["damage"])
    try:
        return Claimed(row, record["fresh"], _checkpoints(record), _events(record))
    except (KeyError, ValueError) as error:
        return Claimed(row, record["fresh"], damage=f"unreadable record: {error!r}")


def created_row(
    new: NewProcess, number: int, now_at: datetime, owner: tuple[str, str] | None
) -> ProcessRow:
    """Return the row of a process that was created just now.

    Args:
        owner: Identity and label of the host that it belongs to at once.
    """
    return ProcessRow(
        process_id=new.process_id,
        name=new.name,
        input=new.input,
        input_digest=new.input_digest,
        creation_id=new.creation_id,
        status=Status.RUNNING,
        created_at=now_at,
        updated_at=now_at,
        incarnation=number,
        epoch=0 if owner is None else 1,
        start_at=new.start_at,
        started_at=None if owner is None else now_at,
        deadline_at=new.deadline_at,
        owner=None if owner is None else owner[0],
        owner_label=None if owner is None else owner[1],
        tags=dict(new.tags),
        context=new.context,
        parent=new.parent,
    )


def creation_columns(processes: Sequence[NewProcess]) -> list[list[Any]]:
    """Return what `create` takes behind the host: one list a column."""
    fields: tuple[Callable[[NewProcess], Any], ...] = (
        lambda new: new.process_id,
        lambda new: new.name,
        lambda new: new.input,
        lambda new: new.input_digest,
        lambda new: new.creation_id,
        lambda new: new.replace,
        lambda new: new.start_at,
        lambda new: new.deadline_at,
        lambda new: orjson.dumps(new.tags).decode() if new.tags else None,
        lambda new: new.context,
        lambda new: new.parent and new.parent.process_id,
        lambda new: new.parent and new.parent.incarnation,
        lambda new: new.parent and new.parent.generation,
        lambda new: new.parent and new.parent.key,
    )
    return [[field(new) for new in processes] for field in fields]


def control_columns(controls: Sequence[Control]) -> list[list[Any]]:
    """Return what `request` takes: one list a column."""
    places = [place for control in controls for place in control.forget]
    endings = [control.ending for control in controls]
    return [
        [control.process_id for control in controls],
        [control.action for control in controls],
        [control.request_id for control in controls],
        [control.reason for control in controls],
        [each and each.status for each in endings],
        [each and each.form for each in endings],
        [None if each is None else each.payload for each in endings],
        [control.incarnation for control in controls],
        [control.epoch for control in controls],
        [control.status for control in controls],
        [len(control.forget) for control in controls],
        [len(control.restores) for control in controls],
        [place.kind for place in places],
        [place.key for place in places],
        [place.index for place in places],
        [position for control in controls for position in control.restores],
    ]


def refusal(text: str) -> Refusal:
    """Return the refusal that the database has named."""
    return _REFUSALS[text]


def checkpoint(values: Iterable[Any]) -> Checkpoint:
    """Return a checkpoint from kind, key, index, form, payload, replaces, epoch, seq and time."""
    kind, key, index, form, payload, replaces, epoch, seq, at = values
    return Checkpoint(_KINDS[kind], key, index, _FORMS[form], payload, replaces, epoch, seq, at)


_CHECKPOINT = (
    "kinds",
    "keys",
    "indexes",
    "forms",
    "payloads",
    "replaces",
    "epochs",
    "seqs",
    "ats",
)


def _checkpoints(record: Record, prefix: str = "") -> tuple[Checkpoint, ...]:
    if record[f"{prefix}kinds"] is None:
        return ()
    columns = zip(*(record[f"{prefix}{each}"] for each in _CHECKPOINT), strict=True)
    return tuple(
        Checkpoint(_KINDS[kind], key, index, _FORMS[form], payload, replaces, epoch, seq, at)
        for kind, key, index, form, payload, replaces, epoch, seq, at in columns
    )


def _events(record: Record) -> tuple[Event, ...]:
    if record["event_positions"] is None:
        return ()
    columns = zip(
        record["event_positions"],
        record["event_ids"],
        record["event_names"],
        record["event_payloads"],
        record["event_ats"],
        record["event_consumed"],
        strict=True,
    )
    return tuple(Event(*values) for values in columns)


# --- listing -------------------------------------------------------------------------------

PAGE_MAX = 1_000

_MARK = "postgres"


def query_columns(query: Query) -> list[Any]:
    """Return what `list` takes; one row more than the page, to see whether there is another.

    Raises:
        InvalidArgumentError: The limit or the cursor is none.
    """
    if not 1 <= query.limit <= PAGE_MAX:
        raise InvalidArgumentError(f"limit must be 1 to {PAGE_MAX:,}, not {query.limit}")
    behind = (None, None) if query.cursor is None else _read_cursor(query.cursor)
    return [
        None if query.statuses is None else list(query.statuses),
        query.name,
        query.prefix,
        orjson.dumps(query.tags).decode() if query.tags else None,
        query.created_from,
        query.created_until,
        query.finished_from,
        query.finished_until,
        query.parent_id,
        *behind,
        query.limit + 1,
    ]


def cursor_after(row: ProcessRow) -> str:
    """Return the cursor of a page that ends with this process."""
    text = f"{_MARK} {row.created_at.isoformat()} {row.process_id}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        mark, at, process_id = base64.urlsafe_b64decode(cursor).decode().split(" ", 2)
        created_at = datetime.fromisoformat(at)
    except ValueError:
        mark, created_at, process_id = "", None, ""
    if mark != _MARK or created_at is None or created_at.tzinfo is None or not process_id:
        raise InvalidArgumentError(
            f"{cursor[:80]!r} is no cursor of this storage",
            hint="pass Page.cursor of the page before, unchanged",
        )
    return created_at, process_id
