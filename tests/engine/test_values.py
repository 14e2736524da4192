"""Values of steps: the first run sees what a resumed run sees, or the step fails once."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durabletask import Process, RetryPolicy
from durabletask.errors import (
    LimitExceededError,
    ProcessFailedError,
    SerializationError,
    StepError,
)
from durabletask.testing import VirtualClock, run_virtual
from tests.engine.world import World, settle, virtual


class Point(NamedTuple):
    x: int
    y: str


@dataclass(frozen=True)
class Money:
    amount: Decimal
    at: datetime


class Packed(msgspec.Struct):
    name: str
    parts: tuple[int, ...]


class Approval(pydantic.BaseModel):
    by: str
    when: date


VALUES: list[Any] = [
    (1, (2, [3])),
    {"a": {1, 2}, "f": frozenset({"x"})},
    b"\x00\xff",
    "nul \x00 and \U0001f600 and e\u0301",
    datetime(2026, 3, 29, 2, 30, tzinfo=UTC),
    date(2026, 1, 1),
    time(1, 2, 3, 4),
    timedelta(days=-1, microseconds=1),
    Decimal("1.10"),
    UUID(int=5),
    -0.0,
    2**53 + 1,
    -(2**63),
    2**64 - 1,
    1e-320,
    {"$type": "int", "__type__": "x", "t": 1, "": None},
    True,
    None,
    "",
    [],
    (),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_first_run_sees_what_a_resumed_run_sees(value: Any) -> None:
    """F112, F122, F123, S4.15 (rule 2): value and type are equal on first and resumed run."""

    @virtual
    async def body(world: World) -> None:
        seen: list[Any] = []

        async def make() -> Any:
            return value

        async def process(proc: Process) -> None:
            seen.append(await proc.do("value", make))
            await proc.event("go")

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await settle()
        world.kill(first)
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            await second.get("p").result()
        assert len(seen) == 2
        for each in seen:
            assert type(each) is type(value)
            assert repr(each) == repr(value)

    body()


@virtual
async def test_an_annotated_step_returns_its_class(world: World) -> None:
    """S4.15 (rule 2): NamedTuple, dataclass, Struct and pydantic model come back as themselves."""
    seen: list[list[Any]] = []

    async def point() -> Point:
        return Point(1, "y")

    async def money() -> Money:
        return Money(Decimal("1.10"), datetime(2026, 1, 1, tzinfo=UTC))

    async def packed() -> list[Packed]:
        return [Packed("a", (1, 2))]

    def approval() -> Approval:
        return Approval(by="carol", when=date(2026, 1, 1))

    async def process(proc: Process) -> None:
        seen.append(
            [
                await proc.do("point", point),
                await proc.do("money", money),
                await proc.do("packed", packed),
                await proc.do("approval", approval),
                await proc.get("id", uuid4),
            ]
        )
        await proc.event("go")

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        await second.get("p").result()
    assert seen[0] == seen[1]
    assert [type(each) for each in seen[0]] == [type(each) for each in seen[1]]
    assert [type(each) for each in seen[0]] == [Point, Money, list, Approval, UUID]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids()
    | st.datetimes(timezones=st.just(UTC))
    | st.dates()
    | st.timedeltas(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3
        )
        | st.frozensets(st.integers().filter(lambda n: -(2**63) <= n < 2**64), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(JSON, min_size=1, max_size=4))
def test_any_value_comes_back_equal_through_a_real_step(values: list[Any]) -> None:
    """F112, F123 (rule 2): whatever the codec takes, first run and resumed run see it equal."""
    seen: list[list[Any]] = []

    async def main(clock: VirtualClock) -> None:
        world = World(clock)

        async def echo(index: int) -> Any:
            return values[index]

        async def process(proc: Process) -> None:
            seen.append([await proc.do(f"k{i}", echo, i) for i in range(len(values))])
            await proc.event("go")

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await asyncio.sleep(1)
        world.kill(first)
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            await second.get("p").result()

    run_virtual(main)
    assert repr(seen[0]) == repr(seen[1])
    assert seen[0] == seen[1] == values


@virtual
async def test_the_caller_holds_a_copy_of_its_own(world: World) -> None:
    """F113: changing a result, or what a step still holds, changes nothing recorded."""
    kept: list[Any] = []
    seen: list[Any] = []

    async def make() -> list[int]:
        kept.append([1, 2])
        result: list[int] = kept[-1]
        return result

    async def process(proc: Process) -> None:
        value = await proc.do("value", make)
        seen.append(list(value))
        value.append(3)
        if kept:
            kept[0].append(4)
        assert value == [1, 2, 3]
        await proc.event("go")

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        await second.get("p").result()
    assert seen == [[1, 2], [1, 2]]


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@dataclass
class Plain:
    n: int


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: {"a": [float("nan")]}, r"a.*0"),
    (lambda: [float("inf")], r"0"),
    (lambda: {"deep": {"x": "\ud800"}}, r"deep.*x"),
    (lambda: [2**70], r"0"),
    (_cycle, r"."),
    (lambda: {"f": lambda: 1}, r"f"),
    (lambda: [Plain(1)], r"0"),
    (object, r"."),
    (lambda: threading.Lock(), r"."),
]


@pytest.mark.parametrize(("make", "path"), BAD)
def test_a_result_that_cannot_be_recorded_fails_the_step_once(make: Any, path: str) -> None:
    """F120, F123 (rule 2): recorded as the step's SerializationError; its effect never repeats."""

    @virtual
    async def body(world: World) -> None:
        ran: list[int] = []
        seen: list[str] = []

        async def effect() -> Any:
            ran.append(1)
            return make()

        async def process(proc: Process) -> None:
            with pytest.raises(SerializationError, match=path) as caught:
                await proc.do("effect", effect, retry=RetryPolicy(attempts_max=5, delay_s=0))
            seen.append(f"{type(caught.value).__name__}: {caught.value}")
            await proc.event("go")

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await settle()
        world.kill(first)
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            await second.get("p").result()
        assert ran == [1]
        assert len(seen) == 2
        assert seen[0] == seen[1]

    body()


