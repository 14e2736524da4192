"""What comes in from callers, checked before anything is written. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from durabletask._errors import InvalidArgumentError, InvalidIdError
from durabletask._limits import check_name

RESERVED = "durabletask:"
"""How no name of a user's event may begin."""


def checked_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """Return tags of which each can be stored.

    Raises:
        InvalidIdError: One cannot.
    """
    return {
        check_name("tag", key): check_name(f"tag {key!r}", value)
        for key, value in (tags or {}).items()
    }


def moment_of(what: str, moment: datetime | timedelta | None, now: datetime) -> datetime | None:
    """Return a moment given as such, or from `now` on.

    Raises:
        InvalidArgumentError: It has no time zone, or lies outside the calendar.
    """
    if moment is None:
        return None
    if isinstance(moment, datetime) and moment.utcoffset() is not None:
        return moment.astimezone(UTC)
    if not isinstance(moment, timedelta):
        raise InvalidArgumentError(
            f"{what} is {moment!r}",
            hint="a timedelta, or an aware datetime such as datetime.now(UTC) + …",
        )
    try:
        return now + moment
    except OverflowError:
        raise InvalidArgumentError(f"{what} is {moment}, which leaves the calendar") from None


def event_name(name: object) -> str:
    """Return a name as it is, or the one that a class of events goes by.

    Raises:
        InvalidIdError: It cannot name an event.
    """
    text = check_name("event name", name.__name__ if isinstance(name, type) else name)
    if text.startswith(RESERVED):
        raise InvalidIdError(f"event name {text!r} begins with {RESERVED!r}, which is the engine's")
    return text


def event_of(name: object, payload: object = None) -> tuple[str, Any]:
    """Return name and payload of an event that is given as both, or as an object of its class.

    Raises:
        InvalidArgumentError: An object, and a payload beside it.
        InvalidIdError: The name cannot be one.
    """
    if isinstance(name, str):
        return event_name(name), payload
    if payload is not None or isinstance(name, type):
        raise InvalidArgumentError(
            f"an event is a name and a payload, or one object; not {name!r} and {payload!r}",
            hint='raise_event(id, "approved", payload), or raise_event(id, Approved(…))',
        )
    return event_name(type(name)), name
