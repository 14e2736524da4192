"""The payloads that the engine itself records. JSON, like every payload; fields may be added."""

from datetime import datetime

import msgspec

from durabletask._model import Kind, Status

RESULT = -2
"""Index of the call that waits for a child which another call has spawned; both have one key."""


class WaitNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A wait began.

    Attributes:
        name: Of the event waited for; empty for a delay.
        due_at: When it is over by itself, if ever.
        kind: Of the call; not given for an event and a delay, which `name` tells apart.
        child: Id of the child waited for.
        branches: Of a race: what it waits for, in order; of nested races what is in them.
    """

    name: str = ""
    due_at: datetime | None = None
    kind: Kind | None = None
    child: str = ""
    branches: tuple["BranchNote", ...] = ()


def kind_of(note: WaitNote) -> Kind:
    """Return what kind of call noted that its wait began."""
    return note.kind or (Kind.EVENT if note.name else Kind.DELAY)


class BranchNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one branch of a race waits for.

    Attributes:
        path: The keys of the nested races around it, outermost first, and its own.
        kind: Of the call that is the branch.
        name: Of the event that ends it; empty if none does.
        due_at: When it is over by itself, if ever.
    """

    path: tuple[str, ...]
    kind: Kind
    name: str = ""
    due_at: datetime | None = None


class RaceNote(msgspec.Struct, frozen=True):
    """A race is over.

    Attributes:
        path: Of the branch that won, as in `BranchNote`.
        kind: Of the call that is this branch.
        outcome: What the call would have recorded by itself.
    """

    path: tuple[str, ...]
    kind: Kind
    outcome: msgspec.Raw


class CallNote(msgspec.Struct, frozen=True):
    """A child has ended.

    Attributes:
        status: With which it ended.
        child: Its id.
        payload: Of its ending.
        position: Of the event in this process's mailbox that told of it.
    """

    status: Status
    child: str
    payload: msgspec.Raw
    position: int


class ReportNote(msgspec.Struct, frozen=True, array_like=True):
    """The process has told how far it is.

    Attributes:
        count: How often it had done so in that run.
    """

    count: int
    value: msgspec.Raw


class RetryNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step has failed and will be tried again.

    Attributes:
        attempts: How many have failed.
        first_at: When the first one began.
        due_at: When the next one may begin.
        errors: The recorded errors of the latest attempts, oldest first; at
            most ten, so that a step that retries for ever does not grow.
    """

    attempts: int
    first_at: datetime
    due_at: datetime
    errors: tuple[msgspec.Raw, ...] = ()


class CancelNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """User code cancelled a durable call, so long after the run had begun.

    Attributes:
        by: The key of the durable timeout whose time was over, if it was one.
    """

    after_s: float
    by: str = ""


class TimeoutNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A timeout was left: because its time was over, or before.

    Attributes:
        cancelled: Where its time was over and something around it cancelled too.
        due_at: When its time was over, or would have been; None in older records.
    """

    expired: bool
    cancelled: CancelNote | None = None
    due_at: datetime | None = None


class EventNote(msgspec.Struct, frozen=True, array_like=True):
    """A durable call consumed an event.

    Attributes:
        position: Of the event in the mailbox, for a retry that gives it back; 0 where it
            was not noted.
    """

    name: str
    payload: msgspec.Raw
    position: int = 0


class DelayNote(msgspec.Struct, frozen=True):
    """A delay is over."""

    desired_at: datetime
    actual_at: datetime
    on_time: bool


class DecisionNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """The function has raised, and what its steps have done is to be undone.

    Attributes:
        error: The recorded error that left the function.
        undos: (key, index) of the steps to undo, the latest first.
        cancelled: Whether the process ends as cancelled rather than as failed.
    """

    error: msgspec.Raw
    undos: tuple[tuple[str, int], ...]
    cancelled: bool = False


class TerminatedNote(msgspec.Struct, frozen=True):
    """The process was terminated from outside; the payload of its ending."""

    reason: str | None
    output: msgspec.Raw


encode = msgspec.json.encode

RETRY_ERRORS_MAX = 10
