"""Histories made by hand: a story is told line by line, and the final state follows from it."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from durabletask.storage import (
    CHILD_ENDED,
    Action,
    Checkpoint,
    Ending,
    Event,
    Form,
    Kind,
    Parent,
    ProcessRow,
    Snapshot,
    Status,
)
from durabletask.testing._history_records import (
    creation_digest,
    digest,
    ending_text,
    parent_text,
    write_of,
)
from durabletask.testing.history import (
    AnyOperation,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    Execute,
    Operation,
    Phase,
    Renew,
    Request,
    See,
    Sent,
    Spawn,
    Taken,
    check,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
P = "p"
FINISH = Ending(Status.COMPLETED, Form.VALUE, b'"ok"')
OK, FAIL, INFO, SILENT = Phase.OK, Phase.FAIL, Phase.INFO, None


def held(key: str, payload: bytes = b'"v"', kind: Kind = Kind.DO, **fields: Any) -> Checkpoint:
    """Return a checkpoint; by default a step's result."""
    merged: dict[str, Any] = {"index": -1, "form": Form.VALUE} | fields
    return Checkpoint(kind, key, payload=payload, **merged)


def child(process_id: str = "c1") -> Spawn:
    """Return a child of the process, under the key "k"."""
    named = creation_digest("f", b"1")
    return Spawn(process_id, f"c/{process_id}", named, parent_text(Parent(P, 1, 0, "k")))


def sent(event_id: str, process_id: str = "c1") -> Sent:
    """Return an event that a unit sends."""
    return Sent(process_id, event_id, "go", digest(b"1"))


