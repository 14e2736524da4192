"""Human correction: a process fails, somebody mends what was wrong, and it goes on from there.

python samples/patterns/correction.py
"""

from durabletask import MemoryStorage, Process, ProcessHost, Status
from durabletask.errors import ProcessFailedError
from durabletask.testing import VirtualClock, run_virtual


class AddressError(Exception):
    """No repetition helps; somebody has to look."""


addresses = {"ann": "1 Main Street", "ben": "?"}
"""Stands for the shop's own table, in which a human can correct something."""


async def charge(customer: str) -> None:
    """Stand for a payment."""
    print(f"   step: {customer} is charged")


async def ship(customer: str) -> str:
    """Stand for a parcel; the address is read here, so a later attempt sees a correction."""
    address = addresses[customer]
    if address == "?":
        raise AddressError(f"{customer} has no address")
    print(f"   step: sent to {address}")
    return address


async def order(proc: Process, customer: str) -> str:
    """Charge and ship."""
    await proc.do("charge", charge, customer)
    address = await proc.do("ship", ship, customer)
    return f"delivered to {address}"


async def main(clock: VirtualClock) -> None:
    """Let an order fail, correct the address, and retry."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[order], clock=clock) as host:
        for customer in ("ann", "ben"):
            print(f"order of {customer}")
            handle = await host.spawn(order, f"order/{customer}", customer)
            try:
                print(f"   {await handle.result()}")
            except ProcessFailedError as failed:
                print(f"   failed: {failed.type}: {failed.message}")

        print("somebody looks at what has failed, and corrects it")
        async for info in host.list(name="order", status=Status.FAILED):
            print(f"   {info.id}: {info.error}")
        addresses["ben"] = "2 Side Street"
        retried = await host.retry(name="order", status=Status.FAILED)
        print(f"   {retried} retried")
        print(f"   {await host.get(order, 'order/ben').result()}")


if __name__ == "__main__":
    run_virtual(main)
