"""Compaction: sealed segments merged into one, without what nobody can ask for any more.

Dropped are purged processes and earlier incarnations, what was before a
process's latest restart, checkpoints that a later one replaced, and the
records of claims, leases and most requests, whose outcome is kept as states.
Groups become single records. Histories stay complete. The sources are never
changed: a crash at any point leaves the manifest with the old segments or with
the new one.

Works in slices on the storage's own thread, so that commits come in between
and nothing is shared between threads.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

import durabletask_filesystem._records as _records
from durabletask.storage import Kind
from durabletask_filesystem._files import File
from durabletask_filesystem._frames import OVERHEAD_BYTES, Frame
from durabletask_filesystem._history import Library
from durabletask_filesystem._index import Head, build, id_hash
from durabletask_filesystem._log import Log, Segment, create_segment
from durabletask_filesystem._records import (
    SINGLE,
    CheckpointRecord,
    ControlRecord,
    EventRecord,
    LeaseRecord,
    NewRecord,
    PurgeRecord,
    RestartRecord,
    Single,
    StateRecord,
    UnitRecord,
    singles,
)
from durabletask_filesystem._state import (
    BORN_SHIFT,
    OFFSET_MASK,
    SEGMENT_SHIFT,
    Proc,
    Reborn,
    within,
)
from durabletask_filesystem._table import Table, micros

SLICE_FRAMES = 1_000
SYNC_BYTES = 4 * 1024 * 1024
"""Synced in parts, because one sync of a whole segment would hold up commits."""

RUN_BYTES_MAX = 1024 * 1024 * 1024
"""Of what is merged at once; offsets are 32 bits."""

_DEAD_MIN = 0.5
_SMALL = 0.25
_SMALL_RUN_MIN = 8

_FORGOTTEN = 1 << 62
"""As a seq: what is recorded until here was put aside, and is not replaced by what comes."""

Slot = tuple[str, int, Kind, str, int]
Moment = tuple[int, int]
"""Epoch and seq of a unit."""


class _Now(NamedTuple):
    """What an id stands for at present."""

    incarnation: int
    is_purged: bool = False
    reborn: Reborn | None = None


def worth_merging(log: Log, dead: dict[int, int], segment_bytes_max: int) -> list[Segment]:
    """Return the run of sealed segments that it pays to merge, or none.

    Args:
        log: The open segments.
        dead: Bytes known to be dead, by number of segment.
        segment_bytes_max: What a full segment holds.
    """
    best: list[Segment] = []
    best_gain = 0
    run: list[Segment] = []
    for segment in [*log.segments[:-1], None]:
        if segment is not None and (
            dead.get(segment.number, 0) >= _DEAD_MIN * segment.end
            or segment.end < _SMALL * segment_bytes_max
        ):
            run.append(segment)
            continue
        gain = sum(dead.get(each.number, 0) for each in run)
        size = sum(each.end for each in run)
        pays = run and (gain >= _DEAD_MIN * size or len(run) >= _SMALL_RUN_MIN)
        if pays and size <= RUN_BYTES_MAX and gain >= best_gain:
            best, best_gain = run, gain
        run = []
    return best


def mergeable(log: Log) -> list[Segment]:
    """Return the oldest sealed segments, as many as can be merged at once."""
    run: list[Segment] = []
    size = 0
    for segment in log.segments[:-1]:
        size += segment.end
        if size > RUN_BYTES_MAX:
            break
        run.append(segment)
    return run


class Compaction:
    """One merge, from beginning to end."""

    def __init__(
        self,
        log: Log,
        table: Table,
        library: Library,
        run: Sequence[Segment],
        entropy: Callable[[int], bytes],
    ) -> None:
        self._log = log
        self._table = table
        self._library = library
        self._run = list(run)
        self._entropy = entropy
        self._current: dict[str, _Now] = {}
        self._replaced: dict[Slot, list[Moment]] = {}
        self._spots: dict[str, int] = {}
        self._births: tuple[array[int], array[int]] = (array("q"), array("I"))
        self._file: File | None = None
        self._parts: list[bytes] = []
        self._synced = 0

    def steps(self) -> Iterator[None]:
        """Do the work, a slice between one `yield` and the next.

        Raises:
            DamageError: A source is damaged; nothing was changed.
            SyncError: The manifest may or may not have been replaced, which is final.
            OSError: The disk did not take it; nothing was changed.
        """
        yield from self._find_replaced()
        number = self._log.next_number
        self._log.next_number += 1
        merged = tuple(each.number for each in self._run)
        self._target, self._file = create_segment(self._log.folder, number, self._entropy, merged)
        try:
            yield from self._copy()
            live = self._write_states()
            self._write(sync=True)
        finally:
            self._file.close()
        self._log.replace(self._run, self._target, self._index(live))

    # --- which records are dead ------------------------------------------------------------

    def _find_replaced(self) -> Iterator[None]:
        """Learn which unit was the last to replace each slot."""
        for frame in self._frames():
            if frame is None:
                yield
            elif b'"replaces":true' in frame.payload or b'"forget":[' in frame.payload:
                record = _decode(frame)
                for part in () if record is None else singles(record):
                    self._note_replaced(part)

    def _note_replaced(self, record: "_records.Record") -> None:
        if isinstance(record, UnitRecord):
            for each in record.checkpoints:
                if each.replaces:
                    moments = self._replaced.setdefault(_slot(record, each), [])
                    if moments and moments[-1][1] != _FORGOTTEN:
                        moments.pop()
                    moments.append((record.epoch, record.seq))
        elif isinstance(record, ControlRecord) and record.state is not None:
            for place in record.forget:
                slot = record.id, record.incarnation, place.kind, place.key, place.index
                self._replaced.setdefault(slot, []).append((record.state.epoch - 1, _FORGOTTEN))

    def _is_replaced(self, unit: UnitRecord, each: CheckpointRecord) -> bool:
        mine = unit.epoch, unit.seq
        moments = self._replaced.get(_slot(unit, each), ())
        # What replaces it last before it is put aside, if it ever is.
        last = next((moment for moment in moments if moment >= mine), mine)
        return last != mine and last[1] != _FORGOTTEN

    def _frames(self) -> Iterator[Frame | None]:
        """Yield all frames of the sources, and None after each slice."""
        for segment in self._run:
            for seen, frame in enumerate(segment.frames(), 1):
                yield frame
                if seen % SLICE_FRAMES == 0:
                    yield None

    def _now(self, process_id: str) -> _Now:
        found = self._current.get(process_id)
        if found is None:
            proc = self._table.procs.get(process_id)
            if proc is not None:
                found = _Now(proc.incarnation, reborn=proc.more.reborn)
            else:
                last = self._library.last_word(process_id)
                if last is None:
                    found = _Now(0)
                elif isinstance(last, PurgeRecord):
                    found = _Now(last.incarnation, is_purged=True)
                else:
                    state = last.state
                    reborn = None if state is None else state.more.reborn
                    found = _Now(last.incarnation, reborn=reborn)
            self._current[process_id] = found
        return found

    def _is_dead(self, process_id: str, incarnation: int) -> bool:
        now = self._now(process_id)
        return incarnation < now.incarnation or (now.is_purged and incarnation == now.incarnation)

    def _is_past(self, record: Single) -> bool:
        """Return whether a record is of a generation that is over, and not kept."""
        reborn = self._now(record.id).reborn
        if reborn is None:
            return False
        match record:
            case UnitRecord() | RestartRecord():
                return (record.epoch, record.seq) < (reborn.epoch, reborn.seq)
            case ControlRecord():
                return record.state is not None and record.state.epoch <= reborn.epoch
            case EventRecord():
                return record.position <= reborn.events and not within(record.position, reborn.kept)
        return False

    # --- copying ---------------------------------------------------------------------------

    def _copy(self) -> Iterator[None]:
        for frame in self._frames():
            if frame is None:
                self._write(sync=False)
                yield
                continue
            record = _decode(frame)
            if record is None:
                self._keep_unreadable(frame.payload)
                continue
            for part in singles(record):
                if isinstance(part, PurgeRecord):
                    now = self._now(part.id)
                    if now.is_purged and part.incarnation == now.incarnation:
                        self._append(part.id, _records.encode(part))
                elif (
                    isinstance(part, SINGLE)
                    and not self._is_dead(part.id, part.incarnation)
                    and not self._is_past(part)
                ):
                    self._keep(part)

    def _keep(self, record: Single) -> None:
        if isinstance(record, NewRecord):
            self._births[0].append(micros(record.at))
            self._births[1].append(self._target.end)
            self._spots[record.id] = self._target.end << BORN_SHIFT
            self._append(record.id, _records.encode(record))
            return
        if isinstance(record, ControlRecord) and record.state is None:
            return
        if isinstance(record, UnitRecord) and self._replaced:
            kept = tuple(each for each in record.checkpoints if not self._is_replaced(record, each))
            if not kept and not record.consumes and record.ending is None:
                return
            record = msgspec.structs.replace(record, checkpoints=kept)
        prev = self._spots.get(record.id, 0) & OFFSET_MASK
        record = msgspec.structs.replace(record, prev=prev)
        if isinstance(record, RestartRecord):
            self._spots[record.id] = self._target.end << BORN_SHIFT
        self._append(record.id, _records.encode(record))

    def _keep_unreadable(self, payload: bytes) -> None:
        """Copy what cannot be read as it is: it goes on damaging its process."""
        ids = _records.whom(payload)
        if ids:
            self._append(ids, payload)

    def _append(self, ids: str | Sequence[str], payload: bytes) -> None:
        offset = self._target.end
        for process_id in (ids,) if isinstance(ids, str) else ids:
            self._spots[process_id] = self._spots.get(process_id, 0) & ~OFFSET_MASK | offset
        self._parts.append(self._target.frame(payload))
        self._target.end = offset + len(payload) + OVERHEAD_BYTES

    def _write(self, *, sync: bool) -> None:
        assert self._file is not None
        self._file.append(b"".join(self._parts))
        self._parts.clear()
        if sync or self._target.end - self._synced > SYNC_BYTES:
            self._file.sync()
            self._synced = self._target.end

    # --- what the dropped records had led to -------------------------------------------------

    def _write_states(self) -> list[Proc]:
        """Write where the unfinished processes and the hosts stood at the end of the sources."""
        live: list[Proc] = []
        for at, segment in enumerate(self._run):
            newer = [each.index for each in self._run[at + 1 :] if each.index is not None]
            assert segment.index is not None
            for proc in segment.index.live():
                wanted = id_hash(proc.id) if newer else 0
                if any(index.find(wanted) for index in newer):
                    continue
                if not self._is_dead(proc.id, proc.incarnation):
                    live.append(proc)
        for proc in live:
            self._append((), _records.encode(StateRecord(proc.id, proc)))
            self._spots.setdefault(proc.id, 0)
        head = self._last_head()
        for host, label in head.hosts.items():
            self._append((), _records.encode(LeaseRecord(host, label, head.latest)))
        return live

    def _last_head(self) -> Head:
        index = self._run[-1].index
        assert index is not None
        return index.head

    def _index(self, live: list[Proc]) -> bytes:
        target = self._target
        head = msgspec.structs.replace(
            self._last_head(), segment=target.number, salt=target.salt, bytes=target.end
        )
        number = target.number << SEGMENT_SHIFT
        spots = ((process_id, number | spot) for process_id, spot in self._spots.items())
        return build(head, spots, self._births, live)


def _decode(frame: Frame) -> "_records.Record | None":
    try:
        return _records.decode(frame.payload)
    except msgspec.DecodeError:
        return None


def _slot(unit: UnitRecord, each: CheckpointRecord) -> Slot:
    return unit.id, unit.incarnation, each.kind, each.key, each.index
