"""What a step may be: known before it runs, found quickly, nothing kept per call."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import AsyncMock, MagicMock, Mock
from uuid import UUID, uuid4

import pytest

from durabletask._callable import Callables, CallSpec
from durabletask._codec import Codec
from durabletask._errors import InvalidArgumentError, RegistrationError

if TYPE_CHECKING:
    from decimal import Context

CODEC = Codec()
CALLABLES = Callables(CODEC)


@dataclass
class Order:
    id: int


async def fetch(a: int, b: str = "", *, c: bool = False) -> Order:
    return Order(a)


def load(a: int) -> list[Order]:
    return [Order(a)]


def future(a: int) -> Awaitable[Order]:
    return fetch(a)


def coroutine(a: int) -> Coroutine[Any, Any, int]: ...


def bare(a: int) -> Awaitable: ...  # type: ignore[type-arg]


def variadic(*args: int, **options: str) -> None: ...


def keyword(a: int, *, b: int) -> int: ...


def passing(fn: Callable[..., Any]) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


class Bank:
    async def send(self, amount: int) -> Order: ...

    def look(self) -> int: ...

    @classmethod
    def make(cls, a: int) -> int: ...

    @staticmethod
    async def ping() -> str: ...

    async def __call__(self, a: int) -> Order: ...


class SyncCall:
    def __call__(self, a: int, b: int) -> int: ...


@pytest.mark.parametrize(
    ("fn", "is_async", "returns", "fits", "not_fits"),
    [
        (fetch, True, Order, [1, 2], [0, 3]),
        (load, False, list[Order], [1], [0, 2]),
        (future, True, Order, [1], [0]),
        (coroutine, True, int, [1], [0]),
        (bare, True, Any, [1], [0]),
        (variadic, False, None, [0, 1, 100], []),
        (lambda: 1, False, Any, [0], [1]),
        (lambda a, b=1: 1, False, Any, [1, 2], [0, 3]),
        (Bank().send, True, Order, [1], [0, 2]),
        (Bank.send, True, Order, [2], [1, 3]),
        (Bank().look, False, int, [0], [1]),
        (Bank.make, False, int, [1], [0, 2]),
        (Bank().make, False, int, [1], [0, 2]),
        (Bank.ping, True, str, [0], [1]),
        (Bank.__dict__["ping"], True, str, [0], [1]),
        (Bank(), True, Order, [1], [0, 2]),
        (SyncCall(), False, int, [2], [1, 3]),
        (functools.partial(fetch, 1), True, Order, [0, 1], [2]),
        (functools.partial(fetch, b="x"), True, Order, [1], [0, 2]),
        (functools.partial(fetch, 1, c=True), True, Order, [0, 1], [2]),
        (functools.partial(functools.partial(fetch, 1), "x"), True, Order, [0], [1]),
        (functools.partial(Bank(), 1), True, Order, [0], [1]),
        (functools.partial(Bank().send, amount=1), True, Order, [0], [1]),
        (functools.partial(keyword, b=1), False, int, [1], [0, 2]),
        (functools.partial(fetch, zzz=1), True, Order, [], [0, 1]),  # type: ignore[call-arg]
        (keyword, False, int, [], [0, 1, 2]),
        (functools.cache(load), False, list[Order], [0, 1, 2], []),
        (passing(load), False, list[Order], [0, 1, 2], []),
        (Order, False, Order, [1], [0, 2]),
        (UUID, False, UUID, [1], []),
        (uuid4, False, Any, [0], [1]),
        (len, False, Any, [1], [0, 2]),
        (os.getpid, False, Any, [0], [1]),
        ({}.get, False, Any, [1, 2], []),
        (print, False, Any, [0, 5], []),
        (AsyncMock(), False, Any, [0, 3], []),  # its caller finds an awaitable and awaits it
        (Mock(), False, Any, [0, 3], []),
        (MagicMock(), False, Any, [0, 3], []),
    ],
)
def test_spec(fn: Any, is_async: bool, returns: Any, fits: list[int], not_fits: list[int]) -> None:
    """Rule 2: whether to await, what comes back and what fits is known before the step runs."""
    for _ in range(2):  # examined, then remembered
        spec = CALLABLES.spec(fn)
        assert spec.is_async is is_async
        assert spec.returns is CODEC.shape(returns)
        for count in fits:
            spec.check((0,) * count)
        for count in not_fits:
            with pytest.raises(InvalidArgumentError, match="cannot be called with these") as caught:
                spec.check((0,) * count)
            assert spec.name in str(caught.value)


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class GeneratorCall:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (generator, "generator is a generator function"),
        (async_generator, "async_generator is a generator function"),
        (functools.partial(generator), "generator function"),
        (GeneratorCall(), "generator function"),
        (generator(), "a generator cannot be called"),
        (None, "None cannot be called"),
        (5, "an int cannot be called"),
        ("fetch", "a str cannot be called"),
        (Order(1), "an Order cannot be called"),
    ],
)
def test_refused(fn: Any, message: str) -> None:
    """F117: what cannot be a step is refused with a hint, nothing being recorded."""
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        CALLABLES.spec(fn)
    assert caught.value.hint


def test_coroutine_object() -> None:
    """F117: a call already made is refused with the fix, and leaves no warning behind."""
    with pytest.raises(InvalidArgumentError) as caught:
        CALLABLES.spec(fetch(1))
    assert "proc.do(key, fetch, x), not proc.do(key, fetch(x))" in str(caught.value)
    gc.collect()  # warnings are errors: an un-awaited coroutine would fail the test


async def test_future_and_task() -> None:
    """F117: a future or a task is a call already made, too; it is left alone."""
    pending = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(fetch(1))
    for running in (pending, task):
        with pytest.raises(InvalidArgumentError, match="call already made"):
            CALLABLES.spec(running)
    assert await task == Order(1)
    pending.cancel()


def unknown_return() -> Context: ...


@contextlib.contextmanager
def context() -> Iterator[int]:
    yield 1


def never() -> NoReturn:
    raise ValueError


def test_annotation_is_checked_before() -> None:
    """Rule 2: a return annotation that cannot be recorded or resolved is refused."""
    with pytest.raises(RegistrationError, match=r"'Context' of the return of unknown_return"):
        CALLABLES.spec(unknown_return)
    with pytest.raises(RegistrationError, match="Iterator"):
        CALLABLES.spec(context)
    assert CALLABLES.spec(never).returns.label == "Any"


def test_local_class_in_text_annotation() -> None:
    """A local class is found where the function's closure has it; else the error tells the fix."""

    @dataclass
    class Local:
        x: int

    def seen() -> Local:
        return Local(1)

    def unseen() -> Local: ...

    spec = CALLABLES.spec(seen)
    assert spec.returns.record(Local(1))[1] == Local(1)
    with pytest.raises(RegistrationError, match="Local") as caught:
        CALLABLES.spec(unseen)
    assert "module level" in str(caught.value.hint)


