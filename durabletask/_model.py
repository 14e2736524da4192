"""The records that cross the storage seam.

Data only: no behaviour, no clock, no I/O. They are msgspec structs rather than
dataclasses because the hot path makes two of them a step and a frozen
dataclass costs over ten times as much to make (docs/design.md, "Records").

Every `payload` is JSON text in UTF-8 without a raw newline; a storage keeps it
as bytes and never looks inside. Every `…_at` is an aware datetime by the
storage's clock. Ids, keys and names obey `durabletask._limits.check_name`.
"""

from datetime import datetime
from enum import StrEnum

import msgspec

NO_INDEX = -1
"""Index of a durable call that is not one of a series."""

CHILD_ENDED = "durabletask:child:"
"""How the name of the event begins that tells a parent of a child's end; the status follows."""

REQUESTS_KEPT = 8
"""The ids of so many latest requests are kept of each process."""

EVENTS_KEPT = 1_000
"""Of the events consumed before a restart, so many of the latest stay known by their ids."""


class Status(StrEnum):
    """Where a process stands, by what is recorded and not by what is in memory."""

    RUNNING = "running"
    WAITING = "waiting"
    SUSPENDED = "suspended"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    QUARANTINED = "quarantined"


class Kind(StrEnum):
    """What sort of durable call a checkpoint belongs to.

    The kinds up to VERSION share one space of keys: a key recorded under
    one of them cannot be asked for under another. The rest are the engine's
    own and are found by (kind, key, index).
    """

    DO = "do"
    GET = "get"
    VAR = "var"
    DELAY = "delay"
    EVENT = "event"
    RACE = "race"
    TIMEOUT = "timeout"
    CHILD = "child"  # a child was spawned
    CALL = "call"  # the result of a child
    SEND = "send"
    TRANSACTION = "transaction"
    VERSION = "version"
    # --- the engine's own
    WAIT = "wait"  # a wait began: what it is for and its due time; closed by the key's checkpoint
    RETRY = "retry"  # failed attempts so far and when the next is due; replaced by each
    OVERTAKEN = "overtaken"  # a result won against a cancellation, which others have met
    START = "start"  # an at_most_once step is about to run
    UNDO = "undo"
    DECISION = "decision"
    REPORT = "report"
    HEARTBEAT = "heartbeat"  # what a step in flight has said of itself; replaced by each


class Form(StrEnum):
    """What a payload holds."""

    VALUE = "value"
    ERROR = "error"
    CANCELLED = "cancelled"


class Refusal(StrEnum):
    """Why a storage certainly did not do what it was asked."""

    UNKNOWN_PROCESS = "unknown process"
    FINISHED = "process has finished"
    NOT_FINISHED = "process has not finished"
    NOT_OWNER = "process belongs to another host, epoch or incarnation"
    MAILBOX_FULL = "mailbox is full"
    NOT_IN_MAILBOX = "event was consumed already or never existed"
    ILLEGAL_TRANSITION = "this status cannot follow the recorded one"
    OTHER_ORIGIN = "the child's id belongs to a process that this call did not spawn"
    BUSY = "cannot be written now: in use by another transaction, or unreadable; ask again"


class Action(StrEnum):
    """What can be asked of a process from outside."""

    CANCEL = "cancel"
    TERMINATE = "terminate"
    SUSPEND = "suspend"
    RESUME = "resume"
    RETRY = "retry"


class Leave(StrEnum):
    """How a process leaves its host's memory."""

    RELEASED = "released"  # claimable at once
    PARKED = "parked"  # claimable when `wake_at` has come or an event arrives


class Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """One record under (kind, key, index).

    The first write of its (kind, key, index) wins, unless it `replaces`: then
    it applies only if its unit is newer than the one recorded.

    `epoch`, `seq` and `at` are the storage's to fill when it is read: the unit
    that wrote it, and when.
    """

    kind: Kind
    key: str
    index: int
    form: Form
    payload: bytes
    replaces: bool = False
    epoch: int = 0
    seq: int = 0
    at: datetime | None = None


