"""The payloads that the engine itself records. JSON, like every payload; fields may be added."""

from datetime import datetime

import msgspec


class WaitNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A wait began.

    Attributes:
        name: Of the event waited for; empty for a delay.
        due_at: When it is over by itself, if ever.
    """

    name: str = ""
    due_at: datetime | None = None


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


class CancelNote(msgspec.Struct, frozen=True):
    """User code cancelled a durable call, so long after the run had begun."""

    after_s: float


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
