"""The run of one process on this host, as a durable call sees it.

Everything that a call needs, whatever its kind: may it begin, what is recorded,
record this. It refuses to know what a step or a wait is (`_steps`, `_waits`)
and who started the run (`_runner`).
"""

import asyncio
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec

import durabletask._notes as _notes
from durabletask._caller import check_caller, check_owner
from durabletask._codec import Shape
from durabletask._culprits import mark
from durabletask._deadline import due_at_new_call, fire_again, fired
from durabletask._errors import (
    DecodeError,
    LimitExceededError,
    NonDeterminismError,
    ProcessCancelledError,
    ProcessInterrupted,
    ProgramError,
    StorageError,
    about,
)
from durabletask._lifecycle import Lifecycle, Phase
from durabletask._model import DONE, NO_INDEX, Checkpoint, Claimed, Form, Kind, Status, UnitOutcome
from durabletask._outside import CancelMet, Meeting, Outside
from durabletask._retry import RetryPolicy
from durabletask._services import Services
from durabletask._turns import Turns

_log = logging.getLogger("durabletask")

RELIVE_GRACE_S = 60.0
"""How much longer than the earlier run a recorded cancellation may take to come again."""


class Run(Lifecycle):
    """One process in memory, in one epoch, with what its durable calls record and recall."""

    __slots__ = ("_overtaken", "_turns", "deadlines", "reports")

    def __init__(self, services: Services, claimed: Claimed, retry: RetryPolicy | None) -> None:
        super().__init__(services, claimed, retry)
        self._overtaken: dict[asyncio.Task[Any], int] | None = None
        self._turns: Turns | None = None
        self.deadlines = 0
        """Durable timeouts in which the next new call must be looked at before it begins."""
        self.reports = 0
        """How often the process has reported its progress in this run."""

    # --- may a call begin, and what is recorded -------------------------------------------

    async def pass_gate(self, kind: Kind, key: str, index: int = NO_INDEX) -> None:
        """Refuse or hold back a call that may not begin now.

        Raises:
            ProcessInterrupted: The run unwinds.
            WrongContextError: The process function has ended, or the call is not its own.
            CancelledError: A cancellation that a result had overtaken is met here, or the
                end of a durable timeout that had come while nothing ran.
            ProcessCancelledError: A request from outside is met here, and recorded.
        """
        check_owner(self, key)  # what there is to be met here is for nobody else
        if self._phase is Phase.COLLECTING:
            await self._stay_recorded(kind, key, index)
            return
        if self.compensating:
            self.check_caller(key)  # an undo that makes durable calls is told so
        await self.stay_open(key)
        if self.deadlines:
            await self._meet_deadline(kind, key, index)
        await self._meet_overtaken(kind, key, index)
        if self.outside is not None:
            while self.outside.untold is not None:
                await self._told(self.outside.untold)
            if self.outside.cancel_reason is not None:
                await self._meet_cancel(kind, key, index)

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

    def forget_overtaken(self, tasks: "Iterable[asyncio.Task[Any]]") -> None:
        """Forget the cancellations that tasks would have met, had they not ended."""
        if self._overtaken is not None:
            for task in tasks:
                self._overtaken.pop(task, None)
            self._overtaken = self._overtaken or None
            self.regate()

    async def record_cancelled(self, kind: Kind, key: str, index: int) -> Checkpoint | None:
        """Record that user code cancelled a call, before the cancellation propagates.

        Returns:
            What is recorded in its place, if a result was first: then the
            cancellation is overtaken, and the caller is to return the result.

        Raises:
            ProcessInterrupted: It was not user code but an interrupt.
            ProcessCancelledError: It was a request from outside, which is
                recorded for all waits that it met.
        """
        self.check_interrupted()
        if self.outside is not None and self.outside.meeting is not None:
            await self._join(self.outside.meeting, kind, key, index)
        note = self._cancel_note(kind, key, index, Form.CANCELLED)
        outcome = await self.follow(self.submit((note,)))
        if outcome.refused is not None:
            self.held(outcome, None)
        if not outcome.held or outcome.held[0].form is Form.CANCELLED:
            return None
        await self.overtake(key, index)
        return outcome.held[0]

    async def decide(self, decision: Checkpoint) -> Checkpoint:
        """Record that the process is to be undone, and return what the storage holds of that.

        Raises:
            ProcessInterrupted: The run unwinds.
        """
        self.check_interrupted()
        return self.held(await self.follow(self.submit_decision(decision)), decision)

    def held(self, outcome: UnitOutcome, checkpoint: Checkpoint | None) -> Checkpoint:
        """Return the checkpoint that the storage holds, given its answer to a unit."""
        if outcome.refused is None and outcome.held:
            return outcome.held[0]
        if outcome.refused is None and checkpoint is not None:
            return checkpoint
        # Somebody else has the process now, or has ended it: nothing of ours counts any more.
        self.interrupt()
        raise ProcessInterrupted(f"process {self.process_id!r}: {outcome.refused}")

    # --- cancelled from outside --------------------------------------------------------------

    def cancel(self, reason: bytes) -> None:
        """Let a request from outside be met: by all open waits, or else by the next new call.

        A step in flight is let finish, since its result is what undoing it needs.
        """
        if self._phase is not Phase.OPEN or self.recorded is Status.COMPENSATING:
            return
        outside = self.outside = self.outside or Outside()
        if outside.cancel_reason is not None or outside.has_met:
            return
        outside.cancel_reason = reason
        self.gated = True
        self._meet_waits(outside)

    def wait_begins(
        self,
        due_at: datetime | None,
        future: "asyncio.Future[Any]",
        note: Checkpoint | None = None,
    ) -> None:
        """Take note that a wait begins, as `Lifecycle.wait_begins` does; it may be met at once."""
        super().wait_begins(due_at, future, note)
        if self.outside is not None:
            # Asked since the call passed its gate: while it spawned, or between two attempts.
            self._meet_waits(self.outside)

    def _meet_waits(self, outside: Outside) -> None:
        """Let a request that is still to be met be met by all waits that are open."""
        if outside.cancel_reason is None or outside.meeting is not None:
            return
        if self._phase is not Phase.OPEN or self.recorded is Status.COMPENSATING:
            return
        waits = [future for future, _ in self._open_waits() if not future.done()]
        if not waits:
            return
        outside.meeting = meeting = Meeting(self.services.loop)
        for future in waits:
            future.set_exception(CancelMet())
            future.exception()  # its task may be cancelled before it looks; then nobody else would
        # Behind the tasks that were woken just now.
        self.services.loop.call_soon(self._met, meeting)

    async def _join(self, meeting: Meeting, kind: Kind, key: str, index: int) -> None:
        """Record, together with the others, that the wait of this task was met; raise that."""
        task = asyncio.current_task()
        if task is None or task not in meeting.tasks:
            return
        meeting.tasks.discard(task)
        checkpoint = self._cancelled(kind, key, index)
        meeting.checkpoints.append(checkpoint)
        while not meeting.answer.done():
            try:
                await asyncio.shield(meeting.answer)
            except asyncio.CancelledError:
                self.check_interrupted()
                self._note_overtaken()
        outcome = meeting.answer.result()
        if outcome.held:
            self.interrupt()  # claimed anew, it recalls what is held
        self.check_interrupted()
        self._note_overtaken()  # user code may have cancelled it in the same moment
        self.unseal(self.held(outcome, checkpoint), self.services.any_shape)

    def _met(self, meeting: Meeting) -> None:
        """Record for all waits at once that they were met."""
        outside = self.outside
        if outside is None or self.interrupted:
            meeting.answer.set_result(DONE)
            return
        if not meeting.checkpoints:
            outside.meeting = None  # user code was quicker; the next wait or new call meets it
            self._meet_waits(outside)
            return
        checkpoints = (*meeting.checkpoints, *self._met_unreached(outside))
        outside.cancel_reason, outside.has_met = None, True
        answer = self.submit(checkpoints, meets_cancel=True)

        def tell(answer: "asyncio.Future[UnitOutcome]") -> None:
            outside.meeting = None
            outside.tell()
            self.regate()
            if answer.cancelled() or answer.exception() is not None:
                self.interrupt()
                meeting.answer.set_result(DONE)
            else:
                meeting.answer.set_result(answer.result())

        answer.add_done_callback(tell)

    async def _meet_cancel(self, kind: Kind, key: str, index: int) -> None:
        """Raise a request from outside at this call, if it is a new one."""
        outside = self.outside
        if outside is None or outside.meeting is not None or not self.journal.is_new(key, index):
            return
        if self._waits_unreached() and not self.journal.has_begun(key, index):
            return  # an earlier run was waiting when it was asked: there it is met, and not here
        self.ask(kind, key, index)
        self.journal.take(Kind.WAIT, key, index)
        await self.meet_asked(kind, key, index)

    async def meet_asked(self, kind: Kind, key: str, index: int = NO_INDEX) -> None:
        """Raise a request from outside that is still to be met, as the outcome of this call.

        Raises:
            ProcessCancelledError: It was there, and is recorded as met.
            ProcessInterrupted: The run unwinds.
        """
        outside = self.outside
        if outside is None or outside.cancel_reason is None or outside.meeting is not None:
            return
        checkpoint = self._cancelled(kind, key, index)
        checkpoints = (checkpoint, *self._met_unreached(outside))
        outside.cancel_reason, outside.has_met = None, True
        self.regate()
        answer = self.submit(checkpoints, meets_cancel=True)
        try:
            outcome = await answer
        except (asyncio.CancelledError, StorageError):
            outcome = await self.outlast(answer, checkpoint)
        if outcome.held:
            self.interrupt()  # claimed anew, it recalls what is held
        self.check_interrupted()
        held = self.held(outcome, checkpoint)
        outside.tell()
        self.regate()
        self.unseal(held, self.services.any_shape)

    async def _told(self, untold: list[asyncio.Future[None]]) -> None:
        """Wait until it is recorded that a request is met in calls that are still to come."""
        future: asyncio.Future[None] = self.services.loop.create_future()
        untold.append(future)
        try:
            await self.hold(None, future)
        except ProcessInterrupted:
            raise
        except asyncio.CancelledError:
            self._note_overtaken()

    def _waits_unreached(self) -> list[tuple[Kind, str, int]]:
        """Return the calls in whose wait an earlier run was, and this one is not yet."""
        found: list[tuple[Kind, str, int]] = []
        for (noted, key, index), held in (self.journal.notes or {}).items():
            if noted is Kind.WAIT and self.journal.is_new(key, index):
                kind = _notes.kind_of(msgspec.json.decode(held.payload, type=_notes.WaitNote))
                if kind is not Kind.TIMEOUT:
                    found.append((kind, key, index))
        return found

    def _met_unreached(self, outside: Outside) -> list[Checkpoint]:
        """Return what the waits record that are met before this run gets to them.

        Until that is recorded, no call begins: it would tell what may yet be lost.
        """
        met = [self._cancelled(*call) for call in self._waits_unreached()]
        if met:
            outside.untold = []
        for checkpoint in met:
            self.journal.take(Kind.WAIT, checkpoint.key, checkpoint.index)
            self.journal.add(checkpoint)
        return met

    def _cancelled(self, kind: Kind, key: str, index: int) -> Checkpoint:
        assert self.outside is not None
        reason = msgspec.json.decode(self.outside.cancel_reason or b"null")
        error = ProcessCancelledError(str(reason or "the process was cancelled"))
        return Checkpoint(kind, key, index, Form.ERROR, self.services.failures.encode(error))

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

    # --- inside ------------------------------------------------------------------------------

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

    def _cancel_note(self, kind: Kind, key: str, index: int, form: Form) -> Checkpoint:
        return Checkpoint(kind, key, index, form, _notes.encode(self.cancel_note()))

    def cancel_note(self) -> _notes.CancelNote:
        """Return what is to be recorded of a cancellation by user code that happens now."""
        after_s = max(self.services.monotonic_s() - self.begun_s, 0.0)
        return _notes.CancelNote(after_s, fired(self))

    async def overtake(self, key: str, index: int) -> None:
        """Take note, durably where it must be, that an outcome has overtaken a cancellation."""
        if self._note_overtaken() is not self.task:
            # `gather` and `TaskGroup` cancel their caller too once their tasks have ended,
            # results or not. A later run has to be cancelled in the same place.
            note = self._cancel_note(Kind.OVERTAKEN, key, index, Form.VALUE)
            await self.follow(self.submit((note,)))

    def _note_overtaken(self) -> "asyncio.Task[Any] | None":
        """Remember that the current task was cancelled in vain, and return it."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            if self._overtaken is None:
                self._overtaken = {}
            self._overtaken[task] = task.cancelling()
            self.gated = True
        return task

    async def _stay_recorded(self, kind: Kind, key: str, index: int) -> None:
        """Let a call pass that only recalls; hold one that is new until all undos are known.

        A timeout that an earlier run has entered and not left records nothing when it is
        entered again, and there may be steps in it that are to be undone.
        """
        undos = self.undos
        is_open = kind is Kind.TIMEOUT and self.journal.has_begun(key, index)
        if undos is None or is_open or not self.journal.is_new(key, index):
            if undos is not None:
                undos.asked_s = self.services.loop.time()
            return
        undos.held += 1
        if asyncio.current_task() is undos.function:
            undos.stuck = True
            undos.wake()
        try:
            await self.hold(None, self.services.loop.create_future())
        except asyncio.CancelledError:
            undos.held -= 1
            raise

    async def _meet_deadline(self, kind: Kind, key: str, index: int) -> None:
        """Let a durable timeout that is over take effect at the first new call in it."""
        if not self.journal.is_new(key, index):
            return
        if kind is Kind.TIMEOUT and self.journal.has_begun(key, index):
            return  # entered in time by an earlier run; it may be the first to be over
        self.check_caller(key)
        deadline = due_at_new_call(self, self.services.now())
        if deadline is None:
            return
        deadline.fire()
        try:
            # What the timeout cancels is the task that entered it; this one perhaps by way of it.
            await self.hold(None, deadline.when_left(self.services.now()))
        except ProcessInterrupted:
            raise
        except asyncio.CancelledError:
            self.ask(kind, key, index)
            await self.record_cancelled(kind, key, index)
            raise
        await self.stay_open(key)

    def _was_cancelled_in_vain(self) -> bool:
        """Forget that results of the task have overtaken its cancellation; return if they had."""
        task = asyncio.current_task()
        if self._overtaken is None or task is None or task not in self._overtaken:
            return False
        requests = self._overtaken[task]
        self.forget_overtaken((task,))
        return task.cancelling() >= requests

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
            self.regate()
        if met:
            self.ask(kind, key, index)
            await self.record_cancelled(kind, key, index)
            raise asyncio.CancelledError
