"""Classes with fields: dataclasses, attrs, msgspec structs, named and typed dicts.

Responsible for writing an object as its fields under the name of its class,
and for restoring it exactly: a recorded object is put together field by field,
without running its constructor, since it was constructed once already. Only
JSON that others wrote goes through the constructor and what that checks.
Refuses to resolve a name: the class comes from an annotation or was
registered, and what is recorded must bear its name.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

import msgspec

from durabletask._codec_any import AnyNode, Node, form_of
from durabletask._codec_nodes import misfit, object_of
from durabletask._codec_path import UnfitError
from durabletask._codec_refusal import refusal

NO_DEFAULT: Any = object()
_ABSENT: Any = object()
_NOTHING: AbstractSet[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a class.

    Attributes:
        name: The attribute, and the name in the record.
        argument: The constructor's name for it; None where it takes none.
        foreign: Its name in JSON that others write.
        default: Gives the value for records that lack the field, or NO_DEFAULT.
    """

    name: str
    argument: str | None
    foreign: str
    default: Callable[[], Any]


Restore = Callable[[type, dict[str, Any]], Any]


class ClassNode:
    """A class with fields; the nodes of the fields come when they are known (`fill`)."""

    def __init__(
        self,
        cls: type,
        fields: Sequence[Field],
        restore: Restore,
        anything: AnyNode,
        *,
        verify: bool = False,
    ) -> None:
        self.label = cls.__name__
        self.types: frozenset[type] | None = frozenset({cls})
        self.forms: frozenset[str] | None = frozenset({f"$:{cls.__name__}"})
        self._cls = cls
        self._tag = f"$:{cls.__name__}"
        self._fields = tuple(fields)
        self._nodes: Mapping[str, Node] = {}
        self._names = {field.name for field in fields}
        self._restore = restore
        self._verify = verify
        self._any = anything
        # Page[int](…) sets __orig_class__, which only says how the class was called.
        self._volatile = _cached_properties(cls) | {"__orig_class__"}
        self._slots = _other_slots(cls, self._names)

    def fill(self, nodes: Mapping[str, Node]) -> None:
        """Give each field its node; separate because a class may hold itself."""
        self._nodes = nodes

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not self._cls:
            raise self._refusal(value)
        self._any.check_depth(value, depth)
        self._check_nothing_else(value)
        packed = {}
        for field in self._fields:
            item = getattr(value, field.name, _ABSENT)
            if item is _ABSENT:
                continue
            try:
                packed[field.name] = self._nodes[field.name].pack(item, depth + 1)
            except UnfitError as error:
                error.at(f".{field.name}", value)
                raise
        wire = {self._tag: packed}
        if self._verify:
            self.unpack(wire, False)  # the constructor may refuse what it once let through
        return wire

    def unpack(self, raw: Any, lenient: bool) -> Any:
        form = form_of(raw)
        if form == self._tag and type(raw[form]) is dict:
            return self._recorded(raw[form], lenient)
        if lenient and form == "dict":
            return self._foreign(object_of(raw, self.label))
        raise misfit(raw, self.label)

    def _recorded(self, raw: dict[str, Any], lenient: bool) -> Any:
        values = {}
        filled = []
        for field in self._fields:
            if field.name in raw:
                values[field.name] = self._part(field, raw[field.name], lenient)
            elif field.default is not NO_DEFAULT:
                values[field.name] = call_user_code(field.default)
                filled.append(field.name)
            elif field.argument is not None:
                raise UnfitError(
                    f"is a recorded {self.label} without {field.name!r}",
                    "give the new field a default",
                )
        unknown = raw.keys() - self._names
        if unknown and filled:
            # One gone and one new: most likely a renamed field, and taking the
            # default for it would go on with a wrong value.
            raise UnfitError(
                f"is a recorded {self.label} with {min(unknown)!a} and without {filled[0]!r}",
                "keep the name of a recorded field",
            )
        return self._restore(self._cls, values)

    def _foreign(self, raw: dict[str, Any]) -> Any:
        arguments = {}
        by_name = {field.foreign: field for field in self._fields if field.argument is not None}
        for name, item in raw.items():
            field = by_name.get(name)
            if field is None or field.argument is None:
                raise UnfitError(f"has {name!a}, which is no field of {self.label}")
            arguments[field.argument] = self._part(field, item, True)
        return call_user_code(self._cls, **arguments)

    def _part(self, field: Field, raw: Any, lenient: bool) -> Any:
        try:
            return self._nodes[field.name].unpack(raw, lenient)
        except UnfitError as error:
            error.at(f".{field.name}")
            raise

    def _refusal(self, value: Any) -> UnfitError:
        if isinstance(value, self._cls):
            name = type(value).__name__
            return UnfitError(
                f"is a {name}, and would come back as the {self.label} of the annotation",
                f"annotate {self.label} | {name}",
            )
        return refusal(value, self.label)

    def _check_nothing_else(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None) or {}
        extra = attributes.keys() - self._names if attributes else _NOTHING
        if self._slots:
            extra = {*extra, *(name for name in self._slots if hasattr(value, name))}
        if extra and (extra := extra - self._volatile):
            raise UnfitError(
                f"has the attribute {min(extra)!r}, which is no field and would be lost",
                "declare it as a field (init=False), or keep it out of recorded objects",
            )


