"""What a host tells those who watch it: metrics, tracing, tests."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from durabletask._model import Kind, Status

_log = logging.getLogger("durabletask")


@dataclass(frozen=True, slots=True)
class ProcessChange:
    """A process began a run on this host, or left it.

    Attributes:
        status: RUNNING when a run begins; what it has become when it ends;
            None when it was interrupted.
        resumed: Whether anything had been recorded before this run.
    """

    process_id: str
    name: str
    status: Status | None
    resumed: bool


class Phase(StrEnum):
    """Where an attempt of a step is."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StepChange:
    """An attempt of a step started or ended. Recalled steps are not told.

    Attributes:
        error: Name of the class of what it raised; never the message, which may hold secrets.
    """

    process_id: str
    kind: Kind
    key: str
    index: int
    attempt: int
    phase: Phase
    error: str | None = None


class Observer(Protocol):
    """Called on the host's loop; must not block. What it raises is logged and goes no further."""

    def on_process(self, change: ProcessChange) -> None:
        """Hear of a run that began or ended."""
        ...

    def on_step(self, change: StepChange) -> None:
        """Hear of an attempt that started or ended."""
        ...


C = TypeVar("C", ProcessChange, StepChange)


def tell(hooks: Iterable[Callable[[C], None]], change: C) -> None:
    """Call each hook with a change."""
    for hook in hooks:
        try:
            hook(change)
        except Exception:  # noqa: BLE001  (an observer must never fail a process)
            _log.exception("observer %r raised", hook)


class About(Protocol):
    """The run of which something is told."""

    process_id: str
    name: str


def tell_process(
    observers: Sequence[Observer], run: About, status: Status | None, resumed: bool
) -> None:
    """Tell all observers, if there are any, of a run that began or ended."""
    if observers:
        change = ProcessChange(run.process_id, run.name, status, resumed)
        tell((observer.on_process for observer in observers), change)
