"""The run of one process on this host: its journal, its writes, and what ends it early.

Everything a durable call needs, whatever its kind: may it begin, what is
recorded, record this, wait for that. It refuses to know what a step or a wait
is (`_steps`, `_waits`) and who started the run (`_runner`).
"""

import asyncio
import logging
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, TypeVar

import msgspec

import durabletask._notes as _notes
from durabletask._caller import check_caller
from durabletask._codec import Shape
from durabletask._errors import (
    DecodeError,
    LimitExceededError,
    NonDeterminismError,
    ProcessInterrupted,
    ProgramError,
    StorageError,
    WrongContextError,
)
from durabletask._journal import Journal
from durabletask._mailbox import Mailbox
from durabletask._model import (
    DONE,
    NO_INDEX,
    Checkpoint,
    Claimed,
    Ending,
    Form,
    Kind,
    Leave,
    Status,
    Unit,
    UnitOutcome,
)
from durabletask._retry import RetryPolicy
from durabletask._services import Services

_log = logging.getLogger("durabletask")

T = TypeVar("T")

RELIVE_GRACE_S = 60.0
"""How much longer than the earlier run a recorded cancellation may take to come again."""

WAITS_FEW = 8
"""Up to so many open waits the status is worked out with each record and rides in its unit."""


class Phase(Enum):
    """How far a run is from its end."""

    OPEN = auto()
    DRAINING = auto()  # no further call begins; steps in flight are recorded
    INTERRUPTED = auto()  # nothing is recorded, every call raises
    ENDED = auto()  # the function has returned or raised


# Looked up once: an attribute of an enum class costs ten times a global.
_RUNNING, _WAITING, _DRAINING = Status.RUNNING, Status.WAITING, Phase.DRAINING


