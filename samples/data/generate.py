"""Writes accounts.csv and transfers.csv, the same at every run.

Run it only to change the data: the files are part of the repository.
"""

import csv
import random
from decimal import Decimal
from pathlib import Path

HERE = Path(__file__).parent
TRANSFERS = 1_000
FROZEN = 3  # they take no money, so a transfer to one of them must roll back
BEYOND_MEANS = 0.04  # share of the transfers that no source could ever pay

NAMES = """
    ada alan alice anders barbara bjarne bob brian carol charles claude dan dave dennis donald
    edsger erin eve frances frank grace guido hedy heidi ida ivan james jean john judy ken
    kristen leslie linus margaret mary michael niklaus olga oscar peggy radia richard rob sophie
    sybil tim trent vera victor
""".split()  # noqa: SIM905 - fifty names read better so


def cents(value: int) -> Decimal:
    """Return an amount of money from whole cents."""
    return Decimal(value).scaleb(-2)


def main() -> None:
    """Draw accounts and transfers from a fixed seed."""
    chance = random.Random(20_260_101)
    frozen = set(chance.sample(NAMES, FROZEN))
    with (HERE / "accounts.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "balance", "frozen"])
        for name in NAMES:
            balance = cents(chance.randint(2_000_00, 9_000_00))
            rows.writerow([name, balance, "yes" if name in frozen else "no"])
    with (HERE / "transfers.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "source", "target", "amount"])
        payers = [name for name in NAMES if name not in frozen]
        for number in range(1, TRANSFERS + 1):
            source = chance.choice(payers)
            target = chance.choice([name for name in NAMES if name != source])
            beyond = chance.random() < BEYOND_MEANS
            limits = (50_000_00, 99_999_99) if beyond else (1_00, 400_00)
            amount = cents(chance.randint(*limits))
            rows.writerow([f"transfer/{number:04}", source, target, amount])


if __name__ == "__main__":
    main()
