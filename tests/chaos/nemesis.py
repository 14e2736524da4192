"""The driver: a Postgres of its own, hosts and clients as real processes, and what hurts them.

Run as `python -m tests.chaos.nemesis ROUND FOLDER --count N --seed S`. Prints
one line of JSON about what it did; histories and the final state are in the
folder, for the test to judge. A program of its own, so that it can fork.
"""

import argparse
import gc
import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from durabletask_postgres.testing import ThrowAwayPostgres
from tests.chaos import program
from tests.chaos.mistakes import MISTAKES
from tests.chaos.program import Setting
from tests.chaos.troop import END_MAX_S, Hangs, Member, Troop, now_s, pause

HOSTS = 3
LEASE_TTL_S = 10.0
"""Longer than any round's pause: a dead host is then seen by its session or not at all."""

ZOMBIE_TTL_S = 0.8
ZOMBIES_AT_ONCE = 4
STEP_S = 0.01
ZOMBIE_STEP_S = 0.2
"""Long, so that a host is stopped in the middle of steps which it will want to record."""

Facts = dict[str, Any]


class Round:
    """One round, from an empty database to its final state."""

    def __init__(self, server: ThrowAwayPostgres, setting: Setting) -> None:
        self.server = server
        self.setting = setting
        self.chance = Random(setting.seed)
        self.hosts: list[Member] = []
        self.facts: Facts = {"seed": setting.seed}
        self.codes: list[int] = []
        self._number = 0

    def begin(self, troop: Troop, hosts: int) -> None:
        """Start hosts and the client, and wait until there is work."""
        self.troop = troop
        self.client: Member | None = None
        for _ in range(hosts):
            self.add_host()
        for host in self.hosts:
            if not host.wait_ready():
                raise Hangs(f"{host.name} does not start: see {self.setting.folder / 'log'}")
        self.client = troop.start("client", partial(program.run_client, self.setting))
        self.client.wait_ready()
        pause(0.5)

    def add_host(self) -> Member:
        """Start one more host."""
        self._number += 1
        name = f"host-{self._number}"
        host = self.troop.start(name, partial(_host, self.setting, name))
        self.hosts.append(host)
        return host

    def finish(self) -> None:
        """End the faults, let everything come to its end, and read it."""
        (self.setting.folder / "enough").touch()
        begun_s = now_s()
        if self.client is not None:
            self.facts["client"] = self._ends(self.client)
        self.facts["healed_s"] = round(now_s() - begun_s, 2)
        for host in self.hosts:
            host.send(signal.SIGTERM)
        self.codes += [self._ends(host) for host in self.hosts]
        self.facts["codes"] = self.codes
        # Sessions end a moment after their clients.
        until_s = now_s() + END_MAX_S
        while (left := self.connections()) and now_s() < until_s:
            pause(0.02)
        self.facts["left"] = left
        reader = self.troop.start("reader", partial(program.run_reader, self.setting))
        self.facts["reader"] = self._ends(reader)

    def _ends(self, member: Member) -> int:
        try:
            return member.wait_ended()
        except Hangs:
            return 99

    def connections(self) -> int:
        """Return how many sessions there are but ours."""
        return int(self.server.sql(_SESSIONS))


def _host(setting: Setting, name: str, ready: int) -> Any:
    return program.run_host(setting, name, ready)


def kills(played: Round, count: int) -> None:
    """SIGKILL hosts at any time, some before they have started."""
    for _ in range(count):
        host = played.chance.choice(played.hosts)
        if played.chance.random() < 0.9:
            host.wait_ready(1.0)
        pause(played.chance.uniform(0, 0.15))
        host.send(signal.SIGKILL)
        host.wait_ended()
        played.hosts.remove(host)
        played.add_host()
    played.facts["kills"] = count


def restarts(played: Round, count: int) -> None:
    """Crash the server and start it again, with hosts and clients at work."""
    for _ in range(count):
        pause(played.chance.uniform(0.1, 0.6))
        played.server.restart()
    played.facts["restarts"] = count


def terminations(played: Round, count: int) -> None:
    """End sessions of hosts that live, those of heartbeats with their witness among them."""
    for _ in range(count):
        pause(played.chance.uniform(0, 0.2))
        played.server.sql(f"select pg_terminate_backend(pid) from ({_SOME_SESSIONS}) s")
    played.facts["terminations"] = count


