"""The arguments of a process: checked before anything is written, the same at every resume."""

# mypy: disable-error-code="empty-body"

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import orjson
import pytest

from durabletask._codec import Codec
from durabletask._errors import (
    DecodeError,
    InvalidArgumentError,
    LimitExceededError,
    RegistrationError,
    SerializationError,
)
from durabletask._input import Signature
from durabletask._limits import Limits
from durabletask._process import Process

if TYPE_CHECKING:
    from decimal import Context

CODEC = Codec()

T = TypeVar("T")


@dataclass
class Order:
    id: int
    tags: dict[str, int] = field(default_factory=dict)


def signature(fn: Callable[..., Any]) -> Signature:
    return Signature(fn, CODEC)


async def transfer(
    proc: object,
    source: str,
    amount: Decimal = Decimal(10),
    items: list[int] = [1],  # noqa: B006  nobody shares it
) -> Order: ...


async def untyped(proc, a, b=None): ...  # type: ignore[no-untyped-def]


async def many(proc: object, first: int, *rest: Order, flag: bool = True) -> None: ...


def test_arguments_come_back() -> None:
    """S1.04, S4.10: a resumed process gets the values that the first run got."""
    payload, _ = signature(transfer).encode("p", ("alice", Decimal("1.50"), [2]))
    assert signature(transfer).decode(payload) == (("alice", Decimal("1.50"), [2]), {})
    payload, _ = signature(many).encode("p", (1, Order(1), Order(2, {"a": 1})))
    assert signature(many).decode(payload) == (
        (1, Order(1), Order(2, {"a": 1})),
        {"flag": True},
    )
    payload, _ = signature(untyped).encode("p", ((1, {2}),))
    assert signature(untyped).decode(payload) == (((1, {2}), None), {})


def test_defaults_are_recorded() -> None:
    """Rule 13: a default that is changed later does not change a process that runs."""
    payload, _ = signature(transfer).encode("p", ("alice",))
    assert orjson.loads(payload)["amount"] == {"$decimal": "10"}

    async def transfer_later(
        proc: object,
        source: str,
        amount: Decimal = Decimal(99),
        items: list[int] = [9],  # noqa: B006
    ) -> None: ...

    assert signature(transfer_later).decode(payload) == (("alice", Decimal(10), [1]), {})


def test_no_two_processes_share_a_default() -> None:
    """F113: a mutable default is a fresh copy for each process."""
    it = signature(transfer)
    payload, _ = it.encode("p", ("alice",))
    it.decode(payload)[0][2].append(5)
    assert it.decode(payload)[0][2] == [1]
    old = b'{"source":"alice"}'
    it.decode(old)[0][2].append(5)
    assert it.decode(old) == (("alice", Decimal(10), [1]), {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "got 0 arguments, and transfer(proc: object, source: str, amount"),
        ((), "needs 'source'"),
        (("a", Decimal(1), [], 4), "takes at most 3"),
    ],
)
def test_wrong_count(args: tuple[Any, ...], message: str) -> None:
    """S1.04: a wrong number of arguments is refused, showing the signature."""
    with pytest.raises(InvalidArgumentError) as caught:
        signature(transfer).encode("order/7", args)
    assert message in str(caught.value)
    assert "'order/7'" in str(caught.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((5,), "argument source is an int, and the annotation says str"),
        (("a", 1.5), "argument amount is a float"),
        (("a", Decimal(1), [1, "x"]), "argument items[1] is a str"),
        (("\ud800",), "input of 'order/7'['source'] has a lone surrogate"),
    ],
)
def test_wrong_type(args: tuple[Any, ...], message: str) -> None:
    """S1.04: an argument that does not fit its annotation is refused, with the path."""
    with pytest.raises(SerializationError) as caught:
        signature(transfer).encode("order/7", args)
    assert message in str(caught.value)


def test_wrong_type_among_the_rest() -> None:
    """S1.04: each of *rest is checked, too."""
    with pytest.raises(SerializationError, match=r"argument rest\[1\] is an int"):
        signature(many).encode("p", (1, Order(1), 2))


