"""The codec against values, texts and damage that nobody thought of."""

from dataclasses import dataclass
from datetime import timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durabletask._codec import Codec
from durabletask._codec_any import same
from durabletask._errors import DecodeError, SerializationError

EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(EXAMPLES, max_examples=1500)


@dataclass
class Leaf:
    price: Decimal
    kind: Literal["a", "b"] = "a"


@dataclass
class Branch:
    kids: "list[Branch | Leaf]"
    tag: Any = None
    limits: tuple[int, ...] = ()


CODEC = Codec()
SHAPES = [
    CODEC.shape(annotation)
    for annotation in (
        Any, Branch | Leaf | None, dict[str, list[Branch] | Leaf], list[int] | list[str],
        tuple[int | str | None, ...], set[Decimal], dict[int, Leaf], Literal["a", 1],
    )
] + [Codec(types=[Branch, Leaf]).shape()]  # fmt: skip

OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False) | st.binary(max_size=20)
    | st.datetimes() | st.datetimes(timezones=OFFSETS) | st.dates() | st.times() | st.timedeltas()
    | st.decimals(allow_nan=False, allow_infinity=False) | st.uuids()
)  # fmt: skip
HASHABLE = st.recursive(
    SCALARS,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
TAGLIKE = st.sampled_from(
    ["$tuple", "$$tuple", "$", "$$", "$set", "$uuid", "$:Leaf", "$map", "$nope"]
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | TAGLIKE, inner, max_size=4)
        | st.dictionaries(TAGLIKE, inner, min_size=1, max_size=1)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=12,
)


@MANY
@given(VALUES)
def test_every_value_of_the_closed_set_is_exact(value: Any) -> None:
    """F112, F122, F123: first run and later runs see equal values of equal types."""
    shape = CODEC.shape()
    payload, seen = shape.record(value)
    assert same(seen, value)
    assert same(shape.decode(payload), value)
    assert shape.encode(seen) == payload
    assert b"\n" not in payload


ANY_TEXT = st.text(max_size=5)
MONSTERS = st.recursive(
    SCALARS | ANY_TEXT | st.floats() | st.decimals() | st.integers() | st.complex_numbers()
    | st.sampled_from([object(), len, int, range(2), Leaf(Decimal(1)), 2**64, -(2**63) - 1]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(ANY_TEXT | st.integers(), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=8,
)  # fmt: skip


@EXAMPLES
@given(MONSTERS)
def test_exact_or_refused(value: Any) -> None:
    """F120, F123: there is no third outcome, whatever the value is."""
    for shape in SHAPES:
        try:
            payload, seen = shape.record(value)
        except SerializationError:
            continue
        assert same(seen, value)
        assert same(shape.decode(payload), value)


CLOSED_TAGS = [
    *("$tuple", "$set", "$frozenset", "$map", "$bytes", "$decimal", "$uuid", "$$tuple"),
    *("$datetime", "$date", "$time", "$timedelta", "$:Leaf", "$:Branch", "$:Nope"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats(allow_nan=False) | TEXT
    | st.sampled_from(["2024-01-01", "1.5", "NaN", "eA==", "00000000-0000-0000-0000-000000000000"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TAGLIKE | TEXT, inner, max_size=3)
        | st.builds(
            lambda tag, part: {tag: part},
            st.sampled_from(CLOSED_TAGS),
            inner,
        )
        | st.fixed_dictionaries({}, optional={"price": inner, "kind": inner})
        | st.builds(lambda kids: {"$:Branch": {"kids": kids}}, st.lists(inner, max_size=2))
    ),
    max_leaves=10,
)  # fmt: skip


@MANY
@given(JSON)
def test_any_json_is_a_value_or_a_decode_error(raw: Any) -> None:
    """F135: whatever a record says, the worst that comes of it is a DecodeError."""
    payload = orjson.dumps(raw)
    for shape in SHAPES:
        try:
            value = shape.decode(payload)
        except DecodeError:
            continue
        assert same(shape.decode(shape.encode(value)), value)


GOOD = [
    CODEC.shape(Branch).encode(
        Branch([Leaf(Decimal("1.5")), Branch([], {"a": (1, {2}), "$x": b"y"}, (1, 2))])
    ),
    CODEC.shape().encode({"a": [1, (2, {3}), {"$tuple": 1}], "b": Decimal(1), "c": 1.5}),
]


@MANY
@given(
    st.sampled_from(GOOD),
    st.lists(
        st.tuples(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 4)), max_size=4
    ),
)
def test_damaged_records_are_values_or_decode_errors(
    payload: bytes, cuts: list[tuple[int, bytes, int]]
) -> None:
    """F135: bytes changed, cut and inserted never lead to another error."""
    for at, insert, skip in cuts:
        at %= len(payload) + 1
        payload = payload[:at] + insert + payload[at + skip :]
    for shape in SHAPES:
        try:
            shape.decode(payload)
        except DecodeError:
            continue


@EXAMPLES
@given(st.binary(max_size=40))
def test_random_bytes(payload: bytes) -> None:
    """F135: bytes that were never ours are a value or a DecodeError."""
    for shape in SHAPES:
        try:
            shape.decode(payload)
        except DecodeError:
            continue
