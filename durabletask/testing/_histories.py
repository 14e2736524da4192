"""The recorded history of a process outside its storage: exported, brought back, tried with code.

Responsible for the format of an exported history, and for what is told of a
new release of a process function before it is deployed.
"""

import tempfile
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from durabletask._client import ProcessClient
from durabletask._context import Travelling
from durabletask._memory import MemoryStorage
from durabletask._memory_save import Saved, SavedProcess, write_file
from durabletask._rehearsal import Cast, Findings, rehearse
from durabletask._watch import unknown
from durabletask.errors import (
    InvalidArgumentError,
    StorageCorruptError,
    StorageFormatError,
)
from durabletask.storage import (
    CLAIMABLE,
    FINISHED,
    Clock,
    Kind,
    ProcessRow,
    Snapshot,
    Status,
    SystemClock,
)
from durabletask.testing._time import VirtualClock, run_virtual

FORMAT = 1
LINES_MAX = 5
"""Of what is named in one line of a report; the rest is counted."""

_BEFORE_ALL = datetime(2, 1, 1, tzinfo=UTC)
_SYSTEM_CLOCK = SystemClock()


class _Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds: one line of JSON; payloads, which are JSON themselves, in base64."""

    durabletask_history: int = FORMAT
    snapshot: Snapshot


class _Version(msgspec.Struct):
    durabletask_history: int


# --- out of a storage, and into another one ------------------------------------------------


async def export_history(client: ProcessClient, process_id: str) -> bytes:
    """Return all that is recorded of a process, as one line of JSON without its newline.

    Nothing is locked and nothing changes; a process that runs is exported as
    it is at one moment. Mind that it holds the arguments, results and events
    of the process, readable.

    Raises:
        UnknownProcessError: There is no such process.
        StorageError: The storage could not be asked.
    """
    (snapshot,) = await client.storage.read([process_id], history=True)
    if snapshot is None:
        raise unknown(process_id)
    return msgspec.json.encode(_Exported(snapshot=snapshot))


def import_histories(exported: Iterable[bytes], clock: Clock = _SYSTEM_CLOCK) -> MemoryStorage:
    """Return a storage in memory with the exported processes, for tests that go on with them.

    They belong to no host any more, and what has not ended is claimable at
    once, or when it was to start.

    Args:
        exported: Of `export_history`, each of another process.
        clock: The storage's time.

    Raises:
        StorageFormatError: It is no exported history, or one of a newer version.
        StorageCorruptError: It is one, but cannot be read.
    """
    processes = tuple(_saved(read_history(each), clock) for each in exported)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "histories.json"
        write_file(path, Saved(processes=processes, purged={}, fenced=()))
        return MemoryStorage.load(path, clock)


def read_history(exported: bytes) -> Snapshot:
    """Return what an exported history holds.

    Raises:
        StorageFormatError: It is no exported history, or one of a newer version.
        StorageCorruptError: It is one, but cannot be read.
    """
    try:
        version = msgspec.json.decode(exported, type=_Version).durabletask_history
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageFormatError(f"this is no exported history: {error}") from error
    if version != FORMAT:
        raise StorageFormatError(
            f"the exported history has format {version}; this version reads {FORMAT}",
            hint="use the version of durabletask that exported it, or a later one",
        )
    try:
        return msgspec.json.decode(exported, type=_Exported).snapshot
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageCorruptError(f"the exported history is damaged: {error}") from error


def _saved(snapshot: Snapshot, clock: Clock) -> SavedProcess:
    row = msgspec.structs.replace(snapshot.row, owner=None, owner_label=None, parked=False)
    claimable_at: datetime | None = None
    if row.status in CLAIMABLE:
        claimable_at = clock.now()
        if row.start_at is not None and row.epoch == 0:
            claimable_at = max(claimable_at, row.start_at)
    return SavedProcess(
        row,
        claimable_at,
        snapshot.checkpoints,
        snapshot.events,
        snapshot.forgotten,
        _status_after(row, snapshot),
    )


def _status_after(row: ProcessRow, snapshot: Snapshot) -> Status | None:
    """Return how a suspended process goes on."""
    if row.status is not Status.SUSPENDED:
        return None
    decided = any(each.kind is Kind.DECISION for each in snapshot.checkpoints)
    return Status.COMPENSATING if decided else Status.RUNNING


# --- what new code would make of it ---------------------------------------------------------


class Verdict(StrEnum):
    """What would become of a process that goes on with the code; the worst that was found."""

    OK = "ok"
    REPEATS = "may repeat"
    FAILS = "would fail"
    LEAVES_OPEN = "would leave undos open"
    QUARANTINED = "would be quarantined"


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """What one recorded process comes to with the code.

    Calls are named as "kind 'key'", such as "do 'charge'".

    Attributes:
        process_id: Of the process.
        verdict: The worst that was found.
        problem: Why it would be quarantined, or what the function raises that
            comes from no recorded failure; else None.
        never_asked: What is recorded and was not asked for before the
            function came to its end, or to calls that are new. Under other
            keys its effects happen again. Behind a new call it may be asked for
            yet: look where that stands.
        left_behind: The same, but recorded before the last value of a
            variable that the function got: so it is with the rounds that a
            loop with a cursor has behind it. See that it is such a loop.
        next_calls: The new calls that would begin next.
        waits: The recorded waits in which it would go on.
        open_undos: Steps that are to be undone, and have no undo in this code.
        is_over: Whether the function comes to its end without any new call.
    """

    process_id: str
    verdict: Verdict
    problem: BaseException | None = None
    never_asked: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    next_calls: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    open_undos: tuple[str, ...] = ()
    is_over: bool = False

    @property
    def ok(self) -> bool:
        """Whether it goes on with all that it has recorded."""
        return self.verdict is Verdict.OK

    def __str__(self) -> str:
        parts = [f"{self.process_id!a}: {self.verdict.value}"]
        if self.problem is not None:
            parts.append(f"{type(self.problem).__name__}: {self.problem}")
        for what, calls in (
            ("never asked for", self.never_asked),
            ("left behind a cursor", self.left_behind),
            ("undos not found", self.open_undos),
            ("new calls", self.next_calls),
            ("goes on waiting in", self.waits),
        ):
            if calls:
                more = len(calls) - LINES_MAX
                behind = f" and {more} more" if more > 0 else ""
                parts.append(f"{what}: {', '.join(calls[:LINES_MAX])}{behind}")
        return "; ".join(parts)


def check_histories(
    fn: Callable[..., Coroutine[Any, Any, Any]],
    exported: Iterable[bytes],
    *,
    name: str | None = None,
    processes: Iterable[Callable[..., Coroutine[Any, Any, Any]]] = (),
    types: Iterable[type] = (),
    errors: Iterable[type[Exception]] = (),
    context: Iterable[ContextVar[Any]] = (),
) -> list[HistoryReport]:
    """Tell what would become of live processes if this code were deployed.

    Each exported process is resumed as far as it recalls. A durable call that
    is new does not begin: no step runs, nothing is sent, spawned or recorded.
    The function's plain code does run, in virtual time and on a loop of its
    own; it must not need what only production has.

    Args:
        fn: The process function as it is to be deployed.
        exported: Of `export_history`. Finished processes are in order.
        name: Under which it is registered; the function's name if not given.
        processes: The functions that it spawns.
        types, errors, context: As the host has them.

    Returns:
        One report for each, in the same order.

    Raises:
        InvalidArgumentError: A history is of a process function of another name.
        StorageFormatError, StorageCorruptError: A history cannot be read.
        RegistrationError: `fn` is no process function.
    """
    snapshots = [read_history(each) for each in exported]
    others = [other for other in processes if other is not fn]

    async def main(clock: VirtualClock) -> list[HistoryReport]:
        client = ProcessClient(MemoryStorage(clock), processes=others, types=types, errors=errors)
        definition = client.registry.add(fn, name)
        cast = Cast(
            client.registry,
            client.codec,
            client.failures,
            client.limits,
            Travelling(context, client.codec),
        )
        reports = []
        for snapshot in snapshots:
            row = snapshot.row
            if row.name != definition.name:
                raise InvalidArgumentError(
                    f"process {row.process_id!r} is one of {row.name!r}, not of "
                    f"{definition.name!r}",
                    hint=f"name={row.name!r}, if that is what the host registers it as",
                )
            if row.status in FINISHED:
                reports.append(HistoryReport(row.process_id, Verdict.OK, is_over=True))
                continue
            findings = await rehearse(cast, definition, snapshot, clock)
            reports.append(_report(snapshot, findings))
        return reports

    return run_virtual(main, start=_BEFORE_ALL)


def _report(snapshot: Snapshot, found: Findings) -> HistoryReport:
    undoing = any(each.kind is Kind.DECISION for each in snapshot.checkpoints)
    never_asked = () if undoing else tuple(found.never_asked)
    raised = None if undoing else found.raised
    if found.problem is not None:
        verdict = Verdict.QUARANTINED
    elif undoing and found.open_undos:
        verdict = Verdict.LEAVES_OPEN
    elif raised is not None:
        verdict = Verdict.FAILS
    elif never_asked:
        verdict = Verdict.REPEATS
    else:
        verdict = Verdict.OK
    return HistoryReport(
        process_id=snapshot.row.process_id,
        verdict=verdict,
        problem=found.problem or raised,
        never_asked=never_asked,
        left_behind=() if undoing else tuple(found.left_behind),
        next_calls=() if undoing else tuple(found.next_calls),
        waits=() if undoing else tuple(found.waits),
        open_undos=tuple(found.open_undos),
        is_over=found.is_over and not undoing,
    )
