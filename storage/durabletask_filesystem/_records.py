"""What a frame holds: one record for each thing that can happen to a process or a host.

Data only. A record is a JSON object whose first member is its type and whose
second, where it concerns one process, is the process's id, and where it is a
group of records of several, their ids: so even a record that this code cannot
read names whom it concerns. Payloads are embedded as they are. `prev` is the
offset of the frame with the process's record before this one in the same
segment, 0 where there is none: a history is read backwards along it. `outer`
is the white space around a payload, which JSON does not keep.
"""

import json
import re
from datetime import datetime

import msgspec

from durabletask.storage import (
    NO_INDEX,
    Action,
    Checkpoint,
    Ending,
    Event,
    Form,
    Kind,
    Leave,
    NewProcess,
    Parent,
    Place,
    Status,
)
from durabletask_filesystem._state import Proc, Ranges

FORMAT = 1
"""Of the whole folder; raised by a change that older code cannot read."""


class _Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="t"):
    """Common to all; the order of the fields is the order on disk."""


class SegmentHead(_Record, frozen=True, tag="segment"):
    """The first frame of a segment.

    Attributes:
        merged: The segments in whose place it stands; without a manifest
            this tells the order.
    """

    number: int
    salt: int
    merged: tuple[int, ...] = ()
    format: int = FORMAT


class Batch(_Record, frozen=True, tag="batch"):
    """What one sync covers begins here; the batches before it had been synced.

    Attributes:
        n: Rises from batch to batch of a store.
        place: The offset of this very frame.
    """

    n: int
    place: int


class NewRecord(_Record, frozen=True, tag="new"):
    """A process was created."""

    id: str
    incarnation: int
    at: datetime
    name: str
    input: msgspec.Raw
    digest: str
    creation_id: str
    host: str | None = None
    start_at: datetime | None = None
    deadline_at: datetime | None = None
    tags: dict[str, str] = {}
    context: bytes | None = None
    parent: Parent | None = None
    outer: str = ""


class CheckpointRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, array_like=False):
    """A checkpoint inside a unit."""

    kind: Kind
    key: str
    payload: msgspec.Raw
    index: int = NO_INDEX
    form: Form = Form.VALUE
    replaces: bool = False
    outer: str = ""


class EndingRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The ending inside a unit."""

    status: Status
    payload: msgspec.Raw
    form: Form = Form.VALUE
    outer: str = ""


class UnitRecord(_Record, frozen=True, tag="unit"):
    """A unit was committed.

    Attributes:
        state: With a finished status: all there is to know of the process, so
            that one record answers for it. With `leave` as well it had ended
            before, and its owner lets it go.
    """

    id: str
    incarnation: int
    epoch: int
    seq: int
    at: datetime
    prev: int = 0
    checkpoints: tuple[CheckpointRecord, ...] = ()
    consumes: tuple[int, ...] = ()
    status: Status | None = None
    wake_at: datetime | None = None
    ending: EndingRecord | None = None
    leave: Leave | None = None
    state: Proc | None = None


class RestartRecord(_Record, frozen=True, tag="restart"):
    """A process began anew. No checkpoint before it counts, and it stands for the creation.

    Attributes:
        kept: Positions of the events before it that are still known.
        pending: Of these, those that are in the mailbox.
        met: A request to cancel that was met is gone with it.
    """

    id: str
    incarnation: int
    epoch: int
    seq: int
    at: datetime
    prev: int
    name: str
    input: msgspec.Raw
    digest: str
    creation_id: str
    start_at: datetime | None = None
    deadline_at: datetime | None = None
    tags: dict[str, str] = {}
    context: bytes | None = None
    parent: Parent | None = None
    outer: str = ""
    kept: Ranges = ()
    pending: Ranges = ()
    met: bool = False
    leave: Leave | None = None


class ControlRecord(_Record, frozen=True, tag="control"):
    """Something was asked of a process from outside, or has been met.

    Attributes:
        request_id: Empty where a relative was asked.
        action: None where nothing else came of it.
        ending: With which it has ended by it.
        state: As of a unit, if it has finished; with RETRY how it goes on.
        met: The process has met the request to cancel, by the unit beside this.
    """

    id: str
    incarnation: int
    at: datetime
    request_id: str = ""
    prev: int = 0
    action: Action | None = None
    reason: msgspec.Raw = msgspec.Raw(b"null")
    outer: str = ""
    forget: tuple[Place, ...] = ()
    restores: tuple[int, ...] = ()
    ending: EndingRecord | None = None
    state: Proc | None = None
    met: bool = False


class EventRecord(_Record, frozen=True, tag="event"):
    """An event was delivered."""

    id: str
    incarnation: int
    position: int
    event_id: str
    name: str
    at: datetime
    payload: msgspec.Raw
    prev: int = 0
    outer: str = ""


Single = NewRecord | UnitRecord | EventRecord | RestartRecord | ControlRecord
"""What a history consists of."""

SINGLE = (NewRecord, UnitRecord, EventRecord, RestartRecord, ControlRecord)
"""The same, for `isinstance`, which is quicker with it."""


class GroupRecord(_Record, frozen=True, tag="group"):
    """What happened to several processes at once, in order; each history leads here.

    Attributes:
        more: The next frame belongs to it: without that nothing of it counts.
    """

    ids: tuple[str, ...]
    parts: tuple[Single, ...]
    more: bool = False


class PurgeRecord(_Record, frozen=True, tag="purge"):
    """A finished process was removed; only its incarnation is remembered."""

    id: str
    incarnation: int
    at: datetime


class StateRecord(_Record, frozen=True, tag="state"):
    """Where a process stood when compaction dropped records that had led there."""

    id: str
    state: Proc


class LeaseRecord(_Record, frozen=True, tag="lease"):
    """A host's lease began."""

    host: str
    label: str
    at: datetime


