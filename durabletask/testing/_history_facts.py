"""A history and the final state, indexed once for the invariants that ask about them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from durabletask._model import Checkpoint, Snapshot
from durabletask.testing._history_calls import (
    Call,
    Fate,
    Incarnation,
    Place,
    UnitFacts,
    UnitId,
    only,
    pair,
    units_of,
)
from durabletask.testing._history_eras import Eras
from durabletask.testing._history_records import (
    AnyOperation,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    Execute,
    Purge,
    Renew,
    Request,
    See,
    Sent,
    Spawn,
    Write,
)

__all__ = [
    "Call",
    "Facts",
    "Fate",
    "Incarnation",
    "Place",
    "Take",
    "UnitFacts",
    "UnitId",
    "Violation",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise.

    Attributes:
        invariant: "I1", "I2", …; the functions that judge say what each is.
        process_id: Whose; empty where it is a host's.
        what: What was found, with the values.
    """

    invariant: str
    process_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.process_id!r}: {self.what}"


@dataclass(frozen=True, slots=True)
class Take:
    """A process came to belong to a host.

    Attributes:
        by: What made it so: the same for repeats of one claim or creation.
        recalls: Checkpoints handed out; None for a creation, where there are none.
        mailbox: Positions of the events handed out.
    """

    of: Incarnation
    epoch: int
    host_id: str
    by: str
    began: int
    ended: float
    recalls: int | None = None
    mailbox: tuple[int, ...] = ()


class Facts:
    """Everything that the invariants ask about."""

    def __init__(self, history: Sequence[AnyOperation], final: Iterable[Snapshot]) -> None:
        """Index a history and the state in which it left the storage.

        Raises:
            ValueError: The history has an answer to nothing.
        """
        self.calls = calls = pair(history)
        self.creates = only(calls, Create)
        self.delivers = only(calls, Deliver)
        self.claims = only(calls, Claim)
        self.commits = only(calls, Commit)
        self.purges = only(calls, Purge)
        self.renewals = only(calls, Renew)
        self.closings = only(calls, CloseLease)
        self.executions = only(calls, Execute)
        self.sights = only(calls, See)
        self.final = {snapshot.row.process_id: snapshot for snapshot in final}
        self.units = units_of(self.commits)
        self.units_of: dict[Incarnation, list[tuple[UnitId, UnitFacts]]] = defaultdict(list)
        for id, unit in self.units.items():
            self.units_of[id[:2]].append((id, unit))
        self.requests = only(calls, Request)
        self.eras = Eras(self.units, self.requests)
        self.requests_of: dict[str, list[Call[Request]]] = defaultdict(list)
        for asked in self.requests:
            self.requests_of[asked.asked.process_id].append(asked)
        self.created: dict[tuple[str, str], list[Call[Create]]] = defaultdict(list)
        """What clients and hosts have created, by process and creation id."""
        for made in self.creates:
            self.created[made.asked.process_id, made.asked.creation_id].append(made)
        self.raised: dict[tuple[str, str], list[Call[Deliver]]] = defaultdict(list)
        """What was delivered, by receiver and event id."""
        for raised in self.delivers:
            self.raised[raised.asked.process_id, raised.asked.event_id].append(raised)
        self.spawned: dict[tuple[str, str], list[tuple[UnitFacts, Spawn]]] = defaultdict(list)
        """What units have spawned, by process and creation id."""
        self.sent: dict[tuple[str, str], list[tuple[UnitFacts, Sent]]] = defaultdict(list)
        """What units have sent, by receiver and event id."""
        for unit in self.units.values():
            for child in unit.asked.spawns:
                self.spawned[child.process_id, child.creation_id].append((unit, child))
            for event in unit.asked.sends:
                self.sent[event.process_id, event.event_id].append((unit, event))
        self.takes = list(_takes(self.claims, self.creates))
        self.held: dict[Place, tuple[int, Checkpoint]] = {}
        """What the storage holds at the end, and its place in the order recorded."""
        for process_id, snapshot in self.final.items():
            for order, each in enumerate(snapshot.checkpoints):
                place = process_id, snapshot.row.incarnation, each.kind, each.key, each.index
                self.held.setdefault(place, (order, each))
        self.aside: dict[Place, list[Checkpoint]] = defaultdict(list)
        """What retries have put aside."""
        for process_id, snapshot in self.final.items():
            for each in snapshot.forgotten:
                place = process_id, snapshot.row.incarnation, each.kind, each.key, each.index
                self.aside[place].append(each)
        replaced = {call.asked.process_id for call in self.creates if call.asked.replace}
        self.may_be_gone = replaced | {call.asked.process_id for call in self.purges}
        """Processes whose earlier incarnations, or all of them, somebody asked to remove."""

    def of_final(self, of: Incarnation) -> Snapshot | None:
        """Return the final state of a process, if it is of this incarnation."""
        snapshot = self.final.get(of[0])
        return snapshot if snapshot is not None and snapshot.row.incarnation == of[1] else None

    def above(self, process_id: str) -> set[str]:
        """Return the ids of a process and of its ancestors, as far as they are there."""
        line: set[str] = set()
        rest: str | None = process_id
        while rest is not None and rest not in line:
            line.add(rest)
            final = self.final.get(rest)
            parent = None if final is None else final.row.parent
            rest = None if parent is None else parent.process_id
        return line

    def present(self, unit: UnitId, write: Write) -> bool:
        """Return whether the storage holds this very write at the end, put aside or not."""
        place = unit[0], unit[1], write.kind, write.key, write.index
        found = self.held.get(place)
        return (found is not None and (found[1].epoch, found[1].seq) == unit[2:]) or any(
            (each.epoch, each.seq) == unit[2:] for each in self.aside.get(place, ())
        )


def _takes(claims: Iterable[Call[Claim]], creates: Iterable[Call[Create]]) -> Iterator[Take]:
    for claim in claims:
        host_id, by = claim.asked.host_id, f"{claim.asked.host_id}/{claim.asked.claim_id}"
        for each in claim.done.taken if claim.done else ():
            of = each.process_id, each.incarnation
            yield Take(
                of, each.epoch, host_id, by, claim.began, claim.ended, each.recalls, each.mailbox
            )
    for create in creates:
        done = create.done
        if done is not None and done.owned:
            yield Take(
                (done.process_id, done.incarnation),
                done.epoch,
                create.asked.host_id,
                done.creation_id,
                create.began,
                create.ended,
            )
