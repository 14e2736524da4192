"""Commits: one round trip for what all processes of a host write at one moment.

Responsible for the way that a batch takes, for what a host was told last, and
for getting the others through when one process cannot be written. What a unit
may do is for the database's functions to judge.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asyncpg import Record

from durabletask.errors import StorageUnavailableError, StorageUnknownError
from durabletask.storage import DONE, Clock, Lease, Unit, UnitOutcome
from durabletask_postgres._batch import (
    BUSY,
    IN_TURN,
    NO_MARK,
    Mark,
    Places,
    columns,
    halves,
    is_step,
    leaves,
    mark_at,
    mark_of,
    outcomes,
    rounds,
    step_columns,
    step_values,
    steps_first,
)
from durabletask_postgres._connections import Connections
from durabletask_postgres._in_turn import TURN_MAX, in_turn, turn_columns, turn_outcomes
from durabletask_postgres._refusals import is_damage, is_locked, is_taken
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import NOTHING_WRITTEN, UnexpectedError, partly

T = TypeVar("T")

_log = logging.getLogger("durabletask")

WARY_S = 1.0
"""For how long after a row was found locked no commit waits for rows: its owner sits on it."""

SESSIONS_KNOWN_MAX = 16
"""In which a host has made sure; more than it has connections."""

CHECK_PAUSE_S = 5.0
"""Between two checks where it cannot be known which session answers."""


@dataclass(slots=True, eq=False)
class Batch:
    """A batch on its way.

    Attributes:
        answers: The outcomes so far.
        busy: Processes of which an earlier unit must go again: the later ones
            must not overtake it.
        told: The ids of the parents that were told of an end.
        answered: Whether a part of it has been carried out.
    """

    answers: list[UnitOutcome]
    answered: bool
    busy: set[int] = field(default_factory=set)
    told: list[str] = field(default_factory=list)


Call = Callable[[Lease, Places, Batch], Awaitable[dict[int, UnitOutcome]]]
"""Asks for one part of a batch; returns the outcomes that are not simply DONE, by place."""


class Commits:
    """Commits of the leases of one storage.

    Attributes:
        names: The ids of processes that hosts of this storage hold, by number,
            as the database has told them. Lacking one costs time and nothing else.
        parents: The numbers of their parents, of those that are children;
            likewise.
    """

    def __init__(self, connections: Connections, statements: Statements, clock: Clock) -> None:
        self._connections = connections
        self._check = statements["check"]
        self._step = statements["step"]
        self._steps = statements["steps"]
        self._units = statements["commit"]
        self._in_turn = statements["commit_in_turn"]
        self._clock = clock
        self._marks: dict[str, Mark] = {}
        # By host, the session that gave the last answer: it knows of what it has told.
        self._told_in: dict[str, object] = {}
        self._wary_until_s = 0.0
        # Hosts whose latest commit was not answered: an earlier copy may still be on its way.
        self._in_doubt: set[str] = set()
        # The latest sessions in which a host has made sure, and when it did so last.
        self._checked: dict[str, deque[object]] = {}
        self._checked_s = -CHECK_PAUSE_S
        self.names: dict[int, str] = {}
        self.parents: dict[int, int] = {}

    async def commit(
        self, lease: Lease, units: Sequence[Unit]
    ) -> tuple[Sequence[UnitOutcome], Sequence[str]]:
        """Record units; see `ProcessStorage.commit`.

        Returns:
            What that returns, and the ids of the processes that have left the
            host or that others may have something to do for now.
        """
        if not units:
            return [], ()
        answers = [DONE] * len(units)
        recorded = await self._record_steps(lease, units)
        if recorded == len(units):
            self.told(lease, units[-1])
            return answers, ()
        batch = Batch(answers, answered=recorded > 0)
        try:
            await self._commit_parts(lease, units, batch)
        except NOTHING_WRITTEN as error:
            if batch.answered:
                raise partly(error) from error
            raise
        return answers, [*batch.told, *self._told_by(units, answers)]

    async def _commit_parts(self, lease: Lease, units: Sequence[Unit], batch: Batch) -> None:
        """Record units in as many calls as it takes for each to be able to judge its part."""
        places = list(enumerate(units))
        turning = in_turn(places, self.parents)
        rest = (
            [each for each in places if each[1].incarnation not in turning] if turning else places
        )
        if rest:
            for part in rounds(rest):
                await self._commit(lease, part, batch, self._call)
        if turning:
            places = [each for each in places if each[1].incarnation in turning]
            for start in range(0, len(places), TURN_MAX):
                part = places[start : start + TURN_MAX]
                await self._commit(lease, part, batch, self._call_in_turn)

    def _told_by(self, units: Sequence[Unit], answers: Sequence[UnitOutcome]) -> Iterable[str]:
        """Yield the processes that have left, were born or were sent something."""
        for unit, answer in zip(units, answers, strict=True):
            if leaves(unit, answer):
                self.names.pop(unit.incarnation, None)
                self.parents.pop(unit.incarnation, None)
                yield unit.process_id
            if (unit.spawns or unit.sends) and answer == DONE:
                yield from (child.process_id for child in unit.spawns)
                yield from (event.process_id for event in unit.sends)

    def know(self, number: int, process_id: str, parent: int | None) -> None:
        """Take note of a process that the database has told of."""
        self.names[number] = process_id
        if parent is not None:
            self.parents[number] = parent

    def mark(self, lease: Lease) -> Mark | tuple[None, ...]:
        """Return what a host was told last."""
        return self._marks.get(lease.host_id) or NO_MARK

    def told(self, lease: Lease, unit: Unit) -> None:
        """Take note that a host was told of a unit with a checkpoint that went another way."""
        self._marks[lease.host_id] = mark_at(unit)

    def forget(self, lease: Lease) -> None:
        """Forget what a host was told: its lease is over."""
        self._marks.pop(lease.host_id, None)
        self._told_in.pop(lease.host_id, None)
        self._checked.pop(lease.host_id, None)
        self._in_doubt.discard(lease.host_id)
        self.names.clear()
        self.parents.clear()

    async def check(self, lease: Lease) -> None:
        """Make sure, in a session that is new to a host, that the database holds what it told it.

        A commit asks anyway. This is for a host that has nothing to commit:
        what it waits for may have come again behind what was lost.

        Raises:
            StorageRewoundError: The database has gone back in time.
        """
        mark = self._marks.get(lease.host_id)
        session = self._connections.session
        checked = self._checked.setdefault(lease.host_id, deque(maxlen=SESSIONS_KNOWN_MAX))
        if mark is None or any(session is each for each in checked):
            return
        if session is None:
            # A pooler's or a pool's affair, and any answer may be from another one.
            now_s = self._clock.monotonic_s()
            if now_s - self._checked_s < CHECK_PAUSE_S:
                return
            self._checked_s = now_s
        await self._connections.fetch(self._check, lease.host_id, *mark)
        if session is not None:
            checked.append(session)

    async def _ask(self, lease: Lease, statement: str, *args: Any) -> list[Record]:
        call = self._connections.fetch(statement, lease.host_id, *args)
        return await self._told(lease, self._connections.session, call)

    async def _told(self, lease: Lease, session: object, call: Coroutine[Any, Any, T]) -> T:
        """Return the answer to a call that has not begun, and take note of who gave it."""
        try:
            answer = await call
        except (StorageUnknownError, asyncio.CancelledError):
            self._in_doubt.add(lease.host_id)
            raise
        self._in_doubt.discard(lease.host_id)
        self._told_in[lease.host_id] = session
        return answer

    # --- the usual: steps, and nothing in their way ----------------------------------------

    async def _record_steps(self, lease: Lease, units: Sequence[Unit]) -> int:
        """Record units if all are steps; return how many of them are recorded now."""
        if lease.host_id in self._in_doubt:
            return 0  # an earlier copy may hold their places, and here it would be waited for
        try:
            if len(units) == 1 and is_step(units[0]):
                session = self._connections.session
                if session is not None and session is self._told_in.get(lease.host_id):
                    values = step_values(units[0])
                    call = self._connections.write(self._step, lease.host_id, *values)
                    return await self._told(lease, session, call)
            arrays = step_columns(units, self.names)
            if arrays is None:
                return 0
            ((count,),) = await self._ask(lease, self._steps, *self.mark(lease), *arrays)
            return int(count)
        except UnexpectedError:
            return 0  # a place that is taken, or something that one process may be the cause of
        except StorageUnavailableError as error:
            if is_locked(error):
                return 0
            raise

    # --- everything else -------------------------------------------------------------------

    async def _commit(self, lease: Lease, places: Places, batch: Batch, call: Call) -> None:
        """Record one part of a batch, and what fails alone by itself."""
        answers, busy = batch.answers, batch.busy
        if busy:
            for place, unit in places:
                if unit.incarnation in busy:
                    answers[place] = BUSY
            places = [each for each in places if each[1].incarnation not in busy]
        if not places:
            return
        try:
            found = await call(lease, places, batch)
        except StorageUnavailableError as error:
            if not isinstance(error, UnexpectedError) and not is_locked(error):
                raise
            if len(places) > 1:
                for part in halves(places):
                    await self._commit(lease, part, batch, call)
                return
            ((place, unit),) = places
            if isinstance(error, UnexpectedError):
                _log.error("process %s cannot be written: %s", ascii(unit.process_id), error)
                if is_damage(error):
                    # It may be the mark that cannot be read, and that would stop everybody.
                    self._marks.pop(lease.host_id, None)
            found = {place: BUSY}
        else:
            batch.answered = True
        for place, outcome in found.items():
            answers[place] = outcome
        busy.update(unit.incarnation for place, unit in places if answers[place] is BUSY)
        mark = mark_of(places, answers, self._marks.get(lease.host_id))
        if mark is not None:
            self._marks[lease.host_id] = mark
        else:
            self._marks.pop(lease.host_id, None)
        if found:
            later = [each for each in places if answers[each[0]] is IN_TURN]
            if later:
                for place, _ in later:
                    answers[place] = DONE  # unless it is said otherwise, and then it is the mark
                await self._commit(lease, later, batch, self._call_in_turn)

    async def _call(self, lease: Lease, places: Places, batch: Batch) -> dict[int, UnitOutcome]:
        """Commit one part, first as if nothing stood in its way."""
        ordered, steps = steps_first(places)
        mark = self.mark(lease)
        arguments: list[Any] = [*mark, *columns(ordered, steps)]
        careful = lease.host_id in self._in_doubt
        while True:
            skip_busy = self._clock.monotonic_s() < self._wary_until_s
            try:
                records = await self._ask(lease, self._units, skip_busy, careful, *arguments)
            except StorageUnavailableError as error:
                if is_locked(error) and not skip_busy:
                    self._wary_until_s = self._clock.monotonic_s() + WARY_S
                elif is_taken(error) and not careful:
                    careful = True
                else:
                    raise
            else:
                return outcomes(records, ordered) if records else {}

    async def _call_in_turn(
        self, lease: Lease, places: Places, batch: Batch
    ) -> dict[int, UnitOutcome]:
        """Commit one part, unit by unit, first as if nothing stood in its way."""
        arguments: list[Any] = [*self.mark(lease), *turn_columns(places)]
        again = False
        while True:
            skip_busy = self._clock.monotonic_s() < self._wary_until_s
            try:
                records = await self._ask(lease, self._in_turn, skip_busy, *arguments)
            except StorageUnavailableError as error:
                if is_locked(error) and not skip_busy:
                    self._wary_until_s = self._clock.monotonic_s() + WARY_S
                elif is_taken(error) and not again:
                    again = True  # an earlier copy was on its way, and now can be seen
                else:
                    raise
            else:
                return turn_outcomes(records, places, batch.told)
