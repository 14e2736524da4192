"""Where in a value something is wrong.

Responsible for the paths in error messages, such as `result.items[3]['price']`.
A path costs nothing until there is an error: whoever walks a value adds its
own segment while the error passes through. What orjson alone notices (size,
lone surrogates, numbers too wide) is looked for afterwards, in the wire form.
Refuses to know types: it sees the wire form, in which `{"$tag": …}` is a
layer that the user never wrote.
"""

from collections.abc import Callable, Iterator
from typing import Any

import orjson

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What orjson writes and reads exactly: signed or unsigned 64 bit."""

_PATH_SEGMENTS_MAX = 24
"""A path into 100 levels is no help to anybody; its middle is left out."""


class UnfitError(Exception):
    """A part of a value does not fit; becomes a public error at the top of the walk.

    Attributes:
        message: What is wrong, to be read after the path.
        hint: The change to make.
        limit: Whether a limit was exceeded, as opposed to a type being wrong.
    """

    def __init__(self, message: str, hint: str | None = None, *, limit: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.limit = limit
        self._segments: list[str] = []
        self._containers: list[object] = []

    def at(self, segment: str, container: object = None) -> "UnfitError":
        """Add the step from `container` to the part at fault; innermost first."""
        self._segments.append(segment)
        if container is not None:
            self._containers.append(container)
        return self

    def path(self, root: str) -> str:
        """Return the path from `root` to the part at fault."""
        return render(root, self._segments[::-1])

    @property
    def steps(self) -> int:
        """How far into the value the part at fault is."""
        return len(self._segments)

    @property
    def cyclic(self) -> bool:
        """Whether the walk met one container twice on its way down."""
        return len({id(container) for container in self._containers}) < len(self._containers)

    @property
    def cycle_segments(self) -> list[str]:
        """The steps from the top into the first container that is met again."""
        path, containers = self._segments[::-1], self._containers[::-1]
        seen: set[int] = set()
        for count, container in enumerate(containers):
            if id(container) in seen:
                return path[:count]
            seen.add(id(container))
        return path


def render(root: str, segments: list[str]) -> str:
    """Return `root` followed by the segments, at most a screen line or two."""
    if len(segments) > _PATH_SEGMENTS_MAX:
        half = _PATH_SEGMENTS_MAX // 2
        segments = [*segments[:half], " … ", *segments[-half:]]
    return root + "".join(segments)


def key_segment(key: str) -> str:
    """Return the segment of a dictionary key, cut if it is long, safe for a log."""
    return f"[{key!a}]" if len(key) <= 60 else f"[{key[:60]!a}…]"


def broken_text(wire: object) -> tuple[list[str], str] | None:
    """Find what orjson would not write: a lone surrogate or an integer beyond 64 bits.

    Returns:
        The segments that lead there and what is wrong, or None.
    """
    return _search(wire, _unwritable)


def largest_part(wire: Any) -> list[str]:
    """Return the segments to the smallest part that makes up more than half of `wire`."""
    segments: list[str] = []
    whole = _size(wire)
    while True:
        biggest = max(
            ((_size(part), segment, part) for segment, part in _parts(wire)),
            key=lambda candidate: candidate[0],
            default=(0, "", None),
        )
        if biggest[0] * 2 <= whole:
            return segments
        whole, segment, wire = biggest
        if segment:
            segments.append(segment)


def _size(wire: Any) -> int:
    return len(orjson.dumps(wire))


def _unwritable(wire: object) -> str | None:
    if type(wire) is int and not INT_MIN <= wire <= INT_MAX:
        bits = wire.bit_length()
        return f"is an integer of {bits} bits, beyond -2**63 to 2**64 - 1; record it as str(…)"
    texts = [wire] if type(wire) is str else [*wire] if type(wire) is dict else []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"has a lone surrogate at position {error.start}; record such text as bytes"
    return None


def _search(wire: object, wrong: Callable[[object], str | None]) -> tuple[list[str], str] | None:
    problem = wrong(wire)
    if problem is not None:
        return [], problem
    for segment, part in _parts(wire):
        found = _search(part, wrong)
        if found is not None:
            segments, problem = found
            return ([segment, *segments] if segment else segments), problem
    return None


def _parts(wire: object) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a container as the user knows them; a tag is a step of no name."""
    if type(wire) is list:
        yield from ((f"[{index}]", part) for index, part in enumerate(wire))
    elif type(wire) is dict:
        tag = next(iter(wire)) if len(wire) == 1 else ""
        inner = wire[tag] if tag.startswith("$:") else None
        if type(inner) is list and len(inner) == 2:
            inner = inner[0]  # a pydantic model, beside the names of the fields that were set
        if type(inner) is dict:
            yield from ((f".{name}", part) for name, part in inner.items())
        elif tag.startswith("$$"):
            yield key_segment(tag[1:]), wire[tag]
        elif tag.startswith("$"):
            yield "", wire[tag]
        else:
            yield from ((key_segment(key), part) for key, part in wire.items())
