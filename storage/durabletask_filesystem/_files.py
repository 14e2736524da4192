"""Every touch of a disk, behind one small protocol.

The storage asks a `Folder` and never `os`: so tests can hand it a simulated
disk that forgets, tears and reorders whatever was not synced, or fails any
call. Names are relative to the folder, with at most one "/" in them.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


class SyncError(OSError):
    """A sync failed, and that is final: the kernel may have marked the lost pages clean."""


class File(Protocol):
    """An open file that only grows, or is cut."""

    def append(self, data: Buffer) -> None:
        """Write all of `data` at the end.

        Raises:
            OSError: Some of it, or nothing, was written.
        """
        ...

    def sync(self) -> None:
        """Make everything written so far survive a power loss (fdatasync, with the size)."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes; durable after `sync`."""
        ...

    def close(self) -> None:
        """Close it; says nothing about durability.

        Raises:
            OSError: It is closed, but may be longer than what was written to it.
        """
        ...


class Folder(Protocol):
    """A folder of the real disk, or of a simulated one."""

    def names(self, subfolder: str = "") -> Sequence[str]:
        """Return the names in the folder, or in a subfolder of it, sorted."""
        ...

    def make_subfolder(self, name: str) -> None:
        """Create a subfolder unless it exists (mode 0700); durable after `sync_entries()`."""
        ...

    def create(self, name: str) -> File:
        """Create a new empty file (mode 0600); its entry is durable after `sync_entries`."""
        ...

    def open_end(self, name: str) -> File:
        """Open an existing file for appending.

        Until it is closed, and after a crash, zeros may stand behind what was
        written; `size`, `read` and `map` show them.
        """
        ...

    def size(self, name: str) -> int:
        """Return a file's length in bytes."""
        ...

    def read(self, name: str, offset: int = 0, count: int = -1) -> bytes:
        """Return `count` bytes from `offset`, fewer at the end; -1 for all the rest."""
        ...

    def map(self, name: str) -> Buffer:
        """Return a read-only view of the bytes that a file has now (mmap on a real disk).

        Those bytes do not change while the view is in use; the file may grow.
        """
        ...

    def rename(self, name: str, to: str) -> None:
        """Rename atomically, replacing `to`; durable after `sync_entries` of the folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; durable after `sync_entries`."""
        ...

    def sync_entries(self, subfolder: str = "") -> None:
        """Make creations, renames and removals in the folder or subfolder durable."""
        ...

    def lock(self, name: str, text: bytes) -> None:
        """Take the folder for this program and leave `text` for whoever finds it taken.

        The lock goes when the program dies. The file is never removed.

        Raises:
            BlockingIOError: Another has it; `read(name)` tells who.
        """
        ...

    def check_in_place(self) -> None:
        """Raise OSError if the folder or its lock file was moved, removed or replaced."""
        ...

    def unlock(self) -> None:
        """Give the folder back; safe to repeat."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """A folder that can say when a file is renamed into it."""

    def watch(self, subfolder: str) -> int | None:
        """Return a descriptor that becomes readable then; None if the system cannot tell."""
        ...
