"""Every verb of a `Process` in the wrong hands: each is refused, and no process is changed."""

import asyncio
import gc
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from durabletask import EventStream, Process, RetryPolicy, Status, Var, current_step
from durabletask._run import Run
from durabletask.errors import (
    NestedCallError,
    ProcessInterrupted,
    ProcessQuarantinedError,
    WrongContextError,
)
from durabletask.storage import Kind
from durabletask.testing import VirtualClock, run_virtual
from tests.engine.database import host_of
from tests.engine.world import World, settle, virtual


async def nop(*_: object) -> None:
    """Do nothing; a step, an undo, a transaction, an item."""


async def kid(proc: Process) -> None:
    """Wait for ever; a child."""
    await proc.event("never")


@dataclass
class Hands:
    """What a process function holds, and what others may get hold of."""

    proc: Process
    variable: Var[int]
    child: Any
    news: EventStream[Any]


PREPARED = [("var", "variable", "value"), ("child", "child", "value")]
NEWS = [("wait", "news", "value"), ("event", "news", "value")]
"""What is recorded of a process that has waited for the first of its `news`, and got it."""


async def prepared(proc: Process) -> Hands:
    """Fill the hands of a process, which records `PREPARED`."""
    variable = await proc.var("variable", 1)
    child = await proc.spawn("child", kid)
    return Hands(proc, variable, child, proc.events("news"))


async def bounded(proc: Process) -> None:
    """Enter a timeout."""
    async with proc.timeout("x", 5):
        pass


async def restarted(proc: Process) -> None:
    """Begin anew."""
    proc.restart()


Verb = Callable[[Hands], Awaitable[object]]
HOUR = timedelta(hours=1)
VERBS: dict[str, Verb] = {
    "do": lambda it: it.proc.do("x", nop),
    "do, sync": lambda it: it.proc.do("x", lambda: None),
    "do, again": lambda it: it.proc.do("x", nop, retry=RetryPolicy(), timeout=1),
    "do, undone": lambda it: it.proc.do("x", nop, undo=nop),
    "do, once": lambda it: it.proc.do("x", nop, at_most_once=True),
    "get": lambda it: it.proc.get("x", 1),
    "get, made": lambda it: it.proc.get("x", lambda: 1),
    "transaction": lambda it: it.proc.transaction("x", nop),
    "var": lambda it: it.proc.var("x", 1),
    "Var.set": lambda it: it.variable.set(2),
    "delay": lambda it: it.proc.delay("x", HOUR),
    "event": lambda it: it.proc.event("x"),
    "event, timed": lambda it: it.proc.event("x", timeout=0),
    "events": lambda it: anext(it.news),
    "race": lambda it: it.proc.race("x", it.proc.delay("a", HOUR), it.proc.event("b")),
    "timeout": lambda it: bounded(it.proc),
    "map": lambda it: it.proc.map("x", nop, [1, 2]),
    "map, of nothing": lambda it: it.proc.map("x", nop, []),
    "spawn": lambda it: it.proc.spawn("x", kid),
    "call": lambda it: it.proc.call("x", kid),
    "Child.result": lambda it: it.child.result(),
    "raise_event": lambda it: it.proc.raise_event("x", "other", "news"),
    "restart": lambda it: restarted(it.proc),
    "report": lambda it: it.proc.report("x"),
    "version": lambda it: it.proc.version("x", 1),
}
KEYS = {"Var.set": "variable", "events": "news", "Child.result": "child", "report": "progress"}
"""Of the verbs whose key is not x."""
READ_ANYWHERE = {"id", "resuming", "log", "idempotency_key"}


def test_the_table_has_every_verb() -> None:
    """Issue 4.6: what a `Process` can be asked for is in this table, or only reads."""
    public = {name for name in dir(Process) if not name.startswith("_")}
    said = {name.partition(",")[0] for name in VERBS}
    assert public - READ_ANYWHERE == {name for name in said if "." not in name}


