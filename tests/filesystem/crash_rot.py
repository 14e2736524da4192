"""Bit rot: every bit of a small store turned over, one at a time.

What may come of it: exactly the old content; a refusal to open that says
where; or one process set aside, all others whole. Never a shorter history.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from durabletask.errors import DurableTaskError, StorageCorruptError, StorageFormatError
from durabletask.storage import Page, Query, Snapshot
from durabletask.testing.disk import Image, SimulatedFolder
from durabletask_filesystem._requests import ListPage, Read
from durabletask_filesystem._store import Store
from tests.filesystem.crash_play import CLOCK, State, quiet, state
from tests.filesystem.crash_scenarios import (
    commit,
    create,
    deliver,
    ending,
    event,
    new,
    open_lease,
    unit,
)

DAMAGED: State = ("damaged", 0, 0, 0, 0, 0)
PROCESSES = ("p", "q", "r")
Found = dict[str, State]


@dataclass(frozen=True, slots=True)
class Small:
    """A store of two sealed segments and a tail, each with its own processes.

    Attributes:
        tail: Path of the segment that was growing.
        last: Where in it the last batch begins.
    """

    image: Image
    tail: str
    last: int

    def cut(self, size: int) -> Image:
        """Return the disk with the tail cut to a size."""
        files = {**self.image.files, self.tail: self.image.files[self.tail][:size]}
        return Image(files, self.image.subfolders)


def small_store(*, clean: bool) -> Small:
    """Write a small store, and close it or not."""
    folder = SimulatedFolder()
    store = Store.open(folder, CLOCK, entropy=Random(3).randbytes)
    store.apply(open_lease())
    store.apply(create(new("p"), new("q")))
    store.apply(commit(unit("p", 1, "a"), ending("q", 1)))
    store.rotate()
    store.apply((*deliver(event("p", 1)), *create(new("r"))))
    store.rotate()
    store.apply(commit(unit("p", 2, "b")))
    tail = "segments/" + max(name for name in folder.names("segments") if name.endswith(".log"))
    last = folder.size(tail)
    store.apply(commit(unit("p", 3, "c"), ending("r", 1, epoch=1)))
    if clean:
        store.close()
    return Small(folder.image(), tail, last)


def served_each(image: Image) -> Found | str:
    """Recover a disk and read each process on its own; a damaged one is `DAMAGED`."""
    with quiet():
        return _served_each(image)


def _served_each(image: Image) -> Found | str:
    try:
        store = Store.open(SimulatedFolder(image), CLOCK, entropy=Random(4).randbytes)
        (page,) = store.apply((ListPage(Query(limit=1000)),))
    except (StorageCorruptError, StorageFormatError) as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(page, DurableTaskError):
        return f"{type(page).__name__}: {page}"
    assert isinstance(page, Page)
    # By name, because a listing leaves out what it cannot read (and logs it).
    names = sorted({*PROCESSES, *(row.process_id for row in page.rows)})
    return {name: found for name in names if (found := _read(store, name)) is not None}


def _read(store: Store, process_id: str) -> State | None:
    try:
        (answer,) = store.apply((Read((process_id,), history=True),))
    except StorageCorruptError:
        return DAMAGED
    if isinstance(answer, StorageCorruptError):
        return DAMAGED
    assert isinstance(answer, tuple), answer
    (snapshot,) = answer
    if snapshot is None:
        return None
    assert isinstance(snapshot, Snapshot)
    return state(snapshot)


def flips(image: Image, only: str = "") -> Iterator[tuple[str, int, Image]]:
    """Yield the disk with each bit of each file of the store turned over: path, offset, disk."""
    for path, content in image.files.items():
        if path == "LOCK" or not path.startswith(only):
            continue
        for offset, byte in enumerate(content):
            for bit in range(8):
                turned = content[:offset] + bytes([byte ^ 1 << bit]) + content[offset + 1 :]
                yield path, offset, Image({**image.files, path: turned}, image.subfolders)


def rot(
    image: Image, *, only: str = "", also: tuple[Found, ...] = ()
) -> tuple[Counter[str], list[str]]:
    """Turn over every bit; return how often what came of it, and what must not have.

    Args:
        image: The disk.
        only: Start of the paths that rot; all if empty.
        also: Contents that are good as well: what a cut of an unfinished tail leaves.
    """
    expected = served_each(image)
    assert isinstance(expected, dict)
    course: Counter[str] = Counter()
    wrong: list[str] = []
    for path, offset, disk in flips(image, only):
        kind = judge(served_each(disk), expected, also)
        course[kind] += 1
        if kind == "wrong":
            wrong.append(f"{path} at offset {offset:,}")
    return course, wrong


def judge(found: Found | str, expected: Found, also: tuple[Found, ...]) -> str:
    """Say what came of one flip."""
    if isinstance(found, str):
        return "refused"
    if found == expected:
        return "unharmed"
    if found in also:
        return "cut"
    changed = [name for name in expected if found.get(name) != expected[name]]
    if found.keys() == expected.keys() and [found[name] for name in changed] == [DAMAGED]:
        return "set aside"
    return "wrong"
