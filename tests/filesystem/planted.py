"""Mistakes that storages of files are known to make, each planted on its own.

Most are a wrapper between the storage and the disk, so that the storage runs
unchanged with a wrong idea of the disk; the others take one safeguard out of
the storage. The harness must catch each, or it proves nothing.
"""

from collections.abc import Sequence

from durabletask.testing.disk import SimulatedFolder
from durabletask_filesystem._files import Buffer, File, Folder


class HonestFile:
    """An open file as it is."""

    def __init__(self, file: File) -> None:
        self.file = file

    def append(self, data: Buffer) -> None:
        self.file.append(data)

    def sync(self) -> None:
        self.file.sync()

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def close(self) -> None:
        self.file.close()


class HonestFolder:
    """The disk as it is; each mistake overrides what it gets wrong."""

    def __init__(self, folder: SimulatedFolder) -> None:
        self.folder: Folder = folder

    def names(self, subfolder: str = "") -> Sequence[str]:
        return self.folder.names(subfolder)

    def make_subfolder(self, name: str) -> None:
        self.folder.make_subfolder(name)

    def create(self, name: str) -> File:
        return self.folder.create(name)

    def open_end(self, name: str) -> File:
        return self.folder.open_end(name)

    def size(self, name: str) -> int:
        return self.folder.size(name)

    def read(self, name: str, offset: int = 0, count: int = -1) -> bytes:
        return self.folder.read(name, offset, count)

    def map(self, name: str) -> Buffer:
        return self.folder.map(name)

    def rename(self, name: str, to: str) -> None:
        self.folder.rename(name, to)

    def remove(self, name: str) -> None:
        self.folder.remove(name)

    def sync_entries(self, subfolder: str = "") -> None:
        self.folder.sync_entries(subfolder)

    def lock(self, name: str, text: bytes) -> None:
        self.folder.lock(name, text)

    def check_in_place(self) -> None:
        self.folder.check_in_place()

    def unlock(self) -> None:
        self.folder.unlock()


class NeverSyncs(HonestFolder):
    """C42: answers without fsync."""

    def create(self, name: str) -> File:
        return _Unsynced(self.folder.create(name))

    def open_end(self, name: str) -> File:
        return _Unsynced(self.folder.open_end(name))


class _Unsynced(HonestFile):
    def sync(self) -> None:
        pass


class NeverSyncsEntries(HonestFolder):
    """C44: syncs files, and never the directory that names them."""

    def sync_entries(self, subfolder: str = "") -> None:
        pass


class NeverSyncsAnything(NeverSyncs):
    """C48, as the recovering store: reads the page cache and serves it as if it were safe."""

    def sync_entries(self, subfolder: str = "") -> None:
        pass


class RenamesFirst(HonestFolder):
    """C45: gives a file its final name before its content is synced."""

    def __init__(self, folder: SimulatedFolder) -> None:
        super().__init__(folder)
        self._late: dict[str, _Late] = {}

    def create(self, name: str) -> File:
        late = self._late[name] = _Late(self.folder.create(name))
        return late

    def rename(self, name: str, to: str) -> None:
        self.folder.rename(name, to)
        late = self._late.pop(name, None)
        if late is not None:
            late.file.sync()

    def sync_entries(self, subfolder: str = "") -> None:
        # A new file that is not renamed is synced in time.
        self._settle()
        self.folder.sync_entries(subfolder)

    def _settle(self) -> None:
        for late in self._late.values():
            late.settle()
        self._late.clear()


class _Late(HonestFile):
    """A new file whose first syncs wait for its rename."""

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self.waits = True

    def settle(self) -> None:
        self.waits = False
        self.file.sync()

    def sync(self) -> None:
        if not self.waits:
            self.file.sync()


class SyncsAgain(HonestFolder):
    """C43: takes the success of a repeated fsync for the success of the first."""

    def create(self, name: str) -> File:
        return _Repeated(self.folder.create(name))

    def open_end(self, name: str) -> File:
        return _Repeated(self.folder.open_end(name))


class _Repeated(HonestFile):
    def sync(self) -> None:
        try:
            self.file.sync()
        except OSError:
            self.file.sync()
