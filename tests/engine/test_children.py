"""Children: created with the record of their call, waited for by it, and never twice."""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from durabletask import Limits, Process, ProcessHost, Status
from durabletask.errors import (
    ProcessCancelledError,
    ProcessExistsError,
    ProcessFailedError,
    ProcessInterrupted,
    ProcessQuarantinedError,
    ProcessTerminatedError,
    StepError,
    UnregisteredProcessError,
)
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, settle, virtual


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


class RefusedError(Exception):
    """Known to the host by its class."""


async def double(proc: Process, number: int) -> int:
    return await proc.get("twice", lambda: number * 2)


async def fails(proc: Process, text: str) -> None:
    raise RefusedError(text)


async def waits(proc: Process) -> str:
    return await proc.event("go", str)


@virtual
async def test_spawn_goes_on_and_result_waits(world: World) -> None:
    """S0.09: a child has an id of its own, runs beside its parent, and its result is typed."""

    async def process(proc: Process) -> list[Any]:
        child = await proc.spawn("c", double, 21, tags={"of": "p"})
        await proc.do("between", asyncio.sleep, 1)
        return [child.id, await child.result(), await proc.call("d", double, 4)]

    async with world.host(process, double) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == ["p/1.0/c", 42, 8]
        row = world.row("p/1.0/c")
        assert row.parent is not None
        assert (row.parent.process_id, row.parent.key, row.tags) == ("p", "c", {"of": "p"})
        # From outside it is a process like any other.
        assert await host.get(double, "p/1.0/c").result() == 42


