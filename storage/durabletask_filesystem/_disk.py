"""The real disk behind the `Folder` protocol.

The only module that calls the operating system for files. It knows no format:
names, bytes, locks and syncs. Files are 0600 and folders 0700, whatever the
umask says; nothing here follows a name that came from a process id.
"""

import fcntl
import logging
import mmap
import os
from collections.abc import Sequence

from durabletask_filesystem._files import Buffer, File
from durabletask_filesystem._mounts import warning_for
from durabletask_filesystem._watch import watch_moves

_log = logging.getLogger("durabletask.filesystem")

_WRITE_BYTES_MAX = 1 << 30  # Linux writes at most 2 GiB - 4 KiB at a call

ROOM_BYTES = 256 * 1024
"""What is made ready at once behind the end of a file that grows by little."""

_LITTLE_BYTES = ROOM_BYTES // 16
_LITTLE_FIRST = 4  # appends before room is made: a program that writes once and goes needs none


class RealFile:
    """An open file that only grows, or is cut."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def append(self, data: Buffer) -> None:
        """Write all of `data` at the end; OSError when only a part or nothing was written."""
        written = os.write(self._fd, data)
        size = len(data)
        while written < size:
            rest = memoryview(data)[written : written + _WRITE_BYTES_MAX]
            written += os.write(self._fd, rest)

    def sync(self) -> None:
        """Make everything written so far survive a power loss."""
        os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; durable after `sync`."""
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, size, os.SEEK_SET)

    def close(self) -> None:
        """Close it; safe to repeat."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class GrowingFile(RealFile):
    """A file with room made ready behind its end, as long as it grows by little.

    A sync that has to record a new length too costs half as much again as one
    that finds the room there already. Until `close` cuts it the room reads as
    zeros, and a killed program leaves it.
    """

    __slots__ = ("_appends", "_end", "_room_end")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._end = self._room_end = os.lseek(fd, 0, os.SEEK_END)
        self._appends = 0

    def append(self, data: Buffer) -> None:
        """Write all of `data` at the end; OSError when only a part or nothing was written."""
        end = self._end + len(data)
        if end > self._room_end and len(data) <= _LITTLE_BYTES:
            self._make_room()
        super().append(data)
        self._end = end

    def _make_room(self) -> None:
        self._appends += 1
        if self._appends < _LITTLE_FIRST:
            return
        try:
            os.posix_fallocate(self._fd, self._end, ROOM_BYTES)
        except OSError:
            # No space, or no such call: then the file grows write by write.
            self._appends = -ROOM_BYTES
            return
        self._room_end = self._end + ROOM_BYTES

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, and the room with it; durable after `sync`."""
        super().truncate(size)
        self._end = self._room_end = size

    def close(self) -> None:
        """Cut the room and close the file; safe to repeat.

        Raises:
            OSError: The room is still there.
        """
        if self._fd < 0:
            return
        try:
            if self._room_end > self._end:
                self.truncate(self._end)
        finally:
            super().close()


class RealFolder:
    """A folder of the machine's file system. Making the object touches nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._lock_fd = -1
        self._lock_path = ""
        self._lock_place = (0, 0)
        self._pid = 0
        self._warned = False

    def names(self, subfolder: str = "") -> Sequence[str]:
        """Return the names in the folder, or in a subfolder of it, sorted."""
        return sorted(os.listdir(self._at(subfolder)))

    def make_subfolder(self, name: str) -> None:
        """Create a subfolder unless it exists (mode 0700)."""
        try:
            os.mkdir(self._at(name), 0o700)
        except FileExistsError:
            if not os.path.isdir(self._at(name)):
                raise

    def create(self, name: str) -> File:
        """Create a new empty file (mode 0600)."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return RealFile(os.open(self._at(name), flags, 0o600))

    def open_end(self, name: str) -> File:
        """Open an existing file for appending."""
        return GrowingFile(os.open(self._at(name), os.O_RDWR | os.O_CLOEXEC))

    def size(self, name: str) -> int:
        """Return a file's length in bytes."""
        return os.stat(self._at(name)).st_size

    def read(self, name: str, offset: int = 0, count: int = -1) -> bytes:
        """Return `count` bytes from `offset`, fewer at the end; -1 for all the rest."""
        with open(self._at(name), "rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            if count < 0:
                return file.readall()
            parts = []
            while count > 0 and (part := file.read(count)):
                parts.append(part)
                count -= len(part)
            return b"".join(parts)

    def map(self, name: str) -> Buffer:
        """Return a read-only view of the bytes that a file has now."""
        fd = os.open(self._at(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if not size:
                return b""
            return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
        finally:
            os.close(fd)

    def rename(self, name: str, to: str) -> None:
        """Rename atomically, replacing `to`."""
        os.rename(self._at(name), self._at(to))

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(self._at(name))

    def sync_entries(self, subfolder: str = "") -> None:
        """Make creations, renames and removals in the folder or subfolder durable."""
        _sync_directory(self._at(subfolder))

    def watch(self, subfolder: str) -> int | None:
        """Return a descriptor that becomes readable when a file is renamed into a subfolder."""
        return watch_moves(self._at(subfolder))

    def lock(self, name: str, text: bytes) -> None:
        """Take the folder, creating it first if there is none, and leave `text` in the lock file.

        `flock` and not a POSIX record lock: those vanish when any descriptor
        of the file is closed, and do not conflict within one program.
        """
        self._make_path()
        self._warn_once()
        self._lock_path = self._at(name)
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, text, 0)
        except OSError:
            os.close(fd)
            raise
        status = os.fstat(fd)
        self._lock_fd, self._lock_place = fd, (status.st_ino, status.st_dev)
        self._pid = os.getpid()

    def check_in_place(self) -> None:
        """Raise OSError if the folder or its lock file was moved, removed or replaced."""
        if os.getpid() != self._pid:
            # The child of a fork shares the lock with its parent, and must not write beside it.
            raise OSError("the folder was opened by another process, before a fork")
        seen = os.stat(self._lock_path)
        if (seen.st_ino, seen.st_dev) != self._lock_place:
            raise OSError(f"{self._lock_path} is not the file that was locked")

    def unlock(self) -> None:
        """Give the folder back; safe to repeat."""
        if self._lock_fd >= 0:
            fd, self._lock_fd = self._lock_fd, -1
            os.close(fd)

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            warning = warning_for(self.path)
            if warning is not None:
                _log.warning("%s", warning)

    def _make_path(self) -> None:
        if os.path.isdir(self.path):
            return
        missing = []
        path = self.path
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            os.mkdir(path, 0o700)
            _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
