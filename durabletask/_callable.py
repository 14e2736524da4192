"""What a step may be.

Responsible for saying, before a step runs, whether its function can be called
with these arguments, whether to await it and what its result is, and for
saying so quickly: the same function comes again and again. Refuses to call
anything, and to keep what belongs to one call.
"""

import functools
import inspect
import weakref
from types import FunctionType, MethodType
from typing import Any, TypeVar

from durabletask._codec import Codec, Shape
from durabletask._codec_hints import (
    awaited,
    is_async,
    is_generator,
    name_of,
    plain_function,
    resolve,
)
from durabletask._codec_refusal import describe
from durabletask._errors import InvalidArgumentError

_KEPT_MAX = 1024
"""Functions, and codes of functions, remembered; then all are forgotten."""

_UNLIMITED = 1 << 30
_EMPTY: Any = inspect.Parameter.empty
_K = TypeVar("_K")
_T = TypeVar("_T")


class CallSpec:
    """How to call one callable.

    Attributes:
        is_async: Call it on the event loop and await what it gives. What is
            not async may still give an awaitable (a wrapper around an async
            function); whoever calls it must look.
        returns: The shape of its result, of the awaited one.
        name: Its qualified name, for messages.
        args_min: With so many arguments up to `args_max` there is nothing to `check`.
    """

    __slots__ = ("_fixed", "_signature", "args_max", "args_min", "is_async", "name", "returns")

    def __init__(
        self,
        name: str,
        is_async: bool,
        returns: Shape,
        signature: inspect.Signature | None,
        fixed: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> None:
        self.name = name
        self.is_async = is_async
        self.returns = returns
        self._signature = signature
        self._fixed = fixed
        self.args_min, self.args_max = _arity(signature, fixed)

    def check(self, args: tuple[Any, ...]) -> None:
        """Refuse arguments that do not fit.

        Raises:
            InvalidArgumentError: They do not; nothing was called.
        """
        if not self.args_min <= len(args) <= self.args_max:
            self._bind(args)

    def with_fixed(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> "CallSpec":
        """Return the spec of a partial of this callable."""
        before, known = self._fixed
        fixed = (before + args, known | keywords)
        return CallSpec(self.name, self.is_async, self.returns, self._signature, fixed)

    def _bind(self, args: tuple[Any, ...]) -> None:
        """Let Python itself decide; what `args_min` and `args_max` cannot say ends here too."""
        if self._signature is None:
            return
        before, keywords = self._fixed
        try:
            self._signature.bind(*before, *args, **keywords)
        except TypeError as error:
            raise InvalidArgumentError(
                f"{self.name}{self._signature} cannot be called with these "
                f"{len(args)} arguments: {error}",
                hint="pass its arguments by position; for keywords use functools.partial",
            ) from None


class _Known:
    """What was found out about the functions made from one piece of code."""

    __slots__ = ("annotation", "code", "defaults", "names", "spec", "text")

    def __init__(self, fn: FunctionType, spec: CallSpec) -> None:
        self.code = fn.__code__  # held, so that its id is not given to another
        self.annotation = fn.__annotations__.get("return", _EMPTY)
        self.names = fn.__globals__
        self.defaults = len(fn.__defaults__ or ())
        self.text = isinstance(self.annotation, str)
        self.spec = spec


class Callables:
    """The specs of what a host's processes pass as steps.

    Remembered by code and not by function: a lambda is a new function each
    time it is met, and must neither be examined nor kept each time. What a
    function has beside its code is compared at each hit.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._functions: dict[int, _Known] = {}
        self._methods: dict[int, _Known] = {}
        # Functions of a module live as long as it does: they may be kept, and are found at once.
        self._lasting: dict[FunctionType, CallSpec] = {}
        # Functions whose annotation means something else for each of one code.
        self._single: dict[int, tuple[weakref.ref[Any], CallSpec]] = {}

    def spec(self, fn: object) -> CallSpec:
        """Return how to call `fn`.

        Raises:
            InvalidArgumentError: It is nothing that can be called once for a
                result; the hint says what to pass.
            RegistrationError: Its return annotation cannot be recorded.
        """
        if type(fn) is FunctionType:
            lasting = self._lasting.get(fn)
            if lasting is not None:
                return lasting
            function, table = fn, self._functions
        elif type(fn) is MethodType and type(fn.__func__) is FunctionType:
            function, table = fn.__func__, self._methods
        else:
            return self._other(fn)
        known = table.get(id(function.__code__))
        if (
            known is not None
            and function.__annotations__.get("return", _EMPTY) is known.annotation
            and function.__globals__ is known.names
            and len(function.__defaults__ or ()) == known.defaults
            and not (known.text and "__wrapped__" in function.__dict__)
        ):
            return known.spec
        return self._examine(fn, function, table)

    def _examine(self, fn: Any, function: FunctionType, table: dict[int, _Known]) -> CallSpec:
        single = self._single.get(id(function))
        if single is not None and single[0]() is function:
            return single[1]
        annotation = function.__annotations__.get("return", _EMPTY)
        spec = self._spec(fn, annotation)
        if isinstance(annotation, str) and _means_its_own(function, annotation):
            if fn is function:
                _bound(self._single)[id(function)] = (weakref.ref(function), spec)
        else:
            _bound(table)[id(function.__code__)] = _Known(function, spec)
        if fn is function and _is_lasting(function):
            _bound(self._lasting)[function] = spec
        return spec

    def _other(self, fn: Any) -> CallSpec:
        if isinstance(fn, functools.partial):
            return self.spec(fn.func).with_fixed(fn.args, fn.keywords)
        if isinstance(fn, staticmethod):
            return self.spec(fn.__func__)
        if isinstance(fn, type):
            return CallSpec(fn.__qualname__, False, self._codec.shape(fn), _signature(fn))
        call = getattr(fn, "__call__", None) if callable(fn) else None  # noqa: B004  to look into
        if type(call) is MethodType and call.__self__ is fn:
            return self.spec(call)
        function = plain_function(fn)
        return self._spec(
            fn, function.__annotations__.get("return", _EMPTY) if function else _EMPTY
        )

    def _spec(self, fn: Any, annotation: Any) -> CallSpec:
        _check_kind(fn)
        name = name_of(fn)
        result, awaitable = awaited(
            resolve(annotation, plain_function(fn), f"the return of {name}")
        )
        shape = self._codec.shape(result)
        return CallSpec(name, awaitable or is_async(fn), shape, _signature(fn))


def _means_its_own(function: FunctionType, annotation: str) -> bool:
    """Return whether the text may name another type in another function of the same code."""
    return "__wrapped__" in function.__dict__ or any(
        name in annotation for name in function.__code__.co_freevars
    )


def _is_lasting(function: FunctionType) -> bool:
    """Return whether it is what its module has under its name, for as long as there is either."""
    module = function.__globals__
    return module.get(function.__name__) is function and "<locals>" not in function.__qualname__


def _bound(table: dict[_K, _T]) -> dict[_K, _T]:
    if len(table) >= _KEPT_MAX:
        table.clear()
    return table


def _signature(fn: Any) -> inspect.Signature | None:
    """Return the signature without what belongs to this one function, or None if none is told.

    A wrapper's own, not that of what it wraps: it may pass arguments of its own.
    """
    try:
        signature = inspect.signature(fn, follow_wrapped=False)
    except (ValueError, TypeError):  # builtins may not tell
        return None
    parameters = [
        parameter.replace(
            annotation=_EMPTY,
            default=_EMPTY if parameter.default is _EMPTY else ...,
        )
        for parameter in signature.parameters.values()
    ]
    return inspect.Signature(parameters)


def _arity(
    signature: inspect.Signature | None, fixed: tuple[tuple[Any, ...], dict[str, Any]]
) -> tuple[int, int]:
    """Return how many arguments surely fit, from and to; (1, 0) where only binding tells."""
    if signature is None:
        return 0, _UNLIMITED
    before, keywords = fixed
    parameters = signature.parameters.values()
    if keywords or any(p.kind is p.KEYWORD_ONLY and p.default is _EMPTY for p in parameters):
        return 1, 0
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is _EMPTY for p in positional)
    rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    count = len(before)
    return max(0, needed - count), _UNLIMITED if rest else len(positional) - count


def _check_kind(fn: Any) -> None:
    if inspect.isawaitable(fn):
        name = getattr(fn, "__qualname__", type(fn).__name__)
        if inspect.iscoroutine(fn):
            fn.close()  # its author gets this error, and need not also be told it was not awaited
        raise InvalidArgumentError(
            f"{name} is a call already made, {describe(fn)}",
            hint=f"pass the function and its arguments: proc.do(key, {name}, x), "
            f"not proc.do(key, {name}(x))",
        )
    if not callable(fn):
        raise InvalidArgumentError(
            f"{describe(fn)} cannot be called",
            hint="pass a function: proc.do(key, fn, *args); a value is for proc.get(key, value)",
        )
    if is_generator(fn):
        raise InvalidArgumentError(
            f"{name_of(fn)} is a generator function, and nothing would run it",
            hint="collect the items in a function of its own and return a list",
        )
