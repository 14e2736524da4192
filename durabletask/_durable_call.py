"""The object that every durable call returns, and what the groups of calls have in common."""

import inspect
from collections.abc import Coroutine, Generator
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

from durabletask._branch import Branch, Branches
from durabletask._errors import InvalidArgumentError
from durabletask._model import Kind
from durabletask._run import Run

T_co = TypeVar("T_co", covariant=True)


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
        # So that Python's own warning, "coroutine 'charge' was never awaited", names the key.
        body.__qualname__ = key  # type: ignore[attr-defined]

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


class DurableWait(DurableCall[T_co]):
    """A durable call that waits; await it, or give it to `Process.race` as a branch.

    Attributes:
        branch: What a race is to know of it.
    """

    __slots__ = ("branch",)

    def __init__(
        self, kind: Kind, key: str, body: Coroutine[Any, Any, T_co], branch: Branch | Branches
    ) -> None:
        super().__init__(kind, key, body)
        self.branch = branch

    @property
    def has_begun(self) -> bool:
        """Whether it was awaited, scheduled, closed or made a branch before."""
        return inspect.getcoroutinestate(self._body) != inspect.CORO_CREATED


class Calls:
    """A group of durable calls of one run; `Process` is made of several."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run


def checked_seconds(what: str, duration: timedelta | float, low: float | None = None) -> float:
    """Return a positive duration in seconds; of at least `low` where that is given."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or (seconds <= 0 if low is None else seconds < low)
        or not seconds <= timedelta.max.total_seconds()
    ):
        lowest = "more than 0" if low is None else f"at least {low:g}"
        raise InvalidArgumentError(
            f"{what} is {duration!r:.40}",
            hint=f"a timedelta or seconds, {lowest} and at most {timedelta.max}",
        )
    return float(seconds)
