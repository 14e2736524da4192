"""The world around the processes that are crashed on purpose, and the judge of what it saw.

The world writes one list of everything that happens: which step body ran in
which life, what the storage recorded, what user code was given. The judge
holds that list against the promises; it knows nothing of the engine.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from durabletask import Process, ProcessHost, current_step
from durabletask._notes import DelayNote, RetryNote, WaitNote
from durabletask.errors import StorageUnavailableError, StorageUnknownError
from durabletask.storage import DONE, Checkpoint, Form, Kind, Unit
from durabletask.testing.crash import StorageCall, Story

T = TypeVar("T")
Place = tuple[str, str, int]
"""(process_id, key, index)"""


@dataclass(frozen=True, slots=True)
class Ran:
    """The body of a step began."""

    epoch: int
    at: Place
    attempt: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """The storage has recorded a checkpoint."""

    life: int
    at: Place
    held: Checkpoint
    unit: tuple[int, int]
    consumed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The storage has recorded the end of a process."""

    life: int
    process_id: str
    unit: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """User code was given the outcome of a durable call."""

    at: Place
    value: object


@dataclass
class World:
    """What the steps of a scenario act on."""

    trace: list[Ran | Recorded | Ended | Seen] = field(default_factory=list)
    host: ProcessHost | None = None
    """Of the present life."""
    life: int = 1
    lost_leases: int = 0
    stopped: int = 0

    def reset(self) -> None:
        """Forget everything, for the next run."""
        self.trace = []
        self.life = self.lost_leases = self.stopped = 0

    # --- for process functions ---------------------------------------------------------------

    def act(self, value: T) -> T:
        """Have the effect of a step."""
        step = current_step()
        place = step.process_id, step.key, step.index
        self.trace.append(Ran(step.run.epoch, place, step.attempt))
        return value

    async def effect(self, value: T) -> T:
        """Have the effect of a step that takes a moment."""
        self.act(value)
        await asyncio.sleep(0)
        return value

    async def slow(self, value: T) -> T:
        """Have the effect of a step that takes a quarter of a minute."""
        self.act(value)
        await asyncio.sleep(15)
        return value

    async def pause(self, seconds: float) -> None:
        """Have the effect of a step that takes so long."""
        self.act(None)
        await asyncio.sleep(seconds)

    async def fail(self, error: Exception) -> None:
        """Have an effect, then fail."""
        await self.effect(None)
        raise error

    async def see(self, proc: Process, key: str, call: Awaitable[T], index: int = -1) -> T:
        """Await a durable call and note what came of it."""
        try:
            value = await call
        except Exception as error:
            self.trace.append(Seen((proc.id, key, index), (type(error).__name__, str(error))))
            raise
        self.trace.append(Seen((proc.id, key, index), value))
        return value

    # --- for the harness ---------------------------------------------------------------------

    def witness(self, _life: int, call: StorageCall, arguments: Any, answer: Any) -> None:
        """Note what the storage has done."""
        if call.method != "commit":
            return
        for unit, outcome in zip(arguments, answer, strict=True):
            if outcome == DONE:
                self._note(self.life, unit)

    def _note(self, life: int, unit: Unit) -> None:
        written = unit.epoch, unit.seq
        for held in unit.checkpoints:
            place = unit.process_id, held.key, held.index
            self.trace.append(Recorded(life, place, held, written, unit.consumes))
        if unit.ending is not None:
            self.trace.append(Ended(life, unit.process_id, written))

    def judge(self, story: Story) -> Sequence[str]:
        """Return every broken promise."""
        return [
            *self._repeated(story.deaths + self.lost_leases),
            *self._after_the_record(),
            *self._without_cause(),
            *self._changed(),
            *self._after_the_end(),
            *self._seen_twice(),
            *self._seen_early(),
            *self._timers(),
            *self._events(),
            *self._kept(story),
        ]

    def _all(self, sort: type[T]) -> Iterator[T]:
        return (each for each in self.trace if isinstance(each, sort))

    def _repeated(self, deaths: int) -> Iterator[str]:
        """G4: in one epoch a step starts once an attempt; in all, once more for each death."""
        epochs = Counter((ran.epoch, ran.at, ran.attempt) for ran in self._all(Ran))
        yield from (f"G4 {each} ran {count} times" for each, count in epochs.items() if count > 1)
        total = Counter((ran.at, ran.attempt) for ran in self._all(Ran))
        for each, count in total.items():
            if count > 1 + deaths:
                yield f"G4 {each} ran {count} times with {deaths} deaths"

    def _after_the_record(self) -> Iterator[str]:
        """G3: what is recorded does not run again, nor does a failed attempt that is."""
        recorded: set[Place] = set()
        attempts: dict[Place, int] = {}
        for each in self.trace:
            if isinstance(each, Recorded):
                if each.held.kind in (Kind.DO, Kind.GET):
                    recorded.add(each.at)
                elif each.held.kind is Kind.RETRY:
                    note = msgspec.json.decode(each.held.payload, type=RetryNote)
                    attempts[each.at] = note.attempts
            elif isinstance(each, Ran) and (
                each.at in recorded or each.attempt <= attempts.get(each.at, 0)
            ):
                yield f"G3 {each} although it was recorded"

    def _without_cause(self) -> Iterator[str]:
        """I4: the result of a step has an execution before it."""
        ran: set[Place] = set()
        for each in self.trace:
            if isinstance(each, Ran):
                ran.add(each.at)
            elif (
                isinstance(each, Recorded)
                and each.held.kind is Kind.DO
                and each.held.form is Form.VALUE
                and each.at not in ran
            ):
                yield f"I4 {each.at} has a result and never ran"

    def _changed(self) -> Iterator[str]:
        """G2: one record under a key, for good."""
        first: dict[tuple[Kind, Place], Recorded] = {}
        for each in self._all(Recorded):
            if each.held.replaces:
                continue
            known = first.setdefault((each.held.kind, each.at), each)
            if known.unit != each.unit:
                yield f"G2 {each.held.kind} {each.at} recorded twice, by {known.unit}, {each.unit}"

    def _after_the_end(self) -> Iterator[str]:
        """G10: one ending, and nothing after it; the repeat of a unit is not another one."""
        ended: dict[str, tuple[int, int]] = {}
        for each in self.trace:
            if isinstance(each, Ended):
                if ended.setdefault(each.process_id, each.unit) != each.unit:
                    yield f"G10 {each.process_id} ended twice"
            elif isinstance(each, Recorded) and ended.get(each.at[0], each.unit) < each.unit:
                yield f"G10 {each.at} recorded after the end"
            elif isinstance(each, Ran) and each.at[0] in ended:
                yield f"G10 {each.at} ran after the end"

    def _seen_twice(self) -> Iterator[str]:
        """G2: what user code was given once it is given again."""
        first: dict[Place, object] = {}
        for each in self._all(Seen):
            known = first.setdefault(each.at, each.value)
            if (type(known), known) != (type(each.value), each.value):
                yield f"G2 {each.at} was {known!r} and is now {each.value!r}"

    def _seen_early(self) -> Iterator[str]:
        """G1: what user code is given is recorded by then."""
        seen: set[Place] = set()
        recorded: set[Place] = set()
        for each in self.trace:
            if isinstance(each, Seen):
                # A write that a death has overtaken may land unheard of: then it never shows.
                seen.add(each.at)
            elif isinstance(each, Recorded) and each.held.kind not in (Kind.WAIT, Kind.RETRY):
                if each.at in seen - recorded:
                    yield f"G1 {each.at} was seen before it was recorded"
                recorded.add(each.at)

    def _timers(self) -> Iterator[str]:
        """G7: a due time is fixed by its first record, and nothing is over before it."""
        due: dict[Place, datetime | None] = {}
        for each in self._all(Recorded):
            if each.held.kind is Kind.WAIT:
                due.setdefault(
                    each.at, msgspec.json.decode(each.held.payload, type=WaitNote).due_at
                )
            elif each.held.kind is Kind.DELAY and each.held.form is Form.VALUE:
                note = msgspec.json.decode(each.held.payload, type=DelayNote)
                if note.actual_at < note.desired_at:
                    yield f"G7 {each.at} was over {note.desired_at - note.actual_at} early"
                if due.get(each.at, note.desired_at) != note.desired_at:
                    yield f"G7 {each.at} was due {due[each.at]}, then {note.desired_at}"

    def _events(self) -> Iterator[str]:
        """G8: an event is consumed once."""
        taken: dict[tuple[str, int], tuple[Place, tuple[int, int]]] = {}
        for each in self._all(Recorded):
            for position in each.consumed:
                known = taken.setdefault((each.at[0], position), (each.at, each.unit))
                if known != (each.at, each.unit):
                    yield f"G8 event {position} taken by {known[0]} and by {each.at}"

    def _kept(self, story: Story) -> Iterator[str]:
        """G1: every record that the storage has acknowledged is there at the end."""
        final = {
            (snapshot.row.process_id, held.key, held.index, held.kind): held
            for snapshot in story.snapshots
            for held in snapshot.checkpoints
        }
        for each in self._all(Recorded):
            held = final.get((*each.at, each.held.kind))
            if held is None:
                yield f"G1 {each.held.kind} {each.at} is lost"
            elif not held.replaces and held.payload != each.held.payload:
                yield f"G1 {each.held.kind} {each.at} has changed"


async def steady(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call for as long as its error says that a repeat may work."""
    while True:
        try:
            return await call()
        except (StorageUnavailableError, StorageUnknownError):
            await asyncio.sleep(0.1)