class Place(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a checkpoint is found by."""

    kind: Kind
    key: str
    index: int


class Ending(msgspec.Struct, frozen=True, gc=False):
    """The last word on a process: a finished status or QUARANTINED, with what came out of it."""

    status: Status
    form: Form
    payload: bytes


class Parent(msgspec.Struct, frozen=True, gc=False):
    """The durable call that spawned a child."""

    process_id: str
    incarnation: int
    generation: int
    key: str


class NewProcess(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A process to be created.

    Attributes:
        input: The encoded arguments.
        input_digest: Names function input for "is it the same?"; hex.
        creation_id: Random and new at each call of `spawn`, so that a repeat
            after a lost answer finds its own creation.
        replace: A finished process of this id makes way for the next
            incarnation.
        start_at: Not claimable before.
        context: Context variables that travel with the process, encoded.
    """

    process_id: str
    name: str
    input: bytes
    input_digest: str
    creation_id: str
    replace: bool = False
    start_at: datetime | None = None
    deadline_at: datetime | None = None
    tags: dict[str, str] = {}
    context: bytes | None = None
    parent: Parent | None = None


class NewEvent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An event to be delivered; the same `event_id` to the same process is the same event."""

    process_id: str
    event_id: str
    name: str
    payload: bytes


class Unit(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What one process writes at once: wholly there after a crash, or not at all.

    `seq` rises by at least one from unit to unit of an epoch; (epoch, seq)
    makes a repeat harmless. A unit of which a first-wins checkpoint is held
    already, by another unit, writes nothing at all.

    Attributes:
        status: The process's new status (RUNNING, WAITING, SUSPENDED or
            COMPENSATING), or None to leave it.
        wake_at: With `status`: when the earliest recorded wait is due, if any.
        consumes: Positions of the events that leave the mailbox.
        spawns: Children, each with this process as its `parent`. One that
            exists already with the same parent is taken for done; if it has
            ended, its end is put into the mailbox again.
        sends: Events for other processes, or for itself.
        mailbox_max: Of the receivers of `sends`, as in `deliver`.
        meets_cancel: The pending request to cancel is met by what this unit records.
        restart: The encoded arguments with which the process begins anew: the
            next generation, running, without checkpoints. Its mailbox stays.
            Nothing else but `consumes` and `leave` stands beside it.
        ending: With it the process ends and has no owner; its mailbox closes,
            unless it is QUARANTINED.
        leave: With it the process has no owner any more but is not at its end.
    """

    process_id: str
    incarnation: int
    epoch: int
    seq: int
    checkpoints: tuple[Checkpoint, ...] = ()
    consumes: tuple[int, ...] = ()
    status: Status | None = None
    wake_at: datetime | None = None
    ending: Ending | None = None
    leave: Leave | None = None
    spawns: tuple[NewProcess, ...] = ()
    sends: tuple[NewEvent, ...] = ()
    mailbox_max: int = 10_000
    meets_cancel: bool = False
    restart: bytes | None = None


class UnitOutcome(msgspec.Struct, frozen=True, gc=False):
    """What became of a unit: written (both empty), refused, or overtaken.

    Attributes:
        refused: Nothing of the unit was written. BUSY alone may be asked again.
        held: The checkpoints that the storage holds in place of the unit's
            own. Not empty means: nothing of the unit was written.
        culprit: The id among `spawns` or `sends` because of which it was
            refused, or None.
    """

    refused: Refusal | None = None
    held: tuple[Checkpoint, ...] = ()
    culprit: str | None = None


DONE = UnitOutcome()
"""The outcome of nearly every unit, made once."""


class ProcessRow(msgspec.Struct, frozen=True, kw_only=True):
    """One process as the storage knows it.

    Attributes:
        incarnation: Which creation of this id: a number of the storage's
            choice, at least 1, that rises with each.
        generation: How often it has restarted, from 0.
        epoch: Raised by every claim; the first is 1, and 0 is "never claimed".
        seq: Highest unit of `epoch` applied; 0 where there is none.
        owner: Identity of the host that holds it, or None.
        owner_label: What that host calls itself.
        parked: Whether only `wake_at` or an event makes it claimable.
        deaths: How many hosts in a row died holding it, nothing being recorded in between.
        started_at: When it was first claimed.
        ending: Set once it has ended or is quarantined.
        cancel_reason: Payload given with the request to cancel, met or not;
            None if there was none.
        cancel_met: Whether the process has met it.
        suspend_reason: Payload given with the suspension; set while SUSPENDED.
    """

    process_id: str
    name: str
    input: bytes
    input_digest: str
    creation_id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    incarnation: int = 1
    generation: int = 0
    epoch: int = 0
    seq: int = 0
    start_at: datetime | None = None
    started_at: datetime | None = None
    deadline_at: datetime | None = None
    wake_at: datetime | None = None
    finished_at: datetime | None = None
    owner: str | None = None
    owner_label: str | None = None
    parked: bool = False
    deaths: int = 0
    tags: dict[str, str] = {}
    context: bytes | None = None
    parent: Parent | None = None
    ending: Ending | None = None
    cancel_reason: bytes | None = None
    cancel_met: bool = False
    suspend_reason: bytes | None = None


class Created(msgspec.Struct, frozen=True):
    """The answer to one creation.

    Attributes:
        row: The process of that id; None if `refused`.
        fresh: Whether this call made it.
        refused: BUSY or None.
    """

    row: ProcessRow | None
    fresh: bool = False
    refused: Refusal | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event as stored.

    Attributes:
        position: 1, 2, 3, … within its process: the order of arrival.
        consumed: Whether a durable call has taken it.
    """

    position: int
    event_id: str
    name: str
    payload: bytes
    at: datetime
    consumed: bool = False


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """The answer to one delivery.

    Attributes:
        event: The stored event, the earlier one if its id was delivered before.
        owner: Identity of the host that holds the process, or None.
    """

    refused: Refusal | None = None
    event: Event | None = None
    owner: str | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """One process, and if asked for its history.

    Attributes:
        checkpoints: In the order recorded.
        events: In order of position.
        forgotten: Checkpoints that a retry has put aside, in the order in
            which they were recorded; a claim does not hand them out.
    """

    row: ProcessRow
    checkpoints: tuple[Checkpoint, ...] = ()
    events: tuple[Event, ...] = ()
    forgotten: tuple[Checkpoint, ...] = ()


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """Something asked of a process from outside.

    Attributes:
        request_id: Random and new for each request, so that a repeat, or a
            late copy, changes nothing.
        reason: Of CANCEL and SUSPEND; a payload.
        ending: What the process ends with if this ends it: TERMINATE, and
            CANCEL of one that was never started. The same for its children.
        incarnation, epoch: Of RETRY: those in which the caller has read the
            history; another one is refused with NOT_OWNER.
        status: Of RETRY: RUNNING, or COMPENSATING to go on with that.
        forget: Of RETRY: the checkpoints to put aside.
        restores: Of RETRY: positions of consumed events that go back into the mailbox.
    """

    process_id: str
    action: Action
    request_id: str
    reason: bytes = b"null"
    ending: Ending | None = None
    incarnation: int = 0
    epoch: int = 0
    status: Status = Status.RUNNING
    forget: tuple[Place, ...] = ()
    restores: tuple[int, ...] = ()


class Controlled(msgspec.Struct, frozen=True):
    """The answer to a request: refused, or the process as it stands after it."""

    refused: Refusal | None = None
    row: ProcessRow | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which processes to list; every field that is set must match.

    The order is that of creation: (created_at, process_id), ascending. Bounds
    named `…_from` are included, those named `…_until` are not.

    Attributes:
        cursor: `Page.cursor` of the page before.
        limit: At most so many, 1 to 1,000.
    """

    statuses: frozenset[Status] | None = None
    name: str | None = None
    prefix: str | None = None
    tags: dict[str, str] = {}
    created_from: datetime | None = None
    created_until: datetime | None = None
    finished_from: datetime | None = None
    finished_until: datetime | None = None
    parent_id: str | None = None
    cursor: str | None = None
    limit: int = 100


class Page(msgspec.Struct, frozen=True):
    """A part of a listing; `cursor` is None on the last one."""

    rows: tuple[ProcessRow, ...]
    cursor: str | None = None


class Lease(msgspec.Struct, frozen=True):
    """A host's right to write.

    Attributes:
        host_id: Random identity of this start of the host.
        label: What the host is called; says nothing about identity.
        ttl_s: How long from `now_at` it is valid unless renewed; None where
            the storage itself sees a host die and the lease has no end.
        now_at: The storage's time when it was given or renewed.
    """

    host_id: str
    label: str
    ttl_s: float | None
    now_at: datetime


class Claimed(msgspec.Struct, frozen=True):
    """A process taken for execution, or news for one that the lease held already.

    Attributes:
        fresh: True for a process taken by this claim; False for news.
        checkpoints: In the order recorded; empty for news.
        events: The whole mailbox (unconsumed events) in order of position.
        damage: What is wrong with the stored history, or None. A damaged
            process is handed out once so that its host can quarantine it.
    """

    row: ProcessRow
    fresh: bool = True
    checkpoints: tuple[Checkpoint, ...] = ()
    events: tuple[Event, ...] = ()
    damage: str | None = None


class Claims(msgspec.Struct, frozen=True):
    """The answer to a claim.

    Attributes:
        next_at: When the next process of the asked names will become
            claimable by time alone, if any.
        more: Whether more was claimable than the claim would take.

    Both pass over names of which the claim has used up the room.
    """

    claimed: tuple[Claimed, ...]
    now_at: datetime
    next_at: datetime | None = None
    more: bool = False