@pytest.mark.parametrize(
    ("process_id", "key"),
    [("p" * 255, "k" * 255), ("ü" * 127, "日本" * 40), ("p", "a/b:c"), ("p:1", "🦆" * 60)],
    ids=["long", "letters", "marks", "ducks"],
)
def test_derived_ids_fit_and_differ(process_id: str, key: str) -> None:
    """S0.09, S2.04: any key and id give a child an id that fits, the same at each resume."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> list[int]:
            first = await proc.call(key, double, 1)
            await proc.event("go")
            return [first, await proc.call(key[:-1] + "x", double, 2)]

        host = world.host(process, double)
        await host.start()
        await host.spawn(process, process_id)
        await asyncio.sleep(1)
        world.kill(host)
        async with world.host(process, double) as second:
            handle = second.get(process, process_id)
            await handle.raise_event("go")
            assert await handle.result() == [2, 4]
            rows = [row async for row in second.list(name="double")]
            assert len({row.id for row in rows}) == 2
            assert all(len(row.id.encode()) <= 255 for row in rows)

    body()


@virtual
async def test_an_id_of_other_origin_is_an_error(world: World) -> None:
    """S2.04: an id that somebody else has created is refused, recorded, and not touched."""

    async def process(proc: Process) -> list[str]:
        seen = []
        for key in ("spawn", "call"):
            try:
                if key == "spawn":
                    await proc.spawn(key, double, 1, process_id="taken")
                else:
                    await proc.call(key, double, 1, process_id="taken")
            except ProcessExistsError as error:
                seen.append(str(error))
        await proc.event("go")
        return seen

    host = world.host(process, double)
    await host.start()
    await host.spawn(double, "taken", 5)
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    world.kill(host)
    async with world.host(process, double) as second:
        handle = second.get(process, "p")
        await handle.raise_event("go")
        seen = await handle.result()
        assert len(seen) == 2
        assert all("'taken'" in text for text in seen)
        assert await second.get(double, "taken").result() == 10


@virtual
async def test_two_calls_with_one_id(world: World) -> None:
    """S2.04: the second call of the same process did not spawn that child either."""

    async def process(proc: Process) -> str:
        await proc.spawn("a", waits, process_id="one")
        with pytest.raises(ProcessExistsError):
            await proc.spawn("b", waits, process_id="one")
        return "refused"

    async with world.host(process, waits) as host:
        assert await (await host.spawn(process, "p")).result() == "refused"


@pytest.mark.parametrize("how", ["fails", "cancelled", "terminated", "never started"])
def test_a_child_that_does_not_complete(how: str) -> None:
    """S2.04: its parent is told how it ended, the same at each resume, and may go on."""

    @virtual
    async def body(world: World) -> None:
        seen: list[tuple[str, str, str]] = []

        async def process(proc: Process) -> str:
            try:
                if how == "fails":
                    await proc.call("c", fails, "no")
                else:
                    start_at = timedelta(days=1) if how == "never started" else None
                    child = await proc.spawn("c", waits, start_at=start_at)
                    await child.result()
            except (ProcessFailedError, ProcessTerminatedError) as error:
                cause = type(error.__cause__).__name__
                seen.append((type(error).__name__, cause, str(error)))
            return await proc.event("end", str)

        options: dict[str, Any] = {"errors": [RefusedError]}
        host = world.host(process, fails, waits, **options)
        await host.start()
        await host.spawn(process, "p")
        await asyncio.sleep(1)
        if how in ("cancelled", "never started"):
            await host.get("p/1.0/c").cancel("not wanted")
        elif how == "terminated":
            await host.get("p/1.0/c").terminate("not wanted")
        await asyncio.sleep(1)
        world.kill(host)
        async with world.host(process, fails, waits, **options) as second:
            await second.raise_event("p", "end", "went on")
            assert await second.get(process, "p").result() == "went on"
        assert len(seen) == 2
        assert seen[0] == seen[1]
        if how == "terminated":
            assert seen[0][0] == "ProcessTerminatedError"
        else:
            cause = "RefusedError" if how == "fails" else "ProcessCancelledError"
            assert seen[0][:2] == ("ProcessFailedError", cause)

    body()


@virtual
async def test_an_unhandled_failure_of_a_child_fails_its_parent(world: World) -> None:
    """S1.06: the first failure cancels the siblings that only wait, as in any task group."""

    async def process(proc: Process) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(proc.call("good", waits))
            group.create_task(proc.call("bad", fails, "no"))

    async with world.host(process, fails, waits) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError):
            await handle.result()
        assert ("call", "good", "cancelled") in world.keys("p")
        # Not waited for any more; it goes on by itself, as `spawn` says.
        assert world.row("p/1.0/good").status is Status.WAITING


@virtual
async def test_all_settled(world: World) -> None:
    """S1.05, S1.06: `return_exceptions=True` waits for all, whatever became of each."""

    async def process(proc: Process) -> list[str]:
        outcomes = await asyncio.gather(
            proc.call("a", double, 1), proc.call("b", fails, "no"), proc.call("c", double, 3),
            return_exceptions=True,
        )  # fmt: skip
        return [str(each) for each in outcomes]

    async with world.host(process, fails, double) as host:
        result = await (await host.spawn(process, "p")).result()
    assert (result[0], result[2]) == ("2", "6")
    assert "RefusedError: no" in result[1]


@virtual
async def test_a_thousand_children(world: World) -> None:
    """S1.05: fan-out by gather; each runs once, and each result comes to its own call."""
    ran: Counter[int] = Counter()

    async def child(proc: Process, number: int) -> int:
        ran[number] += 1
        return await double(proc, number)

    async def process(proc: Process) -> list[int]:
        calls = (proc.call(f"c{number}", child, number) for number in range(1_000))
        return list(await asyncio.gather(*calls))

    async with world.host(process, child) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == [number * 2 for number in range(1_000)]
    assert len(ran) == 1_000
    assert set(ran.values()) == {1}


@virtual
async def test_a_race_over_results(world: World) -> None:
    """S1.08: the first child to end wins, and the other one's end is there for a later wait."""

    async def sleeps(proc: Process, seconds: int) -> int:
        await proc.delay("d", timedelta(seconds=seconds))
        return seconds

    async def process(proc: Process) -> list[int]:
        slow, quick = await proc.spawn("slow", sleeps, 20), await proc.spawn("quick", sleeps, 10)
        one, two = slow.result(), quick.result()
        first = await proc.race("first", one, two, proc.delay("d", timedelta(days=1)))
        assert first.won(two)
        await proc.event("go")
        return [first.of(two), await slow.result()]

    host = world.host(process, sleeps)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(30)
    world.kill(host)
    async with world.host(process, sleeps) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == [10, 20]


