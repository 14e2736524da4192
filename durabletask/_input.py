"""The arguments of a process.

Responsible for checking them against the signature of the process function
before anything is written, for keeping them by name, and for the digest that
says whether two spawns asked for the same. Refuses to call the function.
"""

import functools
import inspect
from collections.abc import Callable
from hashlib import sha256
from inspect import Parameter
from types import FunctionType
from typing import Any, TypeVar

import orjson

from durabletask._codec import Codec, Shape, write
from durabletask._codec_hints import is_async, is_generator, name_of, plain_function, resolve
from durabletask._codec_json import canonical, excerpt, loads
from durabletask._errors import (
    DecodeError,
    InvalidArgumentError,
    RegistrationError,
    SerializationError,
)
from durabletask._limits import Limits

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Argument:
    """One parameter whose value is recorded.

    Attributes:
        by_keyword: Whether the function takes it by keyword only; a spawn
            cannot give it, so it is recorded with its default.
        default: The payload of its default, None where it has none; read
            afresh for each process, so that no two share a mutable one.
        default_digest: What of the default goes into no digest.
    """

    __slots__ = ("by_keyword", "default", "default_digest", "name", "shape")

    def __init__(self, name: str, shape: Shape, by_keyword: bool) -> None:
        self.name = name
        self.shape = shape
        self.by_keyword = by_keyword
        self.default: bytes | None = None
        self.default_digest: bytes | None = None

    def default_to(self, value: Any) -> None:
        """Set the default; SerializationError if it does not fit the annotation."""
        wire = self.shape.pack(value, self.name)
        self.default = self.shape.write(wire, self.name)
        self.default_digest = canonical(wire)

    def fresh_default(self) -> Any:
        """Return a copy of the default for one process alone."""
        assert self.default is not None
        return self.shape.decode(self.default)