def test_functions_of_one_code_are_not_confused() -> None:
    """One piece of code, other annotation, closure, defaults or module: another spec."""
    callables = Callables(CODEC)

    def make(kind: Any) -> Any:
        def inner() -> kind:
            return kind

        return inner

    def annotated(kind: Any, defaults: int) -> Any:
        def inner(a, b): ...  # type: ignore[no-untyped-def]

        inner.__annotations__["return"] = kind
        inner.__defaults__ = (1,) * defaults
        return inner

    for _ in range(2):
        for kind in (int, str, list[int]):
            assert callables.spec(make(kind)).returns is CODEC.shape(kind)
            for defaults in range(3):
                spec = callables.spec(annotated(kind, defaults))
                assert spec.returns is CODEC.shape(kind)
                assert (spec.args_min, spec.args_max) == (2 - defaults, 2)


def test_annotations_are_compared() -> None:
    """Functions of one code that differ in nothing but the annotation are told apart."""
    callables = Callables(CODEC)
    for kind in (int, str, list[int], int):

        def inner() -> None: ...

        inner.__annotations__["return"] = kind
        assert callables.spec(inner).returns is CODEC.shape(kind)


def in_module(text: str) -> Any:
    namespace: dict[str, Any] = {"passing": passing}
    exec(text, namespace)
    return namespace["fn"]


