"""A year in a second: 30 days of trial, then 335 more, across restarts of the program.

`delay` fixes the due time when it is first called. Stopping the program does
not move it, and a due time that passes while nothing runs is told by
`on_time`. The clock is virtual: it jumps to whatever comes next, so this is
also how you test your own schedules.

    python samples/schedule.py [folder]
"""

import asyncio
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

from durabletask import Process, ProcessHost
from durabletask.testing import VirtualClock, run_virtual
from durabletask_filesystem import FileSystemStorage

PROCESS_ID = "subscription/dave"


async def subscription(proc: Process, user: str) -> str:
    """Charge after the trial and again when the year is over."""
    trial = await proc.delay("trial", timedelta(days=30))
    await proc.do("first charge", charge, user, trial.on_time)
    year = await proc.delay("rest of the year", timedelta(days=335))
    await proc.do("second charge", charge, user, year.on_time)
    return f"due {trial.desired:%d %B %Y} and {year.desired:%d %B %Y}"


async def charge(user: str, on_time: bool) -> None:
    """Stand for a payment."""
    print(f"   step: {user} is charged, {'on time' if on_time else 'late'}")


async def main(folder: Path, clock: VirtualClock) -> None:
    """Start the program three times within the year, and once after it."""
    for runs, then_rests in [(10, 10), (15, 300), (20, 45), (1, 0)]:
        storage = FileSystemStorage(folder, clock=clock)
        async with ProcessHost(storage, processes=[subscription], clock=clock) as host:
            print(f"{clock.now():%d %B %Y}: the program starts")
            handle = await host.spawn(subscription, PROCESS_ID, "dave")
            await asyncio.sleep(timedelta(days=runs).total_seconds())
            info = await handle.info()
            print(f"{clock.now():%d %B %Y}: the program stops; the process is {info.status}")
        await asyncio.sleep(timedelta(days=then_rests).total_seconds())
    print(f"result: {info.result}")


if __name__ == "__main__":
    run_virtual(partial(main, Path(sys.argv[1] if len(sys.argv) > 1 else "state/schedule")))
