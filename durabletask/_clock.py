"""Time, and the only module that reads the system's clocks.

Everything else takes a `Clock`, so that a test can make 365 days pass in a
millisecond. Two readings, two uses: `now()` is wall time and goes into
records; `monotonic_s()` measures durations and is never stored.
"""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from.

    Attributes:
        recheck_s: How long a waiter may trust `monotonic_s()` before it looks
            at `now()` again. A laptop that sleeps stops its monotonic clock.
    """

    recheck_s: float

    def now(self) -> datetime:
        """Return the wall time, aware, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never go back, from an arbitrary origin."""
        ...


class SystemClock:
    """The clocks of the machine."""

    __slots__ = ()
    recheck_s = 30.0

    def now(self) -> datetime:
        """Return the wall time, aware, UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return the monotonic clock."""
        return time.monotonic()
