"""What can be asked of a store: one small record for each method of the seam.

Data, and one refusal. A store takes them in batches (`Store.apply`), and the inbox carries
those of a client from one program to another.
"""

import msgspec

from durabletask.errors import DurableTaskError, InvalidIdError
from durabletask.storage import (
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    Query,
    Refusal,
    Snapshot,
    Unit,
    UnitOutcome,
)


class Create(msgspec.Struct, frozen=True, tag="create"):
    """Create processes; with a lease they belong to it at once."""

    processes: tuple[NewProcess, ...]
    lease: Lease | None = None


class Deliver(msgspec.Struct, frozen=True, tag="deliver"):
    """Put events into mailboxes."""

    events: tuple[NewEvent, ...]
    mailbox_max: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Ask something of processes; the seam's `request`."""

    controls: tuple[Control, ...]


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read processes."""

    process_ids: tuple[str, ...]
    history: bool = False


class ListPage(msgspec.Struct, frozen=True, tag="list"):
    """List processes.

    Attributes:
        scan_max: Look at no more processes than this; the page may then hold
            fewer than asked and still have a cursor.
    """

    query: Query
    scan_max: int = 2_000


class Purge(msgspec.Struct, frozen=True, tag="purge"):
    """Remove finished processes."""

    process_ids: tuple[str, ...]


class OpenLease(msgspec.Struct, frozen=True, tag="open_lease"):
    """Begin, or renew, a host's right to write."""

    host_id: str
    label: str


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """Prolong a lease."""

    lease: Lease


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """Take claimable processes, and hear news."""

    lease: Lease
    claim_id: str
    names: tuple[str, ...]
    count_max: int
    rooms: dict[str, int] = {}


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """Record units."""

    lease: Lease
    units: tuple[Unit, ...]


class CloseLease(msgspec.Struct, frozen=True, tag="close_lease"):
    """End a lease; what it holds is claimable without a death."""

    lease: Lease


class Compact(msgspec.Struct, frozen=True, tag="compact"):
    """Merge sealed segments.

    Attributes:
        slice: Only go on with what is under way, for some milliseconds.
    """

    slice: bool = False


Request = (
    Ask
    | Compact
    | Create
    | Deliver
    | Read
    | ListPage
    | Purge
    | OpenLease
    | Renew
    | Claim
    | Commit
    | CloseLease
)

Answer = (
    tuple[Created, ...]
    | tuple[Delivered, ...]
    | tuple[Controlled, ...]
    | tuple[Snapshot | None, ...]
    | tuple[Refusal | None, ...]
    | tuple[UnitOutcome, ...]
    | Page
    | Lease
    | Claims
    | int
    | None
    | DurableTaskError
)
"""What the seam's method returns; an error concerns its request alone.

After a `StorageCorruptError` or an `InvalidIdError` rows before the one that it is about may be
written; after any other error nothing of the request is."""


def lone_surrogate(error: UnicodeEncodeError) -> InvalidIdError:
    """Return what a text that cannot be written in UTF-8 is told."""
    return InvalidIdError(f"a lone surrogate in {error.object[:40]!a}")
