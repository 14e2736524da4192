"""The demo's input, and where its files are."""

import csv
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from samples.demo.bank import Account

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Transfer:
    """One row of transfers.csv."""

    id: str
    source: str
    target: str
    amount: Decimal


@dataclass(frozen=True)
class Folder:
    """What one run of the demo leaves on disk."""

    path: Path

    @property
    def processes(self) -> Path:
        """The library's storage."""
        return self.path / "processes"

    @property
    def bank(self) -> Path:
        """The bank's own database."""
        return self.path / "bank.sqlite"

    @property
    def ledger(self) -> Path:
        """One line for every step body that began to run."""
        return self.path / "executed.log"

    @property
    def runs(self) -> Path:
        """When each run of the worker was ready, and when and how it died."""
        return self.path / "runs.log"


def read_accounts() -> list[Account]:
    """Read accounts.csv."""
    with (DATA / "accounts.csv").open(newline="") as file:
        return [
            Account(row["name"], Decimal(row["balance"]), row["frozen"] == "yes")
            for row in csv.DictReader(file)
        ]


def read_transfers(count: int | None = None) -> list[Transfer]:
    """Read the first `count` rows of transfers.csv, or all of them."""
    with (DATA / "transfers.csv").open(newline="") as file:
        rows = [
            Transfer(row["id"], row["source"], row["target"], Decimal(row["amount"]))
            for row in csv.DictReader(file)
        ]
    return rows[:count]
