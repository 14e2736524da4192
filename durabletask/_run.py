"""The run of one process on this host, as a durable call sees it.

May a call begin, and how is it ended from outside: by a request, or because the
time of a durable timeout had passed while nothing ran. It refuses to know what
a step or a wait is (`_steps`, `_waits`) and who started the run (`_runner`).
"""

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

import durabletask._notes as _notes
from durabletask._caller import check_owner
from durabletask._deadline import due_at_new_call
from durabletask._errors import ProcessCancelledError, ProcessInterrupted, StorageError
from durabletask._lifecycle import Phase
from durabletask._model import DONE, NO_INDEX, Checkpoint, Claimed, Form, Kind, Status, UnitOutcome
from durabletask._outside import CancelMet, Meeting, Outside
from durabletask._recorded import RecordedRun
from durabletask._retry import RetryPolicy
from durabletask._services import Services


class Run(RecordedRun):
    """One process in memory, in one epoch."""

    __slots__ = ("reports",)

    def __init__(self, services: Services, claimed: Claimed, retry: RetryPolicy | None) -> None:
        super().__init__(services, claimed, retry)
        self.reports = 0
        """How often the process has reported its progress in this run."""

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

    async def _meet_overtaken(self, kind: Kind, key: str, index: int) -> None:
        """Let a cancellation that a result overtook take effect at the task's next new call."""
        task = asyncio.current_task()
        if self._overtaken is None or task not in self._overtaken:
            return
        # Lower means that whoever cancelled has taken it back (asyncio.timeout on its way out).
        met = task.cancelling() >= self._overtaken[task]
        if met and not self.journal.is_new(key, index):
            return
        if met:
            self.ask(kind, key, index)  # before it is forgotten, or the task had outlived it
        self._forget_overtaken(task)
        if met:
            await self.record_cancelled(kind, key, index)
            raise asyncio.CancelledError

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
        note = self._cancel_record(kind, key, index, Form.CANCELLED)
        outcome = await self.follow(self.submit((note,)))
        if outcome.refused is not None:
            self.held(outcome, None)
        if not outcome.held or outcome.held[0].form is Form.CANCELLED:
            return None
        await self.overtake(key, index)
        return outcome.held[0]

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
        if self._turns is not None:
            self._turns.drop_asked()  # it may wait for years
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
        asked = meeting.tasks.pop(task)
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
        if task.cancelling() > asked:
            self._note_overtaken()  # user code has cancelled it in the same moment
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
        if not self.journal.has_begun(key, index) and any(self._waits_unreached()):
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

    def _waits_unreached(self) -> Iterator[tuple[Kind, str, int]]:
        """Yield the calls in whose wait an earlier run was, and this one is not yet."""
        for (noted, key, index), held in (self.journal.notes or {}).items():
            if noted is Kind.WAIT and self.journal.is_new(key, index):
                kind = _notes.kind_of(msgspec.json.decode(held.payload, type=_notes.WaitNote))
                if kind is not Kind.TIMEOUT:
                    yield kind, key, index

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
