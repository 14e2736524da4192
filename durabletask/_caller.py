"""Who may make a durable call: a task of the process itself, on its loop, outside the steps.

Refuses to know what a call is and what it records.
"""

from asyncio import current_task
from contextvars import ContextVar
from threading import get_ident
from typing import Protocol

from durabletask._errors import NestedCallError, ProcessInterrupted, WrongContextError
from durabletask._lifecycle import Lifecycle


class InStep(Protocol):
    """The body of a step, as far as it matters here."""

    @property
    def run(self) -> Lifecycle: ...


INSIDE: ContextVar[Lifecycle | InStep | None] = ContextVar("durabletask_inside", default=None)
"""What the current task is inside of: a run, or the body of a step. A task that is created
there inherits it, and that is all that tells whose it is."""


def check_caller(run: Lifecycle, key: str) -> None:
    """Refuse a call that is not made by the process itself, between its steps, while it runs.

    Raises:
        ProcessInterrupted: The loop shuts down; or steps were nested, and the
            process is quarantined.
        WrongContextError: Another loop, thread or process, or after the end.
    """
    check_owner(run, key)
    run.check_not_ended(key)
    if INSIDE.get() is not run:
        raise run.quarantine(
            NestedCallError(
                f"key {key!r} was used inside the body of a step",
                hint="return from the step first; steps do not nest",
            )
        )


def check_owner(run: Lifecycle, key: str) -> None:
    """Refuse a call from another loop or thread, or in a task that is not of this process.

    Raises:
        ProcessInterrupted: The loop shuts down.
        WrongContextError: The call is somebody else's; nothing of the process has changed.
    """
    services = run.services
    # On this thread, and in a task of this loop: the same as asking for the running loop,
    # which asks for the pid each time.
    if get_ident() != services.thread or current_task(services.loop) is None:
        raise WrongContextError(
            f"key {key!r} of process {run.process_id!r} was used on another loop or thread",
            hint="make durable calls in the process function or in tasks that it creates",
        )
    if services.writer.task.cancelling():
        raise ProcessInterrupted
    inside = INSIDE.get()
    if inside is None:
        raise WrongContextError(
            f"key {key!r} of process {run.process_id!r} was used in a task that no process "
            "has created",
            hint="make durable calls in the process function or in tasks that it creates, with "
            "their context variables; from anywhere else raise an event",
        )
    owner = inside if isinstance(inside, Lifecycle) else inside.run
    if owner is not run:
        raise WrongContextError(
            f"key {key!r} of process {run.process_id!r} was used in process {owner.process_id!r}",
            hint="a Process is for its own function only; send the other one an event",
        )
