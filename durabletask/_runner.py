"""Runs one process until it ends or is interrupted, and unwinds it when it must."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import durabletask._compensation as _compensation
from durabletask._caller import INSIDE
from durabletask._culprits import with_culprits
from durabletask._errors import DecodeError, ProcessQuarantinedError, SerializationError
from durabletask._failure import was_cancelled
from durabletask._model import Ending, Form, Status
from durabletask._process import Process
from durabletask._registry import Definition
from durabletask._run import Run
from durabletask._steps import OUTCOMES

_log = logging.getLogger("durabletask")

UNWIND_PAUSE_S = 0.05
UNWIND_PAUSE_MAX_S = 1.0
UNWIND_LOUD_S = 5.0
"""After so long, code that swallows its cancellation is named in the log."""

KEYS_NAMED_MAX = 10


async def execute(run: Run, definition: Definition) -> Ending | None:
    """Run the process function and record how it ended.

    Returns:
        How the process has ended; None if the run was interrupted, in which
        case whatever the function returned or raised is thrown away.
    """
    # One coroutine around the function and not two, and its arguments kept by nobody else:
    # a host may hold a hundred thousand of these.
    INSIDE.set(run)
    ending = None
    raised: BaseException | None = None
    body = _begin(run, definition)
    if body is not None and _compensation.is_decided(run):
        ending = await _compensation.carry_on(run, body)
    elif body is not None:
        try:
            value = await body
        except OUTCOMES as error:
            raised = error
        except (KeyboardInterrupt, SystemExit) as error:
            run.leave_program(error)
        else:
            ending = _returned(run, definition, value)
    if raised is not None:
        if run.undos:
            ending = await _compensation.begin(run, raised)
            if ending is not None:
                _warn_never_asked(run)
        if ending is None:
            ending = _raised(run, raised)
        raised = None  # its traceback holds this frame
    run.unwound = True
    if run.fatal is not None:
        raise run.fatal
    if run.quarantine_error is not None:
        ending = _set_aside(run, run.quarantine_error)
    elif run.outside is not None and run.outside.restart is not None:
        if not await run.begin_anew():
            run.outside.restart = None  # refused: it is given back as it is
        return None
    if ending is None or not await run.conclude(ending):
        return None
    return ending


def _begin(run: Run, definition: Definition) -> Coroutine[Any, Any, Any] | None:
    """Call the process function; None if its process is to be set aside at once."""
    input = run.take_input()
    if run.quarantine_error is not None:
        return None
    try:
        args, kwargs = definition.signature.decode(input)
    except DecodeError as error:
        run.quarantine(error)
        return None
    return definition.fn(Process(run), *args, **kwargs)


def _set_aside(run: Run, problem: Exception) -> Ending:
    _log.error(
        "process %s is quarantined: %s",
        ascii(run.process_id),
        type(problem).__name__,
        extra={"process_id": run.process_id, "process_name": run.name},
    )
    return quarantined(run, problem)


def _raised(run: Run, error: BaseException) -> Ending | None:
    if not run.end():
        return None
    _warn_never_asked(run)
    status = Status.CANCELLED if was_cancelled(error) else Status.FAILED
    payload = with_culprits(run.services.failures.encode(error), error)
    return Ending(status, Form.ERROR, payload)


def _returned(run: Run, definition: Definition, value: object) -> Ending | None:
    if run.interrupted:
        return None
    try:
        payload = definition.signature.returns.encode(value)
    except SerializationError as error:
        # The work is done; failing it would compensate for a mistake in a type.
        run.quarantine(error)
        return None
    run.end()
    _warn_never_asked(run)
    return Ending(Status.COMPLETED, Form.VALUE, payload)


def _warn_never_asked(run: Run) -> None:
    if not run.journal.unasked:
        return
    # What was cancelled has no outcome to lose, and a task that a TaskGroup cancels before it has
    # started never asks for it.
    lost = [held for held in run.journal.never_asked() if held.form is not Form.CANCELLED]
    if lost:
        keys = [f"{held.kind.value} {held.key!r}" for held in lost]
        _log.warning(
            "process %s ended without asking for what it had recorded: %s%s. "
            "A renamed key runs its step again.",
            ascii(run.process_id),
            ", ".join(keys[:KEYS_NAMED_MAX]),
            f" and {len(keys) - KEYS_NAMED_MAX} more" if len(keys) > KEYS_NAMED_MAX else "",
            extra={"process_id": run.process_id, "process_name": run.name},
        )


async def unwind(run: Run) -> None:
    """Cancel an interrupted run's task, again and again, until user code has let go.

    Not at once, since the interrupt has ended its durable waits and it may be
    unwinding already; and less and less often. Either would cut off what user
    code does on its way out, such as rolling back a transaction of its own.
    """
    task = run.task
    pause_s, waited_s = UNWIND_PAUSE_S, 0.0
    while task is not None and not task.done() and not run.unwound:
        if waited_s or not run.was_waiting:
            task.cancel()
        await asyncio.wait([task], timeout=pause_s)
        if waited_s < UNWIND_LOUD_S <= waited_s + pause_s:
            _log.error(
                "process %s (%s) swallows its cancellation and does not end; nothing that it "
                "does is recorded. Let asyncio.CancelledError pass.",
                ascii(run.process_id),
                ascii(run.name),
                extra={"process_id": run.process_id, "process_name": run.name},
            )
        waited_s += pause_s
        pause_s = min(pause_s * 2, UNWIND_PAUSE_MAX_S)


def quarantined(run: Run, error: BaseException) -> Ending:
    """Return the last word on a process that is set aside."""
    return Ending(Status.QUARANTINED, Form.ERROR, run.services.failures.encode(error))


def deadly(process_id: str, deaths: int) -> ProcessQuarantinedError:
    """Return the error under which a process is set aside that hosts die of."""
    return ProcessQuarantinedError(
        process_id,
        f"{deaths} hosts in a row died while they ran it, and nothing was recorded in between",
        hint="find what ends the program (memory, a crash in C code, os._exit), then retry()",
    )


def damaged(process_id: str, damage: str) -> ProcessQuarantinedError:
    """Return the error under which a process with damaged records is set aside."""
    return ProcessQuarantinedError(process_id, f"the stored history is damaged: {damage}")
