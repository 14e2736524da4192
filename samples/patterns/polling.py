"""Polling: ask a service that cannot call back, until it is ready or it takes too long.

python samples/patterns/polling.py
"""

import asyncio

from durabletask import MemoryStorage, Process, ProcessHost, RetryPolicy, current_step
from durabletask.errors import StepError
from durabletask.testing import VirtualClock, run_virtual


class NotReadyError(Exception):
    """The only error after which it is worth while to ask again."""


READY_AT_S = {"small": 300.0, "large": 7_200.0}
"""Stands for the outside world: when each job is done."""


async def submit(job: str) -> str:
    """Begin a job and return its number."""
    print(f"   step: job {job} submitted")
    return f"{job}-1"


async def fetch(number: str) -> str:
    """Return the result of a job."""
    job, _ = number.split("-")
    if asyncio.get_running_loop().time() < READY_AT_S[job]:
        raise NotReadyError(f"{number} is not ready")
    print(f"   step: {number} is ready, asked {current_step().attempt} times")
    return f"result of {number}"


POLL = RetryPolicy(
    attempts_max=None,  # until timeout_s
    delay_s=10,
    factor=1.5,
    delay_max_s=120,
    timeout_s=3_600,
    retry_if=lambda error: isinstance(error, NotReadyError | ConnectionError),
)


async def render(proc: Process, job: str) -> str:
    """Have something rendered by a service, within an hour."""
    number = await proc.do("submit", submit, job)
    try:
        return await proc.do("fetch", fetch, number, retry=POLL, timeout=30)
    except StepError as error:
        return f"given up: {error.message}"


async def main(clock: VirtualClock) -> None:
    """Have one job that is ready in time, and one that is not; stop the program in between."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[render], clock=clock) as host:
        await host.spawn(render, "render/small", "small")
        await host.spawn(render, "render/large", "large")
        await asyncio.sleep(60)
        (wait,) = (await host.get("render/large").info()).waits
        print(f"after a minute: {wait.attempts} attempts at {wait.key}; the program ends")

    async with ProcessHost(storage, processes=[render], clock=clock) as host:
        print("second start")
        for job in ("small", "large"):
            result = await host.get(render, f"render/{job}").result()
            print(f"   {job}: {result}, after {clock.monotonic_s() / 60:.0f} minutes")


if __name__ == "__main__":
    run_virtual(main)
