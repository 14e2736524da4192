"""Values to payloads and back, exactly.

Responsible for the promise that the first run sees what every later run sees:
a value comes back equal and of the same types, or it is refused with the path
to the part at fault. The wire form, the annotations and the classes are in the
`_codec_…` modules; here they meet the limits and the public errors. Refuses to
resolve names found in data: classes come from annotations or registration.

Rules that are decisions:
    Numbers. Integers from -2**63 to 2**64 - 1; finite floats and decimals.
        An int or a bool where the annotation says float stays what it is.
    Zones. A zone is kept as its offset at that moment.
    Sharing. An object that occurs twice comes back as two equal objects.
    Adding a field with a default to a class, adding members to a union and
    annotating what was not annotated keep old records readable.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from durabletask._codec_any import AnyNode, Node
from durabletask._codec_compile import Compiler, refused
from durabletask._codec_json import loads
from durabletask._codec_nodes import ScalarNode
from durabletask._codec_path import UnfitError, broken_text, largest_part, render
from durabletask._codec_refusal import is_class_of_data
from durabletask._codec_scalars import JSON_SCALARS
from durabletask._errors import (
    DecodeError,
    LimitExceededError,
    RegistrationError,
    SerializationError,
)
from durabletask._limits import Limits

ANY: object = Any
"""The annotation of what has none."""

_NULL = b"null"
_TAG = b'"$'
_SHAPES_MAX = 4096
"""Shapes kept; classes made inside functions would otherwise gather without end."""


class Codec:
    """The shapes of one host or client.

    Args:
        types: Classes whose objects may be recorded where nothing is
            annotated; written under the class's name.
        limits: Of size and depth.

    Attributes:
        view: The shape for looking at records without the code that made
            them: an object of a class reads as a dictionary of its fields, an
            enum as its value. For people and tools; a process never sees it.

    Raises:
        RegistrationError: Two of the types have one name, or one cannot be recorded.
    """

    def __init__(self, types: Iterable[type] = (), limits: Limits = Limits()) -> None:  # noqa: B008  frozen
        self.limits = limits
        self._any = AnyNode(limits.depth_max)
        self.view = Shape(AnyNode(limits.depth_max, strangers=True), limits)
        self._shapes: dict[Any, Shape] = {}
        self._nodes: dict[Any, Node] = {}
        by_name: dict[str, type] = {}
        for cls in types:
            self._register(cls, by_name)

    def shape(self, annotation: object = ANY) -> "Shape":
        """Return the shape of an annotation; the same one for the same annotation.

        Raises:
            RegistrationError: Values of this annotation could not be recorded.
        """
        if annotation is None:
            annotation = type(None)
        try:
            shape = self._shapes.get(annotation)
        except TypeError:  # Annotated[…] with something unhashable
            return self._compile(annotation)
        if shape is None:
            shape = self._compile(annotation)
            if len(self._shapes) >= _SHAPES_MAX:
                self._shapes.clear()
                self._nodes.clear()
            self._shapes[annotation] = shape
        return shape

    def shape_of(self, value: object) -> "Shape":
        """Return the shape of a value that stands for its own annotation.

        For an event or a first value: an object of a recordable class is
        written as that class, all else as without an annotation.

        Raises:
            RegistrationError: The value's class cannot be recorded.
        """
        kind = type(value)
        return self.shape(kind if is_class_of_data(kind) else ANY)

    def _compile(self, annotation: Any) -> "Shape":
        compiler = Compiler(self._any, self._nodes)
        node = compiler.node(annotation, {})
        self._nodes.update(compiler.fresh)
        return Shape(node, self.limits)

    def _register(self, cls: type, by_name: dict[str, type]) -> None:
        if not isinstance(cls, type):
            raise RegistrationError(f"types= takes classes, not {cls!r}")
        if by_name.setdefault(cls.__name__, cls) is not cls:
            raise RegistrationError(
                f"types= has two classes named {cls.__name__!r}: "
                f"{by_name[cls.__name__].__module__} and {cls.__module__}",
                hint="rename one; records name classes by their bare name",
            )
        compiler = Compiler(self._any, self._nodes)
        node = compiler.node(cls, {})
        if not (node.forms or frozenset()) & {f"$:{cls.__name__}"}:
            raise refused(cls, "needs no registration", "leave it out of types=")
        self._nodes.update(compiler.fresh)
        self._any.register(cls, node)


class Shape:
    """How the values of one annotation are written and read. Immutable, shared.

    `root` names the whole value in error messages.
    """

    __slots__ = ("_bytes_max", "_node", "_plain", "_untyped", "label")

    def __init__(self, node: Node, limits: Limits) -> None:
        self._node = node
        self._bytes_max = limits.value_bytes_max
        self._untyped = isinstance(node, AnyNode)
        self.label = node.label
        self._plain: frozenset[type] = (
            JSON_SCALARS
            if isinstance(node, AnyNode)
            else (node.types or frozenset()) & JSON_SCALARS
            if isinstance(node, ScalarNode)
            else frozenset()
        )

    def record(self, value: Any, root: str = "value") -> tuple[bytes, Any]:
        """Return the payload of a value and the value as every later run sees it.

        Raises:
            SerializationError: As `encode`.
        """
        if type(value) in self._plain:
            try:
                payload = b"%b" % orjson.dumps(value)  # see `write`
            except TypeError:
                payload = _NULL  # a lone surrogate, or too many bits: `encode` says which
            # orjson writes null for what is no number
            if (payload != _NULL or value is None) and len(payload) <= self._bytes_max:
                return payload, value
        wire = self.pack(value, root)
        payload = self.write(wire, root)
        raw = orjson.loads(payload)
        # Every tag begins so, hence what has none is its own value already.
        if _TAG not in payload:
            return payload, raw
        try:
            return payload, self._node.unpack(raw, False)
        except UnfitError as error:
            raise SerializationError(
                f"{error.path(root)} cannot be read back: {error.message}", hint=error.hint
            ) from error.__cause__

    def encode(self, value: object, root: str = "value") -> bytes:
        """Return the payload of a value: UTF-8 JSON without a raw newline.

        Raises:
            SerializationError: A part has no exact form, or not that of the
                annotation; the message has the path to it.
            LimitExceededError: The value is too large or too deep.
        """
        return self.write(self.pack(value, root), root)

    def decode(self, payload: bytes) -> Any:
        """Return a fresh copy of the value in a payload.

        JSON without our tags, as other programs write it, is read as the
        annotation asks wherever only one reading is possible.

        Raises:
            DecodeError: The payload is damaged, or does not fit the annotation.
        """
        raw = loads(payload)
        # Others may write the $ of a tag as an escape.
        if self._untyped and _TAG not in payload and b"\\u0024" not in payload:
            return raw
        return self.unpack(raw)

    def pack(self, value: object, root: str = "value") -> Any:
        """Return the wire form of a value, to be written with others in one payload."""
        try:
            return self._node.pack(value, 0)
        except UnfitError as error:
            raise _public(error, root) from error.__cause__
        except RecursionError:
            raise _too_deep(f"{root} is nested too deep to be recorded") from None
        except MemoryError:
            raise
        except Exception as error:
            # A property or a time zone of the user's, or another thread that
            # still writes to it: none of it may lose the outcome of a step.
            raise SerializationError(
                f"{root} cannot be read in order to record it: {type(error).__name__}: {error}"
            ) from error

    def unpack(self, raw: Any, root: str = "value") -> Any:
        """Return the value of a wire form, as `decode` does."""
        try:
            try:
                return self._node.unpack(raw, False)
            except UnfitError as error:
                strict = error
            try:
                return self._node.unpack(raw, True)
            except UnfitError:
                raise DecodeError(
                    f"{strict.path(root)} {strict.message}", hint=strict.hint
                ) from strict.__cause__
        except (DecodeError, MemoryError):
            raise
        except RecursionError:
            raise DecodeError(f"{root} is nested too deep") from None
        except Exception as error:  # a __hash__ or __setattr__ of the user's
            raise DecodeError(f"{root} cannot be put together: {error}") from error

    def write(self, wire: Any, root: str = "value") -> bytes:
        """Return the payload of a wire form; errors as `encode`."""
        return write(wire, root, self._bytes_max)


def write(wire: Any, root: str, bytes_max: int) -> bytes:
    """Return the payload of a wire form.

    Raises:
        SerializationError: It holds a lone surrogate or an integer beyond 64 bits.
        LimitExceededError: It is larger than `bytes_max`, or too deep.
    """
    try:
        # Copied, since orjson hands out a block of 4 KiB however few bytes are in it, and
        # payloads are kept for as long as a process lives.
        payload = b"%b" % orjson.dumps(wire)
    except TypeError as error:
        found = broken_text(wire)
        if found is None:
            raise _too_deep(f"{root} is nested too deep to be recorded: {error}") from None
        segments, problem = found
        raise SerializationError(f"{render(root, segments)} {problem}") from None
    if len(payload) > bytes_max:
        part = render(root, largest_part(wire))
        raise LimitExceededError(
            f"{root} is {len(payload):,} bytes as JSON, and the limit is {bytes_max:,}; "
            f"the largest part is {part}",
            hint="keep large data outside and record where it is",
        )
    return payload


def _public(error: UnfitError, root: str) -> SerializationError:
    if not error.limit:
        return SerializationError(f"{error.path(root)} {error.message}", hint=error.hint)
    if error.cyclic:
        return SerializationError(
            f"{render(root, error.cycle_segments)} contains itself",
            hint="record an id in the place of the repeated object",
        )
    return _too_deep(f"{error.path(root)} {error.message}")


def _too_deep(message: str) -> LimitExceededError:
    hint = "nest it less, or record its parts by themselves; Limits(depth_max=) bounds it"
    return LimitExceededError(message, hint=hint)
