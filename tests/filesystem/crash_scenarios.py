"""Small workloads for the crash-state explorer: three operations or few more, each its own risk.

Nearly every crash bug known needs no more than that (CrashMonkey); what finds
it is that every moment and every fate of the disk is tried, not length.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import msgspec

from durabletask.storage import (
    NO_INDEX,
    Action,
    Checkpoint,
    Control,
    Ending,
    Form,
    Kind,
    Lease,
    Leave,
    NewEvent,
    NewProcess,
    Parent,
    Place,
    Status,
    Unit,
)
from durabletask_filesystem._requests import (
    Ask,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    OpenLease,
    Purge,
    Request,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = Lease(host_id="host-1", label="one", ttl_s=None, now_at=NOW)
SECOND = Lease(host_id="host-2", label="two", ttl_s=None, now_at=NOW)


class Turn(Enum):
    """A step that is no batch of requests."""

    ROTATE = "seal the segment"
    COMPACT = "compact"
    REOPEN = "close cleanly and open again"
    KILL = "kill the program and open again"


@dataclass(frozen=True, slots=True)
class Torn:
    """A batch whose sync the power loss cuts; the next step repeats it.

    Only for requests whose repeat changes nothing.
    """

    requests: tuple[Request, ...]


Step = tuple[Request, ...] | Turn | Torn


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload.

    Attributes:
        variants: How many different disks each `Torn` step is continued from.
    """

    name: str
    steps: tuple[Step, ...]
    variants: int = 1


def new(process_id: str, size: int = 12, *, replace: bool = False) -> NewProcess:
    """Return a process to create, its input `size` bytes long."""
    return NewProcess(
        process_id=process_id,
        name="work",
        input=text(size, process_id),
        input_digest="00" * 32,
        creation_id=f"creation-{process_id}-{size}",
        replace=replace,
    )


def text(size: int, seed: str) -> bytes:
    """Return JSON text of about `size` bytes, another for each seed."""
    return b'"' + (seed.encode() * size)[: max(1, size - 2)] + b'"'


def checkpoint(
    key: str, size: int = 8, *, kind: Kind = Kind.DO, replaces: bool = False
) -> Checkpoint:
    """Return a recorded value."""
    return Checkpoint(kind, key, NO_INDEX, Form.VALUE, text(size, key), replaces)


def unit(process_id: str, seq: int, *keys: str, size: int = 8, epoch: int = 1) -> Unit:
    """Return a unit that records a value under each key."""
    return Unit(
        process_id=process_id,
        incarnation=1,
        epoch=epoch,
        seq=seq,
        checkpoints=tuple(checkpoint(key, size) for key in keys),
    )


def ending(process_id: str, seq: int, *, epoch: int = 1, incarnation: int = 1) -> Unit:
    """Return a unit that completes a process."""
    return Unit(
        process_id=process_id,
        incarnation=incarnation,
        epoch=epoch,
        seq=seq,
        ending=Ending(Status.COMPLETED, Form.VALUE, b'"done"'),
    )


def event(process_id: str, number: int, size: int = 6) -> NewEvent:
    """Return an event to deliver."""
    return NewEvent(
        process_id=process_id,
        event_id=f"event-{number}",
        name="said",
        payload=text(size, str(number)),
    )


def child(process_id: str, of: str = "p", size: int = 12) -> NewProcess:
    """Return a child to spawn, under a key that is its id."""
    return msgspec.structs.replace(new(process_id, size), parent=Parent(of, 1, 0, process_id))


def spawning(seq: int, *children: NewProcess, **fields: Any) -> Unit:
    """Return a unit that spawns children, with the checkpoint that says so."""
    return Unit(
        process_id="p",
        incarnation=1,
        epoch=1,
        seq=seq,
        checkpoints=(checkpoint(f"spawn {seq}", kind=Kind.CHILD),),
        spawns=children,
        **fields,
    )


def ask(action: Action, process_id: str = "p", **fields: Any) -> tuple[Request, ...]:
    """Return a batch of one request from outside."""
    ending = None
    if action is Action.TERMINATE:
        ending = Ending(Status.TERMINATED, Form.ERROR, text(20, "ended"))
    if action is Action.CANCEL:
        ending = Ending(Status.CANCELLED, Form.CANCELLED, text(20, "cancelled"))
    control = Control(
        process_id=process_id,
        action=action,
        request_id=f"{action}-{process_id}",
        reason=text(10, action),
        ending=ending,
        **fields,
    )
    return (Ask((control,)),)


