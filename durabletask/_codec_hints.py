"""Annotations of functions.

Responsible for turning the annotation of one parameter, or of the return, into
a type, also where `from __future__ import annotations` made it text. Each is
resolved by itself, so that a name which is only imported for the type checker
harms nothing but what it annotates. Refuses to import or to evaluate anything
that `typing` itself would not.
"""

import collections.abc as abc
import functools
import inspect
import typing
from collections.abc import Callable
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

from durabletask._errors import RegistrationError

_AWAITABLES = frozenset({abc.Awaitable, abc.Coroutine})


def plain_function(fn: Any) -> FunctionType | None:
    """Return the function behind methods, partials, wrappers and callable objects, if any."""
    for _ in range(100):  # a wrapper may wrap itself
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, MethodType):
            fn = fn.__func__
        elif isinstance(fn, FunctionType):
            inner = fn.__dict__.get("__wrapped__")
            if inner is None:
                return fn
            fn = inner
        elif isinstance(fn, type) or not callable(fn) or inspect.isbuiltin(fn):
            return None
        elif hasattr(fn, "__wrapped__"):  # functools.cache and its like
            fn = fn.__wrapped__
        else:
            fn = inspect.getattr_static(type(fn), "__call__")
            if not isinstance(fn, FunctionType):
                return None
    return None


def resolve(annotation: Any, fn: FunctionType | None, what: str) -> Any:
    """Return `annotation` as a type, Any where there is none.

    Args:
        annotation: As the function carries it, perhaps text.
        fn: Whose names the text may use: its module's and its closure's.
        what: Names the annotation in the message.

    Raises:
        RegistrationError: It names what cannot be found. To go on as if there
            were none would show only after the step has run, when its result
            is refused; so it is an error before.
    """
    if annotation is inspect.Parameter.empty:
        return Any
    if annotation is None or isinstance(annotation, type):
        return annotation
    holder = SimpleNamespace(__annotations__={"it": annotation})
    names = fn.__globals__ if fn is not None else {}
    try:
        return typing.get_type_hints(holder, names, _closure(fn), include_extras=True)["it"]
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise RegistrationError(
            f"the annotation {annotation!r} of {what} cannot be resolved: {error}",
            hint="define or import what it names at module level, outside TYPE_CHECKING",
        ) from None


def awaited(annotation: Any) -> tuple[Any, bool]:
    """Return what awaiting a value of this annotation gives, and whether it need be awaited."""
    if typing.get_origin(annotation) in _AWAITABLES:
        return typing.get_args(annotation)[-1], True
    return (Any, True) if annotation in _AWAITABLES else (annotation, False)


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether calling `fn` gives a coroutine, as far as can be seen without calling it."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.iscoroutinefunction(fn):
        return True
    if isinstance(fn, type) or inspect.isroutine(fn):
        return False
    return inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004  the bound one


def is_generator(fn: Callable[..., Any]) -> bool:
    """Return whether calling `fn` gives a generator, which nobody would run."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    call = fn if inspect.isroutine(fn) else getattr(fn, "__call__", None)  # noqa: B004
    return inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)


def name_of(fn: Any) -> str:
    """Return the name of a callable for a message."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


def _closure(fn: FunctionType | None) -> dict[str, Any]:
    """Return the enclosing function's names that `fn` uses."""
    names: dict[str, Any] = {}
    if fn is not None and fn.__closure__:
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__, strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
    return names
