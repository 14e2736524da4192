"""What surrounds a process function: its task, its context, its callables, the host itself."""

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta

import pytest

from durabletask import Process, ProcessClient, current_step
from tests.engine.world import World, settle, virtual

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


async def nop() -> None:
    """Do nothing; a step."""


@virtual
async def test_a_process_that_renames_its_task(world: World) -> None:
    """F110: the task's name is user code's to change: the process ends, its waiters learn it."""

    async def process(proc: Process) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("mine")
        await proc.do("step", nop)
        await proc.event("go")
        return "done"

    async with world.host(process) as host:
        handles = [await host.spawn(process, f"p{n}") for n in range(2)]
        for handle in handles:
            await handle.raise_event("go")
        for handle in handles:
            assert await handle.result(timeout=60) == "done"
        assert host._session is not None
        assert host._session.runs == {}


@virtual
async def test_two_processes_whose_tasks_are_named_after_each_other(world: World) -> None:
    """F110: a task named like another process's id is still its own process's."""

    async def process(proc: Process, name: str) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(name)
        await proc.do("step", nop)
        return await proc.event("go", str)

    async with world.host(process) as host:
        first = await host.spawn(process, "a", "b")
        second = await host.spawn(process, "b", "a")
        await settle()
        await first.raise_event("go", "to a")
        assert await first.result(timeout=60) == "to a"
        await second.raise_event("go", "to b")
        assert await second.result(timeout=60) == "to b"


@virtual
async def test_context_variables_stay_in_their_process(world: World) -> None:
    """A context variable set in a process or a step is seen by no other process."""
    seen: list[str] = []

    async def paint(colour: str) -> None:
        COLOUR.set(colour)

    async def process(proc: Process, colour: str) -> None:
        seen.append(COLOUR.get())
        COLOUR.set(colour)
        await proc.do("paint", paint, colour)
        await asyncio.sleep(1)
        assert COLOUR.get() == colour

    async with world.host(process) as host:
        handles = [await host.spawn(process, f"p{n}", f"colour {n}") for n in range(3)]
        await asyncio.gather(*(each.result() for each in handles))
        await (await host.spawn(process, "last", "x")).result()
    assert seen == ["none"] * 4
    assert COLOUR.get() == "none"


@virtual
async def test_the_step_is_known_in_tasks_that_it_starts_and_not_outside(world: World) -> None:
    """S0.07: tasks and threads of a step's body know it; the function and its tasks do not."""
    seen: list[str] = []

    async def inner() -> None:
        seen.append(current_step().key)

    async def outer() -> None:
        await asyncio.gather(inner(), inner())
        seen.append(await asyncio.to_thread(lambda: current_step().key))

    async def process(proc: Process) -> None:
        await asyncio.gather(proc.do("a", outer), proc.do("b", outer))
        with pytest.raises(RuntimeError):
            current_step()
        task = asyncio.create_task(inner())
        with pytest.raises(RuntimeError):
            await task

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert sorted(seen) == ["a"] * 3 + ["b"] * 3


@virtual
async def test_a_factory_may_give_an_awaitable(world: World) -> None:
    """S4.07: a lambda around an async function is a factory as it is a step."""

    async def slow(n: int) -> int:
        await asyncio.sleep(1)
        return n

    async def process(proc: Process) -> list[int]:
        return [
            await proc.get("get", lambda: slow(1)),
            await proc.do("do", lambda: slow(2)),
            await proc.get("partial", functools.partial(slow, 3)),
        ]

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == [1, 2, 3]


