"""JSON text, strictly.

Responsible for the one way in which payloads are written and read: UTF-8, no
raw newline, no duplicate keys, no number that a double or 64 bits cannot hold.
Refuses to know what the JSON stands for.
"""

import json
from typing import Any, NoReturn

import orjson

from durabletask._codec_path import INT_MAX, INT_MIN
from durabletask._errors import DecodeError


def loads(payload: bytes) -> Any:
    """Return what `payload` says.

    orjson lets two things pass that would be wrong values: of duplicate keys
    the last one wins, and an integer beyond 64 bits becomes a float. Text that
    orjson wrote itself comes out the same when written again; only other text
    is read a second time, slowly and strictly.

    Raises:
        DecodeError: It is no JSON, or JSON that says two things at once.
    """
    try:
        raw = orjson.loads(payload)
        if _is_ours(raw, payload):
            return raw
        json.loads(
            payload,
            object_pairs_hook=_unique,
            parse_int=_narrow,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise DecodeError(f"the payload is nested too deep: {excerpt(payload)}") from None
    except (ValueError, TypeError) as error:
        raise DecodeError(f"the payload is no valid JSON ({error}): {excerpt(payload)}") from None
    return raw


def canonical(wire: object) -> bytes:
    """Return the one text of equal wire forms: keys sorted, and the pairs of maps.

    Raises:
        TypeError: orjson cannot write it.
    """
    text = orjson.dumps(wire, option=orjson.OPT_SORT_KEYS)
    if b'"$map"' not in text:
        return text
    return orjson.dumps(_in_order(orjson.loads(text)), option=orjson.OPT_SORT_KEYS)


def excerpt(payload: object) -> str:
    """Return the beginning of a payload for a message, safe for a log."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        return f"a {type(payload).__name__}"
    head = bytes(payload[:60])
    return repr(head) if len(payload) <= 60 else f"{head!r}… ({len(payload):,} bytes)"


def _is_ours(raw: object, payload: bytes) -> bool:
    try:
        return orjson.dumps(raw) == payload
    except TypeError:  # deeper than orjson writes, so orjson did not write it
        return False


def _in_order(wire: Any) -> Any:
    if type(wire) is list:
        return [_in_order(item) for item in wire]
    if type(wire) is not dict:
        return wire
    members = {key: _in_order(item) for key, item in wire.items()}
    pairs = members.get("$map")
    return {"$map": sorted(pairs, key=orjson.dumps)} if type(pairs) is list else members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice!a}")
    return members


def _narrow(digits: str) -> int:
    if len(digits) <= 20 and INT_MIN <= (number := int(digits)) <= INT_MAX:
        return number
    raise ValueError(f"integer of {len(digits)} digits, beyond 64 bits")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