def test_input_limit_both_sides() -> None:
    """Rule 14: the limit is over all arguments together, to the byte."""
    it = Signature(untyped, CODEC, Limits(input_bytes_max=40))
    assert len(it.encode("p", ("x" * 21, 1))[0]) == 35
    assert len(it.encode("p", ("x" * 26, 1))[0]) == 40
    with pytest.raises(LimitExceededError, match=r"input of 'p' is 41 bytes.*\['a'\]"):
        it.encode("p", ("x" * 27, 1))


# --- digest ------------------------------------------------------------------------------


def digest(fn: Callable[..., Any], *args: Any) -> str:
    return signature(fn).encode("p", args)[1]


def test_digest_says_whether_it_is_the_same() -> None:
    """Rule 13: equal arguments have one digest, others another."""
    assert digest(transfer, "a", Decimal(1)) == digest(transfer, "a", Decimal(1))
    others = [
        ("a",),
        ("b",),
        ("a", Decimal(1)),
        ("a", Decimal("1.0")),
        ("a", Decimal(10), [2]),
        ("a", Decimal(10), [True]),
    ]
    assert len({digest(transfer, *args) for args in others}) == len(others)
    assert len(digest(transfer, "a")) == 64


def test_digest_does_not_see_order_of_dictionaries_and_sets() -> None:
    """Rule 13: arguments that are equal in Python have one digest."""
    one, two = {"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 2, "c": 1}, "a": 1}
    assert digest(untyped, one) == digest(untyped, two)
    assert digest(untyped, {"x", "y", ("z",)}) == digest(untyped, {("z",), "y", "x"})

    async def keyed(proc: object, table: dict[int, str]) -> None: ...

    assert digest(keyed, {1: "a", 2: "b"}) == digest(keyed, {2: "b", 1: "a"})
    assert digest(keyed, {1: "a", 2: "b"}) != digest(keyed, {1: "b", 2: "a"})


def test_digest_leaves_out_what_equals_its_default() -> None:
    """Rule 13: adding a parameter with a default keeps the digest of every earlier spawn."""

    async def before(proc: object, source: str) -> None: ...

    async def after(proc: object, source: str, *more: int, fast: bool = False) -> None: ...

    assert digest(before, "a") == digest(transfer, "a") == digest(after, "a")
    assert digest(transfer, "a") == digest(transfer, "a", Decimal(10), [1])
    assert digest(after, "a", 1) != digest(after, "a")


def test_digest_does_not_depend_on_the_hash_seed() -> None:
    """Rule 13: two hosts agree on the digest."""
    program = (
        "from durabletask._codec import Codec\n"
        "from durabletask._input import Signature\n"
        "async def fn(proc, a): ...\n"
        "print(Signature(fn, Codec()).encode('p', ({'a', 'b', 'c', ('d', 'e')},))[1])"
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


# --- code that changed since -------------------------------------------------------------


def test_parameter_added_with_a_default() -> None:
    """F125: a process that began before the parameter takes the default."""

    async def before(proc: object, source: str) -> None: ...

    payload, _ = signature(before).encode("p", ("a",))
    assert signature(transfer).decode(payload) == (("a", Decimal(10), [1]), {})
    payload, _ = signature(before).encode("p", ("a",))

    async def rest(proc: object, source: str, *more: int) -> None: ...

    assert signature(rest).decode(payload) == (("a",), {})


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"source":"a","target":"b"}', "has 'target', which transfer.* no longer takes"),
        (b'{"amount":{"$decimal":"1"}}', "lacks 'source', which transfer.* needs"),
        (b'{"source":1}', "source is recorded as an int, and the code asks for str"),
        (b'{"source":"a","items":["x"]}', r"items\[0\] is recorded as a str"),
        (b"[]", "no JSON object"),
        (b"x", "no valid JSON"),
        (b'{"source":"a","source":"b"}', "duplicate key"),
    ],
)
def test_input_that_no_longer_fits(payload: bytes, message: str) -> None:
    """Rule 4: a recorded input that the code cannot take is a DecodeError naming the parameter."""
    with pytest.raises(DecodeError, match=message):
        signature(transfer).decode(payload)


def test_damaged_rest() -> None:
    """F135: what is no array under *rest is a DecodeError."""
    with pytest.raises(DecodeError, match="no array under 'rest'"):
        signature(many).decode(b'{"first":1,"rest":{}}')


