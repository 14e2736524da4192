"""`repair`: saves what is intact of a damaged store, and says what it could not save.

Intact segments stay as they are. A damaged one is replaced by one with its
intact records; processes of which something is missing are quarantined, never
run as if nothing had happened. The damaged files are kept in `torn/`.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec

import durabletask_filesystem._manifest as _manifest
import durabletask_filesystem._records as _records
from durabletask.storage import FINISHED, Clock, Form, Status, SystemClock
from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._files import Folder
from durabletask_filesystem._frames import OVERHEAD_BYTES
from durabletask_filesystem._index import id_hash
from durabletask_filesystem._inspection import (
    Inspection,
    Problem,
    guess_manifest,
    inspect,
    load_manifest,
)
from durabletask_filesystem._locking import refuse_no_store, take_lock
from durabletask_filesystem._log import Segment, create_segment
from durabletask_filesystem._manifest import Manifest, Part, index_name, segment_name
from durabletask_filesystem._records import SINGLE, EndingRecord, NewRecord, singles
from durabletask_filesystem._recovery import load_index
from durabletask_filesystem._store import Store


class RepairReport(NamedTuple):
    """What a repair did.

    Attributes:
        problems: What was wrong.
        quarantined: Processes of which something is missing; they wait for a person.
        incomplete: Finished ones of which something is missing.
        lost: Processes whose creation is missing; nothing of them could be kept.
        kept_aside: The damaged files, in `torn/`.
    """

    problems: tuple[Problem, ...]
    quarantined: tuple[str, ...]
    incomplete: tuple[str, ...]
    lost: tuple[str, ...]
    kept_aside: tuple[str, ...]


def repair(
    path: str | os.PathLike[str],
    *,
    folder: Folder | None = None,
    clock: Clock | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> RepairReport:
    """Make a store that opens out of what is intact of a damaged one.

    A crash while it works leaves the damaged store or the repaired one.

    Raises:
        StorageBusyError: Another program holds the folder.
        StorageFormatError: A newer format, or there is no store; nothing was touched.
        StorageUnavailableError: The folder cannot be written.
    """
    if folder is None:
        refuse_no_store(path)
        folder = RealFolder(path)
    take_lock(folder, "repair")
    try:
        work = _Repair(folder, entropy)
        work.rewrite()
    finally:
        folder.unlock()
    store = Store.open(folder, SystemClock() if clock is None else clock, entropy=entropy)
    try:
        quarantined, incomplete, lost = _set_aside(store, work.affected)
    finally:
        store.close()
    return RepairReport(tuple(work.problems), quarantined, incomplete, lost, tuple(work.kept_aside))


class _Repair:
    """The rewriting of damaged segments."""

    def __init__(self, folder: Folder, entropy: Callable[[int], bytes]) -> None:
        self._folder = folder
        self._entropy = entropy
        self.affected: set[str] = set()
        self.kept_aside: list[str] = []
        found, self.problems = load_manifest(folder)
        self._is_guess = found is None
        self._manifest = guess_manifest(folder) if found is None else found
        self._next_number = self._manifest.next_number
        self._created: set[str] = set()

    def rewrite(self) -> None:
        """Replace the damaged segments, and the manifest last."""
        parts: list[Part] = []
        damaged: list[Part] = []
        for part in self._manifest.parts:
            is_last = part is self._manifest.parts[-1]
            clean_bytes = self._manifest.clean_bytes if is_last else 0
            inspection = inspect(self._folder, part, clean_bytes)
            self.problems.extend(inspection.problems)
            self.affected |= inspection.affected | self._orphans(inspection)
            if inspection.problems:
                self.affected |= self._known_by_index(inspection)
            if inspection.problems:
                damaged.append(part)
                parts.append(self._salvage(inspection))
            else:
                parts.append(part)
        if not damaged and not self._is_guess:
            return
        if not parts or parts[-1].bytes:
            segment, file = create_segment(self._folder, self._take_number(), self._entropy)
            file.close()
            parts.append(Part(segment.number, segment.salt))
        # From the first change on the states follow from other records.
        changed = {part.number for part in self._manifest.parts} if damaged else set()
        manifest = Manifest(parts=tuple(parts), next_number=self._next_number)
        self._keep_aside(damaged)
        for number in changed:
            self._remove(index_name(number))
        _manifest.save(self._folder, manifest)
        for part in damaged:
            self._remove(segment_name(part.number))
        self._folder.sync_entries("segments")

    def _take_number(self) -> int:
        number = self._next_number
        self._next_number += 1
        return number

    def _orphans(self, inspection: Inspection) -> set[str]:
        """Return the processes that have records but, here and before, no creation."""
        orphans = set()
        for _, record in inspection.found:
            for part in () if record is None else singles(record):
                if isinstance(part, NewRecord):
                    self._created.add(part.id)
                elif isinstance(part, SINGLE) and part.id not in self._created:
                    orphans.add(part.id)
        return orphans

    def _known_by_index(self, inspection: Inspection) -> set[str]:
        """Return the processes whose last record here is another than the index says."""
        index = load_index(self._folder, Segment(self._folder, inspection.part))
        if index is None:
            return set()
        last: dict[str, int] = dict.fromkeys(self._created, 0)
        for frame, record in inspection.found:
            for part in () if record is None else singles(record):
                process_id = getattr(part, "id", None)
                if process_id is not None and not isinstance(part, _records.StateRecord):
                    last[process_id] = frame.offset
        return {
            process_id
            for process_id, offset in last.items()
            if any(each[0] not in {0, offset} for each in index.find(id_hash(process_id)))
        }

    def _salvage(self, inspection: Inspection) -> Part:
        """Write the intact records of a segment into a new one, durably."""
        merged = (inspection.part.number,)
        segment, file = create_segment(self._folder, self._take_number(), self._entropy, merged)
        last: dict[str, int] = {}
        parts = []
        for frame, record in inspection.found:
            if record is None or isinstance(record, _records.SegmentHead | _records.Batch):
                continue
            for part in singles(record):
                payload = frame.payload
                if isinstance(part, SINGLE):
                    if part.id not in self._created:
                        continue
                    prev = last.get(part.id, 0)
                    if not isinstance(part, NewRecord):
                        part = msgspec.structs.replace(part, prev=prev)
                    payload = _records.encode(part)
                    last[part.id] = segment.end
                parts.append(segment.frame(payload))
                segment.end += len(payload) + OVERHEAD_BYTES
        try:
            file.append(b"".join(parts))
            file.sync()
        finally:
            file.close()
        return segment.part

    def _keep_aside(self, damaged: list[Part]) -> None:
        """Copy the damaged files, since the manifest that names them goes last."""
        for part in damaged:
            name = segment_name(part.number)
            try:
                data = self._folder.read(name)
            except FileNotFoundError:
                continue
            copy = f"torn/{part.number:08d}-damaged"
            self._remove(copy)
            file = self._folder.create(copy)
            try:
                file.append(data)
                file.sync()
            finally:
                file.close()
            self.kept_aside.append(copy)
        self._folder.sync_entries("torn")

    def _remove(self, name: str) -> None:
        try:
            self._folder.remove(name)
        except FileNotFoundError:
            return


def _set_aside(
    store: Store, affected: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Quarantine the affected processes that have not finished; sort the others."""
    quarantined, incomplete, lost = [], [], []
    for process_id in sorted(affected):
        status = store.status(process_id)
        if status is None:
            lost.append(process_id)
        elif status in FINISHED:
            incomplete.append(process_id)
        else:
            quarantined.append(process_id)
            if status is not Status.QUARANTINED:
                store.quarantine(process_id, _ENDING)
    return tuple(quarantined), tuple(incomplete), tuple(lost)


_ENDING = EndingRecord(
    Status.QUARANTINED,
    msgspec.Raw(
        msgspec.json.encode(
            {"type": "StorageCorruptError", "message": "records of this process were lost"}
        )
    ),
    Form.ERROR,
)
