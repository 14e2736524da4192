"""Values under an annotation: as the class they were, or refused with the path."""

import enum
import functools
from collections import namedtuple
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,  # noqa: F401  named in the text of a test
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
import typing_extensions

from durabletask._codec import Codec
from durabletask._codec_any import same
from durabletask._errors import RegistrationError, SerializationError

T = TypeVar("T")
CODEC = Codec()


class Color(enum.Enum):
    RED = "r"
    BLUE = 2
    PAIR = (1, "x")


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


@dataclass
class Item:
    sku: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    id: int
    items: list[Item]
    parent: "Order | None" = None
    note: Any = None


@dataclass
class Refund:
    id: int


@dataclass
class Rush(Refund):
    days: int = 1


@dataclass
class Derived:
    width: int
    area: int = field(init=False)
    scale: InitVar[int] = 1

    def __post_init__(self, scale: int) -> None:
        self.area = self.width * self.width * scale

    @functools.cached_property
    def label(self) -> str:
        return f"{self.width}"


class Point(NamedTuple):
    x: int
    y: float = 0.5


Loose = namedtuple("Loose", "a b")  # noqa: PYI024  the untyped kind is the point


class Options(TypedDict):
    color: Color
    size: NotRequired[int]


class Packet(msgspec.Struct, frozen=True, rename="camel", tag=True):
    from_id: int
    colors: list[Color] = []
    parent: "Packet | None" = None


