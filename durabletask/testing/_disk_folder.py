"""A folder in memory that remembers what was synced and what was not.

`SimulatedFolder` has the calls of the file layer that a storage of files works
through. It knows nothing of what is stored in it, and it does not decide what
a power loss leaves behind: `_disk_fates` does.
"""

import errno
import os
from collections.abc import Callable, Sequence

from durabletask.testing._disk_model import Directory, Fault, Image, Inode

Buffer = bytes | bytearray | memoryview

FREED_MAX = 4
"""Contents of removed files that a new file may be made to show again."""

EMPTY = Image({})
"""A disk on which nothing was ever written."""


class SimulatedFile:
    """An open file of a `SimulatedFolder`."""

    __slots__ = ("_folder", "_inode", "_name")

    def __init__(self, folder: "SimulatedFolder", name: str, inode: Inode) -> None:
        self._folder = folder
        self._name = name
        self._inode = inode

    def append(self, data: Buffer) -> None:
        """Write all of `data` at the end.

        Raises:
            OSError: By a fault; the share of it that the fault lets through was written.
        """
        folder = self._folder
        try:
            folder.touch("append", self._name)
        except OSError:
            short = bytes(data[: int(len(data) * folder.fault.landed)]) if folder.fault else b""
            if short:
                self._inode.append(short)
            raise
        self._inode.append(bytes(data))

    def sync(self) -> None:
        """Make the content durable.

        Raises:
            OSError: By a fault; then what was pending is lost, and no later sync saves it.
        """
        try:
            self._folder.touch("sync", self._name)
        except OSError:
            self._inode.lose()
            raise
        self._inode.sync()

    def truncate(self, size: int) -> None:
        """Cut to `size` bytes; durable after `sync`."""
        self._folder.touch("truncate", self._name)
        self._inode.cut(size)

    def close(self) -> None:
        """Close it; says nothing about durability."""
        self._folder.touch("close", self._name)


