"""Races: the first of several waits, in one record that every later run agrees with."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from durabletask import DelayResult, DurableWait, Process, RaceResult, Status
from durabletask.errors import InvalidArgumentError
from tests.engine.world import World, quarantined, settle, virtual


@dataclass
class Approval:
    by: str


async def nop() -> str:
    return "done"


async def decide(proc: Process) -> str:
    """Wait for an approval, two days at most."""
    approved = proc.event("approved", Approval)
    deadline = proc.delay("deadline", timedelta(days=2))
    first = await proc.race("decision", approved, deadline)
    await proc.do("after " + first.winner, nop)
    if first.won(approved):
        assert first.index == 0
        return first.of(approved).by
    assert first.of(deadline).on_time
    return "nobody"


@virtual
async def test_an_event_wins(world: World) -> None:
    """S1.08, S2.02: an event before the deadline: its payload; one record, and nothing else."""
    async with world.host(decide) as host:
        handle = await host.spawn(decide, "p")
        await settle()
        await handle.raise_event("approved", Approval("carol"))
        assert await handle.result() == "carol"
    assert world.keys("p") == [
        ("wait", "decision", "value"),
        ("race", "decision", "value"),
        ("do", "after approved", "value"),
    ]
    assert world.storage._processes["p"].snapshot(history=True).events[0].consumed


@virtual
async def test_a_delay_wins(world: World) -> None:
    """S2.03: at the deadline, never before it; the event that comes later stays in the mailbox."""
    world.allow(days=3)
    async with world.host(decide) as host:
        handle = await host.spawn(decide, "p")
        assert await handle.result() == "nobody"
        assert world.clock.monotonic_s() == pytest.approx(2 * 86_400, abs=0.1)


@virtual
async def test_the_same_branch_wins_in_every_later_run(world: World) -> None:
    """G2: the recorded branch is taken although the other one is ready by now."""
    seen: list[str] = []

    async def process(proc: Process) -> str:
        event = proc.event("e", str)
        first = await proc.race("r", event, proc.delay("d", timedelta(seconds=10)))
        seen.append(first.winner)
        await proc.event("go")
        return await proc.event("e", str)

    await world.begin_and_die(process, after_s=20)
    async with world.host(process) as host:
        await host.raise_event("p", "e", "late")
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "late"
    assert seen == ["d", "d"]


@virtual
async def test_due_times_survive_a_restart(world: World) -> None:
    """F088, G7: the deadline of a branch is fixed by the first run, and tells if nothing ran."""
    late: list[DelayResult] = []

    async def process(proc: Process) -> float:
        branches = [proc.delay(f"d{n}", timedelta(seconds=100 * n)) for n in (3, 1)]
        first = await proc.race("r", proc.event("e"), *branches)
        assert first.winner == "d1"
        late.append(first.of(branches[1]))
        return world.clock.monotonic_s()

    await world.begin_and_die(process, after_s=60)
    assert (world.row("p").wake_at or world.clock.now()) > world.clock.now()
    host = world.host(process)
    await host.start()
    await asyncio.sleep(10)
    world.kill(host)
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == pytest.approx(100, abs=0.1)
    assert late[0].on_time


@virtual
async def test_a_deadline_that_passed_while_nothing_ran(world: World) -> None:
    """S3.06: due in the downtime: over at once on resume, and `on_time` is false."""

    async def process(proc: Process) -> bool:
        delay = proc.delay("d", timedelta(seconds=100))
        first = await proc.race("r", proc.event("e"), delay)
        return first.of(delay).on_time

    await world.begin_and_die(process, after_s=60)
    await asyncio.sleep(1000)
    async with world.host(process) as host:
        assert await host.get(process, "p").result() is False


@virtual
async def test_the_first_in_order_wins_a_tie(world: World) -> None:
    """Of what is ready at one look the first in order wins; the others consume nothing."""

    async def process(proc: Process) -> list[str]:
        await proc.event("ready")
        story = []
        for n in range(3):
            first = await proc.race(
                f"r{n}", proc.event("b", key="b"), proc.delay("d", timedelta(0)), proc.event("a")
            )
            story.append(first.winner)
        rest = await proc.event("a", str)
        return [*story, rest]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("a", "kept")
        await handle.raise_event("b", 1)
        await handle.raise_event("b", 2)
        await handle.raise_event("ready")
        assert await handle.result() == ["b", "b", "d", "kept"]


@virtual
async def test_events_in_one_moment_are_taken_once(world: World) -> None:
    """F099, G8: events for several branches at once: one is taken, the others stay, in order."""

    async def process(proc: Process) -> list[str]:
        got = []
        for n in range(6):
            a, b = proc.event("a", str), proc.event("b", str)
            first = await proc.race(f"r{n}", a, b)
            got.append(first.of(a) if first.won(a) else first.of(b))
        return got

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        for n in range(3):
            await asyncio.gather(handle.raise_event("b", f"b{n}"), handle.raise_event("a", f"a{n}"))
        got = await handle.result()
    assert sorted(got) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [each for each in got if each[0] == "a"] == ["a0", "a1", "a2"]
    assert [each for each in got if each[0] == "b"] == ["b0", "b1", "b2"]


@virtual
async def test_waits_and_races_stand_in_one_line(world: World) -> None:
    """F099: for one name first come, first served: a race, a wait, a race."""

    async def process(proc: Process) -> list[str]:
        async def by_race(key: str) -> str:
            event = proc.event("e", str)
            return (await proc.race(key, event, proc.event("never"))).of(event)

        return list(
            await asyncio.gather(by_race("r1"), proc.event("e", str, key="w"), by_race("r2"))
        )

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        for text in "abc":
            await handle.raise_event("e", text)
        assert await handle.result() == ["a", "b", "c"]


@pytest.mark.parametrize("moment", ["before", "with", "after"])
def test_a_cancelled_race_gives_back_what_it_was_handed(moment: str) -> None:
    """F099, F107 (rule 6): cancelled as the event arrives: the event is the next one's."""

    @virtual
    async def body(world: World) -> None:
        seen: list[str] = []

        async def process(proc: Process) -> list[str]:
            try:
                async with asyncio.timeout(5):
                    await proc.race("r", proc.event("x"), proc.event("e", str))
                seen.append("result")
            except TimeoutError:
                seen.append("cancelled")
                await proc.event("e", str, key="rest")
            await proc.event("go")
            return seen

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await asyncio.sleep({"before": 4.0, "with": 5.0, "after": 6.0}[moment])
        await first.raise_event("p", "e", "only one")
        await asyncio.sleep(10)
        world.kill(first)
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            await second.get("p").result()
        assert seen[0] == seen[1]
        assert seen[0] == {"before": "result", "after": "cancelled"}.get(moment, seen[0])

    body()


