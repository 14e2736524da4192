"""Delays: never early, of any length, due when the first run said."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durabletask import DelayResult, Process, ProcessHost, RetryPolicy, Status
from durabletask._timers import GIVEN_UP_MIN
from durabletask.errors import InvalidArgumentError
from durabletask.testing import VirtualClock, run_virtual
from tests.engine.world import Wire, World, settle, virtual

DAY = timedelta(days=1)


async def waiting(proc: Process, until: Any) -> None:
    await proc.delay("d", until)


@virtual
async def test_a_delay_of_a_year(world: World) -> None:
    """S2.03, S4.02: 365 days pass, and not one microsecond less."""
    world.allow(days=400)

    async def process(proc: Process) -> DelayResult:
        return await proc.delay("year", timedelta(days=365))

    async with world.host(process, types=[DelayResult]) as host:
        begun = world.clock.now()
        result = await (await host.spawn(process, "p")).result()
    assert result.desired == begun + timedelta(days=365)
    assert result.desired <= result.actual <= result.desired + timedelta(seconds=1)
    assert result.on_time


@virtual
async def test_a_resumed_delay_keeps_its_due_time(world: World) -> None:
    """F088, S2.03: neither restarted nor shortened by any number of restarts; on time."""
    seen: list[DelayResult] = []

    async def process(proc: Process) -> None:
        seen.append(await proc.delay("d", timedelta(seconds=100)))

    due = world.clock.now() + timedelta(seconds=100)
    await world.begin_and_die(process, after_s=30)
    for _ in range(3):
        host = world.host(process)
        await host.start()
        await asyncio.sleep(20)
        world.kill(host)
    async with world.host(process) as last:
        await last.get("p").result()
    assert seen == [DelayResult(due, seen[0].actual, True)]
    assert due <= seen[0].actual <= due + timedelta(milliseconds=10)


@virtual
async def test_a_delay_that_fell_due_while_nothing_ran(world: World) -> None:
    """S4.08: resumed past due: returns at once, with on_time=False, on every later run."""
    seen: list[DelayResult] = []

    async def process(proc: Process) -> None:
        seen.append(await proc.delay("d", timedelta(seconds=100)))
        await proc.event("go")

    due = world.clock.now() + timedelta(seconds=100)
    await world.begin_and_die(process, after_s=30)
    await asyncio.sleep(500)
    second = world.host(process)
    await second.start()
    await settle()
    assert seen == [DelayResult(due, world.clock.now(), False)]
    world.kill(second)
    async with world.host(process) as third:
        await third.raise_event("p", "go")
        await third.get("p").result()
    assert seen[1] == seen[0]


@virtual
async def test_a_recorded_delay_does_not_wait_again(world: World) -> None:
    """S4.08: the second run passes a delay that is over without waiting."""
    begun: list[float] = []

    async def process(proc: Process) -> None:
        await proc.delay("d", timedelta(seconds=100))
        begun.append(world.clock.monotonic_s())
        await proc.event("go")

    await world.begin_and_die(process, after_s=150)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert begun == [pytest.approx(100, abs=0.01), pytest.approx(150, abs=0.01)]


@virtual
async def test_the_first_run_sees_the_delay_as_a_resumed_run(world: World) -> None:
    """F112 (rule 2): the DelayResult of the first run equals that of the second, zones included."""
    seen: list[DelayResult] = []

    async def process(proc: Process) -> None:
        seen.append(await proc.delay("a", timedelta(milliseconds=1.5)))
        zone = ZoneInfo("Europe/Berlin")
        seen.append(await proc.delay("b", datetime(2026, 1, 1, 2, tzinfo=zone)))
        await proc.event("go")

    await world.begin_and_die(process, after_s=4000)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen[:2] == seen[2:]
    assert repr(seen[:2]) == repr(seen[2:])


@pytest.mark.parametrize(
    "until",
    [
        timedelta(0),
        timedelta(seconds=-5),
        timedelta(microseconds=-1),
        timedelta(days=-10_000),
        timedelta.min,
        datetime(2000, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    ],
)
def test_zero_negative_and_past_are_over_at_once(until: Any) -> None:
    """F087: over at once, durably: no time passes, the record is there."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(waiting) as host:
            await (await host.spawn(waiting, "p", until)).result()
        assert world.clock.monotonic_s() == 0
        assert world.keys("p") == [("delay", "d", "value")]

    body()


@pytest.mark.parametrize(
    "until",
    [
        timedelta(days=365 * 10_000),
        timedelta.max,
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
    ],
)
def test_beyond_the_calendar_is_refused(until: Any) -> None:
    """F087: 10,000 years: a clear error, nothing recorded, the key stays free for the process."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> str:
            with pytest.raises(InvalidArgumentError, match="9999"):
                await proc.delay("d", until)
            return "refused"

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == "refused"
        assert world.keys("p") == []

    body()


class Nowhere(tzinfo):
    """A zone that does not know its offset: as good as none."""

    def utcoffset(self, when: datetime | None, /) -> timedelta | None:
        return None

    dst = utcoffset

    def tzname(self, when: datetime | None, /) -> str | None:
        return None


@pytest.mark.parametrize(
    "until",
    [
        datetime(2026, 1, 2),
        datetime(2026, 1, 2, tzinfo=Nowhere()),
        5,
        1.5,
        "1 day",
        None,
        float("nan"),
        float("inf"),
    ],
)
def test_what_is_no_duration_is_refused(until: Any) -> None:
    """F087: naive datetimes, numbers, NaN: refused at the call with the fix, nothing recorded."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> str:
            with pytest.raises(InvalidArgumentError, match="'d'"):
                await proc.delay("d", until)
            return "refused"

        async with world.host(process) as host:
            assert await (await host.spawn(process, "p")).result() == "refused"
        assert world.keys("p") == []

    body()


