"""Saga: what was done is undone, the latest step first, when a later step cannot be done.

python samples/patterns/saga.py
"""

from durabletask import MemoryStorage, Process, ProcessHost, current_step
from durabletask.errors import ProcessFailedError
from durabletask.testing import VirtualClock, run_virtual


class SoldOutError(Exception):
    """There is none left, and asking again does not help."""


class Agency:
    """Stands for the outside world: it knows a request again by its idempotency key."""

    def __init__(self) -> None:
        self.bookings: dict[str, str] = {}
        self.sold_out = {"car in Oslo"}
        self.is_closed = True

    async def book(self, what: str) -> str:
        """Book something and return the number of the booking."""
        if what in self.sold_out:
            raise SoldOutError(f"no {what}")
        print(f"   step: {what} booked")
        number = current_step().idempotency_key
        self.bookings[number] = what
        return number

    async def cancel(self, number: str) -> None:
        """Cancel a booking; one that is no more is cancelled already."""
        if self.is_closed:
            self.is_closed = False
            print("   step: the agency does not answer; the undo is tried again")
            raise ConnectionError("nobody answers")
        print(f"   step: {self.bookings.pop(number, 'nothing')} cancelled")


agency = Agency()


async def trip(proc: Process, city: str) -> str:
    """Book all of a trip, or nothing of it."""
    await proc.do("flight", agency.book, f"flight to {city}", undo=agency.cancel)
    await proc.do("hotel", agency.book, f"hotel in {city}", undo=agency.cancel)
    await proc.do("car", agency.book, f"car in {city}", undo=agency.cancel)
    return f"off to {city}"


async def main(clock: VirtualClock) -> None:
    """Book two trips, of which one cannot be booked whole."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[trip], errors=[SoldOutError], clock=clock) as host:
        for city in ("Lisbon", "Oslo"):
            print(f"trip to {city}")
            handle = await host.spawn(trip, f"trip/{city}", city)
            try:
                print(f"   {await handle.result()}")
            except ProcessFailedError as failed:
                print(f"   failed: {failed.message}")
                compensation = (await handle.info()).compensation
                print(f"   undone: {', '.join(compensation.done) if compensation else 'nothing'}")
    print(f"booked: {', '.join(sorted(agency.bookings.values()))}")


if __name__ == "__main__":
    run_virtual(main)
