"""Every scenario dies at every point, is resumed, and comes to the same end.

The judge (tests/crash/world.py) holds each run against the promises, and the
search compares what came of it with an undisturbed run.
"""

import gc
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest

from durabletask import Process, ProcessHost, current_step
from durabletask.errors import EventTimeoutError
from durabletask.testing.crash import CrashPoint, CrashReport, Fate, crash_everywhere
from tests.crash.on_disk import OnDisk
from tests.crash.scenarios import SCENARIOS, Scenario, alone, kill_between, search
from tests.crash.world import World

Make = Callable[[World], Scenario]
LATENCY_S = 0.01

every_scenario = pytest.mark.parametrize("make", SCENARIOS.values(), ids=SCENARIOS)


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


def active(report: CrashReport, deaths_min: int) -> None:
    """Check that nothing differed, and that the harness did anything at all."""
    report.check()
    assert report.deaths >= deaths_min, report
    assert any(value is not ... for value in report.expected.values())


@every_scenario
@pytest.mark.parametrize("latency_s", [0.0, LATENCY_S], ids=["at once", "slow storage"])
def test_death_at_every_call(make: Make, latency_s: float) -> None:
    """G1-G4 G6-G10 F001-F003 F005 F006: dead before and after each storage call, then resumed."""
    active(search(make, latency_s=latency_s).run(), deaths_min=14)


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.soak)])
@every_scenario
def test_death_at_every_await(make: Make, every: int) -> None:
    """F001-F003: killed before every other callback, with calls on their way; in the soak each."""
    first = list(SCENARIOS).index(make.__name__) % every
    active(kill_between(search(make, latency_s=LATENCY_S), first, every), deaths_min=30)


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "compensated",
        "two",
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in ("gathered", "cursor", "token", "in_thread")
        ),
    ],
)
def test_death_at_every_pair_of_calls(name: str) -> None:
    """F004: dead again at each call of the resumed life, which may still be recovering."""
    active(search(SCENARIOS[name]).run(pairs=True), deaths_min=300)


@pytest.mark.parametrize(
    "name",
    [
        "event_later",
        "grouped",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("step_timed_out", "retried")),
    ],
)
def test_death_at_pairs_of_calls_after(name: str) -> None:
    """F003 F004: dead twice, each time with an answer on its way back."""
    active(search(SCENARIOS[name]).run((Fate.DIE_AFTER,), pairs=True), deaths_min=150)


@every_scenario
def test_death_on_disk(make: Make) -> None:
    """S4.10 S3.02 F001-F003: the same over a folder, whose lock and files go with the program."""
    active(search(make, survivor=OnDisk).run((Fate.DIE_AFTER,)), deaths_min=7)


def test_long_downtime() -> None:
    """G7 S3.06: a delay and a retry that fall due while nothing runs go on at once, none early."""
    for name in ("delayed", "retried", "event_never"):
        active(search(SCENARIOS[name], downtime_s=3600.0).run(), deaths_min=30)


@pytest.mark.parametrize("at_s", [29.99, 30.0, 30.01])
def test_timeout_against_event(at_s: float) -> None:
    """G8 C35: an event at its deadline is consumed or stays in the mailbox; the branch stays."""
    world = World()

    async def order(proc: Process) -> str:
        try:
            await world.see(proc, "paid", proc.event("paid", str, timeout=30))
        except EventTimeoutError:
            await proc.do("late", world.effect, 1)
            return await world.see(proc, "at last", proc.event("paid", str, key="at last"))
        return await proc.do("paid in time", world.effect, "paid")

    def make(of: World) -> Scenario:
        nonlocal world
        world = of
        return alone(order, events=[("paid", "a", at_s)])

    trial = search(make, latency_s=LATENCY_S, downtime_s=0.0)
    undisturbed = trial.undisturbed()
    report = trial.report
    branches = set()
    for number in range(undisturbed.lives[0].steps):
        story = trial.try_points((CrashPoint(number),))
        # Either branch is right, as long as the history tells one story.
        (snapshot,) = story.snapshots
        keys = {held.key for held in snapshot.checkpoints if held.kind == "do"}
        assert story.problem is None
        assert world.judge(story) == []
        assert keys in ({"late"}, {"paid in time"})
        assert [event.consumed for event in snapshot.events] == [True]
        branches |= keys
    assert branches
    assert report.deaths > 30


