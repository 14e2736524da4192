"""Storage faults and interrupts that are no deaths: user code must not see any of them."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from durabletask import Process, ProcessHost
from durabletask.testing import VirtualClock
from durabletask.testing.crash import CrashPoint, Fate, InMemory, Search, StorageCall
from tests.crash.scenarios import ID, SCENARIOS, Scenario, alone, search
from tests.crash.world import World

Make = Callable[[World], Scenario]
every_scenario = pytest.mark.parametrize("make", SCENARIOS.values(), ids=SCENARIOS)
every_fault = pytest.mark.parametrize("fate", [fate for fate in Fate if not fate.deadly])

OUTAGE_CALLS = 45  # of which a host makes one every two seconds in the end

RACING = {"grouped"}
"""What an outage decides: whether a step that takes 15 s ends before its sibling's failure."""


@every_scenario
@every_fault
def test_fault_at_every_call(make: Make, fate: Fate) -> None:
    """F003 F009 C19 C20 C25: each call refused once, or its answer lost; nobody notices."""
    search(make, latency_s=0.01).run((fate,)).check()


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - RACING))
@every_fault
def test_outage_from_every_call_on(name: str, fate: Fate) -> None:
    """F009: the storage is away for a minute or more; calls wait, and nothing is refunded."""
    search(SCENARIOS[name]).run((fate,), count=OUTAGE_CALLS).check()


@every_fault
@pytest.mark.parametrize("name", ["linear", "cleaned_up", "retried", "stream", "two"])
def test_outage_after_a_death(name: str, fate: Fate) -> None:
    """F004 F009: the host that resumes meets an outage at each of its first calls."""
    trial = search(SCENARIOS[name])
    calls = len(trial.undisturbed().lives[0].calls)
    for died_at in (calls // 3, calls // 2):
        for number in range(1, 12):
            points = CrashPoint(died_at, Fate.DIE_AFTER), CrashPoint(number, fate, OUTAGE_CALLS)
            trial.try_points(points)
    trial.report.check()


class Lingering(InMemory):
    """A storage that cannot see a host die: its lease has to run out."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, lease_ttl_s=15.0)

    def crashed(self) -> None:
        """Notice nothing."""


@pytest.mark.parametrize("name", ["linear", "compensated", "gathered", "retried", "two", "token"])
def test_death_until_the_lease_ends(name: str) -> None:
    """G12 F058: a host that nobody sees die is taken over when its lease has ended."""
    report = search(SCENARIOS[name], survivor=Lingering).run()
    report.check()
    assert report.deaths > 10


class Fenced(InMemory):
    """A storage that fences its hosts when it is told to, while they live."""

    latest: "Fenced"

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, lease_ttl_s=15.0)
        Fenced.latest = self


@pytest.mark.parametrize(
    "name", ["linear", "compensated", "gathered", "delayed", "event_later", "cursor", "retried"]
)
def test_lease_lost_after_every_call(name: str) -> None:
    """G4 G5 F009 F016: a host that loses its lease drops what it runs, and resumes; no refund."""
    made: list[World] = []

    def make(world: World) -> Scenario:
        made.append(world)
        return SCENARIOS[name](world)

    fence_at = 0

    def witness(life: int, call: StorageCall, arguments: object, answer: object) -> None:
        world.witness(life, call, arguments, answer)
        if call.number == fence_at:
            # As by another host that has waited for the lease to end.
            Fenced.latest.crashed()
            world.lost_leases += 1

    trial = search(make, survivor=Fenced, latency_s=0.01, witness=witness)
    (world,) = made
    calls = trial.undisturbed().lives[0].calls
    # A long wait is hundreds of looks and renewals; a few of those are as good as all.
    idle = [call.number for call in calls if call.method in ("claim", "renew")]
    for fence_at in {call.number for call in calls} - set(idle[8:]):  # noqa: B007  (for the witness)
        trial.try_points(())
    trial.report.check()
    assert trial.report.runs > 8


def draining(stop_at_s: Callable[[], float]) -> Make:
    """Return a scenario that is stopped once, and whose process refunds if it does not finish."""

    def make(world: World) -> Scenario:
        async def order(proc: Process) -> str:
            done = False
            try:
                await world.see(proc, "reserve", proc.do("reserve", world.slow, 1))
                await asyncio.gather(
                    proc.do("a", world.effect, 1),
                    proc.do("b", world.pause, 0.02),
                    proc.delay("rest", timedelta(seconds=1)),
                )
                await world.see(proc, "paid", proc.event("paid", str))
                async with asyncio.TaskGroup() as group:
                    group.create_task(proc.do("c", world.effect, 1))
                    group.create_task(proc.do("d", world.pause, 0.02))
                done = True
            except Exception:
                await proc.do("complain", world.effect, 3)
                raise
            finally:
                if not done:
                    await proc.do("refund", world.effect, 2)
            return "done"

        whole = alone(order, events=[("paid", "a", 17.0)])

        async def main(host: ProcessHost) -> None:
            if world.life > 1:
                await whole.main(host)
                return
            working = asyncio.ensure_future(whole.main(host))
            await asyncio.wait([working], timeout=stop_at_s())
            working.cancel()
            # What `async with host` does next is what SIGTERM does: it drains.
            await host.stop()
            world.stopped += 1
            await asyncio.wait([working])

        return Scenario([order], main)

    return make


def drain_everywhere() -> Search:
    """Stop the host at every moment of a process; return what was found."""
    stop_at_s = 60.0
    trial = search(draining(lambda: stop_at_s), latency_s=0.01, restarts=1)
    trial.undisturbed()
    moments = [n / 200 for n in range(20)]  # at the beginning
    moments += [15 + n / 200 for n in range(40)]  # the step ends, and others begin
    moments += [16 + n / 200 for n in range(20)]  # the delay ends
    moments += [17 + n / 200 for n in range(40)]  # the event arrives
    for stop_at_s in moments:  # noqa: B007  (read by the scenario)
        trial.try_points(())
    return trial


def test_drain_at_every_moment() -> None:
    """F011 G4 S4.09 S4.13: a stop at any moment records no refund, runs none, repeats nothing."""
    report = drain_everywhere().report
    report.check()
    assert report.runs > 100
    assert not any("refund" in what for _, what in report.expected)


def test_a_spawn_that_is_given_up_still_runs() -> None:
    """G12: a process whose creation was stored but never answered is run all the same."""
    trial = search(SCENARIOS["linear"])
    create = next(c for c in trial.undisturbed().lives[0].calls if c.method == "create")
    trial.try_points((CrashPoint(create.number, Fate.UNKNOWN_DONE, 60),))
    trial.report.check()


def test_a_storage_may_be_used_for_one_life_after_another() -> None:
    """The wrapper counts calls from 1 in each life, and a life without a point is undisturbed."""
    story = search(SCENARIOS["linear"]).try_points((CrashPoint(4, Fate.DIE_BEFORE),))
    first, second = story.lives
    assert len(first.calls) == 4
    assert first.death is not None
    assert second.death is None
    assert [call.number for call in second.calls] == list(range(1, len(second.calls) + 1))
    assert ID in {snapshot.row.process_id for snapshot in story.snapshots}
