"""What every benchmark shares: its options, a folder on a real disk, fresh programs, the telling.

A benchmark asks one question. It runs what it compares in turns (A B A B …)
within one program, since a machine is quick in one minute and slow in the
next; it prints smallest, median and largest of each, and its ratio last.
Knows nothing of durable execution.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]

RAM_DISKS = frozenset({"tmpfs", "ramfs", "devtmpfs"})


class Options(NamedTuple):
    """How to run.

    Attributes:
        tiny: Small enough for a test; its figures mean nothing.
        repeats: How often each side runs.
        folder: Where the files go: on a real disk, `build/` of the checkout if not said.
    """

    tiny: bool
    repeats: int
    folder: Path

    def size(self, full: int, tiny: int) -> int:
        """Return how much to do."""
        return tiny if self.tiny else full


def options(question: str, argv: Sequence[str] | None, repeats: int = 7) -> Options:
    """Read the command line, and print the question.

    Raises:
        SystemExit: The folder is on a RAM disk, or an option is unknown.
    """
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--tiny", action="store_true", help="only try whether it runs")
    parser.add_argument("--repeats", type=int, default=repeats, help="of each side")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    found = parser.parse_args(argv)
    folder = found.folder or ROOT / "build"
    folder.mkdir(parents=True, exist_ok=True)
    kind = filesystem_of(folder, Path("/proc/mounts"))
    if kind in RAM_DISKS and not found.tiny:
        parser.error(
            f"{folder} is on {kind}, a RAM disk, where a sync costs nothing: choose a disk"
        )
    print(f"{question} (files on {kind})")
    return Options(found.tiny, 1 if found.tiny else found.repeats, folder)


# --- the disk ------------------------------------------------------------------------------


@contextmanager
def disk_folder(chosen: Options) -> Iterator[Path]:
    """Lend an empty folder on the disk that was chosen; it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=chosen.folder) as name:
        yield Path(name)


def filesystem_of(path: Path, mounts: Path) -> str:
    """Return the type of the file system that holds `path`; "unknown" where no table says it."""
    if not mounts.exists():
        return "unknown"
    place = path.resolve()
    best, kind = -1, "unknown"
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, point, name = line.split()[:3]
        mounted = Path(point.replace("\\040", " "))
        # The later of two mounts on one point hides the earlier.
        if place.is_relative_to(mounted) and len(mounted.parts) >= best:
            best, kind = len(mounted.parts), name
    return kind


class BareFile:
    """A file that only grows: the least that durability costs."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, data: bytes) -> None:
        """Write and make durable: one row commit."""
        os.write(self._fd, data)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def file_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, without the zeros at their ends."""
    return sum(len(path.read_bytes().rstrip(b"\0")) for path in folder.rglob("*") if path.is_file())


# --- fresh programs ------------------------------------------------------------------------


def fresh_program(file: str, *arguments: object) -> dict[str, Any]:
    """Run a benchmark's file in a new program and return the JSON object it prints last.

    Raises:
        CalledProcessError: It failed; what it said is on standard error.
    """
    paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    done = subprocess.run(
        [sys.executable, file, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def rss_bytes() -> int:
    """Return the resident memory of this program, mapped files not counted."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon; this benchmark needs Linux")


# --- the telling ---------------------------------------------------------------------------


def tell(title: str, rows: Mapping[str, Sequence[float]], form: str = ",.0f") -> None:
    """Print smallest, median and largest of each row."""
    print(f"{title:<44}{'min':>12}{'median':>12}{'max':>12}")
    for name, values in rows.items():
        shown = "".join(f"{value:>12{form}}" for value in spread(values))
        print(f"  {name:<42}{shown}")


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of each pair; the two of a pair ran one after the other."""
    return [a / b for a, b in zip(above, below, strict=True)]


def conclude(
    what: str,
    values: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    form: str = ".2f",
) -> None:
    """Print the ratio, and whether its median is what it must be."""
    low, middle, high = spread(values)
    line = f"{what}: {middle:{form}} ({low:{form}} to {high:{form}})"
    if at_least is not None:
        line += f", must be at least {at_least:{form}}: {_word(middle >= at_least)}"
    if at_most is not None:
        line += f", must be at most {at_most:{form}}: {_word(middle <= at_most)}"
    print(line)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return smallest, median and largest."""
    return min(values), median(values), max(values)


def _word(reached: bool) -> str:
    return "reached" if reached else "MISSED"
