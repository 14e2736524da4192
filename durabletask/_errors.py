"""The exception tree.

Imports nothing of ours. Every message names the ids and values involved; a
hint names the change to make. Interrupts are the one exception to the tree:
they are `asyncio.CancelledError`, so that no `except Exception` in user code
can take a deployment for a failure.
"""

import asyncio
from typing import TypeVar


class DurableTaskError(Exception):
    """Base of every error of this library.

    Attributes:
        hint: The change that makes the error go away, or None where the
            message says it all.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.hint = hint


# --- what a step or a wait can raise into a process function ---------------------------


class StepError(DurableTaskError):
    """A step failed, and this is its recorded failure.

    Raised on the first run and, equal, on every later one.

    Attributes:
        type: Name of the class of the original exception; only a name, it
            is never resolved.
        message: Its message, at most 16 KiB.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message


class StepTimeoutError(StepError, TimeoutError):
    """An attempt of a step took longer than its `timeout=`."""


class StepInterruptedError(StepError):
    """An `at_most_once` step had started when its host died; it was not run again."""


class EventTimeoutError(DurableTaskError, TimeoutError):
    """No event arrived before the recorded deadline of the wait."""


class ProcessCancelledError(DurableTaskError):
    """The process was cancelled from outside; the message is the reason given.

    Raised once in the process function, at its durable waits or else at its
    next new durable call, and recorded there. What it does then is up to it:
    undo by hand, end by letting it pass, or catch it and go on.
    """


class SerializationError(DurableTaskError, ValueError):
    """A value has no exact JSON form; the message holds the path to the part at fault.

    At the edge (`spawn`, `raise_event`) nothing was written. For the result
    of a step it is recorded as the step's outcome, because the effect has
    happened and must not be repeated.
    """


class LimitExceededError(SerializationError):
    """A value, an id, a key or a count is beyond its limit; nothing was written."""


# --- mistakes in the program: they quarantine the process, user code never sees them -----


class ProgramError(DurableTaskError):
    """Base of the mistakes in code that quarantine a process instead of failing it."""


class KeyConflictError(ProgramError):
    """One key was used twice in one run."""


class NonDeterminismError(ProgramError):
    """The code asks for something else than what was recorded under a key."""


class DecodeError(ProgramError):
    """A recorded value does not fit the type that the code asks for."""


class NestedCallError(ProgramError):
    """A durable call was made inside the body of a step."""


# --- what callers outside a process meet -------------------------------------------------


class ProcessError(DurableTaskError):
    """Base of the errors about one process.

    Attributes:
        process_id: The process.
    """

    def __init__(self, process_id: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.process_id = process_id


class UnknownProcessError(ProcessError, LookupError):
    """No process has this id; nothing was written."""


class ProcessExistsError(ProcessError):
    """The id belongs to a process of another function or input; nothing was written."""


class ProcessFinishedError(ProcessError):
    """The process has ended and takes nothing more; nothing was written."""


class ProcessStateError(ProcessError):
    """What was asked is not possible as the process stands; nothing was written.

    The message names its status and what is possible in it.
    """


class MailboxFullError(ProcessError):
    """The process has too many unconsumed events; this one was not stored."""


class ProcessFailedError(ProcessError):
    """The process function raised; `__cause__` is the recorded error.

    Attributes:
        type: Name of the class of the exception that left the function.
        message: Its message.
    """

    def __init__(self, process_id: str, type: str, message: str) -> None:
        super().__init__(process_id, f"process {process_id!r} failed with {type}: {message}")
        self.type = type
        self.message = message


class ProcessQuarantinedError(ProcessError):
    """The process is set aside because of a mistake in code or a damaged record.

    Nothing was compensated and nothing is lost: it goes on after the fix.
    """


class ProcessTerminatedError(ProcessError):
    """The process was ended from outside, without any more of its code being run.

    Attributes:
        output: What was given as its output, as plain JSON values; None in a parent
            that waits for it.
    """

    output: object = None


class UnregisteredProcessError(DurableTaskError, LookupError):
    """The function is not registered on this host; nothing was written."""


class RegistrationError(DurableTaskError, TypeError):
    """The function or the name cannot be registered."""


class HostStateError(DurableTaskError, RuntimeError):
    """The host cannot do this in its present state (not started, stopped, failed)."""


class InvalidIdError(DurableTaskError, ValueError):
    """An id, key or name breaks the rule for names; nothing was written."""


class InvalidArgumentError(DurableTaskError, TypeError):
    """An argument of an API call cannot be used; nothing was written."""


class WrongContextError(DurableTaskError, RuntimeError):
    """A `Process` was used outside its own run: other process, task, thread, loop, or too late."""


# --- the storage seam ---------------------------------------------------------------------


class StorageError(DurableTaskError):
    """Base of what a storage raises; a driver's own exception never crosses the seam."""


class StorageUnavailableError(StorageError):
    """The storage refused for now; certainly nothing was written, and a repeat may work."""


class ProcessBusyError(StorageUnavailableError):
    """One process cannot be written now; the others can, and a repeat may work.

    Somebody's open transaction holds it, or what is stored of it cannot be read.
    """


class StorageUnknownError(StorageError):
    """The answer was lost: the write may or may not have happened. Repeat the same write.

    Also where a part of a batch was carried out and the rest was not.
    """


class StorageFailedError(StorageError):
    """The storage object is poisoned for good (failed fsync, folder replaced).

    What was acknowledged is safe; nothing further will be. Start anew.
    """


class StorageBusyError(StorageError):
    """Another host holds this storage exclusively; nothing was touched."""


class StorageFormatError(StorageError):
    """The stored format is newer than this code, or it is no store of ours; nothing was touched."""


class StorageCorruptError(StorageError):
    """Acknowledged data is damaged; the message names the place. Nothing was touched."""


class StorageAccessError(StorageError):
    """The storage cannot be used as it is set up; the message says what to change.

    A wrong password, missing rights, no such database, a server that only
    reads. Nothing was written, and a repeat is refused until somebody acts.
    """


class StorageRewoundError(StorageError):
    """The storage has gone back in time: it does not hold what it had acknowledged.

    A backup was restored, or a replica without the last writes took over. The
    host drops what it has in memory and starts over from what is stored;
    nothing of this call was written.
    """


class LeaseLostError(StorageError):
    """Another host fenced this one; nothing of the batch was written, nor will be."""


# --- interrupts ---------------------------------------------------------------------------


class ProcessInterrupted(asyncio.CancelledError):
    """The run unwinds without recording anything: drain, lost lease, parking, quarantine.

    Let it pass. Whatever an interrupted run returns or raises is thrown away.
    """


# --- told of a whole, where a part of it is at fault ---------------------------------------

V = TypeVar("V", SerializationError, DecodeError)


def about(what: str, problem: V) -> V:
    """Return the error of a value with what holds it in front, and its hint said once."""
    text = str(problem).removesuffix(f"\nhint: {problem.hint}")
    return type(problem)(f"{what}: {text}", hint=problem.hint)
