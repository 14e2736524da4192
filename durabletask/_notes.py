"""The payloads that the engine itself records. JSON, like every payload; fields may be added."""

from datetime import datetime

import msgspec

from durabletask._model import Kind


class WaitNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A wait began.

    Attributes:
        name: Of the event waited for; empty for a delay.
        due_at: When it is over by itself, if ever.
        kind: Of the call; not given for an event and a delay, which `name` tells apart.
        branches: Of a race: what it waits for, in order; of nested races what is in them.
    """

    name: str = ""
    due_at: datetime | None = None
    kind: Kind | None = None
    branches: tuple["BranchNote", ...] = ()


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


class TimeoutNote(msgspec.Struct, frozen=True):
    """A timeout was left: because its time was over, or before."""

    expired: bool


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


class EventNote(msgspec.Struct, frozen=True, array_like=True):
    """A durable call consumed an event."""

    name: str
    payload: msgspec.Raw


class DelayNote(msgspec.Struct, frozen=True):
    """A delay is over."""

    desired_at: datetime
    actual_at: datetime
    on_time: bool


encode = msgspec.json.encode

RETRY_ERRORS_MAX = 10
