"""The scalars that JSON lacks, each under its tag.

Responsible for the exact text of bytes, dates, times, decimals and UUIDs, and
for nothing that has parts. A tag is written `{"$uuid": "…"}`.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from durabletask._codec_path import UnfitError

Pack = Callable[[Any], Any]
Unpack = Callable[[Any], Any]

PLAIN: frozenset[type] = frozenset({str, int, bool, type(None)})
"""Written as they are; orjson itself refuses what of them JSON cannot hold."""

JSON_SCALARS: frozenset[type] = PLAIN | {float}


def check_float(value: float) -> float:
    """Return `value` if JSON can hold it; orjson would write null for what it cannot."""
    if math.isfinite(value):
        return value
    raise UnfitError(f"is {value}, which JSON cannot hold", "record None or a str instead")


def _pack_moment(value: datetime | time) -> Any:
    if value.tzinfo is None:
        # fold tells the two 2:30s of an autumn night apart; == does not see it.
        return [value.isoformat(), 1] if value.fold else value.isoformat()
    if value.utcoffset() is None:
        raise UnfitError(
            f"has the zone {value.tzinfo}, which gives it no offset",
            "record a datetime, or a time with a fixed offset",
        )
    return value.isoformat()


def _moment(kind: type[datetime] | type[time]) -> Unpack:
    def unpack(raw: Any) -> Any:
        if type(raw) is list:
            text, fold = raw
            if fold != 1 or type(fold) is not int:
                raise ValueError("fold is 1 or absent")
            return kind.fromisoformat(text).replace(fold=1)
        return kind.fromisoformat(raw)

    return unpack


def _pack_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise UnfitError(f"is Decimal('{value}'), which is no number", "record None instead")
    return str(value)


def _unpack_decimal(raw: Any) -> Decimal:
    if type(raw) is not str:
        raise ValueError("a decimal is written as text")
    value = Decimal(raw)
    if not value.is_finite():
        raise ValueError("no finite number")
    return value


def _unpack_timedelta(raw: Any) -> timedelta:
    days, seconds, microseconds = raw
    if not all(type(part) is int for part in raw):
        raise ValueError("days, seconds and microseconds are integers")
    return timedelta(days, seconds, microseconds)


def _unpack_bytes(raw: Any) -> bytes:
    return b64decode(raw, validate=True)


TAGS: dict[type, tuple[str, Pack, Unpack]] = {
    bytes: ("$bytes", lambda value: b64encode(value).decode(), _unpack_bytes),
    datetime: ("$datetime", _pack_moment, _moment(datetime)),
    date: ("$date", date.isoformat, date.fromisoformat),
    time: ("$time", _pack_moment, _moment(time)),
    timedelta: (
        "$timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        _unpack_timedelta,
    ),
    Decimal: ("$decimal", _pack_decimal, _unpack_decimal),
    UUID: ("$uuid", str, UUID),
}

READERS: dict[str, Unpack] = {tag: unpack for tag, _, unpack in TAGS.values()}

FROM_TEXT: frozenset[type] = frozenset({datetime, date, time, Decimal, UUID})
"""Types whose plain text in foreign JSON says enough to be read under an annotation."""


def pack_scalar(value: Any) -> Any:
    """Return the tagged form of a value whose exact type is in TAGS."""
    tag, pack, _ = TAGS[type(value)]
    return {tag: pack(value)}


def read_scalar(tag: str, raw: Any) -> Any:
    """Return the value under one of the READERS' tags.

    Raises:
        UnfitError: The text is not of that kind.
    """
    try:
        return READERS[tag](raw)
    except (ValueError, TypeError, AttributeError, OverflowError, InvalidOperation) as error:
        raise UnfitError(f"is no {tag[1:]}: {error}") from None