@virtual
async def test_a_result_of_5_mb_fails_the_step_once(world: World) -> None:
    """F124, S1.15 (rule 14): a result beyond 2 MiB is recorded as LimitExceededError."""
    ran: list[int] = []

    async def big() -> str:
        ran.append(1)
        return "x" * 5_000_000

    async def process(proc: Process) -> str:
        with pytest.raises(LimitExceededError) as caught:
            await proc.do("big", big)
        await proc.event("go")
        return str(caught.value)

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert "2,097,152" in await second.get(process, "p").result()
    assert ran == [1]


@virtual
async def test_a_result_at_the_limit_is_kept(world: World) -> None:
    """F124: the other side of the limit: 2 MiB less two quotes is a value."""

    async def big() -> str:
        return "x" * (2 * 1024 * 1024 - 2)

    async def process(proc: Process) -> int:
        return len(await proc.do("big", big))

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 2 * 1024 * 1024 - 2


@virtual
async def test_a_result_that_is_not_what_the_step_promised(world: World) -> None:
    """F120 (rule 2): a wrong return annotation is the step's SerializationError, never later."""

    async def lies() -> int:
        return "five"  # type: ignore[return-value]

    async def process(proc: Process) -> str:
        with pytest.raises(SerializationError) as caught:
            await proc.do("lies", lies)
        return str(caught.value)

    async with world.host(process) as host:
        assert "int" in await (await host.spawn(process, "p")).result()
    assert world.keys("p") == [("do", "lies", "error")]


@virtual
async def test_unannotated_dataclass_is_refused_with_a_hint(world: World) -> None:
    """Rule 2: an unannotated dataclass result is refused with a hint; types=[…] takes it."""

    async def plain():  # type: ignore[no-untyped-def]  # the point of the test
        return Plain(1)

    async def process(proc: Process) -> Any:
        try:
            return await proc.do("plain", plain)
        except SerializationError as error:
            return error.hint is not None

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() is True
    async with world.host(process, types=[Plain]) as host:
        assert await (await host.spawn(process, "q")).result() == Plain(1)


@virtual
async def test_a_process_result_that_cannot_be_recorded(world: World) -> None:
    """F120: what the function returns has no form: the process is set aside, not failed."""

    async def process(proc: Process) -> Any:
        return object()

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(Exception, match="quarantined"):
            await handle.result()


@virtual
async def test_a_step_error_that_nobody_catches_ends_the_process(world: World) -> None:
    """S0.05, S3.04: the step's record, then the final one; result() raises both names."""

    async def bad() -> None:
        raise KeyError("nope")

    async def process(proc: Process) -> None:
        await proc.do("bad", bad)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError, match="KeyError") as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, StepError)
        assert caught.value.type == "KeyError"
    assert world.keys("p") == [("do", "bad", "error")]
