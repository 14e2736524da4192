"""A small bank: the outside world of the demo. It knows nothing of durable processes.

Like a real one it takes an idempotency key with every call: the same key again
changes nothing and gets the same answer. Its database is its own; the library
never sees it.
"""

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts(
    name TEXT PRIMARY KEY, cents INTEGER NOT NULL, frozen INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS orders(
    reference TEXT PRIMARY KEY, state TEXT NOT NULL);        -- open, settled, cancelled
CREATE TABLE IF NOT EXISTS entries(
    number INTEGER PRIMARY KEY, reference TEXT NOT NULL, account TEXT NOT NULL,
    cents INTEGER NOT NULL, state TEXT NOT NULL);            -- held, booked, released
CREATE TABLE IF NOT EXISTS calls(
    idempotency_key TEXT PRIMARY KEY, answer INTEGER NOT NULL);
"""


class BankError(Exception):
    """The bank says no. Nothing has changed there."""


class InsufficientFundsError(BankError):
    """The account cannot pay that much."""


class AccountFrozenError(BankError):
    """The account takes no part in transfers."""


REFUSALS = (InsufficientFundsError, AccountFrozenError)
"""What a host must know, so that they come back from the storage as themselves."""


@dataclass(frozen=True)
class Account:
    """One account as a statement shows it."""

    name: str
    balance: Decimal
    frozen: bool


@dataclass(frozen=True)
class Entry:
    """One line in the bank's books: money held on, booked to or released from an account."""

    reference: str
    account: str
    amount: Decimal
    state: str


class Bank:
    """Accounts in a SQLite file.

    The file survives the death of every process that uses it, which is what
    the demo puts to the test. It does not survive a power cut, because
    `synchronous=OFF` spares the bank the disk: the demo measures the library's
    disk and not the bank's.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {SCHEMA}")

    def open_accounts(self, accounts: Iterable[Account]) -> None:
        """Open the accounts with their first balances; those that exist stay as they are."""
        rows = [(a.name, to_cents(a.balance), a.frozen) for a in accounts]
        self._connection.executemany("INSERT OR IGNORE INTO accounts VALUES (?, ?, ?)", rows)

    # --- calls with an idempotency key -------------------------------------------------

    def open_order(self, key: str, reference: str) -> None:
        """Begin a transfer under a reference."""

        def apply() -> int:
            self._one("INSERT INTO orders VALUES (?, 'open')", reference)
            return 0

        self._once(key, apply)

    def hold(self, key: str, reference: str, name: str, amount: Decimal) -> int:
        """Hold money: taken from the account if negative, promised to it if positive.

        Returns:
            The number of the entry.

        Raises:
            AccountFrozenError, InsufficientFundsError: Nothing was held.
        """

        def apply() -> int:
            cents, frozen = self._one("SELECT cents, frozen FROM accounts WHERE name=?", name)
            if frozen:
                raise AccountFrozenError(f"account {name} is frozen")
            if amount < 0:
                if cents + to_cents(amount) < 0:
                    raise InsufficientFundsError(f"account {name} has less than {-amount}")
                self._add(name, to_cents(amount))
            (number,) = self._one(
                "INSERT INTO entries(reference, account, cents, state)"
                " VALUES (?, ?, ?, 'held') RETURNING number",
                reference,
                name,
                to_cents(amount),
            )
            return int(number)

        return self._once(key, apply)

    def release(self, key: str, number: int) -> None:
        """Give back what an entry holds."""

        def apply() -> int:
            name, cents = self._leave_held(number, "released")
            if cents < 0:
                self._add(name, -cents)
            return 0

        self._once(key, apply)

    def settle(self, key: str, reference: str, numbers: list[int]) -> None:
        """Book the held entries and close the order."""

        def apply() -> int:
            for number in numbers:
                name, cents = self._leave_held(number, "booked")
                if cents > 0:
                    self._add(name, cents)
            self._one("UPDATE orders SET state='settled' WHERE reference=?", reference)
            return 0

        self._once(key, apply)

    def cancel_order(self, key: str, reference: str) -> None:
        """Close the order without moving money."""

        def apply() -> int:
            self._one("UPDATE orders SET state='cancelled' WHERE reference=?", reference)
            return 0

        self._once(key, apply)

    # --- the auditor's view ------------------------------------------------------------

    def accounts(self) -> list[Account]:
        """Return all accounts by name."""
        rows = self._connection.execute("SELECT name, cents, frozen FROM accounts ORDER BY name")
        return [Account(name, to_amount(cents), bool(frozen)) for name, cents, frozen in rows]

    def entries(self) -> list[Entry]:
        """Return all entries in the order made."""
        rows = self._connection.execute(
            "SELECT reference, account, cents, state FROM entries ORDER BY number"
        )
        return [Entry(ref, name, to_amount(cents), state) for ref, name, cents, state in rows]

    def orders(self) -> dict[str, str]:
        """Return the state of every order by its reference."""
        return dict(self._connection.execute("SELECT reference, state FROM orders"))

    def closed_count(self) -> int:
        """Return how many orders are settled or cancelled."""
        (count,) = self._one("SELECT count(*) FROM orders WHERE state<>'open'")
        return int(count)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # --- inside ------------------------------------------------------------------------

    def _once(self, key: str, apply: Callable[[], int]) -> int:
        # One transaction holds the change and the answer, so a call is wholly made or not at all.
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            made = self._one("SELECT answer FROM calls WHERE idempotency_key=?", key)
            if made:
                return int(made[0])
            answer = apply()
            self._one("INSERT INTO calls VALUES (?, ?)", key, answer)
            return answer

    def _one(self, sql: str, *values: object) -> tuple[Any, ...]:
        return self._connection.execute(sql, values).fetchone() or ()

    def _add(self, name: str, cents: int) -> None:
        self._one("UPDATE accounts SET cents=cents+? WHERE name=?", cents, name)

    def _leave_held(self, number: int, state: str) -> tuple[str, int]:
        name, cents = self._one(
            "UPDATE entries SET state=? WHERE number=? AND state='held' RETURNING account, cents",
            state,
            number,
        )
        return str(name), int(cents)


def to_cents(amount: Decimal) -> int:
    """Return an amount in whole cents, exactly."""
    cents = amount.scaleb(2)
    if cents != int(cents):
        raise ValueError(f"{amount} is not a whole number of cents")
    return int(cents)


def to_amount(cents: int) -> Decimal:
    """Return whole cents as an amount."""
    return Decimal(cents).scaleb(-2)
