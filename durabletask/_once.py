"""A step that is never begun twice: its start is recorded before its function is called.

Everything else about it is a step's (`_steps`).
"""

from collections.abc import Callable, Coroutine
from typing import Any

from durabletask._errors import ProcessInterrupted, StepInterruptedError, StorageError
from durabletask._model import NO_INDEX, Checkpoint, Form, Kind
from durabletask._run import Run

_STARTED = b"null"  # that it is there says it all; the storage knows when


def begun_once(run: Run, key: str, body: Callable[[], Any]) -> Callable[[], Any]:
    """Return a body that records its start before it calls `body`.

    Where a start is recorded and no outcome, `body` may or may not have been
    called: that is the failure of the step, and `body` is not called.
    """

    async def once() -> Any:
        # Taken here and not before: where an outcome is recorded nobody comes here.
        if run.journal.take(Kind.START, key) is not None:
            raise _unknown(run, key)
        run.services.once.add((run.process_id, key))
        start = Checkpoint(Kind.START, key, NO_INDEX, Form.VALUE, _STARTED)
        try:
            outcome = await run.submit((start,))
        except StorageError as error:
            raise ProcessInterrupted(str(error)) from error
        run.check_interrupted()
        if run.held(outcome, start) is not start:
            raise _unknown(run, key)
        return await body()

    return once


async def watched(run: Run, key: str, step: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Make the step; until its outcome is recorded, a drain that leaves it behind names it."""
    try:
        return await step()
    finally:
        run.services.once.discard((run.process_id, key))


def _unknown(run: Run, key: str) -> StepInterruptedError:
    return StepInterruptedError(
        "StepInterruptedError",
        f"step {key!r} of process {run.process_id!r} was begun, and what became of it is not "
        "known; it runs at most once",
    )
