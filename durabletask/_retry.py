"""When a failed step is tried again: a table of numbers and one pure decision.

No clock, no randomness, no waiting of its own: elapsed time and a random
number come in as arguments, a delay or a "give up" goes out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from durabletask._errors import InvalidArgumentError

WAIT_MAX_S = 1e9
"""Thirty years: longer waits leave the calendar and help nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, how long and after which errors a step is tried again.

    The waits between attempts are durable: a crash during one neither
    restarts nor shortens it.

    Attributes:
        attempts_max: Attempts in all, the first included; None for ever.
        delay_s: Wait after the first failure.
        factor: Each further wait is so many times the one before.
        delay_max_s: No wait is longer.
        jitter: Each wait is shortened by up to this fraction of itself, at random.
        timeout_s: Of all attempts and waits together: none begins later than this after the
            first one began, and one in flight then is cancelled and fails, as by the
            step's `timeout=`. An undo and a transaction in flight go on.
        give_up_on: Exception classes after which there is no further attempt.
        retry_if: Asked with the exception; False means no further attempt.

    Raises:
        InvalidArgumentError: A number is out of range.
    """

    attempts_max: int | None = 5
    delay_s: float = 1.0
    factor: float = 2.0
    delay_max_s: float = 60.0
    jitter: float = 0.0
    timeout_s: float | None = None
    give_up_on: tuple[type[BaseException], ...] = ()
    retry_if: Callable[[Exception], bool] | None = None

    def __post_init__(self) -> None:
        if self.attempts_max is not None and self.attempts_max < 1:
            raise InvalidArgumentError(
                f"attempts_max is {self.attempts_max}",
                hint="1 means no retry, None means for ever",
            )
        for name, low in (("delay_s", 0.0), ("factor", 1.0), ("delay_max_s", 0.0), ("jitter", 0.0)):
            number = getattr(self, name)
            if not math.isfinite(number) or number < low:
                raise InvalidArgumentError(f"{name} is {number}; a finite number from {low} up")
        if self.jitter > 1:
            raise InvalidArgumentError(f"jitter is {self.jitter}; a fraction from 0 to 1")
        if not isinstance(self.give_up_on, tuple) or not all(
            isinstance(cls, type) and issubclass(cls, BaseException) for cls in self.give_up_on
        ):
            raise InvalidArgumentError(
                f"give_up_on is {self.give_up_on!r}",
                hint="a tuple of exception classes: give_up_on=(ValueError,)",
            )
        if self.retry_if is not None and not callable(self.retry_if):
            raise InvalidArgumentError(
                f"retry_if is {self.retry_if!r}", hint="a function that takes the exception"
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidArgumentError(f"timeout_s is {self.timeout_s}; more than 0, or None")

    def wait_s(
        self, attempt: int, error: Exception, elapsed_s: float, random: float
    ) -> float | None:
        """Return how long to wait after a failed attempt, or None to give up.

        Args:
            attempt: Which attempt failed, from 1.
            error: How.
            elapsed_s: Time since the first attempt began.
            random: From 0 up to 1, for the jitter.
        """
        if self.attempts_max is not None and attempt >= self.attempts_max:
            return None
        if isinstance(error, self.give_up_on):
            return None
        if self.retry_if is not None and not self.retry_if(error):
            return None
        # factor ** n overflows after a few hundred attempts; the cap took over long before.
        exponent = attempt - 1
        too_large = exponent * math.log(self.factor) > 700
        grown = math.inf if too_large else self.delay_s * self.factor**exponent
        wait = min(grown, self.delay_max_s, WAIT_MAX_S) if self.delay_s else 0.0
        wait *= 1 - self.jitter * random
        if self.timeout_s is not None and elapsed_s + wait > self.timeout_s:
            return None
        return wait
