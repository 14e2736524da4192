"""Timers: never early, in order of instants, cheap to give up."""

import asyncio
from datetime import datetime, timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from durabletask._timers import Timers
from durabletask.testing import VirtualClock, run_virtual


def timers_on(clock: VirtualClock, recheck_s: float = float("inf")) -> Timers:
    return Timers(asyncio.get_running_loop(), clock.now, recheck_s)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1000, 10**13), min_size=1, max_size=20))
def test_never_early_and_in_order(micros: list[int]) -> None:
    """G7, F087: each fires at or after its due time, in order of due times, none is forgotten."""
    fired: list[datetime] = []

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock)
        begun = clock.now()

        async def one(us: int) -> None:
            due_at = begun + timedelta(microseconds=us)
            await timers.at(due_at)
            assert clock.now() >= due_at
            assert clock.now() - max(due_at, begun) <= timedelta(milliseconds=1)
            fired.append(due_at)

        await asyncio.gather(*(one(us) for us in micros))

    run_virtual(main)
    assert fired == sorted(fired)
    assert len(fired) == len(micros)


def test_a_clock_behind_the_loop_is_waited_for() -> None:
    """G7, F083: where the storage's time goes slower than the loop's, nothing is early."""

    async def main(clock: VirtualClock) -> None:
        begun = clock.now()

        def slow() -> datetime:
            return begun + (clock.now() - begun) / 2

        timers = Timers(asyncio.get_running_loop(), slow, 30.0)
        await timers.at(begun + timedelta(seconds=100))
        assert slow() >= begun + timedelta(seconds=100)
        assert clock.monotonic_s() < 202

    run_virtual(main)


def test_a_jump_of_the_wall_clock_is_noticed_within_the_recheck() -> None:
    """F086: a laptop that slept: what fell due meanwhile fires at most recheck_s later."""

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock, recheck_s=30.0)
        waiting = timers.at(clock.now() + timedelta(hours=5))
        await asyncio.sleep(10)
        clock.shift(timedelta(hours=5))
        before = clock.monotonic_s()
        await waiting
        assert clock.monotonic_s() - before <= 30.1

    run_virtual(main)


def test_an_earlier_timer_goes_before_a_later_one_set_before() -> None:
    """An earlier due time that comes later re-arms the one loop timer."""

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock)
        late = timers.at(clock.now() + timedelta(days=300))
        early = timers.at(clock.now() + timedelta(seconds=1))
        await early
        assert clock.monotonic_s() < 1.1
        assert not late.done()
        await late

    run_virtual(main)


def test_a_cancelled_timer_fires_no_more_and_holds_up_nobody() -> None:
    """F089: giving a timer up leaves the others alone, the first of the heap too."""

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock)
        futures = [timers.at(clock.now() + timedelta(seconds=n)) for n in range(1, 100)]
        for future in futures[:98]:
            future.cancel()
        await futures[98]
        assert 99 <= clock.monotonic_s() < 99.1

    run_virtual(main)


def test_given_up_timers_do_not_pile_up() -> None:
    """F089, F101: 100,000 short waits with long timeouts leave a small heap."""

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock)
        kept = [timers.at(clock.now() + timedelta(days=1, seconds=n)) for n in range(10)]
        for n in range(100_000):
            timers.give_up(timers.at(clock.now() + timedelta(days=2, seconds=n)))
        assert len(timers._heap) < 10_000
        await asyncio.gather(*kept)
        assert clock.monotonic_s() < 86_411

    run_virtual(main)


def test_ten_thousand_at_one_instant() -> None:
    """F089: 10,000 due at once all fire, in the order in which they were set."""
    order: list[int] = []

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock)
        due_at = clock.now() + timedelta(seconds=5)
        futures = [timers.at(due_at) for _ in range(10_000)]
        position = {future: n for n, future in enumerate(futures)}
        for future in futures:
            future.add_done_callback(lambda done: order.append(position[done]))
        await asyncio.gather(*futures)

    run_virtual(main)
    assert order == list(range(10_000))


def test_closed_timers_fire_nothing() -> None:
    """S4.13: after `close` no future is set any more."""

    async def main(clock: VirtualClock) -> None:
        timers = timers_on(clock)
        random = Random(1)
        futures = [timers.at(clock.now() + timedelta(seconds=random.random())) for _ in range(9)]
        timers.close()
        await asyncio.sleep(10)
        assert not any(future.done() for future in futures)

    run_virtual(main)