@pytest.mark.parametrize("how", ["race", "twice"])
@virtual
async def test_a_result_is_taken_once(world: World, how: str) -> None:
    """Rule 4: awaited again, by itself or behind a race that it won, it would wait for ever."""
    resuming: list[bool] = []

    async def child(proc: Process) -> str:
        return "result"

    async def process(proc: Process) -> str:
        spawned = await proc.spawn("c", child)
        if how == "race":
            branch = spawned.result()
            assert (await proc.race("first", branch)).of(branch) == "result"
        else:
            await spawned.result()
        resuming.append(proc.resuming)
        await proc.get("number", 1)
        await proc.event("go")
        return await spawned.result()

    async with world.host(process, child) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(1)
    async with world.host(process, child) as second:
        await asyncio.sleep(1)
        await second.raise_event("p", "go")
        with pytest.raises(ProcessQuarantinedError, match="child 'c' was taken before"):
            await second.get("p").result()
    assert resuming == [False, True]


@virtual
async def test_a_child_of_a_child(world: World) -> None:
    """S2.04: to any depth; each is told of its own child's end only."""

    async def nested(proc: Process, depth: int) -> list[str]:
        if depth == 0:
            return [proc.id]
        return [proc.id, *await proc.call("below", nested, depth - 1)]

    async with world.host(nested) as host:
        ids = await (await host.spawn(nested, "p", 30)).result()
    assert len(set(ids)) == 31
    assert all(len(each.encode()) <= 255 for each in ids)


@virtual
async def test_a_function_that_this_host_does_not_have(world: World) -> None:
    """S0.09 (rule 4): a deployment that forgets it sets the process aside, and undoes nothing."""
    seen: list[str] = []

    async def process(proc: Process) -> str:
        try:
            return await proc.call("c", waits)
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessQuarantinedError, match="waits") as caught:
            await handle.result()
        assert isinstance(caught.value.__cause__, UnregisteredProcessError)
    assert world.keys("p") == []
    async with world.host(process, waits) as host:
        handle = host.get(process, "p")
        await handle.retry()
        await asyncio.sleep(1)
        await host.raise_event("p/1.0/c", "go", "after the fix")
        assert await handle.result() == "after the fix"
    assert not seen


@virtual
async def test_a_child_that_is_set_aside(world: World) -> None:
    """Rule 4: a quarantined child is no end: its parent waits, and gets the result after a fix."""
    broken = True

    async def child(proc: Process) -> str:
        await proc.do("a", asyncio.sleep, 0)
        if broken:
            await proc.do("a", asyncio.sleep, 0)
        return "fixed"

    async def process(proc: Process) -> str:
        return await proc.call("c", child)

    async with world.host(process, child) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessQuarantinedError):
            await host.get("p/1.0/c").result()
        await asyncio.sleep(100)
        assert world.row("p").status is Status.WAITING
        broken = False
        await host.get("p/1.0/c").retry()
        assert await handle.result() == "fixed"


@virtual
async def test_late_ends_of_an_earlier_generation(world: World) -> None:
    """S2.06: what a child of an earlier generation comes to is not told to a later one."""

    async def child(proc: Process, number: int) -> int:
        await proc.delay("d", timedelta(seconds=10))
        return number

    async def process(proc: Process, number: int) -> int:
        spawned = await proc.spawn("c", child, number)
        if number < 3:
            await proc.delay("d", timedelta(seconds=9 + number))  # before, at and after its end
            proc.restart(number + 1)
        return await spawned.result()

    async with world.host(process, child) as host:
        handle = await host.spawn(process, "p", 0)
        assert await handle.result() == 3
        (snapshot,) = await world.storage.read(["p"], history=True)
        assert snapshot is not None
        assert [each.name.rpartition(":")[2] for each in snapshot.events] == ["completed"]
        for number in range(4):
            assert await host.get(child, f"p/1.{number}/c").result() == number


@virtual
async def test_the_parent_ends_first(world: World) -> None:
    """S0.09: a child goes on whatever becomes of its parent; its end finds nobody."""

    async def process(proc: Process) -> str:
        return (await proc.spawn("c", waits)).id

    async with world.host(process, waits) as host:
        child_id = await (await host.spawn(process, "p")).result()
        await host.raise_event(child_id, "go", "alone")
        assert await host.get(waits, child_id).result() == "alone"
        assert await host.get("p").purge(recursive=False) == 1


@virtual
async def test_results_have_room_in_a_full_mailbox(world: World) -> None:
    """Rule 14: a full mailbox refuses events, and never the end of a child."""

    async def process(proc: Process) -> str:
        return await proc.call("c", waits)

    async with world.host(process, waits, limits=Limits(mailbox_max=2)) as host:
        handle = await host.spawn(process, "p")
        await settle()
        for _ in range(2):
            await handle.raise_event("other")
        await host.raise_event("p/1.0/c", "go", "through")
        assert await handle.result() == "through"


