"""Long loops: a cursor for work that may be repeated, `restart` for rounds made of steps.

python samples/patterns/long_loop.py
"""

import asyncio
from datetime import timedelta

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.testing import VirtualClock, run_virtual

PAGES = 1_000
copied: dict[int, int] = {}
"""Stands for a table: how often each page was written there."""


async def copy_page(page: int) -> None:
    """Stand for rows that are read here and written there; a second time changes nothing."""
    await asyncio.sleep(1)
    copied[page] = copied.get(page, 0) + 1


async def copy_table(proc: Process) -> int:
    """Copy a large table, page by page, with one record for all of it."""
    page = await proc.var("page", 0)
    while page.value < PAGES:
        await copy_page(page.value)  # no step: what is repeated is the page of the crash
        await page.set(page.value + 1)
    return page.value


async def take_stock(day: int) -> int:
    """Stand for the work of one day."""
    return 1_000 - day


async def watch_stock(proc: Process, day: int) -> None:
    """Look after the stock once a day, for ever, without growing."""
    left = await proc.do("take stock", take_stock, day)
    await proc.report(f"day {day}: {left} left")
    await proc.delay("until tomorrow", timedelta(days=1))
    proc.restart(day + 1)


async def main(clock: VirtualClock) -> None:
    """Stop the copying in the middle, and look after the stock for a year."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[copy_table, watch_stock], clock=clock) as host:
        await host.spawn(copy_table, "copy")
        await asyncio.sleep(400.5)
        print(f"{len(copied)} pages copied; the program ends")

    async with ProcessHost(storage, processes=[copy_table, watch_stock], clock=clock) as host:
        handle = host.get(copy_table, "copy")
        print(f"{await handle.result()} pages copied, {max(copied.values())} time each at most")
        print(f"records of it: {len(await handle.history())}")

        stock = await host.spawn(watch_stock, "stock", 0)
        await asyncio.sleep(timedelta(days=365).total_seconds())
        info = await stock.info()
        print(f"{info.progress}; records of it: {len(await stock.history())}")
        await stock.cancel("the shop is closed")


if __name__ == "__main__":
    run_virtual(main)