async def tried(hands: Hands) -> dict[str, BaseException]:
    """Say every verb and return what came of those that did not go through."""
    came: dict[str, BaseException] = {}
    for name, verb in VERBS.items():
        try:
            async with asyncio.timeout(1):
                await verb(hands)
        except (Exception, asyncio.CancelledError) as error:
            came[name] = error
    return came


def assert_refused(came: dict[str, BaseException], *words: str) -> None:
    """Every verb was refused as a use in the wrong place, in these words."""
    for name in VERBS:
        assert isinstance(came.get(name), WrongContextError), (name, came.get(name))
        said = str(came[name])
        key = KEYS.get(name, "restart" if name == "restart" else "x")
        assert all(word in said for word in (repr(key), *words)), said


# --- another thread, after the end ----------------------------------------------------------


@pytest.mark.parametrize("place", ["beside", "in a step", "while the loop is held up"])
@virtual
async def test_on_another_thread(world: World, place: str) -> None:
    """Issue 4.6, F110: any verb on another thread, also a step's: refused, the process goes on."""
    came: list[dict[str, BaseException]] = []

    async def process(proc: Process) -> int:
        hands = await prepared(proc)

        def elsewhere() -> None:
            came.append(asyncio.run(tried(hands)))

        if place == "in a step":
            await proc.do("step", elsewhere)
        elif place == "beside":
            await asyncio.to_thread(elsewhere)
        else:
            # The task that the loop is in is this very one, and so are the context variables.
            thread = threading.Thread(target=copy_context().run, args=(elsewhere,))
            thread.start()
            thread.join()
        await proc.raise_event("to itself", proc.id, "news", "first")
        assert await anext(hands.news) == "first"
        return hands.variable.value

    async with host_of(world, process, kid) as host:
        assert await (await host.spawn(process, "p")).result() == 1
    assert_refused(came[0], "'p'", "another loop or thread")
    recorded = {"variable", "child", "to itself", "news"} | ({"step"} if "step" in place else set())
    assert {key for _, key, _ in world.keys("p")} == recorded


def test_on_another_loop() -> None:
    """Issue 4.6, F110: any verb on the loop that comes after that of the process: refused."""
    held: list[Hands] = []

    async def process(proc: Process) -> None:
        held.append(await prepared(proc))
        await proc.event("never")

    async def first(clock: VirtualClock) -> None:
        async with host_of(World(clock), process, kid) as host:
            await host.spawn(process, "p")
            await asyncio.sleep(1)

    async def second(clock: VirtualClock) -> None:
        assert_refused(await tried(held[0]), "'p'", "another loop or thread")

    run_virtual(first)
    run_virtual(second)


@pytest.mark.parametrize("raises", [False, True])
@virtual
async def test_after_the_end(world: World, raises: bool) -> None:
    """Issue 4.6, F109, S4.19: any verb of a late task: refused, nothing is written any more."""
    late: list[asyncio.Task[dict[str, BaseException]]] = []

    async def process(proc: Process) -> None:
        hands = await prepared(proc)

        async def straggler() -> dict[str, BaseException]:
            await asyncio.sleep(1)
            return await tried(hands)

        late.append(asyncio.create_task(straggler()))
        if raises:
            raise ValueError("over")

    async with host_of(world, process, kid) as host:
        handle = await host.spawn(process, "p")
        await asyncio.gather(handle.result(), return_exceptions=True)
        assert_refused(await late[0], "'p'", "had ended")
    assert world.keys("p") == PREPARED
    assert world.row("p").status is (Status.FAILED if raises else Status.COMPLETED)


# --- somebody else's ------------------------------------------------------------------------

Steal = Callable[[], Coroutine[Any, Any, object]]


async def in_a_group(steal: Steal) -> None:
    """Steal in a task of a TaskGroup."""
    async with asyncio.TaskGroup() as group:
        group.create_task(steal())