class TypedDictNode:
    """A TypedDict: a dictionary whose known keys have their own types."""

    def __init__(self, cls: type, required: frozenset[str], anything: AnyNode) -> None:
        self.label = cls.__name__
        self.types: frozenset[type] | None = frozenset({dict})
        self.forms: frozenset[str] | None = frozenset({"dict"})
        self._required = required
        self._any = anything
        self._nodes: Mapping[str, Node] = {}

    def fill(self, nodes: Mapping[str, Node]) -> None:
        """Give each key its node; separate because a class may hold itself."""
        self._nodes = nodes

    def pack(self, value: Any, depth: int) -> Any:
        if type(value) is not dict:
            raise refusal(value, self.label)
        self._check_keys(value)
        self._any.check_depth(value, depth)
        packed = {}
        for key, item in value.items():
            try:
                packed[key] = self._nodes[key].pack(item, depth + 1)
            except UnfitError as error:
                error.at(f"[{key!r}]", value)
                raise
        return self._any.pack_dict(packed, depth, lambda wire, _: wire, frozenset())

    def unpack(self, raw: Any, lenient: bool) -> Any:
        raw = object_of(raw, self.label)
        self._check_keys(raw)
        members = {}
        for key, item in raw.items():
            try:
                members[key] = self._nodes[key].unpack(item, lenient)
            except UnfitError as error:
                error.at(f"[{key!r}]")
                raise
        return members

    def _check_keys(self, keys: Mapping[Any, Any]) -> None:
        missing = self._required - keys.keys()
        if missing:
            raise UnfitError(f"lacks the key {min(missing)!r} of {self.label}")
        for key in keys:
            if key not in self._nodes:
                raise UnfitError(f"has the key {key!a:.60}, which {self.label} does not know")


def call_user_code(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a class or a function of the user's while reading.

    Raises:
        UnfitError: It raised, whatever it raised.
    """
    try:
        return fn(*args, **kwargs)
    except Exception as error:  # the user's own code may raise anything
        name = getattr(fn, "__name__", "?")
        raise UnfitError(f"is refused by {name}: {type(error).__name__}: {error!s:.200}") from error


def restore_object(cls: type, values: dict[str, Any]) -> Any:
    """Put a dataclass or an attrs object together; frozen and slotted ones too."""
    restored: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(restored, name, value)
    return restored


def restore_named_tuple(cls: Any, values: dict[str, Any]) -> Any:
    """Put a named tuple together."""
    return cls._make(values[name] for name in cls._fields)


def restore_struct(cls: type, values: dict[str, Any]) -> Any:
    """Construct a struct, which knows no other way, and undo what __post_init__ changed."""
    struct = call_user_code(cls, **values)
    for name, value in values.items():
        msgspec.structs.force_setattr(struct, name, value)
    return struct


def _other_slots(cls: type, fields: set[str]) -> frozenset[str]:
    """Return the slots of `cls` and its bases that hold no field."""
    names: set[str] = set()
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            names.add(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    if issubclass(cls, msgspec.Struct):
        names.clear()  # a struct's slots are its fields
    return frozenset(names - fields - {"__dict__", "__weakref__"})


def _cached_properties(cls: type) -> frozenset[str]:
    """Return the names under which objects of `cls` keep what they can compute again."""
    return frozenset(
        name
        for base in cls.__mro__
        for name, member in vars(base).items()
        if isinstance(member, cached_property)
    )
