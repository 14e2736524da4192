"""FileSystemStorage keeps every promise of the seam, closed and opened again or killed."""

from pathlib import Path

import pytest

from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.conformance import StorageConformance
from durabletask_filesystem import FileSystemStorage
from durabletask_filesystem._disk import RealFolder


class MortalFolder(RealFolder):
    """A folder that can be left as a killed program leaves it: all it had open is closed."""

    def die(self) -> None:
        self.unlock()  # what the kernel does; nothing is written any more, no clean-close mark


class TestFileSystem(StorageConformance):
    """On a real disk, every segment of the usual size."""

    hosts_max = 1
    segment_bytes_max = 64 * 1024 * 1024

    @pytest.fixture(autouse=True)
    def path_in(self, tmp_path: Path) -> None:
        self.parent = tmp_path
        self.opened = 0

    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.clock = clock
        self.opened += 1  # some tests open several, each its own
        return self._open(str(self.parent / f"state-{self.opened}"))

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        assert isinstance(storage, FileSystemStorage)
        folder = storage._folder
        assert isinstance(folder, MortalFolder)
        if crash:
            folder.die()
            if storage._pool is not None:
                storage._pool.shutdown()
        else:
            await storage.close()
        return self._open(folder.path)

    def _open(self, path: str) -> FileSystemStorage:
        return FileSystemStorage(
            path,
            clock=self.clock,
            folder=MortalFolder(path),
            segment_bytes_max=self.segment_bytes_max,
        )


class TestFileSystemOfSmallSegments(TestFileSystem):
    """The same with a new segment every few records, so that histories span sealed ones."""

    segment_bytes_max = 2_000
