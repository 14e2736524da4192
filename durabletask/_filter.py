"""Which processes a caller means: the filter of `list` and of everything done in bulk. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TypedDict

from msgspec.structs import replace

from durabletask._edge import checked_tags
from durabletask._errors import InvalidArgumentError
from durabletask._limits import check_name
from durabletask._model import Query, Status

PAGE_MAX = 1_000


class Filter(TypedDict, total=False):
    """What a process must have; every member that is given must match.

    Attributes:
        status: One or several.
        name: Of the process function.
        prefix: Of the process_id.
        tags: All of them must be there, with these values.
        created_from, created_until: When it was spawned; aware. The first is
            included, the second is not.
        finished_from, finished_until: When it ended; the same.
        parent: Id of the process that spawned it.
    """

    status: Status | str | Iterable[Status | str] | None
    name: str | None
    prefix: str | None
    tags: Mapping[str, str] | None
    created_from: datetime | None
    created_until: datetime | None
    finished_from: datetime | None
    finished_until: datetime | None
    parent: str | None


def query_of(given: Filter, limit: int = 100, cursor: str | None = None) -> Query:
    """Return the query for a filter.

    Raises:
        InvalidArgumentError, InvalidIdError: Something in it means nothing.
    """
    for member in given:
        if member not in Filter.__annotations__:
            raise InvalidArgumentError(
                f"processes cannot be looked for by {member}=",
                hint="by " + ", ".join(Filter.__annotations__),
            )
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= PAGE_MAX:
        raise InvalidArgumentError(f"limit must be 1 to {PAGE_MAX:,}, not {limit!r}")
    return Query(
        statuses=_statuses(given.get("status")),
        name=_text("name", given.get("name")),
        prefix=_text("prefix", given.get("prefix") or None),
        tags=checked_tags(given.get("tags")),
        created_from=_moment("created_from", given.get("created_from")),
        created_until=_moment("created_until", given.get("created_until")),
        finished_from=_moment("finished_from", given.get("finished_from")),
        finished_until=_moment("finished_until", given.get("finished_until")),
        parent_id=_text("parent", given.get("parent")),
        cursor=cursor,
        limit=limit,
    )


def bulk_query(verb: str, given: Filter, *, all: bool, possible: frozenset[Status]) -> Query:
    """Return the query for what is to be done to many processes.

    Args:
        verb: What is to be done, for messages.
        all: Whether every process is meant; then without a filter.
        possible: The statuses in which it can be done; only those are asked for.

    Raises:
        InvalidArgumentError: Neither filter nor `all`, or both; or a member of
            it is empty; or it can be done in none of the statuses given.
            Nothing was written.
    """
    query = query_of(given, PAGE_MAX)
    # An empty value is what a variable holds that was never filled: it must not mean a fleet.
    is_filtered = any(value for value in given.values())
    if not (is_filtered or all):
        raise InvalidArgumentError(
            f"{verb} in bulk takes a filter, or every process would be meant; nothing was written",
            hint=f'{verb}(name="…"), or {verb}(all=True)',
        )
    if is_filtered and all:
        raise InvalidArgumentError(
            f"{verb} in bulk takes a filter or all=True and not both; nothing was written"
        )
    for member, value in given.items():
        if value is not None and not value:
            raise InvalidArgumentError(
                f"{verb} in bulk with {member}={value!r} would mean all that the rest of the "
                "filter finds; nothing was written",
                hint=f"leave {member}= out if that is meant",
            )
    statuses = possible if query.statuses is None else query.statuses & possible
    if not statuses:
        named = ", ".join(sorted(query.statuses or ())) or "no status"
        raise InvalidArgumentError(
            f"{verb} is not possible for what is {named}; nothing was written",
            hint="possible for: " + ", ".join(sorted(possible)),
        )
    return replace(query, statuses=statuses)


def _statuses(status: Status | str | Iterable[Status | str] | None) -> frozenset[Status] | None:
    if status is None:
        return None
    try:
        return frozenset(Status(one) for one in ((status,) if isinstance(status, str) else status))
    except (ValueError, TypeError) as problem:
        raise InvalidArgumentError(
            str(problem), hint="one or several of " + ", ".join(Status)
        ) from None


def _text(what: str, text: str | None) -> str | None:
    return None if text is None else check_name(what, text)


def _moment(what: str, moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidArgumentError(
            f"{what} is {moment!r}", hint="an aware datetime, such as datetime.now(UTC) - …"
        )
    return moment.astimezone(UTC)
