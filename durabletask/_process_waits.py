"""The durable calls that wait: delays and events.

A thin face: it checks arguments, makes the call object and hands over.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, cast, overload

import durabletask._waits as _waits
from durabletask._codec import ANY, Shape
from durabletask._durable_call import Calls, DurableCall, checked_seconds
from durabletask._errors import InvalidArgumentError
from durabletask._limits import check_name
from durabletask._model import NO_INDEX, Kind
from durabletask._run import Run

T = TypeVar("T")


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


class WaitCalls(Calls):
    """What a process waits for: `delay`, `event`, `events`."""

    __slots__ = ()

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
        limit = (
            None if timeout is None else timedelta(seconds=checked_seconds("timeout", timeout, 0.0))
        )
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


async def _delay(run: Run, key: str, until: timedelta | datetime) -> DelayResult:
    note = await _waits.delay(run, key, until)
    return DelayResult(note.desired_at, note.actual_at, note.on_time)
