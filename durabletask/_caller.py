"""Who may make a durable call: a task of the process itself, on its loop, outside the steps.

Refuses to know what a call is and what it records.
"""

import asyncio
from asyncio import current_task
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Protocol

from durabletask._errors import NestedCallError, ProcessInterrupted, WrongContextError
from durabletask._services import Resident, Services

STEP: ContextVar["InStep | None"] = ContextVar("durabletask_step", default=None)
"""The step in whose body the current task runs."""


class Caller(Resident, Protocol):
    """A run, as far as it matters here."""

    @property
    def services(self) -> Services: ...

    def quarantine(self, error: Exception) -> ProcessInterrupted:
        """Set the process aside because of a mistake in code; return what to raise."""
        ...


class InStep(Protocol):
    """What `STEP` holds."""

    @property
    def run(self) -> Caller: ...


def check_caller(run: Caller, key: str) -> None:
    """Refuse a call from another loop or thread, or from inside the body of a step.

    Raises:
        ProcessInterrupted: The loop shuts down; or steps were nested, and the
            process is quarantined.
        WrongContextError: Another loop, thread or process.
    """
    services = run.services
    # On this thread, and in a task of this loop: the same as asking for the running loop,
    # which asks for the pid each time.
    task = current_task(services.loop)
    if get_ident() != services.thread or task is None:
        raise WrongContextError(
            f"key {key!r} of process {run.process_id!r} was used on another loop or thread",
            hint="make durable calls in the process function or in tasks that it creates",
        )
    if services.writer.task.cancelling():
        raise ProcessInterrupted
    if task is not run.task:
        _check_owner(run, key, task)
    step = STEP.get()
    if step is None:
        return
    if step.run is not run:
        raise WrongContextError(
            f"key {key!r} of process {run.process_id!r} was used inside a step of process "
            f"{step.run.process_id!r}",
            hint="a Process is for its own function only; send the other one an event",
        )
    raise run.quarantine(
        NestedCallError(
            f"key {key!r} was used inside the body of a step",
            hint="return from the step first; steps do not nest",
        )
    )


def _check_owner(run: Caller, key: str, task: "asyncio.Task[Any]") -> None:
    """Refuse a call in another process's function; its tasks are named after it."""
    other = run.services.runs.get(task.get_name())
    if other is not None and other is not run and other.task is task:
        raise WrongContextError(
            f"key {key!r} of process {run.process_id!r} was used in process {other.process_id!r}",
            hint="a Process is for its own function only; send the other one an event",
        )
