"""The durable calls that run something: steps, values, transactions, variables.

A thin face: it checks arguments, makes the call object and hands over.
"""

from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from functools import partial
from inspect import isawaitable
from typing import Any, TypeVar, TypeVarTuple, overload

import durabletask._compensation as _compensation
import durabletask._steps as _steps
import durabletask._transaction as _transaction
from durabletask._codec import ANY, Shape
from durabletask._durable_call import Calls, DurableCall, checked_seconds
from durabletask._errors import InvalidArgumentError
from durabletask._limits import check_name
from durabletask._model import Kind
from durabletask._once import begun_once, watched
from durabletask._plain_step import plain_step, step
from durabletask._refused import transactions_of
from durabletask._retry import RetryPolicy
from durabletask._run import Run
from durabletask._undos import UndoCall
from durabletask._variable import Var, variable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_DO = Kind.DO  # looked up once: an attribute of an enum class costs ten times a global
_new = object.__new__


class StepCalls(Calls):
    """What a process does: `do`, `get`, `transaction`, `var`."""

    __slots__ = ()

    @overload
    def do(
        self,
        key: str,
        fn: Callable[[*Ts], Awaitable[T]],
        *args: *Ts,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
        undo: Callable[[T], object] | None = None,
        at_most_once: bool = False,
    ) -> DurableCall[T]: ...
    @overload
    def do(
        self,
        key: str,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
        undo: Callable[[T], object] | None = None,
        at_most_once: bool = False,
    ) -> DurableCall[T]: ...
    def do(
        self,
        key: str,
        fn: Callable[[*Ts], Any],
        *args: *Ts,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
        undo: Callable[[Any], object] | None = None,
        at_most_once: bool = False,
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
            undo: Takes back what the step has done: `undo(result)`, async or
                sync. Called, as a step of its own, when an error leaves the
                process function after this step has succeeded; the latest
                step first. It has the step's `retry` and `timeout`, and
                without any policy tries again for some minutes. A step with
                an undo is not cut off by user code that cancels it: it is let
                finish, within its `timeout`, so that it is known what to undo.
            at_most_once: Record that it starts before `fn` runs. If the host dies
                before the outcome is recorded, `fn` does not run again.

        Raises:
            StepError: The recorded failure of the step, or the class itself
                where it is listed in `ProcessHost(errors=[…])`.
            StepInterruptedError: An `at_most_once` step was begun, and its
                host died; recorded.
            InvalidArgumentError: `fn` cannot be a step or does not take the
                arguments, or `retry` with `at_most_once`; nothing was recorded.
        """
        run = self._run
        services = run.services
        spec = services.callables.spec(fn)
        if not spec.args_min <= len(args) <= spec.args_max:
            spec.check(args)
        if type(key) is not str or not (key.isascii() and key.isprintable() and 0 < len(key) < 256):
            check_name("key", key)
        policy = retry or run.retry
        if (
            policy is None
            and timeout is None
            and undo is None
            and not at_most_once
            and spec.is_async
            and not services.observers
        ):
            # As `DurableCall(…)`, in half the time.
            call: DurableCall[Any] = _new(DurableCall)
            call.kind, call.key = _DO, key
            call._body = made = plain_step(run, key, spec, fn, args)  # noqa: SLF001  (we make it)
            made.__qualname__ = key  # type: ignore[attr-defined]
            return call
        body: Callable[[], Any] = partial(_steps.call_function, run, spec, fn, args)
        timeout_s = None if timeout is None else checked_seconds("timeout", timeout)
        if timeout_s is not None:
            body = _steps.timed(body, timeout_s)
        kept = None if undo is None else _compensation.undo_call(run, undo, policy, timeout_s)
        if at_most_once:
            _check_no_retry(key, retry)
            body, policy = begun_once(run, key, body), None
        make = partial(_long_step, run, key, body, spec.returns, policy, kept)
        return DurableCall(Kind.DO, key, watched(run, key, make) if at_most_once else make())

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
        return DurableCall(Kind.GET, key, step(run, Kind.GET, key, body, shape, None))

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
        call = step(run, Kind.TRANSACTION, key, body, shape, retry or run.retry)
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
            Kind.VAR, check_name("key", key), variable(self._run, key, shape, default)
        )


def _long_step(
    run: Run,
    key: str,
    body: Callable[[], Any],
    shape: Shape,
    retry: RetryPolicy | None,
    undo: UndoCall | None,
) -> Coroutine[Any, Any, Any]:
    if undo is None:
        return step(run, Kind.DO, key, body, shape, retry)
    return _compensation.undoable_step(run, key, body, shape, retry, undo)


def _check_no_retry(key: str, retry: RetryPolicy | None) -> None:
    if retry is not None:
        raise InvalidArgumentError(
            f"step {key!r} has both at_most_once and retry",
            hint="a step that is tried again is begun more than once: leave one of them out",
        )


async def _call_inline(fn: Callable[[], Any]) -> Any:
    value = fn()
    # A lambda around an async function is sync by the look of it.
    return await value if isawaitable(value) else value


async def _constant(value: Any) -> Any:
    return value
