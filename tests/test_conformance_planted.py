"""The suite itself is tested: each planted mistake in a storage is caught by one of its tests.

Every mistake is one that storages of this kind have made (FAILURES appendix C,
or the five predecessors). It is planted in the memory storage, and the whole
suite runs until a test fails; a mistake that no test meets is a hole.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

import tests.planted_keeping
import tests.planted_kin
import tests.planted_requests
import tests.planted_transactions
import tests.planted_writing  # noqa: F401  (importing plants them)
from durabletask.storage import (
    ProcessStorage,
)
from durabletask.testing import VirtualClock
from durabletask.testing.conformance import StorageConformance
from tests.engine.database import Database, DatabaseUser
from tests.planted_named import NAMED
from tests.planted_storage import PLANTS


class Suite(StorageConformance):
    """The whole suite over a memory storage with transactions; `crash` is kill -9 of everything."""

    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        return Database(clock)

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        assert isinstance(storage, Database)
        if crash:
            storage.crash()
        return storage

    @asynccontextmanager
    async def holding(self, storage: ProcessStorage, process_id: str) -> AsyncIterator[None]:
        assert isinstance(storage, Database)
        with storage.hold(process_id):
            yield

    def user(self, storage: ProcessStorage) -> DatabaseUser:
        assert isinstance(storage, Database)
        return DatabaseUser(storage)


class OneHost(Suite):
    """What is promised by a storage that takes one host is left out above."""

    hosts_max = 1


def promises_of(suite: type) -> Iterator[str]:
    for name, member in inspect.getmembers(suite):
        if name.startswith("test_") and member is not None:
            yield name


def first_failure() -> str | None:
    """Run the suite until a test fails; return its name."""

    async def run() -> str | None:
        for name in promises_of(Suite):
            try:
                await getattr(Suite(), name)()
            except (Exception, pytest.fail.Exception):
                return name
        return None

    return asyncio.run(run())


# --- the tests ---------------------------------------------------------------------------


def test_without_a_mistake_the_suite_passes() -> None:
    """The control: what is caught below is the mistake and nothing else."""
    assert first_failure() is None
    written = {name for name in dir(StorageConformance) if name.startswith("test_")}
    run = set(promises_of(Suite)) | set(promises_of(OneHost))
    assert written - run == set()
    assert len(run) >= 210
    assert len(PLANTS) >= 40
    assert len(NAMED) >= 45


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C01-C40: each of these mistakes makes a test of the suite fail."""
    PLANTS[name](monkeypatch)
    assert first_failure() is not None, PLANTS[name].__doc__


@pytest.mark.parametrize("name", NAMED)
def test_a_planted_mistake_is_caught_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 4: each mistake with requests, retries, restarts and children fails its own test."""
    plant, test = NAMED[name]
    plant(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        asyncio.run(getattr(Suite(), test)())