@virtual
async def test_a_race_cancelled_in_every_moment(world: World) -> None:
    """F099: cancelled so many callbacks after the event came: it is taken once, by one of two."""
    tasks: list[asyncio.Task[Any]] = []

    async def process(proc: Process) -> str:
        call = proc.race("r", proc.event("x"), proc.event("e", str), proc.event("y"))
        tasks.append(asyncio.create_task(call))
        try:
            await tasks[-1]
        except asyncio.CancelledError:
            return "rest " + await proc.event("e", str)
        return "raced"

    async with world.host(process) as host:
        results = set()
        for n in range(40):
            handle = await host.spawn(process, f"p{n}")
            await settle()
            raising = asyncio.create_task(handle.raise_event("e", "event"))
            await settle(n)
            tasks[-1].cancel()
            await raising
            results.add(await handle.result())
    assert results == {"raced", "rest event"}


@virtual
async def test_asyncio_timeout_around_a_race(world: World) -> None:
    """F107 (rule 6): the race is recorded as cancelled, and met again by the resumed run."""
    seen: list[str] = []

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.race("r", proc.event("a"), proc.delay("d", timedelta(days=1)))
            seen.append("value")
        except TimeoutError:
            seen.append("timeout")
        await proc.event("go")
        return await proc.event("a", str)

    await world.begin_and_die(process, after_s=6)
    assert ("race", "r", "cancelled") in world.keys("p")
    async with world.host(process) as host:
        await host.raise_event("p", "a", "late")
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "late"
    assert seen == ["timeout", "timeout"]


