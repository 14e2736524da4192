"""Which fields a class has, with which types and defaults.

Responsible for the differences between dataclasses, attrs, msgspec structs and
named tuples, so that nobody else need know them. attrs is never imported: its
classes carry all that is needed.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from durabletask._codec_any import AnyNode
from durabletask._codec_classes import (
    NO_DEFAULT,
    ClassNode,
    Field,
    restore_named_tuple,
    restore_object,
    restore_struct,
)
from durabletask._errors import RegistrationError


def is_typed_dict(cls: type) -> bool:
    """Return whether `cls` is a TypedDict, of typing or of typing_extensions."""
    return issubclass(cls, dict) and hasattr(cls, "__required_keys__")


def is_class_of_fields(cls: type) -> bool:
    """Return whether `class_of_fields` knows what `cls` is."""
    return (
        dataclasses.is_dataclass(cls)
        or "__attrs_attrs__" in vars(cls)
        or issubclass(cls, msgspec.Struct)
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )


def class_of_fields(cls: Any, anything: AnyNode) -> ClassNode:
    """Return the node of `cls`, its fields still without nodes.

    Raises:
        RegistrationError: Its objects cannot be put together field by field.
    """
    if issubclass(cls, msgspec.Struct):
        # A struct's constructor is user code if it has a __post_init__.
        verify = hasattr(cls, "__post_init__")
        return ClassNode(cls, _of_struct(cls), restore_struct, anything, verify=verify)
    if issubclass(cls, tuple):
        return ClassNode(cls, _of_named_tuple(cls), restore_named_tuple, anything)
    fields = _of_dataclass(cls) if dataclasses.is_dataclass(cls) else _of_attrs(cls)
    if cls.__new__ is not object.__new__:
        raise RegistrationError(
            f"the class {cls.__name__} makes its objects in its own way (__new__)",
            hint="record a plain dataclass instead",
        )
    return ClassNode(cls, fields, restore_object, anything)


def field_annotations(cls: Any) -> dict[str, Any]:
    """Return the annotation of each field, Any where there is none.

    Raises:
        RegistrationError: One of them is a name that cannot be resolved.
    """
    try:
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except NameError:
            # A class within a function may still name itself.
            hints = typing.get_type_hints(cls, None, {cls.__name__: cls}, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise RegistrationError(
            f"the annotations of the class {cls.__name__} cannot be resolved: {error}",
            hint="define or import what it names at module level, outside TYPE_CHECKING",
        ) from None
    if is_typed_dict(cls):
        return hints
    return {name: hints.get(name, Any) for name in _names(cls)}


def required_keys(cls: Any) -> frozenset[str]:
    """Return the keys that a TypedDict must have."""
    # Where annotations are text, __required_keys__ does not see NotRequired.
    hints = typing.get_type_hints(cls, include_extras=True) if _resolvable(cls) else {}
    marks = {name: getattr(typing.get_origin(hint), "_name", None) for name, hint in hints.items()}
    required = {name for name in cls.__required_keys__ if marks.get(name) != "NotRequired"}
    return frozenset(required | {name for name, mark in marks.items() if mark == "Required"})


def type_arguments(cls: Any, args: tuple[Any, ...]) -> Mapping[Any, Any]:
    """Return what the type variables of a generic class and of its bases stand for."""
    bound: dict[Any, Any] = dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if origin is None or origin is typing.Generic:
            continue
        inner = tuple(bound.get(arg, arg) for arg in typing.get_args(base))
        bound = {**type_arguments(origin, inner), **bound}
    return bound


def _names(cls: Any) -> tuple[str, ...]:
    if issubclass(cls, msgspec.Struct):
        return tuple(cls.__struct_fields__)
    if issubclass(cls, tuple):
        return tuple(cls._fields)
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return tuple(attribute.name for attribute in cls.__attrs_attrs__)


def _resolvable(cls: Any) -> bool:
    try:
        typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return False  # field_annotations says so, with a hint
    return True


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _of_dataclass(cls: Any) -> list[Field]:
    return [
        Field(
            field.name,
            field.name if field.init else None,
            field.name,
            field.default_factory
            if field.default_factory is not dataclasses.MISSING
            else NO_DEFAULT
            if field.default is dataclasses.MISSING
            else _constant(field.default),
        )
        for field in dataclasses.fields(cls)
    ]


def _of_attrs(cls: Any) -> list[Field]:
    fields = []
    for attribute in cls.__attrs_attrs__:
        default = attribute.default
        factory = getattr(default, "factory", None)
        if factory is not None and not default.takes_self:
            made = factory
        elif factory is not None or getattr(default, "name", None) == "NOTHING":
            made = NO_DEFAULT
        else:
            made = _constant(default)
        argument = (attribute.alias or attribute.name) if attribute.init else None
        fields.append(Field(attribute.name, argument, argument or attribute.name, made))
    return fields


def _of_struct(cls: Any) -> list[Field]:
    fields = []
    for field in msgspec.structs.fields(cls):
        if field.default_factory is not msgspec.NODEFAULT:
            made: Any = field.default_factory
        else:
            made = NO_DEFAULT if field.default is msgspec.NODEFAULT else _constant(field.default)
        fields.append(Field(field.name, field.name, field.encode_name, made))
    return fields


def _of_named_tuple(cls: Any) -> list[Field]:
    defaults = cls._field_defaults
    return [
        Field(name, name, name, _constant(defaults[name]) if name in defaults else NO_DEFAULT)
        for name in cls._fields
    ]
