"""Explores scenarios in programs of their own, as many at once as there are cores.

Run as `python -m tests.filesystem.crash_run SEED SCALE NAME` it explores one
scenario and prints its tally as JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from durabletask.testing.disk import Bounds, Tally
from tests.filesystem.crash_play import Subject, explore
from tests.filesystem.crash_scenarios import SCENARIOS, Scenario

SCALES = {
    # In `make test`: every byte of a small write, all subsets of up to eight sectors.
    1: (
        Bounds(),
        Bounds(subsets_max=6, tears_max=3, entries_max=6, joint_max=12, states_max=24),
        130,
    ),
    # In the soak: wide enough that fifty times as many states come out.
    50: (
        Bounds(
            subsets_max=4096, tears_max=8192, entries_max=512, joint_max=32_768, states_max=100_000
        ),
        Bounds(subsets_max=64, tears_max=64, entries_max=64, joint_max=128, states_max=512),
        5,
    ),
}
"""By how many states it gives: the bounds of a cut and of what follows a recovery, and which
share of the images is recovered with a cut at each call."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario gave, and the seconds of processor time that it took."""

    name: str
    tally: Tally
    cpu_s: float


def run_here(scenario: Scenario, seed: int, scale: int) -> Result:
    """Explore one scenario in this program."""
    bounds, aftermath, every = SCALES[scale]
    begun = time.process_time()
    tally = explore(
        scenario, Subject(), seed=seed, bounds=bounds, aftermath=aftermath, interrupt_every=every
    )
    return Result(scenario.name, tally, time.process_time() - begun)


def run_all(seed: int, scale: int, scenarios: Sequence[Scenario] = SCENARIOS) -> list[Result]:
    """Explore scenarios side by side, each in a fresh interpreter."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda scenario: _run_apart(scenario.name, seed, scale), scenarios))


def _run_apart(name: str, seed: int, scale: int) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "tests.filesystem.crash_run", str(seed), str(scale), name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"scenario {name!r}, seed {seed}: {done.stderr}")
    found = json.loads(done.stdout)
    return Result(name, Tally(**found["tally"]), found["cpu_s"])


def main(seed: str, scale: str, name: str) -> None:
    """Explore the scenario of that name and print what came of it."""
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    result = run_here(scenario, int(seed), int(scale))
    print(json.dumps({"tally": asdict(result.tally), "cpu_s": result.cpu_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