class ClaimRecord(_Record, frozen=True, tag="claim"):
    """A host took processes; each with the epoch that it got."""

    host: str
    claim_id: str
    at: datetime
    taken: tuple[tuple[str, int], ...]


class EndRecord(_Record, frozen=True, tag="end"):
    """A lease ended and these processes lost their owner; `dead` if the host did not say so."""

    host: str
    at: datetime
    held: tuple[str, ...]
    dead: bool = False


Record = (
    SegmentHead
    | Batch
    | NewRecord
    | UnitRecord
    | EventRecord
    | RestartRecord
    | ControlRecord
    | GroupRecord
    | PurgeRecord
    | StateRecord
    | LeaseRecord
    | ClaimRecord
    | EndRecord
)

BATCH_MARK = b'{"t":"batch",'
"""How every batch frame begins; what a search for a later batch looks for."""

_GROUP_MARK = b'{"t":"group",'
_MORE_MARK = b'],"more":true}'

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
decode = _decoder.decode

_SPACE = 0x20

_TEXT = rb'"(?:[^"\\]|\\.)*"'
_WHOM = re.compile(rb'\{"t":"[a-z]+","id":(' + _TEXT + rb")")
_GROUP = re.compile(rb'\{"t":"[a-z]+","ids":\[(' + _TEXT + rb"(?:," + _TEXT + rb")*)\]")


def whom(payload: bytes) -> tuple[str, ...]:
    """Return whose processes an unreadable record concerns; nobody's if that cannot be told."""
    found = _WHOM.match(payload) or _GROUP.match(payload)
    if found is None:
        return ()
    try:
        ids = json.loads(f"[{found[1].decode()}]")
    except ValueError:
        return ()
    return tuple(each for each in ids if isinstance(each, str))


def goes_on(payload: bytes) -> bool:
    """Return whether a frame holds a group that goes on in the next one."""
    return payload.endswith(_MORE_MARK) and payload.startswith(_GROUP_MARK)


def singles(record: Record) -> tuple[Record, ...]:
    """Return the parts of a group, or the record itself."""
    return record.parts if isinstance(record, GroupRecord) else (record,)


def all_whom(broken: bytes) -> set[str]:
    """Return the processes that a broken piece of a segment still names."""
    found: set[str] = set()
    for mark in (_WHOM, _GROUP):
        for each in mark.finditer(broken):
            found.update(whom(each[0]))
    return found


def outer_of(payload: bytes) -> str:
    """Return the white space before and behind a payload, with a bar in between; mostly none."""
    if payload[0] > _SPACE and payload[-1] > _SPACE:
        return ""
    text = payload.decode()
    core = text.strip(" \t\r\n")
    lead, _, trail = text.partition(core)
    return f"{lead}|{trail}"


def whole(payload: msgspec.Raw, outer: str) -> bytes:
    """Return a payload as it was given."""
    if not outer:
        return bytes(payload)
    lead, _, trail = outer.partition("|")
    return lead.encode() + bytes(payload) + trail.encode()


def stored(ending: Ending) -> EndingRecord:
    """Return an ending as it is stored."""
    return EndingRecord(
        ending.status, msgspec.Raw(ending.payload), ending.form, outer_of(ending.payload)
    )


def creation(new: NewProcess, incarnation: int, at: datetime, host: str | None) -> NewRecord:
    """Return the record of a creation."""
    return NewRecord(
        new.process_id,
        incarnation,
        at,
        new.name,
        msgspec.Raw(new.input),
        new.input_digest,
        new.creation_id,
        host,
        new.start_at,
        new.deadline_at,
        new.tags,
        new.context,
        new.parent,
        outer_of(new.input),
    )


def to_checkpoint(record: CheckpointRecord, unit: UnitRecord) -> Checkpoint:
    """Return a stored checkpoint as it crosses the seam."""
    return Checkpoint(
        record.kind,
        record.key,
        record.index,
        record.form,
        whole(record.payload, record.outer),
        record.replaces,
        unit.epoch,
        unit.seq,
        unit.at,
    )


def to_ending(record: EndingRecord) -> Ending:
    """Return a stored ending as it crosses the seam."""
    return Ending(record.status, record.form, whole(record.payload, record.outer))


def to_event(record: EventRecord, *, consumed: bool) -> Event:
    """Return a stored event as it crosses the seam."""
    return Event(
        record.position,
        record.event_id,
        record.name,
        whole(record.payload, record.outer),
        record.at,
        consumed,
    )
