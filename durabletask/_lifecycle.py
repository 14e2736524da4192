"""How far the run of one process is: its phase, its open waits, its units on their way.

It refuses to know what the units hold and what user code is told (`_recorded`).
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, TypeVar

from msgspec.structs import replace

from durabletask._errors import (
    ProcessInterrupted,
    WrongContextError,
)
from durabletask._journal import Journal
from durabletask._mailbox import Mailbox
from durabletask._model import (
    Checkpoint,
    Claimed,
    Ending,
    Leave,
    Status,
    Unit,
    UnitOutcome,
)
from durabletask._outside import CancelMet, Outside
from durabletask._retry import RetryPolicy
from durabletask._services import Services
from durabletask._undos import Undos

_log = logging.getLogger("durabletask")

T = TypeVar("T")

_UNRECORDED = datetime.min.replace(tzinfo=UTC)
"""In place of a recorded due time, so that it is recorded again."""

WAITS_FEW = 8
"""Up to so many open waits the status is worked out with each record and rides in its unit."""


class Phase(Enum):
    """How far a run is from its end."""

    OPEN = auto()
    DRAINING = auto()  # no further call begins; steps in flight are recorded
    COLLECTING = auto()  # run only to learn its undos: nothing new begins, nothing is recorded
    COMPENSATING = auto()  # the function is over: every call of it raises, undos are run
    INTERRUPTED = auto()  # nothing is recorded, every call raises
    ENDED = auto()  # the function has returned or raised


# Looked up once: an attribute of an enum class costs ten times a global.
_RUNNING, _WAITING, _DRAINING = Status.RUNNING, Status.WAITING, Phase.DRAINING
_COMPENSATING = Phase.COMPENSATING


class Lifecycle:
    """One process in memory, in one epoch, from its claim to its end or interrupt."""

    __slots__ = (
        "_asked",
        "_holds",
        "_input",
        "_phase",
        "_wait",
        "_wait_due_at",
        "_waits",
        "_wake_at",
        "begun_at",
        "begun_s",
        "epoch",
        "fatal",
        "gated",
        "generation",
        "incarnation",
        "journal",
        "mailbox",
        "name",
        "outside",
        "process_id",
        "quarantine_error",
        "recorded",
        "retry",
        "seq",
        "services",
        "steps",
        "task",
        "undos",
        "unwound",
        "waiting",
        "was_waiting",
    )

    def __init__(self, services: Services, claimed: Claimed, retry: RetryPolicy | None) -> None:
        row = claimed.row
        self.services = services
        self.process_id = row.process_id
        self.name = row.name
        self.incarnation = row.incarnation
        self.generation = row.generation
        self.epoch = row.epoch
        self.retry = retry
        self.journal = Journal(claimed.checkpoints)
        self.mailbox = Mailbox(claimed.events)
        self.begun_at = services.now() if claimed.checkpoints else None
        """When the run began, if there was one before it."""
        self.begun_s = services.monotonic_s()
        self.task: asyncio.Task[Ending | None] | None = None
        self.steps = 0
        """Steps in flight: their outcome is not recorded yet."""
        self.quarantine_error: Exception | None = None
        self.fatal: BaseException | None = None
        """What ends the program: raised again whatever user code makes of it."""
        self.was_waiting = False
        """Whether the interrupt ended a durable wait, so that the run unwinds by itself."""
        self.unwound = False
        """User code has ended; what the task still does must not be cancelled."""
        self.undos: Undos | None = None
        """What may have to be undone; None until a step with `undo=` is asked for."""
        self._input = row.input
        self.seq = row.seq
        """Of the latest unit."""
        self._phase = Phase.OPEN
        self.gated = False
        """Whether a call must `pass_gate` before it begins; False but for a few moments."""
        self.recorded = row.status
        """The status that is recorded, or is on its way."""
        self._wake_at = row.wake_at
        self.waiting = 0
        """Open waits."""
        # What a waiting task awaits, and when that is over by itself; nearly always there is one,
        # and only the others need a dictionary.
        self._wait: asyncio.Future[Any] | None = None
        self._wait_due_at: datetime | None = None
        self._waits: dict[asyncio.Future[Any], datetime | None] | None = None
        # Of waits that began although their task had been asked to cancel, how often that was.
        self._asked: dict[asyncio.Future[Any], int] | None = None
        # The same as `_waits` of what only time or an interrupt ends, and no request from outside.
        self._holds: dict[asyncio.Future[Any], datetime | None] | None = None
        self.outside: Outside | None = None
        if row.cancel_reason is not None and not row.cancel_met:
            self.outside = Outside()
            self.outside.cancel_reason = row.cancel_reason
            self.gated = True

    def take_input(self) -> bytes:
        """Return the encoded arguments, once; they are not kept."""
        input, self._input = self._input, b""
        return input

    @property
    def tenure(self) -> tuple[int, int]:
        """Which ownership of which creation this is; a later one is greater."""
        return self.incarnation, self.epoch

    @property
    def interrupted(self) -> bool:
        """Whether nothing may be recorded any more because the run unwinds."""
        # A writer that is being cancelled, by nobody we know: the loop is shutting down around
        # a host that was never stopped, and every task of it meets a CancelledError.
        return self._phase is Phase.INTERRUPTED or self.services.writer.task.cancelling() > 0

    @property
    def collecting(self) -> bool:
        """Whether the function runs only to learn its undos, so that it must change nothing."""
        return self._phase is Phase.COLLECTING

    @property
    def compensating(self) -> bool:
        """Whether the function is over and what it did is being undone."""
        return self._phase is _COMPENSATING

    async def stay_open(self, key: str) -> None:
        """Return at once while the run goes on; else raise, or wait for the interrupt."""
        if self._phase in (Phase.INTERRUPTED, Phase.COLLECTING, Phase.COMPENSATING):
            raise ProcessInterrupted
        self.check_not_ended(key)
        if self._phase is Phase.DRAINING:
            # Until the steps beside it are recorded; then the interrupt comes.
            await self.hold(None, self.services.loop.create_future())

    def check_not_ended(self, key: str) -> None:
        """Raise WrongContextError if the function has returned or raised."""
        if self._phase is Phase.ENDED:
            raise WrongContextError(
                f"key {key!r} was used after process {self.process_id!r} had ended",
                hint="await every task that the process function creates before it returns",
            )

    def check_interrupted(self) -> None:
        """Raise ProcessInterrupted if nothing may be recorded, or not any more."""
        if self.interrupted or self._phase is Phase.COLLECTING:
            raise ProcessInterrupted

    # --- units ------------------------------------------------------------------------------

    def submit(
        self,
        checkpoints: tuple[Checkpoint, ...] = (),
        consumes: tuple[int, ...] = (),
        ending: Ending | None = None,
        leave: Leave | None = None,
        **more: Any,
    ) -> "asyncio.Future[UnitOutcome]":
        """Hand one unit to the writer, with the status if it has changed.

        Args:
            more: What few units have, as `Unit` names it.
        """
        self.seq += 1
        if self.outside is not None and self.outside.on_record is not None:
            self._say_recorded(self.outside)
        if ending is None and leave is None and (self.waiting or self.recorded is not _RUNNING):
            if self.waiting <= WAITS_FEW:
                unit = self._unit_with_status(checkpoints, consumes)
                return self.services.writer.submit(replace(unit, **more) if more else unit)
            # Ten thousand waits side by side: once a batch, not once a record.
            self.services.writer.mark(self)
        return self.services.writer.submit(
            Unit(
                process_id=self.process_id,
                incarnation=self.incarnation,
                epoch=self.epoch,
                seq=self.seq,
                checkpoints=checkpoints,
                consumes=consumes,
                ending=ending,
                leave=leave,
                **more,
            )
        )

    def standing(self) -> Unit | None:
        """Return the unit that records the status, or None if it is recorded already."""
        if self._phase is not Phase.OPEN or self._stand() == (self.recorded, self._wake_at):
            return None
        if self.outside is not None and self.outside.on_record is not None:
            if self.steps:
                return None  # nothing new, and what runs may be what ends programs
            self._say_recorded(self.outside)
        self.seq += 1
        return self._unit_with_status((), ())

    # --- waiting -----------------------------------------------------------------------------

    async def hold(
        self, due_at: datetime | None, future: "asyncio.Future[T]", *, firm: bool = True
    ) -> T:
        """Await what only time or an interrupt can end; an open wait meanwhile.

        Args:
            due_at: When `future`, a timer, is set; None if time alone does not set it.
            firm: Whether it goes on when the process is cancelled from outside.
        """
        if firm:
            self.waiting += 1
            self.keep(due_at, future)
            if self._phase is Phase.OPEN:
                self.services.writer.mark(self)
        else:
            self.wait_begins(due_at, future)
        try:
            result = await future
        except asyncio.CancelledError:
            if due_at is not None:
                self.services.timers.give_up(future)
            self.wait_broken(future)
            raise
        self.wait_ended(future)
        return result

    def wait_begins(
        self,
        due_at: datetime | None,
        future: "asyncio.Future[Any]",
        note: Checkpoint | None = None,
    ) -> None:
        """Take note that a task is about to await `future`, which an interrupt will end.

        The caller awaits it and calls `wait_ended`, or `wait_broken` when it is cancelled.
        Not in a `finally`: a coroutine that is merely dropped (the program
        ends) must not touch a loop that is closed.

        Args:
            due_at: When the wait is over by itself, if ever.
            future: Belongs to this wait alone; no Task.
            note: The record that the wait has begun, unless there is one already.
        """
        self.waiting += 1
        task = asyncio.current_task(self.services.loop)
        if task is not None and task.cancelling():
            # In the `finally` of a cancellation; or it never came to anything, as that of a
            # `TaskGroup` which failed while it was waited for, before Python 3.13.
            self._asked = self._asked or {}
            self._asked[future] = task.cancelling()
        if self._wait is None:
            self._wait, self._wait_due_at = future, due_at
        else:
            if self._waits is None:
                self._waits = {}
            self._waits[future] = due_at
        if note is not None:
            self.submit((note,))
        elif self._phase is Phase.OPEN:
            self.services.writer.mark(self)

    def keep(self, due_at: datetime | None, future: "asyncio.Future[Any]") -> None:
        """Let an interrupt end `future`, and its due time wake the process, without waiting."""
        if self._holds is None:
            self._holds = {}
        self._holds[future] = due_at

    def wait_ended(self, future: "asyncio.Future[Any]") -> None:
        """Take note that a wait is over."""
        self.waiting -= 1
        self.drop(future)

    def drop(self, future: "asyncio.Future[Any]") -> None:
        """Forget what was kept."""
        if self._asked is not None:
            self._asked.pop(future, None)
            self._asked = self._asked or None
        if future is self._wait:
            self._wait = self._wait_due_at = None
        elif self._waits is not None and future in self._waits:
            del self._waits[future]
            self._waits = self._waits or None
        elif self._holds is not None:
            del self._holds[future]
            self._holds = self._holds or None

    def wait_broken(self, future: "asyncio.Future[Any]") -> None:
        """Take note that a wait was cancelled.

        Raises:
            ProcessInterrupted: By an interrupt; otherwise by user code, or from
                outside: `Run.record_cancelled` tells these apart.
        """
        asked = 0 if self._asked is None else self._asked.get(future, 0)
        self.wait_ended(future)
        future.cancel()
        if self.interrupted or self._phase is _COMPENSATING:
            raise ProcessInterrupted from None
        meeting = None if self.outside is None else self.outside.meeting
        if meeting is not None and future.done() and not future.cancelled():
            task = asyncio.current_task()
            if task is not None and isinstance(future.exception(), CancelMet):
                meeting.tasks[task] = asked

    def step_begins(self) -> None:
        """Count a step as in flight."""
        self.steps += 1
        if self.recorded is _WAITING:
            self.services.writer.mark(self)

    def step_ended(self) -> None:
        """Uncount a step whose outcome is recorded; the last one lets a draining run unwind."""
        self.steps -= 1
        self.step_settled()

    def step_settled(self) -> None:
        """Do what is due after a step was uncounted."""
        if self.waiting:
            self.services.writer.mark(self)
        if self._phase is _DRAINING and self.steps == 0:
            self.interrupt()
        elif self._phase is _COMPENSATING and self.undos is not None:
            self.undos.wake()

    # --- ending early ------------------------------------------------------------------------

    def quarantine(self, error: Exception) -> ProcessInterrupted:
        """Set the process aside because of a mistake in code; return what to raise."""
        if self._phase not in (Phase.INTERRUPTED, Phase.ENDED):
            self.quarantine_error = error
            self.interrupt()
        return ProcessInterrupted(str(error))

    def leave_program(self, error: BaseException) -> None:
        """Take note of a SystemExit or KeyboardInterrupt; it ends the program, not the process."""
        self.fatal = error
        self.interrupt()

    def interrupt(self) -> None:
        """Unwind the run: from now on nothing is recorded, and every durable call raises."""
        if self._phase in (Phase.INTERRUPTED, Phase.ENDED):
            return
        self._phase, self.gated = Phase.INTERRUPTED, True
        self.was_waiting = self.waiting > 0
        self._end_waits()
        if self.undos is not None:
            self.undos.cancel_attempts()
        self.services.on_interrupt(self)

    def drain(self) -> None:
        """Begin no further call; unwind as soon as no step is in flight."""
        if self._phase in (Phase.OPEN, Phase.COLLECTING, Phase.COMPENSATING):
            self._phase, self.gated = Phase.DRAINING, True
            if self.steps == 0:
                self.interrupt()

    def watch(self, on_record: Callable[[], None]) -> None:
        """Tell as soon as anything is recorded; also that the process waits, as it did before."""
        self.outside = self.outside or Outside()
        self.outside.on_record = on_record
        self.gated = True
        self._wake_at = _UNRECORDED

    def stand_back(self, *, at_once: bool) -> None:
        """Unwind, since the process is suspended or was ended from outside, and give it back.

        Args:
            at_once: Without waiting for the steps in flight: nothing can be recorded any more.
        """
        if self._phase in (Phase.INTERRUPTED, Phase.ENDED):
            return
        self.outside = self.outside or Outside()
        self.outside.leaves = True
        if at_once:
            self.interrupt()
        else:
            self.drain()

    # --- undoing -----------------------------------------------------------------------------

    def collect(self) -> None:
        """Let the function run only as far as it recalls, to learn its undos.

        Raises:
            ProcessInterrupted: The run unwinds already.
        """
        if self._phase is not Phase.OPEN or self.interrupted:
            raise ProcessInterrupted
        self._phase, self.gated = Phase.COLLECTING, True
        # Recorded already, or else with the next unit.
        self.recorded = Status.COMPENSATING

    def close(self) -> None:
        """Begin no further call of the function, and end its waits; steps in flight go on.

        A run that drains goes on draining, until it is interrupted.

        Raises:
            ProcessInterrupted: The run unwinds.
        """
        if self.interrupted:
            raise ProcessInterrupted
        if self._phase is not _DRAINING:
            self._phase, self.gated = Phase.COMPENSATING, True
            self._end_waits()

    async def steps_over(self) -> None:
        """Wait until the outcome of every step in flight is recorded.

        Raises:
            ProcessInterrupted: The run unwinds first.
        """
        if self._phase is _DRAINING:
            await self.hold(None, self.services.loop.create_future())
        while self.steps and self.undos is not None:
            await self.hold(None, self.undos.sleeper(self.services.loop.create_future()))

    def submit_decision(self, decision: Checkpoint) -> "asyncio.Future[UnitOutcome]":
        """Hand over the one unit that turns the process to its undoing."""
        self.seq += 1
        self.recorded = Status.COMPENSATING
        return self.services.writer.submit(self._unit_with_status((decision,), ()))

    def end(self) -> bool:
        """Take note that the function has returned or raised; False if that no longer counts."""
        if self._phase is Phase.INTERRUPTED:
            return False
        self._phase, self.gated = Phase.ENDED, True
        self._end_waits()
        return True

    def __call__(self, task: "asyncio.Task[Ending | None]") -> None:
        """Tell the host that the run's task is done.

        The run is its own done-callback: a closure for each of a hundred
        thousand runs would be 64 bytes each, and a task's name is the user's to change.
        """
        # The task's context holds the run: together they would be there until the garbage
        # collector comes.
        self.task = None
        self.services.on_left(self, task)

    async def conclude(self, ending: Ending) -> bool:
        """Record the last word on the process; False if it is not ours to say any more."""
        return await self._last(self.submit(ending=ending))

    def restart(self, input: bytes) -> None:
        """Unwind, and then let the process begin anew with this input.

        Raises:
            ProcessInterrupted: The run unwinds already; a later one gets here again.
        """
        if self._phase is not Phase.OPEN:
            raise ProcessInterrupted
        self.outside = self.outside or Outside()
        self.outside.restart, self.outside.leaves = input, True
        self.interrupt()

    async def begin_anew(self) -> bool:
        """Record the next generation, for whoever claims it; False if that is not ours any more."""
        assert self.outside is not None
        return await self._last(self.submit(leave=Leave.RELEASED, restart=self.outside.restart))

    async def _last(self, answer: "asyncio.Future[UnitOutcome]") -> bool:
        while not answer.done():
            # Tasks that user code left behind may still cancel this one.
            try:
                await asyncio.wait([answer])
            except asyncio.CancelledError:
                continue
        if answer.cancelled() or answer.exception() is not None:
            return False
        return answer.result().refused is None

    # --- inside ------------------------------------------------------------------------------

    def _say_recorded(self, outside: Outside) -> None:
        on_record, outside.on_record = outside.on_record, None
        if on_record is not None:
            on_record()

    def _end_waits(self) -> None:
        for future, _ in (*self._open_waits(), *(self._holds or {}).items()):
            if not future.done():
                future.set_exception(ProcessInterrupted())
                # Its task may be cancelled before it looks; then nobody else would.
                future.exception()

    def _open_waits(self) -> "list[tuple[asyncio.Future[Any], datetime | None]]":
        # About in the order in which they began, as a resumed run comes to them again.
        waits = [] if self._wait is None else [(self._wait, self._wait_due_at)]
        if self._waits is not None:
            waits += self._waits.items()
        return waits

    def _stand(self) -> tuple[Status, datetime | None]:
        if self.recorded is Status.COMPENSATING:
            return self.recorded, None
        if self.steps or not self.waiting:
            return Status.RUNNING, None
        waits = (*self._open_waits(), *(self._holds or {}).items())
        dues = [due_at for _, due_at in waits if due_at is not None]
        return Status.WAITING, min(dues, default=None)

    def _unit_with_status(
        self, checkpoints: tuple[Checkpoint, ...], consumes: tuple[int, ...]
    ) -> Unit:
        self.recorded, self._wake_at = self._stand()
        return Unit(
            process_id=self.process_id,
            incarnation=self.incarnation,
            epoch=self.epoch,
            seq=self.seq,
            checkpoints=checkpoints,
            consumes=consumes,
            status=self.recorded,
            wake_at=self._wake_at,
        )