class SimulatedFolder:
    """A folder on a simulated disk.

    Attributes:
        watch: Called with (call, name) before each call, reading ones included:
            the moment for a crash. Set while it is None costs nothing.
        fault: What is to fail.
        moved: Whether `check_in_place` finds the folder gone.
        freed: Contents of removed files, latest last.
    """

    __slots__ = ("_locked", "directories", "fault", "freed", "loose", "moved", "watch")

    def __init__(self, image: Image = EMPTY) -> None:
        names: dict[str, dict[str, Inode]] = {"": {}}
        for subfolder in image.subfolders:
            names[subfolder] = {}
        for path, content in image.files.items():
            subfolder, _, name = path.rpartition("/")
            names[subfolder][name] = Inode(content)
        self.directories = {subfolder: Directory(files) for subfolder, files in names.items()}
        self.loose: set[str] = set()  # subfolders whose own entry is not durable
        self.watch: Callable[[str, str], None] | None = None
        self.fault: Fault | None = None
        self.moved = False
        self.freed: list[bytes] = []
        self._locked = False

    def touch(self, call: str, name: str) -> None:
        """Announce a call to `watch`, then fail it if it is to fail."""
        if self.watch is not None:
            self.watch(call, name)
        if self.fault is not None and self.fault.strikes(call):
            raise self.fault.error(call, name)

    def after_process_crash(self) -> "SimulatedFolder":
        """Return the disk as the next program finds it: page cache kept, lock gone, no faults."""
        twin = SimulatedFolder()
        clones: dict[int, Inode] = {}

        def clone(inode: Inode) -> Inode:
            return clones.setdefault(id(inode), inode.clone())

        for subfolder, directory in self.directories.items():
            copy = Directory({name: clone(inode) for name, inode in directory.durable.items()})
            copy.seen = {name: clone(inode) for name, inode in directory.seen.items()}
            copy.changes = [
                tuple((name, None if inode is None else clone(inode)) for name, inode in parts)
                for parts in directory.changes
            ]
            twin.directories[subfolder] = copy
        twin.loose = self.loose.copy()
        twin.freed = self.freed.copy()
        return twin

    def image(self) -> Image:
        """Return what the program sees, as if all of it had landed."""
        files = {
            f"{subfolder}/{name}" if subfolder else name: inode.seen
            for subfolder, directory in self.directories.items()
            for name, inode in directory.seen.items()
        }
        return Image(files, tuple(name for name in self.directories if name))

    # --- the calls of the file layer -------------------------------------------------

    def names(self, subfolder: str = "") -> Sequence[str]:
        """Return the names in the folder, or in a subfolder of it, sorted."""
        self.touch("names", subfolder)
        names = list(self._directory(subfolder, subfolder).seen)
        if not subfolder:
            names += [name for name in self.directories if name]
        return sorted(names)

    def make_subfolder(self, name: str) -> None:
        """Create a subfolder unless it exists; durable after `sync_entries()`."""
        self.touch("make_subfolder", name)
        if name not in self.directories:
            self.directories[name] = Directory({})
            self.loose.add(name)

    def create(self, name: str) -> SimulatedFile:
        """Create a new empty file; its entry is durable after `sync_entries`."""
        self.touch("create", name)
        directory, base = self._place(name)
        if base in directory.seen:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        inode = Inode()
        directory.change((base, inode))
        return SimulatedFile(self, name, inode)

    def open_end(self, name: str) -> SimulatedFile:
        """Open an existing file for appending."""
        self.touch("open_end", name)
        return SimulatedFile(self, name, self._inode(name))

    def size(self, name: str) -> int:
        """Return a file's length in bytes."""
        self.touch("size", name)
        return len(self._inode(name).seen)

    def read(self, name: str, offset: int = 0, count: int = -1) -> bytes:
        """Return `count` bytes from `offset`, fewer at the end; -1 for all the rest."""
        self.touch("read", name)
        seen = self._inode(name).seen
        return seen[offset:] if count < 0 else seen[offset : offset + count]

    def map(self, name: str) -> Buffer:
        """Return the content of a file that no longer changes."""
        self.touch("map", name)
        return self._inode(name).seen

    def rename(self, name: str, to: str) -> None:
        """Rename atomically, replacing `to`; durable after `sync_entries` of the folder."""
        self.touch("rename", name)
        directory, base = self._place(name)
        inode = self._inode(name)
        target, target_base = self._place(to)
        replaced = target.seen.get(target_base)
        if replaced is not None and replaced is not inode:
            self._free(replaced)
        if target is directory:
            directory.change((target_base, inode), (base, None))
        else:
            target.change((target_base, inode))
            directory.change((base, None))

    def remove(self, name: str) -> None:
        """Remove a file; durable after `sync_entries`."""
        self.touch("remove", name)
        directory, base = self._place(name)
        self._free(self._inode(name))
        directory.change((base, None))

    def sync_entries(self, subfolder: str = "") -> None:
        """Make creations, renames and removals in the folder or subfolder durable.

        Raises:
            OSError: By a fault; then what was pending may never land, whatever follows.
        """
        directory = self._directory(subfolder, subfolder)
        try:
            self.touch("sync_entries", subfolder)
        except OSError:
            directory.changes.clear()
            raise
        directory.sync()
        if not subfolder:
            self.loose.clear()

    def lock(self, name: str, text: bytes) -> None:
        """Take the folder for this program.

        The text of the lock file is taken for durable at once: it is never
        read to recover, and its fates would only inflate the count of states.

        Raises:
            BlockingIOError: It is taken.
        """
        self.touch("lock", name)
        if self._locked:
            raise BlockingIOError(errno.EAGAIN, "the simulated folder is locked", name)
        self._locked = True
        directory, base = self._place(name)
        if base not in directory.seen:
            directory.change((base, Inode()))
        inode = directory.seen[base]
        inode.seen = inode.durable = bytes(text)
        inode.fates = None

    def check_in_place(self) -> None:
        """Raise OSError if the folder was moved away."""
        self.touch("check_in_place", "")
        if self.moved:
            raise OSError(errno.ESTALE, "the simulated folder was replaced")

    def unlock(self) -> None:
        """Give the folder back; safe to repeat."""
        self._locked = False

    def _directory(self, subfolder: str, path: str) -> Directory:
        directory = self.directories.get(subfolder)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return directory

    def _place(self, path: str) -> tuple[Directory, str]:
        subfolder, _, name = path.rpartition("/")
        return self._directory(subfolder, path), name

    def _inode(self, path: str) -> Inode:
        directory, name = self._place(path)
        inode = directory.seen.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def _free(self, inode: Inode) -> None:
        """Remember a removed file's bytes, which a disk may show in a new file."""
        if inode.seen:
            self.freed = [*self.freed, inode.seen][-FREED_MAX:]
