"""MemoryStorage keeps every promise of the seam: with leases that end, and with others."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from durabletask._memory import MemoryStorage
from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.conformance import StorageConformance
from tests.engine.database import Database, DatabaseUser


class TestMemory(StorageConformance):
    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.clock = clock
        return MemoryStorage(clock)

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        """S1.17: what a memory storage does at a crash is to lose its hosts and nothing else."""
        assert isinstance(storage, MemoryStorage)
        if crash:
            storage.crash()
        return storage

    @asynccontextmanager
    async def holding(self, storage: ProcessStorage, process_id: str) -> AsyncIterator[None]:
        assert isinstance(storage, MemoryStorage)
        with storage.hold(process_id):
            yield


class TestMemoryWithTransactions(TestMemory):
    """The suite's own tests of `Transactions` can be passed: by a database of dictionaries."""

    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.clock = clock
        return Database(clock)

    def user(self, storage: ProcessStorage) -> DatabaseUser:
        assert isinstance(storage, Database)
        return DatabaseUser(storage)


class TestMemoryWithEndlessLeases(TestMemory):
    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.clock = clock
        return MemoryStorage(clock, lease_ttl_s=None)


class TestMemorySaved(TestMemory):
    """S1.17: a storage loaded from its snapshot file keeps every promise too."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "state.json"

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        assert isinstance(storage, MemoryStorage)
        storage.save(self.path)
        return MemoryStorage.load(self.path, self.clock)


def test_the_tools_of_users_need_no_test_runner() -> None:
    """`durabletask.testing` imports where neither pytest nor Hypothesis is installed."""
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "import durabletask.testing as t; t.run_virtual, t.VirtualClock"
    )
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONPATH": path}
    )
