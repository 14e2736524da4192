"""Every disk that a power loss may leave behind, given what was not synced.

Pure: from a `SimulatedFolder` to images, with the randomness handed in. What
is allowed is what POSIX does not forbid: any subset of the 512-byte sectors
written since the last sync, each as it was after any of those writes; the
length of before, of after, or any between; zeros, ones or stale bytes where
the length landed and the data did not; a last write torn at any byte; any
subset of a directory's changes that keeps the order of each name. What was
synced stays.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import NamedTuple

from durabletask.testing._disk_folder import SimulatedFolder
from durabletask.testing._disk_model import Directory, Image, Inode, common_prefix

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""

GARBAGE = Random(7).randbytes(64 * 1024)
"""Bytes that mean nothing, where there are no stale ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far to go; beyond a bound the fates are drawn by chance instead of all tried.

    Attributes:
        subsets_max: Choices of landed sectors for one length and one filling (2 ** 8).
        tears_max: Bytes of the last write at which it is torn.
        entries_max: Choices of landed directory changes.
        joint_max: Combinations of what several files hold.
        states_max: Images of one cut in all; half of them with all directory changes landed.
    """

    subsets_max: int = 256
    tears_max: int = 1024
    entries_max: int = 64
    joint_max: int = 1024
    states_max: int = 8192


class Landed(IntEnum):
    """How much of what was pending is on the disk."""

    ALL = 0
    NONE = 1
    PART = 2


class Content(NamedTuple):
    """What one file may hold after the power loss."""

    data: bytes
    landed: Landed


class Contents(NamedTuple):
    """All that one file may hold: by sectors, and with the last write torn at a byte."""

    sectors: list[Content]
    tears: list[Content]


class Fate(NamedTuple):
    """One disk after the power loss.

    Attributes:
        key: Equal for equal images and, but for one chance in 2 ** 64, for no others.
    """

    key: int
    files: dict[str, bytes]
    subfolders: tuple[str, ...]
    landed: Landed

    @property
    def image(self) -> Image:
        """The disk, to start a machine from."""
        return Image(self.files, self.subfolders)


class Tree(NamedTuple):
    """One choice of landed directory changes: which file is under which path."""

    inodes: dict[str, Inode]
    subfolders: tuple[str, ...]
    landed: Landed


def fates(folder: SimulatedFolder, bounds: Bounds, random: Random) -> Iterator[Fate]:
    """Yield every disk that a power loss now may leave, each once per choice that differs."""
    found = list(trees(folder, bounds, random))
    budget = bounds.states_max // 2 if len(found) > 1 else bounds.states_max
    for tree in found:
        whole = tree.landed is Landed.ALL
        yield from itertools.islice(_files(folder, tree, bounds, random, tears=whole), budget)
        budget = max(1, bounds.states_max // 2 // len(found))


def extremes(folder: SimulatedFolder) -> tuple[Fate, ...]:
    """Return the disk on which all of what is pending landed, and the one where nothing did."""
    best = _disk(folder, Landed.ALL)
    worst = _disk(folder, Landed.NONE)
    return (best,) if best.key == worst.key else (best, worst)


def _disk(folder: SimulatedFolder, landed: Landed) -> Fate:
    whole = landed is Landed.ALL
    files = {}
    subfolders = []
    for name, directory in folder.directories.items():
        if name and (whole or name not in folder.loose):
            subfolders.append(name)
        elif name:
            continue
        for base, inode in (directory.seen if whole else directory.durable).items():
            files[f"{name}/{base}" if name else base] = inode.given if whole else inode.durable
    return Fate(_key(files, tuple(subfolders)), files, tuple(subfolders), landed)


def _key(files: dict[str, bytes], subfolders: tuple[str, ...]) -> int:
    key = hash(subfolders)
    for item in files.items():
        key ^= hash(item)
    return key


def contents(inode: Inode, strays: Sequence[bytes], bounds: Bounds, random: Random) -> Contents:
    """Return what a file may hold, without repeats; remembered until the file changes."""
    if isinstance(inode.fates, Contents):
        return inode.fates
    versions = [inode.durable, *inode.pending]
    size = max(map(len, versions))
    fillings = [bytes(size), b"\xff" * size, *((stray + GARBAGE)[:size] for stray in strays)]
    known: set[bytes] = set()
    found = Contents([], [])
    for into, candidates in (
        (found.sectors, _by_sectors(versions, fillings, bounds, random)),
        (found.tears, _by_tears(versions, fillings, bounds, random)),
    ):
        for data in candidates:
            if data not in known:
                known.add(data)
                into.append(Content(data, _landed(data, versions)))
    inode.fates = found
    return found


def _landed(data: bytes, versions: list[bytes]) -> Landed:
    if data == versions[-1]:
        return Landed.ALL
    return Landed.NONE if data == versions[0] else Landed.PART


def _by_sectors(
    versions: list[bytes], fillings: list[bytes], bounds: Bounds, random: Random
) -> Iterator[bytes]:
    """Yield contents in which each sector is as it was after some write, for each length."""
    same = min(common_prefix(versions[0], version) for version in versions[1:])
    start = same // SECTOR_BYTES * SECTOR_BYTES
    sizes = {len(version) for version in versions}
    sizes.update(range(start + SECTOR_BYTES, max(sizes), SECTOR_BYTES))
    head = versions[-1][:start]
    # The last version first, so that whatever is cut short by a bound begins with what is usual.
    latest = versions[::-1]
    yield versions[-1]
    yield versions[0]
    for size in sorted(sizes, reverse=True):
        if size < start:
            yield next(version for version in latest if len(version) >= size)[:size]
            continue
        for filling in fillings:
            choices = [
                list(
                    dict.fromkeys(
                        version[at : min(at + SECTOR_BYTES, size)]
                        + filling[max(at, len(version)) : min(at + SECTOR_BYTES, size)]
                        for version in latest
                    )
                )
                for at in range(start, size, SECTOR_BYTES)
            ]
            for chosen in _combinations(choices, bounds.subsets_max, random):
                yield head + b"".join(chosen)


def _by_tears(
    versions: list[bytes], fillings: list[bytes], bounds: Bounds, random: Random
) -> Iterator[bytes]:
    """Yield contents in which the last write ends at a byte, with and without its length."""
    before, last = versions[-2], versions[-1]
    if len(last) <= len(before) or not last.startswith(before):
        return
    places: Sequence[int] = range(len(before) + 1, len(last))
    if len(places) > bounds.tears_max:
        places = sorted(random.sample(places, bounds.tears_max))
    for at in places:
        yield last[:at]
        for filling in fillings:
            yield last[:at] + filling[at : len(last)]


def _combinations(
    choices: Sequence[Sequence[bytes]], at_most: int, random: Random
) -> Iterator[tuple[bytes, ...]]:
    if math.prod(map(len, choices)) <= at_most:
        yield from itertools.product(*choices)
        return
    for _ in range(at_most):
        yield tuple(random.choice(options) for options in choices)


def trees(folder: SimulatedFolder, bounds: Bounds, random: Random) -> Iterator[Tree]:
    """Yield the choices of landed directory changes, the one where all landed first."""
    names = list(folder.directories)
    options = [_entries(folder.directories[name], bounds, random) for name in names]
    loose = sorted(folder.loose)
    losses = [
        lost for count in range(len(loose) + 1) for lost in itertools.combinations(loose, count)
    ]
    everything: Iterator[tuple[tuple[dict[str, Inode], ...], tuple[str, ...]]]
    if math.prod(map(len, options)) * len(losses) <= bounds.entries_max:
        everything = itertools.product(itertools.product(*options), losses)
    else:
        first: tuple[dict[str, Inode], ...] = tuple(option[0] for option in options)
        drawn = (
            (tuple(random.choice(option) for option in options), random.choice(losses))
            for _ in range(bounds.entries_max)
        )
        everything = itertools.chain([(first, losses[0])], drawn)
    for rank, (entries, lost) in enumerate(everything):
        inodes = {
            f"{name}/{base}" if name else base: inode
            for name, linked in zip(names, entries, strict=True)
            if name not in lost
            for base, inode in linked.items()
        }
        subfolders = tuple(name for name in names if name and name not in lost)
        yield Tree(inodes, subfolders, Landed.PART if rank else Landed.ALL)


def _entries(directory: Directory, bounds: Bounds, random: Random) -> list[dict[str, Inode]]:
    """Return the contents that a directory may have, as all changes leave it first."""
    changes = directory.changes
    if not changes:
        return [directory.seen]
    # Of each name, the changes that touch it, latest first; -1 is the durable entry.
    history: dict[str, list[int]] = {}
    for number, parts in enumerate(changes):
        for name, _ in parts:
            history.setdefault(name, [-1]).insert(0, number)
    if math.prod(map(len, history.values())) <= bounds.entries_max:
        chosen = list(itertools.product(*history.values()))
    else:
        ends = [tuple(found[0] for found in history.values()), (-1,) * len(history)]
        chosen = ends + [
            tuple(random.choice(found) for found in history.values())
            for _ in range(bounds.entries_max)
        ]
    found = []
    for numbers in chosen:
        landed = dict(zip(history, numbers, strict=True))
        if all(_in_order(parts, number, landed) for number, parts in enumerate(changes)):
            found.append(_linked(directory, landed))
    return found


def _in_order(
    parts: tuple[tuple[str, Inode | None], ...], number: int, landed: dict[str, int]
) -> bool:
    """Return whether no part of a change is there without the parts before it."""
    there = [landed[name] >= number for name, _ in parts]
    return there == sorted(there, reverse=True)


def _linked(directory: Directory, landed: dict[str, int]) -> dict[str, Inode]:
    names = {name: inode for name, inode in directory.durable.items() if name not in landed}
    for name, number in landed.items():
        inode = directory.durable.get(name) if number < 0 else dict(directory.changes[number])[name]
        if inode is not None:
            names[name] = inode
    return names


def _files(
    folder: SimulatedFolder, tree: Tree, bounds: Bounds, random: Random, *, tears: bool
) -> Iterator[Fate]:
    """Yield the disks of one choice of directory changes."""
    settled = {path: inode.durable for path, inode in tree.inodes.items() if not inode.pending}
    base = _key(settled, tree.subfolders)
    pending = [path for path, inode in tree.inodes.items() if inode.pending]
    if not pending:
        yield Fate(base, settled, tree.subfolders, tree.landed)
        return
    choices = []
    for path in pending:
        strays = _strays(folder, path, tree.inodes[path])
        choices.append(contents(tree.inodes[path], strays, bounds, random))
    for chosen in _chosen(choices, bounds, random, tears=tears):
        key = base
        files = settled.copy()
        landed = tree.landed
        for path, content in zip(pending, chosen, strict=True):
            files[path] = content.data
            key ^= hash((path, content.data))
            if content.landed is not landed:
                landed = Landed.PART if landed or content.landed is Landed.PART else content.landed
        yield Fate(key, files, tree.subfolders, landed)


def _chosen(
    choices: list[Contents], bounds: Bounds, random: Random, *, tears: bool
) -> Iterator[tuple[Content, ...]]:
    """Yield one content for each pending file: combinations, then each file's with few others."""
    if len(choices) == 1:
        yield from ((content,) for content in choices[0].sectors)
        if tears:
            yield from ((content,) for content in choices[0].tears)
        return
    if math.prod(len(choice.sectors) for choice in choices) <= bounds.joint_max // 2:
        yield from itertools.product(*(choice.sectors for choice in choices))
    else:
        for _ in range(bounds.joint_max // 2):
            yield tuple(random.choice(choice.sectors) for choice in choices)
    single = [
        (place, content, other)
        for place, choice in enumerate(choices)
        for content in (*choice.sectors, *(choice.tears if tears else ()))
        # With the others as they were at best (first) and at worst (second).
        for other in (0, 1)
    ]
    if len(single) > bounds.joint_max // 2:
        single = random.sample(single, bounds.joint_max // 2)
    for place, content, other in single:
        rest = [found.sectors[min(other, len(found.sectors) - 1)] for found in choices]
        rest[place] = content
        yield tuple(rest)


def _strays(folder: SimulatedFolder, path: str, inode: Inode) -> list[bytes]:
    """Return contents whose freed blocks a disk may show in a file: its own cut tail, another's."""
    found = [inode.tail] if inode.tail and not inode.given.startswith(inode.tail) else []
    others = [other for other in folder.freed if other not in found]
    if not others:
        directory = folder.directories[path.rpartition("/")[0]]
        others = [other.durable for other in directory.seen.values() if other is not inode]
    return [*found, *sorted(others, key=len)[-1:]]