def test_delays_across_the_end_of_summer_time() -> None:
    """F087: two delays in the hour that comes twice: each on time, in order of instants."""
    zone = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=0)
    second = datetime(2026, 10, 25, 2, 10, tzinfo=zone, fold=1)  # 40 minutes after `first`
    woken: list[tuple[str, datetime]] = []

    async def main(clock: VirtualClock) -> None:
        world = World(clock)

        async def branch(proc: Process, key: str, until: datetime) -> None:
            await proc.delay(key, until)
            woken.append((key, clock.now()))

        async def process(proc: Process) -> None:
            await asyncio.gather(branch(proc, "second", second), branch(proc, "first", first))

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()

    run_virtual(main, start=datetime(2026, 10, 24, 23, 0, tzinfo=UTC))
    assert [key for key, _ in woken] == ["first", "second"]
    assert woken[0][1] - datetime(2026, 10, 25, 0, 30, tzinfo=UTC) < timedelta(seconds=1)
    assert woken[1][1] - datetime(2026, 10, 25, 1, 10, tzinfo=UTC) < timedelta(seconds=1)


def test_the_earliest_of_waits_across_the_end_of_summer_time() -> None:
    """F087 (rule 10): the recorded wake time is the earliest instant, not wall time."""
    zone = ZoneInfo("Europe/Berlin")

    async def main(clock: VirtualClock) -> None:
        world = World(clock)

        async def process(proc: Process) -> None:
            await asyncio.gather(
                proc.delay("first", datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=0)),
                proc.delay("second", datetime(2026, 10, 25, 2, 10, tzinfo=zone, fold=1)),
            )

        async with world.host(process) as host:
            await host.spawn(process, "p")
            await settle()
            assert world.row("p").wake_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    run_virtual(main, start=datetime(2026, 10, 24, 23, 0, tzinfo=UTC))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=8), st.integers(0, 10**9))
def test_no_delay_is_early_whatever_the_lengths(micros: list[int], restart_us: int) -> None:
    """F087, F088, G7: any mixture of delays, with a restart in between: never early, none lost."""

    async def main(clock: VirtualClock) -> None:
        world = World(clock)
        begun = clock.now()

        async def one(proc: Process, n: int, length: timedelta) -> None:
            result = await proc.delay(f"d{n}", length)
            assert clock.now() >= result.actual >= result.desired == begun + length

        async def process(proc: Process) -> int:
            await asyncio.gather(
                *(one(proc, n, timedelta(microseconds=us)) for n, us in enumerate(micros))
            )
            return len(micros)

        await world.begin_and_die(process, after_s=restart_us / 1e6)
        async with world.host(process) as host:
            assert await host.get(process, "p").result() == len(micros)

    run_virtual(main)


@virtual
async def test_a_host_clock_that_runs_ahead_fires_nothing_early(world: World) -> None:
    """F083, F084: the wall clock of the host jumps forward; due times are the storage's."""

    class Ahead:
        recheck_s = 1.0

        def now(self) -> datetime:
            return world.clock.now() + timedelta(days=5)

        def monotonic_s(self) -> float:
            return world.clock.monotonic_s()

    async def process(proc: Process) -> None:
        await proc.delay("d", timedelta(hours=1))

    skewed = ProcessHost(Wire(world.storage), processes=[process], clock=Ahead())
    async with skewed:
        await (await skewed.spawn(process, "p")).result()
    assert 3600 <= world.clock.monotonic_s() < 3602


@virtual
async def test_a_delay_is_recorded_when_it_begins(world: World) -> None:
    """Rule 10: status, wake time and wait of a delay are in the storage while it lasts."""

    async def process(proc: Process) -> None:
        await proc.delay("cool-down", 30 * DAY)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        info = await handle.info()
        assert info.status is Status.WAITING
        assert info.wake_at == world.clock.now() + 30 * DAY
        assert [(each.kind, each.key, each.due_at) for each in info.waits] == [
            ("delay", "cool-down", info.wake_at)
        ]


@virtual
async def test_ten_thousand_delays_due_at_once(world: World) -> None:
    """F089: all of them fire after a downtime, and the record says that they were late."""

    async def process(proc: Process) -> int:
        results = await asyncio.gather(
            *(proc.delay(f"d{n}", timedelta(seconds=50)) for n in range(2_000))
        )
        return sum(not each.on_time for each in results)

    first = world.host(process)
    await first.start()
    for n in range(5):
        await first.spawn(process, f"p{n}")
    await asyncio.sleep(1)
    world.kill(first)
    await asyncio.sleep(1000)
    async with world.host(process) as second:
        for n in range(5):
            assert await second.get(process, f"p{n}").result() == 2_000


async def fails() -> None:
    raise ValueError("fails")


@pytest.mark.parametrize("wait", ["delay", "pause between attempts"])
@pytest.mark.parametrize("how", ["cancel", "terminate"])
@virtual
async def test_what_was_ended_from_outside_leaves_no_timer(
    world: World, wait: str, how: str
) -> None:
    """F101: reminders for next month that are cancelled do not pile up until then."""

    async def process(proc: Process) -> None:
        if wait == "delay":
            await proc.delay("remind", timedelta(days=30))
        retry = RetryPolicy(attempts_max=2, delay_s=30 * 86_400.0, delay_max_s=30 * 86_400.0)
        await proc.do("step", fails, retry=retry)

    async with world.host(process) as host:
        handles = [await host.spawn(process, f"p{n}") for n in range(500)]
        await asyncio.sleep(1)
        for handle in handles:
            await getattr(handle, how)()
        await asyncio.sleep(1)
        assert host._session is not None
        assert len(host._session._timers._heap) <= 2 * GIVEN_UP_MIN + 2
