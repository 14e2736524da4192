"""A rate-limited API: it says how long to wait, and the wait is durable.

python samples/patterns/rate_limit.py
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar, TypeVarTuple

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.testing import VirtualClock, run_virtual

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class TooManyRequestsError(Exception):
    """As a status 429: come again, but not before so many seconds have passed."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class Api:
    """Stands for the outside world: two requests in any minute, for all who ask."""

    def __init__(self) -> None:
        self.window = -1
        self.asked = 0

    async def translate(self, text: str) -> str:
        """Translate a text."""
        now_s = asyncio.get_running_loop().time()
        window = int(now_s // 60)
        if window != self.window:
            self.window, self.asked = window, 0
        if self.asked == 2:
            raise TooManyRequestsError(1 + int(60 * (window + 1) - now_s))
        self.asked += 1
        print(f"   step: at {now_s / 60:.0f} minutes: {text}")
        return text.upper()


api = Api()


async def patiently(proc: Process, key: str, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Run a step as often as the API refuses it, and wait for as long as it says."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return await proc.do(f"{key}, attempt {attempt}", fn, *args)
        except TooManyRequestsError as error:
            pause = timedelta(seconds=error.retry_after_s)
            await proc.delay(f"{key}, pause {attempt}", pause)


async def article(proc: Process, text: str) -> str:
    """Have a text translated."""
    return await patiently(proc, "translate", api.translate, text)


def host_of(storage: MemoryStorage, clock: VirtualClock) -> ProcessHost:
    """Return a host that has at most four of these processes in memory at once."""
    host = ProcessHost(storage, errors=[TooManyRequestsError], clock=clock)
    host.process(concurrency=4)(article)
    return host


async def main(clock: VirtualClock) -> None:
    """Have six texts translated, with a new start of the program meanwhile."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with host_of(storage, clock) as host:
        for number in range(1, 7):
            await host.spawn(article, f"article/{number}", f"text {number}")
        await asyncio.sleep(70)
        print("the program ends; second start")
    async with host_of(storage, clock) as host:
        results = [await host.get(article, f"article/{n}").result() for n in range(1, 7)]
    print(f"{', '.join(results)}, after {clock.monotonic_s() / 60:.0f} minutes")


if __name__ == "__main__":
    run_virtual(main)
