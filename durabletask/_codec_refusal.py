"""What to say about a value that cannot be recorded.

Responsible for naming what the value is and the change that makes it fit.
Refuses to decide whether it fits: whoever walks the value does.
"""

import dataclasses
import enum
import inspect

from durabletask._codec_path import UnfitError
from durabletask._codec_scalars import JSON_SCALARS, TAGS

_SUBCLASSED = (str, int, float, bytes, list, tuple, dict, set, frozenset)


def describe(value: object) -> str:
    """Return what a value is, for "… is a Foo"."""
    if inspect.iscoroutine(value):
        return "a coroutine that was not awaited"
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        return "a generator"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '?')}"
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[:1] in "aeiouAEIO" else f"a {name}"


def key_refusal(key: object) -> UnfitError:
    """Return the error for a dictionary key that is not exactly a str."""
    return UnfitError(
        f"has the key {key!a:.60}, {describe(key)}; a JSON object has text keys",
        "convert the keys with str(), record a list of pairs, or annotate it: dict[int, …]",
    )


def refusal(value: object, expected: str | None = None) -> UnfitError:
    """Return the error for a value that has no wire form, or not the one `expected`."""
    kind = type(value)
    what = f"is {describe(value)}"
    if expected is not None:
        what += f", and the annotation says {expected}"
    base = next((base for base in _SUBCLASSED if issubclass(kind, base)), None)
    if is_class_of_data(kind):
        name = kind.__name__
        hint = (
            f"annotate the step's return (-> {name}), pass type={name}, "
            f"or register it: ProcessHost(types=[{name}])"
        )
    elif kind in JSON_SCALARS or kind in TAGS or kind in _SUBCLASSED:
        hint = "change the annotation or the value"
    elif base is not None:
        what += f", and would come back as a {base.__name__}"
        hint = f"convert it: {base.__name__}(…)"
    elif isinstance(value, bytearray | memoryview):
        hint = "convert it: bytes(…)"
    elif inspect.isawaitable(value):
        hint = "await it and record the result"
    elif inspect.isgenerator(value):
        hint = "record list(…)"
    else:
        hint = "record plain data: JSON types, a dataclass, an enum, a date, a Decimal, a UUID"
    return UnfitError(what, hint)


def is_class_of_data(kind: type) -> bool:
    """Return whether objects of `kind` could be recorded if the class were given."""
    return (
        dataclasses.is_dataclass(kind)
        or issubclass(kind, enum.Enum)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        or any(
            hasattr(kind, mark)
            for mark in ("__struct_fields__", "__attrs_attrs__", "__pydantic_fields__")
        )
    )
