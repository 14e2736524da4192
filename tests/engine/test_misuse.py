"""A `Process` in the wrong hands: other threads, loops, processes, and after the end."""

import asyncio
import gc
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient, Status, Var
from durabletask.errors import InvalidArgumentError, WrongContextError
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


def calls_of(proc: Process, variable: Var[int]) -> list[Callable[[], Any]]:
    """Return one durable call of each kind."""
    return [
        lambda: proc.do("x do", nop),
        lambda: proc.do("x sync", lambda: None),
        lambda: proc.get("x get", 1),
        lambda: proc.var("x var", 1),
        lambda: proc.delay("x delay", timedelta(seconds=1)),
        lambda: proc.event("x event"),
        lambda: variable.set(2),
    ]


@virtual
async def test_another_thread_and_loop_is_refused(world: World) -> None:
    """F110: a durable call on another loop: WrongContextError, nothing recorded."""
    errors: list[BaseException] = []

    async def process(proc: Process) -> str:
        variable = await proc.var("variable", 1)

        def elsewhere() -> None:
            async def call() -> None:
                for make in calls_of(proc, variable):
                    try:
                        await make()
                    except Exception as error:
                        errors.append(error)

            asyncio.run(call())

        await asyncio.to_thread(elsewhere)
        return f"variable is {variable.value}"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "variable is 1"
    assert [type(each) for each in errors] == [WrongContextError] * 7
    assert all("'p'" in str(each) for each in errors)
    assert world.keys("p") == [("var", "variable", "value")]


@virtual
async def test_a_late_task_records_nothing(world: World) -> None:
    """F109, S4.19: durable calls after the function has returned: refused, nothing written."""
    late: list[asyncio.Task[list[str]]] = []

    async def process(proc: Process) -> str:
        variable = await proc.var("variable", 1)

        async def straggler() -> list[str]:
            await asyncio.sleep(1)
            seen = []
            for make in calls_of(proc, variable):
                try:
                    await make()
                except WrongContextError as error:
                    seen.append(str(error))
            return seen

        late.append(asyncio.create_task(straggler()))
        return "done"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == "done"
        (seen,) = await asyncio.gather(*late)
        assert len(seen) == 7
        assert all("had ended" in each and "'p'" in each for each in seen)
    assert world.keys("p") == [("var", "variable", "value")]
    assert world.row("p").status is Status.COMPLETED


@virtual
async def test_a_step_in_flight_when_the_function_returns_is_not_recorded(world: World) -> None:
    """F109, S4.19, I14: a fire-and-forget step ends late: no write after the final record."""
    ended: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(5)
        ended.append("slow")

    tasks: list[asyncio.Task[None]] = []

    async def process(proc: Process) -> str:
        tasks.append(asyncio.create_task(proc.do("slow", slow)))
        tasks.append(asyncio.create_task(proc.delay("delay", timedelta(seconds=5))))  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(proc.event("event")))
        await asyncio.sleep(1)
        return "done"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == "done"
        before = world.keys("p")
        await asyncio.sleep(100)
        assert ended == ["slow"]
        assert world.keys("p") == before
        assert all(task.done() for task in tasks)
    assert "slow" not in {key for kind, key, _ in world.keys("p") if kind == "do"}


@virtual
async def test_dropped_tasks_and_calls_do_not_harm_the_engine(world: World) -> None:
    """F109: gc of dropped calls and tasks under pressure leaves the engine's own tasks alone."""

    async def process(proc: Process) -> int:
        for n in range(20):
            call = proc.do(f"dropped {n}", nop)
            call.close()
            gc.collect(0)
            await proc.do(f"kept {n}", nop)
        return 20

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        gc.collect()
        assert await handle.result() == 20


@virtual
async def test_the_process_of_another_is_refused(world: World) -> None:
    """F110: process A uses B's `Process`, also in a step: an error naming the owner."""
    shared: dict[str, Process] = {}
    seen: list[str] = []

    async def owner(proc: Process) -> None:
        shared["proc"] = proc
        await proc.event("go")

    async def thief(proc: Process, in_step: bool) -> str:
        async def steal() -> None:
            await shared["proc"].do("stolen", nop)

        try:
            if in_step:
                await proc.do("step", steal)
            else:
                await steal()
        except Exception as error:
            seen.append(str(error))
        return "done"

    async with world.host(owner, thief) as host:
        await host.spawn(owner, "the owner")
        await settle()
        for n, in_step in enumerate((False, True)):
            await asyncio.gather(
                (await host.spawn(thief, f"thief{n}", in_step)).result(), return_exceptions=True
            )
        await host.raise_event("the owner", "go")
        await host.get("the owner").result()
    assert "stolen" not in {key for _, key, _ in world.keys("the owner")}
    assert len(seen) == 2
    assert all("the owner" in each for each in seen)


@virtual
async def test_a_call_that_is_never_awaited_warns(world: World) -> None:
    """Issue 4.6: a durable call that nobody awaits: a warning with its key, no record."""

    async def process(proc: Process) -> str:
        calls: dict[str, Callable[[], object]] = {
            "a step": lambda: proc.do("a step", nop),
            "a long step": lambda: proc.do("a long step", nop, timeout=1),
            "a value": lambda: proc.get("a value", 1),
            "a wait": lambda: proc.event("news", key="a wait"),
            "a map": lambda: proc.map("a map", asyncio.sleep, [0.0]),
        }
        for name, call in calls.items():
            with pytest.warns(RuntimeWarning, match=f"coroutine '{name}' was never awaited"):
                call()
        return "done"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "done"
    assert world.keys("p") == []


@virtual
async def test_code_that_swallows_its_interrupt_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 4.6, F108: a function that lets no cancellation pass is named, and records nothing."""
    swallowed: list[str] = []

    async def stubborn(proc: Process) -> None:
        while len(swallowed) < 22:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                swallowed.append("cancelled")
            try:
                await proc.do("compensation", nop)
            except asyncio.CancelledError as error:
                swallowed.append(type(error).__name__)

    async with world.host(stubborn) as host:
        await host.spawn(stubborn, "p")
        await asyncio.sleep(1)
        await host.stop()
    (told,) = [record for record in caplog.records if "swallows" in record.getMessage()]
    assert "'p' ('stubborn') swallows its cancellation and does not end" in told.getMessage()
    assert "ProcessInterrupted" in swallowed
    assert world.keys("p") == []


@virtual
async def test_get_is_asked_rightly(world: World) -> None:
    """Bad input: host.get with an id and an id, with no id, with a function of no process."""

    async def process(proc: Process) -> None: ...

    async with ProcessClient(world.storage) as client:
        get: Any = client.get
        with pytest.raises(InvalidArgumentError):
            get("p", "q")
        for arguments in ((process,), (5, "p"), (lambda: 1, "p"), ()):
            with pytest.raises((TypeError, ValueError)):
                get(*arguments)


@virtual
async def test_a_blocked_loop_only_delays(world: World) -> None:
    """F081: user code that blocks the loop's thread for a while loses nothing."""

    async def process(proc: Process) -> int:
        threading.Event().wait(0.01)
        await proc.do("step", nop)
        return 1

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 1