async def in_a_callback(steal: Steal) -> None:
    """Steal in a task that a callback of the loop makes."""
    made: asyncio.Future[asyncio.Task[object]] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: made.set_result(asyncio.create_task(steal())))
    await (await made)


async def in_a_task_of_a_task(steal: Steal) -> None:
    """Steal in a task that a task makes."""
    await asyncio.create_task(in_a_group(steal))


PLACES: dict[str, Callable[[Process, Steal], Awaitable[object]]] = {
    "function": lambda proc, steal: steal(),
    "task": lambda proc, steal: asyncio.create_task(steal()),
    "gather": lambda proc, steal: asyncio.gather(steal(), steal()),
    "group": lambda proc, steal: in_a_group(steal),
    "callback": lambda proc, steal: in_a_callback(steal),
    "deep": lambda proc, steal: in_a_task_of_a_task(steal),
    "step": lambda proc, steal: proc.do("step", steal),
    "task of a step": lambda proc, steal: proc.do("step", in_a_task_of_a_task, steal),
    "undone step": lambda proc, steal: proc.do("step", steal, undo=nop),
    "map": lambda proc, steal: proc.map("step", lambda _: steal(), [1, 2]),
}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("place", PLACES)
@virtual
async def test_in_another_process(world: World, place: str, resumed: bool) -> None:
    """Issue 4.6, F110: any verb in another process, in its tasks too: refused, both go on."""
    shared: dict[str, Hands] = {}
    came: list[dict[str, BaseException]] = []

    async def owner(proc: Process) -> object:
        shared["hands"] = hands = await prepared(proc)
        return [await anext(hands.news), await anext(hands.news)]

    async def thief(proc: Process) -> str:
        async def steal() -> None:
            came.append(await tried(shared["hands"]))

        await proc.event("now")
        await PLACES[place](proc, steal)
        await asyncio.gather(proc.do("own", nop))
        return "done"

    host = host_of(world, owner, thief, kid)
    await host.start()
    await host.spawn(owner, "the owner")
    await host.spawn(thief, "the thief")
    await asyncio.sleep(1)
    if resumed:
        world.kill(host)
        host = host_of(world, owner, thief, kid)
        await host.start()
        await asyncio.sleep(1)
    await host.raise_event("the thief", "now")
    assert await host.get("the thief").result() == "done"
    for number in range(2):
        await host.raise_event("the owner", "news", number)
    assert await host.get("the owner").result() == [0, 1]
    await host.stop()
    assert came
    for each in came:
        assert_refused(each, "'the owner'", "'the thief'")
    assert world.keys("the owner") == [*PREPARED, *NEWS, NEWS[-1]]
    # The second of its news is still the second: who asked in vain has not taken its place.
    assert world.storage._processes["the owner"].find(Kind.EVENT, "news", 1) is not None
    assert {key for _, key, _ in world.keys("the thief")} <= {"now", "step", "own"}


@virtual
async def test_in_a_task_of_nobody(world: World) -> None:
    """Issue 4.6: any verb in a task that no process has created: refused, the process goes on."""
    shared: dict[str, Hands] = {}

    async def process(proc: Process) -> object:
        shared["hands"] = hands = await prepared(proc)
        return await anext(hands.news)

    async with host_of(world, process, kid) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        assert_refused(await tried(shared["hands"]), "'p'", "no process has created")
        await handle.raise_event("news", "first")
        assert await handle.result() == "first"
    assert world.keys("p") == [*PREPARED, *NEWS]


Ask = Callable[[Any], Awaitable[object]]
ASKED: dict[str, tuple[Ask, Status]] = {
    "cancel": (lambda handle: handle.cancel("enough"), Status.CANCELLED),
    "suspend": (lambda handle: handle.suspend(), Status.SUSPENDED),
    "raise": (lambda handle: asyncio.sleep(0), Status.FAILED),
}


