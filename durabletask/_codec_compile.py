"""From an annotation to the node that reads and writes its values.

Responsible for knowing what annotations there are, and for refusing one that
cannot be recorded before anything runs under it. Refuses to touch values.
"""

import collections.abc as abc
import enum
import types
import typing
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, TypeVar

from durabletask._codec_any import AnyNode, Node
from durabletask._codec_choice import LiteralNode, UnionNode
from durabletask._codec_classes import TypedDictNode
from durabletask._codec_fields import (
    class_of_fields,
    field_annotations,
    is_class_of_fields,
    is_typed_dict,
    required_keys,
    type_arguments,
)
from durabletask._codec_foreign import (
    PYDANTIC_MIN,
    EnumNode,
    PydanticNode,
    is_pydantic,
    pydantic_version,
)
from durabletask._codec_nodes import DictNode, ItemsNode, MapNode, ScalarNode, TupleNode
from durabletask._codec_path import UnfitError
from durabletask._codec_scalars import JSON_SCALARS, TAGS
from durabletask._errors import RegistrationError

TypeVars = Mapping[Any, Any]
_N = TypeVar("_N", bound=Node)

# What a type checker lets through under these names, it lets through here: an
# int where a float is asked for stays an int, on the first run and later.
_WIDER: dict[type, frozenset[type]] = {
    int: frozenset({int, bool}),
    float: frozenset({float, int, bool}),
    date: frozenset({date, datetime}),
}
_LISTS = frozenset({list, abc.Sequence, abc.MutableSequence, abc.Collection, abc.Iterable})
_TUPLES = frozenset({abc.Sequence, abc.Collection, abc.Iterable})
_SETS = frozenset({set, abc.Set, abc.MutableSet, abc.Collection, abc.Iterable})
_FROZEN = frozenset({frozenset, abc.Set, abc.Collection, abc.Iterable})
_MAPPINGS = frozenset({dict, abc.Mapping, abc.MutableMapping})
_TRANSPARENT = frozenset({"Required", "NotRequired", "ReadOnly", "Final", "ClassVar"})

_HINT = (
    "use JSON types, tuple, set, bytes, dates, Decimal, UUID, Enum, dataclass, NamedTuple, "
    "TypedDict, msgspec, attrs or pydantic classes; or Any"
)


