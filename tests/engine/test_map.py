"""`proc.map`: a step for each item, in order, bounded, and the same again after every crash."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from durabletask import Limits, Process, RetryPolicy, current_step
from durabletask.errors import (
    InvalidArgumentError,
    LimitExceededError,
    ProcessFailedError,
    ProcessInterrupted,
    StepError,
    StepTimeoutError,
)
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, quarantined, settle, virtual


async def double(n: int) -> int:
    return 2 * n


def half(n: int) -> float:
    return n / 2


def forms(world: World, process_id: str = "p") -> dict[int, str]:
    """Return by index how each item is recorded."""
    snapshot = world.storage._processes[process_id].snapshot(history=True)
    return {held.index: held.form.value for held in snapshot.checkpoints if held.kind == "do"}


# --- results ----------------------------------------------------------------------------------


@virtual
async def test_results_come_in_the_order_of_the_items(world: World) -> None:
    """S2.01 S1.05 (map): one checkpoint an item, results in order, whichever ends first."""

    async def slow(n: int) -> int:
        await asyncio.sleep(10 - n)
        return 2 * n

    async def process(proc: Process) -> list[int]:
        return await proc.map("double", slow, range(10))

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == [2 * n for n in range(10)]
    assert forms(world) == dict.fromkeys(range(10), "value")


@virtual
async def test_sync_functions_partials_and_generators(world: World) -> None:
    """`map` takes sync functions, `functools.partial` and any iterable; none at all is []."""

    async def times(factor: int, n: int) -> int:
        return factor * n

    async def process(proc: Process) -> list[Any]:
        return [
            await proc.map("half", half, (n for n in (2, 4))),
            await proc.map("times", partial(times, 10), {1: "a", 2: "b"}),
            await proc.map("none", half, []),
        ]

    async with world.host(process) as host:
        result = await (await host.spawn(process, "p")).result()
    assert result == [[1.0, 2.0], [10, 20], []]


@virtual
async def test_ten_thousand_items(world: World) -> None:
    """S2.01 (map): 10,000 items, at most 1,000 of them in flight, and none twice on a resume."""
    running = most = 0
    ran: Counter[int] = Counter()

    async def item(n: int) -> int:
        nonlocal running, most
        ran[n] += 1
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return n

    async def process(proc: Process) -> int:
        total = sum(await proc.map("items", item, range(10_000)))
        await proc.event("go")
        return total

    options = {"limits": Limits(steps_warn=50_000)}
    await world.begin_and_die(process, after_s=60, **options)
    async with world.host(process, **options) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == sum(range(10_000))
    assert most == 1_000
    assert ran == dict.fromkeys(range(10_000), 1)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_in_flight_than_asked_for(concurrency: int) -> None:
    """`concurrency=` bounds the items in flight, and they begin in their order."""

    @virtual
    async def body(world: World) -> None:
        running = most = 0
        begun: list[int] = []

        async def item(n: int) -> None:
            nonlocal running, most
            begun.append(n)
            running += 1
            most = max(most, running)
            await asyncio.sleep(1)
            running -= 1

        async def process(proc: Process) -> None:
            await proc.map("items", item, range(7), concurrency=concurrency)

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()
        assert most == concurrency
        assert begun == sorted(begun)

    body()


@virtual
async def test_an_item_is_a_step(world: World) -> None:
    """In an item `current_step()` tells key, index and an idempotency key of its own."""
    keys: list[str] = []

    async def item(n: int) -> None:
        step = current_step()
        assert (step.key, step.index, step.attempt) == ("items", n, 1)
        keys.append(step.idempotency_key)

    async def process(proc: Process) -> None:
        await proc.map("items", item, range(3))

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert len(set(keys)) == 3


@virtual
async def test_retry_and_timeout_are_of_each_item(world: World) -> None:
    """Each item has its own attempts, their waits and its timeout."""
    attempts: Counter[int] = Counter()

    async def item(n: int) -> int:
        attempts[n] += 1
        if current_step().attempt <= n:
            await asyncio.sleep(100 if n == 1 else 0)
            raise ConnectionError("again")
        return n

    async def process(proc: Process) -> list[int]:
        policy = RetryPolicy(attempts_max=5, delay_s=60, give_up_on=(ValueError,))
        return await proc.map("items", item, range(4), retry=policy, timeout=10)

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == [0, 1, 2, 3]
    assert attempts == {0: 1, 1: 2, 2: 3, 3: 4}

    async def hopeless(proc: Process) -> None:
        with pytest.raises(StepTimeoutError):
            await proc.map("items", asyncio.sleep, [100], timeout=10)

    async with world.host(hopeless) as host:
        await (await host.spawn(hopeless, "q")).result()


# --- misuse -----------------------------------------------------------------------------------


@virtual
async def test_what_cannot_be_mapped_is_refused(world: World) -> None:
    """F117: bad arguments of `map` are an error at the call, and nothing is recorded."""

    async def two(a: int, b: int) -> int:
        return a + b

    async def stream() -> Any:
        yield 1

    async def process(proc: Process) -> str:
        wrong: Any = proc.map
        for arguments, options in (
            ((double, 5), {}),
            ((double, stream()), {}),
            ((two, [1]), {}),
            ((5, [1]), {}),
            ((double, [1]), {"concurrency": 0}),
            ((double, [1]), {"concurrency": True}),
            ((double, [1]), {"timeout": 0}),
        ):
            with pytest.raises(InvalidArgumentError):
                wrong("key", *arguments, **options)
        return "fine"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "fine"
    assert world.keys("p") == []


@virtual
async def test_a_key_mapped_twice_quarantines(world: World) -> None:
    """Rule 4: two maps under one key in one run are a mistake of the program."""

    async def process(proc: Process) -> None:
        await proc.map("items", double, [1])
        await proc.map("items", double, [1])

    async with world.host(process) as host:
        await host.spawn(process, "p")
        await settle()
    await quarantined(world, process, "used twice")


@virtual
async def test_too_many_items_are_refused_before_the_first(world: World) -> None:
    """Rule 14: items count as steps; what exceeds the limit, endless too, begins nothing."""
    ran: list[int] = []

    def endless() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    async def process(proc: Process) -> None:
        await proc.map("items", ran.append, endless())

    async with world.host(process, limits=Limits(steps_max=100)) as host:
        handle = await host.spawn(process, "p")
        with suppress(Exception):
            await handle.result()
        assert isinstance((await handle.info()).error, LimitExceededError)
    assert ran == []


@virtual
async def test_a_durable_call_in_an_item_quarantines(world: World) -> None:
    """Rule 4: steps do not nest, in an item either."""

    async def process(proc: Process) -> None:
        async def item(n: int) -> None:
            await proc.do(f"inside {n}", double, n)

        await proc.map("items", item, range(3))

    async with world.host(process) as host:
        await host.spawn(process, "p")
        await settle()
    await quarantined(world, process, "inside the body of a step")


# --- failures ---------------------------------------------------------------------------------


@virtual
async def test_the_first_failure_stops_and_the_lowest_is_raised(world: World) -> None:
    """After a failure nothing begins, what is in flight ends, the lowest index is raised; twice."""
    begun: list[int] = []
    seen: list[str] = []

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(10 - n)
        if n in (2, 3):
            raise ValueError(f"item {n}")
        return n

    async def process(proc: Process) -> None:
        try:
            await proc.map("items", item, range(20), concurrency=4)
        except StepError as error:
            seen.append(str(error))
        await proc.event("go")

    await world.begin_and_die(process, after_s=60)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert begun == [0, 1, 2, 3]
    assert seen == ["ValueError: item 2"] * 2
    assert forms(world) == {0: "value", 1: "value", 2: "error", 3: "error"}


@virtual
async def test_what_was_in_flight_at_a_crash_ends_before_the_failure(world: World) -> None:
    """An item in flight when the host died runs again, although a later one has failed."""
    begun: list[int] = []

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(100 if n == 0 else n)
        if n == 2:
            raise ValueError("item 2")
        return n

    async def process(proc: Process) -> None:
        await proc.map("items", item, range(20), concurrency=3)

    await world.begin_and_die(process, after_s=10)
    assert forms(world) == {1: "value", 2: "error", 3: "value"}
    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError, match="item 2"):
            await host.get("p").result()
    assert begun == [0, 1, 2, 3, 0]
    assert forms(world) == {0: "value", 1: "value", 2: "error", 3: "value"}


@virtual
async def test_what_earlier_runs_began_ends_although_this_one_stops(world: World) -> None:
    """What is recorded when a failure is raised has no gap, so that a later run begins nothing."""
    begun: list[int] = []
    fails = False

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(100 if n != 5 else 1)
        if fails and n == 1:
            raise ValueError("item 1")
        return n

    async def process(proc: Process, concurrency: int) -> str:
        with suppress(StepError):
            await proc.map("items", item, range(20), concurrency=6 if not fails else 1)
        await proc.event("go")
        return "over"

    await world.begin_and_die(process, 6, after_s=10)
    assert forms(world) == {5: "value"}
    fails = True
    begun.clear()
    second = world.host(process)
    await second.start()
    await asyncio.sleep(1000)
    assert begun == [0, 1, 2, 3, 4]
    world.kill(second)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "over"
    assert begun == [0, 1, 2, 3, 4]


# --- changed code -----------------------------------------------------------------------------


@virtual
async def test_more_or_fewer_items_than_recorded(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """More items than before: the new ones run. Fewer: a warning names what was not asked for."""
    begun: list[int] = []
    count = 3

    async def item(n: int) -> int:
        begun.append(n)
        return n

    async def process(proc: Process) -> list[int]:
        result = await proc.map("items", item, range(count))
        await proc.event("go")
        return result

    await world.begin_and_die(process)
    count = 5
    second = world.host(process)
    await second.start()
    await asyncio.sleep(10)
    world.kill(second)
    assert begun == [0, 1, 2, 3, 4]
    count = 2
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == [0, 1]
    assert "ended without asking for what it had recorded: do 'items'" in caplog.text


# --- cancellation -----------------------------------------------------------------------------


@virtual
async def test_cancelled_by_user_code(world: World) -> None:
    """Rule 6: the items in flight record it, no other begins; a resumed run is cancelled too."""
    begun: list[int] = []
    seen: list[str] = []

    async def item(n: int) -> None:
        begun.append(n)
        await asyncio.sleep(n + 1)

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(3.5):
                await proc.map("items", item, range(20), concurrency=2)
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")

    await world.begin_and_die(process, after_s=60)
    first, begun[:] = begun[:], []
    assert forms(world) == {0: "value", 1: "value", 2: "cancelled", 3: "cancelled"}
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert (first, begun) == ([0, 1, 2, 3], [])
    assert seen == ["timeout", "timeout"]


@pytest.mark.parametrize("way", ["timeout", "task", "group"])
@pytest.mark.parametrize("rounds", range(12))
def test_cancelled_at_every_moment(way: str, rounds: int) -> None:
    """Rule 6: whenever the cancellation comes, both runs see the same and nothing begins anew."""

    @virtual
    async def body(world: World) -> None:
        begun: list[int] = []
        seen: list[str] = []

        async def item(n: int) -> int:
            begun.append(n)
            await asyncio.sleep(0)
            return n

        async def soon(call: Any) -> Any:
            task = asyncio.create_task(call)
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            return await task

        async def fail() -> None:
            for _ in range(rounds):
                await asyncio.sleep(0)
            raise KeyError

        async def process(proc: Process) -> None:
            items = proc.map("items", item, range(4), concurrency=2)
            try:
                if way == "timeout":
                    async with asyncio.timeout(None) as limit:
                        loop = asyncio.get_running_loop()
                        limit.reschedule(loop.time() + rounds / 1000 - 0.001)
                        seen.append(str(await items))
                elif way == "task":
                    seen.append(str(await soon(items)))
                else:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(fail())
                        seen.append(str(await items))
            except (TimeoutError, asyncio.CancelledError, BaseExceptionGroup) as error:
                if isinstance(error, ProcessInterrupted):
                    raise
                seen.append(type(error).__name__)
            await proc.do("then", double, 1)
            await proc.event("go")

        first = world.host(process)
        wire = world.wires[first]

        async def slowly(call: str) -> None:
            await asyncio.sleep(0.002 if call == "commit" else 0)

        wire.after = slowly
        await first.start()
        await first.spawn(process, "p")
        await asyncio.sleep(100)
        world.kill(first)
        once = seen[:]
        count = len(begun)
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            await asyncio.sleep(30)
            info = await host.get("p").info()
            assert info.status == "completed", (info, once, seen, world.keys("p"))
        assert seen == once * 2
        assert len(begun) == count

    body()


# --- interrupts -------------------------------------------------------------------------------


@virtual
async def test_a_drain_lets_items_in_flight_finish(world: World) -> None:
    """S1.14: a stop records the items in flight, begins none, and the next host goes on."""
    begun: list[int] = []

    async def item(n: int) -> int:
        begun.append(n)
        await asyncio.sleep(5)
        return n

    async def process(proc: Process) -> list[int]:
        return await proc.map("items", item, range(6), concurrency=2)

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(6)
    await first.stop(drain_s=60)
    assert begun == [0, 1, 2, 3]
    assert forms(world) == dict.fromkeys(range(4), "value")
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == list(range(6))
    assert begun == list(range(6))


@virtual
async def test_an_interrupt_ends_the_items_and_records_nothing(world: World) -> None:
    """Rule 5: at the end of a drain the items are cancelled, unrecorded, and run again."""
    ends: list[str] = []

    async def item(n: int) -> int:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        return n

    async def process(proc: Process) -> list[int]:
        return await proc.map("items", item, range(3))

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(6)
    await first.stop(drain_s=1)
    assert ends == ["cancelled"] * 3
    assert forms(world) == {}
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == [0, 1, 2]


# --- crashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, None])
def test_dead_at_every_call(concurrency: int | None) -> None:
    """G1-G4 F001-F004: a map dies at each storage call, and at pairs; the same comes of it."""

    async def process(proc: Process) -> int:
        doubled = await proc.map("double", double, range(4), concurrency=concurrency)
        return sum(await proc.map("again", double, doubled, concurrency=concurrency))

    report = crash_everywhere(process, pairs=True)
    report.check()
    assert report.deaths > 50


@pytest.mark.parametrize("concurrency", [1, 4])
def test_dead_at_every_call_with_a_failure(concurrency: int) -> None:
    """F001-F003: a failing map dies at each storage call and comes to the same failure."""

    async def item(n: int) -> int:
        if n % 3 == 2:
            raise ValueError(f"item {n}")
        return n

    async def process(proc: Process) -> str:
        try:
            await proc.map("items", item, range(8), concurrency=concurrency)
        except StepError as error:
            return await proc.get("seen", str(error))
        return "none failed"

    report = crash_everywhere(process, callbacks=True)
    # Which items were in flight beside the first failure is a matter of time.
    differing = [line for each in report.differences for line in each.what]
    assert [line for line in differing if concurrency == 1 or "items[" not in line] == []
    assert report.deaths > 20
    assert report.expected["crashing", "came to"] == b'"ValueError: item 2"'
