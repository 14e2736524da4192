"""Real hosts on a real Postgres are killed, stopped, asked to end and cut off from it.

Each round is driven by a program of its own (`nemesis`), and judged here by
the history checker: what every program asked and was told, what every step
did to the world, and what the database holds at the end.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durabletask.storage import Snapshot
from durabletask.testing.history import (
    AnyOperation,
    Create,
    Execute,
    Phase,
    check,
    read_histories,
    tally,
)
from tests.chaos.nemesis import HOSTS
from tests.chaos.program import DIFFERENT, RACED

ROOT = Path(__file__).parents[2]
KILLS, RESTARTS, TERMINATIONS, ZOMBIES, DRAINS = 200, 20, 20, 40, 12
HANG_S = 600.0  # no round takes so long unless it hangs


@dataclass
class Played:
    """A round that was played, with what it left.

    Attributes:
        facts: What the driver says that it did.
        expected: The processes that must have ended.
    """

    facts: dict[str, Any]
    history: list[AnyOperation]
    final: list[Snapshot]
    expected: list[str]
    folder: Path

    @property
    def counts(self) -> Counter[str]:
        """How often each thing happened."""
        return tally(self.history)

    def check(self) -> None:
        """Fail on every broken promise, on what did not end in order, and on what is left over."""
        print(self.facts, self.counts, sep="\n")
        assert check(self.history, self.final, ended=self.expected) == []
        assert len(self.final) == len(set(self.expected))
        assert self.facts["reader"] == 0
        assert self.facts.get("client", 0) == 0
        # Whoever was asked to end has ended as asked.
        assert set(self.facts["codes"]) == {0}
        assert self.facts["left"] == 0, "connections"
        self.check_rows()

    def check_rows(self) -> None:
        """Fail where users' rows and ours, written in one transaction, do not go together."""
        # Once each: a transaction is rolled back with its record, and not repeated without.
        assert Counter(self.rows("written")) == Counter(self.expected)
        known = {snapshot.row.process_id for snapshot in self.final}
        known |= {event.event_id for snapshot in self.final for event in snapshot.events}
        assert set(self.rows("ordered")) <= known

    def rows(self, table: str) -> list[str]:
        """Return what a table of the user's holds."""
        found: list[str] = json.loads((self.folder / f"{table}.json").read_text())
        return found


