"""The killer: forks the program again and again, and ends each run by a signal.

A program of its own, so that it can fork: it has one thread and has imported
everything once. What it does is drawn from a seed, which it prints.
"""

import argparse
import asyncio
import json
import os
import random
import select
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from tests.kill import program

SOON_S = (0.005, 0.060)
"""When a run is killed, drawn evenly."""

BARREN_MAX = 4
"""After so many runs in a row without an effect the next ones get twice the time: a slow disk."""

END_MAX_S = 120.0
"""Longest time for a run that is asked to end; only a hang takes so long."""


@dataclass
class Round:
    """One folder, from empty to done.

    Attributes:
        runs: How often the program was started.
        kills: How many runs ended by the signal before they were done.
        codes: Exit codes of the runs; minus the signal that ended one.
    """

    folder: str
    runs: int
    kills: int
    codes: list[int]


def play(folder: Path, chance: random.Random, number: signal.Signals, kills_max: int) -> Round:
    """Start the program until it is done, ending its first runs by a signal."""
    folder.mkdir()
    played = Round(str(folder), 0, 0, [])
    barren, slow, size = 0, 1.0, 0
    while True:
        played.runs += 1
        last = played.kills >= kills_max
        wait_s = None if last else chance.uniform(*SOON_S) * slow
        code, signalled = run_once(folder, number, wait_s)
        played.codes.append(code)
        if not signalled:
            return played
        played.kills += 1
        grown = (folder / "ledger").stat().st_size if (folder / "ledger").exists() else 0
        barren = 0 if grown > size else barren + 1
        size = grown
        if barren == BARREN_MAX:
            barren, slow = 0, slow * 2


def run_once(folder: Path, number: signal.Signals, wait_s: float | None) -> tuple[int, bool]:
    """Run the program once; return its exit code and whether the signal came before its end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(folder, writing)
    os.close(writing)
    watch = os.pidfd_open(pid)
    try:
        if number is not signal.SIGKILL:
            # Until then there is nobody to ask; and a run that dies first is seen as well.
            select.select([reading, watch], [], [], END_MAX_S)
        signalled = False
        if wait_s is not None and not select.select([watch], [], [], wait_s)[0]:
            os.kill(pid, number)
            signalled = True
        if not select.select([watch], [], [], END_MAX_S)[0]:
            os.kill(pid, signal.SIGKILL)
            print(f"{folder}: the program hangs", file=sys.stderr)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGTERM and program.DONE in os.read(reading, 2):
            # It had ended by itself and was leaving, when nobody listens to a signal any more.
            return 0, False
        return code, signalled
    finally:
        os.close(reading)
        os.close(watch)


def _child(folder: Path, ready: int) -> NoReturn:
    code = 1
    try:
        asyncio.run(program.run(folder, ready))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Play rounds until there were enough kills; print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--per-round", type=int, required=True)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kills = 0
    number = 0
    while kills < arguments.kills:
        number += 1
        most = min(arguments.per_round, arguments.kills - kills)
        folder = arguments.folder / f"round-{number}"
        played = play(folder, chance, signal.Signals[arguments.signal], most)
        kills += played.kills
        print(json.dumps(asdict(played)), flush=True)


if __name__ == "__main__":
    main()
