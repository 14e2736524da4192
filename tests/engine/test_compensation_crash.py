"""Compensation that is interrupted: crashes, other hosts, drains, and code that has changed."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from durabletask import Process, ProcessHost, RetryPolicy, Status, StepChange
from durabletask.errors import ProcessFailedError, ProcessQuarantinedError
from durabletask.storage import Kind
from durabletask.testing.crash import crash_everywhere
from tests.crash.on_disk import OnDisk
from tests.engine.test_compensation import DECIDED, Books, retry_compensation, run_to_end, undos
from tests.engine.world import World, settle, virtual

Fn = Callable[[Process], Coroutine[Any, Any, Any]]


class DeclinedError(Exception):
    """A refusal that the host knows by its class."""


def trip(books: Books, undo: Any = None) -> Fn:
    """Return a process of two steps with undo and one that fails; `undo` takes ten seconds."""

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=undo or books.slowly_cancel)
        await proc.do("flight", books.book, "flight", undo=undo or books.slowly_cancel)
        await proc.do("pay", books.fail)

    return process


async def ends_failed(host: ProcessHost, match: str = "no") -> None:
    """Wait until process "p" has failed."""
    with pytest.raises(ProcessFailedError, match=match):
        await host.get("p").result()


async def open_keys(host: ProcessHost) -> tuple[str, ...]:
    """Return the steps of process "p" that are not undone."""
    info = await host.get("p").info()
    assert info.compensation is not None
    return info.compensation.open


# --- every point ----------------------------------------------------------------------------


async def straight(proc: Process) -> None:
    """Three steps with undo, then a failure."""
    books = Books()
    for name in ("hotel", "flight", "car"):
        await proc.do(name, books.book, name, undo=books.cancel)
    await proc.do("pay", books.fail)


async def tried_again(proc: Process) -> None:
    """An undo that fails at its first attempts and one that fails for good."""
    policy = RetryPolicy(attempts_max=3, delay_s=5.0)

    async def never(receipt: str) -> None:
        raise ConnectionError("no answer")

    await proc.do("hotel", Books().book, "hotel", undo=never, retry=policy)
    await proc.do("flight", Books().book, "flight", undo=Books().cancel, retry=policy)
    raise DeclinedError("declined", 7)


async def side_by_side(proc: Process) -> None:
    """Steps side by side, one of which fails while another one is in its body, and a wait."""
    books = Books()
    await proc.do("hotel", books.book, "hotel", undo=books.cancel)
    await asyncio.gather(
        proc.do("slow", books.book, "slow", 2.0, undo=books.cancel),
        proc.event("never"),
        proc.do("quick", books.book, "quick", undo=books.cancel),
        proc.do("pay", books.fail),
    )


async def in_a_group(proc: Process) -> None:
    """A task group that cancels a step with undo, and undoes by hand what it can."""
    books = Books()
    receipt = await proc.do("hotel", books.book, "hotel", undo=books.cancel)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(proc.do("slow", books.book, "slow", 2.0, undo=books.cancel))
            group.create_task(proc.do("pay", books.fail))
    finally:
        await proc.do("by hand", books.cancel, receipt)


async def caught(proc: Process) -> str:
    """The failure is caught: nothing may be undone."""
    books = Books()
    await proc.do("hotel", books.book_in_thread, "hotel", undo=books.cancel_in_thread)
    try:
        await proc.do("pay", books.fail)
    except Exception:
        await proc.do("other", books.book, "other", undo=books.cancel)
    return "done"


SCENARIOS: list[Fn] = [straight, tried_again, side_by_side, in_a_group, caught]


def host_of(*args: Any, **options: Any) -> ProcessHost:
    """Make a host that knows the class of the refusal."""
    return ProcessHost(*args, errors=[DeclinedError], **options)


@pytest.mark.parametrize("fn", SCENARIOS)
def test_death_at_every_call(fn: Fn) -> None:
    """Rule 8, F001-F003: dead before and after each storage call, then resumed by another host."""
    report = crash_everywhere(fn, host=host_of)
    report.check()
    assert report.deaths >= 10


@pytest.mark.parametrize("fn", SCENARIOS)
def test_death_on_disk(fn: Fn) -> None:
    """Rule 8, F001-F003: the same over a folder, whose lock and files go with the program."""
    report = crash_everywhere(fn, host=host_of, survivor=OnDisk)
    report.check()
    assert report.deaths >= 10


@pytest.mark.parametrize("fn", [straight, side_by_side])
def test_death_at_every_await(fn: Fn) -> None:
    """Rule 8, F001-F003: killed before each callback of the loop."""
    report = crash_everywhere(fn, host=host_of, callbacks=True)
    report.check()
    assert report.deaths >= 20


@pytest.mark.parametrize("fn", [straight, pytest.param(tried_again, marks=pytest.mark.soak)])
def test_death_at_every_pair_of_calls(fn: Fn) -> None:
    """Rule 8, F004: dead again at each call of the life that goes on undoing."""
    report = crash_everywhere(fn, host=host_of, pairs=True)
    report.check()
    assert report.deaths >= 100


# --- another host ---------------------------------------------------------------------------


@virtual
async def test_another_host_goes_on(world: World) -> None:
    """Rule 8: what is undone is not undone again, and the function begins nothing new."""
    books = Books()
    await world.begin_and_die(trip(books), after_s=15.0)
    assert undos(world) == [DECIDED, ("undo", "flight", "value")]
    assert world.row("p").status is Status.COMPENSATING
    async with world.host(trip(books)) as host:
        await ends_failed(host)
        # The body in which the first host died went on, as an effect on its way does.
        assert books.undone == ["receipt flight", "receipt hotel", "receipt hotel"]
        assert books.done == ["hotel", "flight"]


@virtual
async def test_drained_while_undoing(world: World) -> None:
    """Rule 5: an undo in its body is let finish and recorded; the next one is another host's."""
    books = Books()
    process = trip(books)
    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(5)
    await first.stop()
    assert undos(world) == [DECIDED, ("undo", "flight", "value")]
    assert world.row("p").status is Status.COMPENSATING
    assert world.row("p").owner is None
    async with world.host(process) as host:
        await ends_failed(host)
        assert books.undone == ["receipt flight", "receipt hotel"]


