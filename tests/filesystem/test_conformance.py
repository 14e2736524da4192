"""FileSystemStorage keeps every promise of the seam, closed and opened again or killed."""

import shutil
from pathlib import Path

import pytest

from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.conformance import StorageConformance
from durabletask_filesystem import FileSystemStorage


class TestFileSystem(StorageConformance):
    """On a real disk, every segment of the usual size."""

    hosts_max = 1
    segment_bytes_max = 64 * 1024 * 1024

    @pytest.fixture(autouse=True)
    def parent_folder(self, tmp_path: Path) -> None:
        self.parent = tmp_path
        self.count = 0

    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.clock = clock
        self.path = self.new_path()  # some tests open several storages, each its own
        return self.at_path()

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        if crash:
            # What a killed program leaves is what is on the disk now, before anything is closed.
            copy = self.new_path()
            shutil.copytree(self.path, copy)
            self.path = copy
        await storage.close()
        return self.at_path()

    def new_path(self) -> Path:
        self.count += 1
        return self.parent / f"state-{self.count}"

    def at_path(self) -> FileSystemStorage:
        return FileSystemStorage(
            self.path, clock=self.clock, segment_bytes_max=self.segment_bytes_max
        )


class TestFileSystemOfSmallSegments(TestFileSystem):
    """The same with a new segment every few records, so that histories span sealed ones."""

    segment_bytes_max = 2_000
