"""The walk without an annotation.

Responsible for the wire form itself: JSON types as they are, a closed set of
others under a tag, user data that looks like a tag escaped, everything else
refused with its path. The wire form says what a value is, with or without an
annotation; an annotation only adds classes and what must be there. Refuses to
know classes: those that are registered come with their own nodes.
"""

from collections.abc import Callable
from math import copysign
from typing import Any, Protocol

from durabletask._codec_json import canonical
from durabletask._codec_path import UnfitError, key_segment
from durabletask._codec_refusal import key_refusal, refusal
from durabletask._codec_scalars import (
    PLAIN,
    READERS,
    TAGS,
    check_float,
    pack_scalar,
    read_scalar,
)

PackPart = Callable[[Any, int], Any]
UnpackPart = Callable[[Any, bool], Any]

_CONTAINERS = frozenset({list, dict})


class Node(Protocol):
    """What one annotation means: how its values are written and read.

    Attributes:
        label: The annotation as an error message shows it.
        types: The exact classes of the values it takes; None where that
            cannot be said.
        forms: The wire forms that may be its own, as `form_of` names them;
            None where that cannot be said.
    """

    label: str
    types: frozenset[type] | None
    forms: frozenset[str] | None

    def pack(self, value: Any, depth: int) -> Any:
        """Return the wire form of `value`, which stays untouched; UnfitError if it has none."""

    def unpack(self, raw: Any, lenient: bool) -> Any:
        """Return the value of a wire form, which stays untouched; UnfitError if it is no such.

        Args:
            raw: As the JSON reader gave it.
            lenient: Also read JSON that others wrote, without tags.
        """


def form_of(raw: object) -> str:
    """Return the tag of a tagged form, else the name of the JSON type."""
    if type(raw) is dict and len(raw) == 1:
        tag: str = next(iter(raw))
        if tag[:1] == "$" and tag[:2] != "$$":
            return tag
    return type(raw).__name__