class Strict(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("n is negative")


@attrs.frozen
class Ticket:
    _secret: int
    seats: tuple[str, ...] = ()
    at: datetime | None = attrs.field(default=None)


@attrs.define(slots=False)
class Open:
    a: list["Open"] = attrs.Factory(list)


class Line(pydantic.BaseModel):
    sku: str
    amount: Decimal


class Invoice(pydantic.BaseModel):
    id: UUID
    due: datetime
    lines: list[Line] = []
    kind: Literal["a", "b"] = "a"
    span: timedelta = timedelta(days=1)
    number: int = pydantic.Field(default=0, alias="No")
    color: Color | None = None


@dataclass
class Page(Generic[T]):
    rows: list[T]
    next: T | None = None


@dataclass
class OrderPage(Page[Order]):
    total: int = 0


UserId = NewType("UserId", int)
ORDER = Order(id=1, items=[Item("a", Decimal("1.10"), {"x", "y"})], parent=Order(id=2, items=[]))
INVOICE = Invoice(
    id=UUID(int=7),  # names a case, which must have the same name in every run
    due=datetime(2024, 1, 1, tzinfo=UTC),
    lines=[Line(sku="a", amount=Decimal("1.0"))],
)

EXACT: list[tuple[Any, Any]] = [
    (Any, {"a": (1,)}),
    (object, [b"x"]),
    (None, None),
    (T, (1, 2)),
    (int, 5),
    (int, True),
    (float, 1.5),
    (float, 1),
    (str, "x"),
    (bool, False),
    (bytes, b"\x00"),
    (date, date(2024, 1, 1)),
    (date, datetime(2024, 1, 1)),
    (Decimal, Decimal(1)),
    (list, [1, (2,)]),
    (list[int], [1, True]),
    (list[float], [1, 1.5]),
    (list[tuple[int, ...]], [(1, 2), ()]),
    (tuple, (1, "x")),
    (tuple[int, str], (1, "a")),
    (tuple[()], ()),
    (tuple[Color, ...], (Color.RED,)),
    (set, {1}),
    (set[int], {1, 2}),
    (frozenset[tuple[int, str]], frozenset({(1, "a")})),
    (dict, {"a": (1,)}),
    (dict[str, int], {"$x": 1}),
    (dict[str, Color], {"$:Color": Color.PAIR}),
    (dict[str, list[Decimal]], {"a": [Decimal(1)]}),
    (dict[int, str], {1: "a", -5: "b"}),
    (dict[tuple[int, int], Color], {(1, 2): Color.RED}),
    (dict[Word, int], {Word.YES: 1}),
    (dict[int | str, int], {1: 1, "1": 2}),
    (Sequence[int], [1]),
    (Sequence[int], (1,)),
    (Iterable[int], {1}),
    (Mapping[str, int], {"a": 1}),
    (AbstractSet[int], frozenset({1})),
    (Optional[int], None),  # noqa: UP045  the old spelling
    (int | str, "x"),
    (Union[int, None, list[str]], ["x"]),  # noqa: UP007  the old spelling
    (list[int] | list[str], ["x"]),
    (list[UUID] | list[str], [str(UUID(int=1))]),
    (list[tuple[int, ...]] | list[list[int]], [[1]]),
    (int | Decimal | datetime | str, "2024-01-01"),
    (Decimal | float, 1.5),
    (Literal["a", 1, None], 1),  # noqa: PYI061
    (Literal["a", 1, None], None),  # noqa: PYI061
    (Literal[Level.HIGH, "x"], Level.HIGH),
    (Literal[True], True),
    (Annotated[int, "why"], 1),
    (UserId, 5),
    (Color, Color.RED),
    (Color, Color.PAIR),
    (Level, Level.LOW),
    (Word, Word.YES),
    (Right, Right.READ | Right.WRITE),
    (Color | Level | Word, Level.HIGH),
    (str | Word, "yes"),
    (str | Word, Word.YES),
    (int | Level, 1),
    (Item, Item("a", Decimal("0.1"))),
    (Order, ORDER),
    (Order | None, None),
    (list[Order | Refund], [ORDER, Refund(1)]),
    (Refund | Rush, Rush(1, 2)),
    (Refund | Rush, Refund(1)),
    (Derived, Derived(3, 2)),
    (Point, Point(1)),
    (Loose, Loose(1, (2,))),
    (Options, {"color": Color.RED}),
    (Options, {"color": Color.RED, "size": 1}),
    (Packet, Packet(1, [Color.BLUE], Packet(2))),
    (Strict, Strict(1)),
    (Ticket, Ticket(4, ("a",), datetime(2024, 1, 1))),
    (Open, Open([Open(), Open()])),
    (Invoice, INVOICE),
    (Invoice | Line, INVOICE),
    (dict[str, Invoice], {"a": INVOICE}),
    (Page[int], Page([1], 2)),
    (Page[Order], Page([ORDER])),
    (Page[list[Color]], Page([[Color.RED]])),
    (Page[int] | Page[str], Page(["x"])),
    (OrderPage, OrderPage([ORDER], None, 1)),
    (Page[int], Page[int]([1])),
]


@pytest.mark.parametrize(
    ("annotation", "value"),
    EXACT,
    ids=lambda part: ascii(part)[:30].replace("\n", " "),
)
def test_exact(annotation: Any, value: Any) -> None:
    """Rule 2, F112, F123, S4.15: an annotated value comes back as the class that it was."""
    shape = CODEC.shape(annotation)
    payload, seen = shape.record(value)
    assert same(seen, value)
    again = shape.decode(payload)
    assert same(again, value)
    assert shape.encode(again) == payload
    assert b"\n" not in payload


def test_parts_keep_their_classes() -> None:
    """F112: equality is not enough, so each part's class is looked at."""
    _, seen = CODEC.shape(Order).record(ORDER)
    assert type(seen.items[0]) is Item
    assert type(seen.items[0].price) is Decimal
    assert type(seen.parent) is Order
    _, seen = CODEC.shape(Invoice).record(INVOICE)
    assert type(seen.lines[0]) is Line
    assert type(seen.lines[0].amount) is Decimal
    assert seen.model_fields_set == INVOICE.model_fields_set
    _, seen = CODEC.shape(list[float]).record([1, 1.0, True])
    assert [type(part) for part in seen] == [int, float, bool]


REFUSED: list[tuple[Any, Any, str]] = [
    (int, "x", "result is a str, and the annotation says int"),
    (int, 1.0, "result is a float"),
    (int, Level.HIGH, "result is a Level"),
    (str, Word.YES, "result is a Word"),
    (str, None, "result is None, and the annotation says str"),
    (None, 0, "result is an int, and the annotation says None"),
    (float, Decimal(1), "result is a Decimal"),
    (float, float("nan"), "result is nan"),
    (list[float], [0.5, float("inf")], "result[1] is inf"),
    (list[int], [1, "x"], "result[1] is a str"),
    (list[int], (1,), "result is a tuple"),
    (tuple[int, ...], [1], "result is a list"),
    (tuple[int, str], (1,), "result has 1 items"),
    (tuple[int, str], (1, 2), "result[1] is an int"),
    (set[int], {"x"}, "result{…} is a str"),
    (dict[str, int], {"a": "x"}, "result['a'] is a str"),
    (dict[str, int], {1: 1}, "result has the key 1"),
    (dict[int, str], {"1": "x"}, "result has a key that is a str"),
    (dict[int, list[int]], {7: [1, None]}, "result[7][1] is None"),
    (int | str, 1.5, "result is a float, and the annotation says int | str"),
    (Order | None, Refund(1), "result is a Refund, and the annotation says Order | None"),
    (list[int] | list[str], [1, "x"], "result[1] is a"),
    (Literal["a", 1], True, "result is True"),
    (Literal["a"], "b", "result is 'b', and the annotation says Literal['a']"),
    (Color, "r", "result is a str, and the annotation says Color"),
    (Order, {"id": 1, "items": []}, "result is a dict"),
    (Order, Order(id=1, items=[Item("a", 1.5)]), "result.items[0].price is a float"),  # type: ignore[arg-type]
    (Order, Order(id=1, items=[], note={"x": [Refund(1)]}), "result.note['x'][0] is a Refund"),
    (Refund, Rush(1), "result is a Rush, and would come back as the Refund"),
    (Point, (1, 2.0), "result is a tuple"),
    (Point, Point("x"), "result.x is a str"),  # type: ignore[arg-type]
    (Options, {"size": 1}, "result lacks the key 'color'"),
    (Options, {"color": Color.RED, "x": 1}, "result has the key 'x', which Options does not know"),
    (Options, {"color": "r"}, "result['color'] is a str"),
    (Packet, Packet("x"), "result.from_id is a str"),  # type: ignore[arg-type]
    (Ticket, Ticket(1, ["x"]), "result.seats is a list"),  # type: ignore[arg-type]
    (Page[int], Page(["x"]), "result.rows[0] is a str"),
]


@pytest.mark.parametrize(
    ("annotation", "value", "message"), REFUSED, ids=lambda part: ascii(part)[:30]
)
def test_refused_with_path(annotation: Any, value: Any, message: str) -> None:
    """Rule 2, F120: what the annotation would change or does not allow is refused."""
    with pytest.raises(SerializationError) as caught:
        CODEC.shape(annotation).record(value, "result")
    assert message in str(caught.value)


def test_attributes_that_are_no_fields() -> None:
    """F112: an attribute beside the fields would be lost, so the object is refused."""
    refund = Refund(1)
    refund.extra = 5  # type: ignore[attr-defined]
    with pytest.raises(SerializationError, match="attribute 'extra'"):
        CODEC.shape(Refund).encode(refund)

    class Base:
        __slots__ = ("__hidden", "open")

        def hide(self) -> None:
            self.__hidden = 1

    class Slotted(Base):
        __slots__ = ()
        __annotations__ = {}

    cls = dataclass(Slotted)
    assert CODEC.shape(cls).encode(cls()) == b'{"$:Slotted":{}}'
    for spoil in (lambda it: it.hide(), lambda it: setattr(it, "open", 1)):
        value = cls()
        spoil(value)
        with pytest.raises(SerializationError, match="which is no field"):
            CODEC.shape(cls).encode(value)


def test_cached_property_is_no_attribute() -> None:
    """What an object can compute again may be forgotten."""
    value = Derived(3)
    assert value.label == "3"
    _, seen = CODEC.shape(Derived).record(value)
    assert seen == value
    assert seen.label == "3"


def test_recorded_objects_are_not_constructed_again() -> None:
    """F112: a constructor runs once, when the step made the object."""
    calls = []

    @dataclass
    class Noisy:
        x: int

        def __post_init__(self) -> None:
            calls.append(self.x)
            self.x += 1

    value = Noisy(1)
    payload, seen = CODEC.shape(Noisy).record(value)
    assert seen == value == CODEC.shape(Noisy).decode(payload)
    assert calls == [1]


def test_struct_that_its_constructor_refuses() -> None:
    """F120: what could not be read back is refused when it is written."""
    value = Strict(1)
    value.n = -1
    with pytest.raises(SerializationError, match="n is negative"):
        CODEC.shape(list[Strict]).encode([value])


def test_struct_that_its_constructor_changes() -> None:
    """F112: a struct is constructed again, so what that changes is put back."""

    class Bump(msgspec.Struct):
        n: int

        def __post_init__(self) -> None:
            self.n += 1

    payload, seen = CODEC.shape(Bump).record(Bump(1))
    assert seen.n == CODEC.shape(Bump).decode(payload).n == 2


def test_not_required_in_text() -> None:
    """`from __future__ import annotations` hides NotRequired from TypedDict itself, not from us."""
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(
        "from __future__ import annotations\n"
        "class Text(TypedDict):\n a: int\n b: NotRequired[int]\n"
        "class Loose(TypedDict, total=False):\n a: Required[int]\n b: int\n",
        globals(),
        namespace,
    )
    for name in ("Text", "Loose"):
        shape = CODEC.shape(namespace[name])
        assert shape.record({"a": 1})[1] == {"a": 1}
        with pytest.raises(SerializationError, match="lacks the key 'a'"):
            shape.encode({"b": 1})


def test_pydantic_that_does_not_come_back() -> None:
    """F112: pydantic loses some values in JSON; such a model is refused."""

    class Loose(pydantic.BaseModel):
        x: Any = None
        secret: pydantic.SecretStr = pydantic.SecretStr("")
        _private: int = 0

    shape = CODEC.shape(Loose)
    assert shape.record(Loose(x=1))[1] == Loose(x=1)
    spoilt = Loose()
    spoilt._private = 5
    wrong = Loose.model_construct(x=object())
    for value in (
        Loose(x=datetime(2024, 1, 1)),
        Loose(x=(1,)),
        Loose(x=float("nan")),
        Loose(secret=pydantic.SecretStr("s")),
        spoilt,
        wrong,
    ):
        with pytest.raises(SerializationError, match="is a Loose that"):
            shape.encode(value)


UNUSABLE: list[Any] = [
    Callable[[int], int],
    Iterator[int],
    Awaitable[int],
    type[int],
    type,
    complex,
    bytearray,
    range,
    Exception,
    "Order",
    list["Order"],
    5,
    functools.partial,
    enum.Enum("Odd", {"A": object()}),
    list[Callable[..., Any]],
    int | complex,
    Mapping[str, complex],
    make_dataclass("Sub", [("x", int)], bases=(dict,)),
    make_dataclass("Hidden", [("f", "NoSuchName")]),
    make_dataclass("Deep", [("ok", int), ("bad", list[complex])]),
    Order | make_dataclass("Order", [("x", int)]),
    msgspec.UnsetType,
]


@pytest.mark.parametrize("annotation", UNUSABLE, ids=lambda part: ascii(part)[:40])
def test_unusable_annotation(annotation: Any) -> None:
    """Rule 2: an annotation whose values could not be recorded is refused before anything runs."""
    for _ in range(2):  # nothing half-built is kept
        with pytest.raises(RegistrationError) as caught:
            CODEC.shape(annotation)
        assert caught.value.hint


def test_field_at_fault_is_named() -> None:
    """Rule 2: the message says which field of which class has the unusable annotation."""
    inner = make_dataclass("Inner", [("bad", complex)])
    with pytest.raises(RegistrationError, match=r"in the field Outer\.x: in the field Inner\.bad"):
        CODEC.shape(make_dataclass("Outer", [("x", list[inner])]))  # type: ignore[valid-type]


def test_half_built_classes_are_forgotten() -> None:
    """A class whose partner cannot be recorded is refused again the next time, not half known."""
    left = make_dataclass("Left", [("right", "Right"), ("bad", "Bad")])
    right = make_dataclass("Right", [("left", "Left")])
    left.__annotations__ = {"right": right, "bad": complex}
    right.__annotations__ = {"left": left}
    for cls in (left, right, left):
        with pytest.raises(RegistrationError):
            CODEC.shape(cls)


def test_type_alias_of_python_312() -> None:
    """`type X = …` is read through, generic and recursive too."""
    Pair = typing_extensions.TypeAliasType("Pair", tuple[T, T], type_params=(T,))
    Name = typing_extensions.TypeAliasType("Name", str)
    assert CODEC.shape(Pair[int]).record((1, 2))[1] == (1, 2)
    with pytest.raises(SerializationError):
        CODEC.shape(Pair[int]).encode((1, "x"))
    assert CODEC.shape(list[Name]).record(["x"])[1] == ["x"]
