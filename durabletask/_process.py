"""What a process function holds: the durable calls, and what the process says of itself."""

import logging
from typing import Any

import durabletask._steps as _steps
from durabletask._limits import check_name
from durabletask._process_children import ChildCalls
from durabletask._process_map import MapCalls
from durabletask._process_state import StateCalls
from durabletask._process_steps import StepCalls
from durabletask._process_waits import WaitCalls

_log = logging.getLogger("durabletask.process")


class Process(StepCalls, MapCalls, WaitCalls, ChildCalls, StateCalls):
    """The process, as its function sees it.

    Every durable call is recorded under a key of 1 to 255 bytes of UTF-8. When
    its await returns or raises, the record survives any crash; a later run gets
    the recorded outcome without running anything.
    """

    __slots__ = ()

    @property
    def id(self) -> str:
        """The process_id."""
        return self._run.process_id

    @property
    def resuming(self) -> bool:
        """Whether the run still recalls: it has made no new call yet, and not all recorded ones."""
        return self._run.journal.recalling or self._run.collecting

    @property
    def log(self) -> "ProcessLogger":
        """A logger that is silent while the run is resuming, so that no line comes twice."""
        return ProcessLogger(_log, {"process_id": self.id}, self)

    def idempotency_key(self, key: str) -> str:
        """Return what to hand to the outside world to have the effect of `key` only once."""
        return _steps.idempotency_key(self._run, check_name("key", key))


class ProcessLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs with the process_id, unless the process is recalling what it has logged before."""

    def __init__(self, logger: logging.Logger, extra: dict[str, Any], process: Process) -> None:
        super().__init__(logger, extra)
        self._process = process

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (the name is logging's)
        """Return whether a message of the level would be logged now."""
        return not self._process.resuming and super().isEnabledFor(level)
