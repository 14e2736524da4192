"""Which checkpoints ended a process: a recorded error remembers where it is recorded.

`retry` forgets these, and keeps the failures that the process had handled. So
the exceptions that durable calls raise carry their place with them, and the
record of the error that ended the process names the places found in it.
"""

from typing import Any, TypeVar

import msgspec
import orjson

from durabletask._model import Checkpoint, Kind, Place

E = TypeVar("E", bound=BaseException)

_PLACE = "__durabletask_place__"
_MEMBER = "culprits"

FOUND_MAX = 1_000
"""Of a group of ten thousand failures so many are named; the others come up at the next try."""

DEPTH_MAX = 200
"""Of causes of causes: a chain without end must not end the run."""


def mark(error: E, held: Checkpoint) -> E:
    """Let an error that a durable call is about to raise tell where it is recorded; return it."""
    return mark_place(error, held.kind, held.key, held.index)


def mark_place(error: E, kind: Kind, key: str, index: int) -> E:
    """As `mark`; the outermost place is the one that is recorded, so it replaces an earlier one."""
    # Into the dictionary that every exception has: a class of the user's may be frozen.
    vars(error)[_PLACE] = Place(kind, key, index)
    return error


def culprits(error: BaseException) -> list[Place]:
    """Return the places of the recorded errors that an error comes from.

    An error that is recorded itself is the culprit, whatever was handled
    when it was raised. Else those behind it: the members of a group, its
    `__cause__`, or if that leads nowhere what was being handled (`__context__`).
    """
    return list(dict.fromkeys(_behind(error, set(), 0)))[:FOUND_MAX]


def _behind(error: BaseException | None, seen: set[int], depth: int) -> list[Place]:
    if error is None or id(error) in seen or depth > DEPTH_MAX:
        return []
    seen.add(id(error))
    place = vars(error).get(_PLACE)
    if isinstance(place, Place):
        return [place]
    if isinstance(error, BaseExceptionGroup):
        return [each for inner in error.exceptions for each in _behind(inner, seen, depth + 1)]
    return _behind(error.__cause__, seen, depth + 1) or _behind(error.__context__, seen, depth + 1)


def with_culprits(payload: bytes, error: BaseException) -> bytes:
    """Return the record of an error with the places that it comes from, if there are any."""
    places = culprits(error)
    if not places:
        return payload
    record = orjson.loads(payload)
    record[_MEMBER] = [[place.kind.value, place.key, place.index] for place in places]
    return orjson.dumps(record)


def read_culprits(payload: bytes) -> tuple[Place, ...]:
    """Return the places that the record of an error names; none if it names none that are any."""
    record: Any = orjson.loads(payload)
    named = record.get(_MEMBER, ()) if isinstance(record, dict) else ()
    try:
        return tuple(msgspec.convert(named, tuple[Place, ...]))
    except msgspec.ValidationError:
        return ()  # of a release that knows more; then the error is looked at anew
