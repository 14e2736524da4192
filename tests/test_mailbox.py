"""Who gets which event."""

import asyncio
from datetime import UTC, datetime

from durabletask._mailbox import Mailbox
from durabletask.storage import Event

AT = datetime(2026, 1, 1, tzinfo=UTC)


def event(position: int, name: str = "e") -> Event:
    return Event(position, f"id{position}", name, b"null", AT)


async def test_events_come_in_order_of_arrival_per_name() -> None:
    """S2.02 First raised, first taken, whatever other names come between."""
    box = Mailbox([event(1), event(2, "other"), event(3)])
    assert [taken.position for taken in (box.take("e"), box.take("e")) if taken] == [1, 3]
    assert box.take("e") is None
    other = box.take("other")
    assert other is not None
    assert other.position == 2


async def test_waiters_are_served_in_the_order_they_came() -> None:
    """F099 Each event goes to exactly one wait, the oldest first."""
    box = Mailbox()
    first, second = asyncio.Future[Event | None](), asyncio.Future[Event | None]()
    box.wait("e", first)
    box.wait("e", second)
    box.add([event(1), event(2), event(3)])
    assert (first.result(), second.result()) == (event(1), event(2))
    assert box.take("e") == event(3)


async def test_an_event_that_is_known_is_not_taken_in_again() -> None:
    """F102 A mailbox that is heard of twice is the same mailbox."""
    box = Mailbox([event(1)])
    box.add([event(1), event(2)])
    assert [box.take("e"), box.take("e"), box.take("e")] == [event(1), event(2), None]


async def test_a_wait_that_leaves_gives_its_event_back_to_the_front() -> None:
    """F099, C34, C35 A cancelled wait neither keeps nor loses the event it was handed."""
    box = Mailbox()
    waiter = asyncio.Future[Event | None]()
    box.wait("e", waiter)
    box.add([event(1), event(2)])
    box.leave("e", waiter)
    assert [box.take("e"), box.take("e")] == [event(1), event(2)]


async def test_a_wait_that_leaves_empty_handed_is_forgotten() -> None:
    """F099, C34 A wait that was cancelled does not swallow the next event."""
    box = Mailbox()
    gone, waiting = asyncio.Future[Event | None](), asyncio.Future[Event | None]()
    box.wait("e", gone)
    box.wait("e", waiting)
    gone.cancel()
    box.leave("e", gone)
    box.add([event(1)])
    assert waiting.result() == event(1)
