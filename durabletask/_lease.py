"""The host's right to write: how long it may trust it, and the storage's time.

The fence in the storage is what keeps records safe. Trust only keeps a host
that is cut off from starting steps that another host may be starting too.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from durabletask._clock import Clock
from durabletask._errors import (
    LeaseLostError,
    StorageFailedError,
    StorageRewoundError,
)
from durabletask._model import Lease
from durabletask._repeat import MAY_PASS, loudness
from durabletask._storage import ProcessStorage

_log = logging.getLogger("durabletask")

RENEWALS_PER_TTL = 3
SET_BACK = timedelta(seconds=60)
"""No answer takes so long: the storage's clock was set back, and to stand still would hang."""
RENEW_AGAIN_S = 0.5
TRUSTED_SHARE = 0.8
"""Of the time to live: the rest is for a step that is just starting, and for clock rates."""


class Trust:
    """How far a lease can be trusted, by the host's own monotonic clock."""

    __slots__ = (
        "_clock",
        "_latest",
        "_loop",
        "_now_at",
        "_read_s",
        "_timer",
        "_until_s",
        "_waiters",
        "holds",
    )

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._latest = datetime.min.replace(tzinfo=UTC)
        self._timer: asyncio.TimerHandle | None = None
        self._until_s: float | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.holds = True
        """False from the moment when a step that starts here could start elsewhere too."""

    def take(self, lease: Lease, asked_s: float) -> None:
        """Take in a lease as it was given or renewed.

        Args:
            lease: As the storage answered.
            asked_s: The monotonic clock when it was asked: the time to live
                counts from somewhere between the question and the answer, so
                from the question to be safe.
        """
        self.observe(lease.now_at)
        if lease.ttl_s is not None:
            self._until_s = asked_s + lease.ttl_s * TRUSTED_SHARE
            self.check()

    def observe(self, now_at: datetime) -> None:
        """Take in the storage's time from an answer; the host's monotonic clock may have slept."""
        self._now_at, self._read_s = now_at, self._clock.monotonic_s()
        if self._latest - now_at > SET_BACK:
            self._latest = now_at

    def regained(self) -> "asyncio.Future[None]":
        """Return a future that is set when the lease can be trusted again."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def check(self) -> None:
        """Withdraw trust when its time is over, give it back when the lease was renewed."""
        self.close()
        if self._until_s is None:
            return
        left_s = self._until_s - self._clock.monotonic_s()
        self.holds = left_s > 0
        if not self.holds:
            return
        # By a timer of its own: a renewal that hangs must not keep trust alive.
        self._timer = self._loop.call_later(left_s, self.check)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Look no more whether the time is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def now(self) -> datetime:
        """Return a lower bound of the storage's time: nothing that is due by it is early.

        The storage read its clock before its answer arrived, so at least as
        much time has passed there as here since.
        """
        passed_s = self._clock.monotonic_s() - self._read_s
        # Cut off and not rounded, or a delay could be over a microsecond early.
        now = self._now_at + timedelta(microseconds=int(passed_s * 1e6))
        # An answer that took long bounds less well than the one before it. That one is not
        # counted on from: the host's clock may be the faster one, and the error would grow.
        self._latest = max(self._latest, now)
        return self._latest


async def keep_renewed(
    storage: ProcessStorage,
    lease: Lease,
    trust: Trust,
    clock: Clock,
    on_broken: Callable[[Exception], None],
) -> None:
    """Renew a lease every third of its time, until it is lost or this is cancelled."""
    if lease.ttl_s is None:
        return
    regular_s = pause_s = lease.ttl_s / RENEWALS_PER_TTL
    again_s = RENEW_AGAIN_S
    while True:
        await asyncio.sleep(pause_s)
        asked_s = clock.monotonic_s()
        try:
            trust.take(await storage.renew(lease), asked_s)
            pause_s, again_s = regular_s, RENEW_AGAIN_S
        except MAY_PASS as error:
            # Sooner again, since trust ends before the second next regular renewal.
            pause_s = min(again_s, regular_s)
            again_s = pause_s * 2
            _log.log(loudness(error), "lease of host %s was not renewed: %s", lease.host_id, error)
        except (LeaseLostError, StorageRewoundError, StorageFailedError) as error:
            on_broken(error)
            return
        except Exception as error:  # noqa: BLE001  (a storage that breaks its contract is failed)
            on_broken(contract_broken(error))
            return


def contract_broken(error: Exception) -> StorageFailedError:
    """Return what a host makes of an exception that no storage may raise.

    The outcome is unknown, and no error of a driver may reach user code, which
    would compensate for it.
    """
    failed = StorageFailedError(f"the storage raised {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
