"""When a failed step is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabletask import RetryPolicy
from durabletask.errors import InvalidArgumentError

FAILED = RuntimeError("no")


def test_waits_grow_by_the_factor_up_to_the_cap() -> None:
    """S1.03, S2.05 Attempts, first wait, multiplier and longest wait are as named."""
    policy = RetryPolicy(attempts_max=6, delay_s=1, factor=3, delay_max_s=20)
    waits = [policy.wait_s(n, FAILED, 0, 0) for n in range(1, 7)]
    assert waits == [1, 3, 9, 20, 20, None]


def test_for_ever_means_for_ever() -> None:
    """S0.03 With attempts_max=None a constant wait never ends, not after a million attempts."""
    policy = RetryPolicy(attempts_max=None, delay_s=5, factor=1, delay_max_s=5)
    assert policy.wait_s(1, FAILED, 0, 0) == 5
    assert policy.wait_s(1_000_000, FAILED, 1e9, 0.99) == 5


def test_a_growing_wait_does_not_overflow() -> None:
    """S2.05 Far beyond the range of a float the wait is the longest one."""
    assert RetryPolicy(attempts_max=None, factor=10).wait_s(10_000, FAILED, 0, 0) == 60


def test_named_errors_end_it_at_once() -> None:
    """S0.04 `give_up_on` and `retry_if` end the attempts; other errors do not."""
    policy = RetryPolicy(give_up_on=(KeyError,), retry_if=lambda error: "later" in str(error))
    assert policy.wait_s(1, KeyError("later"), 0, 0) is None
    assert policy.wait_s(1, ValueError("never"), 0, 0) is None
    assert policy.wait_s(1, ValueError("later"), 0, 0) == 1


def test_total_time_is_bounded() -> None:
    """S3.07 No attempt begins later than `timeout_s` after the first."""
    policy = RetryPolicy(attempts_max=None, delay_s=10, factor=1, timeout_s=30)
    assert policy.wait_s(2, FAILED, 20, 0) == 10
    assert policy.wait_s(3, FAILED, 20.5, 0) is None


@given(random=st.floats(0, 1, exclude_max=True), jitter=st.floats(0, 1))
def test_jitter_only_shortens(random: float, jitter: float) -> None:
    """Jitter spreads the waits below the plain one and never above it."""
    wait = RetryPolicy(delay_s=8, jitter=jitter).wait_s(1, FAILED, 0, random)
    assert wait is not None
    assert 8 * (1 - jitter) - 1e-9 <= wait <= 8


@pytest.mark.parametrize(
    "numbers",
    [
        {"attempts_max": 0},
        {"delay_s": -1.0},
        {"delay_s": float("nan")},
        {"factor": 0.5},
        {"delay_max_s": float("inf")},
        {"jitter": 1.5},
        {"timeout_s": 0.0},
    ],
)
def test_impossible_numbers_are_refused(numbers: dict[str, float]) -> None:
    """A policy that cannot be meant is refused when it is made."""
    with pytest.raises(InvalidArgumentError):
        RetryPolicy(**numbers)  # type: ignore[arg-type]
