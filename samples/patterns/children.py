"""Child processes: parts with a life, a history and failures of their own.

python samples/patterns/children.py
"""

import asyncio
from datetime import timedelta

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.errors import ProcessFailedError
from durabletask.testing import VirtualClock, run_virtual


async def pack(item: str) -> None:
    """Stand for work in a warehouse."""
    if item == "vase":
        raise ValueError("the vase is broken")
    print(f"   step: {item} packed")


async def remind(order: str) -> None:
    """Stand for a mail."""
    print(f"   step: mail: how do you like {order}?")


async def parcel(proc: Process, item: str) -> str:
    """Send one item; takes as long as the post takes."""
    await proc.do("pack", pack, item)
    await proc.delay("on its way", timedelta(days=len(item)))
    return item


async def survey(proc: Process, order: str) -> None:
    """Ask the customer after a month; nobody waits for it."""
    await proc.delay("a month", timedelta(days=30))
    await proc.do("remind", remind, order)


async def order(proc: Process, items: list[str]) -> str:
    """Send each item in a parcel of its own, and wait for all of them."""
    parcels = [proc.call(f"parcel {item}", parcel, item) for item in items]
    ends = await asyncio.gather(*parcels, return_exceptions=True)
    lost = [end for end in ends if isinstance(end, ProcessFailedError)]
    await proc.spawn("survey", survey, proc.id)
    return f"{len(ends) - len(lost)} delivered, {len(lost)} lost"


async def main(clock: VirtualClock) -> None:
    """Follow one order with a broken vase."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[order, parcel, survey], clock=clock) as host:
        handle = await host.spawn(order, "order/7", ["lamp", "vase", "chair"])
        await asyncio.sleep(60)
        async for info in host.list(parent="order/7"):
            print(f"   {info.id}: {info.status}")
        print(f"{await handle.result()}, after {clock.monotonic_s() / 86_400:.0f} days")
        await asyncio.sleep(timedelta(days=31).total_seconds())
        print(f"with all below it, {await handle.purge()} processes are purged")


if __name__ == "__main__":
    run_virtual(main)
