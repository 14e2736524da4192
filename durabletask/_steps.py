"""A step: attempts, timeouts and retries until there is an outcome to record."""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any

import msgspec

from durabletask._callable import CallSpec
from durabletask._caller import INSIDE
from durabletask._codec import Shape
from durabletask._errors import (
    ProcessInterrupted,
    SerializationError,
    StepError,
    StepTimeoutError,
    StorageError,
    WrongContextError,
)
from durabletask._heartbeat import say
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind
from durabletask._notes import RETRY_ERRORS_MAX, RetryNote, encode
from durabletask._observe import Phase, StepChange, tell
from durabletask._retry import RetryPolicy
from durabletask._run import Run
from durabletask._transaction import Committed
from durabletask._undos import Undo, UndoCall

_log = logging.getLogger("durabletask")

OUTCOMES = (Exception, asyncio.CancelledError, BaseExceptionGroup)
"""What may leave a body as its outcome. A TaskGroup puts an interrupt that it meets into a group
of its own. KeyboardInterrupt and SystemExit are not here: they end the program."""


class Step(msgspec.Struct, eq=False):
    """The step in whose body the caller is; what `current_step()` returns.

    Attributes:
        key: The key of the durable call.
        index: Its place in a series, or -1.
        attempt: Which attempt this is, from 1, counted across restarts.
        previous_error: How the attempt before failed, or None.
        kind: Of the durable call.
        heartbeat_details: What the last `heartbeat` of the attempts before said,
            on another host or before a crash too; None if there was none.
    """

    # A Struct since it is made at every step, and is made in half the time.
    run: Run
    key: str
    index: int = NO_INDEX
    attempt: int = 1
    previous_error: Exception | None = None
    kind: Kind = Kind.DO
    heartbeat_details: Any = None
    _said: Checkpoint | None = None

    @property
    def process_id(self) -> str:
        """The process that the step belongs to."""
        return self.run.process_id

    @property
    def idempotency_key(self) -> str:
        """A name for this step's effect: the same at every attempt and after every crash.

        That of its undo is another one.
        """
        return idempotency_key(self.run, self.key, self.index, self.kind)

    def heartbeat(self, details: object = None) -> Awaitable[None]:
        """Record how far a long step is, for its next attempt: `await step.heartbeat(done)`.

        Only the latest is kept. Each costs a record, so some seconds apart is
        enough. In a synchronous step, on its thread, the call itself waits
        until the record is durable, and there is nothing left to await.

        Args:
            details: What the next attempt finds in `heartbeat_details`: any value with an
                exact JSON form.

        Raises:
            ProcessInterrupted: The run was interrupted: end, since nothing of
                this attempt will be recorded any more.
            SerializationError: The details have no exact JSON form; nothing was recorded.
            WrongContextError: In a transaction, which would wait for itself.
        """
        if self.kind is Kind.TRANSACTION:
            raise WrongContextError(
                f"heartbeat() was called in transaction {self.key!r}",
                hint="keep transactions short; do what takes long in a step before",
            )
        run = self.run
        payload = run.services.codec.shape_of(details).encode(details, "details")
        self._said = Checkpoint(
            Kind.HEARTBEAT, self.key, self.index, Form.VALUE, payload, replaces=True
        )
        return say(run, self._said)


def idempotency_key(run: Run, key: str, index: int = NO_INDEX, kind: Kind = Kind.DO) -> str:
    """Name the effect of a durable call; another one after a restart or a new creation."""
    series = "" if index == NO_INDEX else f"[{index}]"
    # Not behind the key, where another step's key may say the same.
    undo = ".undo" if kind is Kind.UNDO else ""
    return f"{run.process_id}/{run.incarnation}.{run.generation}{undo}/{key}{series}"


def current_step() -> Step:
    """Return the step in whose body the caller is, in a synchronous step too.

    Raises:
        WrongContextError: The caller is not inside a step.
    """
    step = INSIDE.get()
    if not isinstance(step, Step):
        raise WrongContextError(
            "current_step() was called outside a step",
            hint="call it in the function given to proc.do, not in the process function",
        )
    return step