def create(*processes: NewProcess, lease: Lease | None = LEASE) -> tuple[Request, ...]:
    """Return a batch of one creation."""
    return (Create(processes, lease),)


def commit(*units: Unit, lease: Lease = LEASE) -> tuple[Request, ...]:
    """Return a batch of one commit."""
    return (Commit(lease, units),)


def deliver(*events: NewEvent) -> tuple[Request, ...]:
    """Return a batch of one delivery."""
    return (Deliver(events, mailbox_max=10),)


def claim(claim_id: str, lease: Lease = LEASE) -> tuple[Request, ...]:
    """Return a batch of one claim."""
    return (Claim(lease, claim_id, ("work",), 10),)


def open_lease(lease: Lease = LEASE) -> tuple[Request, ...]:
    """Return a batch that opens a lease."""
    return (OpenLease(lease.host_id, lease.label),)


CONSUMING = Unit(
    process_id="p",
    incarnation=1,
    epoch=1,
    seq=1,
    checkpoints=(checkpoint("said", kind=Kind.EVENT),),
    consumes=(1,),
)
WAITING = Unit(
    process_id="p",
    incarnation=1,
    epoch=1,
    seq=2,
    checkpoints=(checkpoint("wait", kind=Kind.WAIT),),
    status=Status.WAITING,
    wake_at=NOW + timedelta(days=30),
    leave=Leave.PARKED,
)


def variable(seq: int, value: str) -> Unit:
    """Return a unit that overwrites one variable."""
    record = Checkpoint(Kind.VAR, "cursor", NO_INDEX, Form.VALUE, text(30, value), replaces=True)
    return Unit(process_id="p", incarnation=1, epoch=1, seq=seq, checkpoints=(record,))


def plain(seq: int, *, epoch: int = 1, **fields: Any) -> Unit:
    """Return a unit of "p" without a checkpoint."""
    return Unit(process_id="p", incarnation=1, epoch=epoch, seq=seq, **fields)


FAILING = plain(2, ending=Ending(Status.FAILED, Form.ERROR, text(20, "failed")))
RETRYING: dict[str, Any] = {
    "incarnation": 1,
    "epoch": 1,
    "forget": (Place(Kind.DO, "a", NO_INDEX),),
    "restores": (1,),
}


