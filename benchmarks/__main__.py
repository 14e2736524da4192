"""Runs the benchmarks, each in a fresh program: `python -m benchmarks [name …] [--option …]`."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks._frame import ROOT

HERE = Path(__file__).parent


def main() -> None:
    """Run those named, or all; options go to each."""
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    passed = [word for word in sys.argv[1:] if word.startswith("-")]
    known = sorted(path.stem for path in HERE.glob("[!_]*.py"))
    if unknown := set(names) - set(known):
        sys.exit(f"no benchmark is named {', '.join(sorted(unknown))}\nhint: {', '.join(known)}")
    for name in names or known:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *passed]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ)
        print(flush=True)


if __name__ == "__main__":
    main()
