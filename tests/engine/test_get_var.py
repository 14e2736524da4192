"""`get`: first value wins. `var`: the last value set."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from durabletask import Process, Status
from durabletask.errors import (
    InvalidArgumentError,
    LimitExceededError,
    SerializationError,
    StepError,
)
from tests.engine.world import World, virtual


@dataclass
class Cursor:
    page: int
    seen: list[str]


@virtual
async def test_the_first_value_wins(world: World) -> None:
    """S4.07: `get` keeps the first value, whatever later runs offer."""
    offered = iter(["first", "second"])

    async def process(proc: Process) -> list[Any]:
        value = next(offered)
        kept = await proc.get("value", value)
        made = await proc.get("made", lambda: value)
        await proc.event("go")
        return [kept, made]

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == ["first", "first"]


@virtual
async def test_a_factory_is_called_once(world: World) -> None:
    """S4.07: sync and async factories: at most once per recorded value; None is a value."""
    calls: list[str] = []

    def sync() -> None:
        calls.append("sync")

    async def slow() -> str:
        await asyncio.sleep(1)
        calls.append("async")
        return "value"

    async def process(proc: Process) -> str:
        assert await proc.get("sync", sync) is None  # type: ignore[func-returns-value]
        value = await proc.get("async", slow)
        await proc.event("go")
        return value

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "value"
    assert calls == ["sync", "async"]


@virtual
async def test_uuid4_is_a_uuid_after_a_restart(world: World) -> None:
    """S4.07 (rule 2): `get("secret", uuid4)` gives a UUID on the first run and after a restart."""
    seen: list[UUID] = []

    async def process(proc: Process) -> None:
        seen.append(await proc.get("secret", uuid4))
        await proc.event("go")

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen[0] == seen[1]
    assert [type(each) for each in seen] == [UUID, UUID]


@virtual
async def test_a_crash_between_two_gets_keeps_the_input_and_the_first(world: World) -> None:
    """S4.18: input comes from the creation; a crash between two gets resumes with both intact."""
    seen: list[list[Any]] = []

    async def process(proc: Process, name: str, amount: int) -> None:
        story: list[Any] = [name, amount]
        seen.append(story)
        story.append(await proc.get("one", uuid4))
        await proc.event("go")
        story.append(await proc.get("two", uuid4))

    await world.begin_and_die(process, "alice", 5)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen[1][:3] == seen[0] == ["alice", 5, seen[0][2]]


@virtual
async def test_a_failing_factory_is_a_failed_step(world: World) -> None:
    """Rule 3: an error of the factory is recorded and comes back equal."""
    calls: list[int] = []

    def bad() -> int:
        calls.append(1)
        raise ValueError("bad")

    async def process(proc: Process) -> str:
        with pytest.raises(StepError, match="bad") as caught:
            await proc.get("bad", bad)
        await proc.event("go")
        return str(caught.value)

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "ValueError: bad"
    assert calls == [1]


@virtual
async def test_a_typed_get_returns_its_class(world: World) -> None:
    """Rule 2: `type=` says how a value is stored and what comes back."""

    async def process(proc: Process) -> int:
        cursor = await proc.get("cursor", Cursor(1, ["a"]), type=Cursor)
        assert type(cursor) is Cursor
        return cursor.page

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 1


@pytest.mark.parametrize("bad", [float("nan"), object(), 2**70, "\ud800"])
def test_a_value_without_a_form_is_a_serialization_error(bad: Any) -> None:
    """F120: `get` and `var` of a value without a form: SerializationError, process stays whole."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> str:
            with pytest.raises(SerializationError):
                await proc.get("value", bad)
            with pytest.raises(SerializationError):
                await proc.var("default", bad)
            variable = await proc.var("var", 1)
            with pytest.raises(SerializationError):
                await variable.set(bad)
            assert variable.value == 1
            return "fine"

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == "fine"

    body()


@virtual
async def test_a_factory_that_needs_arguments_is_refused(world: World) -> None:
    """F117: a factory takes no arguments: refused at the call, nothing recorded."""

    async def process(proc: Process) -> None:
        with pytest.raises(InvalidArgumentError):
            proc.get("value", lambda x: x)

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert world.keys("p") == []


@virtual
async def test_a_variable_keeps_its_last_value(world: World) -> None:
    """S4.07: `var` starts from the default, a resumed run from the last value set."""
    starts: list[int] = []

    async def process(proc: Process) -> int:
        n = await proc.var("n", 0)
        starts.append(n.value)
        while n.value < 5:
            await n.set(n.value + 1)
        await proc.event("go")
        return n.value

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == 5
    assert starts == [0, 5]
    assert world.keys("p").count(("var", "n", "value")) == 1


@virtual
async def test_a_set_that_was_not_recorded_did_not_happen(world: World) -> None:
    """Rule 1: returned means durable: a value whose record was lost is not seen again."""
    starts: list[int] = []

    async def process(proc: Process) -> int:
        n = await proc.var("n", 0)
        starts.append(n.value)
        await n.set(1)
        await proc.event("more")
        await n.set(2)
        return n.value

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    world.wires[first].down("commit")
    await first.raise_event("p", "more")
    await asyncio.sleep(1)
    world.kill(first)
    async with world.host(process) as second:
        assert await second.get(process, "p").result() == 2
    assert starts == [0, 1]


@virtual
async def test_a_variable_gives_copies(world: World) -> None:
    """F113: changing `.value` in place changes nothing stored."""

    async def process(proc: Process) -> list[int]:
        items = await proc.var("items", [1])
        items.value.append(2)
        assert items.value == [1]
        mine = [7]
        await items.set(mine)
        mine.append(8)
        return items.value

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == [7]


@virtual
async def test_a_long_loop_with_a_cursor_does_not_grow(world: World) -> None:
    """S4.07: 2,000 rounds with a typed cursor leave one record."""

    async def process(proc: Process) -> int:
        cursor = await proc.var("cursor", Cursor(0, []), type=Cursor)
        while cursor.value.page < 2_000:
            await cursor.set(Cursor(cursor.value.page + 1, []))
        return cursor.value.page

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 2_000
    assert world.keys("p") == [("var", "cursor", "value")]
    assert world.row("p").status is Status.COMPLETED


@virtual
async def test_a_value_beyond_the_limit_is_refused(world: World) -> None:
    """F124: 5 MB into a variable: LimitExceededError, the old value stays."""

    async def process(proc: Process) -> str:
        variable = await proc.var("v", "small")
        with pytest.raises(LimitExceededError):
            await variable.set("x" * 5_000_000)
        return variable.value

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "small"


@virtual
async def test_concurrent_sets_leave_one_of_the_values(world: World) -> None:
    """Sets side by side are recorded in program order; the last one is what a resume sees."""

    async def process(proc: Process) -> int:
        n = await proc.var("n", 0)
        await asyncio.gather(*(n.set(value) for value in range(1, 11)))
        await proc.event("go")
        return n.value

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == 10