@virtual
async def test_drained_while_steps_are_awaited(world: World) -> None:
    """Rules 5 and 8: drained before the decision, nothing is decided; another host fails anew."""
    books = Books()

    async def process(proc: Process) -> None:
        slow = proc.do("slow", books.book, "slow", 5.0, undo=books.cancel)
        await asyncio.gather(slow, proc.do("pay", books.fail))

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    await first.stop()
    assert undos(world) == []
    assert ("do", "slow", "value") in world.keys("p")
    async with world.host(process) as host:
        await ends_failed(host)
        assert (books.done, books.undone) == (["slow"], ["receipt slow"])


@virtual
async def test_interrupted_while_an_undo_waits_for_its_next_attempt(world: World) -> None:
    """Rules 5 and 11: attempts of an undo are counted, and its pause kept, across hosts."""
    books = Books()
    books.failures["receipt hotel"] = 2

    async def process(proc: Process) -> None:
        policy = RetryPolicy(attempts_max=3, delay_s=100.0, factor=1.0, delay_max_s=100.0)
        await proc.do("hotel", books.book, "hotel", undo=books.cancel, retry=policy)
        raise ValueError("no")

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(50)
    (wait,) = (await first.get("p").info()).waits
    assert (wait.kind, wait.key) == ("retry", "hotel")
    await first.stop()
    async with world.host(process) as host:
        await ends_failed(host)
        assert 200 <= world.clock.monotonic_s() < 220
        assert books.undone == ["receipt hotel"] * 3


@virtual
async def test_a_storage_outage_only_holds_it_up(world: World) -> None:
    """Rule 5: no undo is repeated and none is lost while the storage is away."""
    books = Books()
    process = trip(books)
    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(5)
        world.wires[host].down("commit")
        await asyncio.sleep(15)
        world.wires[host].up()
        await ends_failed(host)
        assert books.undone == ["receipt flight", "receipt hotel"]


@virtual
async def test_observers_hear_of_undos(world: World) -> None:
    """An attempt of an undo is told as a step of kind "undo"."""
    books = Books()
    books.failures["receipt hotel"] = 1
    told: list[tuple[str, str, int, str]] = []

    class Watcher:
        def on_process(self, change: object) -> None:
            return

        def on_step(self, change: StepChange) -> None:
            if change.kind is Kind.UNDO:
                told.append((change.kind, change.key, change.attempt, change.phase))

    process = trip(books, books.cancel)
    async with world.host(process, observers=[Watcher()]) as host:
        await run_to_end(host, process)
        assert told == [
            ("undo", "flight", 1, "started"),
            ("undo", "flight", 1, "succeeded"),
            ("undo", "hotel", 1, "started"),
            ("undo", "hotel", 1, "failed"),
            ("undo", "hotel", 2, "started"),
            ("undo", "hotel", 2, "succeeded"),
        ]


