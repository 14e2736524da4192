"""A process from outside: its result, its story, and events for it."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from durabletask._codec import Shape
from durabletask._control import terminated
from durabletask._edge import EventObject
from durabletask._errors import (
    ProcessCancelledError,
    ProcessFailedError,
    ProcessQuarantinedError,
    StepError,
)
from durabletask._failure import Failures
from durabletask._info import HistoryEntry, ProcessInfo
from durabletask._model import Ending, Status

if TYPE_CHECKING:
    from durabletask._client import ProcessClient

T = TypeVar("T")


class ProcessHandle(Generic[T]):
    """One process, by its id. Cheap to make; holds nothing of the process."""

    __slots__ = ("_client", "_id", "_incarnation", "_shape")

    def __init__(
        self,
        client: "ProcessClient",
        process_id: str,
        shape: Shape,
        incarnation: int | None = None,
    ) -> None:
        self._client = client
        self._id = process_id
        self._shape = shape
        self._incarnation = incarnation

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
            ProcessCancelledError: It was cancelled, and its function let that pass.
            ProcessTerminatedError: It was ended from outside; with `output`.
            ProcessQuarantinedError: The process is set aside; fix the code first.
            UnknownProcessError: There is no such process; or the one that this
                handle was given for was purged or replaced, and its id has another.
            DecodeError: The result does not fit the function's return annotation.
            TimeoutError: It has not ended yet; the process goes on.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        async with asyncio.timeout(seconds):
            ending = await self._client.wait_ended(self._id, self._incarnation)
        if ending.status is Status.TERMINATED:
            raise terminated(self._id, ending, self._client.codec.view)
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

    @overload
    async def raise_event(
        self,
        name: str,
        payload: object = None,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None: ...
    @overload
    async def raise_event(
        self,
        name: EventObject,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None: ...
    async def raise_event(
        self,
        name: Any,
        payload: object = None,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None:
        """Send an event to the process; see `ProcessHost.raise_event`."""
        await self._client.raise_event(
            self._id, name, payload, event_id=event_id, connection=connection
        )

    # --- control ----------------------------------------------------------------------------

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the process, and every unfinished process below it, to cancel itself; durable.

        Cooperative: all its open waits raise ProcessCancelledError, once and
        recorded; a step in flight is let finish. The function may undo, end, or
        catch it and go on. One that was never started ends at once. A process
        that undoes its steps already finishes that; one that was asked
        before is not asked again.

        Args:
            reason: At most 16 Ki characters; the message of the error.

        Raises:
            UnknownProcessError: There is no such process.
            ProcessFinishedError: It has ended; nothing was written.
            ProcessBusyError: Another open transaction holds it; try again.
            StorageUnavailableError: Nothing was written; try again.
            StorageUnknownError: The answer was lost; try again.
        """
        await self._client.cancel_one(self._id, reason)

    async def terminate(self, reason: str | None = None, *, output: object = None) -> None:
        """End the process and every unfinished process below it, without running their code.

        Nothing is undone. A step in flight may still have its effect; it is
        not recorded.

        Args:
            reason: At most 16 Ki characters; in the message of the error that
                `result()` raises.
            output: A value with an exact JSON form, for whoever asks for the result.

        Raises:
            UnknownProcessError, ProcessFinishedError, ProcessBusyError,
            StorageUnavailableError, StorageUnknownError: As for `cancel`. One
                that was terminated before stays as it is, without an error.
            SerializationError: The output has no exact JSON form; nothing was written.
        """
        await self._client.terminate_one(self._id, reason, output)

    async def suspend(self, reason: str | None = None) -> None:
        """Let the process rest until `resume`: nothing of it runs, its events gather.

        A step in flight is let finish and recorded. Waits that fall due
        meanwhile are over when it is resumed. `cancel` takes effect then too;
        `terminate` at once.

        Args:
            reason: At most 16 Ki characters; shown in `info()`. A second one
                changes nothing.

        Raises:
            ProcessStateError: It is quarantined.
            UnknownProcessError, ProcessFinishedError, ProcessBusyError,
            StorageUnavailableError, StorageUnknownError: As for `cancel`.
        """
        await self._client.suspend_one(self._id, reason)

    async def resume(self) -> None:
        """Let a suspended process go on; one that is not suspended stays as it is.

        Raises:
            UnknownProcessError, ProcessFinishedError, ProcessBusyError,
            StorageUnavailableError, StorageUnknownError: As for `cancel`.
        """
        await self._client.resume_one(self._id)

    async def retry(self, *, from_key: str | None = None) -> None:
        """Let a failed or quarantined process go on, mostly after its code was mended.

        Put aside is only the outcome whose error ended it: what succeeded, and
        the failures that it handled, are recalled. Where that was the failure
        of a child, the child is retried as well; one that was cancelled,
        terminated or undone cannot be, but once it is purged the retry of its
        parent spawns it anew. A `proc.timeout` that the error left begins anew
        with all its time; calls that a `TaskGroup` has cancelled because of it
        go on where they were; a `deadline` of the process that has passed cancels
        it again. Once it was decided to undo, a retry goes on with that:
        failed undos run again. A quarantined process goes on with everything
        it has. What is put aside stays in `history()`, as `forgotten`.

        Args:
            from_key: Put aside everything recorded from the first record of
                this key on, in the order of `history()`; variables set since
                begin with their defaults again, transactions are made again.
                A child that is spawned again is the one that exists, with the
                input that it had, until that one is purged; an event that
                was sent to another process is not sent again.

        Raises:
            ProcessStateError: It has neither failed nor is it quarantined, or
                nothing is left to undo; nothing was written.
            InvalidArgumentError: It has recorded nothing under `from_key`.
            UnknownProcessError: There is no such process.
            ProcessBusyError, StorageUnavailableError, StorageUnknownError: As for `cancel`.
            StorageCorruptError: Its history is damaged.
        """
        await self._client.retry_one(self._id, from_key)

    async def purge(self, *, recursive: bool = True) -> int:
        """Remove the finished process with everything of it, for good.

        Args:
            recursive: Whether the finished processes below it go too; one that
                has not finished stays, with everything below it.

        Returns:
            How many processes were removed.

        Raises:
            ProcessStateError: It has not finished; nothing was written.
            UnknownProcessError: There is no such process.
            ProcessBusyError: Another open transaction holds it, or a host a
                terminated one; try again.
            StorageUnavailableError, StorageUnknownError: As for `cancel`.
        """
        return await self._client.purge_one(self._id, recursive=recursive)


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
    if ending.status is Status.CANCELLED and isinstance(error, ProcessCancelledError):
        raise error
    step = error if isinstance(error, StepError) else None
    raise ProcessFailedError(
        process_id,
        step.type if step else type(error).__name__,
        step.message if step else str(error),
    ) from error
