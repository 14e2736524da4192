"""What is kept in memory of a process that has not finished, small on purpose.

Pure state and the one function for each record that changes it; the same code
runs when a record is written and when it is read again at opening, so the two
cannot differ. Inputs, payloads and histories are on disk only.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from durabletask.storage import Ending, Kind, Parent, Status

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


Ranges = tuple[tuple[int, int], ...]
"""Positions, as first and last of each run."""


class Reborn(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, array_like=True):
    """The latest restart of a process.

    Attributes:
        epoch, seq: Of its unit.
        events: Position of the newest event before it.
        kept: Positions of the events before it that are still known.
    """

    epoch: int
    seq: int
    events: int = 0
    kept: Ranges = ()


class Extra(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What most processes have nothing of.

    Attributes:
        finished_at: Of a finished one, if not the time of the record that tells of it.
        requests: Ids of the latest requests.
        resumes_as: The status that SUSPENDED stands in front of.
        reborn: Its latest restart.
    """

    finished_at: datetime | None = None
    parent: Parent | None = None
    requests: tuple[str, ...] = ()
    cancel_reason: bytes | None = None
    cancel_met: bool = False
    suspend_reason: bytes | None = None
    resumes_as: Status | None = None
    reborn: Reborn | None = None


NOTHING = Extra()


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
        extra: None as long as there is nothing of it.
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
    extra: Extra | None = None
    owner: str | None = None
    parked: bool = False
    deaths: int = 0
    events: int = 0
    ending: Ending | None = None
    due_at: datetime | None = None
    spot: int = 0
    keys: bytes | set[int] | None = None
    mail: Mail | None = None

    @property
    def more(self) -> Extra:
        """What most processes have nothing of, empty for those."""
        return self.extra or NOTHING

    @property
    def finished_at(self) -> datetime | None:
        """When it finished; None while it has not."""
        return self.more.finished_at

    @property
    def standing(self) -> Status:
        """The status, or what SUSPENDED stands in front of."""
        return self.more.resumes_as or self.status

    def change(self, **fields: Any) -> None:
        """Change what most processes have nothing of."""
        extra = msgspec.structs.replace(self.more, **fields)
        self.extra = None if extra == NOTHING else extra


def ranges(positions: Iterable[int]) -> Ranges:
    """Return ascending positions as runs."""
    runs: list[tuple[int, int]] = []
    for each in positions:
        if runs and runs[-1][1] == each - 1:
            runs[-1] = runs[-1][0], each
        else:
            runs.append((each, each))
    return tuple(runs)


def within(position: int, runs: Ranges) -> bool:
    """Return whether a position is in one of the runs."""
    return any(first <= position <= last for first, last in runs)


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
