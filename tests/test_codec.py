"""Values without an annotation: exactly back, or refused with the path."""

import asyncio
import collections
import copy
import enum
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import pytest

from durabletask._codec import Codec
from durabletask._codec_any import same
from durabletask._errors import (
    DecodeError,
    LimitExceededError,
    RegistrationError,
    SerializationError,
)
from durabletask._limits import Limits

ANYTHING = Codec().shape()


@dataclass
class Order:
    id: int


class Color(enum.Enum):
    RED = "r"


class Level(enum.IntEnum):
    HIGH = 1


class Word(enum.StrEnum):
    YES = "yes"


class Point(NamedTuple):
    x: int
    y: int


class Packet(msgspec.Struct):
    n: int


class Text(str):
    __slots__ = ()


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def ascii_id(part: object) -> str:
    """Name a case; by its type where its text is long, or not the same in every process."""
    if isinstance(part, int | set | frozenset) or " at 0x" in (text := ascii(part)):
        return type(part).__name__
    return text[:40]


EXACT: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**53 + 1,
    2**64 - 1,
    -(2**63),
    0.0,
    -0.0,
    0.1,
    5e-324,
    1.7e308,
    1e22,
    "",
    "a\x00b",
    "line\nbreak",
    "\u2028",
    "é",
    "e\u0301",
    "😀",
    "\uffff",
    [],
    {},
    (),
    set(),
    frozenset(),
    [None],
    {"": 1},
    {"a": {"b": [1, (2, [3])]}},
    (1, (2,)),
    [(1,), [1]],
    {1, "1", (1, 2)},
    {frozenset({1}), frozenset()},
    b"",
    b"\x00\xff",
    datetime(2024, 2, 29, 1, 2, 3, 4),
    datetime.min,
    datetime.max,
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30, seconds=-1))),
    datetime(2024, 10, 27, 2, 30, fold=1),
    date.min,
    date(9999, 12, 31),
    time(1, 2, 3, 4),
    time(1, tzinfo=UTC),
    time(2, 30, fold=1),
    timedelta.min,
    timedelta.max,
    timedelta(microseconds=-1),
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("1E+400"),
    Decimal("0.1") / 3,
    UUID(int=0),
    UUID(int=2**128 - 1),
    {"$tuple": [1]},
    {"$$tuple": [1]},
    {"$": 1},
    {"$:Order": {"id": 1}},
    {"$map": []},
    {"$tuple": [1], "b": 2},
    {"$uuid": {"$uuid": "x"}},
    [{"$bytes": "eA=="}],
    "$tuple",
]


@pytest.mark.parametrize("value", EXACT, ids=ascii_id)
def test_exact(value: object) -> None:
    """Rule 2, F112, F122, F123, F127: JSON types and the closed set come back equal in type."""
    payload, seen = ANYTHING.record(value)
    assert same(seen, value)
    assert same(ANYTHING.decode(payload), value)
    assert payload == ANYTHING.encode(value)
    assert b"\n" not in payload
    payload.decode()
    if isinstance(value, datetime | time):
        assert seen.fold == value.fold


def test_zone_becomes_its_offset() -> None:
    """Rule 2: an aware datetime keeps the instant and the offset it had."""
    value = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Kyiv"))
    _, seen = ANYTHING.record(value)
    assert seen == value
    assert seen.utcoffset() == timedelta(hours=3)


def test_record_gives_a_copy() -> None:
    """F113: changing a value after it was recorded changes nothing that was recorded."""
    value: Any = {"items": [1, {"a": [2]}], "pair": ([3],)}
    before = copy.deepcopy(value)
    payload, seen = ANYTHING.record(value)
    value["items"].append(4)
    value["pair"][0].append(5)
    seen["items"][1]["a"].append(6)
    assert ANYTHING.decode(payload) == before
    assert ANYTHING.decode(payload) is not ANYTHING.decode(payload)


def test_recording_leaves_the_value_alone() -> None:
    """F113: encoding writes nothing into the value, tagged parts or not."""
    value = {"a": [(1,), {2}], "b": {"$x": 1}, "c": [1.5]}
    before = copy.deepcopy(value)
    ANYTHING.encode(value)
    assert same(value, before)


CYCLE: list[Any] = []
CYCLE.append({"a": (CYCLE,)})

