"""The nodes of annotations that are no classes of the user.

Responsible for what `int`, `list[X]`, `tuple[X, Y]` and `dict[K, V]` let
through. The wire form is that of `AnyNode`; a node adds which values may be
there, and hands the parts to the nodes of the parts. Refuses to know
annotations: `_codec_compile` reads those.
"""

from collections.abc import Sequence
from typing import Any

from durabletask._codec_any import AnyNode, Node, collect, form_of, unpack_map
from durabletask._codec_path import UnfitError, key_segment
from durabletask._codec_refusal import describe, refusal
from durabletask._codec_scalars import FROM_TEXT, PLAIN, TAGS, read_scalar

_NO_TYPES: frozenset[type] = frozenset()


class ScalarNode:
    """One of the scalars, by its exact classes."""

    def __init__(self, label: str, types: frozenset[type], anything: AnyNode) -> None:
        self.label = label
        self.types: frozenset[type] | None = types
        self.forms: frozenset[str] | None = frozenset(map(_scalar_form, types))
        self._kinds = types
        self._any = anything
        # What foreign JSON says as text: only where one reading is possible.
        text = [kind for kind in types & FROM_TEXT if len(types) == 1 or kind.__name__ == label]
        self._from_text = TAGS[text[0]][0] if text else None

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) not in self._kinds:
            raise refusal(value, self.label)
        return self._any.pack(value, depth)

    def unpack(self, raw: Any, lenient: bool) -> Any:
        if lenient and self._from_text and type(raw) is str:
            return read_scalar(self._from_text, raw)
        if form_of(raw) not in (self.forms or ()):
            raise misfit(raw, self.label)
        return self._any.unpack(raw)


class ItemsNode:
    """`list[X]`, `tuple[X, ...]`, `set[X]`, `frozenset[X]`."""

    def __init__(self, kind: type, item: Node, anything: AnyNode) -> None:
        name = kind.__name__
        self.label = f"tuple[{item.label}, ...]" if kind is tuple else f"{name}[{item.label}]"
        self.types: frozenset[type] | None = frozenset({kind})
        self.forms: frozenset[str] | None = frozenset({name if kind is list else f"${name}"})
        self._kind = kind
        self._item = item
        self._any = anything
        self._plain = plain_types(item)

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not self._kind:
            raise refusal(value, self.label)
        if self._kind is list or self._kind is tuple:
            packed = self._any.pack_items(value, depth, self._item.pack, self._plain)
            return packed if self._kind is list else {"$tuple": packed}
        return self._any.pack_set(value, depth, self._item.pack)

    def unpack(self, raw: Any, lenient: bool) -> Any:
        items = []
        for index, item in enumerate(array_of(raw, self._kind.__name__, self.label, lenient)):
            try:
                items.append(self._item.unpack(item, lenient))
            except UnfitError as error:
                error.at(f"[{index}]")
                raise
        return collect(self._kind.__name__, items)


class TupleNode:
    """`tuple[X, Y]`: so many, each of its own kind."""

    def __init__(self, items: Sequence[Node], anything: AnyNode) -> None:
        self.label = f"tuple[{', '.join(item.label for item in items) or '()'}]"
        self.types: frozenset[type] | None = frozenset({tuple})
        self.forms: frozenset[str] | None = frozenset({"$tuple"})
        self._items = tuple(items)
        self._any = anything

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not tuple:
            raise refusal(value, self.label)
        self._check_count(len(value))
        self._any.check_depth(value, depth)
        packed = []
        for index, (item, node) in enumerate(zip(value, self._items, strict=True)):
            try:
                packed.append(node.pack(item, depth + 1))
            except UnfitError as error:
                error.at(f"[{index}]", value)
                raise
        return {"$tuple": packed}

    def unpack(self, raw: Any, lenient: bool) -> Any:
        parts = array_of(raw, "tuple", self.label, lenient)
        self._check_count(len(parts))
        items = []
        for index, node in enumerate(self._items):
            try:
                items.append(node.unpack(parts[index], lenient))
            except UnfitError as error:
                error.at(f"[{index}]")
                raise
        return tuple(items)

    def _check_count(self, count: int) -> None:
        if count != len(self._items):
            raise UnfitError(f"has {count} items, and the annotation says {self.label}")


class DictNode:
    """`dict[str, V]`."""

    def __init__(self, value: Node, anything: AnyNode) -> None:
        self.label = f"dict[str, {value.label}]"
        self.types: frozenset[type] | None = frozenset({dict})
        self.forms: frozenset[str] | None = frozenset({"dict"})
        self._value = value
        self._any = anything
        self._plain = plain_types(value)

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not dict:
            raise refusal(value, self.label)
        return self._any.pack_dict(value, depth, self._value.pack, self._plain)

    def unpack(self, raw: Any, lenient: bool) -> Any:
        members = {}
        for key, item in object_of(raw, self.label).items():
            try:
                members[key] = self._value.unpack(item, lenient)
            except UnfitError as error:
                error.at(key_segment(key))
                raise
        return members


class MapNode:
    """`dict[K, V]` with keys other than text: pairs, which JSON can hold."""

    def __init__(self, key: Node, value: Node, anything: AnyNode) -> None:
        self.label = f"dict[{key.label}, {value.label}]"
        self.types: frozenset[type] | None = frozenset({dict})
        self.forms: frozenset[str] | None = frozenset({"$map"})
        self._key = key
        self._value = value
        self._any = anything

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not dict:
            raise refusal(value, self.label)
        self._any.check_depth(value, depth)
        pairs = []
        for key, item in value.items():
            try:
                name = self._key.pack(key, depth + 1)
            except UnfitError as error:
                raise UnfitError(f"has a key that {error.message}", error.hint) from None
            try:
                pairs.append([name, self._value.pack(item, depth + 1)])
            except UnfitError as error:
                error.at(f"[{key!a:.60}]", value)
                raise
        return {"$map": pairs}

    def unpack(self, raw: Any, lenient: bool) -> Any:
        if form_of(raw) != "$map":
            raise misfit(raw, self.label)
        return unpack_map(raw["$map"], self._key.unpack, self._value.unpack, lenient)


def plain_types(node: Node) -> frozenset[type]:
    """Return the types that `node` writes as they are, so that nobody need ask it."""
    return (
        (node.types or _NO_TYPES) & PLAIN
        if isinstance(node, ScalarNode)
        else (PLAIN if isinstance(node, AnyNode) else _NO_TYPES)
    )


def array_of(raw: Any, kind: str, label: str, lenient: bool) -> list[Any]:
    """Return the items of an array or of a tagged one."""
    form = form_of(raw)
    items = raw[form] if form == f"${kind}" else raw
    if type(items) is list and (items is not raw or kind == "list" or lenient):
        return items
    raise misfit(raw, label)


def object_of(raw: Any, label: str) -> dict[str, Any]:
    """Return the members of an object that is no tag, unescaped."""
    if form_of(raw) != "dict":
        raise misfit(raw, label)
    if len(raw) == 1 and (key := next(iter(raw)))[:2] == "$$":
        return {key[1:]: raw[key]}
    members: dict[str, Any] = raw
    return members


def misfit(raw: Any, label: str) -> UnfitError:
    """Return the error for a recorded form that is not what the annotation asks for."""
    form = form_of(raw)
    kind = f"a {form.lstrip('$:')}" if form[:1] == "$" else describe(raw)
    return UnfitError(
        f"is recorded as {kind}, and the code asks for {label}",
        "go back to the recorded type, or use a new key for the new one",
    )


def _scalar_form(kind: type) -> str:
    return TAGS[kind][0] if kind in TAGS else kind.__name__
