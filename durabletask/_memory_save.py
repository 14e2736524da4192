"""The snapshot file of the memory storage: JSON that holds everything, whole or not at all.

The host that held a process is written down, but has no meaning for whoever
loads the file: like a crash, loading frees what was held.
"""

import os
from datetime import datetime
from pathlib import Path

import msgspec

from durabletask._errors import StorageCorruptError, StorageFormatError
from durabletask._memory_process import Asked, Mailbox, ProcessState
from durabletask._model import Checkpoint, Event, ProcessRow, Status

FORMAT = 1


class SavedProcess(msgspec.Struct, frozen=True):
    """One process with everything of its."""

    row: ProcessRow
    claimable_at: datetime | None
    checkpoints: tuple[Checkpoint, ...]
    events: tuple[Event, ...]
    forgotten: tuple[Checkpoint, ...] = ()
    status_after: Status | None = None
    request_ids: tuple[str, ...] = ()
    last_position: int = 0


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds.

    Attributes:
        purged: The last incarnation of each id that was purged.
        fenced: The hosts that may never write again, those of this moment among them.
    """

    durabletask_memory: int = FORMAT
    processes: tuple[SavedProcess, ...]
    purged: dict[str, int]
    fenced: tuple[str, ...]


class _Version(msgspec.Struct):
    durabletask_memory: int


def put_away(process: ProcessState) -> SavedProcess:
    """Return a process as the file holds it."""
    asked = process.asked or Asked()
    return SavedProcess(
        process.row(),
        process.claimable_at,
        process.checkpoints(),
        process.events(),
        asked.forgotten,
        asked.status_after,
        asked.request_ids,
        0 if process.mailbox is None else process.mailbox.last,
    )


def bring_back(saved: SavedProcess) -> ProcessState:
    """Return a process as it was, still held by the host that is gone."""
    row = saved.row
    fields = {name: getattr(row, name) for name in ProcessRow.__struct_fields__}
    asked = Asked(
        cancel_reason=fields.pop("cancel_reason"),
        cancel_met=fields.pop("cancel_met"),
        suspend_reason=fields.pop("suspend_reason"),
        status_after=saved.status_after,
        request_ids=saved.request_ids,
        forgotten=saved.forgotten,
    )
    process = ProcessState(**fields, claimable_at=saved.claimable_at)
    process.asked = None if asked == Asked() else asked
    for checkpoint in saved.checkpoints:
        process.record(checkpoint)
    if saved.events or saved.last_position:
        process.mailbox = Mailbox()
        for event in saved.events:
            process.mailbox.add(event)
        process.mailbox.last = max(process.mailbox.last, saved.last_position)
    return process


def write_file(path: Path, saved: Saved) -> None:
    """Replace the file by this snapshot, durably; after a crash it is the old or the new one.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    text = msgspec.json.encode(saved)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the renaming is an entry of the folder, not of the file
    finally:
        os.close(folder)


def read_file(path: Path) -> Saved:
    """Return what a file holds.

    Raises:
        StorageFormatError: It is no snapshot, or one of a newer version.
        StorageCorruptError: It is a snapshot but cannot be read.
        OSError: There is no such file, or it cannot be opened.
    """
    text = path.read_bytes()
    try:
        version = msgspec.json.decode(text, type=_Version).durabletask_memory
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageFormatError(f"{path} is no snapshot of a memory storage: {error}") from error
    if version != FORMAT:
        raise StorageFormatError(
            f"{path} has format {version}; this version reads {FORMAT}",
            hint="load it with the version of durabletask that saved it",
        )
    try:
        return msgspec.json.decode(text, type=Saved)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageCorruptError(f"{path} is damaged: {error}") from error