SCENARIOS = (
    Scenario("first open", ()),
    Scenario("one process to its end", (
        open_lease(),
        create(new("p")),
        commit(unit("p", 1, "a", "b")),
        commit(ending("p", 2)),
    )),
    Scenario("many processes in one batch", (
        open_lease(),
        (*create(new("p"), new("q"), new("r")), *create(new("s"), lease=None)),
        commit(unit("p", 1, "a"), unit("q", 1, "a", size=300), unit("p", 2, "b"), ending("r", 1)),
        (*commit(unit("q", 2, "b")), *deliver(event("s", 1)), *commit(unit("p", 3, "c"))),
    )),
    Scenario("events", (
        open_lease(),
        create(new("p")),
        deliver(event("p", 1), event("p", 2)),
        commit(CONSUMING),
        deliver(event("p", 2), event("p", 3, 200)),
    )),
    Scenario("claim", (
        create(new("p"), new("q"), lease=None),
        (*open_lease(), *claim("claim-1")),
        commit(unit("p", 1, "a"), unit("q", 1, "a")),
        (CloseLease(LEASE),),
    )),
    Scenario("waits and variables", (
        (*open_lease(), *create(new("p"))),
        commit(variable(1, "one")),
        commit(variable(2, "two"), WAITING),
    )),
    Scenario("large value", (
        (*open_lease(), *create(new("p", 1500))),
        commit(unit("p", 1, "a", size=3000)),
        commit(unit("p", 2, "b", size=5200)),
    )),
    Scenario("rotation", (
        (*open_lease(), *create(new("p"), new("q"))),
        commit(ending("p", 1), unit("q", 1, "a")),
        Turn.ROTATE,
        (*create(new("p")), *commit(unit("q", 2, "b"))),
        Turn.ROTATE,
        commit(unit("q", 3, "c")),
    )),
    # Frames of equal length at equal places: a stale creation of "p" fits in place of that of "q".
    Scenario("segments alike", (
        create(new("p", 300), lease=None),
        (*open_lease(), *claim("claim-1")),
        commit(ending("p", 1)),
        (Purge(("p",)),),
        Turn.ROTATE,
        Turn.COMPACT,
        create(new("q", 300), lease=None),
    )),
    Scenario("compaction", (
        (*open_lease(), *create(new("p", 200), new("q", 200))),
        commit(ending("p", 1), unit("q", 1, "a")),
        Turn.ROTATE,
        (Purge(("p",)),),
        Turn.ROTATE,
        Turn.COMPACT,
        commit(unit("q", 2, "b")),
    )),
    Scenario("purge and create again", (
        (*open_lease(), *create(new("p", 300))),
        commit(ending("p", 1)),
        (Purge(("p",)),),
        create(new("p", 40)),
        commit(ending("p", 1, incarnation=2)),
        create(new("p", 20, replace=True)),
        Turn.ROTATE,
        Turn.COMPACT,
    )),
    Scenario("clean close", (
        (*open_lease(), *create(new("p"))),
        commit(unit("p", 1, "a")),
        (CloseLease(LEASE),),
        Turn.REOPEN,
        (*open_lease(SECOND), *claim("claim-1", SECOND)),
        commit(unit("p", 1, "b", epoch=2), lease=SECOND),
        Turn.REOPEN,
    )),
    Scenario("killed and taken over", (
        (*open_lease(), *create(new("p"))),
        commit(unit("p", 1, "a")),
        Turn.KILL,
        (*open_lease(SECOND), *claim("claim-1", SECOND)),
        commit(unit("p", 1, "b", epoch=2), lease=SECOND),
        Turn.KILL,
    )),
    Scenario("children, and their ends", (
        (*open_lease(), *create(new("p"))),
        commit(spawning(1, child("q"))),
        claim("claim-1"),
        commit(ending("q", 1)),
        commit(spawning(2, child("q")), plain(3, consumes=(1,))),
    )),
    Scenario("a message to another, and to itself", (
        (*open_lease(), *create(new("p"), new("q"))),
        commit(
            msgspec.structs.replace(unit("p", 1, "a"), sends=(event("q", 1), event("p", 2, 200))),
            ending("q", 1),
        ),
        commit(plain(2, consumes=(1,), status=Status.WAITING, leave=Leave.PARKED)),
    )),
    Scenario("begun anew", (
        (*open_lease(), *create(new("p")), *deliver(event("p", 1), event("p", 2))),
        commit(unit("p", 1, "a"), plain(2, restart=text(20, "again"), consumes=(1,))),
        commit(unit("p", 3, "a")),
        Turn.ROTATE,
        Turn.COMPACT,
    )),
    Scenario("suspended, resumed and cancelled", (
        (*open_lease(), *create(new("p"))),
        (*ask(Action.SUSPEND), *commit(plain(1, status=Status.WAITING))),
        ask(Action.RESUME),
        ask(Action.CANCEL),
        commit(spawning(2, child("q")), plain(3, meets_cancel=True), ending("p", 4)),
        ask(Action.CANCEL, "q"),
    )),
    Scenario("terminated, held, and the host killed", (
        (*open_lease(), *create(new("p"))),
        commit(spawning(1, child("q"))),
        ask(Action.TERMINATE),
        Turn.ROTATE,
        Turn.KILL,
        (*open_lease(SECOND), *claim("claim-1", SECOND)),
        (Purge(("p", "q")),),
    )),
    Scenario("failed, and tried again", (
        (*open_lease(), *create(new("p"))),
        (*deliver(event("p", 1)), *commit(plain(1, consumes=(1,), checkpoints=(checkpoint("a"),)))),
        commit(FAILING),
        ask(Action.RETRY, **RETRYING),
        claim("claim-1"),
        commit(unit("p", 1, "a", epoch=3)),
    )),
    Scenario("torn, then the same again", (
        create(new("p"), lease=None),
        Torn(create(new("q", 600), new("r", 300), lease=None)),
        create(new("q", 600), new("r", 300), lease=None),
        Torn(deliver(event("p", 1, 400), event("q", 1), event("p", 2, 100))),
        deliver(event("p", 1, 400), event("q", 1), event("p", 2, 100)),
        deliver(event("p", 3, 20)),
    ), variants=2),
    Scenario("torn, then something else", (
        (*open_lease(), *create(new("p"), lease=None)),
        Torn(create(new("q", 600), new("r", 300), lease=None)),
        (*deliver(event("p", 1, 90)), *create(new("q", 600), new("r", 300), lease=None)),
        Turn.ROTATE,
        deliver(event("p", 2, 20)),
    )),
)  # fmt: skip
"""Each named after its risk."""
