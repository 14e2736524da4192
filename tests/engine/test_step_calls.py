"""What may be a step, how it is called and for how long: refused before anything runs."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process
from durabletask.errors import (
    InvalidArgumentError,
    InvalidIdError,
    StepTimeoutError,
)
from tests.engine.world import World, virtual


async def _async(n: int) -> int:
    return n


def _sync(n: int) -> int:
    return n


class _Service:
    async def call(self, n: int) -> int:
        return n

    def block(self, n: int) -> int:
        return n

    async def __call__(self, n: int) -> int:
        return n


def _wrapped(fn: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
    @functools.wraps(fn)
    def wrapper(n: int) -> Awaitable[int]:
        return fn(n)

    return wrapper


@pytest.mark.parametrize(
    "fn",
    [
        _async,
        _sync,
        _Service().call,
        _Service().block,
        _Service(),
        functools.partial(_async),
        functools.partial(_sync, n=5),
        lambda n=5: n,
        lambda n=5: _async(n),
        _wrapped(_async),
        abs,
        int,
    ],
)
def test_everything_callable_can_be_a_step(fn: Any) -> None:
    """Async and sync functions, methods, partials, callable objects, lambdas, builtins, classes."""
    fixed = isinstance(fn, functools.partial) and bool(fn.keywords)

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> Any:
            return await proc.do("step", fn, *(() if fixed else (5,)))

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == 5

    body()


def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: _async(1), "call already made"),
        (lambda: _generator, "generator function"),
        (lambda: _async_generator, "generator function"),
        (lambda: functools.partial(_generator), "generator function"),
        (_generator, "cannot be called"),
        (lambda: 5, "cannot be called"),
        (lambda: None, "cannot be called"),
        (lambda: asyncio.get_running_loop().create_future(), "call already made"),
    ],
)
def test_what_cannot_be_a_step_is_refused_and_nothing_is_recorded(make: Any, hint: str) -> None:
    """F117: a coroutine object, a generator or a value given as a step: clear error, no record."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> str:
            with pytest.raises(InvalidArgumentError, match=hint):
                await proc.do("step", make())
            return await proc.do("step", asyncio.sleep, 0, "the key is still free")

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == "the key is still free"
        assert world.keys("p") == [("do", "step", "value")]

    body()


@virtual
async def test_wrong_arguments_are_refused_before_the_step_runs(world: World) -> None:
    """F117: too many or too few arguments for a step: an error at the call, nothing recorded."""

    async def process(proc: Process) -> str:
        wrong: Any = proc.do
        with pytest.raises(InvalidArgumentError, match="2 arguments"):
            await wrong("step", _async, 1, 2)
        with pytest.raises(InvalidArgumentError, match="0 arguments"):
            await wrong("step", _sync)
        return "fine"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "fine"
    assert world.keys("p") == []


@pytest.mark.parametrize(
    "key", ["", "a\x00b", "x" * 256, "a\nb", "\ud800", 7, None, b"x", "é" * 128]
)
def test_a_bad_key_is_refused_and_nothing_is_recorded(key: Any) -> None:
    """F121 (rule 14): keys obey the one rule for names; the message names the key."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> str:
            for call in (
                lambda: proc.do(key, _async, 1),
                lambda: proc.get(key, 1),
                lambda: proc.var(key, 1),
                lambda: proc.delay(key, timedelta(1)),
                lambda: proc.event("name", key=key if key is not None else ""),
                lambda: proc.event(key),
                lambda: proc.events(key),
                lambda: proc.idempotency_key(key),
            ):
                with pytest.raises(InvalidIdError):
                    call()
            return "fine"

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == "fine"
        assert world.keys("p") == []

    body()


@virtual
async def test_a_durable_call_is_a_coroutine_that_knows_its_kind_and_key(world: World) -> None:
    """gather, create_task, TaskGroup and wait_for all take a durable call; it has kind and key."""

    async def process(proc: Process) -> list[int]:
        call = proc.do("a", _async, 1)
        assert (call.kind.value, call.key) == ("do", "a")
        assert asyncio.iscoroutine(call)
        assert "'a'" in repr(call)
        results = [await call, *await asyncio.gather(proc.do("b", _async, 2))]
        results.append(await asyncio.create_task(proc.do("c", _async, 3)))
        results.append(await asyncio.wait_for(proc.do("d", _async, 4), timeout=10))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(proc.do("e", _async, 5))
        results.append(task.result())
        for kind, other in (
            ("get", proc.get("x", 1)),
            ("var", proc.var("x", 1)),
            ("delay", proc.delay("x", timedelta(1))),
            ("event", proc.event("x")),
        ):
            assert (other.kind.value, other.key) == (kind, "x")
            other.close()
        return results

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == [1, 2, 3, 4, 5]


@virtual
async def test_a_call_begins_only_when_it_is_awaited(world: World) -> None:
    """A durable call that is made and closed has run nothing and recorded nothing."""
    ran: list[int] = []

    async def effect() -> None:
        ran.append(1)

    async def process(proc: Process) -> None:
        call = proc.do("effect", effect)
        await asyncio.sleep(1)
        call.close()

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert ran == []
    assert world.keys("p") == []


@virtual
async def test_a_call_awaited_twice_is_an_error(world: World) -> None:
    """F117: the second await of one call object is Python's own error, never a second run."""
    ran: list[int] = []

    async def effect() -> None:
        ran.append(1)

    async def process(proc: Process) -> str:
        call = proc.do("effect", effect)
        await call
        with pytest.raises(RuntimeError, match="already awaited"):
            await call
        return "fine"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "fine"
    assert ran == [1]


# --- timeouts -------------------------------------------------------------------------------


@virtual
async def test_a_step_that_takes_too_long_fails_and_the_failure_is_kept(world: World) -> None:
    """S3.07: `timeout=` cancels the attempt; StepTimeoutError, a TimeoutError, on every run."""
    ran: list[str] = []

    async def slow() -> None:
        ran.append("begin")
        try:
            await asyncio.sleep(100)
        finally:
            ran.append("end")

    async def process(proc: Process) -> str:
        with pytest.raises(StepTimeoutError) as caught:
            await proc.do("slow", slow, timeout=timedelta(seconds=5))
        await proc.event("go")
        return str(caught.value)

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(6)
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert "no result after 5.0 s" in await second.get(process, "p").result()
    assert ran == ["begin", "end"]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1", timedelta(0)])
def test_a_senseless_timeout_is_refused(timeout: Any) -> None:
    """Bad input gets a clear error and changes nothing: do(timeout=)."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> None:
            with pytest.raises(InvalidArgumentError, match="timeout"):
                proc.do("k", _async, 1, timeout=timeout)

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()

    body()
