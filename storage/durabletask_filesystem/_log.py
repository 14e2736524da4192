"""The segments of an open store: appends, syncs, and reads by place.

Knows frames and files, and nothing of processes. All that is appended between
two calls of `flush` is one batch: one write and one sync. What was appended
can be read at once; it is durable when `flush` has returned.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import durabletask_filesystem._frames as _frames
import durabletask_filesystem._manifest as _manifest
import durabletask_filesystem._records as _records
from durabletask_filesystem._files import Buffer, File, Folder, SyncError
from durabletask_filesystem._index import Index
from durabletask_filesystem._manifest import Manifest, Part, index_name, segment_name

_log = logging.getLogger("durabletask.filesystem")

PENDING_BYTES_MAX = 16 * 1024 * 1024
"""What is held before it goes to the file; bounds the memory of a batch, not its size."""


class DamageError(Exception):
    """A frame is broken or holds something else than it should."""

    def __init__(self, number: int, offset: int, what: str) -> None:
        super().__init__(f"{segment_name(number)} at offset {offset:,}: {what}")


class Segment:
    """One segment: its place in the order, its bytes, and once sealed its index."""

    __slots__ = ("_folder", "_view", "end", "index", "number", "salt")

    def __init__(self, folder: Folder, part: Part, index: Index | None = None) -> None:
        self._folder = folder
        self._view: Buffer = b""
        self.number = part.number
        self.salt = part.salt
        self.end = part.bytes
        self.index = index

    @property
    def part(self) -> Part:
        """How a manifest names it, once it is sealed."""
        return Part(self.number, self.salt, self.end)

    def payload(self, offset: int) -> bytes:
        """Return what the frame at `offset` holds, verified.

        Raises:
            DamageError: There is no intact frame.
        """
        frame = _frames.decode(self.salt, self._view, offset)
        if frame is None:
            # A mapping shows the file's length of when it was made.
            self._view = self._folder.map(segment_name(self.number))
            frame = _frames.decode(self.salt, self._view, offset)
        if frame is None:
            raise DamageError(self.number, offset, "the frame is broken")
        return frame.payload

    def frames(self) -> Iterator[_frames.Frame]:
        """Yield every frame behind the head, verified.

        Raises:
            DamageError: One is broken.
        """
        data = memoryview(self._folder.map(segment_name(self.number)))[: self.end]
        end = 0
        for frame in _frames.scan(self.salt, data, 0):
            end = frame.end
            if frame.offset:
                yield frame
        if end != self.end:
            raise DamageError(self.number, end, "the frame is broken")

    def head(self, merged: tuple[int, ...] = ()) -> bytes:
        """Return its first frame."""
        record = _records.SegmentHead(self.number, self.salt, merged)
        return _frames.encode(self.salt, 0, _records.encode(record))

    def frame(self, payload: bytes) -> bytes:
        """Return the frame that holds `payload` at the end."""
        return _frames.encode(self.salt, self.end, payload)

    def forget_view(self) -> None:
        """Drop the mapping, because the file is about to be cut."""
        self._view = b""


class Log:
    """The segments of an open store; the last one grows."""

    def __init__(self, folder: Folder, manifest: Manifest, entropy: Callable[[int], bytes]) -> None:
        self.folder = folder
        self.segments = [Segment(folder, part) for part in manifest.parts]
        self.next_number = manifest.next_number
        self.batch = 0
        self._entropy = entropy
        self._file: File | None = None
        self._ragged = False  # something may stand in the file behind what was written
        # Payloads that are not in the file yet; they are framed all at once.
        self._pending: list[bytes] = []
        self._start_at(self.segments[-1])

    def _start_at(self, segment: Segment) -> None:
        self.active = segment
        self.number = segment.number
        self._salt = segment.salt
        self.end = self._written = self._durable = segment.end
        self._head_end = len(segment.head())
        self._in_batch = False

    # --- writing -------------------------------------------------------------------------

    def append(self, payload: bytes) -> int:
        """Add a record to the batch and return its offset in the active segment."""
        offset = self.begin_batch()
        self._pending.append(payload)
        self.end = end = offset + len(payload) + _frames.OVERHEAD_BYTES
        if end - self._written > PENDING_BYTES_MAX:
            self.spill()
        return offset

    def begin_batch(self) -> int:
        """Begin a batch unless one has begun, and return the offset of what comes next."""
        if not self._in_batch:
            self._in_batch = True
            self.batch += 1
            payload = _records.encode(_records.Batch(self.batch, self.end))
            self._pending.append(payload)
            self.end += len(payload) + _frames.OVERHEAD_BYTES
        return self.end

    def extend(self, payloads: Sequence[bytes], end: int) -> None:
        """Add records to the batch that has begun; `end` is the offset behind the last."""
        self._pending += payloads
        self.end = end
        if end - self._written > PENDING_BYTES_MAX:
            self.spill()

    def spill(self) -> None:
        """Write what is pending, without a sync: it can be read then, but a crash may take it."""
        if self._pending:
            self._opened().append(_frames.encode_all(self._salt, self._written, self._pending))
            self._pending.clear()
            self._written = self.end

    def flush(self) -> None:
        """End the batch: write it and make it durable.

        Raises:
            SyncError: The sync failed, which is final.
            OSError: The write failed; `cut_back` takes it back.
        """
        self.spill()
        if self._written != self._durable:
            self.sync()
        self._in_batch = False

    def sync(self) -> None:
        """Make everything written durable.

        Raises:
            SyncError: It failed.
        """
        try:
            self._opened().sync()
        except OSError as error:
            raise SyncError(str(error)) from error
        self._durable = self._written

    @property
    def empty(self) -> bool:
        """Whether the active segment holds nothing but its head."""
        return self.end == self._head_end

    @property
    def dirty(self) -> bool:
        """Whether anything was appended since the last `flush`."""
        return self.end != self._durable

    def cut_back(self) -> None:
        """Take back everything since the last `flush`.

        Raises:
            OSError: It could not be; what the file holds then is unknown.
        """
        self._pending.clear()
        self.active.forget_view()
        file = self._opened()
        file.truncate(self._durable)
        file.sync()
        self.end = self._written = self._durable
        if self._in_batch:
            self.batch -= 1
            self._in_batch = False

    def _opened(self) -> File:
        if self._file is None:
            file = self.folder.open_end(segment_name(self.number))
            if self._ragged:
                try:
                    file.truncate(self._written)
                except OSError:
                    with suppress(OSError):
                        file.close()
                    raise
                self._ragged = False
            self._file = file
        return self._file

    # --- reading -------------------------------------------------------------------------

    def segment(self, number: int) -> Segment:
        """Return a segment by number."""
        if number == self.number:
            return self.active
        return next(segment for segment in self.segments if segment.number == number)

    def payload(self, segment: Segment, offset: int) -> bytes:
        """Return what the frame at a place holds, verified.

        Raises:
            DamageError: There is no intact frame.
        """
        if segment is self.active and offset >= self._written:
            self.spill()
        return segment.payload(offset)

    # --- segments ------------------------------------------------------------------------

    def adopt(self, end: int, batch: int) -> None:
        """Take what recovery found: the active segment is intact up to `end`."""
        self.active.end = end
        self.batch = batch
        self._start_at(self.active)

    def manifest(self, *, clean: bool) -> Manifest:
        """Return the manifest of the present files."""
        parts = [segment.part for segment in self.segments[:-1]]
        parts.append(Part(self.number, self._salt))
        return Manifest(
            parts=tuple(parts),
            next_number=self.next_number,
            clean_bytes=self._durable if clean else 0,
        )

    def rotate(self) -> Segment:
        """Seal the active segment as it stands and go on in a new one; return the sealed.

        Everything appended must have been flushed. A crash leaves the old
        manifest or the new one, and each describes a whole store.
        """
        segment, file = create_segment(self.folder, self.next_number, self._entropy)
        file.close()
        parts = [
            *(each.part for each in self.segments[:-1]),
            Part(self.number, self._salt, self.end),
        ]
        _manifest.save(
            self.folder,
            Manifest(
                parts=(*parts, Part(segment.number, segment.salt)),
                next_number=segment.number + 1,
            ),
        )
        # Only now: until the manifest is replaced a failure leaves everything as it was.
        sealed = self.active
        sealed.end = self.end
        self.close_file()
        self.next_number = segment.number + 1
        self.segments.append(segment)
        self._start_at(segment)
        return sealed

    def replace(self, run: Sequence[Segment], target: Segment, index: bytes) -> None:
        """Put one segment in the place of several, and remove their files.

        A crash leaves the old manifest or the new one, and what it does not
        name is removed at the next opening.

        Raises:
            SyncError: The manifest may or may not have been replaced.
            OSError: It was not.
        """
        at = self.segments.index(run[0])
        segments = [*self.segments[:at], target, *self.segments[at + len(run) :]]
        self.write_index(target, index)
        parts = [each.part for each in segments[:-1]]
        _manifest.save(
            self.folder,
            Manifest(
                parts=(*parts, Part(self.number, self._salt)),
                next_number=self.next_number,
                # What was synced once stays so.
                clean_bytes=self._durable,
            ),
        )
        self.segments = segments
        for segment in run:
            for name in (segment_name(segment.number), index_name(segment.number)):
                with suppress(OSError):
                    self.folder.remove(name)

    def write_index(self, segment: Segment, data: bytes) -> None:
        """Give a sealed segment its index, and put it beside it if that is possible.

        Not synced: one that a crash tears is found by its checksum and made again.
        """
        segment.index = Index(data)
        name = index_name(segment.number)
        try:
            if name.partition("/")[2] in self.folder.names("segments"):
                self.folder.remove(name)
            file = self.folder.create(name)
            try:
                file.append(data)
            finally:
                file.close()
            segment.index = Index(self.folder.map(name))
        except (OSError, ValueError) as error:
            _log.warning("%s is kept in memory: %s", name, error)

    def close_file(self) -> None:
        """Close the file of the active segment; it is opened again when needed."""
        if self._file is not None:
            file, self._file = self._file, None
            # It may be cut as it is closed, and nobody may look at what is gone.
            self.active.forget_view()
            # What was acknowledged is synced, so a failing close loses nothing; and after a
            # rotation it must not look as if there had been none.
            try:
                file.close()
            except OSError:
                self._ragged = True


def create_segment(
    folder: Folder,
    number: int,
    entropy: Callable[[int], bytes],
    merged: tuple[int, ...] = (),
) -> tuple[Segment, File]:
    """Create a segment that holds only its head, durably; nothing names it yet."""
    salt = int.from_bytes(entropy(4), "big")
    name = segment_name(number)
    if name.partition("/")[2] in folder.names("segments"):
        folder.remove(name)  # a crash, or a failed attempt, left it before a manifest named it
    file = folder.create(name)
    segment = Segment(folder, Part(number, salt))
    head = segment.head(merged)
    segment.end = len(head)
    try:
        file.append(head)
        file.sync()
        folder.sync_entries("segments")
    except OSError:
        file.close()
        raise
    return segment, file
