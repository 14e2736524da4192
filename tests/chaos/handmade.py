"""Histories made by hand: a story is told line by line, and the final state follows from it."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from durabletask.storage import (
    Checkpoint,
    Ending,
    Event,
    Form,
    Kind,
    ProcessRow,
    Snapshot,
    Status,
)
from durabletask.testing._history_records import creation_digest, digest, ending_text, write_of
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
    See,
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

    def ran(self, key: str, epoch: int = 1, attempt: int = 1) -> "Story":
        """Run the body of a step."""
        asked = Execute(
            phase=Phase.INVOKE,
            process_id=P,
            host_id=f"h{epoch}",
            incarnation=1,
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
        answer: Phase | None = OK,
        stored: bool = True,
        why: str = "",
        told: tuple[Checkpoint, ...] = (),
    ) -> "Story":
        """Commit a unit."""
        if stored:
            self._store(epoch, seq, checkpoints, consumes, ending)
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

    # --- the final state, where it does not follow ---------------------------------------------

    def hold(self, epoch: int, seq: int, checkpoint: Checkpoint) -> "Story":
        """Have a checkpoint in the final state."""
        stamped = msgspec.structs.replace(checkpoint, epoch=epoch, seq=seq, at=T0 + timedelta(1))
        self.checkpoints.append(stamped)
        return self

    def consume(self, position: int) -> "Story":
        """Have an event consumed in the final state."""
        self.events[position] = msgspec.structs.replace(self.events[position], consumed=True)
        return self

    def final(self) -> Snapshot:
        """Return the final state."""
        row = ProcessRow(
            process_id=P,
            name="f",
            input=b"1",
            input_digest="d",
            creation_id=self.creation_id,
            status=self.status,
            created_at=T0,
            updated_at=T0,
            epoch=self.epoch,
            ending=self.ending,
        )
        return Snapshot(row, tuple(self.checkpoints), tuple(self.events.values()))

    def verdict(self, *, gone: bool = False, **options: Any) -> set[str]:
        """Return the invariants that are broken; `gone` leaves the process out of the state."""
        final = [] if gone else [self.final()]
        return {each.invariant for each in check(self.operations, final, **options)}


__all__ = ["FAIL", "FINISH", "INFO", "OK", "SILENT", "T0", "Operation", "P", "Story", "held"]