REFUSED: list[tuple[Any, str]] = [
    (float("nan"), "value is nan"),
    ({"a": [1, {"b": float("inf")}]}, "value['a'][1]['b'] is inf"),
    ((1.5, -float("inf")), "value[1] is -inf"),
    (Decimal("NaN"), "value is Decimal('NaN')"),
    (2**64, "value is an integer of 65 bits"),
    ({"n": [-(2**63) - 1]}, "value['n'][0] is an integer of 64 bits"),
    (10**5000, "value is an integer of"),
    ("\ud800", "value has a lone surrogate at position 0"),
    ({"a": ("x", "ab\udfff")}, "value['a'][1] has a lone surrogate at position 2"),
    ({"k\ud800": 1}, "value has a lone surrogate at position 1"),
    ({"s": {"\ud800"}}, "value['s'] holds '\\ud800'"),
    (CYCLE, "value[0]['a'][0] contains itself"),
    ({1: 2}, "value has the key 1, an int"),
    ({"a": {None: 2}}, "value['a'] has the key None, None"),
    ({Word.YES: 1}, "value has the key"),
    ([Order(1)], "value[0] is an Order"),
    ({"c": Color.RED}, "value['c'] is a Color"),
    (Level.HIGH, "value is a Level"),
    (Word.YES, "value is a Word"),
    (Point(1, 2), "value is a Point"),
    (Packet(1), "value is a Packet"),
    (Text("x"), "value is a Text, and would come back as a str"),
    (collections.OrderedDict(a=1), "would come back as a dict"),
    (collections.defaultdict(list), "would come back as a dict"),
    (collections.Counter("a"), "would come back as a dict"),
    (bytearray(b"x"), "value is a bytearray"),
    (lambda: 1, "value is the function <lambda>"),
    (len, "value is the function len"),
    (int, "value is the class int"),
    ((n for n in [1]), "value is a generator"),
    (object(), "value is an object"),
    (sys, "value is a module"),
    (ValueError("x"), "value is a ValueError"),
    (range(3), "value is a range"),
    (complex(1), "value is a complex"),
    (time(1, tzinfo=ZoneInfo("Europe/Kyiv")), "value has the zone Europe/Kyiv"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=ascii_id)
def test_refused_with_path(value: object, message: str) -> None:
    """Rule 2, F120, F123: what has no exact form is refused where it is made, with the path."""
    for attempt in (ANYTHING.encode, ANYTHING.record):
        with pytest.raises(SerializationError) as caught:
            attempt(value)
        assert message in str(caught.value)
        assert not isinstance(caught.value, LimitExceededError)


def test_refused_things_of_the_outside_world() -> None:
    """F120: a socket, a coroutine, a task's future: refused by kind."""

    async def work() -> None: ...

    coroutine = work()
    with socket.socket() as connection, pytest.raises(SerializationError, match="is a socket"):
        ANYTHING.encode({"s": connection})
    with pytest.raises(SerializationError, match=r"\['c'\] is a coroutine that was not awaited"):
        ANYTHING.encode({"c": coroutine})
    coroutine.close()
    loop = asyncio.new_event_loop()
    with pytest.raises(SerializationError, match="await it"):
        ANYTHING.encode(loop.create_future())
    loop.close()


@pytest.mark.parametrize("value", [Order(1), Color.RED, Point(1, 2), Packet(1)])
def test_hint_names_the_fixes(value: object) -> None:
    """Issue 2, Values: an unannotated class is refused with a hint naming each way out."""
    name = type(value).__name__
    with pytest.raises(SerializationError) as caught:
        ANYTHING.encode(value)
    assert caught.value.hint is not None
    for fix in (f"-> {name}", f"type={name}", f"ProcessHost(types=[{name}])"):
        assert fix in caught.value.hint


def test_depth_limit_both_sides() -> None:
    """F124: a value of depth_max levels is recorded, one more is refused."""
    shape = Codec(limits=Limits(depth_max=20)).shape()
    payload, _ = shape.record(nested(20))
    assert shape.decode(payload) == nested(20)
    with pytest.raises(LimitExceededError, match="deeper than 20 levels"):
        shape.encode(nested(21))
    with pytest.raises(LimitExceededError):
        ANYTHING.encode(nested(100_000))


def test_depth_limit_holds_for_what_tags_add() -> None:
    """F124: tagged containers to the full depth are still written and read."""
    value: Any = 1
    for _ in range(100):
        value = (value,)
    payload, seen = ANYTHING.record(value)
    assert seen == ANYTHING.decode(payload) == value


def test_limit_deeper_than_json_is_still_an_error_of_ours() -> None:
    """F124: a limit set too high ends in the same error, not in one of the JSON writer."""
    shape = Codec(limits=Limits(depth_max=100_000)).shape()
    for levels in (300, 5_000):
        with pytest.raises(LimitExceededError, match="too deep"):
            shape.encode(nested(levels))


def test_size_limit_both_sides() -> None:
    """F124: the limit is the encoded size, to the byte, and the largest part is named."""
    shape = Codec(limits=Limits(value_bytes_max=100)).shape()
    assert len(shape.record("x" * 98)[0]) == 100
    with pytest.raises(
        LimitExceededError, match="value is 101 bytes as JSON, and the limit is 100"
    ):
        shape.record("x" * 99)
    value = {"small": 1, "list": [1, (2, {"big": "x" * 200})]}
    with pytest.raises(
        LimitExceededError, match=r"largest part is result\['list'\]\[1\]\[1\]\['big'\]"
    ):
        shape.encode(value, "result")


def test_five_megabytes() -> None:
    """Issue 2, Values: a 5 MB value is a clear error with the default limits."""
    with pytest.raises(LimitExceededError, match="5,000,002 bytes"):
        ANYTHING.record("x" * 5_000_000)


def test_sets_do_not_depend_on_the_hash_seed() -> None:
    """Rule 13: the payload of a set is one, whatever PYTHONHASHSEED is."""
    program = (
        "from durabletask._codec import Codec;"
        "print(Codec().shape().encode({'a','b','c','d',('e','f'),frozenset('ghijk')}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_registered_classes_need_no_annotation() -> None:
    """Rule 2: classes given as types=[…] come back as themselves anywhere."""
    shape = Codec(types=[Order, Color, Point, Packet, Word]).shape()
    value = [Order(1), {"c": Color.RED, "w": Word.YES}, (Point(1, 2),), {Color.RED}, Packet(3)]
    payload, seen = shape.record(value)
    assert same(seen, value)
    assert same(shape.decode(payload), value)


def test_registration_errors() -> None:
    """Rule 2: two classes of one name, or one that cannot be recorded, are refused at once."""
    other: Any = dataclass(type("Order", (), {"__annotations__": {"x": int}}))
    with pytest.raises(RegistrationError, match="two classes named 'Order'"):
        Codec(types=[Order, other])
    Codec(types=[Order, Order])
    with pytest.raises(RegistrationError, match="Lock"):
        Codec(types=[type("Lock", (), {})])
    with pytest.raises(RegistrationError, match="needs no registration"):
        Codec(types=[int])
    with pytest.raises(RegistrationError, match="takes classes"):
        Codec(types=["Order"])  # type: ignore[list-item]


def test_class_that_is_gone() -> None:
    """F125, F135: a record names a class that nobody gave: an error, and no name is resolved."""
    payload = Codec(types=[Order]).shape().encode({"o": Order(1)})
    with pytest.raises(DecodeError, match=r"Order.*not given"):
        ANYTHING.decode(payload)
    with pytest.raises(DecodeError):
        ANYTHING.decode(b'{"$:subprocess.Popen":{"args":"true"}}')


MALFORMED = [
    b"",
    b" ",
    b"{",
    b"nul",
    b"NaN",
    b"Infinity",
    b"1e400",
    b"01",
    b"[1,]",
    b"\xff\xfe",
    b'"\xff"',
    b'"\\ud800"',
    b'"a\nb"',
    b"'a'",
    b"1 2",
    b'{"a":1,"a":2}',
    b'[{"x":{"a":1,"b":2,"a":1}}]',
    b"18446744073709551616",
    b"[-9223372036854775809]",
    b"1" * 5000,
    b"[" * 10_000_000,
    b'{"a":' * 100_000,
    b"[" * 900 + b"]" * 900 + b"x",
    b'{"$nope":1}',
    b'{"$tuple":1}',
    b'{"$tuple":{"a":1}}',
    b'{"$set":[1,1]}',
    b'{"$set":[[1]]}',
    b'{"$frozenset":[{}]}',
    b'{"$bytes":"*"}',
    b'{"$bytes":[1]}',
    b'{"$bytes":null}',
    b'{"$datetime":"x"}',
    b'{"$datetime":1}',
    b'{"$datetime":["2024-01-01",2]}',
    b'{"$datetime":["2024-01-01T00:00:00",true]}',
    b'{"$datetime":[]}',
    b'{"$date":"2024-13-01"}',
    b'{"$time":"25:00"}',
    b'{"$timedelta":[1]}',
    b'{"$timedelta":[1e300,0,0]}',
    b'{"$timedelta":[true,0,0]}',
    b'{"$timedelta":[999999999999,0,0]}',
    b'{"$timedelta":"abc"}',
    b'{"$decimal":"x"}',
    b'{"$decimal":"NaN"}',
    b'{"$decimal":"sNaN"}',
    b'{"$decimal":1}',
    b'{"$decimal":[0,[1],0]}',
    b'{"$uuid":"x"}',
    b'{"$uuid":1}',
    b'{"$uuid":null}',
    b'{"$map":1}',
    b'{"$map":[[1]]}',
    b'{"$map":[[[1],2]]}',
    b'{"$map":[[1,2],[1,3]]}',
    b'{"$:Order":1}',
    b'{"$:":{}}',
    b'{"$:Order":{"id":1}}',
    b'{"py/object":1,"a":1,"a":2}',
    b"\x80\x04K\x01.",
    b"\x00",
]


@pytest.mark.parametrize("payload", MALFORMED, ids=ascii_id)
def test_malformed(payload: bytes) -> None:
    """F123, F135: damaged or hostile text is a DecodeError, never a value and nothing else."""
    with pytest.raises(DecodeError):
        ANYTHING.decode(payload)


def test_deep_but_valid_text_is_an_error_or_a_value() -> None:
    """F124: text deeper than anything we write neither crashes nor leaks another error."""
    for levels in (101, 300, 500, 900, 1000):
        for payload in (
            b"[" * levels + b"]" * levels,
            b'{"$tuple":[' * levels + b"]}" * levels,
            b'{"$$x":' * levels + b"1" + b"}" * levels,
        ):
            try:
                ANYTHING.decode(payload)
            except DecodeError:
                continue


def test_foreign_whitespace_and_escapes() -> None:
    """Text that other programs write is read, as long as it says one thing."""
    assert ANYTHING.decode(b' { "a" : [ 1.50 , "\\u00e9\\/" ] } ') == {"a": [1.5, "é/"]}
    assert ANYTHING.decode(b'{ "\\u0024tuple" : [ 1 ] }') == (1,)


def test_user_code_that_fails_while_it_is_read() -> None:
    """F120: whatever a strange object does when looked at, the outcome is an error of ours."""

    class Moody(tzinfo):
        def utcoffset(self, moment: object) -> timedelta:
            raise OSError("no zone data")

        def dst(self, moment: object) -> None: ...

        def tzname(self, moment: object) -> None: ...

    with pytest.raises(SerializationError, match="no zone data"):
        ANYTHING.encode([datetime(2024, 1, 1, tzinfo=Moody())])


def test_shapes_are_shared_and_bounded() -> None:
    """Nothing that is made per call stays: shapes are cached up to a bound."""
    codec = Codec()
    assert codec.shape(list[int]) is codec.shape(list[int])
    assert codec.shape() is codec.shape(Any) is codec.shape()
    for _ in range(5000):
        codec.shape(dataclass(type("Local", (), {"__annotations__": {"x": int}})))
    assert len(codec._shapes) <= 4096
    assert len(codec._nodes) <= 4096


def test_shape_of_a_value_that_stands_for_itself() -> None:
    """An event given as an object is written as its class, without an annotation."""
    codec = Codec()
    payload = codec.shape_of(Order(1)).encode(Order(1))
    assert codec.shape(Order).decode(payload) == Order(1)
    assert codec.shape_of({"id": 1}) is codec.shape()


@pytest.mark.parametrize("make", [lambda: float("nan"), lambda: "\ud800", lambda: 2**70])
def test_root_is_named_by_the_caller(make: Callable[[], object]) -> None:
    """F120: the path starts with what the caller calls the value."""
    with pytest.raises(SerializationError, match=r"^result "):
        ANYTHING.record(make(), "result")
    with pytest.raises(SerializationError, match=r"^result\[1\] "):
        ANYTHING.record([0, make()], "result")


def test_long_keys_and_paths_stay_short() -> None:
    """F139: a message holds no raw control characters and does not grow with the value."""
    with pytest.raises(SerializationError) as caught:
        ANYTHING.encode({"k\n\x1b" + "x" * 1000: nested(90) and [object()]})
    assert len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)


def test_uuid_on_the_first_run_and_later() -> None:
    """Issue 2, Values: get("secret", uuid4) gives the same UUID on every run."""
    value = uuid4()
    payload, seen = ANYTHING.record(value)
    assert type(seen) is UUID
    assert ANYTHING.decode(payload) == seen == value
