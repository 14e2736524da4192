"""One process function that runs any program of the grammar, and what it was seen to do.

Keys come from the place in the tree, so each is there once. The trace outlives
the lives of a play: it is the world outside. Refuses to judge.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from durabletask import DelayResult, DurableWait, Process, RaceResult, RetryPolicy, current_step
from durabletask._notes import RESULT
from durabletask.errors import DurableTaskError, StepError
from tests.language import grammar
from tests.language.grammar import PAUSE_S, UNHEARD_S, Body, Never, Node, Program

Place = tuple[str, str, int]
"""(process_id, key, index); the key of an undo has UNDO before it."""

UNDO = "~"

WHOLE = -2
"""In place of an index: of all items of a map together."""

FOREVER = timedelta(days=40 * 365)
YEAR = timedelta(days=365)
SILENCE = timedelta(days=1)
"""How long a child that is spoken to waits for it: what goes on behind a cancel that others have
met may be cancelled between the child and the word to it, and then the child is not."""


class BrokenError(Exception):
    """What a drawn step or function fails with."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The body of a step, or of an undo, began."""

    at: Place
    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Seen:
    """User code was given the outcome of a durable call."""

    at: Place
    outcome: object


@dataclass
class World:
    """What a program acts on, through all lives of its process.

    Attributes:
        trace: All that happened, in order.
        mended: Whether steps that fail have been put right.
    """

    programs: list[Program]
    trace: list[Ran | Seen | object] = field(default_factory=list)
    mended: bool = False

    @classmethod
    def of(cls, program: Program) -> "World":
        """Return the world of a program and its children."""
        return cls(list(dict.fromkeys(grammar.programs(program))))

    def act(self, prefix: str = "") -> int:
        """Have the effect of the step in whose body the caller is; return its attempt."""
        step = current_step()
        place = step.process_id, prefix + step.key, step.index
        self.trace.append(Ran(place, step.attempt, step.run.epoch))
        return step.attempt


def name_of(error: BaseException) -> str:
    """Return what is told of an error: class and text, where that has no time in it."""
    if isinstance(error, StepError):
        return str(error)
    return type(error).__name__


