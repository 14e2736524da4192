"""A million disks that a power loss may leave behind, each recovered and judged."""

import os

import pytest

from durabletask.testing.disk import Tally
from tests.filesystem.crash_play import stages
from tests.filesystem.crash_run import Result, run_all
from tests.filesystem.crash_scenarios import SCENARIOS, Scenario

STATES_MIN = 1_000_000


def report(results: list[Result]) -> Tally:
    """Print what each scenario and all of them gave; return the sum."""
    total = Tally()
    for result in results:
        total.add(result.tally)
        print(
            f"{result.name:32}{result.tally.states:>10,} states {result.tally.images:>9,} disks"
            f" {result.cpu_s:>6.1f} s"
        )
    print(
        f"crash states: {total.states:,} at {total.cuts:,} moments, {total.images:,} distinct disks"
        f" recovered, {total.torn:,} torn, {total.lost:,} lost, {total.interrupted:,} with an"
        f" interrupted recovery, {total.served:,} after a killed program, {total.again:,} after a"
        f" finished recovery: {total.wrong} wrong,"
        f" {sum(result.cpu_s for result in results):.0f} s of processor time"
    )
    return total


def judge(total: Tally) -> None:
    """Fail on any broken promise, and on a run that tried too little to mean anything."""
    assert total.wrong == 0, "\n\n".join(total.violations)
    assert total.torn > total.states // 4
    assert total.lost > 500
    assert total.interrupted > 5_000
    assert total.served > 5_000
    assert total.cuts > 500
    first = total.states - total.interrupted - total.served - total.again
    assert first > total.states // 5, "most of it is only what follows recoveries"


def test_a_million_crash_states() -> None:
    """Acknowledged is found, in order, byte for byte, after every crash at every call.

    F004, F007, F020, F021, F022, F023, F029, F030, F031, F036, F037; G1, G14. S4.18: a
    process exists with its input or not at all.
    """
    results = run_all(seed=0, scale=1)
    total = report(results)
    judge(total)
    assert total.states >= STATES_MIN
    for result in results:
        assert result.tally.torn > 0, f"{result.name} tore nothing"


@pytest.mark.soak
def test_fifty_million_crash_states() -> None:
    """The same, fifty times as wide, from another seed (DURABLETASK_SEED)."""
    seed = int(os.environ.get("DURABLETASK_SEED", "1"))
    total = report(run_all(seed=seed, scale=50))
    judge(total)
    assert total.states >= 50 * STATES_MIN


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenarios_are_what_they_say(scenario: Scenario) -> None:
    """Each scenario plays without a refusal on a perfect disk, so its promises mean something."""
    assert len(stages(scenario)) == len(scenario.steps) + 1
