"""A real program is killed at random times, and nothing is lost or done without need."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.server import Round
from tests.kill.verdict import Facts, gather, judge

ROOT = Path(__file__).parents[2]
KILLS = 200
KILLS_PER_ROUND = 20  # so that a round has some sagas running at most of its kills
TERMS = 30
TORN = "bytes of an unfinished write cut at offset"
HANG_S = 300.0  # nothing here takes so long unless it hangs


def play(folder: Path, kills: int, signal: str, seed: int, per_round: int) -> list[Round]:
    """Let the killer work; return its rounds."""
    command = [sys.executable, "-W", "error", "-m", "tests.kill.server", str(folder)]
    command += ["--kills", str(kills), "--per-round", str(per_round), "--signal", signal]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*command, "--seed", str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    print(f"seed {seed}\n{done.stdout}{done.stderr}")
    assert done.returncode == 0
    # A kill in the middle of a write leaves a torn tail, which the next start cuts and tells of.
    told = [line for line in done.stderr.splitlines() if TORN not in line]
    assert told == []
    return [Round(**json.loads(line)) for line in done.stdout.splitlines()]


async def check_rounds(folder: Path, rounds: list[Round]) -> list[Facts]:
    """Judge every round by its ledger and its folder."""
    found = []
    for number, played in enumerate(rounds, 1):
        place = folder / f"round-{number}"
        facts = await gather(place)
        assert list(judge(place, facts, played.kills)) == []
        found.append(facts)
    return found


def draw_seed(name: str) -> int:
    """Return the seed that the environment asks for, or any."""
    return int(os.environ.get(name, random.randrange(2**32)))


async def test_killed_two_hundred_times(tmp_path: Path) -> None:
    """G1-G4 G8 G12 S3.03 S3.05 S4.10 F001-F004 F006 F033: SIGKILL at any time, 200 times."""
    rounds = play(tmp_path, KILLS, "SIGKILL", draw_seed("KILL_SEED"), KILLS_PER_ROUND)
    assert sum(played.kills for played in rounds) == KILLS
    facts = await check_rounds(tmp_path, rounds)
    # A harness that never hits the gap between an effect and its record proves nothing.
    repeats = sum(each.repeats for each in facts)
    print(f"{repeats} repeats, {sum(each.recorded.total() for each in facts)} records")
    assert repeats > 0


async def test_asked_to_stop_at_any_time(tmp_path: Path) -> None:
    """G4 F011 S4.09 S4.13 S1.14: SIGTERM drains: exit 0, nothing repeated, nothing refunded."""
    rounds = play(tmp_path, TERMS, "SIGTERM", draw_seed("TERM_SEED"), 6)
    assert all(code == 0 for played in rounds for code in played.codes)
    facts = await check_rounds(tmp_path, rounds)
    assert sum(each.repeats for each in facts) == 0
    assert sum(played.kills for played in rounds) == TERMS


@pytest.mark.soak
async def test_killed_for_long(tmp_path: Path) -> None:
    """F002 F004 F017: as above with `KILLS` kills (2,000) of `KILL_SEED`."""
    kills = int(os.environ.get("KILLS", "2000"))
    seed = draw_seed("KILL_SEED")
    facts = []
    for batch in range(0, kills, KILLS):
        folder = tmp_path / str(batch)
        folder.mkdir()
        rounds = play(folder, min(KILLS, kills - batch), "SIGKILL", seed + batch, KILLS_PER_ROUND)
        facts += await check_rounds(folder, rounds)
    assert 0 < sum(each.repeats for each in facts) <= kills * 100
