"""What is asked of a process from outside, as the records that cross the seam.

Pure. Who asks, and what becomes of the answer, is told in `_requests`.
"""

from typing import Any

import msgspec

from durabletask._codec import Shape
from durabletask._errors import ProcessCancelledError, ProcessTerminatedError
from durabletask._failure import Failures
from durabletask._model import Action, Control, Ending, Form, Status
from durabletask._notes import TerminatedNote, encode

NULL = b"null"


def to_cancel(process_id: str, request_id: str, reason: str | None, failures: Failures) -> Control:
    """Return the request to cancel a process; one that was never started ends with it."""
    error = ProcessCancelledError(reason or "the process was cancelled")
    return Control(
        process_id=process_id,
        action=Action.CANCEL,
        request_id=request_id,
        reason=msgspec.json.encode(reason),
        ending=Ending(Status.CANCELLED, Form.ERROR, failures.encode(error)),
    )


def to_terminate(
    process_id: str, request_id: str, reason: str | None, output: bytes = NULL
) -> Control:
    """Return the request to end a process at once; `output` is an encoded value."""
    note = TerminatedNote(reason, msgspec.Raw(output))
    return Control(
        process_id=process_id,
        action=Action.TERMINATE,
        request_id=request_id,
        ending=Ending(Status.TERMINATED, Form.VALUE, encode(note)),
    )


def to_suspend(process_id: str, request_id: str, reason: str | None) -> Control:
    """Return the request to let a process rest until it is resumed."""
    return Control(
        process_id=process_id,
        action=Action.SUSPEND,
        request_id=request_id,
        reason=msgspec.json.encode(reason),
    )


def to_resume(process_id: str, request_id: str) -> Control:
    """Return the request to let a suspended process go on."""
    return Control(process_id=process_id, action=Action.RESUME, request_id=request_id)


def terminated(process_id: str, ending: Ending, view: Shape) -> ProcessTerminatedError:
    """Return what tells that a process was ended from outside, with what was given as output."""
    note = msgspec.json.decode(ending.payload, type=TerminatedNote)
    text = f": {note.reason}" if note.reason else ""
    error = ProcessTerminatedError(process_id, f"process {process_id!r} was terminated{text}")
    error.output = view.decode(bytes(note.output))
    return error


def text_of(reason: bytes | None) -> str | None:
    """Return the reason that was given with a request, or None."""
    decoded: Any = None if reason is None else msgspec.json.decode(reason)
    return decoded if isinstance(decoded, str) else None
