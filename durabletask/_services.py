"""What a host lends to all its runs: made once a session, known to every run."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

from durabletask._callable import Callables
from durabletask._codec import Codec, Shape
from durabletask._context import Travelling
from durabletask._failure import Failures
from durabletask._lease import Trust
from durabletask._limits import Limits
from durabletask._model import Ending
from durabletask._observe import Observer
from durabletask._registry import Registry
from durabletask._timers import Timers
from durabletask._writer import Writer


@dataclass(frozen=True, slots=True)
class Services:
    """What a host lends to all its runs."""

    host_id: str
    loop: asyncio.AbstractEventLoop
    thread: int
    writer: Writer
    timers: Timers
    trust: Trust
    now: Callable[[], datetime]
    monotonic_s: Callable[[], float]
    random: Random
    registry: Registry
    codec: Codec
    any_shape: Shape
    failures: Failures
    callables: Callables
    limits: Limits
    travelling: Travelling
    threads: Executor
    observers: tuple[Observer, ...]
    on_interrupt: Callable[[Any], None]
    on_left: Callable[[Any, "asyncio.Task[Ending | None]"], None]
    once: set[tuple[str, str]] = field(default_factory=set)
    """The at_most_once steps in flight, by process_id and key."""
