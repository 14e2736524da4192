"""`check`: reads everything, compares it with what can be derived anew, changes nothing."""

import os
from typing import NamedTuple

from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._files import Folder
from durabletask_filesystem._index import Index
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
from durabletask_filesystem._records import Batch
from durabletask_filesystem._recovery import load_index
from durabletask_filesystem._sealing import Standing, index_of
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
    records = size = torn = 0
    for part in manifest.parts:
        is_last = part is manifest.parts[-1]
        inspection = inspect(folder, part, manifest.clean_bytes if is_last else 0)
        problems.extend(inspection.problems)
        batch = _replay(table, inspection)
        records += len(inspection.found)
        size += inspection.found[-1].frame.end if inspection.found else 0
        torn += inspection.torn_bytes
        if not is_last:
            if not inspection.problems:
                problems.extend(_check_index(folder, Segment(folder, part), table, batch))
            table.begin_segment()
    return CheckReport(tuple(problems), len(manifest.parts), records, size, len(table.procs), torn)


def _replay(table: Table, inspection: Inspection) -> int:
    batch = 0
    for frame, record in inspection.found:
        if isinstance(record, Batch):
            batch = record.n
        elif record is not None:
            table.replay(record, inspection.part.number, frame.offset)
    return batch


def _check_index(folder: Folder, segment: Segment, table: Table, batch: int) -> list[Problem]:
    """Compare an index with the one that its segment gives now."""
    name = index_name(segment.number)
    if name.partition("/")[2] not in folder.names("segments"):
        return []  # the next opening makes it
    index = load_index(folder, segment)
    if index is None:
        return [Problem(name, 0, "the index is damaged; the next opening makes it again")]
    anew = Index(index_of(Standing(table, batch), segment))
    if index.entries() != anew.entries():
        return [Problem(name, 0, f"the index does not fit {segment_name(segment.number)}")]
    if index.live() != anew.live():
        return [Problem(name, 0, "the states in the index do not follow from the records")]
    return []
