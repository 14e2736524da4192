"""Credit cards at a console: messages into running processes, and parallel branches.

Each card is a process. It takes transactions in one branch and sends a
statement every 30 days in another, until it is deleted. Type:

    add NAME            a new card
    tran NAME AMOUNT    a transaction on it
    delete NAME         close it and show the balance
    exit, or control-C  stop the program; the cards stay

    python samples/credit_card.py [folder]

Start it again: every card is there, with its balance. The balance is an
ordinary variable, rebuilt from the recorded transactions.
"""

import asyncio
import itertools
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from durabletask import Process, ProcessHost
from durabletask.errors import DurableTaskError
from durabletask_filesystem import FileSystemStorage

USAGE = "add NAME | tran NAME AMOUNT | delete NAME | exit"


@dataclass(frozen=True)
class Message:
    """What a card can be told; the class is name and type of the event.

    Both kinds are one class, because only events of one name are taken in the
    order raised: a transaction before the end is never overtaken by it.
    """

    kind: Literal["tran", "delete"]
    amount: Decimal = Decimal(0)


class Card:
    """What one run of a card's process knows; gone with the run, rebuilt by the next."""

    def __init__(self, proc: Process, holder: str) -> None:
        self.proc = proc
        self.holder = holder
        self.balance = Decimal(0)

    async def take_messages(self) -> None:
        """Add up the transactions as they come, until the card is deleted."""
        number = 0
        async for message in self.proc.events(Message):
            if message.kind == "delete":
                return
            number += 1
            self.balance += message.amount
            await self.proc.do(f"book {number}", self.book, message.amount, self.balance)

    async def send_statements(self) -> None:
        """Send a statement every 30 days."""
        for month in itertools.count(1):
            await self.proc.delay(f"month {month}", timedelta(days=30))
            await self.proc.do(f"statement {month}", self.send_statement, self.balance)

    async def book(self, amount: Decimal, balance: Decimal) -> None:
        """Stand for the bank's books."""
        print(f"  {self.holder}: {amount} booked, balance {balance}")

    async def send_statement(self, balance: Decimal) -> None:
        """Stand for a letter."""
        print(f"  {self.holder}: statement, balance {balance}")


async def credit_card(proc: Process, holder: str) -> Decimal:
    """Live until the card is deleted; the result is the last balance."""
    card = Card(proc, holder)
    async with asyncio.TaskGroup() as branches:
        statements = branches.create_task(card.send_statements())
        await card.take_messages()
        statements.cancel()
    return card.balance


async def obey(host: ProcessHost, words: list[str]) -> None:
    """Do what one line of the console says."""
    match words:
        case ["add", name]:
            # A new card in the place of one that was deleted; one that lives is refused.
            await host.spawn(credit_card, f"card/{name}", name, on_existing="replace")
            print(f"  {name}: a card")
        case ["tran", name, amount]:
            await host.raise_event(f"card/{name}", Message("tran", Decimal(amount)))
        case ["delete", name]:
            await host.raise_event(f"card/{name}", Message("delete"))
            balance = await host.get(credit_card, f"card/{name}").result()
            print(f"  {name}: deleted, balance {balance}")
        case []:
            pass
        case _:
            print(f"  {USAGE}")


def listen(lines: "asyncio.Queue[str]", loop: asyncio.AbstractEventLoop) -> None:
    """Hand over what is typed, and `exit` behind the last line."""
    with open(0, closefd=False) as console:  # not sys.stdin: Python would not end while it is read
        for line in console:
            loop.call_soon_threadsafe(lines.put_nowait, line)
    loop.call_soon_threadsafe(lines.put_nowait, "exit")


async def main(folder: Path) -> None:
    """Obey what is typed until `exit`, control-C or the end of the input."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    async with ProcessHost(FileSystemStorage(folder), processes=[credit_card]) as host:
        async for info in host.list(prefix="card/"):
            if info.finished_at is None:
                print(f"  {info.id}: resumed")
        print(f"  {USAGE}")
        # A thread of its own, which ends with the program: nothing else ends a read.
        console = (lines, asyncio.get_running_loop())
        threading.Thread(target=listen, args=console, daemon=True).start()
        while (line := await lines.get()).strip() != "exit":
            try:
                await obey(host, line.split())
            except InvalidOperation:
                print("  the amount must be a number, such as 12.50")
            except DurableTaskError as error:
                print(f"  {error}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "state/credit_card")))
