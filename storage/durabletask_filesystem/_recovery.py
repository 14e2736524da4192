"""From the files of a folder to a store that may serve: open, verify, cut, make durable.

Nothing is served that a power loss could still take back. A broken frame is a
torn tail only where no later batch and no mark says that it had been synced;
anything else is damage, and refused with file and offset. Runs on a real disk
and, a million times, on a simulated one: small folders open in microseconds.
"""

import logging
import re
from collections.abc import Callable, Iterator

import msgspec

import durabletask_filesystem._frames as _frames
import durabletask_filesystem._manifest as _manifest
import durabletask_filesystem._records as _records
from durabletask.errors import StorageCorruptError, StorageFormatError
from durabletask_filesystem._files import Folder
from durabletask_filesystem._index import Index, id_hash
from durabletask_filesystem._log import DamageError, Log, Segment, create_segment
from durabletask_filesystem._manifest import Manifest, Part, index_name, segment_name
from durabletask_filesystem._sealing import seal
from durabletask_filesystem._table import Table

_log = logging.getLogger("durabletask.filesystem")

_OURS = frozenset({"LOCK", "MANIFEST", "MANIFEST.tmp", "segments", "torn", "inbox"})
_SEGMENT_FILE = re.compile(r"(\d{8})\.(log|idx)")
_REPAIR = "python -m durabletask_filesystem repair DIR"


def recover(folder: Folder, entropy: Callable[[int], bytes]) -> tuple[Log, Table]:
    """Open the store in a folder, or make a new one in an empty folder.

    Raises:
        StorageFormatError: A newer format, or a folder of something else; nothing was touched.
        StorageCorruptError: Acknowledged data is damaged; nothing was touched.
        OSError: The folder cannot be read or written.
    """
    names = folder.names()
    if _manifest.NAME in names:
        manifest = _manifest.load(folder)
        for name in ("torn", "inbox"):
            if name not in names:
                folder.make_subfolder(name)
        # A crash may have come between the rename of the manifest and its sync.
        folder.sync_entries()
    else:
        manifest = _found(folder, entropy)
    log = Log(folder, manifest, entropy)
    table = Table()
    _check_sizes(log)
    unindexed = _load_indexes(log, table)
    for segment in unindexed:
        replay_sealed(log, table, segment)
        seal(log, table, segment)
    _replay_active(log, table, manifest)
    _remove_leftovers(log)
    return log, table


def refuse_foreign(folder: Folder) -> None:
    """Refuse a folder of something else, before even a lock file is put there.

    Raises:
        StorageFormatError: It has files, but no store; nothing was touched.
    """
    try:
        names = set(folder.names())
    except OSError:
        return  # there is none yet, or it cannot be used: taking the lock tells
    foreign = sorted(names - _OURS)
    if foreign and _manifest.NAME not in names:
        raise StorageFormatError(
            f"the folder is not empty and holds no store: {foreign[0]!r}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""),
            hint="give the store a folder of its own",
        )


def _found(folder: Folder, entropy: Callable[[int], bytes]) -> Manifest:
    """Make a new store, in an order in which a crash leaves no store or a whole one."""
    if "segments" in folder.names():
        _refuse_lost_manifest(folder)
    for name in ("segments", "torn", "inbox"):
        folder.make_subfolder(name)
    # Before the manifest: a crash must not leave it without the folder that it speaks of.
    folder.sync_entries()
    segment, file = create_segment(folder, 1, entropy)
    file.close()
    manifest = Manifest(parts=(Part(1, segment.salt),), next_number=2)
    _manifest.save(folder, manifest)
    return manifest


def _refuse_lost_manifest(folder: Folder) -> None:
    """Refuse to begin anew over segments that hold something."""
    for name in folder.names("segments"):
        path = f"segments/{name}"
        if name.endswith(".log") and _records.BATCH_MARK in folder.read(path):
            raise StorageCorruptError(
                f"MANIFEST is missing, but {path} holds data at offset 0", hint=_REPAIR
            )


def _check_sizes(log: Log) -> None:
    for segment in log.segments[:-1]:
        name = segment_name(segment.number)
        try:
            size = log.folder.size(name)
        except FileNotFoundError:
            raise StorageCorruptError(
                f"{name} is missing, at offset 0 of {segment.end:,}", hint=_REPAIR
            ) from None
        if size < segment.end:
            raise StorageCorruptError(
                f"{name} ends at offset {size:,}; it had {segment.end:,} bytes", hint=_REPAIR
            )


# --- sealed segments ----------------------------------------------------------------------


def load_index(folder: Folder, segment: Segment) -> Index | None:
    """Return the index of a sealed segment, or None where it has to be made again."""
    name = index_name(segment.number)
    try:
        index = Index(folder.map(name))
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.DecodeError) as error:
        _log.warning("%s is made again: %s", name, error)
        return None
    head = index.head
    if (head.segment, head.salt, head.bytes) != (segment.number, segment.salt, segment.end):
        _log.warning("%s is made again: it is of another segment", name)
        return None
    return index


def _load_indexes(log: Log, table: Table) -> list[Segment]:
    """Fill the table from indexes; return the segments from the first one without, in order."""
    sealed = log.segments[:-1]
    for segment in sealed:
        segment.index = load_index(log.folder, segment)
    good = next((at for at, each in enumerate(sealed) if each.index is None), len(sealed))
    indexes = [each.index for each in sealed[:good] if each.index is not None]
    if indexes:
        head = indexes[-1].head
        log.batch = head.batch
        table.hosts = dict(head.hosts)
        table.damage = dict(head.damage)
        table.dead = dict(head.dead)
        table.ended = set(head.ended)
        table.held = dict(head.held)
        table.latest = head.latest
    for at, index in enumerate(indexes):
        newer = indexes[at + 1 :]
        for proc in index.live():
            wanted = id_hash(proc.id) if newer else 0
            # A newer segment that touches it knows better: also that it has finished.
            if not any(each.find(wanted) for each in newer):
                table.adopt(proc)
    return sealed[good:]


