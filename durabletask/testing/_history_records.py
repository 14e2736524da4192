"""What a recorded history consists of: one operation for each thing asked and each answer.

Data only. An operation is one line of JSON; it carries digests and no values,
so that a history can be kept and shown. Which operation came before which is
never in here: that is their order in the merged history (`_history_file`).
"""

from enum import StrEnum
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from durabletask._model import NO_INDEX, Action, Checkpoint, Ending, Form, Kind, Parent, Status

DIGEST_BYTES = 8  # of 64 bits: two of a million values are alike once in 37 million histories


class Phase(StrEnum):
    """Whether something is asked, or what became of it."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"  # certainly not done
    INFO = "info"  # done or not; what was never answered counts as this too


def digest(payload: bytes, form: Form = Form.VALUE) -> str:
    """Name a value by 16 hex digits; an error with the payload of a value is another value."""
    return blake2b(b"%s:%s" % (form.encode(), payload), digest_size=DIGEST_BYTES).hexdigest()


class Write(msgspec.Struct, frozen=True, omit_defaults=True):
    """A checkpoint without its value.

    Attributes:
        epoch: With `seq`, the unit that wrote it; 0 in what is being written.
        attempts: Of a RETRY record: how many attempts have failed.
    """

    kind: Kind
    key: str
    digest: str
    index: int = NO_INDEX
    replaces: bool = False
    epoch: int = 0
    seq: int = 0
    attempts: int = 0


class Operation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="op"):
    """One line of a history: a request, or its answer.

    Attributes:
        who: The file, and so the program, that it was written by.
        call: The same in a request and its answer, and in no other request of `who`.
        at_s: CLOCK_MONOTONIC when it was written down. Only merging looks at it.
        host_id: The lease under which it was asked; empty for a client.
        why: What a refusal or an error said.
    """

    phase: Phase
    who: str = ""
    call: int = 0
    at_s: float = 0.0
    process_id: str = ""
    host_id: str = ""
    why: str = ""


class Create(Operation, frozen=True, tag="create"):
    """A process is created; in the answer the fields are those of the stored process.

    Attributes:
        digest: Of the name of its function and its input.
        replace: Whether a finished process of this id may make way.
        fresh: Whether this creation made it.
        owned: Whether it belongs to the asking lease at once, in this epoch.
    """

    creation_id: str = ""
    digest: str = ""
    replace: bool = False
    fresh: bool = False
    owned: bool = False
    incarnation: int = 0
    epoch: int = 0


class Deliver(Operation, frozen=True, tag="deliver"):
    """An event is delivered; the answer has its position in the mailbox."""

    event_id: str = ""
    name: str = ""
    digest: str = ""
    position: int = 0


class Taken(msgspec.Struct, frozen=True):
    """A process that a claim took.

    Attributes:
        recalls: How many checkpoints were handed out with it.
        mailbox: The positions of the events that were.
    """

    process_id: str
    incarnation: int
    epoch: int
    recalls: int
    mailbox: tuple[int, ...] = ()


class Claim(Operation, frozen=True, tag="claim"):
    """A host takes processes; about no single process."""

    claim_id: str = ""
    count_max: int = 0
    taken: tuple[Taken, ...] = ()


class Spawn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A child that is created with a unit; the fields mean the same as those of a creation.

    Attributes:
        parent: `parent_text` of the call that spawns it.
    """

    process_id: str
    creation_id: str
    digest: str
    parent: str = ""


class Sent(msgspec.Struct, frozen=True):
    """An event that is sent with a unit; the fields mean the same as those of a delivery."""

    process_id: str
    event_id: str
    name: str
    digest: str


class Commit(Operation, frozen=True, tag="commit"):
    """A unit is recorded.

    Attributes:
        status: The status that the process is to have from then on, if it is to change.
        ending: Status and digest of the last word on the process, if it has one.
        left: Whether the process leaves its host without being at its end.
        restart: Digest of the arguments with which it begins anew, if it does.
        meets_cancel: Whether the request to cancel is met by it.
        held: In the answer: what the storage holds in place of the unit's own.
    """

    incarnation: int = 0
    epoch: int = 0
    seq: int = 0
    writes: tuple[Write, ...] = ()
    consumes: tuple[int, ...] = ()
    status: Status | None = None
    ending: str = ""
    left: bool = False
    spawns: tuple[Spawn, ...] = ()
    sends: tuple[Sent, ...] = ()
    restart: str = ""
    meets_cancel: bool = False
    held: tuple[Write, ...] = ()


class Request(Operation, frozen=True, tag="request"):
    """Something is asked of a process from outside; the answer shows how it stands after that.

    Attributes:
        incarnation, epoch: Of a retry: those that were meant. In the answer: those of the row.
        reason: Digest; in the answer that of the request to cancel, if there was one.
        ending: As in `Commit`: what it may end with; in the answer what it has ended with.
        forgets: (kind, key, index) of the checkpoints that a retry puts aside.
        restores: Positions of the events that a retry puts back.
        status: Of a retry: what the process goes on as. In the answer: its status.
        generation: In the answer.
    """

    action: Action | None = None
    request_id: str = ""
    incarnation: int = 0
    generation: int = 0
    epoch: int = 0
    reason: str = ""
    ending: str = ""
    forgets: tuple[tuple[Kind, str, int], ...] = ()
    restores: tuple[int, ...] = ()
    status: Status | None = None


class Purge(Operation, frozen=True, tag="purge"):
    """A process is removed."""


class Renew(Operation, frozen=True, tag="renew"):
    """A host opens or prolongs its lease."""


class CloseLease(Operation, frozen=True, tag="close"):
    """A host gives its lease back."""


class Execute(Operation, frozen=True, tag="execute"):
    """The body of a step runs: its effect on the world, seen by the world and not by the storage.

    Attributes:
        attempt: As `current_step().attempt`.
    """

    incarnation: int = 0
    generation: int = 0
    epoch: int = 0
    key: str = ""
    index: int = NO_INDEX
    attempt: int = 1


class See(Operation, frozen=True, tag="see"):
    """User code was given the outcome of a durable call, by a run or by a recall.

    Attributes:
        place: `proc.idempotency_key(key)`.
    """

    place: str = ""
    digest: str = ""


AnyOperation: TypeAlias = (
    Create | Deliver | Claim | Commit | Request | Purge | Renew | CloseLease | Execute | See
)


def ending_text(ending: Ending | None) -> str:
    """Return what stands for an ending in a history; empty for none."""
    if ending is None:
        return ""
    return f"{ending.status}:{digest(ending.payload, ending.form)}"


def creation_digest(name: str, input: bytes) -> str:
    """Name what a process was created to do."""
    return digest(b"%s:%s" % (name.encode(), input))


def parent_text(parent: Parent | None) -> str:
    """Return what stands for the call that spawned a process; empty for none."""
    if parent is None:
        return ""
    # Neither an id nor a key has a control character.
    return f"{parent.process_id}\n{parent.incarnation}.{parent.generation}\n{parent.key}"


class _Attempts(msgspec.Struct):
    """The one field of a RETRY record that a history keeps."""

    attempts: int


def write_of(checkpoint: Checkpoint) -> Write:
    """Return a checkpoint without its value."""
    attempts = 0
    if checkpoint.kind is Kind.RETRY:
        attempts = msgspec.json.decode(checkpoint.payload, type=_Attempts).attempts
    return Write(
        checkpoint.kind,
        checkpoint.key,
        digest(checkpoint.payload, checkpoint.form),
        checkpoint.index,
        checkpoint.replaces,
        checkpoint.epoch,
        checkpoint.seq,
        attempts,
    )
