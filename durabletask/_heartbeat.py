"""What a step in flight says of itself, for its next attempt and for whoever looks on.

Responsible for recording it from the loop and from a step's thread. Refuses to
know what a step is and who reads it (`_steps`).
"""

import asyncio
from collections.abc import Awaitable, Generator
from concurrent.futures import CancelledError, Future
from threading import get_ident
from typing import Any

from durabletask._errors import ProcessInterrupted, StorageError
from durabletask._model import Checkpoint
from durabletask._run import Run

LOOP_LOOK_S = 1.0
"""How often a thread that waits for its record looks whether there is still a loop to make it."""


class _Said(Awaitable[None]):
    """What is left to await after a thread has waited: nothing."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


def say(run: Run, checkpoint: Checkpoint) -> Awaitable[None]:
    """Record what a step says; off the loop, wait for that here and now.

    Raises:
        ProcessInterrupted: The run unwinds.
    """
    if get_ident() == run.services.thread:
        return _record(run, checkpoint)
    _wait_recorded(run, checkpoint)
    return _Said()


async def _record(run: Run, checkpoint: Checkpoint) -> None:
    run.check_interrupted()
    # Not as a durable call, which outlasts a cancellation: this is the inside of a step, and the
    # timeout that cancels it must not wait. The unit is written all the same.
    try:
        outcome = await run.submit((checkpoint,))
    except asyncio.CancelledError:
        run.check_interrupted()
        raise
    except StorageError as error:
        raise ProcessInterrupted(str(error)) from error
    run.held(outcome, checkpoint)


def _wait_recorded(run: Run, checkpoint: Checkpoint) -> None:
    loop = run.services.loop
    record = _record(run, checkpoint)
    try:
        recorded: Future[None] = asyncio.run_coroutine_threadsafe(record, loop)
    except RuntimeError as error:
        record.close()
        raise ProcessInterrupted("the host's loop is closed") from error
    while True:
        try:
            return recorded.result(LOOP_LOOK_S)
        except CancelledError:  # an interrupt is one for asyncio, and loses its class on the way
            raise ProcessInterrupted from None
        except TimeoutError:
            if loop.is_closed():
                raise ProcessInterrupted("the host's loop is closed") from None
