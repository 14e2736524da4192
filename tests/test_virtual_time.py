"""Virtual time: years pass at once, work in threads is waited for, and a deadlock is an error."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from durabletask import Process
from durabletask.testing import VirtualClock, VirtualTimeLoop, check_histories, run_virtual

DAY_S = 86_400


def test_years_of_sleep_pass_at_once() -> None:
    """Ten thousand waits of a day end in order, at the virtual instant that they were due."""

    async def main(clock: VirtualClock) -> datetime:
        for _ in range(10_000):
            await asyncio.sleep(DAY_S)
        return clock.now()

    assert run_virtual(main) == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=10_000)


def test_one_long_timer_is_exact_to_the_microsecond() -> None:
    """A timer of decades is neither early nor late by a microsecond (C40)."""

    async def main(clock: VirtualClock) -> None:
        due = clock.now() + timedelta(days=20_000, microseconds=1)
        await asyncio.sleep((due - clock.now()).total_seconds())
        assert clock.now() == due
        assert asyncio.get_running_loop().time() == clock.monotonic_s()

    run_virtual(main)


def test_timers_fire_in_order_of_their_due_time() -> None:
    """Sleepers wake in the order of their due times, whatever order they began in."""

    async def main(clock: VirtualClock) -> list[tuple[int, float]]:
        woken: list[tuple[int, float]] = []

        async def sleeper(seconds: int) -> None:
            await asyncio.sleep(seconds)
            woken.append((seconds, clock.monotonic_s()))

        await asyncio.gather(*(sleeper(seconds) for seconds in (5, 3_000_000, 1, 90_000)))
        return woken

    assert run_virtual(main) == [(1, 1.0), (5, 5.0), (90_000, 90_000.0), (3_000_000, 3_000_000.0)]


def test_time_stands_still_while_a_thread_works() -> None:
    """No timer fires and the clock stands while a call in an executor is outstanding."""

    async def main(clock: VirtualClock) -> None:
        loop = asyncio.get_running_loop()
        go, started = threading.Event(), threading.Event()
        order: list[str] = []

        def work() -> float:
            started.set()
            go.wait()
            order.append("thread")
            return clock.monotonic_s()

        timer = loop.call_later(1, order.append, "timer")
        pending = loop.run_in_executor(None, work)
        started.wait()
        threading.Timer(0.01, go.set).start()
        assert await pending == 0.0
        assert order == ["thread"]
        assert not timer.cancelled()
        await asyncio.sleep(1)
        assert order == ["thread", "timer"]

    run_virtual(main)


def test_a_cancelled_call_still_counts_until_its_thread_ends() -> None:
    """Cancelling the answer does not let time jump over a thread that is still at work."""

    async def main(clock: VirtualClock) -> None:
        go, started = threading.Event(), threading.Event()
        seen: list[float] = []

        def work() -> None:
            started.set()
            go.wait()
            seen.append(clock.monotonic_s())

        with ThreadPoolExecutor(1) as pool:
            pending = asyncio.get_running_loop().run_in_executor(pool, work)
            started.wait()
            pending.cancel()
            threading.Timer(0.01, go.set).start()
            await asyncio.sleep(60)
        assert seen == [0.0]

    run_virtual(main)


def test_work_in_threads_is_waited_for_without_spinning() -> None:
    """While a thread works and a timer is set the loop sleeps: it asks the selector a few times."""
    asked = 0

    async def main(clock: VirtualClock) -> None:
        del clock
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        selector = loop._selector  # type: ignore[attr-defined]
        ask = selector.select

        def counted(timeout: float | None) -> object:
            nonlocal asked
            asked += 1
            return ask(timeout)

        selector.select = counted
        go = threading.Event()
        threading.Timer(0.05, go.set).start()
        loop.call_later(1, int)
        await loop.run_in_executor(None, go.wait)

    run_virtual(main)
    assert 0 < asked < 20


def test_many_threads_and_timers_mix() -> None:
    """Threads between sleeps do not change the clock: ten waits of an hour are ten hours."""

    async def main(clock: VirtualClock) -> float:
        async def one() -> None:
            for _ in range(10):
                await asyncio.to_thread(int)
                await asyncio.sleep(3_600)

        await asyncio.gather(*(one() for _ in range(10)))
        return clock.monotonic_s()

    assert run_virtual(main) == 36_000.0


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    """Nothing ready, no timer, no thread: RuntimeError with the names of the tasks, not a hang."""

    async def main(clock: VirtualClock) -> None:
        del clock
        waiting = asyncio.create_task(asyncio.Event().wait(), name="the-waiter")
        await waiting

    with pytest.raises(RuntimeError, match=r"deadlock.*the-waiter \(Event\.wait\)"):
        run_virtual(main)


def test_leftovers_are_cancelled_and_the_loop_is_closed() -> None:
    """As asyncio.run: a task left behind is cancelled and its finally runs; no loop stays open."""
    ended: list[str] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def left() -> None:
        try:
            await asyncio.sleep(DAY_S)
        finally:
            ended.append("left")

    async def main(clock: VirtualClock) -> None:
        loops.append(asyncio.get_running_loop())
        loops[0].create_task(left())  # left behind on purpose
        await asyncio.sleep(0)
        assert clock.monotonic_s() == 0

    run_virtual(main)
    gc.collect()
    assert ended == ["left"]
    assert loops[0].is_closed()


def test_without_work_for_threads_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls no thread ends without one; `crash_everywhere` ends thousands."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)

    async def main(clock: VirtualClock) -> None:
        await asyncio.sleep(DAY_S)

    run_virtual(main)
    assert started == []


def test_a_busy_loop_hears_other_threads() -> None:
    """What a thread hands to a loop that is never idle is done, in no virtual time."""

    async def main(clock: VirtualClock) -> None:
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        teller = threading.Thread(target=lambda: loop.call_soon_threadsafe(told.set))
        teller.start()
        while not told.is_set():
            await asyncio.sleep(0)
        teller.join()
        assert clock.monotonic_s() == 0

    run_virtual(main)


def test_the_answer_and_the_error_of_main_come_out() -> None:
    """What main returns is returned, what it raises is raised, and the start is the one given."""

    async def fails(clock: VirtualClock) -> None:
        raise LookupError(clock.now().isoformat())

    async def answers(clock: VirtualClock) -> int:
        return clock.now().year

    start = datetime(1999, 12, 31, tzinfo=UTC)
    assert run_virtual(answers, start=start) == 1999
    with pytest.raises(LookupError, match="1999-12-31T00:00:00"):
        run_virtual(fails, start=start)


async def test_inside_another_loop_it_says_what_to_do() -> None:
    """An `async def test_…` that calls what has a loop of its own is told so at once."""

    async def order(proc: Process) -> None: ...

    async def main(clock: VirtualClock) -> None: ...

    for call in (lambda: run_virtual(main), lambda: check_histories(order, [])):
        with pytest.raises(RuntimeError, match=r"hint: call it .* from a plain function"):
            call()


def test_a_clock_alone_moves_only_by_hand() -> None:
    """`advance` moves both readings, `shift` the wall time only; time never passes back."""
    clock = VirtualClock()
    begin = clock.now()
    clock.advance(timedelta(hours=1))
    clock.advance(0.5)
    assert clock.now() - begin == timedelta(hours=1, seconds=0.5)
    assert clock.monotonic_s() == 3_600.5
    clock.shift(-timedelta(days=1))
    assert clock.now() - begin == timedelta(hours=-23, seconds=0.5)
    assert clock.monotonic_s() == 3_600.5
    with pytest.raises(ValueError, match="shift"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="aware"):
        VirtualClock(datetime(2026, 1, 1))
