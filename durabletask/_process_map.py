"""The durable calls for many items at once: `map`.

A thin face: it checks arguments, makes the call object and hands over.
"""

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar, overload

from durabletask._durable_call import Calls, DurableCall, checked_seconds
from durabletask._errors import InvalidArgumentError
from durabletask._limits import check_name
from durabletask._map import Map
from durabletask._model import Kind
from durabletask._retry import RetryPolicy

T = TypeVar("T")
R = TypeVar("R")


class MapCalls(Calls):
    """What a process does with many items: `map`."""

    __slots__ = ()

    @overload
    def map(
        self,
        key: str,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T],
        *,
        concurrency: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[list[R]]: ...
    @overload
    def map(
        self,
        key: str,
        fn: Callable[[T], R],
        items: Iterable[T],
        *,
        concurrency: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[list[R]]: ...
    def map(
        self,
        key: str,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        concurrency: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableCall[list[Any]]:
        """Run a step for each item and return the results in the order of the items.

        Each item is a step of its own, under the key and its index: those
        that are recorded do not run again. Items begin in their order. After
        the first failure no further item begins, those in flight go on to
        their outcome, retries included, and then the failure of the lowest
        index is raised, by later runs too. If user code cancels the call,
        the items in flight record that.

        Args:
            key: Names the whole within the process.
            fn: Async, or sync (then on a thread). Called with one item;
                `functools.partial` for more. In it `current_step().index` is
                the place of the item.
            items: Taken at once, once in each run. They must come in the same
                order each time; there may be more or fewer than before. A
                result of a place that is no more is kept, and a warning
                names it when the process ends.
            concurrency: So many items in flight; 1,000 if not given.
            retry: Of each item; None for the default of the process or host.
            timeout: Of one attempt of one item; `timedelta` or seconds.

        Raises:
            StepError: The recorded failure of the first item that failed, as of `do`.
            InvalidArgumentError: `fn` cannot be a step, or `items` cannot be
                iterated; nothing was recorded.
        """
        run = self._run
        check_name("key", key)
        spec = run.services.callables.spec(fn)
        spec.check((None,))
        if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
            raise InvalidArgumentError(
                f"concurrency of map {key!r} is {concurrency!r}", hint="an int from 1 up, or None"
            )
        if not isinstance(items, Iterable):
            raise InvalidArgumentError(
                f"map {key!r} cannot iterate over {type(items).__name__}",
                hint="collect what is asynchronous into a list first, in a step of its own",
            )
        # One more than there may be is enough to be refused, of what has no end too.
        taken = list(islice(items, run.services.limits.steps_max + 1))
        work = Map(
            run,
            key,
            spec,
            fn,
            taken,
            concurrency=concurrency,
            retry=retry or run.retry,
            timeout_s=None if timeout is None else checked_seconds("timeout", timeout),
        )
        return DurableCall(Kind.DO, key, work.results())
