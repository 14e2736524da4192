"""Looking at files without changing or trusting them: what is intact, and what is not.

For `check` and `repair`. Unlike recovery it goes on behind a broken place.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

import durabletask_filesystem._frames as _frames
import durabletask_filesystem._manifest as _manifest
import durabletask_filesystem._records as _records
from durabletask.errors import StorageCorruptError
from durabletask_filesystem._files import Folder
from durabletask_filesystem._manifest import Manifest, Part, segment_name
from durabletask_filesystem._records import SINGLE, Batch, NewRecord, singles


class Problem(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        file: Relative to the folder.
        offset: Where it begins.
        process_id: Whom it concerns, if that can be told.
    """

    file: str
    offset: int
    what: str
    process_id: str | None = None

    def __str__(self) -> str:
        whom = "" if self.process_id is None else f" (process {self.process_id!r})"
        return f"{self.file} at offset {self.offset:,}: {self.what}{whom}"


class Found(NamedTuple):
    """An intact frame, and what it holds; None if it cannot be read."""

    frame: _frames.Frame
    record: "_records.Record | None"


class Inspection(NamedTuple):
    """What is in one segment.

    Attributes:
        found: The intact frames in order.
        problems: Broken places, unreadable records, and chains that lead nowhere.
        affected: Ids of the processes of which something is missing.
        torn_bytes: Length of an unfinished write at the end; no problem.
    """

    part: Part
    found: list[Found]
    problems: list[Problem]
    affected: set[str]
    torn_bytes: int = 0


def inspect(folder: Folder, part: Part, clean_bytes: int) -> Inspection:
    """Read all of a segment.

    Args:
        folder: Of the store.
        part: The segment; `bytes` is 0 for the one that still grows.
        clean_bytes: Of the growing one: how much had been synced at least.
    """
    name = segment_name(part.number)
    result = Inspection(part, [], [], set())
    try:
        data = folder.read(name)
    except FileNotFoundError:
        result.problems.append(Problem(name, 0, "the file is missing"))
        return result
    if part.bytes:
        data = data[: part.bytes]
    expected = part.bytes or clean_bytes
    if len(data) < expected:
        result.problems.append(
            Problem(name, len(data), f"the file ends here; it had {expected:,} bytes")
        )
    end = 0
    for frame in _intact(part.salt, data):
        if frame.offset > end:
            _note_break(name, data[end : frame.offset], end, result)
        result.found.append(_read(name, frame, result))
        end = frame.end
    if not part.bytes:
        # Room that was made ready behind the end.
        data = data[: max(end, len(data.rstrip(b"\0")))]
    torn = len(data) - end
    if torn and (part.bytes or end < clean_bytes or not result.found):
        _note_break(name, data[end:], end, result)
    elif torn:
        result = _forgive_torn_tail(result, torn)
    if not part.bytes:
        result = _forgive_torn_group(result)
    _check_chains(name, result)
    return result


def _intact(salt: int, data: bytes) -> Iterator[_frames.Frame]:
    offset = 0
    while 0 <= offset < len(data):
        frame = _frames.decode(salt, data, offset)
        if frame is None:
            offset = data.find(b"\n", offset) + 1 or -1
        else:
            yield frame
            offset = frame.end


def _note_break(name: str, broken: bytes, offset: int, result: Inspection) -> None:
    """Note a broken place, with whom it concerns as far as that can still be read."""
    whom = _records.all_whom(broken)
    result.affected.update(whom)
    result.problems.append(
        Problem(
            name,
            offset,
            f"{len(broken):,} bytes are broken",
            next(iter(whom)) if len(whom) == 1 else None,
        )
    )


def _forgive_torn_tail(result: Inspection, torn: int) -> Inspection:
    """Count what is broken in the last batch alone as an unfinished write, as recovery does."""
    last = max(
        (each.frame.offset for each in result.found if isinstance(each.record, Batch)), default=0
    )
    for at, problem in enumerate(result.problems):
        if problem.offset > last and "broken" in problem.what:
            gone = [each for each in result.found if each.frame.offset > problem.offset]
            del result.found[len(result.found) - len(gone) :]
            del result.problems[at:]
            return result._replace(
                torn_bytes=torn + sum(each.frame.end - each.frame.offset for each in gone)
            )
    return result._replace(torn_bytes=torn)


def _forgive_torn_group(result: Inspection) -> Inspection:
    """Count a group at the end of which the rest is not there as an unfinished write too."""
    gone = 0
    while result.found and _records.goes_on(result.found[-1].frame.payload):
        frame = result.found.pop().frame
        gone += frame.end - frame.offset
    return result._replace(torn_bytes=result.torn_bytes + gone)


def _read(name: str, frame: _frames.Frame, result: Inspection) -> Found:
    try:
        return Found(frame, _records.decode(frame.payload))
    except msgspec.DecodeError as error:
        ids = _records.whom(frame.payload)
        result.affected.update(ids)
        result.problems.extend(
            Problem(name, frame.offset, f"unreadable record: {error}", process_id)
            for process_id in ids or (None,)
        )
        return Found(frame, None)


def _check_chains(name: str, result: Inspection) -> None:
    """Find processes of which a record is missing: the next one leads to where nothing is."""
    last: dict[str, int] = {}
    for frame, record in result.found:
        if record is None:
            last.update(dict.fromkeys(_records.whom(frame.payload), frame.offset))
            continue
        for part in singles(record):
            if not isinstance(part, SINGLE):
                continue
            if not isinstance(part, NewRecord) and part.prev != last.get(part.id, 0):
                result.affected.add(part.id)
                result.problems.append(Problem(name, part.prev, "a record is missing", part.id))
            last[part.id] = frame.offset


# --- without a manifest ---------------------------------------------------------------------


def load_manifest(folder: Folder) -> tuple[Manifest | None, list[Problem]]:
    """Return the manifest, or None with what is wrong with it."""
    try:
        return _manifest.load(folder), []
    except FileNotFoundError:
        return None, [Problem(_manifest.NAME, 0, "the file is missing")]
    except StorageCorruptError as error:
        return None, [Problem(_manifest.NAME, 0, str(error).partition("\n")[0])]


def guess_manifest(folder: Folder) -> Manifest:
    """Return the manifest that the segments themselves tell of."""
    heads: dict[int, tuple[_records.SegmentHead, int]] = {}
    for name in folder.names("segments"):
        if name.endswith(".log"):
            data = folder.read(f"segments/{name}")
            head = _read_head(data)
            if head is not None:
                heads[head.number] = head, len(data.rstrip(b"\0"))
    for number, (head, _) in list(heads.items()):
        if head.merged and all(each in heads for each in head.merged):
            del heads[number]  # a merge that no manifest named: its sources are all there
        else:
            for each in head.merged:
                heads.pop(each, None)
    order = sorted(heads, key=lambda number: max(heads[number][0].merged, default=number))
    parts = tuple(Part(number, heads[number][0].salt, heads[number][1]) for number in order)
    return Manifest(parts=parts, next_number=max(heads, default=0) + 1)


def _read_head(data: bytes) -> "_records.SegmentHead | None":
    line = data[: data.find(b"\n") + 1]
    try:
        head = _records.decode(line[_frames.HEAD_BYTES :])
    except msgspec.DecodeError:
        return None
    if isinstance(head, _records.SegmentHead) and _frames.decode(head.salt, line, 0) is not None:
        return head
    return None