class Service:
    """Holds what its processes need; its methods are process functions."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def run(self, proc: Process, n: int) -> str:
        return await proc.do("step", self.step, n)

    async def step(self, n: int) -> str:
        return f"{self.name} {n}"

    async def __call__(self, proc: Process) -> str:
        return await proc.do("step", self.step, 0)


@virtual
async def test_methods_partials_and_objects_are_process_functions(world: World) -> None:
    """S4.14: what can be called as a process function can be registered and spawned."""
    service = Service("shop")

    async def fixed(proc: Process, n: int, *, prefix: str) -> str:
        return f"{prefix} {n}"

    partial = functools.partial(fixed, prefix="fixed")
    host = world.host(service.run)
    host.process(name="object")(service)
    host.process(name="partial")(partial)
    async with host:
        assert await (await host.spawn(service.run, "1", 5)).result() == "shop 5"
        assert await (await host.spawn(service, "2")).result() == "shop 0"
        assert await (await host.spawn(partial, "3", 7)).result() == "fixed 7"
    assert world.row("1").name == "run"


@virtual
async def test_a_host_stopped_from_inside_a_process(world: World) -> None:
    """S1.14: a process, or its step, that stops the host hangs neither; both go on elsewhere."""
    calls: list[str] = []

    async def halt(name: str) -> None:
        calls.append(name)
        if len(calls) <= 2:
            await host.stop(drain_s=3)

    async def in_step(proc: Process) -> str:
        await proc.do("halt", halt, "step")
        return "done"

    async def in_function(proc: Process) -> str:
        await asyncio.sleep(0)
        await halt("function")
        return "done"

    host = world.host(in_step, in_function)
    await host.start()
    await host.spawn(in_step, "step")
    await host.spawn(in_function, "function")
    async with asyncio.timeout(60):
        await settle()
        await host.stop()
    async with world.host(in_step, in_function) as again:
        assert await again.get("step").result() == "done"
        assert await again.get("function").result() == "done"


@virtual
async def test_an_event_between_a_creation_and_its_answer(world: World) -> None:
    """F095: a process exists, its host has not heard yet, another program raises: it arrives."""

    async def process(proc: Process) -> list[str]:
        return [await proc.event("e", str, key=f"k{n}") for n in range(3)]

    async with world.host(process) as host, ProcessClient(world.storage) as client:
        gate = asyncio.Event()

        async def late(call: str) -> None:
            if call == "create":
                await gate.wait()

        world.wires[host].after = late
        spawning = asyncio.create_task(host.spawn(process, "p"))
        await settle()
        await client.raise_event("p", "e", "first")
        await asyncio.sleep(2)
        await client.raise_event("p", "e", "second")
        gate.set()
        handle = await spawning
        await client.raise_event("p", "e", "third")
        assert await handle.result(timeout=600) == ["first", "second", "third"]


@virtual
async def test_a_caller_that_gives_up_a_spawn(world: World) -> None:
    """F006: spawn() cancelled on its way: the process exists wholly and runs, or not at all."""

    async def process(proc: Process, n: int) -> int:
        return n

    async with world.host(process) as host:

        async def slow(call: str) -> None:
            if call == "create":
                await asyncio.sleep(5)

        world.wires[host].before = slow
        for n in range(4):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(n + 0.5):
                    await host.spawn(process, f"p{n}", n)
        world.wires[host].up()
        await asyncio.sleep(60)
        for n in range(4):
            assert await (await host.spawn(process, f"p{n}", n)).result(timeout=60) == n


@virtual
async def test_a_step_may_use_the_host(world: World) -> None:
    """A step may spawn, raise and await other processes: it is plain code with side effects."""

    async def child(proc: Process, n: int) -> int:
        return n * await proc.event("factor", int)

    async def delegate(n: int) -> int:
        handle = await host.spawn(child, f"child/{n}", n)
        await handle.raise_event("factor", 10, event_id="factor")
        return await handle.result()

    async def parent(proc: Process) -> list[int]:
        results = await asyncio.gather(*(proc.do(f"c{n}", delegate, n) for n in range(5)))
        await proc.delay("pause", timedelta(seconds=1))
        return list(results)

    host = world.host(parent, child)
    async with host:
        assert await (await host.spawn(parent, "p")).result() == [0, 10, 20, 30, 40]


@virtual
async def test_an_async_resource_around_durable_calls(world: World) -> None:
    """Rule 5: `async with` of a client library unwinds on an interrupt, its own awaits included."""
    log: list[str] = []

    @asynccontextmanager
    async def session() -> AsyncIterator[None]:
        log.append("open")
        try:
            yield
        finally:
            await asyncio.sleep(0.01)
            log.append("closed")

    async def process(proc: Process) -> str:
        async with session():
            return await proc.event("go", str)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await settle()
    await host.stop()
    async with world.host(process) as again:
        await again.raise_event("p", "go", "x")
        assert await again.get(process, "p").result() == "x"
    assert log == ["open", "closed", "open", "closed"]
