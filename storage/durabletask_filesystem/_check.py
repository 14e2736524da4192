"""`check`: reads everything, compares it with what can be derived anew, changes nothing."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._files import Folder
from durabletask_filesystem._index import Index, id_hash
from durabletask_filesystem._inspection import (
    Inspection,
    Problem,
    guess_manifest,
    inspect,
    load_manifest,
)
from durabletask_filesystem._locking import refuse_no_store, take_lock
from durabletask_filesystem._log import Segment
from durabletask_filesystem._manifest import index_name, segment_name
from durabletask_filesystem._records import Batch, NewRecord, PurgeRecord, singles
from durabletask_filesystem._recovery import load_index
from durabletask_filesystem._sealing import Standing, index_of
from durabletask_filesystem._state import Proc
from durabletask_filesystem._table import Table


class CheckReport(NamedTuple):
    """What a check found.

    Attributes:
        problems: Empty if all is well.
        torn_bytes: An unfinished write at the end, which the next opening cuts.
        unfinished: How many processes have not finished.
    """

    problems: tuple[Problem, ...]
    segments: int
    records: int
    bytes: int
    unfinished: int
    torn_bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check(path: str | os.PathLike[str], *, folder: Folder | None = None) -> CheckReport:
    """Verify every record and index of a store, and that its state follows from its records.

    Takes the folder for as long as it reads; changes nothing but the lock file.

    Raises:
        StorageBusyError: Another program holds the folder.
        StorageFormatError: A newer format, or there is no store.
        StorageUnavailableError: The folder cannot be read.
    """
    if folder is None:
        refuse_no_store(path)
        folder = RealFolder(path)
    take_lock(folder, "check")
    try:
        return _check(folder)
    finally:
        folder.unlock()


def _check(folder: Folder) -> CheckReport:
    manifest, problems = load_manifest(folder)
    if manifest is None:
        manifest = guess_manifest(folder)
    table = Table()
    fates = _Fates()
    records = size = torn = 0
    for part in manifest.parts:
        is_last = part is manifest.parts[-1]
        inspection = inspect(folder, part, manifest.clean_bytes if is_last else 0)
        problems.extend(inspection.problems)
        batch = _replay(table, fates, inspection)
        records += len(inspection.found)
        size += inspection.found[-1].frame.end if inspection.found else 0
        torn += inspection.torn_bytes
        if not is_last:
            if not inspection.problems:
                standing = Standing(table, batch)
                problems.extend(_check_index(folder, Segment(folder, part), standing, fates))
            table.begin_segment()
    problems.extend(fates.problems())
    return CheckReport(tuple(problems), len(manifest.parts), records, size, len(table.procs), torn)


class _Fates:
    """States that do not follow from the records, until it is known whether that matters.

    A merge drops the records of processes that were purged since; indexes of
    segments that it did not touch still have their states of that time.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, bool]] = {}
        self._suspects: list[tuple[str, str, int]] = []
        self._entries: list[tuple[str, int]] = []

    def note(self, record: NewRecord | PurgeRecord) -> None:
        """Remember what became of an id: its latest incarnation, and whether that was purged."""
        self._last[record.id] = record.incarnation, isinstance(record, PurgeRecord)

    def suspect(self, name: str, stored: Sequence[Proc], anew: Sequence[Proc]) -> None:
        """Remember whose states differ."""
        one, other = ({proc.id: proc for proc in procs} for procs in (stored, anew))
        for process_id in one.keys() | other.keys():
            proc = one.get(process_id) or other[process_id]
            if one.get(process_id) != other.get(process_id):
                self._suspects.append((name, process_id, proc.incarnation))

    def suspect_entries(self, name: str, entries: Iterable[tuple[int, ...]]) -> None:
        """Remember entries that the records do not lead to."""
        self._entries.extend((name, entry[0]) for entry in entries)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with those that are still there."""
        for name, process_id, incarnation in self._suspects:
            last, purged = self._last.get(process_id, (incarnation, False))
            if incarnation == last and not purged:
                what = "the state in the index does not follow from the records"
                yield Problem(name, 0, what, process_id)
        if self._entries:
            first = {id_hash(each) for each, fate in self._last.items() if fate == (1, False)}
            for name, wanted in self._entries:
                if wanted in first:
                    yield Problem(name, 0, "the index leads to records that are not there")


def _replay(table: Table, fates: _Fates, inspection: Inspection) -> int:
    batch = 0
    for frame, record in inspection.found:
        if isinstance(record, Batch):
            batch = record.n
        elif record is not None:
            for part in singles(record):
                if isinstance(part, NewRecord | PurgeRecord):
                    fates.note(part)
            table.replay(record, inspection.part.number, frame.offset)
    return batch


def _check_index(
    folder: Folder, segment: Segment, standing: Standing, fates: _Fates
) -> list[Problem]:
    """Compare an index with the one that its segment gives now."""
    name = index_name(segment.number)
    if name.partition("/")[2] not in folder.names("segments"):
        return []  # the next opening makes it
    index = load_index(folder, segment)
    if index is None:
        return [Problem(name, 0, "the index is damaged; the next opening makes it again")]
    anew = Index(index_of(standing, segment))
    (entries, births), (expected, expected_births) = index.entries(), anew.entries()
    fates.suspect_entries(name, set(entries) - set(expected))
    if births != expected_births or not set(expected) <= set(entries):
        return [Problem(name, 0, f"the index does not fit {segment_name(segment.number)}")]
    fates.suspect(name, index.live(), anew.live())
    return []
