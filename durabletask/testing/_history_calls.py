"""Requests with their answers, and units with all their repeats.

Order is the position in the merged history, and nothing else: A happened
before B if the answer to A stands before the request of B. What was never
answered may happen until the end.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeAlias, TypeVar

from durabletask._model import Kind
from durabletask.testing._history_records import AnyOperation, Commit, Operation, Phase, Write

O = TypeVar("O", bound=Operation)  # noqa: E741  (an operation)

Incarnation: TypeAlias = tuple[str, int]
"""(process_id, incarnation)"""

Place: TypeAlias = tuple[str, int, Kind, str, int]
"""(process_id, incarnation, kind, key, index)"""

UnitId: TypeAlias = tuple[str, int, int, int]
"""(process_id, incarnation, epoch, seq)"""


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


def pair(history: Sequence[AnyOperation]) -> list[Call[Operation]]:
    """Return every request with its answer, in the order in which they began.

    Raises:
        ValueError: The history has an answer to nothing.
    """
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


def only(calls: Iterable[Call[Operation]], kind: type[O]) -> list[Call[O]]:
    """Return the calls of one kind."""
    found: list[Call[O]] = []
    for call in calls:
        if isinstance(call.asked, kind):
            answer = call.answer if isinstance(call.answer, kind) else None
            found.append(Call(call.asked, answer, call.began, call.ended))
    return found


def unit_id(asked: Commit) -> UnitId:
    """Return what names a unit for good."""
    return asked.process_id, asked.incarnation, asked.epoch, asked.seq


def units_of(commits: Iterable[Call[Commit]]) -> dict[UnitId, UnitFacts]:
    """Return every unit with what became of it."""
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
