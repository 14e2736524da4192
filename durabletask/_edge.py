"""What comes in from callers, checked before anything is written. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, Protocol, get_args

import msgspec

from durabletask._errors import InvalidArgumentError, InvalidIdError, ProcessExistsError
from durabletask._limits import check_name
from durabletask._model import ProcessRow
from durabletask._transitions import FINISHED

RESERVED = "durabletask:"
"""How no name of a user's event may begin."""

OnExisting = Literal["return", "error", "replace"]
"""What becomes of a spawn whose id exists."""

ON_EXISTING: tuple[str, ...] = get_args(OnExisting)


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Attrs(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _Pydantic(Protocol):
    __pydantic_validator__: ClassVar[Any]


class _NamedTuple(Protocol):
    def _asdict(self) -> dict[str, Any]: ...


EventObject = _Dataclass | msgspec.Struct | _Attrs | _Pydantic | _NamedTuple
"""An object whose class is an event: name and type in one."""


def checked_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """Return tags of which each can be stored.

    Raises:
        InvalidArgumentError: They are no mapping.
        InvalidIdError: One cannot.
    """
    if not isinstance(tags, Mapping | None):
        raise InvalidArgumentError(f"tags are {tags!r:.80}", hint='a dict: tags={"team": "a"}')
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
    is_aware = isinstance(moment, datetime) and moment.utcoffset() is not None
    if not (is_aware or isinstance(moment, timedelta)):
        raise InvalidArgumentError(
            f"{what} is {moment!r}",
            hint="a timedelta, or an aware datetime such as datetime.now(UTC) + …",
        )
    try:
        return moment.astimezone(UTC) if isinstance(moment, datetime) else now + moment
    except OverflowError:
        raise InvalidArgumentError(
            f"{what} is {moment}, which leaves the calendar", hint="the years 1 to 9999, in UTC"
        ) from None


def times_of(
    start_at: datetime | timedelta | None, deadline: datetime | timedelta | None, now: datetime
) -> tuple[datetime | None, datetime | None]:
    """Return when a process begins at the earliest, and when it is cancelled at the latest.

    Raises:
        InvalidArgumentError: One is no moment, or it would be over before it could begin.
    """
    begins = moment_of("start_at", start_at, now)
    ends = moment_of("deadline", deadline, begins or now)
    is_never = ends is not None and begins is not None and ends <= begins
    if is_never or (isinstance(deadline, timedelta) and deadline <= timedelta(0)):
        raise InvalidArgumentError(
            f"deadline {deadline!r} is not after the start, {begins or 'now'}",
            hint="a timedelta is counted from start_at on, or from now on without one",
        )
    return begins, ends


def check_existing(row: ProcessRow, name: str, digest: str, on_existing: str) -> None:
    """Raise unless a spawn may return the process that exists already.

    Raises:
        ProcessExistsError: It may not; nothing was written.
    """
    process_id = row.process_id
    if on_existing == "error":
        raise ProcessExistsError(process_id, f"process {process_id!r} exists already")
    if on_existing == "replace":
        raise ProcessExistsError(
            process_id,
            f"process {process_id!r} is {row.status.value}, and only a finished one is replaced",
            hint="try again; somebody was creating it"
            if row.status in FINISHED
            else "terminate it first, or wait for its result",
        )
    if row.input_digest != digest:
        what = "input" if row.name == name else f"function, {row.name!r}"
        raise ProcessExistsError(
            process_id,
            f"process {process_id!r} exists already with another {what}",
            hint="one id is one piece of work: use another id, or purge the old process",
        )


def event_name(name: object) -> str:
    """Return a name as it is, or the one that a class of events goes by.

    Raises:
        InvalidIdError: It cannot name an event.
    """
    if isinstance(name, type):
        if name.__module__ == "builtins":
            raise InvalidArgumentError(
                f"{name.__name__} is no class of events",
                hint='a dataclass or the like; or a name: event("number", int)',
            )
        name = name.__name__
    text = check_name("event name", name)
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
    if type(name).__module__ == "builtins" and not isinstance(name, type):
        check_name("event name", name)  # which it cannot be
    if payload is not None or isinstance(name, type):
        raise InvalidArgumentError(
            f"an event is a name and a payload, or one object; not {name!r} and {payload!r}",
            hint='raise_event(id, "approved", payload), or raise_event(id, Approved(…))',
        )
    return event_name(type(name)), name
