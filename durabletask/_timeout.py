"""A durable `asyncio.timeout`: its deadline is recorded, and how it was left.

Where it ends what runs in it is told in `_deadline`, since every durable call
has to look there.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import durabletask._waits as _waits
from durabletask._culprits import mark
from durabletask._deadline import LATE_S, OPEN, Deadline
from durabletask._errors import ProcessInterrupted, WrongContextError
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind
from durabletask._notes import TimeoutNote, WaitNote, encode
from durabletask._run import Run
from durabletask._steps import OUTCOMES


class DurableTimeout:
    """What `Process.timeout` returns: for one `async with`."""

    __slots__ = (
        "_deadline", "_due_at", "_held", "_is_fresh", "_key", "_limit",
        "_run", "_timer",
    )  # fmt: skip

    def __init__(self, run: Run, key: str, limit: timedelta) -> None:
        self._run = run
        self._key = key
        self._limit = limit
        self._held: Checkpoint | None = None
        self._is_fresh = True
        self._deadline: Deadline | None = None
        self._timer: asyncio.Future[None] | None = None
        self._due_at: datetime | None = None

    @property
    def due_at(self) -> datetime | None:
        """When the time is over, fixed by the first run; None before it is entered."""
        return self._due_at

    def expired(self) -> bool:
        """Return whether the time was over and what ran in it was cancelled."""
        return self._deadline is not None and self._deadline.has_fired

    async def __aenter__(self) -> Self:
        run, key = self._run, self._key
        if run.gated:
            await run.pass_gate(Kind.TIMEOUT, key)
        self._held = held = run.ask(Kind.TIMEOUT, key)
        over = False
        if held is not None and held.form is not Form.VALUE:
            await run.recall(held)
            run.unseal(held, run.services.any_shape)
        elif held is not None:
            note = _waits.decode_note(run, held, TimeoutNote)
            over, self._due_at = note.expired, note.due_at
        task = asyncio.current_task()
        if task is None:
            raise WrongContextError(f"timeout {key!r} was entered outside a task")
        due_at = self._begin()
        self._due_at = self._due_at or due_at
        self._deadline = Deadline(run, key, due_at, task)
        self._deadline.is_recorded_over = over
        OPEN.set((*self._deadline.around, self._deadline))
        if over or held is None:
            has_passed = due_at <= run.services.now()
            if has_passed or not self._is_fresh:
                self._deadline.gate()
            if self._is_fresh or not has_passed:
                self._arm(due_at, self._is_due)
            else:
                self._arm_late()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run, deadline = self._run, self._deadline
        if deadline is None or (kind is not None and not issubclass(kind, OUTCOMES)):
            return  # the program ends, or the coroutine is dropped: nothing is to be touched
        self._disarm()
        deadline.leave()
        OPEN.set(deadline.around)
        if run.interrupted or (kind is not None and issubclass(kind, ProcessInterrupted)):
            return
        is_over = False
        if deadline.has_fired:
            left = deadline.task.uncancel()
            is_over = left <= deadline.outlived and kind is asyncio.CancelledError
        if self._held is None:
            both = deadline.has_fired and not is_over and kind is asyncio.CancelledError
            cancelled = run.cancel_note() if both else None
            payload = encode(TimeoutNote(is_over, cancelled, self._due_at))
            held = await run.record(
                Checkpoint(Kind.TIMEOUT, self._key, NO_INDEX, Form.VALUE, payload)
            )
        else:
            held = self._held
            await run.recall(held)
        note = _waits.decode_note(run, held, TimeoutNote)
        if is_over and note.cancelled is not None:
            # What is around it cancelled on top, and has to come first again.
            around = encode(note.cancelled)
            await run.recall(Checkpoint(Kind.TIMEOUT, self._key, NO_INDEX, Form.CANCELLED, around))
        if is_over or (note.expired and kind is None):
            await run.take_turn(held)
            over = TimeoutError(f"timeout {self._key!r} was over at {self._due_at}")
            raise mark(over, held) from error

    def _begin(self) -> datetime:
        """Return when the time is over: as recorded, else from now on, and then it is recorded."""
        run, key = self._run, self._key
        noted = _waits.recorded_wait(run, key, NO_INDEX)
        if noted is None:
            due_at = _waits.due(run, self._limit)
            if self._held is None:
                # Not awaited: no later record of the process is durable before this one.
                run.submit((_waits.wait_note(key, NO_INDEX, WaitNote("", due_at, Kind.TIMEOUT)),))
            return due_at
        if noted.due_at is None or noted.kind is not Kind.TIMEOUT:
            raise _waits.changed(run, key, "a timeout", _waits.described(noted))
        self._is_fresh = False
        return noted.due_at

    def _arm(self, due_at: datetime, then: Callable[[asyncio.Future[None]], None]) -> None:
        self._timer = self._run.services.timers.at(due_at)
        self._timer.add_done_callback(then)
        self._run.keep(due_at, self._timer)

    def _is_due(self, timer: "asyncio.Future[None]") -> None:
        deadline = self._deadline
        if deadline is None or not self._has_come(timer):
            return
        if self._is_fresh or not deadline.is_gating or not self._run.journal.unasked:
            deadline.fire()
        else:
            # In the middle of what is recalled, which was all in time: at the first new call.
            self._arm_late()

    def _arm_late(self) -> None:
        later = self._run.services.now() + timedelta(seconds=LATE_S)
        self._arm(later, self._is_late)

    def _is_late(self, timer: "asyncio.Future[None]") -> None:
        if self._deadline is not None and self._has_come(timer):
            first = self._deadline.first_over()
            first.fire()
            if first is not self._deadline:
                self._arm_late()

    def _has_come(self, timer: "asyncio.Future[None]") -> bool:
        """Return whether a timer was not merely given up or interrupted."""
        if timer.cancelled() or timer.exception() is not None or self._timer is not timer:
            return False
        self._run.drop(timer)
        self._timer = None
        return True

    def _disarm(self) -> None:
        if self._timer is not None:
            self._run.drop(self._timer)
            self._run.services.timers.give_up(self._timer)
            self._timer = None
