"""The program that is killed: one host, one process per transfer.

Started by the demo again and again, it does the same each time: open the
storage, which resumes what is unfinished, and spawn every transfer of the
file. Spawning is idempotent, so nothing keeps track of how far it came.
"""

import argparse
import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from durabletask import Process, ProcessHost, current_step
from durabletask.errors import ProcessError
from durabletask_filesystem import FileSystemStorage
from samples.demo.bank import REFUSALS, Bank, BankError
from samples.demo.chaos import Chaos, KillPoint, Ledger, Manner, RunLog
from samples.demo.inputs import Folder, Transfer, read_accounts, read_transfers

IN_FLIGHT_MAX = 100  # transfers at once, as a service under steady load would have
LATENCY_S = (0.001, 0.010)  # of the bank

T = TypeVar("T")


class BankClient:
    """Calls the bank as over a network: it takes a while, and the answer may be lost."""

    def __init__(self, bank: Bank, ledger: Ledger, chaos: Chaos) -> None:
        self._bank = bank
        self._ledger = ledger
        self._chaos = chaos

    async def open_order(self, reference: str) -> None:
        """Begin a transfer."""
        await self._call(lambda key: self._bank.open_order(key, reference))

    async def hold(self, reference: str, account: str, amount: Decimal) -> int:
        """Hold money and return the number of the entry."""
        return await self._call(lambda key: self._bank.hold(key, reference, account, amount))

    async def release(self, reference: str, number: int) -> None:
        """Give back what an entry holds."""
        await self._call(lambda key: self._bank.release(key, number))

    async def settle(self, reference: str, numbers: list[int]) -> None:
        """Book the entries and close the order."""
        await self._call(lambda key: self._bank.settle(key, reference, numbers))

    async def cancel_order(self, reference: str) -> None:
        """Close the order without moving money."""
        await self._call(lambda key: self._bank.cancel_order(key, reference))

    async def _call(self, request: Callable[[str], T]) -> T:
        step = current_step()
        self._ledger.write(step.process_id, step.key)
        self._chaos.may_strike(Manner.BEFORE_CALL)
        await asyncio.sleep(random.uniform(*LATENCY_S))
        # The library may have to run this step again; by this key the bank knows the repeat.
        answer = request(step.idempotency_key)
        self._chaos.may_strike(Manner.AFTER_CALL)
        return answer


async def run(folder: Folder, kill_point: KillPoint | None, count: int | None) -> None:
    """Run all transfers to their end, unless death comes first."""
    bank = Bank(folder.bank)
    bank.open_accounts(read_accounts())
    ledger, runs = Ledger(folder.ledger), RunLog(folder.runs)
    chaos = Chaos(kill_point, ledger, runs)
    client = BankClient(bank, ledger, chaos)
    host = ProcessHost(FileSystemStorage(folder.processes), errors=REFUSALS)

    @host.process
    async def transfer(proc: Process, source: str, target: str, amount: Decimal) -> str:
        held: list[int] = []
        await proc.do("open", client.open_order, proc.id)
        try:
            chaos.may_strike(Manner.BETWEEN_STEPS)
            held.append(await proc.do("debit", client.hold, proc.id, source, -amount))
            chaos.may_strike(Manner.BETWEEN_STEPS)
            held.append(await proc.do("credit", client.hold, proc.id, target, amount))
            chaos.may_strike(Manner.BETWEEN_STEPS)
        except BankError as refusal:
            for number in reversed(held):
                await proc.do(f"release {number}", client.release, proc.id, number)
            await proc.do("cancel", client.cancel_order, proc.id)
            return f"rolled back: {refusal}"
        await proc.do("settle", client.settle, proc.id, held)
        return "completed"

    window = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def run_one(row: Transfer) -> None:
        async with window:
            handle = await host.spawn(transfer, row.id, row.source, row.target, row.amount)
            # One that fails must not stop the others; the reconciliation will name it.
            with suppress(ProcessError):
                await handle.result()

    async with host:
        runs.write("ready")
        async with asyncio.TaskGroup() as group:
            for row in read_transfers(count):
                group.create_task(run_one(row))
        chaos.must_strike()
    runs.write("done")
    bank.close()


def main() -> None:
    """Run the worker from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-point", type=KillPoint.parse)
    parser.add_argument("--transfers", type=int)
    arguments = parser.parse_args()
    asyncio.run(run(Folder(arguments.folder), arguments.kill_point, arguments.transfers))


if __name__ == "__main__":
    main()
