"""A history and the final state, indexed once for the invariants that ask about them.

Order is the position in the merged history, and nothing else: A happened
before B if the answer to A stands before the request of B. What was never
answered may happen until the end.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeAlias, TypeVar

from durabletask._model import Checkpoint, Kind, Snapshot
from durabletask.testing._history_records import (
    AnyOperation,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    Execute,
    Operation,
    Phase,
    Purge,
    Renew,
    See,
    Write,
)

O = TypeVar("O", bound=Operation)  # noqa: E741  (an operation)

Incarnation: TypeAlias = tuple[str, int]
"""(process_id, incarnation)"""

Place: TypeAlias = tuple[str, int, Kind, str, int]
"""(process_id, incarnation, kind, key, index)"""

UnitId: TypeAlias = tuple[str, int, int, int]
"""(process_id, incarnation, epoch, seq)"""


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
class Call(Generic[O]):
    """A request with its answer.

    Attributes:
        began: Position of the request.
        ended: Position of the answer; infinite where there is none.
    """

    asked: O
    answer: O | None
    began: int
    ended: float

    @property
    def done(self) -> O | None:
        """The answer, if the request was carried out for sure."""
        return self.answer if self.answer is not None and self.answer.phase is Phase.OK else None

    @property
    def refused(self) -> bool:
        """Whether it was certainly not carried out."""
        return self.answer is not None and self.answer.phase is Phase.FAIL


class Fate(Enum):
    """What became of a unit, over all of its repeats."""

    RECORDED = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(slots=True)
class UnitFacts:
    """One unit and all requests to record it.

    Attributes:
        asked: As it was recorded, if it was; the repeat of a transaction may have another result.
        recorded_at: Position of the first answer that said so; infinite where none did.
    """

    asked: Commit
    calls: list[Call[Commit]] = field(default_factory=list)
    fate: Fate = Fate.UNKNOWN
    recorded_at: float = math.inf

    def firsts(self) -> Iterator[Write]:
        """Yield the writes that win by being first, each place once."""
        seen = set()
        for write in self.asked.writes:
            place = write.kind, write.key, write.index
            if not write.replaces and place not in seen:
                seen.add(place)
                yield write


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
        self.calls = calls = _pair(history)
        self.creates = _only(calls, Create)
        self.delivers = _only(calls, Deliver)
        self.claims = _only(calls, Claim)
        self.commits = _only(calls, Commit)
        self.purges = _only(calls, Purge)
        self.renewals = _only(calls, Renew)
        self.closings = _only(calls, CloseLease)
        self.executions = _only(calls, Execute)
        self.sights = _only(calls, See)
        self.final = {snapshot.row.process_id: snapshot for snapshot in final}
        self.units = _units(self.commits)
        self.units_of: dict[Incarnation, list[tuple[UnitId, UnitFacts]]] = defaultdict(list)
        for id, unit in self.units.items():
            self.units_of[id[:2]].append((id, unit))
        self.takes = list(_takes(self.claims, self.creates))
        self.held: dict[Place, tuple[int, Checkpoint]] = {}
        """What the storage holds at the end, and its place in the order recorded."""
        for process_id, snapshot in self.final.items():
            for order, each in enumerate(snapshot.checkpoints):
                place = process_id, snapshot.row.incarnation, each.kind, each.key, each.index
                self.held.setdefault(place, (order, each))
        replaced = {call.asked.process_id for call in self.creates if call.asked.replace}
        self.may_be_gone = replaced | {call.asked.process_id for call in self.purges}
        """Processes whose earlier incarnations, or all of them, somebody asked to remove."""

    def of_final(self, of: Incarnation) -> Snapshot | None:
        """Return the final state of a process, if it is of this incarnation."""
        snapshot = self.final.get(of[0])
        return snapshot if snapshot is not None and snapshot.row.incarnation == of[1] else None

    def present(self, unit: UnitId, write: Write) -> bool:
        """Return whether the storage holds this very write at the end."""
        found = self.held.get((unit[0], unit[1], write.kind, write.key, write.index))
        return found is not None and (found[1].epoch, found[1].seq) == unit[2:]


def _pair(history: Sequence[AnyOperation]) -> list[Call[Operation]]:
    calls: list[Call[Operation]] = []
    open: dict[tuple[str, int], tuple[Operation, int]] = {}
    for position, operation in enumerate(history):
        name = operation.who, operation.call
        if operation.phase is Phase.INVOKE:
            open[name] = operation, position
            continue
        if name not in open:
            raise ValueError(f"operation {position} of the history answers nothing: {operation}")
        asked, began = open.pop(name)
        # Unknown is as good as unanswered: it may still be carried out.
        ended = math.inf if operation.phase is Phase.INFO else position
        calls.append(Call(asked, operation, began, ended))
    calls += [Call(asked, None, began, math.inf) for asked, began in open.values()]
    calls.sort(key=lambda call: call.began)
    return calls


def _only(calls: Iterable[Call[Operation]], kind: type[O]) -> list[Call[O]]:
    found: list[Call[O]] = []
    for call in calls:
        if isinstance(call.asked, kind):
            answer = call.answer if isinstance(call.answer, kind) else None
            found.append(Call(call.asked, answer, call.began, call.ended))
    return found


def unit_id(asked: Commit) -> UnitId:
    """Return what names a unit for good."""
    return asked.process_id, asked.incarnation, asked.epoch, asked.seq


def _units(commits: Iterable[Call[Commit]]) -> dict[UnitId, UnitFacts]:
    units: dict[UnitId, UnitFacts] = {}
    for call in commits:
        unit = units.setdefault(unit_id(call.asked), UnitFacts(call.asked))
        unit.calls.append(call)
        if call.done is not None and not call.done.held:
            unit.fate, unit.asked = Fate.RECORDED, call.asked
            unit.recorded_at = min(unit.recorded_at, call.ended)
    for unit in units.values():
        # Overtaken: nothing of the unit was written, as little as of a refused one.
        if unit.fate is not Fate.RECORDED and all(
            call.refused or (call.done is not None and call.done.held) for call in unit.calls
        ):
            unit.fate = Fate.REFUSED
    return units


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
