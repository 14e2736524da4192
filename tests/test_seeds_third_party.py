"""The conformance suite in the hands of somebody else: another project, public names only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = '''
from typing import Any

from durabletask import MemoryStorage
from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.conformance import StorageConformance


class Foreign:
    """A storage of another project, which happens to keep everything in one of ours."""

    def __init__(self, clock: VirtualClock) -> None:
        self.kept = MemoryStorage(clock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept, name)

    async def commit(self, lease: Any, units: Any) -> Any:
        {commit}


class TestForeign(StorageConformance):
    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        return Foreign(clock)

    async def reopen(self, storage: Any, *, crash: bool = False) -> ProcessStorage:
        if crash:
            storage.kept.crash()
        return storage
'''

CONFIG = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"


def suite(folder: Path, commit: str) -> str:
    """Run the suite over a storage whose commit is as given; return the last line of pytest."""
    (folder / "test_foreign.py").write_text(PROJECT.format(commit=commit))
    (folder / "pytest.ini").write_text(CONFIG)
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("commit", "verdict"),
    [
        ("return await self.kept.commit(lease, units)", "passed"),
        ("return await self.kept.commit(await self.kept.renew(lease), units[:1])", "failed"),
    ],
    ids=["faithful", "loses"],
)
def test_another_project_runs_the_suite(commit: str, verdict: str, tmp_path: Path) -> None:
    """S1.18 (suite): a storage of others joins in a few lines; what it does wrong is found."""
    last = suite(tmp_path, commit)
    assert verdict in last, last
    assert verdict == "failed" or "failed" not in last, last