@virtual
async def test_nested_races(world: World) -> None:
    """A race in a race: its outcome is the inner result; inner keys clash with no outer ones."""

    async def process(proc: Process) -> list[Any]:
        story: list[Any] = []
        for n in range(3):
            a, d = proc.event("a", int), proc.delay("same", timedelta(seconds=50))
            inner = proc.race("inner", a, d)
            outer = proc.delay("same", timedelta(seconds=100 if n else 10))
            first = await proc.race(f"r{n}", inner, outer)
            story.append([first.winner, first.index])
            if first.won(inner):
                second: RaceResult = first.of(inner)
                story[-1] += [second.winner, second.of(a) if second.won(a) else None]
        await proc.event("go")
        return story

    host = world.host(process)
    await host.start()
    handle = await host.spawn(process, "p")
    await asyncio.sleep(20)
    (wait,) = (await handle.info()).waits
    assert [(each.kind, each.key, each.name) for each in wait.branches] == [
        ("event", "a", "a"), ("delay", "same", None), ("delay", "same", None),
    ]  # fmt: skip
    await handle.raise_event("a", 7)
    await asyncio.sleep(100)
    world.kill(host)
    async with world.host(process) as again:
        await again.raise_event("p", "go")
        assert await again.get(process, "p").result() == [
            ["same", 1], ["inner", 0, "a", 7], ["inner", 0, "same", None],
        ]  # fmt: skip