class AnyNode:
    """No annotation: JSON types, the closed set, and registered classes.

    With `strangers`, what is recorded as another class is read as its data.
    """

    label: str = "Any"

    def __init__(self, depth_max: int, *, strangers: bool = False) -> None:
        self._strangers = strangers
        self.types: frozenset[type] | None = None
        self.forms: frozenset[str] | None = None
        self.depth_max = depth_max
        self._classes: dict[type, Node] = {}
        self._by_tag: dict[str, Node] = {}

    def register(self, cls: type, node: Node) -> None:
        """Let objects of `cls` through wherever there is no annotation."""
        self._classes[cls] = node
        self._by_tag.update(dict.fromkeys(node.forms or (), node))

    def pack(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is float:
            return check_float(value)
        if kind is dict:
            return self.pack_dict(value, depth, self.pack, PLAIN)
        if kind is list:
            return self.pack_items(value, depth, self.pack, PLAIN)
        if kind is tuple:
            return {"$tuple": self.pack_items(value, depth, self.pack, PLAIN)}
        if kind is set or kind is frozenset:
            return self.pack_set(value, depth, self.pack)
        if kind in TAGS:
            return pack_scalar(value)
        node = self._classes.get(kind)
        if node is None:
            raise refusal(value)
        return node.pack(value, depth)

    def pack_items(
        self, value: Any, depth: int, pack: PackPart, plain: frozenset[type]
    ) -> list[Any]:
        """Pack a list or tuple; a list of `plain` types is its own wire form."""
        self.check_depth(value, depth)
        if plain.issuperset(map(type, value)):
            return value if type(value) is list else [*value]
        packed = []
        for index, item in enumerate(value):
            try:
                packed.append(pack(item, depth + 1))
            except UnfitError as error:
                error.at(f"[{index}]", value)
                raise
        return packed

    def pack_dict(
        self, value: dict[Any, Any], depth: int, pack: PackPart, plain: frozenset[type]
    ) -> dict[str, Any]:
        """Pack a dictionary with text keys; without anything to tag it is its own wire form."""
        self.check_depth(value, depth)
        packed = value
        for key, item in value.items():
            if type(key) is not str:
                raise key_refusal(key)
            if type(item) in plain:
                continue
            try:
                wire = pack(item, depth + 1)
            except UnfitError as error:
                error.at(key_segment(key), value)
                raise
            if wire is not item:
                if packed is value:
                    packed = value.copy()
                packed[key] = wire
        if len(packed) == 1 and next(iter(packed))[:1] == "$":
            ((key, wire),) = packed.items()
            return {f"${key}": wire}
        return packed

    def pack_set(self, value: Any, depth: int, pack: PackPart) -> Any:
        """Pack a set in an order that does not depend on hashes."""
        self.check_depth(value, depth)
        members = []
        for item in value:
            try:
                wire = pack(item, depth + 1)
                members.append((canonical(wire), wire))
            except UnfitError as error:
                error.at("{…}", value)
                raise
            except TypeError as error:
                raise UnfitError(f"holds {item!a}: {error}") from None
        members.sort(key=lambda member: member[0])
        return {f"${type(value).__name__}": [wire for _, wire in members]}

    def unpack(self, raw: Any, lenient: bool = False) -> Any:
        if type(raw) is list:
            items = []
            for index, item in enumerate(raw):
                try:
                    items.append(self.unpack(item) if type(item) in _CONTAINERS else item)
                except UnfitError as error:
                    error.at(f"[{index}]")
                    raise
            return items
        if type(raw) is not dict:
            return raw
        if len(raw) == 1 and (tag := next(iter(raw)))[:1] == "$":
            return self._unpack_tagged(tag, raw[tag])
        members = {}
        for key, item in raw.items():
            try:
                members[key] = self.unpack(item) if type(item) in _CONTAINERS else item
            except UnfitError as error:
                error.at(key_segment(key))
                raise
        return members

    def _unpack_tagged(self, tag: str, raw: Any) -> Any:
        if tag in READERS:
            return read_scalar(tag, raw)
        if tag[:2] == "$$":
            return {tag[1:]: self.unpack(raw)}
        if tag in ("$tuple", "$set", "$frozenset"):
            if type(raw) is not list:
                raise UnfitError(f"is a {tag[1:]} that holds no array")
            return collect(tag[1:], self.unpack(raw))
        if tag == "$map":
            return unpack_map(raw, self.unpack, self.unpack, False)
        node = self._by_tag.get(tag)
        if node is not None:
            return node.unpack({tag: raw}, False)
        if tag[:2] == "$:" and self._strangers:
            return self._data_of(raw)
        if tag[:2] == "$:":
            raise UnfitError(
                f"is a {tag[2:]!a}, a class that this code was not given",
                f"annotate it, or register the class: ProcessHost(types=[{tag[2:]}])",
            )
        raise UnfitError(f"has the unknown tag {tag!a}", "was it written by a newer release?")

    def _data_of(self, raw: Any) -> Any:
        # The fields, the value of an enum, or of a pydantic model its own JSON
        # beside the names of the fields that were set.
        if type(raw) is list and len(raw) == 2 and type(raw[1]) is list:
            return raw[0]
        return self.unpack(raw)

    def check_depth(self, value: object, depth: int) -> None:
        """Refuse a container at `depth` if the limit is reached."""
        if depth >= self.depth_max:
            error = UnfitError(f"is nested deeper than {self.depth_max} levels", limit=True)
            raise error.at("", value)


def unpack_map(
    raw: Any,
    unpack_key: UnpackPart,
    unpack_value: UnpackPart,
    lenient: bool,
) -> dict[Any, Any]:
    """Read the pairs under `$map`: a dictionary whose annotation allows other keys than text."""
    if type(raw) is not list or not all(type(pair) is list and len(pair) == 2 for pair in raw):
        raise UnfitError("is a map that holds no array of pairs")
    try:
        read = {unpack_key(key, lenient): unpack_value(item, lenient) for key, item in raw}
    except TypeError as error:
        raise UnfitError(f"is a map with a key that cannot be one: {error}") from None
    if len(read) != len(raw):
        raise UnfitError("is a map with a duplicate key")
    return read


def collect(kind: str, items: list[Any]) -> Any:
    """Make the list, tuple, set or frozenset of `items`, which must stay as many."""
    if kind in ("list", "tuple"):
        return items if kind == "list" else tuple(items)
    try:
        members = set(items) if kind == "set" else frozenset(items)
    except TypeError as error:
        raise UnfitError(f"is a {kind} with a member that cannot be one: {error}") from None
    if len(members) != len(items):
        raise UnfitError(f"is a {kind} with a duplicate member")
    return members


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal and of the same types all the way down."""
    kind = type(left)
    if kind is not type(right):
        return False
    if kind is list or kind is tuple:
        return len(left) == len(right) and all(map(same, left, right))
    if kind is dict:
        return _typed(left) == _typed(right) and all(same(left[key], right[key]) for key in left)
    if kind is set or kind is frozenset:
        return _typed(left) == _typed(right)
    if kind is float:
        return bool(left == right) and copysign(1, left) == copysign(1, right)
    return bool(left == right)


def _typed(members: Any) -> set[tuple[type, Any]]:
    """Return members or keys with their types, since 1 == True == 1.0."""
    return {(type(member), member) for member in members}
