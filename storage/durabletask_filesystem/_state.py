"""What is kept in memory of a process that has not finished, small on purpose.

Pure state and the one function for each record that changes it; the same code
runs when a record is written and when it is read again at opening, so the two
cannot differ. Inputs, payloads and histories are on disk only.
"""

from datetime import datetime

import msgspec

from durabletask.storage import Ending, Kind, Status

PACKED_MAX = 16 * 8  # bytes; beyond 16 slots a set is both smaller and faster

BORN_SHIFT = 32
SEGMENT_SHIFT = 64
OFFSET_MASK = 0xFFFF_FFFF


class Mail(msgspec.Struct, gc=False):
    """A mailbox while somebody uses it.

    Attributes:
        ids: Position of each event ever received, by hash of its id.
        pending: Positions not yet consumed, in order.
    """

    ids: dict[int, int]
    pending: dict[int, None]


class Proc(msgspec.Struct, gc=False, omit_defaults=True):
    """A process that has not finished.

    Attributes:
        owner: Identity of the host that holds it.
        seq: Highest unit of this epoch; 0 says that nothing was recorded since it was claimed.
        events: Position of the newest event, 0 if there was none.
        ending: Of a quarantined one.
        due_at: Since when, or from when, it is claimable; None while it is not.
        spot: Where its records are in the newest segment that has any:
            segment << 64 | offset of its creation << 32 | offset of its last.
        keys: Hashes of its recorded slots, packed or as a set; None until loaded.
        mail: Its mailbox; None until loaded.
    """

    id: str
    name: str
    status: Status
    created_at: datetime
    updated_at: datetime
    incarnation: int = 1
    generation: int = 0
    epoch: int = 0
    seq: int = 0
    start_at: datetime | None = None
    started_at: datetime | None = None
    wake_at: datetime | None = None
    finished_at: datetime | None = None
    owner: str | None = None
    parked: bool = False
    deaths: int = 0
    events: int = 0
    ending: Ending | None = None
    due_at: datetime | None = None
    spot: int = 0
    keys: bytes | set[int] | None = None
    mail: Mail | None = None


def slot(kind: Kind, key: str, index: int) -> int:
    """Return the hash under which a checkpoint's place is remembered."""
    return hash((kind, key, index))


def has_key(keys: bytes | set[int], place: int) -> bool:
    """Return whether a slot may be recorded; the disk tells whether it is."""
    if isinstance(keys, bytes):
        return place.to_bytes(8, "little", signed=True) in keys
    return place in keys


def add_key(keys: bytes | set[int], place: int) -> bytes | set[int]:
    """Return the slots with one more."""
    if isinstance(keys, bytes):
        if len(keys) < PACKED_MAX:
            return keys + place.to_bytes(8, "little", signed=True)
        keys = {
            int.from_bytes(keys[at : at + 8], "little", signed=True)
            for at in range(0, len(keys), 8)
        }
    keys.add(place)
    return keys