def test_wrappers_of_other_modules_are_not_confused() -> None:
    """A decorator's wrapper has one code; names are looked up where the wrapped function is."""
    callables = Callables(CODEC)
    text = "from dataclasses import dataclass\n@dataclass\nclass X:\n {}: int\n"
    wrapped = text + "@passing\ndef fn() -> 'X': ...\n"
    one, two = in_module(wrapped.format("a")), in_module(wrapped.format("b"))
    for _ in range(2):
        for fn in (one, two):
            cls = fn.__wrapped__.__globals__["X"]
            assert callables.spec(fn).returns is CODEC.shape(cls)
    plain = text + "def fn() -> 'X': ...\n"
    one, two = in_module(plain.format("a")), in_module(plain.format("b"))
    for fn in (one, two, one):
        assert callables.spec(fn).returns is CODEC.shape(fn.__globals__["X"])
    moved = FunctionType(one.__code__, two.__globals__)
    moved.__annotations__ = one.__annotations__
    assert callables.spec(moved).returns is CODEC.shape(two.__globals__["X"])
    callables.spec(one)
    posing = FunctionType(one.__code__, one.__globals__)
    posing.__annotations__ = one.__annotations__
    posing.__dict__["__wrapped__"] = two
    assert callables.spec(posing).returns is CODEC.shape(two.__globals__["X"])


def test_a_function_and_its_method_are_not_confused() -> None:
    """A method and the function behind it take different counts."""
    callables = Callables(CODEC)
    for _ in range(2):
        callables.spec(Bank().send).check((1,))
        callables.spec(Bank.send).check((Bank(), 1))
        with pytest.raises(InvalidArgumentError):
            callables.spec(Bank.send).check((1,))


def test_a_known_function_is_not_examined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is met again costs a look-up: lambdas and bound methods as well."""
    callables = Callables(CODEC)

    def call() -> list[CallSpec]:
        wrapped = passing_fetch
        return [callables.spec(fn) for fn in (fetch, lambda: 1, Bank().send, wrapped)]

    passing_fetch = passing(fetch)
    first = call()

    def examined(*_: object) -> NoReturn:
        raise AssertionError("examined again")

    monkeypatch.setattr(callables, "_spec", examined)
    assert all(one is other for one, other in zip(first, call(), strict=True))


def holder(held: object) -> Callable[[], int]:
    def fn() -> int:
        return id(held)

    return fn


def test_nothing_of_a_call_is_kept() -> None:
    """What a lambda, a partial or a method holds is free again after the call."""

    class Big:
        def method(self) -> int: ...

    callables = Callables(CODEC)
    alive = []
    for _ in range(3):
        big = Big()
        alive.append(weakref.ref(big))
        for fn in (
            lambda: big,  # noqa: B023, F821  it is only looked at
            lambda value=big: value,
            functools.partial(fetch, big),  # type: ignore[arg-type]
            big.method,
            passing(lambda: big),  # noqa: B023, F821
            passing(holder(big)),
        ):
            callables.spec(fn).check(())
        del big, fn
    gc.collect()
    assert [ref() for ref in alive] == [None, None, None]


def test_memory_is_bounded() -> None:
    """Code that is made at run time does not gather without end."""
    callables = Callables(CODEC)
    for number in range(3000):
        callables.spec(eval(f"lambda: {number}"))
        callables.spec(passing(fetch))
    assert len(callables._functions) <= 1024
    assert len(callables._single) <= 1024
