"""Where the history of a process begins anew: with a restart, or where a retry put something aside.

A restart whose answer was lost may have been carried out or not; what depends
on it is then left open, so that nothing is reported that could be right.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from durabletask._model import Action, Kind
from durabletask.testing._history_calls import Call, Fate, Incarnation, UnitFacts, UnitId
from durabletask.testing._history_records import Request

Slot: TypeAlias = tuple[Kind, str, int]
"""(kind, key, index)"""

At: TypeAlias = tuple[int, int]
"""(epoch, seq) of the unit that recorded something."""


class Eras:
    """Restarts and retries, by process.

    Attributes:
        restarts: Of each process the units that restart it, but for those that were refused.
        retries: Of each process the retries, but for those that were refused; by request id.
    """

    def __init__(
        self, units: Mapping[UnitId, UnitFacts], requests: Iterable[Call[Request]]
    ) -> None:
        self.restarts: dict[Incarnation, dict[At, Fate]] = defaultdict(dict)
        for id, unit in units.items():
            if unit.asked.restart and unit.fate is not Fate.REFUSED:
                self.restarts[id[:2]][id[2:]] = unit.fate
        self.retries: dict[Incarnation, dict[str, Call[Request]]] = defaultdict(dict)
        for call in requests:
            asked = call.asked
            if asked.action is Action.RETRY and not call.refused:
                of = asked.process_id, asked.incarnation
                known = self.retries[of].setdefault(asked.request_id, call)
                if known.done is None:
                    self.retries[of][asked.request_id] = call

    def may_be_dropped(self, of: Incarnation, at: At) -> bool:
        """Return whether a restart may have dropped what a unit has recorded."""
        return any(restart > at for restart in self.restarts.get(of, ()))

    def is_dropped(self, of: Incarnation, at: At) -> bool:
        """Return whether a restart has certainly dropped it."""
        return any(
            restart > at and fate is Fate.RECORDED
            for restart, fate in self.restarts.get(of, {}).items()
        )

    def may_be_aside(self, of: Incarnation, slot: Slot, at: At) -> bool:
        """Return whether a retry may have put aside what a unit has recorded there."""
        return any(
            slot in call.asked.forgets and call.asked.epoch >= at[0]
            for call in self.retries.get(of, {}).values()
        )

    def number(self, of: Incarnation, slot: Slot, at: At) -> int | None:
        """Return the how manieth beginning of a place something was recorded under.

        None where a lost answer leaves that open.
        """
        restarts = self.restarts.get(of, {})
        retries = [call for call in self.retries.get(of, {}).values() if slot in call.asked.forgets]
        if any(fate is not Fate.RECORDED for fate in restarts.values()):
            return None
        if any(call.done is None for call in retries):
            return None
        before = sum(restart < at for restart in restarts)
        return before + sum(call.asked.epoch < at[0] for call in retries)

    def generation_min(self, of: Incarnation, at: At) -> int:
        """Return the lowest generation to which a unit may belong."""
        return sum(
            restart < at and fate is Fate.RECORDED
            for restart, fate in self.restarts.get(of, {}).items()
        )

    def restored(self, of: Incarnation) -> set[int]:
        """Return the positions of events that retries may have put back."""
        return {
            position
            for call in self.retries.get(of, {}).values()
            for position in call.asked.restores
        }