def replay_sealed(log: Log, table: Table, segment: Segment) -> None:
    """Apply all of a sealed segment, verified."""
    try:
        for frame in segment.frames():
            replay_frame(log, table, segment, frame)
    except DamageError as error:
        raise StorageCorruptError(str(error), hint=_REPAIR) from error


def replay_frame(log: Log, table: Table, segment: Segment, frame: _frames.Frame) -> None:
    """Apply one intact frame; one that cannot be read damages its process only."""
    try:
        record = _records.decode(frame.payload)
    except msgspec.DecodeError as error:
        _set_aside(table, segment, frame, error)
        return
    if type(record) is _records.Batch:
        log.batch = record.n
    else:
        table.replay(record, segment.number, frame.offset)


def _set_aside(
    table: Table, segment: Segment, frame: _frames.Frame, error: msgspec.DecodeError
) -> None:
    place = f"{segment_name(segment.number)} at offset {frame.offset:,}"
    ids = _records.whom(frame.payload)
    if not ids:
        raise StorageCorruptError(
            f"{place}: unreadable record of nobody: {error}", hint=_REPAIR
        ) from error
    for process_id in ids:
        _log.error("process %r is damaged: %s: unreadable record: %s", process_id, place, error)
        table.note_damage(
            process_id, f"{place}: unreadable record: {error}", segment.number, frame.offset
        )


# --- the active segment -------------------------------------------------------------------


def _replay_active(log: Log, table: Table, manifest: Manifest) -> None:
    folder, segment = log.folder, log.active
    name = segment_name(segment.number)
    try:
        data = folder.read(name)
    except FileNotFoundError:
        raise StorageCorruptError(f"{name} is missing, at offset 0", hint=_REPAIR) from None
    end = 0
    part: list[_frames.Frame] = []
    for frame in _frames.scan(segment.salt, data, 0):
        end = frame.end
        if _records.goes_on(frame.payload):
            part.append(frame)
        elif frame.offset:
            for each in (*part, frame):
                replay_frame(log, table, segment, each)
            part.clear()
    if part:
        end = part[0].offset  # the rest of the group is not there, so nothing of it counts
    if end == 0 or end < manifest.clean_bytes:
        raise StorageCorruptError(
            f"{name} is broken at offset {end:,}, in data that had been synced", hint=_REPAIR
        )
    if end == len(data):
        log.adopt(end, log.batch)
        if end != manifest.clean_bytes:
            # What was read may be in the page cache only; nothing is served before it is on disk.
            log.sync()
        log.close_file()
        return
    if not data[end:].strip(b"\0"):
        # Room that was made ready for what never came: nothing of it was ever data.
        log.adopt(end, log.batch)
        log.cut_back()
        log.close_file()
        return
    later = next(_later_batches(segment, data, end, log.batch), None)
    if later is not None:
        raise StorageCorruptError(
            f"{name} is broken at offset {end:,}, before a later batch at offset {later:,}",
            hint=_REPAIR,
        )
    log.adopt(end, log.batch)
    _cut_torn_tail(log, table, data[end:])


def _later_batches(segment: Segment, data: bytes, end: int, batch: int) -> Iterator[int]:
    """Yield the offsets of batches that prove that what is broken had been synced."""
    for frame in _frames.search(segment.salt, data, end, _records.BATCH_MARK):
        record = _records.decode(frame.payload)
        # The frame that is broken at `end` may be the next batch's first; one after it may not.
        if isinstance(record, _records.Batch) and record.n > batch:
            yield frame.offset


def _cut_torn_tail(log: Log, table: Table, tail: bytes) -> None:
    """Cut what a crash left of the last, never acknowledged batch; keep it aside.

    The segment is sealed where it is intact, and a new one with a new salt
    goes on: so not even a disk that brings cut bytes back can make them data.
    """
    folder, segment = log.folder, log.active
    log.sync()
    tail = tail.rstrip(b"\0")  # room that was made ready
    _keep_aside(folder, f"torn/{segment.number:08d}-{log.end}", tail)
    _log.warning(
        "%s: %d bytes of an unfinished write cut at offset %d",
        segment_name(segment.number),
        len(tail),
        log.end,
    )
    sealed = log.rotate()
    file = folder.open_end(segment_name(sealed.number))
    try:
        file.truncate(sealed.end)
        file.sync()
    finally:
        file.close()
    seal(log, table, sealed)


def _keep_aside(folder: Folder, name: str, tail: bytes) -> None:
    subfolder, _, own = name.partition("/")
    if own in folder.names(subfolder):
        folder.remove(name)
    file = folder.create(name)
    try:
        file.append(tail)
        file.sync()
    finally:
        file.close()
    folder.sync_entries(subfolder)


def _remove_leftovers(log: Log) -> None:
    """Remove the segments and indexes that a crash left and no manifest names."""
    kept = {segment.number for segment in log.segments}
    for name in log.folder.names("segments"):
        found = _SEGMENT_FILE.fullmatch(name)
        if found is not None and int(found[1]) not in kept:
            log.folder.remove(f"segments/{name}")
