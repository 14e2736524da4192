"""The durable calls that wait: delays, events, races, and timeouts around any of them.

A thin face: it checks arguments, makes the call object and hands over.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, cast, overload

import durabletask._race as _race
import durabletask._waits as _waits
from durabletask._branch import Branches, DelayBranch, EventBranch
from durabletask._codec import ANY, Shape
from durabletask._durable_call import Calls, DurableWait, checked_seconds
from durabletask._edge import event_name
from durabletask._errors import InvalidArgumentError
from durabletask._limits import check_name
from durabletask._model import NO_INDEX, Kind
from durabletask._notes import DelayNote
from durabletask._run import Run
from durabletask._timeout import DurableTimeout

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
        # First, since whoever else asks must not shift what this process is to ask for next.
        self._run.check_caller(self._name)
        index, self._index = self._index, self._index + 1
        value = await _waits.event(self._run, self._name, self._shape, self._name, index, None)
        return cast("T", value)


class WaitCalls(Calls):
    """What a process waits for: `delay`, `event`, `events`, `race`; and `timeout`."""

    __slots__ = ()

    def delay(self, key: str, until: timedelta | datetime) -> DurableWait[DelayResult]:
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
        branch = DelayBranch(self._run, until, _result)
        return DurableWait(Kind.DELAY, key, _delay(self._run, key, until), branch)

    @overload
    def event(
        self,
        name: str,
        type: type[T],
        *,
        key: str | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableWait[T]: ...
    @overload
    def event(
        self, name: type[T], *, key: str | None = None, timeout: timedelta | float | None = None
    ) -> DurableWait[T]: ...
    @overload
    def event(
        self, name: str, *, key: str | None = None, timeout: timedelta | float | None = None
    ) -> DurableWait[Any]: ...
    def event(
        self,
        name: Any,
        type: Any = ANY,
        *,
        key: str | None = None,
        timeout: timedelta | float | None = None,
    ) -> DurableWait[Any]:
        """Take the oldest event of a name that nobody has taken, or wait for one.

        Args:
            name: Of the event. Events raised before the wait are kept for it.
                Or a class, which is name and type in one: the event goes by
                its `__name__`, `raise_event(Approved(by="x"))` raises it.
            type: What its payload is to be decoded to.
            key: Names the call within the process; the event's name if not
                given, so a second wait for the same name needs its own.
            timeout: How long to wait; `timedelta` or seconds, fixed by the
                first run. Zero takes only what is there already.

        Raises:
            EventTimeoutError: Recorded: later runs meet it too.
        """
        name, type = _named(name, type)
        shape = self._run.services.codec.shape(type)
        limit = (
            None if timeout is None else timedelta(seconds=checked_seconds("timeout", timeout, 0.0))
        )
        key = name if key is None else check_name("key", key)
        call = _waits.event(self._run, name, shape, key, NO_INDEX, limit)
        branch = EventBranch(self._run, name, shape, limit is not None)
        return DurableWait(Kind.EVENT, key, call, branch)

    @overload
    def events(self, name: str, type: type[T]) -> EventStream[T]: ...
    @overload
    def events(self, name: type[T]) -> EventStream[T]: ...
    @overload
    def events(self, name: str) -> EventStream[Any]: ...
    def events(self, name: Any, type: Any = ANY) -> EventStream[Any]:
        """Iterate over all events of a name, for ever; leave the loop with `break`.

        Each is taken as by `event`, under the name and a generated index, so
        one process has one such loop per name. A class is name and type in
        one, as for `event`.
        """
        name, type = _named(name, type)
        return EventStream(self._run, name, self._run.services.codec.shape(type))

    def race(self, key: str, *branches: DurableWait[Any]) -> DurableWait[_race.RaceResult]:
        """Wait for the first of several events, delays, children and races.

        The branches record nothing. Which one won, what it took and the due
        times are one record of the race, so a resumed run takes the same
        branch; the others consume nothing. Of those that are over at the same
        look the first in order wins.

            approved = proc.event("approved", Approval)
            deadline = proc.delay("deadline", timedelta(days=2))
            first = await proc.race("decision", approved, deadline)
            if first.won(approved):
                return first.of(approved).by

        Args:
            key: Names the race within the process.
            *branches: 1 to 1,000 durable calls, made for this race and not
                awaited. Their keys differ from each other, and count within
                this race only: they may be used again outside it.

        Raises:
            InvalidArgumentError: At once: a step, something awaited before, or
                an event with a `timeout=`, for which there is `delay`.
        """
        check_name("key", key)
        calls = _race.checked(self._run, key, branches)
        body = _race.race(self._run, key, calls)
        return DurableWait(Kind.RACE, key, body, Branches(self._run, calls))

    def timeout(self, key: str, limit: timedelta | float) -> DurableTimeout:
        """Bound what runs in an `async with`; a durable `asyncio.timeout`.

        The deadline is fixed by the first run and survives restarts. When it
        has come, the task that entered is cancelled, durable calls that it
        awaits record that, and the `async with` raises TimeoutError; so in
        every later run, at the same call. Where no host ran at the deadline,
        the first call that is not recorded yet does not begin.

            async with proc.timeout("decide", timedelta(days=2)):
                votes = await asyncio.gather(*(proc.event(f"vote/{name}") for name in names))

        Args:
            key: Names the timeout within the process.
            limit: How long; `timedelta` or seconds. With zero and less no new
                call begins.

        Raises:
            TimeoutError: From the `async with`. A class of Python's own, as
                that of `asyncio.timeout`.
        """
        check_name("key", key)
        if not isinstance(limit, timedelta):
            seconds = checked_seconds("timeout", limit, timedelta.min.total_seconds())
            limit = timedelta(seconds=seconds)
        return DurableTimeout(self._run, key, limit)


def _named(name: Any, type_: Any) -> tuple[str, Any]:
    """Return name and type of an event that is asked for by both, or by its class."""
    if not isinstance(name, type):
        return event_name(name), type_
    if type_ is not ANY:
        raise InvalidArgumentError(
            f"an event is asked for by its class, or by name and type; not {name!r} and {type_!r}",
            hint=f"event({name.__name__}), or event({name.__name__!r}, {type_!r})",
        )
    return event_name(name), name


async def _delay(run: Run, key: str, until: timedelta | datetime) -> DelayResult:
    note = await _waits.delay(run, key, until)
    return _result(note)


def _result(note: DelayNote) -> DelayResult:
    return DelayResult(note.desired_at, note.actual_at, note.on_time)
