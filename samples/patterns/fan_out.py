"""Fan-out: a step for each of many items, so many at a time, and one result of all.

python samples/patterns/fan_out.py
"""

import asyncio

from durabletask import MemoryStorage, Process, ProcessHost, RetryPolicy
from durabletask.testing import VirtualClock, run_virtual


class Counter:
    """Counts how often each invoice was made, and how many at once."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.now = self.most = 0

    async def make_invoice(self, customer: int) -> int:
        """Stand for the work on one item; the answer is an amount."""
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(1)
        self.now -= 1
        self.made.append(customer)
        return customer % 10


counter = Counter()


async def read_customers(month: str) -> list[int]:
    """Stand for a query: who is to get an invoice."""
    return list(range(200))


async def monthly_invoices(proc: Process, month: str) -> int:
    """Make all invoices of a month and return the sum."""
    customers = await proc.do("customers", read_customers, month)
    amounts = await proc.map(
        "invoice", counter.make_invoice, customers, concurrency=20, retry=RetryPolicy()
    )
    return sum(amounts)


async def main(clock: VirtualClock) -> None:
    """Let the program end in the middle of the work."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[monthly_invoices], clock=clock) as host:
        await host.spawn(monthly_invoices, "invoices/2026-01", "2026-01")
        await asyncio.sleep(5.5)
        print(f"{len(counter.made)} invoices made, {counter.now} in flight; the program ends")

    async with ProcessHost(storage, processes=[monthly_invoices], clock=clock) as host:
        total = await host.get(monthly_invoices, "invoices/2026-01").result()
    print(f"{len(counter.made)} made by the second start, none twice: {len(set(counter.made))}")
    print(f"never more than {counter.most} at once; the sum is {total}")


if __name__ == "__main__":
    run_virtual(main)
