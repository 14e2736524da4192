"""Reading and listing processes. Writes nothing."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import datetime
from heapq import nsmallest

import msgspec

from durabletask.errors import InvalidArgumentError, StorageCorruptError
from durabletask.storage import FINISHED, Page, ProcessRow, Query, Snapshot
from durabletask_filesystem._desk import check_id
from durabletask_filesystem._history import Library
from durabletask_filesystem._log import DamageError, Log, Segment
from durabletask_filesystem._offspring import BEFORE_ALL, Offspring
from durabletask_filesystem._records import NewRecord, singles
from durabletask_filesystem._state import Proc
from durabletask_filesystem._table import Table, micros

_REPAIR = "python -m durabletask_filesystem repair DIR"

LIVE_FEW = 50_000
"""So many unfinished processes are sorted faster than all creations are looked at."""

Birth = tuple[int, str]
"""When a process was created, in microseconds since 1970, and its id: the order of a listing."""


def bare_row(library: Library, proc: Proc) -> ProcessRow:
    """Return a process's row, without its input where its creation cannot be read."""
    try:
        return library.row(proc)
    except DamageError:
        lost = NewRecord(
            proc.id,
            proc.incarnation,
            proc.created_at,
            proc.name,
            msgspec.Raw(b"null"),
            "",
            "",
            start_at=proc.start_at,
        )
        return library.row(proc, lost)