@virtual
async def test_what_a_race_waits_for_can_be_seen(world: World) -> None:
    """Rule 10: `info()` names the race, its branches and when it is over by itself."""
    async with world.host(decide) as host:
        handle = await host.spawn(decide, "p")
        await settle()
        info = await handle.info()
        due_at = world.clock.now() + timedelta(days=2)
        assert info.status is Status.WAITING
        assert info.wake_at == due_at
        (wait,) = info.waits
        assert (wait.kind, wait.key, wait.due_at) == ("race", "decision", due_at)
        assert [(each.kind, each.key, each.name, each.due_at) for each in wait.branches] == [
            ("event", "approved", "approved", None), ("delay", "deadline", None, due_at),
        ]  # fmt: skip
        await handle.raise_event("approved", Approval("carol"))
        await handle.result()


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda proc: [], "0 branches"),
        (lambda proc: [proc.do("s", nop)], r"asyncio\.gather"),
        (lambda proc: [proc.get("s", nop)], r"asyncio\.gather"),
        (lambda proc: [proc.event("e"), proc.do("s", nop)], r"asyncio\.gather"),
        (lambda proc: [proc.event("e", timeout=5)], r"proc\.delay"),
        (lambda proc: [5], "int"),
        (lambda proc: [proc.event("e")] * 2, None),
        (lambda proc: [proc.race("x", proc.event("e", key="a"), proc.event("e", key="b"))], None),
    ],
)
def test_what_cannot_be_a_branch_is_refused(make: Any, match: str | None) -> None:
    """Rule 4: steps, timeouts and strangers are refused at once; nothing warns, nothing runs."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> None:
            if match is not None:
                with pytest.raises(InvalidArgumentError, match=match):
                    proc.race("r", *make(proc))
                return
            proc.race("unused", proc.event("e")).close()

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()
        assert world.keys("p") == []

    body()


@virtual
async def test_a_branch_is_for_one_race(world: World) -> None:
    """A branch that was awaited, or is in another race, is refused with the reason."""

    async def process(proc: Process) -> None:
        event, other = proc.event("e"), proc.delay("d", timedelta(0))
        await other
        first = proc.race("r", event)
        for used in (event, other):
            with pytest.raises(InvalidArgumentError, match="was used before"):
                proc.race("again", used)
        result = await first
        with pytest.raises(InvalidArgumentError, match="no branch of this race"):
            result.won(other)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("e")
        await handle.result()


@virtual
async def test_the_outcome_of_a_loser_is_refused(world: World) -> None:
    """`of` a branch that did not win: an error that names the one that did."""

    async def process(proc: Process) -> None:
        never, delay = proc.event("never"), proc.delay("d", timedelta(0))
        result = await proc.race("r", never, delay)
        with pytest.raises(InvalidArgumentError, match=r"delay 'd'.* was first"):
            result.of(never)
        assert result.won(delay)
        assert not result.won(never)

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()


@virtual
async def test_two_branches_with_one_key(world: World) -> None:
    """Rule 4: two branches of one key: quarantined with the key, and nothing is consumed."""

    async def process(proc: Process) -> None:
        await proc.race("r", proc.event("e"), proc.event("e"))

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await host.stop()
    assert "'e'" in await quarantined(world, process, "two branches")


@virtual
async def test_a_winner_that_is_gone_quarantines(world: World) -> None:
    """Rule 4: the recorded winner is no branch any more: set aside, the key named."""
    name = "a"

    async def process(proc: Process) -> None:
        await proc.race("r", proc.event(name), proc.delay("d", timedelta(days=1)))
        await proc.event("go")

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await host.raise_event("p", "a")
    await settle()
    world.kill(host)
    name = "b"
    assert "won by event 'a'" in await quarantined(world, process, "no branch of it any more")


@pytest.mark.parametrize("now", ["race", "delay", "event", "timeout"])
@pytest.mark.parametrize("before", ["race", "delay", "event", "timeout"])
def test_an_open_wait_of_another_kind_quarantines(before: str, now: str) -> None:
    """Rule 4: a key under which another kind of wait has begun: set aside, the key named."""
    if before == now:
        now = "do"

    @virtual
    async def body(world: World) -> None:
        kind = before

        async def process(proc: Process) -> None:
            if kind == "race":
                await proc.race("k", proc.event("a"))
            elif kind == "delay":
                await proc.delay("k", timedelta(days=1))
            elif kind == "event":
                await proc.event("k")
            elif kind == "do":
                await proc.do("k", nop)
            else:
                async with proc.timeout("k", timedelta(days=1)):
                    await proc.event("a")

        await world.begin_and_die(process)
        kind = now
        assert "'k'" in await quarantined(world, process, "'k'")

    body()


@virtual
async def test_branches_may_come_and_go_while_a_race_waits(world: World) -> None:
    """A new version may add a branch; its due time is fixed then, those before stay as they are."""
    names = ["a"]

    async def process(proc: Process) -> float:
        delays = [proc.delay(name, timedelta(seconds=100)) for name in names]
        first = await proc.race("r", *delays)
        return world.clock.monotonic_s() + 1000 * first.index

    await world.begin_and_die(process, after_s=50)
    names = ["b", "a"]
    host = world.host(process)
    await host.start()
    await asyncio.sleep(10)
    world.kill(host)
    names = ["b"]
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == pytest.approx(150, abs=1.1)


@virtual
async def test_an_event_that_does_not_fit_stays(world: World) -> None:
    """Rule 4: a payload of another shape quarantines before it is consumed."""
    wanted: Any = int

    async def process(proc: Process) -> Any:
        event: DurableWait[Any] = proc.event("e", wanted)
        return (await proc.race("r", event)).of(event)

    host = world.host(process)
    await host.start()
    await host.spawn(process, "p")
    await host.raise_event("p", "e", "text")
    await host.stop()
    await quarantined(world, process, "does not fit")
    assert not world.storage._processes["p"].snapshot(history=True).events[0].consumed


@virtual
async def test_a_drain_interrupts_a_race(world: World) -> None:
    """F011 (rule 5): a stopping host records nothing of a race; the next one goes on with it."""
    async with world.host(decide) as first:
        handle = await first.spawn(decide, "p")
        await settle()
    assert [kind for kind, _, _ in world.keys("p")] == ["wait"]
    async with world.host(decide) as second:
        handle = second.get(decide, "p")
        await handle.raise_event("approved", Approval("dave"))
        assert await handle.result() == "dave"