class Run:
    """One process in memory, in one epoch."""

    __slots__ = (
        "_begun_s",
        "_input",
        "_overtaken",
        "_phase",
        "_wait",
        "_wait_due_at",
        "_waits",
        "_wake_at",
        "begun_at",
        "epoch",
        "fatal",
        "gated",
        "generation",
        "incarnation",
        "journal",
        "mailbox",
        "name",
        "process_id",
        "quarantine_error",
        "recorded",
        "retry",
        "seq",
        "services",
        "steps",
        "task",
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
        self._begun_s = services.monotonic_s()
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
        self._overtaken: dict[asyncio.Task[Any], int] | None = None

    def take_input(self) -> bytes:
        """Return the encoded arguments, once; they are not kept."""
        input, self._input = self._input, b""
        return input

    # --- may a call begin, and what is recorded -------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether nothing may be recorded any more because the run unwinds."""
        # A writer that is being cancelled, by nobody we know: the loop is shutting down around
        # a host that was never stopped, and every task of it meets a CancelledError.
        return self._phase is Phase.INTERRUPTED or self.services.writer.task.cancelling() > 0

    async def pass_gate(self, kind: Kind, key: str, index: int = NO_INDEX) -> None:
        """Refuse or hold back a call that may not begin now.

        Raises:
            ProcessInterrupted: The run unwinds.
            WrongContextError: The process function has ended.
            CancelledError: A cancellation that a result had overtaken is met here.
        """
        await self.stay_open(key)
        await self._meet_overtaken(kind, key, index)

    async def stay_open(self, key: str) -> None:
        """Return at once while the run goes on; else raise, or wait for the interrupt."""
        if self._phase is Phase.INTERRUPTED:
            raise ProcessInterrupted
        if self._phase is Phase.ENDED:
            raise WrongContextError(
                f"key {key!r} was used after process {self.process_id!r} had ended",
                hint="await every task that the process function creates before it returns",
            )
        if self._phase is Phase.DRAINING:
            # Until the steps beside it are recorded; then the interrupt comes.
            await self.hold(None, self.services.loop.create_future())

    def ask(self, kind: Kind, key: str, index: int = NO_INDEX) -> Checkpoint | None:
        """Return what is recorded under a key, or None if the call is to run now.

        Raises:
            ProcessInterrupted: The code is at fault; the process is quarantined.
            WrongContextError: Called on another loop or thread.
        """
        self.check_caller(key)
        journal = self.journal
        try:
            held = journal.ask(kind, key, index)
        except ProgramError as error:
            raise self.quarantine(error) from error
        if held is None and len(journal.slots) >= self.services.limits.steps_warn:
            self.check_steps(len(journal.slots))
        return held

    def check_caller(self, key: str) -> None:
        """Refuse a call from another loop or thread, or from inside the body of a step."""
        check_caller(self, key)

    def unseal(self, held: Checkpoint, shape: Shape) -> Any:
        """Return the recorded value, or raise the recorded error."""
        try:
            if held.form is Form.VALUE:
                return shape.decode(held.payload)
            error = self.services.failures.decode(held.payload)
        except DecodeError as problem:
            raise self.quarantine(
                DecodeError(f"key {held.key!r}: {problem}", hint=problem.hint)
            ) from problem
        raise error

    async def recall(self, held: Checkpoint) -> None:
        """Let a recorded cancellation come again before its call returns or raises.

        A timeout begins anew with each run, and what lies before the call takes
        no time now. So the cancellation may come as late after the call as it
        came after the beginning of the earlier run, and not later: then the
        code has changed.
        """
        note = held
        if held.form is not Form.CANCELLED:
            overtaken = self.journal.take(Kind.OVERTAKEN, held.key, held.index)
            if overtaken is None:
                return
            note = overtaken
        after_s = msgspec.json.decode(note.payload, type=_notes.CancelNote).after_s
        due_at = self.services.now() + timedelta(seconds=after_s + RELIVE_GRACE_S)
        try:
            await self.hold(due_at, self.services.timers.at(due_at))
        except ProcessInterrupted:
            raise
        except asyncio.CancelledError:
            if held.form is Form.CANCELLED:
                raise
            self._note_overtaken()
            return
        raise self.quarantine(
            NonDeterminismError(
                f"key {held.key!r} was cancelled in an earlier run, {after_s:.3f} s after that "
                f"began; now nothing has cancelled it for {RELIVE_GRACE_S:.0f} s longer",
                hint="bring back the timeout or the failing sibling, or give the call a new key",
            )
        )

    # --- recording ---------------------------------------------------------------------------

    async def record(self, checkpoint: Checkpoint, consumes: tuple[int, ...] = ()) -> Checkpoint:
        """Make a checkpoint durable and return what the storage holds under its key.

        A cancellation by user code does not interrupt this: the record comes
        first, and the cancellation is met at the task's next durable call.

        Raises:
            ProcessInterrupted: The run unwinds; what user code made of its
                interrupt, a value or an error, is not to be recorded.
        """
        self.check_interrupted()
        answer = self.submit((checkpoint,), consumes)
        try:
            outcome = await answer
        except (asyncio.CancelledError, StorageError):
            outcome = await self.outlast(answer, checkpoint)
        return checkpoint if outcome is DONE else self.held(outcome, checkpoint)

    async def outlast(
        self, answer: "asyncio.Future[UnitOutcome]", checkpoint: Checkpoint
    ) -> UnitOutcome:
        """Return the outcome of a unit whose wait was cancelled, and take note of that."""
        outcome = await self._follow(answer)
        await self._overtake(checkpoint.key, checkpoint.index)
        return outcome

    async def record_cancelled(self, kind: Kind, key: str, index: int) -> Checkpoint | None:
        """Record that user code cancelled a call, before the cancellation propagates.

        Returns:
            What is recorded in its place, if a result was first: then the
            cancellation is overtaken, and the caller is to return the result.

        Raises:
            ProcessInterrupted: It was not user code but an interrupt.
        """
        self.check_interrupted()
        note = self._cancel_note(kind, key, index, Form.CANCELLED)
        outcome = await self._follow(self.submit((note,)))
        if outcome.refused is not None:
            self.held(outcome, None)
        if not outcome.held or outcome.held[0].form is Form.CANCELLED:
            return None
        await self._overtake(key, index)
        return outcome.held[0]

    def check_interrupted(self) -> None:
        """Raise ProcessInterrupted if nothing may be recorded any more."""
        if self.interrupted:
            raise ProcessInterrupted

    def held(self, outcome: UnitOutcome, checkpoint: Checkpoint | None) -> Checkpoint:
        """Return the checkpoint that the storage holds, given its answer to a unit."""
        if outcome.refused is None and outcome.held:
            return outcome.held[0]
        if outcome.refused is None and checkpoint is not None:
            return checkpoint
        # Somebody else has the process now, or has ended it: nothing of ours counts any more.
        self.interrupt()
        raise ProcessInterrupted(f"process {self.process_id!r}: {outcome.refused}")

    def submit(
        self,
        checkpoints: tuple[Checkpoint, ...] = (),
        consumes: tuple[int, ...] = (),
        ending: Ending | None = None,
        leave: Leave | None = None,
    ) -> "asyncio.Future[UnitOutcome]":
        """Hand one unit to the writer, with the status if it has changed."""
        self.seq += 1
        if ending is None and leave is None and (self.waiting or self.recorded is not _RUNNING):
            if self.waiting <= WAITS_FEW:
                return self.services.writer.submit(self._unit_with_status(checkpoints, consumes))
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
            )
        )

    def standing(self) -> Unit | None:
        """Return the unit that records the status, or None if it is recorded already."""
        if self._phase is not Phase.OPEN or self._stand() == (self.recorded, self._wake_at):
            return None
        self.seq += 1
        return self._unit_with_status((), ())

    # --- waiting -----------------------------------------------------------------------------

    async def hold(self, due_at: datetime | None, future: "asyncio.Future[T]") -> T:
        """Await what only time or an interrupt can end; an open wait meanwhile."""
        self.wait_begins(due_at, future)
        try:
            result = await future
        except asyncio.CancelledError:
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

    def wait_ended(self, future: "asyncio.Future[Any]") -> None:
        """Take note that a wait is over."""
        self.waiting -= 1
        if future is self._wait:
            self._wait = self._wait_due_at = None
        elif self._waits is not None:
            del self._waits[future]
            self._waits = self._waits or None

    def wait_broken(self, future: "asyncio.Future[Any]") -> None:
        """Take note that a wait was cancelled.

        Raises:
            ProcessInterrupted: By the engine; otherwise by user code.
        """
        self.wait_ended(future)
        future.cancel()
        if self.interrupted:
            raise ProcessInterrupted from None

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

    # --- ending early ------------------------------------------------------------------------

    def quarantine(self, error: Exception) -> ProcessInterrupted:
        """Set the process aside because of a mistake in code; return what to raise."""
        if self._phase in (Phase.OPEN, Phase.DRAINING):
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
        self.services.on_interrupt(self)

    def drain(self) -> None:
        """Begin no further call; unwind as soon as no step is in flight."""
        if self._phase is Phase.OPEN:
            self._phase, self.gated = Phase.DRAINING, True
            if self.steps == 0:
                self.interrupt()

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
        self.services.on_left(self, task)

    async def conclude(self, ending: Ending) -> bool:
        """Record the last word on the process; False if it is not ours to say any more."""
        answer = self.submit(ending=ending)
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

    def _end_waits(self) -> None:
        for future, _ in self._open_waits():
            if not future.done():
                future.set_exception(ProcessInterrupted())
                # Its task may be cancelled before it looks; then nobody else would.
                future.exception()

    def _open_waits(self) -> "list[tuple[asyncio.Future[Any], datetime | None]]":
        waits = [] if self._waits is None else list(self._waits.items())
        if self._wait is not None:
            waits.append((self._wait, self._wait_due_at))
        return waits

    def _stand(self) -> tuple[Status, datetime | None]:
        if self.recorded is Status.COMPENSATING:
            return self.recorded, None
        if self.steps or not self.waiting:
            return Status.RUNNING, None
        dues = [due_at for _, due_at in self._open_waits() if due_at is not None]
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

    async def _follow(self, answer: "asyncio.Future[UnitOutcome]") -> UnitOutcome:
        while True:
            self.check_interrupted()
            if answer.cancelled():
                answer = self.services.writer.follow(answer)
            try:
                return await answer
            except asyncio.CancelledError:
                if answer.done() and not answer.cancelled():
                    return answer.result()
            except StorageError as error:
                raise ProcessInterrupted(str(error)) from error

    def _cancel_note(self, kind: Kind, key: str, index: int, form: Form) -> Checkpoint:
        after_s = max(self.services.monotonic_s() - self._begun_s, 0.0)
        return Checkpoint(kind, key, index, form, _notes.encode(_notes.CancelNote(after_s)))

    async def _overtake(self, key: str, index: int) -> None:
        """Take note, durably where it must be, that a result has overtaken a cancellation."""
        if self._note_overtaken() is not self.task:
            # `gather` and `TaskGroup` cancel their caller too once their tasks have ended,
            # results or not. A later run has to be cancelled in the same place.
            note = self._cancel_note(Kind.OVERTAKEN, key, index, Form.VALUE)
            await self._follow(self.submit((note,)))

    def _note_overtaken(self) -> "asyncio.Task[Any] | None":
        """Remember that the current task was cancelled in vain, and return it."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if self._overtaken is None:
                self._overtaken = {}
            self._overtaken[task] = task.cancelling()
            self.gated = True
        return task

    async def _meet_overtaken(self, kind: Kind, key: str, index: int) -> None:
        """Let a cancellation that a result overtook take effect at the task's next new call."""
        task = asyncio.current_task()
        if self._overtaken is None or task not in self._overtaken:
            return
        # Lower means that whoever cancelled has taken it back (asyncio.timeout on its way out).
        met = task.cancelling() >= self._overtaken[task]
        if met and not self.journal.is_new(key, index):
            return
        del self._overtaken[task]
        if not self._overtaken:
            self._overtaken = None
            self.gated = self._phase is not Phase.OPEN
        if met:
            self.ask(kind, key, index)
            await self.record_cancelled(kind, key, index)
            raise asyncio.CancelledError

    def check_steps(self, count: int) -> None:
        """Warn of too many checkpoints, and refuse what is beyond the limit."""
        limits = self.services.limits
        if count > limits.steps_max:
            raise self.quarantine(
                LimitExceededError(
                    f"process {self.process_id!r} has more than {limits.steps_max:,} checkpoints",
                    hint="restart it with a cursor, or raise Limits(steps_max=)",
                )
            )
        if count == limits.steps_warn:
            _log.warning(
                "process %s has %d checkpoints; every resume recalls them all",
                ascii(self.process_id),
                count,
                extra={"process_id": self.process_id},
            )
