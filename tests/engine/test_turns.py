"""Recalled errors come in the order in which they were recorded, though recalling takes no time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from durabletask import Process, RetryPolicy
from durabletask._turns import CALM_TURNS
from durabletask.errors import ProcessFailedError
from tests.engine.world import World, virtual

Call = Callable[[Process], Awaitable[object]]


async def fails(seconds: float, what: str) -> None:
    await asyncio.sleep(seconds)
    raise ValueError(what)


async def works(what: str) -> str:
    return what


async def child(proc: Process, seconds: float) -> None:
    await proc.do("fail", fails, seconds, "child")


async def bounded(proc: Process) -> None:
    async with proc.timeout("limit", 1):
        await proc.event("never")


async def item(number: int) -> int:
    await fails(1.0, "item")
    return number


FAILING: dict[str, Call] = {
    "step": lambda proc: proc.do("one", fails, 1.0, "one"),
    "retried": lambda proc: proc.do(
        "one", fails, 0.2, "one", retry=RetryPolicy(attempts_max=2, delay_s=0.6)
    ),
    "event": lambda proc: proc.event("none", timeout=1),
    "timeout": bounded,
    "child": lambda proc: proc.call("one", child, 1.0),
    "map": lambda proc: proc.map("one", item, range(3)),
}


async def deep(proc: Process, levels: int) -> object:
    """Do something that takes the loop some turns, done or recalled."""
    if not levels:
        return await proc.do("deep", works, "done")
    (found,) = await asyncio.gather(deep(proc, levels - 1))
    return found


async def run_twice(world: World, process: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
    """Run a process until it waits for "go", and anew, to its end, on another host."""
    first = world.host(process, child)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(10)
    world.kill(first)
    async with world.host(process, child) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()


@pytest.mark.parametrize("name", FAILING)
def test_of_two_failures_the_earlier_one_is_raised_again(name: str) -> None:
    """S1.06 (rule 2): `gather` raises the same of two errors, whichever is asked for first."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> None:
            later = proc.do("later", fails, 3.0, "later")
            try:
                await asyncio.gather(later, FAILING[name](proc))
            except Exception as error:
                seen.append(repr(error))
            await proc.event("go")

        await run_twice(world, process)
        assert "later" not in seen[0]
        assert seen[1] == seen[0]

    body()


@pytest.mark.parametrize("name", [*FAILING, "main"])
@pytest.mark.parametrize("levels", [0, 1, CALM_TURNS // 4])
def test_what_was_done_by_then_is_not_cancelled(name: str, levels: int) -> None:
    """S1.06 (rule 2): the sibling of a `TaskGroup` that had ended before the error ends again."""

    @virtual
    async def body(world: World) -> None:
        seen: list[object] = []

        async def process(proc: Process) -> None:
            with suppress(BaseExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    if name == "main":
                        task = group.create_task(deep(proc, levels))
                        await FAILING["step"](proc)
                    else:
                        group.create_task(_awaited(FAILING[name](proc)))
                        task = group.create_task(deep(proc, levels))
            seen.append(task.cancelled() or task.result())
            await proc.event("go")

        await run_twice(world, process)
        assert seen == ["done", "done"]

    body()


async def _awaited(call: Awaitable[object]) -> None:
    await call


def test_a_new_failure_does_not_outrun_what_is_recalled() -> None:
    """S1.06 (rule 2): what fails at once in a later run does not cancel what had ended."""

    @virtual
    async def body(world: World) -> None:
        seen: list[object] = []
        fail = asyncio.Event()

        async def failing() -> None:
            await fail.wait()
            raise ValueError

        async def process(proc: Process) -> None:
            with suppress(BaseExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(_awaited(proc.do("failing", failing)))
                    task = group.create_task(deep(proc, CALM_TURNS // 4))
            seen.append(task.cancelled() or task.result())

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await asyncio.sleep(1)
        world.kill(first)
        fail.set()
        async with world.host(process) as host:
            await host.get("p").result()
        assert seen == ["done"]

    body()


def test_an_error_does_not_wait_for_what_is_asked_no_more() -> None:
    """Rule 4: of a key that the code has dropped, or asks for behind a sleep, nobody waits long."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> None:
            if not seen:
                await asyncio.gather(*(proc.do(f"old {n}", works, "x") for n in range(300)))
            for n in range(3):
                try:
                    await asyncio.gather(proc.do(f"bad {n}", fails, 1.0, "bad"))
                except Exception as error:
                    seen.append(str(error))
            await proc.event("go")

        await world.begin_and_die(process, after_s=10)
        began_s = world.clock.monotonic_s()
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            await host.get("p").result()
        assert seen == ["ValueError: bad"] * 6
        assert world.clock.monotonic_s() - began_s < 1

    body()


@virtual
async def test_a_failed_process_fails_alike(world: World) -> None:
    """S1.06 (rules 2, 9): an error that ends the process is the same where that was not recorded.

    The host dies between the second failure and the end.
    """

    async def process(proc: Process) -> None:
        try:
            await asyncio.gather(
                proc.do("b", fails, 2.0, "b"), proc.do("a", fails, 1.0, "a"), proc.event("never")
            )
        finally:
            await asyncio.sleep(5)

    await world.begin_and_die(process, after_s=4)
    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError, match="ValueError: a"):
            await host.get("p").result()


def test_a_cancellation_meanwhile_is_overtaken() -> None:
    """F107 (rule 6): an error that was there first is raised, whoever cancels its wait now."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def one(proc: Process) -> None:
            try:
                await proc.do("bad", fails, 1.0, "bad")
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

        async def process(proc: Process) -> Any:
            task = asyncio.create_task(one(proc))
            await asyncio.wait([task], timeout=None if not seen else 0)
            task.cancel()
            found = await asyncio.gather(task, return_exceptions=True)
            seen.append(type(found[0]).__name__)
            await proc.event("go")

        await world.begin_and_die(process, after_s=4)
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            await host.get("p").result()
        assert seen == ["StepError"] * 4

    body()


@virtual
async def test_what_was_recalled_is_not_kept_while_it_waits(world: World) -> None:
    """DESIGN 7: an early error that was handled does not keep all later results in memory."""

    async def process(proc: Process) -> None:
        with suppress(ValueError):
            await proc.do("fails", fails, 0.0, "early")
        for number in range(20):
            await proc.do(f"works/{number}", works, "result")
        await proc.event("never")

    await world.begin_and_die(process, errors=[ValueError])
    async with world.host(process, errors=[ValueError]) as host:
        await asyncio.sleep(1)
        assert host._session is not None
        turns = host._session.runs["p"]._turns
        assert turns is not None
        assert not turns._earlier