@pytest.mark.parametrize("asked", ASKED)
@virtual
async def test_whatever_its_owner_has_before_it(world: World, asked: str) -> None:
    """F110: what an owner is to meet, a cancellation or the end, nobody else meets for it."""
    shared: dict[str, Hands] = {}
    ask, status = ASKED[asked]

    async def owner(proc: Process) -> None:
        await proc.do("undone", nop, undo=nop)
        shared["hands"] = await prepared(proc)
        if asked == "raise":
            await proc.do("slow", asyncio.sleep, 50, undo=slow)
            raise ValueError("over")
        await proc.do("slow", asyncio.sleep, 100)
        await proc.delay("met here", HOUR)

    async def slow(_: object) -> None:
        await asyncio.sleep(50)

    async def thief(proc: Process) -> None:
        async def steal() -> None:
            assert_refused(await tried(shared["hands"]), "'the owner'", "'the thief'")

        await asyncio.create_task(steal())

    async with host_of(world, owner, thief, kid) as host:
        handle = await host.spawn(owner, "the owner")
        await asyncio.sleep(1)
        asking = asyncio.ensure_future(ask(handle))
        await asyncio.sleep(60)
        before = world.keys("the owner")
        await (await host.spawn(thief, "the thief")).result()
        assert world.keys("the owner") == before
        await asyncio.sleep(100)
        await asking
    assert world.row("the owner").status is status
    assert "x" not in {key for _, key, _ in world.keys("the owner")}


# --- inside a step --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@virtual
async def test_inside_a_step(world: World, verb: str) -> None:
    """Issue 4.6: any verb inside a step's body sets the process aside, says to call outside."""

    async def process(proc: Process) -> None:
        hands = await prepared(proc)

        async def body() -> None:
            await VERBS[verb](hands)

        await proc.do("step", body)

    async with host_of(world, process, kid) as host:
        with pytest.raises(ProcessQuarantinedError, match="return from the step first") as caught:
            await (await host.spawn(process, "p")).result()
        assert isinstance(caught.value.__cause__, NestedCallError)
    assert world.keys("p") == PREPARED


@pytest.mark.parametrize("verb", VERBS)
@virtual
async def test_inside_an_undo(world: World, verb: str) -> None:
    """Issue 4.6: any verb inside an undo sets the process aside, and says so."""

    async def process(proc: Process) -> None:
        hands = await prepared(proc)

        async def undo(_: object) -> None:
            await VERBS[verb](hands)

        await proc.do("step", nop, undo=undo)
        raise ValueError("over")

    async with host_of(world, process, kid) as host:
        with pytest.raises(ProcessQuarantinedError, match="inside the body of a step") as caught:
            await (await host.spawn(process, "p")).result()
        assert isinstance(caught.value.__cause__, NestedCallError)
    assert world.keys("p")[2:4] == [("do", "step", "value"), ("decision", "compensation", "value")]


# --- swallowed, dropped -----------------------------------------------------------------------


@virtual
async def test_after_a_swallowed_interrupt(world: World) -> None:
    """Issue 4.6, F108: any verb after a swallowed interrupt raises it again and records nothing."""
    came: list[dict[str, BaseException]] = []

    async def process(proc: Process) -> None:
        hands = await prepared(proc)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            came.append(await tried(hands))

    async with host_of(world, process, kid) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(1)
    for name in VERBS:
        assert isinstance(came[0][name], ProcessInterrupted), (name, came[0][name])
    assert world.keys("p") == PREPARED


BEGUN_OTHERWISE = {"restart": "it is no call to await", "events": "with next", "timeout": "entered"}
"""Verbs that begin when something else is done than awaiting what they return."""