class Story:
    """One process and what hosts and clients do with it.

    Every verb takes `answer`, what became of the request, and `stored`,
    whether the final state shows it; by default it was done, and is there.
    """

    def __init__(self) -> None:
        self.operations: list[AnyOperation] = []
        self.checkpoints: list[Checkpoint] = []
        self.events: dict[int, Event] = {}
        self.ending: Ending | None = None
        self.status = Status.RUNNING
        self.epoch = 0
        self.creation_id = "c"
        self.row: dict[str, Any] = {}
        self.forgotten: list[Checkpoint] = []
        self.others: list[Snapshot] = []
        self._calls = itertools.count(1)

    def ask(self, asked: AnyOperation, answer: Phase | None = OK, **fields: Any) -> "Story":
        """Add a request and its answer."""
        call = next(self._calls)
        self.operations.append(msgspec.structs.replace(asked, call=call))
        if answer is not None:
            self.operations.append(type(asked)(phase=answer, call=call, **fields))
        return self

    # --- clients -----------------------------------------------------------------------------

    def created(self, creation_id: str = "c", answer: Phase | None = OK, **fields: Any) -> "Story":
        """Create the process; the fields are those of the answer."""
        named = creation_digest("f", b"1")
        asked = Create(
            phase=Phase.INVOKE, process_id=P, creation_id=creation_id, digest=named, host_id="h1"
        )
        told: dict[str, Any] = {}
        if answer is OK:
            told = {"process_id": P, "creation_id": "c", "digest": named, "incarnation": 1}
            told["fresh"] = creation_id == "c"
        return self.ask(asked, answer, **(told | fields))

    def raised(
        self,
        event_id: str,
        position: int,
        payload: bytes = b"1",
        *,
        answer: Phase | None = OK,
        stored: bool = True,
        as_stored: bytes | None = None,
    ) -> "Story":
        """Raise an event "go"."""
        if stored:
            value = payload if as_stored is None else as_stored
            self.events[position] = Event(position, event_id, "go", value, T0)
        asked = Deliver(
            phase=Phase.INVOKE, process_id=P, event_id=event_id, name="go", digest=digest(payload)
        )
        return self.ask(asked, answer, **({"position": position} if answer is OK else {}))

    # --- hosts -------------------------------------------------------------------------------

    def taken(
        self,
        epoch: int,
        host_id: str = "h1",
        recalls: int | None = None,
        mailbox: tuple[int, ...] | None = None,
        *,
        claim_id: str = "",
        count_max: int = 9,
    ) -> "Story":
        """Claim the process, by default with all that is recorded."""
        self.epoch = max(self.epoch, epoch)
        if mailbox is None:
            mailbox = tuple(each.position for each in self.events.values() if not each.consumed)
        if recalls is None:
            recalls = len(self.checkpoints)
        asked = Claim(
            phase=Phase.INVOKE,
            host_id=host_id,
            claim_id=claim_id or f"claim {epoch}",
            count_max=count_max,
        )
        return self.ask(asked, taken=(Taken(P, 1, epoch, recalls, mailbox),))

    def ran(self, key: str, epoch: int = 1, attempt: int = 1, generation: int = 0) -> "Story":
        """Run the body of a step."""
        asked = Execute(
            phase=Phase.INVOKE,
            process_id=P,
            host_id=f"h{epoch}",
            incarnation=1,
            generation=generation,
            epoch=epoch,
            key=key,
            attempt=attempt,
        )
        return self.ask(asked)

    def saw(self, key: str, value: str) -> "Story":
        """Give user code the outcome of a call."""
        asked = See(phase=Phase.INVOKE, process_id=P, place=f"p/1.0/{key}", digest=value)
        return self.ask(asked, SILENT)

    def renewed(self, host_id: str, answer: Phase | None = OK) -> "Story":
        """Prolong a lease."""
        return self.ask(Renew(phase=Phase.INVOKE, host_id=host_id), answer)

    def closed(self, host_id: str) -> "Story":
        """Give a lease back."""
        return self.ask(CloseLease(phase=Phase.INVOKE, host_id=host_id))

    def wrote(
        self,
        epoch: int,
        seq: int,
        *checkpoints: Checkpoint,
        consumes: tuple[int, ...] = (),
        ending: Ending | None = None,
        left: bool = False,
        spawns: tuple[Spawn, ...] = (),
        sends: tuple[Sent, ...] = (),
        restart: bytes | None = None,
        meets_cancel: bool = False,
        answer: Phase | None = OK,
        stored: bool = True,
        why: str = "",
        told: tuple[Checkpoint, ...] = (),
    ) -> "Story":
        """Commit a unit; children and what is sent are put into the final state by `beside`."""
        if stored:
            self._store(epoch, seq, checkpoints, consumes, ending)
            self.row["cancel_met"] = self.row.get("cancel_met", False) or meets_cancel
            if restart is not None:
                self.checkpoints.clear()
                self.forgotten.clear()
                self.row |= {"generation": self.row.get("generation", 0) + 1, "input": restart}
        asked = Commit(
            phase=Phase.INVOKE,
            process_id=P,
            host_id=f"h{epoch}",
            incarnation=1,
            epoch=epoch,
            seq=seq,
            writes=tuple(write_of(each) for each in checkpoints),
            consumes=consumes,
            ending=ending_text(ending),
            left=left,
            spawns=spawns,
            sends=sends,
            restart="" if restart is None else digest(restart),
            meets_cancel=meets_cancel,
        )
        return self.ask(asked, answer, why=why, held=tuple(write_of(each) for each in told))

    def _store(
        self,
        epoch: int,
        seq: int,
        checkpoints: tuple[Checkpoint, ...],
        consumes: tuple[int, ...],
        ending: Ending | None,
    ) -> None:
        for each in checkpoints:
            self.hold(epoch, seq, each)
        for position in consumes:
            self.consume(position)
        if ending is not None:
            self.ending, self.status = ending, ending.status

    # --- requests ----------------------------------------------------------------------------

    def asked(
        self,
        action: Action,
        request_id: str = "r",
        *,
        answer: Phase | None = OK,
        stored: bool = True,
        forgets: tuple[str, ...] = (),
        restores: tuple[int, ...] = (),
        ending: Ending | None = None,
    ) -> "Story":
        """Ask something of the process, with the reason "why"; a retry is of the present epoch."""
        epoch = self.epoch
        slots = tuple((Kind.DO, key, -1) for key in forgets)
        if stored:
            self._grant(action, slots, restores, ending)
        asked = Request(
            phase=Phase.INVOKE,
            process_id=P,
            action=action,
            request_id=request_id,
            incarnation=1 if action is Action.RETRY else 0,
            epoch=epoch if action is Action.RETRY else 0,
            reason=digest(b'"why"'),
            ending=ending_text(ending),
            forgets=slots,
            restores=restores,
        )
        told: dict[str, Any] = {}
        if answer is OK:
            told = {"incarnation": 1, "status": self.status, "ending": ending_text(self.ending)}
            if action is Action.CANCEL:
                told["reason"] = digest(b'"why"')
            if action is Action.SUSPEND:
                told["status"] = Status.SUSPENDED
            if action is Action.TERMINATE:
                told["status"] = Status.TERMINATED
        return self.ask(asked, answer, **told)

    def _grant(
        self,
        action: Action,
        slots: tuple[tuple[Kind, str, int], ...],
        restores: tuple[int, ...],
        ending: Ending | None,
    ) -> None:
        match action:
            case Action.CANCEL:
                self.row["cancel_reason"] = b'"why"'
            case Action.SUSPEND:
                self.status = Status.SUSPENDED
            case Action.RESUME:
                self.status = Status.RUNNING
            case Action.TERMINATE:
                assert ending is not None
                self.ending, self.status = ending, Status.TERMINATED
            case Action.RETRY:
                self.ending, self.status, self.epoch = None, Status.RUNNING, self.epoch + 1
        for each in [
            each for each in self.checkpoints if (each.kind, each.key, each.index) in slots
        ]:
            self.checkpoints.remove(each)
            self.forgotten.append(each)
        for position in restores:
            event = self.events[position]
            self.events[position] = msgspec.structs.replace(event, consumed=False)

    # --- the final state, where it does not follow ---------------------------------------------

    def hold(self, epoch: int, seq: int, checkpoint: Checkpoint) -> "Story":
        """Have a checkpoint in the final state."""
        stamped = msgspec.structs.replace(checkpoint, epoch=epoch, seq=seq, at=T0 + timedelta(1))
        self.checkpoints.append(stamped)
        return self

    def beside(self, process_id: str, *event_ids: str, **fields: Any) -> "Story":
        """Have another process in the final state: a child under the key "k", if not told else."""
        row = self._row() | {
            "process_id": process_id,
            "creation_id": f"c/{process_id}",
            "parent": Parent(P, 1, 0, "k"),
            "status": Status.RUNNING,
            "ending": None,
            "cancel_reason": None,
            "cancel_met": False,
            "generation": 0,
            "input": b"1",
        }
        events = (
            Event(position, each, "go", b"1", T0) for position, each in enumerate(event_ids, 1)
        )
        self.others.append(Snapshot(ProcessRow(**(row | fields)), (), tuple(events)))
        return self

    def having(self, **fields: Any) -> "Story":
        """Have other fields in the row of the final state."""
        self.row |= fields
        return self

    def being(self, status: Status, ending: Ending | None = None) -> "Story":
        """Have another status in the final state."""
        self.status, self.ending = status, ending
        return self

    def forget_for_good(self, key: str) -> "Story":
        """Have nothing in the final state of what was put aside under a key."""
        self.forgotten = [each for each in self.forgotten if each.key != key]
        return self

    def put_aside(self, key: str) -> "Story":
        """Have a checkpoint put aside in the final state."""
        self.forgotten += [each for each in self.checkpoints if each.key == key]
        self.checkpoints = [each for each in self.checkpoints if each.key != key]
        return self

    def saw_held(self, epoch: int, seq: int, found: Checkpoint) -> "Story":
        """Tell a unit that this is held in place of its own."""
        return self.wrote(epoch, seq, held(found.key), stored=False, told=(found,))

    def over(self, process_id: str, ending: Ending) -> "Story":
        """Let another process end, and have it in the final state."""
        asked = Commit(
            phase=Phase.INVOKE,
            process_id=process_id,
            host_id="h1",
            incarnation=1,
            epoch=1,
            seq=1,
            ending=ending_text(ending),
        )
        self.ask(asked)
        return self.beside(process_id, status=ending.status, ending=ending)

    def told(self, position: int, ending: Ending, key: str = "k") -> "Story":
        """Have the end of a child in the mailbox of the final state."""
        id, name = f"{CHILD_ENDED}0:{key}:1.1", f"{CHILD_ENDED}{ending.status}"
        self.events[position] = Event(position, id, name, ending.payload, T0)
        return self

    def consume(self, position: int) -> "Story":
        """Have an event consumed in the final state."""
        self.events[position] = msgspec.structs.replace(self.events[position], consumed=True)
        return self

    def _row(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "process_id": P,
            "name": "f",
            "input": b"1",
            "input_digest": "d",
            "creation_id": self.creation_id,
            "status": self.status,
            "created_at": T0,
            "updated_at": T0,
            "epoch": self.epoch,
            "ending": self.ending,
        }
        return fields | self.row

    def final(self) -> Snapshot:
        """Return the final state."""
        events = tuple(self.events[position] for position in sorted(self.events))
        row = ProcessRow(**self._row())
        return Snapshot(row, tuple(self.checkpoints), events, tuple(self.forgotten))

    def verdict(self, *, gone: bool = False, **options: Any) -> set[str]:
        """Return the invariants that are broken; `gone` leaves the process out of the state."""
        final = [] if gone else [self.final(), *self.others]
        return {each.invariant for each in check(self.operations, final, **options)}


__all__ = [
    "FAIL",
    "FINISH",
    "INFO",
    "OK",
    "SILENT",
    "T0",
    "Operation",
    "P",
    "Story",
    "child",
    "held",
    "sent",
]