class Signature:
    """What a process function takes and returns.

    Args:
        fn: `async def fn(proc, …)`; a method, a partial or a callable object
            with such a signature. What a partial fixes is code, not input.
        codec: For the values.
        limits: `input_bytes_max` for all arguments together.

    Attributes:
        name: Of the function, for messages.
        returns: The shape of its result.

    Raises:
        RegistrationError: It cannot be a process function; the message says why.
    """

    def __init__(self, fn: Callable[..., Any], codec: Codec, limits: Limits = Limits()) -> None:  # noqa: B008  frozen
        self.name = name_of(fn)
        self._bytes_max = limits.input_bytes_max
        _check_kind(fn, self.name)
        signature = inspect.signature(fn)
        parameters = [*signature.parameters.values()]
        function = plain_function(fn)
        _check_first(parameters, function, codec, self.name)
        self._arguments: list[Argument] = []
        self._rest: Argument | None = None
        for parameter in parameters[1:]:
            if parameter.name not in _fixed(fn) and parameter.kind is not Parameter.VAR_KEYWORD:
                self._add(parameter, function, codec)
        self._text = f"{self.name}({', '.join(str(p) for p in signature.parameters.values())})"
        annotation = resolve(signature.return_annotation, function, f"the return of {self.name}")
        self.returns = codec.shape(annotation)

    def encode(self, process_id: str, args: tuple[Any, ...]) -> tuple[bytes, str]:
        """Return the payload of the arguments and the digest of what they say.

        The payload holds every value, defaults too, so that a default changed
        later does not change a process that runs. The digest leaves out what
        equals its default, so that a parameter with a default can be added.

        Args:
            process_id: For messages.
            args: As the caller of `spawn` gave them, without the `Process`.

        Returns:
            JSON, and sha256 in hex of its canonical form.

        Raises:
            InvalidArgumentError: Too many or too few.
            SerializationError: One does not fit its annotation.
            LimitExceededError: They are too large or too deep.
        """
        values = self._bind(process_id, args)
        wires: dict[str, Any] = {}
        for argument in self._arguments:
            if argument.name in values:
                wires[argument.name] = argument.shape.pack(
                    values[argument.name], f"argument {argument.name}"
                )
            else:
                assert argument.default is not None  # or _bind had refused
                wires[argument.name] = orjson.loads(argument.default)
        rest = self._rest
        if rest is not None:
            given = args[self._positional_max :]
            wires[rest.name] = [
                rest.shape.pack(value, f"argument {rest.name}[{index}]")
                for index, value in enumerate(given)
            ]
        payload = write(wires, f"input of {process_id!r}", self._bytes_max)
        return payload, sha256(canonical(self._told(wires))).hexdigest()

    def decode(self, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the recorded arguments, for `fn(proc, *args, **kwargs)`; fresh each time.

        A parameter added since takes its default.

        Raises:
            DecodeError: The function no longer has a recorded parameter, or
                has a new one without a default, or one of another type.
        """
        wires = loads(payload)
        if not isinstance(wires, dict):
            raise DecodeError(f"the input of {self.name} is no JSON object: {excerpt(payload)}")
        rest = self._rest
        known = {argument.name for argument in self._arguments} | ({rest.name} if rest else set())
        gone = wires.keys() - known
        if gone:
            raise DecodeError(
                f"the recorded input has {min(gone)!a}, which {self._text} no longer takes",
                hint="keep the parameter; processes that began with it still run",
            )
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in self._arguments:
            value = self._value(argument, wires)
            if argument.by_keyword:
                kwargs[argument.name] = value
            else:
                args.append(value)
        if rest is not None:
            args += self._values_of_rest(rest, wires.get(rest.name, []))
        return tuple(args), kwargs

    @property
    def _positional_max(self) -> int:
        return sum(not argument.by_keyword for argument in self._arguments)

    def _add(self, parameter: Parameter, function: FunctionType | None, codec: Codec) -> None:
        what = f"parameter {parameter.name!r} of {self.name}"
        by_keyword = parameter.kind is Parameter.KEYWORD_ONLY
        if by_keyword and parameter.default is Parameter.empty:
            raise RegistrationError(
                f"{what} is keyword-only and has no default, but a spawn gives values by position",
                hint="give it a default, or take it before the *",
            )
        shape = codec.shape(resolve(parameter.annotation, function, what))
        argument = Argument(parameter.name, shape, by_keyword)
        if parameter.kind is Parameter.VAR_POSITIONAL:
            self._rest = argument
            return
        if parameter.default is not Parameter.empty:
            try:
                argument.default_to(parameter.default)
            except SerializationError as error:
                raise RegistrationError(
                    f"the default of {what} cannot be recorded: {error}",
                    hint="make annotation and default fit, for example: X | None = None",
                ) from None
        self._arguments.append(argument)

    def _bind(self, process_id: str, args: tuple[Any, ...]) -> dict[str, Any]:
        """Return the given values by name, those of `*rest` apart."""
        positional = [argument for argument in self._arguments if not argument.by_keyword]
        if len(args) > len(positional) and self._rest is None:
            raise self._wrong(process_id, args, f"takes at most {len(positional)}")
        for argument in positional[len(args) :]:
            if argument.default is None:
                raise self._wrong(process_id, args, f"needs {argument.name!r}")
        return {argument.name: value for argument, value in zip(positional, args, strict=False)}

    def _wrong(self, process_id: str, args: tuple[Any, ...], why: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"process {process_id!r} got {len(args)} arguments, and {self._text} {why}",
            hint="pass what stands after the Process parameter, in that order",
        )

    def _told(self, wires: dict[str, Any]) -> dict[str, Any]:
        """Return what a digest is made of: the wire forms that are not the default."""
        told = {
            argument.name: wires[argument.name]
            for argument in self._arguments
            if argument.default is None
            or canonical(wires[argument.name]) != argument.default_digest
        }
        if self._rest is not None and wires[self._rest.name]:
            told[self._rest.name] = wires[self._rest.name]
        return told

    def _value(self, argument: Argument, wires: dict[str, Any]) -> Any:
        if argument.name in wires:
            return argument.shape.unpack(wires[argument.name], argument.name)
        if argument.default is None:
            raise DecodeError(
                f"the recorded input lacks {argument.name!r}, which {self._text} needs",
                hint="give the new parameter a default",
            )
        return argument.fresh_default()

    def _values_of_rest(self, rest: Argument, wires: Any) -> list[Any]:
        if not isinstance(wires, list):
            raise DecodeError(f"the recorded input has no array under {rest.name!r}")
        return [
            rest.shape.unpack(wire, f"{rest.name}[{index}]") for index, wire in enumerate(wires)
        ]


def _check_kind(fn: Any, name: str) -> None:
    if not callable(fn) or isinstance(fn, type):
        raise RegistrationError(f"{fn!r} is no function", hint="register an async def")
    if is_generator(fn):
        raise RegistrationError(
            f"{name} is a generator function; a process is one async function",
            hint="await durable calls instead of yielding, and return the result",
        )
    if not is_async(fn):
        raise RegistrationError(f"{name} is not async", hint=f"write: async def {name}(proc, …)")


def _check_first(
    parameters: list[Parameter], function: FunctionType | None, codec: Codec, name: str
) -> None:
    if (
        not parameters
        or parameters[0].kind not in _POSITIONAL
        or _takes_data(parameters[0].annotation, function, codec, name)
    ):
        raise RegistrationError(
            f"{name} has no parameter for the Process",
            hint=f"write: async def {name}(proc: Process, …)",
        )


def _takes_data(annotation: Any, function: FunctionType | None, codec: Codec, name: str) -> bool:
    """Return whether what is annotated so can be recorded: an argument, and no Process."""
    try:
        resolved = resolve(annotation, function, f"the first parameter of {name}")
        codec.shape(resolved)
    except RegistrationError:
        return False  # Process itself, a protocol like it, a name that only type checkers know
    return resolved not in (Any, object) and not isinstance(resolved, TypeVar)


def _fixed(fn: Any) -> set[str]:
    """Return the names that a partial has fixed by keyword."""
    names: set[str] = set()
    while isinstance(fn, functools.partial):
        names |= fn.keywords.keys()
        fn = fn.func
    return names