class StepRun:
    """One step from its first attempt in this run to its recorded outcome."""

    __slots__ = ("_body", "_index", "_key", "_kind", "_retry", "_run", "_said", "_shape", "_undo")

    def __init__(
        self,
        run: Run,
        kind: Kind,
        key: str,
        index: int,
        body: Callable[[], Any],
        shape: Shape,
        retry: RetryPolicy | None,
        undo: UndoCall | None = None,
    ) -> None:
        """Prepare a step.

        Args:
            body: Makes one attempt; called without arguments, returns an awaitable.
            shape: Of its result.
            undo: To be registered with its success.
        """
        self._run = run
        self._kind = kind
        self._key = key
        self._index = index
        self._body = body
        self._shape = shape
        self._retry = retry
        self._undo = undo
        self._said = run.journal.take(Kind.HEARTBEAT, key, index)

    async def outcome(self) -> Any:
        """Make attempts until there is an outcome, record it, and return or raise it."""
        run = self._run
        note = self._recorded_note()
        first_at = note.first_at if note else run.services.now()
        attempt = note.attempts + 1 if note else 1
        run.step_begins()
        while True:
            if note is not None:
                await self._pause(note.due_at)
            if not run.services.trust.holds:
                await trusted(run, self._kind, self._key, self._index)
            rest_s = self._rest_s(first_at)
            if note is not None and rest_s <= 0:
                return await self._give_up(note)
            requests = cancel_requests()
            try:
                value = await self._attempt(attempt, note, rest_s)
            except OUTCOMES as error:
                failure = as_failure(run, error, requests)
                self._tell(attempt, Phase.CANCELLED if failure is None else Phase.FAILED, failure)
                if failure is not None:
                    # Let finish although it was cancelled: whoever did that wants no more attempts.
                    let = self._undo is not None and cancel_requests() > requests
                    note = None if let else self._next_note(attempt, failure, first_at, note)
                if failure is None or note is None:
                    return await settle(
                        run, self._kind, self._key, self._index, failure, self._shape
                    )
                if await self._record_failed(note):
                    return await settle(run, self._kind, self._key, self._index, None, self._shape)
                attempt += 1
            else:
                return await self._succeed(attempt, value)

    async def _record_failed(self, note: RetryNote) -> bool:
        """Record a failed attempt; return whether user code has cancelled the step meanwhile."""
        run = self._run
        run.check_interrupted()
        requests = cancel_requests()
        failed = Checkpoint(
            Kind.RETRY, self._key, self._index, Form.VALUE, encode(note), replaces=True
        )
        answer = run.submit((failed,))
        try:
            outcome = await answer
        except (asyncio.CancelledError, StorageError):
            outcome = await run.follow(answer)
        run.held(outcome, failed)
        return cancel_requests() > requests

    async def _succeed(self, attempt: int, value: Any) -> Any:
        run = self._run
        if isinstance(value, Committed):
            run.step_ended()
            self._tell(attempt, Phase.SUCCEEDED)
            return value.value if value.held is None else run.unseal(value.held, self._shape)
        try:
            payload, value = self._shape.record(value, "result")
        except SerializationError as error:
            # The effect has happened: recorded at once, whatever the policy says.
            self._tell(attempt, Phase.FAILED, error)
            return await settle(run, self._kind, self._key, self._index, error)
        checkpoint = Checkpoint(self._kind, self._key, self._index, Form.VALUE, payload)
        seq = run.seq + 1  # of the unit that `record` is about to make
        held = await run.record(checkpoint)
        if self._undo is not None and run.undos is not None and held.form is Form.VALUE:
            done = (run.epoch, seq) if held is checkpoint else (held.epoch, held.seq)
            run.undos.register(Undo(self._undo, held, self._shape, done))
        run.step_ended()
        self._tell(attempt, Phase.SUCCEEDED)
        return value if held is checkpoint else run.unseal(held, self._shape)

    def _rest_s(self, first_at: datetime) -> float:
        """Return how long the policy still gives the whole; infinity if it does not say.

        An undo is not given up because nothing ran for a while.
        """
        if self._retry is None or self._retry.timeout_s is None or self._kind is Kind.UNDO:
            return math.inf
        return self._retry.timeout_s - (self._run.services.now() - first_at).total_seconds()

    async def _give_up(self, note: RetryNote) -> Any:
        """Record the failure of the last attempt as the outcome; there is no time for another."""
        run = self._run
        payload = bytes(note.errors[-1])
        held = await run.record(Checkpoint(self._kind, self._key, self._index, Form.ERROR, payload))
        run.step_ended()
        return run.unseal(held, self._shape)

    async def _attempt(self, attempt: int, note: RetryNote | None, rest_s: float) -> Any:
        run = self._run
        previous = run.services.failures.decode(bytes(note.errors[-1])) if note else None
        said = self._said
        details = None if said is None else run.unseal(said, run.services.any_shape)
        step = Step(run, self._key, self._index, attempt, previous, self._kind, details, said)
        token = INSIDE.set(step)
        self._tell(attempt, Phase.STARTED)
        body = self._body
        # A transaction is not cut off: its commit may be on its way.
        if rest_s < math.inf and self._kind is not Kind.TRANSACTION:
            body = timed(body, rest_s, "when the time of all its attempts together was over")
        try:
            value = await body()
        except (KeyboardInterrupt, SystemExit) as error:
            INSIDE.reset(token)
            run.leave_program(error)
            raise
        except OUTCOMES:
            INSIDE.reset(token)
            self._said = step._said  # noqa: SLF001  (we made it)
            raise
        INSIDE.reset(token)
        return value

    async def _pause(self, due_at: datetime) -> None:
        run = self._run
        if run.compensating and self._kind is not Kind.UNDO:
            run.step_ended()  # a failed attempt and no more: the function is over
            raise ProcessInterrupted
        if due_at <= run.services.now():
            return
        # Not in flight while it waits: nothing runs, and a drain need not wait for it.
        run.step_ended()
        try:
            await run.hold(due_at, run.services.timers.at(due_at), firm=False)
        except ProcessInterrupted:
            raise
        except asyncio.CancelledError:
            await run.record_cancelled(self._kind, self._key, self._index)
            raise
        if self._kind is not Kind.UNDO:
            await run.stay_open(self._key)
        run.step_begins()

    def _next_note(
        self, attempt: int, error: Exception, first_at: datetime, note: RetryNote | None
    ) -> RetryNote | None:
        """Return the record of a failed attempt, or None if there is to be no further one."""
        services = self._run.services
        if self._retry is None or (
            self._kind is Kind.TRANSACTION and isinstance(error, SerializationError)
        ):
            return None  # a result that cannot be stored will not be another one the next time
        now = services.now()
        elapsed_s = (now - first_at).total_seconds()
        try:
            wait_s = self._retry.wait_s(attempt, error, elapsed_s, services.random.random())
        except Exception:  # noqa: BLE001  (a fault of `retry_if` must not lose the step's failure)
            _log.exception(
                "retry_if of key %s raised; there is no further attempt", ascii(self._key)
            )
            return None
        if wait_s is None:
            return None
        earlier = note.errors if note else ()
        return RetryNote(
            attempts=attempt,
            first_at=first_at,
            due_at=now + timedelta(seconds=wait_s),
            errors=(*earlier, msgspec.Raw(services.failures.encode(error)))[-RETRY_ERRORS_MAX:],
        )

    def _recorded_note(self) -> RetryNote | None:
        held = self._run.journal.take(Kind.RETRY, self._key, self._index)
        return None if held is None else msgspec.json.decode(held.payload, type=RetryNote)

    def _tell(self, attempt: int, phase: Phase, error: BaseException | None = None) -> None:
        run = self._run
        if run.services.observers:
            name = None if error is None else type(error).__name__
            change = StepChange(
                run.process_id, self._kind, self._key, self._index, attempt, phase, name
            )
            tell((observer.on_step for observer in run.services.observers), change)