# --- the tool itself --------------------------------------------------------------------------


async def _double(number: int) -> int:
    return 2 * number


async def _good(proc: Process, number: int) -> int:
    token = await proc.get("token", uuid4)
    doubled = await proc.do("double", _double, number)
    approved = await proc.event("approved", bool)
    await proc.delay("cool-down", timedelta(days=30))
    assert token
    return doubled if approved else 0


def test_a_good_process_passes() -> None:
    """`crash_everywhere` passes a process that keeps its state in keys, months and chance too."""
    report = crash_everywhere(_good, 21, events=[("approved", True)], callbacks=True)
    report.check()
    assert report.expected["crashing", "came to"] == b"42"
    assert report.expected["crashing", "get 'token' holds"] is ...
    assert report.deaths > 100


def test_state_outside_of_keys_is_found() -> None:
    """`crash_everywhere` finds a process that counts in a variable what only a step may count."""
    counted = 0

    async def counting(proc: Process) -> int:
        nonlocal counted
        counted += 1
        await proc.do("double", _double, counted)
        return counted

    def reset() -> None:
        nonlocal counted
        counted = 0

    report = crash_everywhere(counting, reset=reset)
    assert report.differences
    with pytest.raises(AssertionError, match="crashing came to: b'2' instead of b'1'"):
        report.check()


def test_an_effect_that_cannot_bear_a_repeat_is_found() -> None:
    """`observe` shows an outside world in which a repeated step has been done twice."""
    paid: list[str] = []

    async def pay() -> None:
        paid.append("paid")

    async def pay_once() -> None:
        if (key := current_step().idempotency_key) not in paid:
            paid.append(key)

    async def naive(proc: Process) -> None:
        await proc.do("pay", pay)

    async def careful(proc: Process) -> None:
        await proc.do("pay", pay_once)

    run = partial(crash_everywhere, reset=paid.clear, observe=lambda: list(paid))
    assert "['paid', 'paid'] instead of ['paid']" in str(run(naive))
    run(careful).check()


def test_cleaning_up_in_the_dead_is_not_run() -> None:
    """A death runs no `finally`, neither at once nor when the garbage is collected, nor later."""
    ends: list[str] = []

    async def tidy(proc: Process) -> None:
        try:
            await proc.do("double", _double, 1)
            await proc.event("go")
        finally:
            ends.append("cleaned up")

    report = crash_everywhere(
        tidy, events=[("go", None)], reset=ends.clear, observe=lambda: len(ends)
    )
    gc.collect()
    # A life that dies after the function has ended and before that is recorded ends it twice.
    late = [each for each in report.differences if "observed: 2 instead of 1" in str(each)]
    assert len(late) == len(report.differences) <= 2
    assert report.deaths > 15


def test_a_process_that_never_ends_is_found() -> None:
    """A run in which everybody waits in vain is a difference, not a hanging test."""

    async def waiting(proc: Process) -> None:
        await proc.event("never raised")

    with pytest.raises(ValueError, match=r"undisturbed: .*in vain"):
        crash_everywhere(waiting)


def test_what_the_host_must_know_can_be_told() -> None:
    """Options of the host go through: an error class that comes back as itself after any crash."""

    class RefusedError(Exception):
        pass

    async def refuse() -> None:
        raise RefusedError("frozen")

    async def asking(proc: Process) -> str:
        try:
            await proc.do("ask", refuse)
        except RefusedError as error:
            return str(error)
        return "granted"

    report = crash_everywhere(asking, host=partial(ProcessHost, errors=[RefusedError]), pairs=True)
    report.check()
    assert report.expected["crashing", "came to"] == b'"frozen"'