class Interpreter:
    """The process function of a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def language(
        self, proc: Process, number: int, generation: int, listens: bool
    ) -> list[Any]:
        """Run one generation of a program, given by its number in the world."""
        program = self.world.programs[number]
        key = f"g{generation}"
        heard = []
        if listens and not generation:
            heard.append(await self.see(proc, "heard", proc.event("heard", timeout=SILENCE)))
        heard += await self.body(proc, key, program.bodies[generation])
        if generation + 1 < len(program.bodies):
            proc.restart(number, generation + 1, listens, drop_undos=True)
        return heard

    async def body(self, proc: Process, key: str, body: Body) -> list[Any]:
        """Run the nodes of a body, one after the other."""
        return [
            await _WAYS[type(node)](self, proc, at, node) for at, node in grammar.under(key, body)
        ]

    async def see(self, proc: Process, key: str, call: Awaitable[Any], index: int = -1) -> Any:
        """Await a durable call and note what user code was given."""
        try:
            outcome = await call
        except Exception as error:
            self.world.trace.append(Seen((proc.id, key, index), name_of(error)))
            raise
        if isinstance(outcome, DelayResult):
            outcome = "over"
        self.world.trace.append(Seen((proc.id, key, index), outcome))
        return outcome

    # --- steps --------------------------------------------------------------------------------

    async def do(self, proc: Process, key: str, node: grammar.Do) -> Any:
        """A step."""
        world = self.world

        def begin() -> None:
            attempt = world.act()
            if attempt <= node.fails and not world.mended:
                raise BrokenError(f"{key} at attempt {attempt}")

        async def step() -> str:
            if node.beats:
                await current_step().heartbeat(key)
            begin()
            if node.takes_s:
                await asyncio.sleep(node.takes_s)
            return key

        def thread() -> str:
            begin()
            return key

        async def undo(of: str) -> None:
            world.act(UNDO)
            if node.undo == "breaks" and not world.mended:
                raise BrokenError(f"undo of {of}")

        policy = RetryPolicy(attempts_max=node.tries, delay_s=PAUSE_S, factor=1.0)
        fn: Callable[[], Any] = thread if node.thread else step
        call = proc.do(
            key,
            fn,
            retry=policy if node.tries > 1 else None,
            undo=undo if node.undo else None,
        )
        return await self.see(proc, key, call)

    async def get(self, proc: Process, key: str, node: grammar.Get) -> Any:
        """A value."""
        return await self.see(proc, key, proc.get(key, lambda: key))

    async def map(self, proc: Process, key: str, node: grammar.Map) -> Any:
        """A step for each item."""

        async def item(number: int) -> int:
            self.world.act()
            if node.takes_s:
                await asyncio.sleep(node.takes_s)
            if number == node.fails_at and not self.world.mended:
                raise BrokenError(f"{key}[{number}]")
            return number

        call = proc.map(key, item, range(node.count), concurrency=node.concurrency)
        return await self.see(proc, key, call, WHOLE)

    async def report(self, proc: Process, key: str, node: grammar.Report) -> Any:
        """A report."""
        await proc.report(key)

    async def version(self, proc: Process, key: str, node: grammar.Version) -> Any:
        """A version."""
        return await self.see(proc, key, proc.version(key, 7))

    async def fail(self, proc: Process, key: str, node: grammar.Fail) -> Any:
        """An error of the function's own."""
        raise BrokenError(key)

    # --- waits --------------------------------------------------------------------------------

    async def delay(self, proc: Process, key: str, node: grammar.Delay) -> Any:
        """A delay."""
        return await self.see(proc, key, proc.delay(key, timedelta(seconds=node.seconds)))

    async def nap(self, proc: Process, key: str, node: grammar.Nap) -> Any:
        """A sleep of asyncio's."""
        await asyncio.sleep(node.seconds)

    async def event(self, proc: Process, key: str, node: grammar.Event) -> Any:
        """A wait for an event."""
        limit = UNHEARD_S if node.when == "never" else None
        return await self.see(proc, key, proc.event(key, timeout=limit))

    async def stream(self, proc: Process, key: str, node: grammar.Stream) -> Any:
        """A loop over events."""
        heard: list[Any] = []
        async for each in proc.events(key):
            self.world.trace.append(Seen((proc.id, key, len(heard)), each))
            heard.append(each)
            if len(heard) == node.count:
                break
        return heard

    async def send_self(self, proc: Process, key: str, node: grammar.SendSelf) -> Any:
        """An event for itself."""
        await self.see(proc, key, proc.raise_event(key, proc.id, key, [key]))
        return await self.see(proc, f"{key}!", proc.event(key, key=f"{key}!"))

    async def race(self, proc: Process, key: str, node: grammar.Race) -> Any:
        """A race."""
        sure = await self._sure(proc, key, node.sure)
        branches: list[DurableWait[Any]] = []
        for number, other in enumerate(node.others):
            at = f"{key}/{number}"
            if other == "year":
                branches.append(proc.delay(at, YEAR))
            elif other == "race":
                branches.append(proc.race(at, proc.event(at), proc.delay("year", YEAR)))
            else:
                branches.append(proc.event(at))
        outer = proc.race(f"{key}/in", sure, proc.event(f"{key}/none")) if node.nested else sure
        branches.insert(node.place, outer)

        async def outcome() -> list[Any]:
            first = await proc.race(key, *branches)
            if not first.won(outer):
                return [first.winner, str(first.of(branches[first.index]))]
            value = first.of(outer)
            value = value.of(sure) if isinstance(value, RaceResult) else value
            # That of a delay has the time in it.
            return [first.winner, type(value).__name__ if sure.kind == "delay" else value]

        return await self.see(proc, key, outcome())

    async def _sure(
        self, proc: Process, key: str, sure: grammar.Event | grammar.Delay | grammar.Child
    ) -> DurableWait[Any]:
        if isinstance(sure, grammar.Event):
            return proc.event(key)
        if isinstance(sure, grammar.Delay):
            return proc.delay(f"{key}/sure", timedelta(seconds=sure.seconds))
        number = self.world.programs.index(sure.program)
        child = await proc.spawn(f"{key}/child", self.language, number, 0, False)
        return child.result()

    async def never(self, proc: Process, key: str, never: Never) -> Any:
        """Wait for what never comes."""
        if never == "delay":
            await proc.delay(f"{key}/never", FOREVER)
        elif never == "race":
            await proc.race(f"{key}/never", proc.event(f"{key}/a"), proc.delay("b", FOREVER))
        elif never == "gather":
            await asyncio.gather(proc.event(f"{key}/a"), proc.delay(f"{key}/b", FOREVER))
        else:
            await proc.event(f"{key}/never")

    # --- shapes -------------------------------------------------------------------------------

    async def gather(self, proc: Process, key: str, node: grammar.Gather) -> Any:
        """Bodies side by side."""
        parts = (self.body(proc, at, body) for at, body in grammar.inner(key, node))
        found = await asyncio.gather(*parts, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found

    async def group(self, proc: Process, key: str, node: grammar.Group) -> Any:
        """A task group that ends by a failing sibling."""

        async def sibling(at: str, body: Body) -> list[Any]:
            try:
                return await self.body(proc, at, body)
            except Exception as error:
                return [name_of(error)]

        async def failing() -> None:
            await proc.delay(f"{key}/patience", timedelta(seconds=grammar.limit_s(node)))
            await proc.do(f"{key}/bad", self._broken, f"{key}/bad")

        tasks: list[asyncio.Task[Any]] = []
        story = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.never(proc, key, node.never))
                group.create_task(failing())
                tasks += [
                    group.create_task(sibling(at, body)) for at, body in grammar.inner(key, node)
                ]
        except* Exception as errors:
            story = sorted(map(name_of, errors.exceptions))
        done = [each.result() if not each.cancelled() else "cancelled" for each in tasks]
        return [*done, *story]

    async def _broken(self, text: str) -> None:
        self.world.act()
        raise BrokenError(text)

    async def timeout(self, proc: Process, key: str, node: grammar.Timeout) -> Any:
        """A body in a timeout."""
        limit_s = grammar.limit_s(node)
        limit: AbstractAsyncContextManager[Any] = (
            proc.timeout(f"{key}/limit", limit_s) if node.durable else asyncio.timeout(limit_s)
        )
        found: list[Any] = []
        try:
            async with limit:
                found += await self.body(proc, key, node.body)
                if node.never:
                    await self.never(proc, key, node.never)
        except TimeoutError as error:
            if isinstance(error, DurableTaskError):
                raise
            found.append("over")
            if node.durable:
                self.world.trace.append(Seen((proc.id, f"{key}/limit", -1), "over"))
        return found

    async def first_done(self, proc: Process, key: str, node: grammar.FirstDone) -> Any:
        """The first of two tasks; the other one is cancelled.

        Also where this is cancelled itself: a recorded cancellation waits for the task to be
        cancelled again, and in a later run the group around it may fail sooner.
        """
        tasks: list[asyncio.Task[Any]] = [
            asyncio.ensure_future(proc.delay(key, timedelta(seconds=node.seconds))),
            asyncio.ensure_future(self.never(proc, key, node.never)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks[1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for each in found:
            if isinstance(each, Exception):
                raise each
        return [type(each).__name__ for each in found]

    async def handled(self, proc: Process, key: str, node: grammar.Try) -> Any:
        """A body whose errors are handled."""
        (tried, body), (handler, instead) = grammar.inner(key, node)
        try:
            return await self.body(proc, tried, body)
        except Exception as error:
            return [name_of(error), *await self.body(proc, handler, instead)]

    async def loop(self, proc: Process, key: str, node: grammar.Loop) -> Any:
        """A body several times."""
        return [await self.body(proc, at, body) for at, body in grammar.inner(key, node)]

    async def cursor(self, proc: Process, key: str, node: grammar.Cursor) -> Any:
        """A body several times, from where an earlier run was."""
        turns = list(grammar.inner(key, node))
        cursor = await proc.var(key, 0)
        while cursor.value < len(turns):
            await self.body(proc, *turns[cursor.value])
            await cursor.set(cursor.value + 1)
        return cursor.value

    # --- children -----------------------------------------------------------------------------

    async def child(self, proc: Process, key: str, node: grammar.Child) -> Any:
        """A child process."""
        number = self.world.programs.index(node.program)
        if node.how == "call":
            return await self.see(proc, key, proc.call(key, self.language, number, 0, False))
        talks = node.how == "talk"
        child = await proc.spawn(key, self.language, number, 0, talks)
        if talks:
            call = proc.raise_event(f"{key}/send", child.id, "heard", key)
            await self.see(proc, f"{key}/send", call)
        if node.how == "leave":
            return child.id
        return await self.see(proc, key, child.result(), RESULT)


Way = Callable[[Interpreter, Process, str, Any], Awaitable[Any]]

_WAYS: dict[type[Node], Way] = {
    grammar.Do: Interpreter.do,
    grammar.Get: Interpreter.get,
    grammar.Delay: Interpreter.delay,
    grammar.Nap: Interpreter.nap,
    grammar.Event: Interpreter.event,
    grammar.Stream: Interpreter.stream,
    grammar.SendSelf: Interpreter.send_self,
    grammar.Race: Interpreter.race,
    grammar.Child: Interpreter.child,
    grammar.Gather: Interpreter.gather,
    grammar.Group: Interpreter.group,
    grammar.Timeout: Interpreter.timeout,
    grammar.FirstDone: Interpreter.first_done,
    grammar.Map: Interpreter.map,
    grammar.Try: Interpreter.handled,
    grammar.Loop: Interpreter.loop,
    grammar.Cursor: Interpreter.cursor,
    grammar.Report: Interpreter.report,
    grammar.Version: Interpreter.version,
    grammar.Fail: Interpreter.fail,
}