def play(folder: Path, name: str, count: int, *more: str) -> Played:
    """Let the driver play one round."""
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    command = [sys.executable, "-W", "error", "-m", "tests.chaos.nemesis", name, str(folder)]
    done = subprocess.run(
        [*command, "--count", str(count), "--seed", str(seed), *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    log = folder / "log"
    print(f"CHAOS_SEED={seed}\n{done.stderr}")
    print("\n".join(log.read_text().splitlines()[-40:]) if log.exists() else "no log")
    assert done.returncode == 0
    expected = folder / "expected.json"
    return Played(
        json.loads(done.stdout),
        read_histories(folder.glob("*.history")),
        msgspec.json.decode((folder / "final.json").read_bytes(), type=list[Snapshot]),
        json.loads(expected.read_text()) if expected.exists() else [],
        folder,
    )


def executions(played: Played) -> list[Execute]:
    """Return every run of a step's body."""
    return [
        each for each in played.history if isinstance(each, Execute) and each.phase is Phase.INVOKE
    ]


def repeats(played: Played) -> int:
    """Return how many runs of an attempt of a step were not its first."""
    runs = Counter((each.process_id, each.key, each.attempt) for each in executions(played))
    return runs.total() - len(runs)


def refunded(played: Played) -> list[str]:
    """Return the processes that took something back, for which there was never a reason."""
    return [each.process_id for each in executions(played) if each.key == "refund"]


def takeovers(played: Played) -> int:
    """Return how often a process came to another owner, or to the same one again."""
    return sum(snapshot.row.epoch - 1 for snapshot in played.final)


def test_hosts_are_killed(tmp_path: Path) -> None:
    """G1-G6 G8 G12 F001-F004 F016 F058 S1.01 S3.02 S4.10: three hosts, SIGKILL 200 times."""
    check_kills(play(tmp_path, "kills", KILLS))


def check_kills(played: Played) -> None:
    played.check()
    assert refunded(played) == []
    moved, again = takeovers(played), repeats(played)
    print(f"{moved} takeovers, {again} repeats")
    # Kills that take nobody's work and repeat no step have tested nothing.
    assert moved > played.facts["kills"] / 2
    assert again > played.facts["kills"] / 20
    assert played.counts["claim invoke"] > played.counts["claim ok"]


def test_the_harness_sees_a_mistake(tmp_path: Path) -> None:
    """C18: hosts that acknowledge what they have only sent lose it when they are killed."""
    played = play(tmp_path, "kills", KILLS // 20, "--mistake", "acknowledged_first")
    assert "I1" in {each.invariant for each in check(played.history, played.final)}


def test_the_server_crashes(tmp_path: Path) -> None:
    """G1 G12 F050 F056: twenty immediate restarts under load; user code never sees one."""
    check_restarts(play(tmp_path, "restarts", RESTARTS))


def check_restarts(played: Played) -> None:
    played.check()
    assert refunded(played) == []
    unknown = sum(n for name, n in played.counts.items() if " info Storage" in name)
    assert unknown > 0, "no answer was lost: nothing was tested"
    # No host has died, though every session has ended each time. On a machine so busy that one
    # takes longer than the grace to come back it may be fenced, but that is not what happens.
    hosts = {each.host_id for each in played.history if each.host_id and each.phase is Phase.INVOKE}
    assert len(hosts) <= HOSTS + played.facts["restarts"] / 4


def test_sessions_are_ended(tmp_path: Path) -> None:
    """G1 G5 F052 F054 F070: sessions end under living hosts, their witnesses' too."""
    check_terminations(play(tmp_path, "terminations", TERMINATIONS))


def check_terminations(played: Played) -> None:
    played.check()
    assert refunded(played) == []
    # A host without its witness looks dead and may be fenced, which costs a repeated step at most.
    lost = sum(n for name, n in played.counts.items() if " info Storage" in name)
    assert lost > 0, "no answer was lost: nothing was tested"


def test_zombies_are_refused(tmp_path: Path) -> None:
    """G5 F016 F080 S2.14 S3.02: forty hosts wake up after their lease; each is refused, at once."""
    check_zombies(play(tmp_path, "zombies", ZOMBIES))


def check_zombies(played: Played) -> None:
    played.check()
    assert refunded(played) == []
    refused = refused_hosts(played)
    print(f"{len(refused)} hosts were refused; commits: {refused_commits(played)}")
    assert len(refused) >= played.facts["zombies"]
    assert refused_commits(played) > 0


def refused_hosts(played: Played) -> set[str]:
    """Return the identities that were told that their lease is lost."""
    asked = {
        (each.who, each.call): each.host_id for each in played.history if each.phase is Phase.INVOKE
    }
    return {
        asked[each.who, each.call]
        for each in played.history
        if each.why.startswith("LeaseLostError")
    }


def refused_commits(played: Played) -> int:
    """Return how many units came too late."""
    return played.counts["commit fail LeaseLostError"]


def test_hosts_are_asked_to_end(tmp_path: Path) -> None:
    """G4 F011 S1.14 S4.09 S4.13: SIGTERM drains: exit 0, nothing runs twice or is refunded."""
    check_drains(play(tmp_path, "drains", DRAINS))


def check_drains(played: Played) -> None:
    played.check()
    assert refunded(played) == []
    assert repeats(played) == 0
    assert takeovers(played) > 0, "nobody had to be handed over"


def test_two_hosts_spawn_one_id(tmp_path: Path) -> None:
    """G9 F060: 1,000 ids, two hosts at once: one process each, run once; the same or an error."""
    played = play(tmp_path, "race", 0)
    ids = [f"raced/{number}" for number in range(RACED)]
    assert check(played.history, played.final, ended=ids) == []
    assert set(played.facts["codes"]) == {0}
    runs = Counter(each.process_id for each in executions(played))
    assert runs == Counter(ids)
    made = Counter(each.who for each in played.history if isinstance(each, Create) and each.fresh)
    assert made.total() == RACED
    refused = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    differ = [f"raced/{number}" for number in range(0, RACED, DIFFERENT)]
    assert sorted(refused[0] + refused[1]) == sorted(differ)
    # A race that one of them always wins is none.
    assert made.keys() == {"one", "two"}


ROUNDS: dict[str, tuple[Callable[[Played], None], int]] = {
    "kills": (check_kills, 2_000),
    "restarts": (check_restarts, 200),
    "terminations": (check_terminations, 400),
    "zombies": (check_zombies, 300),
    "drains": (check_drains, 200),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", ROUNDS)
def test_for_long(tmp_path: Path, name: str) -> None:
    """F001-F004 F011 F016 F050: each of them ten times as often, or `CHAOS_COUNT` times."""
    judge, count = ROUNDS[name]
    judge(play(tmp_path, name, int(os.environ.get("CHAOS_COUNT", count))))