def zombies(played: Round, count: int) -> None:
    """Stop hosts for longer than their lease, until somebody has fenced them; let them go on."""
    made = 0
    while made < count:
        chosen = played.chance.sample(played.hosts, min(ZOMBIES_AT_ONCE, count - made))
        before = _fenced(played)
        for host in chosen:
            host.send(signal.SIGSTOP)
        until_s = now_s() + END_MAX_S
        while _fenced(played) < before + len(chosen):
            if now_s() > until_s:
                raise Hangs("nobody fences the hosts that were stopped")
            pause(0.05)
        for host in chosen:
            host.send(signal.SIGCONT)
        made += len(chosen)
        # Until they have a lease again: one zombie is one refusal then.
        while int(played.server.sql(_LIVING)) < len(played.hosts):
            if now_s() > until_s:
                raise Hangs("a host that was refused does not begin anew")
            pause(0.05)
    played.facts["zombies"] = made


_SESSIONS = """\
select count(*) from pg_stat_activity
where backend_type = 'client backend' and application_name <> 'psql'
"""
_SOME_SESSIONS = """\
select pid from pg_stat_activity
where backend_type = 'client backend' and application_name <> 'psql'
order by random() limit 2
"""
_LIVING = "select count(*) from durabletask.fence where fenced_at is null"


def _fenced(played: Round) -> int:
    return int(
        played.server.sql("select count(*) from durabletask.fence where fenced_at is not null")
    )


def drains(played: Round, count: int) -> None:
    """Ask hosts to stop, at any time, while others go on."""
    for _ in range(count):
        host = played.hosts.pop(played.chance.randrange(len(played.hosts)))
        fresh = played.add_host()
        fresh.wait_ready()
        pause(played.chance.uniform(0, 0.1))
        host.send(signal.SIGTERM)
        played.codes.append(host.wait_ended())
    played.facts["drains"] = count


def race(played: Round, count: int) -> None:
    """Let two hosts spawn the same ids at once."""
    del count
    racers = [
        played.troop.start(name, partial(_racer, played.setting, name)) for name in ("one", "two")
    ]
    for racer in racers:
        racer.wait_ready()
    (played.setting.folder / "go").touch()
    played.codes += [racer.wait_ended() for racer in racers]


def _racer(setting: Setting, name: str, ready: int) -> Any:
    return program.run_racer(setting, name, ready)


ROUNDS: dict[str, tuple[Callable[[Round, int], None], int, float, float]] = {
    "kills": (kills, HOSTS, LEASE_TTL_S, STEP_S),
    "restarts": (restarts, HOSTS, LEASE_TTL_S, STEP_S),
    "terminations": (terminations, HOSTS, LEASE_TTL_S, STEP_S),
    "zombies": (zombies, HOSTS + 2, ZOMBIE_TTL_S, ZOMBIE_STEP_S),
    "drains": (drains, HOSTS, LEASE_TTL_S, STEP_S),
    "race": (race, 0, LEASE_TTL_S, STEP_S),
}
"""What hurts, how many hosts there are, and how long their leases and steps are."""


def play(name: str, folder: Path, count: int, seed: int) -> Facts:
    """Play a round; return what was done."""
    nemesis, hosts, ttl_s, step_s = ROUNDS[name]
    with ThrowAwayPostgres() as server, Troop(folder) as troop:
        played = Round(server, Setting(folder, server.dsn, ttl_s, step_s, seed))
        played.troop, played.client = troop, None
        server.sql(program.TABLES)
        if hosts:
            played.begin(troop, hosts)
        begun_s = now_s()
        nemesis(played, count)
        played.facts["hurt_s"] = round(now_s() - begun_s, 2)
        played.finish()
        return played.facts


def main() -> None:
    """Play one round and tell of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("round", choices=ROUNDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--mistake", choices=MISTAKES, help="planted into every program")
    arguments = parser.parse_args()
    if arguments.mistake:
        MISTAKES[arguments.mistake]()
    gc.collect()
    gc.freeze()  # else each forked program copies what the first collection touches
    facts = play(arguments.round, arguments.folder, arguments.count, arguments.seed)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
