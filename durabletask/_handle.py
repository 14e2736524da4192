"""A process from outside: its result, its story, and events for it."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from durabletask._codec import Shape
from durabletask._errors import ProcessFailedError, ProcessQuarantinedError, StepError
from durabletask._failure import Failures
from durabletask._info import HistoryEntry, ProcessInfo
from durabletask._model import Ending, Status

if TYPE_CHECKING:
    from durabletask._client import ProcessClient

T = TypeVar("T")


class ProcessHandle(Generic[T]):
    """One process, by its id. Cheap to make; holds nothing of the process."""

    __slots__ = ("_client", "_id", "_shape")

    def __init__(self, client: "ProcessClient", process_id: str, shape: Shape) -> None:
        self._client = client
        self._id = process_id
        self._shape = shape

    def __repr__(self) -> str:
        return f"<process {self._id!a}>"

    @property
    def id(self) -> str:
        """The process_id."""
        return self._id

    async def result(self, timeout: timedelta | float | None = None) -> T:
        """Wait until the process has ended and return what its function returned.

        Args:
            timeout: How long to wait, in seconds or as a timedelta; None for ever.

        Raises:
            ProcessFailedError: The function raised; `__cause__` is the recorded error.
            ProcessQuarantinedError: The process is set aside; fix the code first.
            UnknownProcessError: There is no such process.
            DecodeError: The result does not fit the function's return annotation.
            TimeoutError: It has not ended yet; the process goes on.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        async with asyncio.timeout(seconds):
            ending = await self._client.wait_ended(self._id)
        value: T = outcome(self._id, ending, self._shape, self._client.failures)
        return value

    async def info(self) -> ProcessInfo:
        """Return how the process stands, by what is recorded.

        Raises:
            UnknownProcessError: There is no such process.
        """
        return await self._client.info(self._id)

    async def history(self) -> list[HistoryEntry]:
        """Return all that is recorded of the process, in the order recorded.

        Raises:
            UnknownProcessError: There is no such process.
            StorageCorruptError: Some of it is damaged.
        """
        return await self._client.history(self._id)

    async def raise_event(
        self,
        name: str,
        payload: object = None,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None:
        """Send an event to the process; see `ProcessHost.raise_event`."""
        await self._client.raise_event(
            self._id, name, payload, event_id=event_id, connection=connection
        )


def outcome(process_id: str, ending: Ending, shape: Shape, failures: Failures) -> Any:
    """Return what a process returned, or raise what ended it."""
    if ending.status is Status.COMPLETED:
        return shape.decode(ending.payload)
    # Viewed and not decoded: a class that this program does not have must not hide the failure.
    error = failures.view(ending.payload)
    if ending.status is Status.QUARANTINED:
        raise ProcessQuarantinedError(
            process_id,
            f"process {process_id!r} is quarantined: {error}",
            hint="nothing was compensated and nothing is lost; it can go on after the fix",
        ) from error
    step = error if isinstance(error, StepError) else None
    raise ProcessFailedError(
        process_id,
        step.type if step else type(error).__name__,
        step.message if step else str(error),
    ) from error