async def call_function(run: Run, spec: CallSpec, fn: Callable[..., Any], args: Any) -> Any:
    """Call a step's function: on the loop if it is async, else on a thread of the pool."""
    if spec.is_async:
        return await fn(*args)
    context = copy_context()
    result = await run.services.loop.run_in_executor(
        run.services.threads, context.run, _call_in_thread, fn, args
    )
    # A lambda around an async function is sync by the look of it.
    return await result if inspect.isawaitable(result) else result


def cancel_requests() -> int:
    """Return how often somebody has asked the current task to cancel, for `as_failure`."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def as_failure(run: Run, error: BaseException, requests_before: int) -> Exception | None:
    """Return what left a step as the failure to record; None if user code cancelled the task.

    A CancelledError that nobody asked for is an ordinary failure of whatever raised it.

    Raises:
        ProcessInterrupted: The engine itself cancelled the task.
    """
    # First, since code may turn its interrupt into an error of its own, as database drivers do.
    run.check_interrupted()
    if isinstance(error, Exception):
        return error
    if not isinstance(error, asyncio.CancelledError):
        return StepError(type(error).__name__, str(error))
    if cancel_requests() > requests_before:
        return None
    return StepError("CancelledError", str(error))


async def settle(
    run: Run,
    kind: Kind,
    key: str,
    index: int,
    failure: Exception | None,
    shape: Shape | None = None,
) -> Any:
    """Record a step's failure, or that it was cancelled, and raise it as every later run will.

    Where a result turns out to be recorded already, it is returned: a commit
    of a transaction may have won, and whoever waited for it have been cancelled.
    """
    shape = shape or run.services.any_shape
    if failure is None:
        won = await run.record_cancelled(kind, key, index)
        run.step_ended()
        if won is not None:
            return run.unseal(won, shape)
        raise asyncio.CancelledError
    payload = run.services.failures.encode(failure)
    held = await run.record(Checkpoint(kind, key, index, Form.ERROR, payload))
    run.step_ended()
    return run.unseal(held, shape)


async def trusted(run: Run, kind: Kind, key: str, index: int) -> None:
    """Wait until the lease can be trusted: what starts here must not start elsewhere too."""
    try:
        await run.hold(None, run.services.trust.regained())
    except ProcessInterrupted:
        raise
    except asyncio.CancelledError:
        await run.record_cancelled(kind, key, index)
        raise


def timed(body: Callable[[], Any], timeout_s: float, why: str = "") -> Callable[[], Any]:
    """Return a body whose attempt is cancelled and fails after `timeout_s`.

    It runs in a task of its own. Before Python 3.13 a `TaskGroup` in it that fails leaves a
    request to cancel behind on its task, by which the end of its time would pass for
    somebody else's, and the step for one that user code has cancelled.

    Args:
        why: Where that time comes from, if not from `timeout=`; for the message.
    """

    async def within() -> Any:
        loop = asyncio.get_running_loop()
        attempt = loop.create_task(with_fatal(body))
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = attempt.cancel()

        timer = loop.call_later(timeout_s, end)
        requests = cancel_requests()
        try:
            value, fatal = await attempt
        except asyncio.CancelledError as error:
            if not is_over or cancel_requests() > requests:
                raise
            message = f"no result after {timeout_s} s" + (f", {why}" if why else "")
            raise StepTimeoutError("StepTimeoutError", message) from error
        finally:
            timer.cancel()
        if fatal is not None:
            raise fatal
        return value

    return within


async def with_fatal(body: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Hand what ends the program to whoever waits; out of a task it would end the loop at once."""
    try:
        return await body(), None
    except (KeyboardInterrupt, SystemExit) as error:
        return None, error


def _call_in_thread(fn: Callable[..., Any], args: Any) -> Any:
    try:
        return fn(*args)
    except StopIteration as error:
        # A future cannot carry it; the step would hang for ever.
        raise RuntimeError("step raised StopIteration") from error
