"""The demo: it must survive its kills, and its reconciliation must be able to fail."""

import random
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from samples.demo.bank import Account, AccountFrozenError, Bank, InsufficientFundsError
from samples.demo.chaos import KILLS_SPREAD, KillPoint, Manner, draw_kill_points
from samples.demo.inputs import Folder, read_accounts, read_transfers
from samples.demo.reconcile import COMPLETED, ROLLED_BACK, gather_facts, judge

ROOT = Path(__file__).parents[1]
TRANSFERS = 120
KILLS = 5


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, str]:
    """Run a small demo once; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "state"
    command = [sys.executable, "-W", "error", "-m", "samples.demo", str(folder)]
    command += ["--transfers", str(TRANSFERS), "--kills", str(KILLS), "--seed", "7"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Folder(folder), done.stdout


def test_the_demo_survives_its_kills(played: tuple[Folder, str]) -> None:
    """S4.10 F001: killed with SIGKILL five times, the transfers all end and everything fits."""
    _, printed = played
    assert printed.count("SIGKILL") == KILLS + 1  # a line each, and the row of the table
    assert "Everything fits" in printed
    assert "WRONG" not in printed
    for row in ("transfers completed", "rolled back", "steps executed", "repeats caused by kills"):
        assert row in printed
    assert "rolled back: account" in printed, "the drawn history ends with its result"


async def test_the_facts_agree(played: tuple[Folder, str]) -> None:
    """G2 G4: each step is recorded once, and runs at most once more than there were kills."""
    folder, _ = played
    facts = await gather_facts(folder, read_transfers(TRANSFERS), read_accounts())
    assert facts.kills == KILLS
    assert facts.count(COMPLETED) + facts.count(ROLLED_BACK) == TRANSFERS
    assert facts.count(ROLLED_BACK) > 0
    assert facts.repeats >= 0
    assert judge(facts).faults == []


BOOKED = "(SELECT min(number) FROM entries WHERE state='booked')"


@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        ("UPDATE accounts SET cents=cents+1 WHERE name='bob'", "money in the bank"),
        ("UPDATE accounts SET cents=cents-1 WHERE name='tim'", "balance of tim"),
        (
            "UPDATE entries SET state='held' WHERE number=(SELECT min(number) FROM entries)",
            "entries still held",
        ),
        ("UPDATE orders SET state='open' WHERE reference='transfer/0001'", "order of"),
        ("DELETE FROM entries WHERE number=" + BOOKED, "entries booked"),
    ],
)
async def test_a_wrong_bank_is_found(
    played: tuple[Folder, str], sabotage: str, complaint: str
) -> None:
    """The reconciliation names a single cent too much, and every wrong line of the books."""
    folder, _ = played
    with sqlite3.connect(folder.bank) as connection:
        before = b"\n".join(line.encode() for line in connection.iterdump())
        connection.execute(sabotage)
    try:
        facts = await gather_facts(folder, read_transfers(TRANSFERS), read_accounts())
    finally:
        _restore(folder.bank, before.decode())
    assert any(complaint in fault for fault in judge(facts).faults)


async def test_a_missing_or_doubled_step_is_found(played: tuple[Folder, str]) -> None:
    """A step without a record, a record without a step, and a missing process are each named."""
    folder, _ = played
    facts = await gather_facts(folder, read_transfers(TRANSFERS), read_accounts())
    assert judge(facts).faults == []

    facts.executed["transfer/0001", "forged"] += 1
    assert any("executed and not recorded" in fault for fault in judge(facts).faults)
    del facts.executed["transfer/0001", "forged"]

    del facts.executed["transfer/0001", "open"]
    assert any("never executed" in fault for fault in judge(facts).faults)
    facts.executed["transfer/0001", "open"] = KILLS + 2
    assert any("more than once per kill" in fault for fault in judge(facts).faults)
    facts.executed["transfer/0001", "open"] = 1

    history = facts.histories["transfer/0001"]
    history.append(next(entry for entry in history if entry.kind == "do"))
    assert any("recorded twice" in fault for fault in judge(facts).faults)

    del facts.processes["transfer/0002"]
    assert any("without a process" in fault for fault in judge(facts).faults)


def _restore(path: Path, dump: str) -> None:
    with sqlite3.connect(path) as connection:
        for table in ("accounts", "orders", "entries", "calls"):
            connection.execute(f"DROP TABLE {table}")
        connection.executescript(dump)


def test_the_bank_knows_a_repeated_call(tmp_path: Path) -> None:
    """The bank stands for a real one: the same key again changes nothing, a refusal neither."""
    bank = Bank(tmp_path / "bank.sqlite")
    bank.open_accounts(
        [
            Account("ann", Decimal("10.00"), False),
            Account("ben", Decimal("0.00"), False),
            Account("ida", Decimal("0.00"), True),
        ]
    )
    bank.open_order("k1", "t")
    debit = bank.hold("k2", "t", "ann", Decimal("-7.50"))
    assert bank.hold("k2", "t", "ann", Decimal("-7.50")) == debit
    with pytest.raises(InsufficientFundsError):
        bank.hold("k3", "t", "ann", Decimal("-7.50"))
    with pytest.raises(AccountFrozenError):
        bank.hold("k4", "t", "ida", Decimal("7.50"))
    credit = bank.hold("k5", "t", "ben", Decimal("7.50"))
    for _ in range(2):
        bank.settle("k6", "t", [debit, credit])
    balances = {account.name: account.balance for account in bank.accounts()}
    assert balances == {"ann": Decimal("2.50"), "ben": Decimal("7.50"), "ida": Decimal("0.00")}
    assert bank.orders() == {"t": "settled"}
    assert bank.closed_count() == 1
    bank.close()


def test_the_input_makes_some_transfers_fail() -> None:
    """The shipped file has 1,000 transfers among 50 accounts, some of which must roll back."""
    accounts = {account.name: account for account in read_accounts()}
    transfers = read_transfers()
    assert (len(accounts), len(transfers), len({t.id for t in transfers})) == (50, 1_000, 1_000)
    frozen = [t for t in transfers if accounts[t.target].frozen]
    money = sum(account.balance for account in accounts.values())
    beyond = [t for t in transfers if t.amount > accounts[t.source].balance * 5]
    assert frozen
    assert beyond
    assert all(t.amount < money for t in transfers)


def test_kill_points_are_drawn_over_the_progress() -> None:
    """Seeds give different points, spread over the run, with every manner of dying among them."""
    drawn = [draw_kill_points(random.Random(seed), 7, 3_000) for seed in range(50)]
    for points in drawn:
        moments = [point.executed for point in points]
        assert moments == sorted(set(moments))
        assert KILLS_SPREAD[0] * 3_000 <= moments[0] < moments[-1] <= KILLS_SPREAD[1] * 3_000
        assert {point.manner for point in points} == set(Manner)
        assert [KillPoint.parse(str(point)) for point in points] == points
    assert len({tuple(points) for points in drawn}) == 50
