"""The processes that are crashed on purpose: each awaits in its own way.

A scenario gets a world to act on and returns its process functions with what
the program around them does. `except Exception` stands wherever user code
might have it: whatever goes wrong in the storage must not arrive there.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

from durabletask import Process, ProcessHost, RetryPolicy, current_step
from durabletask.errors import (
    EventTimeoutError,
    ProcessFailedError,
    ProcessFinishedError,
    StepError,
)
from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.crash import (
    CrashPoint,
    CrashReport,
    InMemory,
    LifeWitness,
    Program,
    Search,
    Survivor,
)
from tests.crash.world import World, steady

Fn = Callable[..., Coroutine[Any, Any, Any]]
Main = Callable[[ProcessHost], Coroutine[Any, Any, object]]
ID = "order/1"


class RefusedError(Exception):
    """A refusal by the outside world, which the host knows by its class."""


@dataclass
class Scenario:
    """Process functions, and the program around them."""

    fns: Sequence[Fn]
    main: Main
    options: dict[str, Any] = field(default_factory=dict)


def alone(fn: Fn, *args: object, events: Sequence[tuple[str, object, float]] = ()) -> Scenario:
    """Return a scenario of one process; `events` are name, payload and seconds after the start."""

    async def main(host: ProcessHost) -> None:
        handle = await steady(lambda: host.spawn(fn, ID, *args))
        for number, (name, payload, after_s) in enumerate(events):
            await asyncio.sleep(after_s)
            with suppress(ProcessFinishedError):
                await steady(
                    lambda: handle.raise_event(name, payload, event_id=f"{number}")  # noqa: B023
                )
        with suppress(ProcessFailedError):
            await handle.result()

    return Scenario([fn], main)


def linear(world: World) -> Scenario:
    """Three steps, each fed with the result before; nothing of it may ever fail."""

    async def order(proc: Process, amount: int) -> int:
        try:
            first = await world.see(proc, "reserve", proc.do("reserve", world.effect, amount))
            second = await world.see(proc, "charge", proc.do("charge", world.effect, first + 1))
            return await world.see(proc, "ship", proc.do("ship", world.effect, second + 1))
        except Exception:
            await proc.do("refund", world.effect, -amount)
            raise

    return alone(order, 10)


def compensated(world: World) -> Scenario:
    """A step fails, `except` takes back what was done, and the process completes."""

    async def order(proc: Process) -> str:
        held = await world.see(proc, "reserve", proc.do("reserve", world.effect, "seat"))
        try:
            await world.see(proc, "charge", proc.do("charge", world.fail, RefusedError("no", 7)))
        except RefusedError as error:
            await world.see(proc, "release", proc.do("release", world.effect, held))
            return f"rolled back: {error.args}"
        return "charged"

    scenario = alone(order)
    scenario.options["errors"] = [RefusedError]
    return scenario


def cleaned_up(world: World) -> Scenario:
    """A step fails, `finally` takes back what was done, and the process fails."""

    async def order(proc: Process) -> None:
        await proc.do("reserve", world.effect, "seat")
        try:
            await world.see(proc, "charge", proc.do("charge", world.fail, ValueError("no")))
        finally:
            await world.see(proc, "release", proc.do("release", world.effect, "seat"))

    return alone(order)


def gathered(world: World) -> Scenario:
    """Five steps side by side."""

    async def order(proc: Process) -> list[int]:
        steps = (proc.do(f"pick {n}", world.effect, n) for n in range(5))
        return list(await asyncio.gather(*steps))

    return alone(order)


def mapped(world: World) -> Scenario:
    """A step for each of many items, and for each result on a thread, two at a time."""

    async def order(proc: Process) -> list[int]:
        await proc.version("code", 1)
        picked = await world.see(proc, "pick", proc.map("pick", world.effect, range(4)))
        packed = proc.map("pack", world.act, picked, concurrency=2)
        return await world.see(proc, "pack", packed)

    return alone(order)


def grouped(world: World) -> Scenario:
    """A task group in which one sibling fails and the slow one is cancelled."""

    async def order(proc: Process) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(proc.do("slow", world.slow, 1))
                group.create_task(proc.do("quick", world.effect, 2))
                await proc.do("pause", world.pause, 1)
                group.create_task(proc.do("bad", world.fail, ValueError("no")))
        except* StepError:
            await proc.do("tidy", world.effect, 3)
        return "tidied"

    return alone(order)


def delayed(world: World) -> Scenario:
    """A delay between two steps."""

    async def order(proc: Process) -> int:
        await proc.do("before", world.effect, 1)
        await proc.delay("cool-down", timedelta(minutes=10))
        return await proc.do("after", world.effect, 2)

    return alone(order)


def event_first(world: World) -> Scenario:
    """Events that are raised before anybody waits for them."""

    async def order(proc: Process) -> list[str]:
        await proc.do("before", world.slow, 1)
        first = await world.see(proc, "first", proc.event("paid", str, key="first"))
        second = await world.see(proc, "second", proc.event("paid", str, key="second"))
        await proc.do("after", world.effect, first + second)
        return [first, second]

    return alone(order, events=[("paid", "a", 0), ("noise", "-", 0), ("paid", "b", 0)])


def event_later(world: World) -> Scenario:
    """An event that is waited for."""

    async def order(proc: Process) -> str:
        paid = await world.see(proc, "paid", proc.event("paid", str))
        return await proc.do("after", world.effect, paid)

    return alone(order, events=[("paid", "a", 3.0)])


def event_never(world: World) -> Scenario:
    """A wait that times out, durably."""

    async def order(proc: Process) -> str:
        try:
            await proc.event("paid", str, timeout=30)
        except EventTimeoutError:
            return await proc.do("remind", world.effect, "reminded")
        return "paid"

    return alone(order)


def stream(world: World) -> Scenario:
    """A loop over all events of a name."""

    async def account(proc: Process) -> int:
        total = 0
        async for amount in proc.events("add", int):
            if not amount:
                break
            total += await proc.do(f"book {total}", world.effect, amount)
        return total

    return alone(account, events=[("add", 1, 0), ("add", 2, 1.0), ("add", 0, 1.0)])


def cursor(world: World) -> Scenario:
    """A loop that goes on from a durable variable."""

    async def copy(proc: Process) -> int:
        done = await proc.var("done", 0)
        while done.value < 3:
            await proc.do(f"copy {done.value}", world.effect, done.value)
            await done.set(done.value + 1)
        return done.value

    return alone(copy)


def token(world: World) -> Scenario:
    """A random value that has to stay the same."""

    async def order(proc: Process) -> str:
        secret: UUID = await world.see(proc, "secret", proc.get("secret", uuid4))
        used = await world.see(proc, "use", proc.do("use", world.effect, str(secret)))
        assert used == str(secret)
        return used

    return alone(order)


def retried(world: World) -> Scenario:
    """A step that fails twice, with durable waits in between."""

    async def flaky() -> int:
        attempt = current_step().attempt
        await world.effect(attempt)
        if attempt < 3:
            raise ConnectionError(f"attempt {attempt}")
        return attempt

    async def order(proc: Process) -> int:
        policy = RetryPolicy(attempts_max=4, delay_s=5, factor=3)
        return await world.see(proc, "call", proc.do("call", flaky, retry=policy))

    return alone(order)


def given_up(world: World) -> Scenario:
    """A step that fails for good after its retries, and is caught."""

    async def order(proc: Process) -> str:
        policy = RetryPolicy(attempts_max=2, delay_s=1)
        try:
            await proc.do("call", world.fail, ConnectionError("down"), retry=policy)
        except StepError as error:
            return await world.see(proc, "note", proc.do("note", world.effect, error.type))
        return "called"

    return alone(order)


def step_timed_out(world: World) -> Scenario:
    """`asyncio.timeout` cancels a step; later runs have to meet the same cancellation."""

    async def order(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.do("slow", world.slow, 1)
        except TimeoutError:
            return await world.see(proc, "instead", proc.do("instead", world.effect, "instead"))
        return "done"

    return alone(order)


def event_timed_out(world: World) -> Scenario:
    """`asyncio.timeout` cancels a wait; the event that comes later is for the next one."""

    async def order(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                return await proc.event("paid", str)
        except TimeoutError:
            await proc.do("remind", world.effect, 1)
        return await world.see(proc, "late", proc.event("paid", str, key="late"))

    return alone(order, events=[("paid", "a", 60.0)])


def in_thread(world: World) -> Scenario:
    """Synchronous steps, on threads, side by side and one after the other."""

    async def order(proc: Process) -> list[int]:
        both = await asyncio.gather(proc.do("a", world.act, 1), proc.do("b", world.act, 2))
        return [*both, await world.see(proc, "c", proc.do("c", world.act, 3))]

    return alone(order)


def two(world: World) -> Scenario:
    """Two processes of which one sends the other an event, in a step."""

    async def sender(proc: Process) -> int:
        await proc.do("before", world.effect, 1)
        return await proc.do("send", send)

    async def send() -> int:
        host = world.host
        assert host is not None
        event_id = current_step().idempotency_key
        await steady(lambda: host.raise_event("receiver", "news", "hello", event_id=event_id))
        return await world.effect(2)

    async def receiver(proc: Process) -> str:
        news = await world.see(proc, "news", proc.event("news", str))
        return await proc.do("use", world.effect, news)

    async def main(host: ProcessHost) -> None:
        to = await steady(lambda: host.spawn(receiver, "receiver"))
        by = await steady(lambda: host.spawn(sender, "sender"))
        await asyncio.gather(to.result(), by.result())

    return Scenario([sender, receiver], main)


def spawned_twice(world: World) -> Scenario:
    """One id spawned twice at once, and again when it has ended."""

    async def order(proc: Process, amount: int) -> int:
        return await world.see(proc, "charge", proc.do("charge", world.effect, amount))

    async def main(host: ProcessHost) -> None:
        async def spawn() -> int:
            handle = await steady(lambda: host.spawn(order, ID, 10))
            return await handle.result()

        assert await asyncio.gather(spawn(), spawn()) == [10, 10]  # type: ignore[comparison-overlap]
        assert await spawn() == 10

    return Scenario([order], main)


def broken(world: World) -> Scenario:
    """A mistake in the program: it is quarantined, and nothing is compensated."""

    async def order(proc: Process) -> None:
        try:
            await proc.do("same", world.effect, 1)
            await proc.do("same", world.effect, 2)
        finally:
            await proc.do("refund", world.effect, 3)

    async def main(host: ProcessHost) -> None:
        handle = await steady(lambda: host.spawn(order, ID))
        await asyncio.wait([asyncio.ensure_future(handle.result())])

    return Scenario([order], main)


SCENARIOS: dict[str, Callable[[World], Scenario]] = {
    make.__name__: make
    for make in (
        linear, compensated, cleaned_up, gathered, mapped, grouped, delayed, event_first,
        event_later, event_never, stream, cursor, token, retried, given_up, step_timed_out,
        event_timed_out, in_thread, two, spawned_twice, broken,
    )
}  # fmt: skip


def search(
    make: Callable[[World], Scenario],
    *,
    survivor: Callable[[VirtualClock], Survivor] = InMemory,
    latency_s: float = 0.0,
    downtime_s: float = 1.0,
    witness: LifeWitness | None = None,
    restarts: int = 0,
) -> Search:
    """Return a search for the points at which a scenario breaks a promise."""
    world = World()
    scenario = make(world)

    def host(storage: ProcessStorage, clock: VirtualClock, random: Random) -> ProcessHost:
        world.life += 1
        world.host = ProcessHost(
            storage, processes=scenario.fns, clock=clock, random=random, **scenario.options
        )
        return world.host

    program = Program(
        host=host,
        main=scenario.main,
        survivor=survivor,
        latency_s=latency_s,
        downtime_s=downtime_s,
        restarts=restarts,
    )
    return Search(program, reset=world.reset, witness=witness or world.witness, judge=world.judge)


def kill_between(trial: Search, first: int, every: int) -> CrashReport:
    """Kill before every so-manieth callback of the loop, beginning with the first of these."""
    for number in range(first, trial.undisturbed().lives[0].steps, every):
        trial.try_points((CrashPoint(number),))
    return trial.report
