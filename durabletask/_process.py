"""What a process function holds: the durable calls.

A thin face: it checks arguments, makes the call object and hands over to
`_steps` and `_waits`. The one thing it does itself is the plain step, because
that is the hot path.
"""

import asyncio
import logging
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from inspect import isawaitable
from threading import get_ident
from types import TracebackType
from typing import Any, Generic, TypeVar, TypeVarTuple, cast, overload

import durabletask._steps as _steps
import durabletask._transaction as _transaction
import durabletask._waits as _waits
from durabletask._callable import CallSpec
from durabletask._caller import STEP
from durabletask._codec import ANY, Shape
from durabletask._errors import InvalidArgumentError, StorageError
from durabletask._limits import check_name
from durabletask._model import DONE, NO_INDEX, Checkpoint, Form, Kind, Status, Unit
from durabletask._refused import transactions_of
from durabletask._retry import RetryPolicy
from durabletask._run import Run

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Ts = TypeVarTuple("Ts")

_log = logging.getLogger("durabletask.process")

# Looked up once: an attribute of an enum class costs ten times a global.
_DO, _VALUE, _RUNNING, _WAITING = Kind.DO, Form.VALUE, Status.RUNNING, Status.WAITING
_new = object.__new__


class DurableCall(Coroutine[Any, Any, T_co]):
    """A call that is recorded under its key; it begins when it is first awaited or scheduled.

    `await`, `asyncio.gather`, `create_task`, `TaskGroup` and `wait_for` take it.

    Attributes:
        kind: What sort of call it is.
        key: Under which it is recorded.
    """

    __slots__ = ("_body", "key", "kind")

    def __init__(self, kind: Kind, key: str, body: Coroutine[Any, Any, T_co]) -> None:
        self.kind = kind
        self.key = key
        self._body = body

    def __repr__(self) -> str:
        return f"<durable call {self.kind.value} {self.key!r}>"

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._body.__await__()

    def send(self, value: Any) -> Any:
        """Resume the call; for the event loop."""
        return self._body.send(value)

    def throw(
        self,
        typ: Any,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """Raise inside the call; for the event loop."""
        if val is None and tb is None:
            return self._body.throw(typ)
        return self._body.throw(typ, val, tb)

    def close(self) -> None:
        """Give the call up; for the event loop."""
        self._body.close()


@dataclass(frozen=True, slots=True)
class DelayResult:
    """How a delay went.

    Attributes:
        desired: When it was due, fixed by the first call.
        actual: When it was over.
        on_time: False if the process was not being run when it fell due.
    """

    desired: datetime
    actual: datetime
    on_time: bool


class Var(Generic[T]):
    """A durable variable: the one value of a process that may change.

    A resumed run starts from the last value set.
    """

    __slots__ = ("_key", "_payload", "_run", "_shape")

    def __init__(self, run: Run, key: str, shape: Shape, payload: bytes) -> None:
        self._run = run
        self._key = key
        self._shape = shape
        self._payload = payload

    @property
    def value(self) -> T:
        """The value, decoded afresh: changing it in place changes nothing stored."""
        return cast("T", self._shape.decode(self._payload))

    async def set(self, value: T) -> None:
        """Set the value; durable when this returns.

        Raises:
            SerializationError: It has no exact JSON form; the old value stays.
        """
        payload = self._shape.encode(value)
        run = self._run
        if run.gated:
            await run.stay_open(self._key)
        run.check_caller(self._key)
        await run.record(
            Checkpoint(Kind.VAR, self._key, NO_INDEX, Form.VALUE, payload, replaces=True)
        )
        self._payload = payload


class EventStream(Generic[T]):
    """All events of a name, one after the other; what `Process.events` returns."""

    __slots__ = ("_index", "_name", "_run", "_shape")

    def __init__(self, run: Run, name: str, shape: Shape) -> None:
        self._run = run
        self._name = name
        self._shape = shape
        self._index = 0

    def __aiter__(self) -> "EventStream[T]":
        return self

    async def __anext__(self) -> T:
        index, self._index = self._index, self._index + 1
        value = await _waits.event(self._run, self._name, self._shape, self._name, index, None)
        return cast("T", value)


class Process:
    """The process, as its function sees it.

    Every durable call is recorded under a key of 1 to 255 bytes of UTF-8. When
    its await returns or raises, the record survives any crash; a later run gets
    the recorded outcome without running anything.
    """

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def id(self) -> str:
        """The process_id."""
        return self._run.process_id

    @property
    def resuming(self) -> bool:
        """Whether the run still has recorded calls to recall."""
        return self._run.journal.unasked > 0

    @property
    def log(self) -> "ProcessLogger":
        """A logger that is silent while the run is resuming, so that no line comes twice."""
        return ProcessLogger(_log, {"process_id": self.id}, self)

    def idempotency_key(self, key: str) -> str:
        """Return what to hand to the outside world to have the effect of `key` only once."""
        return _steps.idempotency_key(self._run, check_name("key", key))

    @overload
    def do(
        self,
        key: str,
        fn: Callable[[*Ts], Awaitable[T]],
        *args: *Ts,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[T]: ...
    @overload
    def do(
        self,
        key: str,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[T]: ...
    def do(
        self,
        key: str,
        fn: Callable[[*Ts], Any],
        *args: *Ts,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[Any]:
        """Run a step, or return or raise its recorded outcome.

        Args:
            key: Names the step within the process.
            fn: Async, or sync (then it runs on a thread, which nothing can
                interrupt). Its return annotation says how the result is
                encoded. It may run more than once: a crash can come between
                its effect and the record. See `current_step().idempotency_key`.
            *args: Its positional arguments; `functools.partial` for keywords.
            retry: When to try again; None for the default of the process or host.
            timeout: Of one attempt; `timedelta` or seconds.

        Raises:
            StepError: The recorded failure of the step, or the class itself
                where it is listed in `ProcessHost(errors=[…])`.
            InvalidArgumentError: `fn` cannot be a step or does not take the
                arguments; nothing was recorded.
        """
        run = self._run
        services = run.services
        spec = services.callables.spec(fn)
        if not spec.args_min <= len(args) <= spec.args_max:
            spec.check(args)
        if type(key) is not str or not (key.isascii() and key.isprintable() and 0 < len(key) < 256):
            check_name("key", key)
        policy = retry or run.retry
        if policy is None and timeout is None and spec.is_async and not services.observers:
            # As `DurableCall(…)`, in half the time.
            call: DurableCall[Any] = _new(DurableCall)
            call.kind, call.key = _DO, key
            call._body = _plain_step(run, key, spec, fn, args)  # noqa: SLF001  (we make it)
            return call
        body: Callable[[], Any] = partial(_steps.call_function, run, spec, fn, args)
        if timeout is not None:
            body = _steps.timed(body, _seconds("timeout", timeout))
        return DurableCall(Kind.DO, key, _step(run, Kind.DO, key, body, spec.returns, policy))

    @overload
    def get(
        self, key: str, value_or_factory: Callable[[], Awaitable[T]], *, type: None = None
    ) -> DurableCall[T]: ...
    @overload
    def get(
        self, key: str, value_or_factory: Callable[[], T], *, type: None = None
    ) -> DurableCall[T]: ...
    @overload
    def get(self, key: str, value_or_factory: T, *, type: None = None) -> DurableCall[T]: ...
    @overload
    def get(self, key: str, value_or_factory: object, *, type: type[T]) -> DurableCall[T]: ...
    def get(
        self, key: str, value_or_factory: Any, *, type: type[Any] | None = None
    ) -> DurableCall[Any]:
        """Return the first value that was ever given under a key.

        Args:
            key: Names the value within the process.
            value_or_factory: A value, or a function without arguments that is
                called if nothing is recorded. It runs on the event loop, so
                what blocks belongs into `do`.
            type: How to encode it; the factory's return annotation otherwise.
        """
        run = self._run
        check_name("key", key)
        if callable(value_or_factory):
            spec = run.services.callables.spec(value_or_factory)
            spec.check(())
            shape = spec.returns
            body: Callable[[], Any] = partial(_call_inline, value_or_factory)
        else:
            shape = run.services.codec.shape_of(value_or_factory)
            body = partial(_constant, value_or_factory)
        if type is not None:
            shape = run.services.codec.shape(type)
        return DurableCall(Kind.GET, key, _step(run, Kind.GET, key, body, shape, None))

    @overload
    def transaction(
        self,
        key: str,
        fn: Callable[[Any], Awaitable[T]],
        *,
        type: None = None,
        retry: RetryPolicy | None = None,
    ) -> DurableCall[T]: ...
    @overload
    def transaction(
        self,
        key: str,
        fn: Callable[[Any], Awaitable[object]],
        *,
        type: type[T],
        retry: RetryPolicy | None = None,
    ) -> DurableCall[T]: ...
    def transaction(
        self,
        key: str,
        fn: Callable[[Any], Awaitable[Any]],
        *,
        type: type[Any] | None = None,
        retry: RetryPolicy | None = None,
    ) -> DurableCall[Any]:
        """Run a step in a transaction that records it as well, or return its recorded outcome.

        What the function writes through its connection is committed together
        with the record: both or neither, whatever crashes. What else it does,
        it may do more than once, as any step.

        Args:
            key: Names the step within the process.
            fn: `async def fn(connection)`, for Postgres a connection of asyncpg
                with an open transaction, which it must not end. If it raises,
                all that it wrote is rolled back, and then the error recorded.
                Keep it short: others may wait for the rows that it locks.
            type: How to encode the result; the function's return annotation
                otherwise. A result that cannot be encoded rolls back too.
            retry: When to try again, each time in a new transaction; None for
                the default of the process or host.

        Raises:
            StepError: The recorded failure of the step.
            InvalidArgumentError: The storage is not in a database of yours, or
                `fn` does not take one argument; nothing was recorded.
        """
        run = self._run
        services = run.services
        transactions_of(services.writer.storage)
        spec = services.callables.spec(fn)
        spec.check((None,))
        shape = spec.returns if type is None else services.codec.shape(type)
        body = _transaction.attempt(run, check_name("key", key), fn, shape)
        call = _step(run, Kind.TRANSACTION, key, body, shape, retry or run.retry)
        return DurableCall(Kind.TRANSACTION, key, call)

    def var(self, key: str, default: T, *, type: type[T] | None = None) -> DurableCall[Var[T]]:
        """Return a durable variable, with its last value or else with `default`.

        Args:
            key: Names the variable within the process.
            default: Recorded by the first run.
            type: How to encode the values, if they are not plain ones.
        """
        shape = self._run.services.codec.shape(ANY if type is None else type)
        return DurableCall(
            Kind.VAR, check_name("key", key), _variable(self._run, key, shape, default)
        )

    def delay(self, key: str, until: timedelta | datetime) -> DurableCall[DelayResult]:
        """Wait, for as long as you like, and never less.

        The due time is fixed by the first call and survives restarts. Zero,
        a negative `timedelta` and a past `datetime` are over at once.

        Args:
            key: Names the delay within the process.
            until: For how long, or until when (aware).
        """
        check_name("key", key)
        if isinstance(until, datetime):
            if until.utcoffset() is None:
                raise InvalidArgumentError(
                    f"delay {key!r} until {until}, which has no time zone",
                    hint="use an aware datetime, such as datetime.now(UTC) + …",
                )
        elif not isinstance(until, timedelta):
            raise InvalidArgumentError(
                f"delay {key!r} takes a timedelta or a datetime, not {until!r}",
                hint="timedelta(seconds=…)",
            )
        return DurableCall(Kind.DELAY, key, _delay(self._run, key, until))

    @overload
    def event(
        self,
        name: str,
        type: type[T],
        *,
        key: str | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[T]: ...
    @overload
    def event(
        self, name: str, *, key: str | None = None, timeout: timedelta | float | None = None
    ) -> DurableCall[Any]: ...
    def event(
        self,
        name: str,
        type: Any = ANY,
        *,
        key: str | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[Any]:
        """Take the oldest event of a name that nobody has taken, or wait for one.

        Args:
            name: Of the event. Events raised before the wait are kept for it.
            type: What its payload is to be decoded to.
            key: Names the call within the process; the event's name if not
                given, so a second wait for the same name needs its own.
            timeout: How long to wait; `timedelta` or seconds, fixed by the
                first run. Zero takes only what is there already.

        Raises:
            EventTimeoutError: Recorded: later runs meet it too.
        """
        check_name("event name", name)
        shape = self._run.services.codec.shape(type)
        limit = None if timeout is None else timedelta(seconds=_seconds("timeout", timeout, 0.0))
        key = name if key is None else check_name("key", key)
        call = _waits.event(self._run, name, shape, key, NO_INDEX, limit)
        return DurableCall(Kind.EVENT, key, call)

    @overload
    def events(self, name: str, type: type[T]) -> EventStream[T]: ...
    @overload
    def events(self, name: str) -> EventStream[Any]: ...
    def events(self, name: str, type: Any = ANY) -> EventStream[Any]:
        """Iterate over all events of a name, for ever; leave the loop with `break`.

        Each is taken as by `event`, under the name and a generated index, so
        one process has one such loop per name.
        """
        return EventStream(
            self._run, check_name("event name", name), self._run.services.codec.shape(type)
        )


class ProcessLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs with the process_id, unless the process is recalling what it has logged before."""

    def __init__(self, logger: logging.Logger, extra: dict[str, Any], process: Process) -> None:
        super().__init__(logger, extra)
        self._process = process

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (the name is logging's)
        """Return whether a message of the level would be logged now."""
        return not self._process.resuming and super().isEnabledFor(level)


async def _plain_step(
    run: Run, key: str, spec: CallSpec, fn: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    # The hot path: `_step` for an async function without retry, timeout or observer, at its first
    # run and with nothing in its way. One long function, since every call and every object that
    # is made here is some hundredth of what a step costs. Whatever is unusual goes the long way.
    services = run.services
    slots = run.journal.slots
    if run.gated or key in slots or run.journal.notes or not services.trust.holds:
        body = partial(_steps.call_function, run, spec, fn, args)
        return await _step(run, Kind.DO, key, body, spec.returns, None)
    task = current_task(services.loop)
    requests = task.cancelling() if task is not None else 0
    # As `Run.check_caller`. A loop that shuts down has cancelled the writer, and this task too.
    if task is not run.task or requests or STEP.get() is not None or get_ident() != services.thread:
        run.check_caller(key)
    # As `Journal.ask`.
    slots[key] = None
    if len(slots) >= services.limits.steps_warn:
        run.check_steps(len(slots))
    # As `Run.step_begins`.
    run.steps += 1
    if run.recorded is _WAITING:
        services.writer.mark(run)
    # Reset, and not set to None: an empty context is shared, one that holds None costs 120 bytes.
    token = STEP.set(_steps.Step(run, key))
    try:
        payload, value = spec.returns.record(await fn(*args), "result")
    except (KeyboardInterrupt, SystemExit) as error:
        STEP.reset(token)
        run.leave_program(error)
        raise
    except _steps.OUTCOMES as error:
        STEP.reset(token)
        failure = _steps.as_failure(run, error, requests)
        return await _steps.settle(run, Kind.DO, key, NO_INDEX, failure)
    STEP.reset(token)
    del token, args  # what is kept until the record is durable, the garbage collector visits
    if run.gated:
        run.check_interrupted()
    checkpoint = Checkpoint(_DO, key, NO_INDEX, _VALUE, payload)
    # As `Run.record`, without a coroutine of its own, and as `Run.submit`.
    if run.waiting or run.recorded is not _RUNNING:
        answer = run.submit((checkpoint,))
    else:
        run.seq = seq = run.seq + 1
        answer = services.writer.submit(
            Unit(
                process_id=run.process_id,
                incarnation=run.incarnation,
                epoch=run.epoch,
                seq=seq,
                checkpoints=(checkpoint,),
            )
        )
    try:
        outcome = await answer
    except (asyncio.CancelledError, StorageError):
        outcome = await run.outlast(answer, checkpoint)
    # As `Run.step_ended`.
    run.steps -= 1
    if run.gated or run.waiting:
        run.step_settled()
    if outcome is DONE:
        return value
    return run.unseal(run.held(outcome, checkpoint), spec.returns)


async def _step(
    run: Run,
    kind: Kind,
    key: str,
    body: Callable[[], Any],
    shape: Shape,
    retry: RetryPolicy | None,
) -> Any:
    if run.gated:
        await run.pass_gate(kind, key)
    held = run.ask(kind, key)
    if held is None:
        return await _steps.StepRun(run, kind, key, NO_INDEX, body, shape, retry).outcome()
    await run.recall(held)
    return run.unseal(held, shape)


async def _variable(run: Run, key: str, shape: Shape, default: Any) -> "Var[Any]":
    if run.gated:
        await run.pass_gate(Kind.VAR, key)
    held = run.ask(Kind.VAR, key)
    if held is None:
        payload = shape.encode(default)
        held = await run.record(Checkpoint(Kind.VAR, key, NO_INDEX, Form.VALUE, payload))
    run.unseal(held, shape)  # so that a value which no longer fits is met here
    return Var(run, key, shape, held.payload)


async def _delay(run: Run, key: str, until: timedelta | datetime) -> DelayResult:
    note = await _waits.delay(run, key, until)
    return DelayResult(note.desired_at, note.actual_at, note.on_time)


async def _call_inline(fn: Callable[[], Any]) -> Any:
    value = fn()
    # A lambda around an async function is sync by the look of it.
    return await value if isawaitable(value) else value


async def _constant(value: Any) -> Any:
    return value


def _seconds(what: str, duration: timedelta | float, low: float | None = None) -> float:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or (seconds <= 0 if low is None else seconds < low)
        or not seconds <= timedelta.max.total_seconds()
    ):
        raise InvalidArgumentError(
            f"{what} is {str(duration)[:40]}",
            hint=f"a timedelta or seconds, more than 0 and at most {timedelta.max}",
        )
    return float(seconds)
