"""A folder that outlives the program which used it, as the kernel sees to it."""

import shutil
import tempfile
import weakref
from pathlib import Path

from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask_filesystem import FileSystemStorage
from durabletask_filesystem._disk import RealFile, RealFolder
from durabletask_filesystem._files import File


class MortalFolder(RealFolder):
    """A folder whose descriptors can be closed from outside, as when a program dies."""

    # Cannot be watched, like a simulated disk: no other program asks anything here.
    watch = None  # type: ignore[assignment]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._files: list[RealFile] = []

    def create(self, name: str) -> File:
        """Create a new empty file."""
        return self._keep(super().create(name))

    def open_end(self, name: str) -> File:
        """Open an existing file for appending."""
        return self._keep(super().open_end(name))

    def sync_entries(self, subfolder: str = "") -> None:
        """Do nothing, as below."""

    def die(self) -> None:
        """Do what the kernel does: close every file and let go of the lock."""
        for file in self._files:
            file.close()
        self.unlock()

    def _keep(self, file: File) -> File:
        assert isinstance(file, RealFile)
        self._files.append(_Unsynced(file._fd))
        return self._files[-1]


class _Unsynced(RealFile):
    """A file without syncs: the page cache survives a killed program, and syncs take time.

    What syncs are for is proved on the simulated disk, in tests/filesystem.
    """

    __slots__ = ()

    def sync(self) -> None:
        """Do nothing."""


class OnDisk:
    """A folder of the real disk; each life opens it anew."""

    def __init__(self, clock: VirtualClock) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="durabletask-crash-"))
        # It goes when the run is over and nobody asks for it any more.
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._clock = clock
        self._open: MortalFolder | None = None

    def open(self) -> ProcessStorage:
        """Return a storage that knows nothing of those before it."""
        self._open = MortalFolder(self._folder / "state")
        return FileSystemStorage("unused", clock=self._clock, folder=self._open)

    def crashed(self) -> None:
        """Take the folder from the dead program."""
        assert self._open is not None
        self._open.die()