@virtual
async def test_cancel_reaches_every_depth_but_not_the_clean_up(world: World) -> None:
    """S1.09 (rule 7): all that was there is cancelled; what the clean-up spawns is not."""

    async def nested(proc: Process, depth: int) -> str:
        if depth == 0:
            return await waits(proc)
        return await proc.call("below", nested, depth - 1)

    async def process(proc: Process) -> list[Any]:
        try:
            await asyncio.gather(proc.call("a", nested, 3), proc.call("b", waits))
        except ProcessCancelledError:
            return [await proc.call("clean up", double, 4)]
        return []

    async with world.host(process, nested, waits, double) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5)
        await handle.cancel("all of you")
        assert await handle.result() == [8]
        await asyncio.sleep(5)
        statuses = Counter([row.status async for row in host.list(name="nested")])
        assert statuses == {Status.CANCELLED: 4}
        assert world.row("p/1.0/b").status is Status.CANCELLED


@virtual
async def test_a_child_that_does_not_give_in(world: World) -> None:
    """Rule 7: cooperative for each: a child may catch it and complete, and its parent may not."""

    async def child(proc: Process) -> str:
        try:
            await proc.event("never")
        except ProcessCancelledError:
            await proc.do("tidy", asyncio.sleep, 10)
        return "tidied"

    async def process(proc: Process) -> str:
        spawned = await proc.spawn("c", child)
        try:
            return await spawned.result()
        except ProcessCancelledError:
            again = await proc.spawn("d", double, 1)  # the first one's result was waited for once
            return f"{await again.result()}"

    async with world.host(process, child, double) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        await handle.cancel()
        assert await handle.result() == "2"
        assert await host.get(child, "p/1.0/c").result() == "tidied"


# --- dying ----------------------------------------------------------------------------------


async def one(proc: Process) -> int:
    child = await proc.spawn("a", double, 1)
    called = await proc.call("b", double, 2)
    return called + await child.result()


async def beside(proc: Process) -> list[int]:
    return list(await asyncio.gather(*(proc.call(f"c{n}", double, n) for n in range(3))))


async def raced(proc: Process) -> str:
    child = await proc.spawn("a", double, 1)
    result = child.result()
    first = await proc.race("r", result, proc.delay("d", timedelta(days=1)))
    return f"{first.winner} {first.of(result)}"


async def refused(proc: Process) -> str:
    child = await proc.spawn("a", double, 1, process_id="x")
    try:
        await proc.call("b", double, 2, process_id="x")
    except ProcessExistsError:
        return f"refused, and {await child.result()}"
    return "not"


async def failing(proc: Process) -> str:
    try:
        await proc.call("b", fails, "no")
    except ProcessFailedError as error:
        await proc.do("tidy", asyncio.sleep, 0)
        return str(error.__cause__)
    return "not"


async def grown(proc: Process) -> int:
    return await proc.call("below", one)


@pytest.mark.parametrize("fn", [one, beside, raced, refused, failing, grown])
def test_dead_at_every_call(fn: Any) -> None:
    """S1.05, S2.04 (F024): parent and children die before and after each storage call."""
    others = [each for each in (double, fails, one) if each is not fn]
    host = partial(ProcessHost, errors=[RefusedError])
    report = crash_everywhere(fn, process_id="p", processes=others, host=host)
    report.check()
    assert report.deaths > 10


def test_dead_at_every_callback() -> None:
    """S1.05 (F024): and before each callback of the loop."""
    report = crash_everywhere(one, process_id="p", processes=[double], callbacks=True)
    report.check()


@virtual
async def test_interrupts_are_no_outcome(world: World) -> None:
    """Rule 5: a call that is interrupted records nothing, and the next host goes on waiting."""
    seen: list[str] = []

    async def process(proc: Process) -> str:
        try:
            return await proc.call("c", waits)
        except (ProcessInterrupted, StepError) as error:
            seen.append(type(error).__name__)
            raise

    host = world.host(process, waits)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop()
    assert seen == ["ProcessInterrupted"]
    assert [key for key in world.keys("p") if key[0] == "call"] == []
    async with world.host(process, waits) as second:
        await second.raise_event("p/1.0/c", "go", "still")
        assert await second.get(process, "p").result() == "still"