class Reader:
    """Answers questions."""

    def __init__(self, log: Log, table: Table, library: Library) -> None:
        self._log = log
        self._table = table
        self._library = library
        self._offspring = Offspring(self._creations, self._latest_place)

    def read(self, process_ids: Sequence[str], *, history: bool) -> tuple[Snapshot | None, ...]:
        """Read processes; see the seam for the rules.

        Raises:
            StorageCorruptError: What was asked for is damaged.
        """
        return tuple([self._read(process_id, history=history) for process_id in process_ids])

    def _read(self, process_id: str, *, history: bool) -> Snapshot | None:
        check_id(process_id, self._table)
        try:
            proc = self.find(process_id)
            if proc is None:
                return None
            if not history:
                return Snapshot(self._library.row(proc))
            if process_id in self._table.damage:
                raise StorageCorruptError(
                    f"the history of process {process_id!r} is damaged: "
                    f"{self._table.damage[process_id]}",
                    hint=_REPAIR,
                )
            read = self._library.history(self._library.trail(proc))
            row = self._library.row(proc, read.creation)
            return Snapshot(row, read.checkpoints, read.events, read.forgotten)
        except DamageError as error:
            raise StorageCorruptError(
                f"process {process_id!r} is damaged: {error}", hint=_REPAIR
            ) from error

    def find(self, process_id: str) -> Proc | None:
        """Return a process, finished or not.

        Raises:
            DamageError: What ended it cannot be read.
        """
        proc = self._table.procs.get(process_id)
        return self._library.finished(process_id) if proc is None else proc

    # --- listing -------------------------------------------------------------------------

    def list(self, query: Query, scan_max: int) -> Page:
        """List processes in order of creation; see the seam for the rules.

        Looks at about `scan_max` processes at most, and then answers with what
        it found and a cursor, so that no listing holds up commits for long.

        Raises:
            InvalidArgumentError: The cursor is none of this storage's.
        """
        after = _parse_cursor(query.cursor)
        if query.parent_id is not None and not self._offspring.look(scan_max):
            return Page((), _cursor(after))
        births = self._candidates(query, after, scan_max)
        rows: list[ProcessRow] = []
        last = after
        for seen, birth in enumerate(births):
            # One more is looked at than is needed: on the last page there is no cursor.
            if len(rows) == query.limit or seen >= scan_max:
                return Page(tuple(rows), _cursor(last))
            last = birth
            row = self._match(query, birth)
            if row is not None:
                rows.append(row)
        return Page(tuple(rows))

    def _candidates(self, query: Query, after: Birth, scan_max: int) -> Iterator[Birth]:
        """Return the births after one among which is all that a query asks for, in order."""
        if query.parent_id is not None:
            children = self._offspring.of(query.parent_id)
            if children is not None:
                return (birth for birth in children if birth > after)
        is_live = query.statuses is not None and not query.statuses & FINISHED
        if is_live and len(self._table.procs) <= LIVE_FEW:
            return self._live_births(after, scan_max)
        return self._births(after)

    def _match(self, query: Query, birth: Birth) -> ProcessRow | None:
        try:
            proc = self.find(birth[1])
        except DamageError:
            return None  # reading it says what is wrong; a list of the others is still useful
        if proc is None or micros(proc.created_at) != birth[0] or not _fits(query, proc):
            return None
        row = bare_row(self._library, proc)
        if query.parent_id is not None and (
            row.parent is None or row.parent.process_id != query.parent_id
        ):
            return None
        if any(row.tags.get(key) != value for key, value in query.tags.items()):
            return None
        return row

    def _live_births(self, after: Birth, scan_max: int) -> Iterator[Birth]:
        births = ((micros(proc.created_at), proc.id) for proc in self._table.procs.values())
        # One more than is looked at, so that the end of the scan is not taken for that of all.
        return iter(nsmallest(scan_max + 1, (birth for birth in births if birth > after)))

    def _births(self, after: Birth) -> Iterator[Birth]:
        """Yield all births after one, in order; those of purged processes among them."""
        group: list[str] = []
        moment = after[0]
        for at, new in self._creations(after[0]):
            if at != moment:
                yield from _ordered(moment, group, after)
                group, moment = [], at
            group.append(new.id)
        yield from _ordered(moment, group, after)

    def _latest_place(self) -> tuple[int, int, int]:
        """Return where the latest creation stands, with how many segments there are."""
        offsets = self._table.births[1]
        count = len(self._log.segments)
        return (count, self._log.active.number, offsets[-1] if offsets else -1)

    def _creations(self, since: int) -> Iterator[tuple[int, NewRecord]]:
        """Yield what can be read of the creations from a moment on, with their moments."""
        for segment, at, offset in self._birth_places(since):
            try:
                record = self._library.read(segment, offset)
            except DamageError:
                continue
            for each in singles(record):
                if isinstance(each, NewRecord):
                    yield at, each

    def _birth_places(self, since: int) -> Iterator[tuple[Segment, int, int]]:
        for segment in self._log.segments[:-1]:
            assert segment.index is not None
            times, offsets = segment.index.birth_times, segment.index.birth_offsets
            for place in range(bisect_left(times, since), len(times)):
                yield segment, times[place], offsets[place]
        own_times, own_offsets = self._table.births
        for place in range(bisect_left(own_times, since), len(own_times)):
            yield self._log.active, own_times[place], own_offsets[place]


def _ordered(moment: int, ids: Sequence[str], after: Birth) -> Iterator[Birth]:
    for process_id in sorted(ids):
        if (moment, process_id) > after:
            yield moment, process_id


def _fits(query: Query, proc: Proc) -> bool:
    if query.statuses is not None and proc.status not in query.statuses:
        return False
    if query.name is not None and proc.name != query.name:
        return False
    if query.prefix is not None and not proc.id.startswith(query.prefix):
        return False
    return _within(proc.created_at, query.created_from, query.created_until) and (
        (query.finished_from is None and query.finished_until is None)
        or (
            proc.finished_at is not None
            and _within(proc.finished_at, query.finished_from, query.finished_until)
        )
    )


def _within(moment: datetime, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or moment >= since) and (until is None or moment < until)


def _cursor(birth: Birth) -> str:
    return f"{birth[0]}/{birth[1]}"


def _parse_cursor(cursor: str | None) -> Birth:
    if cursor is None:
        return BEFORE_ALL, ""
    text, slash, process_id = cursor.partition("/")
    try:
        moment = int(text)
    except ValueError:
        moment = 0
        slash = ""
    if not slash:
        raise InvalidArgumentError(
            f"{cursor!r} is not a cursor of this storage", hint="pass Page.cursor as it is"
        )
    return moment, process_id