# --- the function runs once more, to collect --------------------------------------------------


@virtual
async def test_no_code_is_needed_for_what_is_undone(world: World) -> None:
    """Rule 8: where every undo has its outcome the function is not even called."""
    books = Books()
    calls: list[int] = []
    inner = trip(books)

    async def process(proc: Process) -> None:
        calls.append(1)
        await inner(proc)

    first = world.host(process)
    wire = world.wires[first]

    async def die_before_the_end(call: str) -> None:
        if call == "commit" and len(undos(world)) == 3:
            world.kill(first)
            await asyncio.get_running_loop().create_future()

    wire.before = die_before_the_end
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(60)
    assert world.row("p").status is Status.COMPENSATING
    async with world.host(process) as host:
        await ends_failed(host)
        assert calls == [1]
        assert books.undone == ["receipt flight", "receipt hotel"]


@virtual
async def test_an_undo_that_is_gone_stays_open(world: World) -> None:
    """Rule 8: without undo= in the new code the step stays open, is seen, and a retry does it."""
    books = Books()

    async def old(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        await proc.do("flight", books.book, "flight", undo=books.slowly_cancel)
        raise ValueError("no")

    async def new(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel")
        await proc.do("flight", books.book, "flight", undo=books.slowly_cancel)
        raise ValueError("no")

    old.__name__ = new.__name__ = "process"
    await world.begin_and_die(old, after_s=5)
    async with world.host(new) as host:
        await ends_failed(host)
        assert await open_keys(host) == ("hotel",)
        assert books.undone == ["receipt flight", "receipt flight"]
        assert world.clock.monotonic_s() < 40
    async with world.host(old) as host:
        await retry_compensation(world)
        await ends_failed(host)
        assert await open_keys(host) == ()
        assert books.undone[2:] == ["receipt hotel"]


@virtual
async def test_a_new_call_never_begins(world: World) -> None:
    """Rule 8: new code in front of a step is held; what lies behind it stays open."""
    books = Books()

    async def new(proc: Process) -> None:
        await proc.do("flight", books.book, "flight", undo=books.cancel)
        await proc.do("something new", books.book, "something new")
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)

    old = trip(books)
    old.__name__ = new.__name__ = "process"
    await world.begin_and_die(old, after_s=5)
    async with world.host(new) as host:
        await ends_failed(host)
        assert await open_keys(host) == ("hotel",)
        assert books.done == ["hotel", "flight"]
        assert "receipt flight" in books.undone
        assert not [key for key in world.keys("p") if key[1] == "something new"]
        # The function itself was held: nothing is gained by waiting for it for long.
        assert world.clock.monotonic_s() < 40


@virtual
async def test_a_new_call_beside_does_not_hide_undos(world: World) -> None:
    """Rule 8: a sibling that waits for what never came is held, and the others are collected."""
    books = Books()

    async def process(proc: Process) -> None:
        try:
            await asyncio.gather(proc.event("never"), proc.do("pay", books.fail))
        except Exception:
            await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
            raise

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        await ends_failed(host)
        assert await open_keys(host) == ()


@virtual
async def test_a_function_that_waits_for_something_else_is_given_up(world: World) -> None:
    """Rule 8: a foreign await that never ends costs a minute, and the rest stays open."""
    books = Books()
    runs: list[float] = []
    left: list[float] = []

    async def process(proc: Process) -> None:
        runs.append(world.clock.monotonic_s())
        await proc.do("flight", books.book, "flight", undo=books.slowly_cancel)
        if len(runs) > 1:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                left.append(world.clock.monotonic_s())
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        raise ValueError("no")

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        await ends_failed(host)
        assert left == [runs[1] + 60]
        assert await open_keys(host) == ("hotel",)
        # The grace, and then the undo that is known.
        assert 70 <= world.clock.monotonic_s() - runs[1] < 80


@virtual
async def test_a_function_that_is_slow_is_given_time(world: World) -> None:
    """Rule 8: the minute begins anew with each call that is recalled."""
    books = Books()
    runs: list[int] = []

    async def process(proc: Process) -> None:
        runs.append(1)
        for name in ("car", "flight", "hotel"):
            if len(runs) > 1:
                await asyncio.sleep(40)
            await proc.do(name, books.book, name, undo=books.slowly_cancel)
        raise ValueError("no")

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        await ends_failed(host)
        assert await open_keys(host) == ()


@virtual
async def test_a_function_that_does_not_let_go_is_left_behind(world: World) -> None:
    """Rule 5: whoever swallows the interrupt can do nothing with it, and holds nothing up."""
    books = Books()
    runs: list[int] = []
    refused: list[str] = []

    async def process(proc: Process) -> None:
        runs.append(1)
        await proc.do("flight", books.book, "flight", undo=books.slowly_cancel)
        while len(runs) > 1 and len(refused) < 50:
            try:
                await asyncio.sleep(1)
                await proc.do("more", books.book, "more")
            except asyncio.CancelledError as error:
                refused.append(type(error).__name__)
        raise ValueError("no")

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        await ends_failed(host)
        assert await open_keys(host) == ()
        await asyncio.sleep(100)
        assert "more" not in books.done
        assert "ProcessInterrupted" in refused


@virtual
async def test_a_timeout_is_met_again_while_collecting(world: World) -> None:
    """Rules 6 and 8: a recorded cancellation comes again, however long after the grace."""
    books = Books()

    async def process(proc: Process) -> None:
        try:
            async with asyncio.timeout(300):
                await proc.event("never")
        except TimeoutError:
            await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
            raise

    await world.begin_and_die(process, after_s=305)
    async with world.host(process) as host:
        await ends_failed(host, "TimeoutError")
        assert await open_keys(host) == ()


@virtual
async def test_collecting_changes_nothing(world: World) -> None:
    """Rule 8: variables and progress that the function sets stay while it only collects."""
    books = Books()
    runs: list[int] = []

    async def process(proc: Process) -> None:
        count = await proc.var("count", 0)
        await count.set(count.value + 1)
        runs.append(1)
        if len(runs) > 1:
            await proc.report("again")
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        raise ValueError("no")

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        await ends_failed(host)
        (value,) = [each.value for each in await host.get("p").history() if each.kind == "var"]
        assert value == 1
        assert (await host.get("p").info()).progress is None
        assert await open_keys(host) == ()


@virtual
async def test_a_mistake_in_the_new_code_quarantines(world: World) -> None:
    """Rule 4: a key of another kind sets the process aside; undoing goes on when it is mended."""
    books = Books()

    async def new(proc: Process) -> None:
        await proc.get("flight", 1)

    old = trip(books)
    old.__name__ = new.__name__ = "process"
    await world.begin_and_die(old, after_s=5)
    async with world.host(new) as host:
        with pytest.raises(ProcessQuarantinedError, match="'flight'"):
            await host.get("p").result()
    assert world.row("p").status is Status.QUARANTINED
    async with world.host(old) as host:
        await retry_compensation(world)
        await ends_failed(host)
        assert await open_keys(host) == ()


@virtual
async def test_stopped_while_collecting(world: World) -> None:
    """Rule 5: a host that stops meanwhile leaves everything to the next one."""
    books = Books()
    runs: list[int] = []

    async def process(proc: Process) -> None:
        runs.append(1)
        if len(runs) == 2:
            await asyncio.get_running_loop().create_future()
        await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
        raise ValueError("no")

    await world.begin_and_die(process, after_s=5)
    second = world.host(process)
    await second.start()
    await asyncio.sleep(20)
    assert len(runs) == 2
    await second.stop()
    assert world.row("p").owner is None
    async with world.host(process) as host:
        await ends_failed(host)
        assert await open_keys(host) == ()
        assert len(runs) == 3


def test_the_log_of_the_process_is_silent_while_collecting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`proc.log` says nothing twice, behind the last recalled call neither."""

    @virtual
    async def body(world: World) -> None:
        books = Books()

        async def process(proc: Process) -> None:
            await proc.do("hotel", books.book, "hotel", undo=books.slowly_cancel)
            try:
                await proc.do("pay", books.fail)
            finally:
                proc.log.warning("not paid")

        await world.begin_and_die(process, after_s=5)
        async with world.host(process) as host:
            await ends_failed(host)

    with caplog.at_level(logging.WARNING):
        body()
    assert caplog.messages.count("not paid") == 1


def test_open_undos_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Rule 8: what stays open is said aloud, with process and key."""

    @virtual
    async def body(world: World) -> None:
        books = Books()

        async def new(proc: Process) -> None:
            await proc.do("flight", books.book, "flight", undo=books.cancel)

        old = trip(books)
        old.__name__ = new.__name__ = "process"
        await world.begin_and_die(old, after_s=5)
        async with world.host(new) as host:
            await ends_failed(host)
            await settle()

    with caplog.at_level(logging.ERROR, "durabletask"):
        body()
    assert any("'p'" in line and "'hotel'" in line for line in caplog.messages)
