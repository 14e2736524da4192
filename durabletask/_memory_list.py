"""Which processes a query asks for, and where its next page begins."""

from datetime import datetime

from durabletask._errors import InvalidArgumentError
from durabletask._memory_process import ProcessState
from durabletask._model import Query

PAGE_MAX = 1_000

_MARK = "memory"

Position = tuple[datetime, str]
"""(created_at, process_id): where a process stands in a listing, for as long as it exists."""


def position(process: ProcessState) -> Position:
    """Return where a process stands in every listing."""
    return process.created_at, process.process_id


def matches(process: ProcessState, query: Query) -> bool:
    """Return whether a process has everything that the query asks for."""
    tags = process.tags or {}
    return (
        (query.statuses is None or process.status in query.statuses)
        and (query.name is None or process.name == query.name)
        and (query.prefix is None or process.process_id.startswith(query.prefix))
        and all(tags.get(key) == value for key, value in query.tags.items())
        and _between(process.created_at, query.created_from, query.created_until)
        and _between(process.finished_at, query.finished_from, query.finished_until)
        and (query.parent_id is None or _parent_id(process) == query.parent_id)
    )


def check_limit(query: Query) -> None:
    """Raise InvalidArgumentError unless the query asks for 1 to 1,000 processes."""
    if not 1 <= query.limit <= PAGE_MAX:
        raise InvalidArgumentError(f"limit must be 1 to {PAGE_MAX:,}, not {query.limit}")


def cursor_after(process: ProcessState) -> str:
    """Return the cursor of a page that ends with this process."""
    return f"{_MARK} {process.created_at.isoformat()} {process.process_id}"


def read_cursor(cursor: str) -> Position:
    """Return the position behind which a page begins.

    Raises:
        InvalidArgumentError: The text is no cursor of this storage.
    """
    mark, _, rest = cursor.partition(" ")
    at, _, process_id = rest.partition(" ")
    try:
        created_at = datetime.fromisoformat(at)
    except ValueError:
        created_at = None
    if mark != _MARK or created_at is None or created_at.tzinfo is None or not process_id:
        raise InvalidArgumentError(
            f"{cursor[:80]!r} is no cursor of this storage",
            hint="pass Page.cursor of the page before, unchanged",
        )
    return created_at, process_id


def _between(at: datetime | None, begin: datetime | None, end: datetime | None) -> bool:
    """Return whether begin <= at < end, as far as they are given."""
    if begin is None and end is None:
        return True
    return at is not None and (begin is None or begin <= at) and (end is None or at < end)


def _parent_id(process: ProcessState) -> str | None:
    return None if process.parent is None else process.parent.process_id
