"""The command line: `python -m durabletask_filesystem check DIR` and `repair DIR`.

Exit codes: 0 all is well, 1 something is damaged, 2 it could not be done.
"""

import argparse
import sys
from collections.abc import Sequence

from durabletask.errors import DurableTaskError
from durabletask_filesystem._check import check
from durabletask_filesystem._repair import repair

OK, DAMAGED, REFUSED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m durabletask_filesystem",
        description="Look after the folder of a FileSystemStorage while no program uses it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("check", "verify every record and index; change nothing"),
        ("repair", "save what is intact; keep the damaged files in torn/"),
    ):
        commands.add_parser(name, help=text, description=text).add_argument("folder")
    chosen = parser.parse_args(arguments)
    try:
        return _check(chosen.folder) if chosen.command == "check" else _repair(chosen.folder)
    except DurableTaskError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return REFUSED


def _check(folder: str) -> int:
    report = check(folder)
    print(f"segments    {report.segments:>12,}")
    print(f"records     {report.records:>12,}")
    print(f"bytes       {report.bytes:>12,}")
    print(f"unfinished  {report.unfinished:>12,}")
    if report.torn_bytes:
        print(f"torn tail   {report.torn_bytes:>12,} bytes, never acknowledged; cut when opened")
    for problem in report.problems:
        print(f"! {problem}")
    print("ok" if report.ok else f"{len(report.problems)} problems")
    return OK if report.ok else DAMAGED


def _repair(folder: str) -> int:
    report = repair(folder)
    for problem in report.problems:
        print(f"! {problem}")
    for title, process_ids in (
        ("quarantined, records are missing", report.quarantined),
        ("finished, records are missing", report.incomplete),
        ("lost", report.lost),
        ("kept aside", report.kept_aside),
    ):
        for each in process_ids:
            print(f"{title}: {each!r}")
    print("nothing was wrong" if not report.problems else "repaired")
    return DAMAGED if report.problems else OK


if __name__ == "__main__":
    sys.exit(main())
