"""Records that are read by other code than wrote them, by others' JSON, or damaged."""

import enum
from collections import namedtuple
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from durabletask._codec import Codec
from durabletask._codec_any import same
from durabletask._errors import DecodeError

T = TypeVar("T")
CODEC = Codec()


class Color(enum.Enum):
    RED = "r"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 0


class Right(enum.Flag):
    READ = enum.auto()


@dataclass
class Item:
    sku: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


@dataclass
class Order:
    id: int
    items: list[Item]


@dataclass
class Refund:
    id: int


@dataclass
class Rush(Refund):
    days: int = 1


class Point(NamedTuple):
    x: int
    y: float = 0.5


Loose = namedtuple("Loose", "x y")  # noqa: PYI024  the untyped kind is the point


class Options(TypedDict):
    color: Color
    size: NotRequired[int]


class Packet(msgspec.Struct, frozen=True, rename="camel", tag=True):
    from_id: int
    colors: list[Color] = []


class Strict(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("n is negative")


@attrs.frozen
class Ticket:
    _secret: int
    seats: tuple[str, ...] = ()


class Invoice(pydantic.BaseModel):
    id: UUID
    due: datetime
    number: int = pydantic.Field(default=0, alias="No")


@dataclass
class Page(Generic[T]):
    rows: list[T]


def recode(before: Any, value: Any, after: Any) -> Any:
    return CODEC.shape(after).decode(CODEC.shape(before).encode(value))


def test_annotation_added_later() -> None:
    """F125: annotating what was not annotated keeps records readable."""
    assert same(recode(Any, (1, {2}), tuple[int, set[int]]), (1, {2}))
    assert recode(Any, {"sku": "a", "price": Decimal(1)}, Item) == Item("a", Decimal(1))
    assert recode(Item, Item("a", Decimal(1)), Item | None) == Item("a", Decimal(1))
    assert recode(Item | Refund, Refund(1), Refund) == Refund(1)


CHANGED: list[tuple[Any, Any, Any]] = [
    (str, "x", int),
    (int, 1, str),
    (float, 1.5, int),
    (int, 1, list[int]),
    (None, None, int),
    (set[int], {1}, list[int]),
    (bytes, b"x", str),
    (UUID, UUID(int=1), str),
    (Item, Item("a", Decimal(1)), Refund),
    (Refund, Refund(1), Rush),
    (Color, Color.BLUE, Level),
    (dict[int, int], {1: 1}, dict[str, int]),
    (datetime, datetime(2024, 1, 1), Decimal),
    (list[int], [1], list[str]),
    (Point, Point(1), Loose),
    (Literal["a"], "a", Literal["b"]),
    (int | str, "x", int | None),
]


@pytest.mark.parametrize(("before", "value", "after"), CHANGED, ids=lambda part: ascii(part)[:25])
def test_changed_type_is_an_error(before: Any, value: Any, after: Any) -> None:
    """Rule 4: a recorded value that no longer fits is a DecodeError, never another value."""
    with pytest.raises(DecodeError, match=r"recorded|annotation|no field|refused|is no "):
        recode(before, value, after)


def version(name: str, *fields: Any) -> Any:
    return make_dataclass(name, fields)


def test_fields_added_and_removed() -> None:
    """F125: a new field takes its default, a removed one is forgotten."""
    one = version("V", ("a", int))
    two = version("V", ("a", int), ("b", list, field(default_factory=list)))
    assert recode(one, one(1), two) == two(1, [])
    assert recode(two, two(1, [2]), one) == one(1)
    with pytest.raises(DecodeError, match="without 'b'"):
        recode(one, one(1), version("V", ("a", int), ("b", int)))


def test_renamed_field_is_an_error() -> None:
    """F125: one field gone and a new one with a default is a rename; its default would be wrong."""
    one = version("V", ("a", int), ("amount", int))
    two = version("V", ("a", int), ("total", int, field(default=0)))
    with pytest.raises(DecodeError, match="with 'amount' and without 'total'"):
        recode(one, one(1, 100), two)


def test_json_of_other_programs() -> None:
    """An event that another program wrote as plain JSON is read as the class asked for."""
    item = CODEC.shape(Item).decode(b'{"sku":"a","price":"1.5","tags":["x"]}')
    assert same(item, Item("a", Decimal("1.5"), {"x"}))
    assert CODEC.shape(Options).decode(b'{"color":"r"}') == {"color": Color.RED}
    assert CODEC.shape(Packet).decode(b'{"fromId":1,"colors":[2]}') == Packet(1, [Color.BLUE])
    assert CODEC.shape(Ticket).decode(b'{"secret":1,"seats":["x"]}') == Ticket(1, ("x",))
    assert CODEC.shape(Point).decode(b'{"x":1}') == Point(1)
    assert CODEC.shape(tuple[UUID, datetime]).decode(
        b'["00000000-0000-0000-0000-000000000001","2024-01-01T00:00:00Z"]'
    ) == (UUID(int=1), datetime(2024, 1, 1, tzinfo=UTC))
    invoice = b'{"id":"%s","due":"2024-01-01T00:00:00Z","No":5}' % str(UUID(int=1)).encode()
    assert CODEC.shape(Invoice).decode(invoice).number == 5


def test_view_needs_no_classes() -> None:
    """F125: whoever looks at a history without its code sees data, whatever classes it had."""
    ticket = Ticket(1, ("x",))
    order = Order(1, [Item("a", Decimal(1), {"x"})])
    invoice = Invoice(id=UUID(int=1), due=datetime(2024, 1, 1, tzinfo=UTC))
    for value, seen in (
        (order, {"id": 1, "items": [{"sku": "a", "price": Decimal(1), "tags": {"x"}}]}),
        (ticket, {"_secret": 1, "seats": ("x",)}),
        (Color.RED, "r"),
        (Point(1), {"x": 1, "y": 0.5}),
        (invoice, {"id": str(UUID(int=1)), "due": "2024-01-01T00:00:00Z", "number": 0}),
    ):
        assert same(CODEC.view.decode(CODEC.shape_of(value).encode(value)), seen)
    for damaged in (b'{"$nope":1}', b'{"$uuid":1}', b'{"$:X":{"$uuid":1}}'):
        with pytest.raises(DecodeError):
            CODEC.view.decode(damaged)


@pytest.mark.parametrize(
    ("annotation", "payload"),
    [
        (Item, b'{"sku":"a"}'),
        (Item, b'{"sku":"a","price":"1","x":1}'),
        (Item, b'{"sku":1,"price":"1"}'),
        (Strict, b'{"n":-1}'),
        (Strict, b'{"$:Strict":{"n":-1}}'),
        (Color, b'"zzz"'),
        (Color, b"[]"),
        (Color, b'{"$:Color":{"$:Color":"r"}}'),
        (Level, b"7"),
        (Right, b'{"$:Right":64}'),
        (Invoice, b"{}"),
        (Invoice, b'{"$:Invoice":{}}'),
        (Invoice, b'{"$:Invoice":[{},[]]}'),
        (Invoice, b'{"$:Invoice":[1,2]}'),
        (Item, b'{"$:Item":[]}'),
        (Item, b'{"$:Refund":{"id":1}}'),
        (Point, b'{"$:Point":{}}'),
        (Order, b"[]"),
        (tuple[int, int], b"[1]"),
        (dict[str, int], b'{"$tuple":[]}'),
        (dict[int, int], b'{"1":1}'),
        (dict[int, int], b'{"$map":[[1,1],[1,2]]}'),
        (set[int], b"[1,1]"),
        (set[int], b'{"$set":[1,1]}'),
        (Options, b'{"color":"r","zzz":1}'),
        (Options, b"{}"),
        (Literal["a"], b'"b"'),
        (UUID, b'"x"'),
        (datetime, b'"yesterday"'),
        (date, b'"2024-01-01T00"'),
        (Page[int], b'{"$:Page":{"rows":["x"]}}'),
        (list[Order], b'[{"$:Order":{"id":1}}]'),
    ],
)
def test_malformed(annotation: Any, payload: bytes) -> None:
    """F135: a damaged or hostile record of a class is a DecodeError and nothing else."""
    with pytest.raises(DecodeError):
        CODEC.shape(annotation).decode(payload)