@virtual
async def test_never_awaited(world: World) -> None:
    """Issue 4.6: any durable call that nobody awaits: a warning with its key, and no record."""

    async def process(proc: Process) -> None:
        hands = await prepared(proc)
        for name, verb in VERBS.items():
            if name not in BEGUN_OTHERWISE:
                key = re.escape(KEYS.get(name, "x"))
                with pytest.warns(RuntimeWarning, match=f"coroutine '{key}' was never awaited"):
                    verb(hands)

    async with host_of(world, process, kid) as host:
        await (await host.spawn(process, "p")).result()
    assert world.keys("p") == PREPARED


# --- in the right hands -----------------------------------------------------------------------

Step = Callable[[str], Coroutine[Any, Any, str]]


async def in_a_thread_and_back(step: Step) -> None:
    """Say a verb from a thread, by way of the loop."""
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(step("thread"), loop).result())


async def shielded_and_bounded(step: Step) -> None:
    """Say verbs in the tasks that asyncio makes by itself."""
    await asyncio.shield(step("shield"))
    await asyncio.wait_for(step("wait_for"), 10)
    await asyncio.wait([asyncio.ensure_future(step("wait"))])


@virtual
async def test_tasks_of_its_own(world: World) -> None:
    """Issue 4.6: however a process makes a task, it may make durable calls, and recall them."""

    async def process(proc: Process) -> str:
        async def step(key: str) -> str:
            await proc.do(key, nop)
            return key

        async def body() -> list[str]:
            return await asyncio.gather(*(asyncio.create_task(inner()) for _ in range(2)))

        async def inner() -> str:
            await current_step().heartbeat("far")
            return current_step().key

        for number, place in enumerate((in_a_group, in_a_callback, in_a_task_of_a_task)):
            await place(partial(step, f"place {number}"))
        await shielded_and_bounded(step)
        await in_a_thread_and_back(step)
        assert await proc.do("step", body) == ["step", "step"]
        await proc.event("go on")
        await asyncio.gather(step("late"))
        return "done"

    await world.begin_and_die(process)
    places = [f"place {number}" for number in range(3)]
    before = [*places, "shield", "wait_for", "wait", "thread", "step", "step", "go on"]
    assert [key for _, key, _ in world.keys("p")] == before
    async with world.host(process) as host:
        await host.raise_event("p", "go on")
        assert await host.get("p").result() == "done"
    assert [key for _, key, _ in world.keys("p")] == [*before, "go on", "late"]


@virtual
async def test_processes_that_a_process_starts_through_its_host(world: World) -> None:
    """Issue 4.6: what a process, or its step, starts by host or handle is a process of its own."""

    async def other(proc: Process, number: int) -> int:
        await asyncio.gather(proc.do("step", nop))
        return number

    async def process(proc: Process) -> list[int]:
        async def ask(number: int) -> int:
            return await (await host.spawn(other, f"other/{number}", number)).result()

        asked = [await ask(0), await asyncio.create_task(ask(1)), await proc.do("step", ask, 2)]
        return [*asked, await proc.call("child", other, 3)]

    async with world.host(process, other) as host:
        assert await (await host.spawn(process, "p")).result() == [0, 1, 2, 3]
    for number in range(3):
        assert world.keys(f"other/{number}") == [("do", "step", "value")]


@virtual
async def test_what_has_ended_is_gone(world: World) -> None:
    """A run whose process has ended is gone at once, without the garbage collector."""

    async def process(proc: Process, fails: bool) -> None:
        await asyncio.gather(proc.do("step", nop))
        if fails:
            raise ValueError("over")

    async with world.host(process) as host:
        gc.collect()
        # Other tests have killed hosts, whose runs are never collected.
        dead = {id(each) for each in gc.get_objects() if type(each) is Run}
        gc.disable()
        try:
            for number in range(4):
                handle = await host.spawn(process, f"p/{number}", number == 3)
                await asyncio.gather(handle.result(), return_exceptions=True)
            await settle()
            left = {id(each) for each in gc.get_objects() if type(each) is Run} - dead
        finally:
            gc.enable()
    assert not left
