"""The demo: a thousand transfers, killed with SIGKILL again and again, then reconciled.

Run it with `make demo` or `python -m samples.demo`. It starts the worker, which
kills itself at points drawn over its progress, starts it again until all
transfers have ended, and compares what was recorded with what happened. The
exit status is 1 if anything does not fit. The folder stays for a look inside.
"""

import argparse
import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from samples.demo.bank import Bank
from samples.demo.chaos import KillPoint, RunLog, draw_kill_points
from samples.demo.inputs import Folder, read_accounts, read_transfers
from samples.demo.reconcile import gather_facts, judge
from samples.demo.screen import Watch, draw, pick, show_table, show_verdict, watching

ROOT = Path(__file__).parents[2]
STEPS_PER_TRANSFER_MIN = 3  # open, one refused hold, cancel
LOOK_EVERY_S = 0.05
RUN_S_MAX = 60.0  # a worker that hangs is a fault, not something to wait for


class WorkerError(Exception):
    """The worker ended in another way than by a kill of ours, or hangs."""


def supervise(folder: Folder, transfers: int, kill_points: list[KillPoint], watch: Watch) -> None:
    """Start the worker until it comes to its own end.

    Raises:
        WorkerError: It did not come there.
    """
    bank = Bank(folder.bank)
    waiting = list(kill_points)
    while True:
        point = waiting.pop(0) if waiting else None
        status = _run_worker(folder, transfers, point, bank, watch)
        watch.advance(bank.closed_count())
        if status == 0:
            break
        if status != -signal.SIGKILL or point is None:
            raise WorkerError(f"the worker ended with exit status {status}")
        done = bank.closed_count()
        watch.say(f"[red]SIGKILL[/] {point.manner}; {done:,} transfers done; starting again")
    bank.close()


def _run_worker(
    folder: Folder, transfers: int, point: KillPoint | None, bank: Bank, watch: Watch
) -> int:
    command = [sys.executable, "-m", "samples.demo.worker", str(folder.path)]
    command += ["--transfers", str(transfers)]
    if point is not None:
        command += ["--kill-point", str(point)]
    deadline = time.monotonic() + RUN_S_MAX
    worker = subprocess.Popen(command, cwd=ROOT)
    try:
        while (status := worker.poll()) is None:
            if time.monotonic() > deadline:
                raise WorkerError(f"the worker did not end within {RUN_S_MAX:.0f} s")
            watch.advance(bank.closed_count())
            time.sleep(LOOK_EVERY_S)
    finally:
        # Whatever ends the watch, Ctrl-C too, leaves no worker behind.
        worker.kill()
        worker.wait()
    return status


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m samples.demo", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "demo-state")
    parser.add_argument("--transfers", type=int, default=1_000, help="at most 1,000")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, help="draws the kill points; shown at the start")
    return parser.parse_args()


def main() -> int:
    """Run the demo and return its exit status."""
    wanted = arguments()
    console = Console(highlight=False, soft_wrap=True)
    seed = random.randrange(10_000) if wanted.seed is None else wanted.seed
    folder = Folder(wanted.folder.absolute())
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir(parents=True)

    opening, transfers = read_accounts(), read_transfers(wanted.transfers)
    points = draw_kill_points(
        random.Random(seed), wanted.kills, len(transfers) * STEPS_PER_TRANSFER_MIN
    )
    console.print(
        f"{len(transfers):,} transfers among {len(opening)} accounts, {len(points)} kills ahead"
        f" (seed {seed})"
    )
    began = time.monotonic()
    try:
        with watching(console, len(transfers)) as watch:
            supervise(folder, len(transfers), points, watch)
    except WorkerError as error:
        console.print(f"[bold red]WRONG[/] [red]{error}[/]")
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the next run begins anew")
        return 130
    elapsed_s = time.monotonic() - began

    facts = asyncio.run(gather_facts(folder, transfers, opening))
    shown = pick(facts, transfers)
    if shown is not None:
        kill_times = RunLog(folder.runs).kill_times()
        draw(console, shown, facts.processes[shown.id], facts.histories[shown.id], kill_times)
    show_table(console, facts, elapsed_s)
    verdict = judge(facts)
    verdict.expect("kills", len(points), facts.kills)
    show_verdict(console, verdict)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