# --- what can be a process function ---------------------------------------------------------


def test_return_shape() -> None:
    """Rule 2: the result of a process has the shape of its return annotation."""
    assert signature(transfer).returns.record(Order(1))[1] == Order(1)
    assert signature(untyped).returns is CODEC.shape()
    with pytest.raises(SerializationError):
        signature(many).returns.encode(1)


class Service:
    async def run(self, proc: object, a: int) -> int: ...

    @classmethod
    async def make(cls, proc: object, a: int) -> int: ...

    @staticmethod
    async def plain(proc: object, a: int) -> int: ...

    async def __call__(self, proc: object, a: int) -> int: ...


@pytest.mark.parametrize("fn", [Service().run, Service.make, Service.plain, Service()])
def test_methods_and_callable_objects(fn: Callable[..., Any]) -> None:
    """Whatever is an async callable with a Process parameter can be a process function."""
    it = signature(fn)
    payload, _ = it.encode("p", (5,))
    assert it.decode(payload) == ((5,), {})
    assert it.returns is CODEC.shape(int)


class Doubles(Protocol):
    id: str


@pytest.mark.parametrize("first", ["Context", "Process", Process, Doubles, Any, object, T, None])
def test_what_may_stand_at_the_process(first: Any) -> None:
    """A double, nothing at all, or a name for type checkers only: none of it is taken for input."""

    async def run(proc, a: int) -> None: ...  # type: ignore[no-untyped-def]

    if first is not None:
        run.__annotations__["proc"] = first
    assert orjson.loads(signature(run).encode("p", (5,))[0]) == {"a": 5}


def test_partial() -> None:
    """What a partial fixes is code: neither recorded nor in the digest, and never passed twice."""
    client = object()

    async def fetch(proc: object, url: str, *, client: Any, retries: int = 3) -> None: ...

    it = signature(functools.partial(fetch, client=client))
    payload, _ = it.encode("p", ("x",))
    assert orjson.loads(payload) == {"url": "x", "retries": 3}
    assert it.decode(payload) == (("x",), {"retries": 3})

    async def first(config: object, proc: object, url: str) -> None: ...

    it = signature(functools.partial(first, client))
    assert it.decode(it.encode("p", ("x",))[0]) == (("x",), {})


async def no_parameters() -> None: ...


async def only_keywords(**options: int) -> None: ...


async def no_process(source: str, target: str) -> None: ...


async def no_process_as_text(order: "Order") -> None: ...


async def needs_keyword(proc: object, *, a: int) -> None: ...


async def odd_default(proc: object, a: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013


async def sentinel_default(proc: object, a: Any = object()) -> None: ...  # noqa: B008


async def unknown_name(proc: object, a: "Context") -> None: ...


async def unusable(proc: object, a: Callable[[], int]) -> None: ...


async def unusable_return(proc: object) -> "Context": ...


async def generator(proc: object) -> Any:
    yield 1


def sync(proc: object) -> None: ...


def sync_generator(proc: object) -> Any:
    yield 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (no_parameters, "no parameter for the Process"),
        (only_keywords, "no parameter for the Process"),
        (no_process, "no_process has no parameter for the Process"),
        (no_process_as_text, "no parameter for the Process"),
        (functools.partial(untyped, 1, 2, 3), "no parameter for the Process"),
        (needs_keyword, "'a' of needs_keyword is keyword-only"),
        (odd_default, "default of parameter 'a'"),
        (sentinel_default, "default of parameter 'a'"),
        (unknown_name, "'Context' of parameter 'a' of unknown_name cannot be resolved"),
        (unusable, "Callable"),
        (unusable_return, "'Context' of the return of unusable_return"),
        (generator, "generator"),
        (sync_generator, "generator"),
        (sync, "sync is not async"),
        (functools.partial(sync, 1), "sync is not async"),
        (Order, "is no function"),
        (None, "is no function"),
        ("transfer", "is no function"),
    ],
)
def test_no_process_function(fn: Any, message: str) -> None:
    """Issue 2, bad input: what cannot be a process function is refused at registration."""
    with pytest.raises(RegistrationError) as caught:
        signature(fn)
    assert message in str(caught.value)
    assert caught.value.hint
