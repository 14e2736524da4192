"""The manifest: which files make up the store. Replaced as a whole, never changed in place.

Whatever a crash leaves that the manifest does not name is not part of the
store. One frame, so that a damaged manifest is found and a person can read it.
"""

import msgspec

import durabletask_filesystem._frames as _frames
from durabletask.errors import StorageCorruptError, StorageFormatError
from durabletask_filesystem._files import Folder, SyncError
from durabletask_filesystem._records import FORMAT

NAME = "MANIFEST"
_DRAFT = "MANIFEST.tmp"


class Part(msgspec.Struct, frozen=True):
    """One segment.

    Attributes:
        bytes: Its length once sealed; 0 for the last, which still grows.
    """

    number: int
    salt: int
    bytes: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the folder holds.

    Attributes:
        parts: The segments in order; only the last one grows.
        next_number: Of the next segment; numbers are never used twice.
        clean_bytes: How much of the last segment was there and synced at the
            last clean close. A break below it is damage and not a torn tail.
    """

    format: int = FORMAT
    parts: tuple[Part, ...]
    next_number: int
    clean_bytes: int = 0


class _Format(msgspec.Struct, frozen=True):
    format: int


def segment_name(number: int) -> str:
    """Return the file of a segment."""
    return f"segments/{number:08d}.log"


def index_name(number: int) -> str:
    """Return the file of a segment's index."""
    return f"segments/{number:08d}.idx"


def load(folder: Folder) -> Manifest:
    """Read the manifest.

    Raises:
        StorageCorruptError: It is damaged.
        StorageFormatError: A newer version wrote it.
        FileNotFoundError: There is none.
    """
    frame = _frames.decode(0, folder.read(NAME), 0)
    if frame is None:
        raise StorageCorruptError(
            "MANIFEST at offset 0 is damaged",
            hint="python -m durabletask_filesystem repair DIR",
        )
    try:
        version = msgspec.json.decode(frame.payload, type=_Format).format
        if version > FORMAT:
            raise StorageFormatError(
                f"the store has format {version}; this version reads up to {FORMAT}",
                hint="use the newer version of the library",
            )
        return msgspec.json.decode(frame.payload, type=Manifest)
    except msgspec.DecodeError as error:
        raise StorageCorruptError(f"MANIFEST cannot be read: {error}") from error


def save(folder: Folder, manifest: Manifest) -> None:
    """Replace the manifest; when this returns the new one survives a power loss.

    Raises:
        SyncError: The new one is there but may not last.
        OSError: The old one is there.
    """
    if _DRAFT in folder.names():
        folder.remove(_DRAFT)
    file = folder.create(_DRAFT)
    try:
        file.append(_frames.encode(0, 0, msgspec.json.encode(manifest)))
        # Before the rename: else a crash may leave the new name with no content.
        file.sync()
    finally:
        file.close()
    folder.rename(_DRAFT, NAME)
    try:
        folder.sync_entries()
    except OSError as error:
        raise SyncError(f"{NAME} may or may not have been replaced: {error}") from error
