"""What a host was made with, for each of its sessions."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from durabletask._callable import Callables
from durabletask._clock import Clock
from durabletask._codec import Codec
from durabletask._context import Travelling
from durabletask._failure import Failures
from durabletask._limits import Limits
from durabletask._model import Ending
from durabletask._observe import Observer
from durabletask._registry import Registry
from durabletask._retry import RetryPolicy
from durabletask._storage import ProcessStorage


@dataclass(frozen=True, slots=True)
class Config:
    """What a host was made with and a session needs."""

    storage: ProcessStorage
    registry: Registry
    codec: Codec
    failures: Failures
    callables: Callables
    limits: Limits
    clock: Clock
    random: Random
    retry: RetryPolicy | None
    observers: tuple[Observer, ...]
    label: str
    poll_s: float
    travelling: Travelling
    on_left: Callable[[str, int, Ending | None], None]
