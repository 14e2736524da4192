"""The nodes of annotations that leave a choice: `A | B` and `Literal[…]`.

Responsible for finding the member that takes a value. Since the wire form says
what a value is, nothing is guessed when it is read again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from durabletask._codec_any import Node, form_of, same
from durabletask._codec_nodes import misfit
from durabletask._codec_path import UnfitError
from durabletask._codec_refusal import refusal


class LiteralNode:
    """`Literal[…]`: these very values."""

    def __init__(self, members: Sequence[tuple[Any, Node]]) -> None:
        self.label = f"Literal[{', '.join(repr(member) for member, _ in members)}]"
        self.types: frozenset[type] | None = frozenset(type(member) for member, _ in members)
        self.forms: frozenset[str] | None = frozenset().union(
            *(node.forms or () for _, node in members)
        )
        self._members = tuple(members)

    def pack(self, value: Any, depth: int) -> Any:
        for member, node in self._members:
            if same(member, value):
                return node.pack(value, depth)
        raise UnfitError(f"is {value!a:.60}, and the annotation says {self.label}")

    def unpack(self, raw: Any, lenient: bool) -> Any:
        form = form_of(raw)
        for member, node in self._members:
            if not lenient and form not in (node.forms or ()):
                continue
            try:
                value = node.unpack(raw, lenient)
            except UnfitError:
                continue
            if same(member, value):
                return member
        raise UnfitError(f"is {raw!a:.60}, and the annotation says {self.label}")


class UnionNode:
    """`A | B`: the first member that takes the value.

    Since the wire form says what a value is, the order of the members matters
    only for JSON that others wrote.
    """

    def __init__(self, members: Sequence[Node]) -> None:
        self.label = " | ".join(member.label for member in members)
        self.types = _union([member.types for member in members])
        self.forms = _union([member.forms for member in members])
        self._members = tuple(members)

    def pack(self, value: Any, depth: int) -> Any:
        kind = type(value)
        takers = [node for node in self._members if node.types is None or kind in node.types]
        done, result = _first(takers, lambda node: node.pack(value, depth))
        if not done:
            raise refusal(value, self.label)
        return result

    def unpack(self, raw: Any, lenient: bool) -> Any:
        form = form_of(raw)
        readers = [node for node in self._members if node.forms is None or form in node.forms]
        if lenient and not readers:
            readers = list(self._members)
        done, result = _first(readers, lambda node: node.unpack(raw, lenient))
        if not done:
            raise misfit(raw, self.label)
        return result


def _first(nodes: list[Node], attempt: Callable[[Node], Any]) -> tuple[bool, Any]:
    """Return the first result; the error that came farthest if there is none but a path."""
    farthest: UnfitError | None = None
    for node in nodes:
        try:
            return True, attempt(node)
        except UnfitError as error:
            # With one node its error is the best that can be said.
            if error.limit or len(nodes) == 1:
                raise
            if error.steps > (farthest.steps if farthest else 0):
                farthest = error
    if farthest is not None:
        raise farthest
    return False, None


def _union(sets: list[frozenset[Any] | None]) -> frozenset[Any] | None:
    known = [some for some in sets if some is not None]
    return frozenset().union(*known) if len(known) == len(sets) else None