class Compiler:
    """Builds nodes; classes are built once, so that a class may hold itself."""

    def __init__(self, anything: AnyNode, known: Mapping[Any, Node]) -> None:
        self._any = anything
        self._known = known
        self.fresh: dict[Any, Node] = {}
        """What was built here; whoever keeps it does so only after all went well."""

    def node(self, annotation: Any, typevars: TypeVars) -> Node:
        """Return the node of `annotation`.

        Raises:
            RegistrationError: Its values could not be recorded.
        """
        if annotation in (Any, object, typing.NoReturn, typing.Never):
            return self._any
        if isinstance(annotation, typing.TypeVar):
            return self._typevar(annotation, typevars)
        origin = typing.get_origin(annotation)
        if origin is not None:
            return self._generic(annotation, origin, typing.get_args(annotation), typevars)
        if hasattr(annotation, "__supertype__"):  # NewType
            return self.node(annotation.__supertype__, typevars)
        if hasattr(annotation, "__value__") and not isinstance(annotation, type):  # type X = …
            return self.node(annotation.__value__, typevars)
        if isinstance(annotation, str | typing.ForwardRef):
            raise refused(
                annotation,
                "is a name that was not resolved",
                "write the class itself; for an alias that contains itself, write Any",
            )
        if isinstance(annotation, type):
            return self._class(annotation, (), typevars)
        raise refused(annotation, "is no type whose values can be recorded", _HINT)

    def _typevar(self, variable: typing.TypeVar, typevars: TypeVars) -> Node:
        bound = typevars.get(variable, Any)
        return self.node(Any if bound is variable else bound, typevars)

    def _generic(
        self, annotation: Any, origin: Any, args: tuple[Any, ...], typevars: TypeVars
    ) -> Node:
        if origin is typing.Annotated or getattr(origin, "_name", None) in _TRANSPARENT:
            return self.node(args[0], typevars)
        if origin is typing.Union or origin is types.UnionType:
            return self._union(annotation, args, typevars)
        if origin is typing.Literal:
            return LiteralNode([(arg, self.node(type(arg), typevars)) for arg in args])
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            if args == ((),):
                args = ()
            return TupleNode([self.node(arg, typevars) for arg in args], self._any)
        if hasattr(origin, "__value__"):  # type X[T] = …, given its T
            inner = dict(zip(origin.__type_params__, args, strict=False))
            return self.node(origin.__value__, {**typevars, **inner})
        if isinstance(origin, type):
            return self._class(origin, args, typevars)
        raise refused(annotation, "cannot be recorded", _HINT)

    def _union(self, annotation: Any, args: tuple[Any, ...], typevars: TypeVars) -> Node:
        members = [self.node(arg, typevars) for arg in args]
        if self._any in members:
            return self._any
        named: dict[str, frozenset[type] | None] = {}
        for node in members:
            for tag in node.forms or ():
                if tag[:2] == "$:" and named.setdefault(tag, node.types) != node.types:
                    raise refused(
                        annotation,
                        f"has two classes named {tag[2:]!r}, which a record could not tell apart",
                        "rename one of them",
                    )
        return UnionNode(members)

    def _class(self, cls: type, args: tuple[Any, ...], typevars: TypeVars) -> Node:
        if cls in JSON_SCALARS or cls in TAGS:
            kinds = _WIDER.get(cls, frozenset({cls}))
            return ScalarNode("None" if cls is type(None) else cls.__name__, kinds, self._any)
        collection = self._collection(cls, args, typevars)
        if collection is not None:
            return collection
        bound = tuple(_substitute(arg, typevars) for arg in args)
        try:
            known = self.fresh.get((cls, bound)) or self._known.get((cls, bound))
        except TypeError:
            raise refused(cls, f"has arguments that cannot be compared: {args}", _HINT) from None
        return known if known is not None else self._user_class(cls, bound)

    def _collection(self, cls: type, args: tuple[Any, ...], typevars: TypeVars) -> Node | None:
        if cls in _MAPPINGS:
            key, value = (self.node(arg, typevars) for arg in args or (Any, Any))
            # dict without arguments is a JSON object; other keys must be asked for.
            if not args or key.types == frozenset({str}) or key is self._any:
                return DictNode(value, self._any)
            return MapNode(key, value, self._any)
        if cls is tuple and not args:
            args = (Any, ...)
        kinds: list[type] = [list] if cls in _LISTS else []
        kinds += [tuple] if cls in _TUPLES or cls is tuple else []
        kinds += [set] if cls in _SETS else []
        kinds += [frozenset] if cls in _FROZEN else []
        if not kinds:
            return None
        item: Node = self.node(args[0], typevars) if args else self._any
        nodes: list[Node] = [ItemsNode(kind, item, self._any) for kind in kinds]
        return nodes[0] if len(nodes) == 1 else UnionNode(nodes)

    def _user_class(self, cls: type, args: tuple[Any, ...]) -> Node:
        if issubclass(cls, enum.Enum):
            return self._add(cls, args, self._enum(cls))
        if is_pydantic(cls):
            return self._add(cls, args, _pydantic(cls))
        if is_typed_dict(cls):
            keys = TypedDictNode(cls, required_keys(cls), self._any)
            self._add(cls, args, keys).fill(self._fields(cls, args))
            return keys
        if is_class_of_fields(cls):
            node = class_of_fields(cls, self._any)
            # Known before its fields are: a class may hold itself.
            self._add(cls, args, node).fill(self._fields(cls, args))
            return node
        raise refused(cls, "cannot be recorded", _HINT)

    def _add(self, cls: type, args: tuple[Any, ...], node: _N) -> _N:
        self.fresh[cls, args] = node
        return node

    def _fields(self, cls: type, args: tuple[Any, ...]) -> dict[str, Node]:
        typevars = type_arguments(cls, args)
        nodes = {}
        for name, annotation in field_annotations(cls).items():
            try:
                nodes[name] = self.node(annotation, typevars)
            except RegistrationError as error:
                why = str(error).removesuffix(f"\nhint: {error.hint}")
                raise RegistrationError(
                    f"in the field {cls.__name__}.{name}: {why}", hint=error.hint
                ) from None
        return nodes

    def _enum(self, cls: type[enum.Enum]) -> Node:
        node = EnumNode(cls, self._any)
        for member in cls:
            try:
                node.pack(member, 0)
            except UnfitError as error:
                raise refused(
                    cls, f"has a member {member.name} whose value {error.message}", error.hint
                ) from None
        return node


def _pydantic(cls: Any) -> Node:
    version = pydantic_version()
    if version < PYDANTIC_MIN:
        needed = ".".join(map(str, PYDANTIC_MIN))
        raise refused(cls, f"is a model of pydantic {version}", f"pydantic {needed} or later")
    if cls.model_rebuild(raise_errors=False) is False:
        raise refused(cls, "names types that pydantic cannot resolve", "call model_rebuild()")
    return PydanticNode(cls)


def refused(annotation: Any, why: str, hint: str | None) -> RegistrationError:
    """Return the error for an annotation whose values could not be recorded."""
    return RegistrationError(f"the annotation {show(annotation)} {why}", hint=hint)


def show(annotation: Any) -> str:
    """Return an annotation as its author wrote it, nearly."""
    text = annotation.__name__ if isinstance(annotation, type) else repr(annotation)
    return text if len(text) <= 120 else f"{text[:120]}…"


def _substitute(annotation: Any, typevars: TypeVars) -> Any:
    """Return `annotation` with the type variables that are known filled in."""
    if isinstance(annotation, typing.TypeVar):
        return typevars.get(annotation, Any)
    parameters = getattr(annotation, "__parameters__", ())
    if not parameters or isinstance(annotation, type):
        return annotation
    return annotation[tuple(typevars.get(parameter, Any) for parameter in parameters)]
