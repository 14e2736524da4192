"""What the durable calls of a run record and recall, whatever their kind.

Knows that user code may cancel a call at any moment, and what is recorded of
that. It refuses to know whether a call may begin, and what is asked of the
process from outside (`_run`).
"""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import msgspec

import durabletask._notes as _notes
from durabletask._caller import check_caller
from durabletask._codec import Shape
from durabletask._culprits import mark
from durabletask._deadline import OPEN, fire_again, fired, outlive
from durabletask._errors import (
    DecodeError,
    LimitExceededError,
    NonDeterminismError,
    ProcessInterrupted,
    ProgramError,
    StorageError,
    about,
)
from durabletask._lifecycle import Lifecycle, Phase
from durabletask._model import DONE, NO_INDEX, Checkpoint, Claimed, Form, Kind, UnitOutcome
from durabletask._retry import RetryPolicy
from durabletask._services import Services
from durabletask._turns import Turns

_log = logging.getLogger("durabletask")

RELIVE_GRACE_S = 60.0
"""How much longer than the earlier run a recorded cancellation may take to come again."""


class RecordedRun(Lifecycle):
    """One process in memory, in one epoch, with what its durable calls record and recall."""

    __slots__ = ("_overtaken", "_turns", "deadlines")

    def __init__(self, services: Services, claimed: Claimed, retry: RetryPolicy | None) -> None:
        super().__init__(services, claimed, retry)
        self._overtaken: dict[asyncio.Task[Any], int] | None = None
        self._turns: Turns | None = None
        self.deadlines = 0
        """Durable timeouts in which the next new call must be looked at before it begins."""

    def ask(self, kind: Kind, key: str, index: int = NO_INDEX) -> Checkpoint | None:
        """Return what is recorded under a key, or None if the call is to run now.

        Raises:
            ProcessInterrupted: The code is at fault; the process is quarantined.
            WrongContextError: The call is not the process's own, or comes after its end.
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

    def regate(self) -> None:
        """Let calls begin at once again, unless there is still something to look at before."""
        self.gated = bool(
            self._phase is not Phase.OPEN
            or self._overtaken is not None
            or self.deadlines
            or (self.outside is not None and self.outside.is_pressing)
        )

    def check_caller(self, key: str) -> None:
        """Refuse a call that is not made by the process itself, between its steps."""
        check_caller(self, key)
        if OPEN.get() and asyncio.current_task() not in (self._overtaken or ()):
            outlive()

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

    def unseal(self, held: Checkpoint, shape: Shape) -> Any:
        """Return the recorded value, or raise the recorded error."""
        try:
            if held.form is Form.VALUE:
                return shape.decode(held.payload)
            error = self.services.failures.decode(held.payload)
            mark(error, held)
        except DecodeError as problem:
            raise self.quarantine(about(f"key {held.key!r}", problem)) from problem
        raise error

    def held(self, outcome: UnitOutcome, checkpoint: Checkpoint | None) -> Checkpoint:
        """Return the checkpoint that the storage holds, given its answer to a unit."""
        if outcome.refused is None and outcome.held:
            return outcome.held[0]
        if outcome.refused is None and checkpoint is not None:
            return checkpoint
        # Somebody else has the process now, or has ended it: nothing of ours counts any more.
        self.interrupt()
        raise ProcessInterrupted(f"process {self.process_id!r}: {outcome.refused}")

    # --- recalling ---------------------------------------------------------------------------

    async def recall(self, held: Checkpoint) -> None:
        """Let a recorded cancellation come again before its call returns or raises.

        A timeout begins anew with each run, and what lies before the call takes
        no time now. So the cancellation may come as late after the call as it
        came after the beginning of the earlier run, and not later: then the
        code has changed. An error waits for its turn.
        """
        if held.form is Form.ERROR and await self.take_turn(held):
            self.journal.take(Kind.OVERTAKEN, held.key, held.index)
            return
        note = held
        if held.form is not Form.CANCELLED:
            overtaken = self.journal.take(Kind.OVERTAKEN, held.key, held.index)
            if overtaken is None:
                return
            note = overtaken
        noted = msgspec.json.decode(note.payload, type=_notes.CancelNote)
        after_s = noted.after_s
        if noted.by:
            if not await self._let_earlier_come(note):
                fire_again(self, noted.by)
            elif held.form is Form.CANCELLED:
                raise asyncio.CancelledError  # something else was first, and has come again
            else:
                self._note_overtaken()
                return
        if held.form is Form.CANCELLED and self._was_cancelled_in_vain():
            raise asyncio.CancelledError
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
                hint="bring back the timeout or the failing sibling, give the call a new key, or "
                f"put aside what was cancelled: retry(from_key={held.key!r})",
            )
        )

    async def take_turn(self, held: Checkpoint) -> bool:
        """Let what was recorded before an error come first; say whether that overtook a cancel."""
        cancelled = await self._let_earlier_come(held)
        if cancelled:
            self._note_overtaken()
        return cancelled

    async def _let_earlier_come(self, held: Checkpoint) -> bool:
        """Wait for the turn of a record; return whether user code has cancelled that wait."""
        self._turns = turns = self._turns or Turns(self.journal, self.services.loop)
        main = self.task if self.undos is None else self.undos.function or self.task
        if turns.is_next(held) and (asyncio.current_task() is main or not held.epoch):
            return False  # one thing after the other
        try:
            await turns.come(held)
        except asyncio.CancelledError:
            self.check_interrupted()
            if self.compensating:
                raise
            return True
        return False

    # --- recording ---------------------------------------------------------------------------

    async def record(
        self, checkpoint: Checkpoint, consumes: tuple[int, ...] = (), **more: Any
    ) -> Checkpoint:
        """Make a checkpoint durable and return what the storage holds under its key.

        A cancellation by user code does not interrupt this: the record comes
        first, and the cancellation is met at the task's next durable call.

        Raises:
            ProcessInterrupted: The run unwinds; what user code made of its
                interrupt, a value or an error, is not to be recorded.
        """
        overtaken = False
        if checkpoint.form is Form.ERROR and self.journal.unasked and not self.compensating:
            # What is recorded was there first, however soon this has failed now.
            overtaken = await self.take_turn(checkpoint)
        self.check_interrupted()
        answer = self.submit((checkpoint,), consumes, **more)
        try:
            outcome = await answer
        except (asyncio.CancelledError, StorageError):
            outcome = await self.outlast(answer, checkpoint)
        else:
            if overtaken:
                await self.overtake(checkpoint.key, checkpoint.index)
        return checkpoint if outcome is DONE else self.held(outcome, checkpoint)

    async def outlast(
        self, answer: "asyncio.Future[UnitOutcome]", checkpoint: Checkpoint
    ) -> UnitOutcome:
        """Return the outcome of a unit whose wait was cancelled, and take note of that."""
        outcome = await self.follow(answer)
        await self.overtake(checkpoint.key, checkpoint.index)
        return outcome

    async def note(self, checkpoint: Checkpoint) -> None:
        """Make durable what stands beside the calls; it has no outcome to be cancelled.

        A cancellation by user code is met at the task's next durable call.
        """
        self.check_interrupted()
        answer = self.submit((checkpoint,))
        try:
            outcome = await answer
        except (asyncio.CancelledError, StorageError):
            outcome = await self.follow(answer)
            self._note_overtaken()
        if outcome is not DONE:
            self.held(outcome, checkpoint)

    async def decide(self, decision: Checkpoint) -> Checkpoint:
        """Record that the process is to be undone, and return what the storage holds of that.

        Raises:
            ProcessInterrupted: The run unwinds.
        """
        self.check_interrupted()
        return self.held(await self.follow(self.submit_decision(decision)), decision)

    async def follow(self, answer: "asyncio.Future[UnitOutcome]") -> UnitOutcome:
        """Return the outcome of a unit, whoever cancels this meanwhile."""
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

    # --- cancellations that come late ----------------------------------------------------------

    async def overtake(self, key: str, index: int) -> None:
        """Take note, durably where it must be, that an outcome has overtaken a cancellation."""
        if self._note_overtaken() is not self.task:
            # `gather` and `TaskGroup` cancel their caller too once their tasks have ended,
            # results or not. A later run has to be cancelled in the same place.
            note = self._cancel_record(Kind.OVERTAKEN, key, index, Form.VALUE)
            await self.follow(self.submit((note,)))

    def _note_overtaken(self) -> "asyncio.Task[Any] | None":
        """Remember that the current task was cancelled in vain, and return it."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if self._overtaken is None:
                self._overtaken = {}
            if task not in self._overtaken:
                task.add_done_callback(self._forget_overtaken)
            self._overtaken[task] = task.cancelling()
            self.gated = True
        return task

    def _forget_overtaken(self, task: "asyncio.Task[Any]") -> None:
        """Forget the cancellation of a task that has met it, or has ended and never will."""
        if self._overtaken is not None and self._overtaken.pop(task, 0):
            task.remove_done_callback(self._forget_overtaken)
            self._overtaken = self._overtaken or None
            self.regate()

    def _was_cancelled_in_vain(self) -> bool:
        """Forget that results of the task have overtaken its cancellation; return if they had."""
        task = asyncio.current_task()
        if self._overtaken is None or task is None or task not in self._overtaken:
            return False
        requests = self._overtaken[task]
        self._forget_overtaken(task)
        return task.cancelling() >= requests

    def cancel_note(self) -> _notes.CancelNote:
        """Return what is to be recorded of a cancellation by user code that happens now."""
        after_s = max(self.services.monotonic_s() - self.begun_s, 0.0)
        return _notes.CancelNote(after_s, fired(self))

    def _cancel_record(self, kind: Kind, key: str, index: int, form: Form) -> Checkpoint:
        return Checkpoint(kind, key, index, form, _notes.encode(self.cancel_note()))
