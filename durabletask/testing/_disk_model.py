"""What a simulated disk holds: files, names, faults, and what is durable of them.

Data and its transitions only. The calls of a file layer are in `_disk_folder`;
what a power loss may leave behind is enumerated in `_disk_fates`.

The model is weaker than any real disk on purpose. Syncing a file says nothing
of its directory entry; entries of one directory may land in any order that
keeps the order of each name; a failed sync marks its pages clean, so that the
next sync succeeds without them (ext4, XFS and Btrfs do this).
"""

import errno
import os
from dataclasses import dataclass
from typing import NamedTuple


class Image(NamedTuple):
    """What is on a disk when the machine starts: no page cache, nothing pending."""

    files: dict[str, bytes]
    subfolders: tuple[str, ...] = ()


def common_prefix(left: bytes, right: bytes) -> int:
    """Return how many bytes two contents share from their start."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Inode:
    """The content of one file: what is seen, what is durable, and what lies between.

    Attributes:
        seen: What the program reads.
        durable: What survives any power loss.
        pending: The content after each write since the last sync, as the disk
            has been given it; a failed sync makes it another than `seen`.
        tail: What was seen before the last cut; a disk may hand those bytes out again.
        fates: Memo of `_disk_fates`; None whenever anything has changed.
    """

    __slots__ = ("durable", "fates", "pending", "seen", "tail")

    def __init__(self, durable: bytes = b"") -> None:
        self.seen = durable
        self.durable = durable
        self.pending: list[bytes] = []
        self.tail = b""
        self.fates: object = None

    @property
    def given(self) -> bytes:
        """What the disk holds once everything pending has landed."""
        return self.pending[-1] if self.pending else self.durable

    def append(self, data: bytes) -> None:
        """Write at the end, into the page cache."""
        self._become(self.seen + data, self.given + data)

    def cut(self, size: int) -> None:
        """Shorten, in the page cache; a longer size fills with zeros, as ftruncate does."""
        fill = bytes(max(0, size - len(self.seen)))
        self.tail = self.seen
        self._become(self.seen[:size] + fill, self.given[:size] + fill)

    def sync(self) -> None:
        """Make what the disk was given durable."""
        if self.pending:
            self.durable = self.pending[-1]
            self.pending.clear()
            self.fates = None

    def lose(self) -> None:
        """A sync failed: the pages count as clean, and the disk may have zeros in their place."""
        if self.pending:
            kept = common_prefix(self.durable, self.given)
            self.pending.append(self.given[:kept] + bytes(len(self.given) - kept))
            self.fates = None

    def clone(self) -> "Inode":
        """Return an independent copy, page cache and all."""
        twin = Inode(self.durable)
        twin.seen, twin.tail, twin.fates = self.seen, self.tail, self.fates
        twin.pending = self.pending.copy()
        return twin

    def _become(self, seen: bytes, given: bytes) -> None:
        # One object where they are equal: hashes of bytes are remembered by the object.
        self.seen = given if seen == given else seen
        self.pending.append(given)
        self.fates = None


Change = tuple[tuple[str, Inode | None], ...]
"""What one call does to the names of a directory; a part needs those before it to have landed."""


class Directory:
    """The names of one folder: as seen, as durable, and the changes in between."""

    __slots__ = ("changes", "durable", "seen")

    def __init__(self, durable: dict[str, Inode]) -> None:
        self.durable = durable
        self.seen = durable.copy()
        self.changes: list[Change] = []

    def change(self, *parts: tuple[str, Inode | None]) -> None:
        """Point names to files, or to nothing; durable after `sync`."""
        self.changes.append(parts)
        self._apply(self.seen, parts)

    def sync(self) -> None:
        """Make the pending changes durable."""
        for parts in self.changes:
            self._apply(self.durable, parts)
        self.changes.clear()

    @staticmethod
    def _apply(names: dict[str, Inode], parts: Change) -> None:
        for name, inode in parts:
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode


@dataclass(slots=True)
class Fault:
    """One call that fails, or every call from one on.

    Attributes:
        nth: Which of the matching calls fails first, from 1.
        number: The errno of the `OSError`.
        calls: Names of the calls that match ("append", "sync", …); empty for every
            call that changes something.
        for_ever: Whether all later matching calls fail too.
        landed: Share of an append's bytes that is written before it fails.
        struck: How often it has struck.
    """

    nth: int
    number: int = errno.EIO
    calls: frozenset[str] = frozenset()
    for_ever: bool = False
    landed: float = 0.0
    seen: int = 0
    struck: int = 0

    def strikes(self, call: str) -> bool:
        """Count a call and say whether it fails."""
        if call not in (self.calls or CHANGING):
            return False
        self.seen += 1
        hit = self.seen == self.nth or (self.for_ever and self.seen > self.nth)
        self.struck += hit
        return hit

    def error(self, call: str, name: str) -> OSError:
        """Return the error to raise."""
        return OSError(self.number, f"{os.strerror(self.number)} (simulated {call})", name)


CHANGING = frozenset(
    {"append", "sync", "truncate", "create", "rename", "remove", "make_subfolder", "sync_entries"}
)
"""Calls after which the disk is another: the points at which a crash is worth trying."""
