"""Rollback by exception type: what failed decides what has to be undone.

A step's error is recorded like a result. A class that the host knows (`errors=`)
comes back as itself, on the first run and after a restart, so a plain `except`
is enough to write a saga. Where no `except` knows the error, it leaves the
function, and what has an `undo=` is taken back.

    python samples/money_transfer.py [folder]

Run it again with the same folder: the results are there, the bank is not called.
"""

import asyncio
import sys
from decimal import Decimal
from pathlib import Path

from durabletask import Process, ProcessHost, RetryPolicy
from durabletask.errors import ProcessFailedError
from durabletask_filesystem import FileSystemStorage


class InsufficientFundsError(Exception):
    """The source cannot pay."""


class AccountFrozenError(Exception):
    """The target takes no money."""


class Bank:
    """Stands for the outside world; in earnest it would ask for an idempotency key."""

    def __init__(self) -> None:
        self.balances = {"alice": Decimal(100), "bob": Decimal(0), "frozen": Decimal(0)}
        self.down_for = {"elsewhere"}

    async def start_transfer(self, account: str, amount: Decimal) -> str:
        """Move money to or from one account; the answer is a receipt."""
        if account in self.down_for:
            raise ConnectionError(f"no answer about {account}")
        if account == "frozen":
            raise AccountFrozenError("the account is frozen")
        if self.balances[account] + amount < 0:
            raise InsufficientFundsError(f"{account} has {self.balances[account]}")
        self.balances[account] += amount
        print(f"   step: {account} {amount:+}")
        return f"{account} {amount:+}"

    async def roll_back(self, receipt: str) -> None:
        """Undo one movement."""
        account, amount = receipt.split()
        self.balances[account] -= Decimal(amount)
        print(f"   step: rolled back {receipt}")

    async def complete(self, *receipts: str) -> None:
        """Make the movements final."""
        print(f"   step: complete {', '.join(receipts)}")


bank = Bank()
PATIENT = RetryPolicy(attempts_max=3, delay_s=0.01)


async def transfer(proc: Process, source: str, target: str, amount: Decimal) -> str:
    """Move money from one account to another, or leave everything as it was."""
    try:
        debit = await proc.do("debit", bank.start_transfer, source, -amount, undo=bank.roll_back)
    except InsufficientFundsError as error:
        return f"refused: {error}"  # nothing has moved, nothing to undo

    try:
        credit = await proc.do("credit", bank.start_transfer, target, amount, retry=PATIENT)
    except AccountFrozenError as error:
        await proc.do("undo debit", bank.roll_back, debit)
        return f"rolled back: {error}"
    # No answer at all is another error: the process fails, and the debit is undone.

    await proc.do("complete", bank.complete, debit, credit)
    return "completed"


TRANSFERS = [
    ("transfer/1", "alice", "bob", Decimal(30)),
    ("transfer/2", "alice", "frozen", Decimal(40)),
    ("transfer/3", "alice", "bob", Decimal(500)),
    ("transfer/4", "alice", "elsewhere", Decimal(20)),
]


async def main(folder: Path) -> None:
    """Try four transfers, one after the other."""
    known = [InsufficientFundsError, AccountFrozenError]
    async with ProcessHost(FileSystemStorage(folder), processes=[transfer], errors=known) as host:
        for process_id, source, target, amount in TRANSFERS:
            print(f"{process_id}: {amount} from {source} to {target}")
            handle = await host.spawn(transfer, process_id, source, target, amount)
            try:
                print(f"   {await handle.result()}")
            except ProcessFailedError as error:
                print(f"   failed: {error.type}: {error.message}")
    print("balances:", ", ".join(f"{name} {amount}" for name, amount in bank.balances.items()))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "state/money_transfer")))
