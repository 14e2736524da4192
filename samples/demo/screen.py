"""What a person sees: progress while it runs, then the table and one drawn history."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from durabletask import HistoryEntry, ProcessInfo
from samples.demo.inputs import Transfer
from samples.demo.reconcile import COMPLETED, ROLLED_BACK, Facts, Verdict, total

FAULTS_SHOWN = 12
PLAIN_EVERY = 0.25  # of the progress, when nobody sees a bar


class Watch(Protocol):
    """How the supervisor tells what it sees."""

    def advance(self, done: int) -> None:
        """So many transfers are done."""
        ...

    def say(self, line: str) -> None:
        """Something happened."""
        ...


class _Plain:
    """Lines for a log file."""

    def __init__(self, console: Console, count: int) -> None:
        self._console = console
        self._count = count
        self._next = PLAIN_EVERY * count

    def advance(self, done: int) -> None:
        if done >= self._next:
            self._console.print(f"{done:,} of {self._count:,} transfers")
            self._next = done + PLAIN_EVERY * self._count

    def say(self, line: str) -> None:
        self._console.print(line)


class _Bar:
    """A progress bar with the events above it."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress = progress
        self._bar = progress.add_task("transfers", total=count)

    def advance(self, done: int) -> None:
        self._progress.update(self._bar, completed=done)

    def say(self, line: str) -> None:
        self._progress.console.print(line)


@contextmanager
def watching(console: Console, count: int) -> Iterator[Watch]:
    """Show progress: a bar on a terminal, a few lines elsewhere."""
    if not console.is_terminal:
        yield _Plain(console, count)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=50),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, count)


def show_table(console: Console, facts: Facts, elapsed_s: float) -> None:
    """Print the reconciliation."""
    before, after = total(facts.opening), total(facts.accounts)
    recorded = facts.recorded.total()
    rows = [
        ("transfers completed", f"{facts.count(COMPLETED):,}"),
        ("transfers rolled back", f"{facts.count(ROLLED_BACK):,}"),
        ("kills survived (SIGKILL)", f"{facts.kills:,}"),
        ("steps executed", f"{facts.executed.total():,}"),
        ("steps recorded", f"{recorded:,}"),
        ("repeats caused by kills", f"{facts.repeats:,}"),
        ("money before", f"{before:,}"),
        ("money after", f"{after:,}"),
        ("durable steps per second", f"{recorded / facts.working_s:,.0f}"),
        ("seconds in all", f"{elapsed_s:.1f}"),
    ]
    table = Table(title="\nReconciliation", title_justify="left", show_header=False)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def pick(facts: Facts, transfers: Sequence[Transfer]) -> Transfer | None:
    """Choose the rolled-back transfer with the most to tell: ownerships first, then steps."""

    def weight(transfer: Transfer) -> tuple[int, int]:
        history = facts.histories[transfer.id]
        return len({entry.epoch for entry in history}), len(history)

    rolled_back = [t for t in transfers if facts.outcomes.get(t.id, "").startswith(ROLLED_BACK)]
    return max(rolled_back, key=weight, default=None)


def draw(
    console: Console,
    transfer: Transfer,
    info: ProcessInfo,
    history: Sequence[HistoryEntry],
    kill_times: Sequence[float],
) -> None:
    """Draw the history of one transfer as a line through time."""
    console.print(
        f"\n[bold]{transfer.id}[/]: {transfer.amount:,} from {transfer.source} to {transfer.target}"
    )
    moments = [(info.created_at.timestamp(), "○", "spawned")]
    moments += [(entry.at.timestamp(), *_drawn(entry)) for entry in history]
    ended = info.finished_at or info.updated_at
    moments.append((ended.timestamp(), "●", str(info.result)))
    first, last = moments[0][0], moments[-1][0]
    moments += [
        (at, "[red]✖[/]", "[red]the program is killed; the next start resumes[/]")
        for at in kill_times
        if first < at < last
    ]
    for at, sign, text in sorted(moments, key=lambda moment: moment[0]):
        clock = datetime.fromtimestamp(at, tz=info.created_at.tzinfo)
        console.print(f"  {clock:%H:%M:%S.%f}  +{(at - first) * 1000:8.1f} ms  {sign} {text}")


def _drawn(entry: HistoryEntry) -> tuple[str, str]:
    if entry.form == "error":
        return "[yellow]├[/]", f"{entry.key:<12} [yellow]{entry.error}[/]"
    value = "" if entry.value is None else f"→ {entry.value}"
    return "├", f"{entry.key:<12} {value}"


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print what does not fit, in red, or that everything does."""
    if not verdict.faults:
        console.print("\n[green]Everything fits: no transfer lost, no money moved twice.[/]")
    for fault in verdict.faults[:FAULTS_SHOWN]:
        console.print(f"[bold red]WRONG[/] [red]{fault}[/]")
    if len(verdict.faults) > FAULTS_SHOWN:
        console.print(f"[red]and {len(verdict.faults) - FAULTS_SHOWN} more[/]")
