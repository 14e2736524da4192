"""Approval: a human decides; reminders every two days, and an end after a week.

python samples/patterns/approval.py
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.testing import VirtualClock, run_virtual


@dataclass(frozen=True)
class Answer:
    """What the human says; the class is name and type of the event."""

    by: str
    approved: bool


async def send_mail(text: str) -> None:
    """Stand for a mail server."""
    print(f"   step: mail: {text}")


async def expense(proc: Process, what: str) -> str:
    """Have an expense approved within a week; remind every two days."""
    await proc.do("ask", send_mail, f"please approve: {what}")
    asked = await proc.delay("asked", timedelta(0))  # now, and the same now in every run
    number = 0
    while True:
        number += 1
        answer = proc.event(Answer)
        deadline = proc.delay("deadline", asked.actual + timedelta(days=7))
        reminder = proc.delay("reminder", asked.actual + timedelta(days=2 * number))
        first = await proc.race(f"round {number}", answer, deadline, reminder)
        if first.won(answer):
            given = first.of(answer)
            return f"{'approved' if given.approved else 'refused'} by {given.by}"
        if first.won(deadline):
            await proc.do("tell", send_mail, f"nobody has decided about {what}")
            return "expired"
        await proc.do(f"remind {number}", send_mail, f"reminder {number}: {what}")


async def main(clock: VirtualClock) -> None:
    """Let one expense be approved after three days, and the other one be forgotten."""
    storage = MemoryStorage(clock, lease_ttl_s=None)
    async with ProcessHost(storage, processes=[expense], clock=clock) as host:
        print(f"{clock.now():%A}: a lamp and a desk are asked for")
        lamp = await host.spawn(expense, "expense/lamp", "a lamp")
        await host.spawn(expense, "expense/desk", "a desk")
        await asyncio.sleep(timedelta(days=3).total_seconds())
        print(f"{clock.now():%A}: carol approves the lamp, and the program ends")
        await lamp.raise_event(Answer(by="carol", approved=True), event_id="click 1")
        print(f"   lamp: {await lamp.result()}")

    await asyncio.sleep(timedelta(days=2).total_seconds())
    async with ProcessHost(storage, processes=[expense], clock=clock) as host:
        print(f"{clock.now():%A}: the program starts again")
        desk = host.get(expense, "expense/desk")
        print(f"   desk: {await desk.result()}, on {clock.now():%A}")


if __name__ == "__main__":
    run_virtual(main)
