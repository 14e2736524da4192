"""The samples, each run as a user runs it: a program of its own with a folder of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
TOLD_ELSEWHERE = {"demo", "data"}  # tests/test_demo.py


def run(sample: str, *arguments: Path, cwd: Path | None = None, typed: str = "") -> list[str]:
    """Run a sample to its end and return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SAMPLES / sample), *map(str, arguments)],
        cwd=cwd or arguments[0].parent,
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return [line.strip() for line in done.stdout.splitlines()]


def steps(lines: list[str]) -> list[str]:
    """Return what steps printed."""
    return [line.removeprefix("step: ") for line in lines if line.startswith("step: ")]


def test_every_sample_is_run() -> None:
    """S2.17: there is no sample that no test here runs."""
    names = {path.stem for path in SAMPLES.iterdir() if not path.name.startswith(("_", "."))}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert names - TOLD_ELSEWHERE <= tested


def test_user_registration(tmp_path: Path) -> None:
    """S4.01 S0.02: a saga goes on where it waited when the program starts again."""
    first = run("user_registration.py", tmp_path / "state")
    restart = first.index("the program ends; second start")
    assert steps(first[:restart]) == [
        "user carol@example.org created",
        "mail to carol@example.org: please confirm your address",
    ]
    assert steps(first[restart:]) == [
        "user is active",
        "mail to carol@example.org: welcome!",
    ]
    assert first[-1] == "result: active"

    again = run("user_registration.py", tmp_path / "state")
    assert steps(again) == []
    assert again[-1] == "result: active"


def test_schedule(tmp_path: Path) -> None:
    """S4.02: a year passes; due times survive restarts, and lateness is told."""
    lines = run("schedule.py", tmp_path / "state")
    assert steps(lines) == ["dave is charged, on time", "dave is charged, late"]
    assert lines[-1] == "result: due 31 January 2026 and 01 January 2027"
    charged = lines.index("step: dave is charged, late")
    assert lines[charged - 1] == "05 February 2027: the program starts"


def test_money_transfer(tmp_path: Path) -> None:
    """S4.03 S4.06: the type of the error decides what is undone, and a restart repeats nothing."""
    lines = run("money_transfer.py", tmp_path / "state")
    assert steps(lines) == [
        "alice -30",
        "bob +30",
        "complete alice -30, bob +30",
        "alice -40",
        "rolled back alice -40",
        "alice -20",
        "rolled back alice -20",
    ]
    outcomes = [
        "completed",
        "rolled back: the account is frozen",
        "refused: alice has 70",
        "failed: ConnectionError: no answer about elsewhere",
    ]
    assert [line for line in lines if line in outcomes] == outcomes
    assert lines[-1] == "balances: alice 70, bob 30, frozen 0"

    again = run("money_transfer.py", tmp_path / "state")
    assert steps(again) == []
    assert [line for line in again if line in outcomes] == outcomes


def test_fresh_token(tmp_path: Path) -> None:
    """S0.06: plain code between steps runs again on a resume; recorded steps do not."""
    lines = run("fresh_token.py", tmp_path / "state")
    assert lines == [
        "first start",
        "plain code: token 1",
        "step: part 1 uploaded with token 1",
        "step: part 2 uploaded with token 1",
        "the program ends; second start",
        "plain code: token 2",
        "step: part 3 uploaded with token 2",
        "step: part 4 uploaded with token 2",
        "result: holiday.mov is complete",
    ]


def test_credit_card(tmp_path: Path) -> None:
    """S4.04 S1.08: messages reach running processes; a second start of the program resumes them."""
    first = run(
        "credit_card.py",
        tmp_path / "state",
        typed="add ann\nadd ben\ntran ann 20\ntran ben 1.25\nexit\n",
    )
    assert {"ann: a card", "ben: a card"} <= set(first)

    second = run(
        "credit_card.py",
        tmp_path / "state",
        typed="tran ann 5.50\ndelete ann\ntran ann 1\n\nexit\n",
    )
    assert {"card/ann: resumed", "card/ben: resumed"} <= set(second)
    assert "ann: deleted, balance 25.50" in second
    booked = [line for line in first + second if "booked" in line and line.startswith("ann")]
    assert booked == ["ann: 20 booked, balance 20", "ann: 5.50 booked, balance 25.50"]
    assert any("'card/ann'" in line for line in second), "a deleted card takes nothing more"

    third = run("credit_card.py", tmp_path / "state", typed="delete ben\nadd\ntran x y\n")
    assert "card/ann: resumed" not in third
    assert "ben: deleted, balance 1.25" in third
    assert "add NAME | tran NAME AMOUNT | delete NAME | exit" in third
    assert "the amount must be a number, such as 12.50" in third


def test_many_hosts(tmp_path: Path) -> None:
    """S3.02 S2.14 F016 F058: a killed and a paused host are replaced, and the late one is refused.

    What they had begun is begun again under the same idempotency key (the sample
    asserts it), and is recorded by the host that continues it and by no other.
    """
    lines = run("many_hosts.py", cwd=tmp_path)
    table = lines[lines.index("order      packed by   payment asked by   recorded by") + 1 :]
    assert [line.split() for line in table] == [
        *([f"order/{number}", "A", "A", "and", "C", "C"] for number in (1, 2, 3)),
        *([f"order/{number}", "B", "B", "and", "C", "C"] for number in (4, 5, 6)),
        *([f"order/{number}", "C", "C", "C"] for number in (7, 8, 9)),
    ]
    refused = next(line for line in lines if line.startswith("B is refused"))
    assert "has lost its lease; nothing was written" in refused
    assert any(line.startswith("B goes on under a new identity") for line in lines)


@pytest.mark.parametrize("sample", ["user_registration.py", "money_transfer.py"])
def test_a_sample_needs_no_folder(sample: str, tmp_path: Path) -> None:
    """A sample started without a folder keeps its state below the current one."""
    done = subprocess.run(
        [sys.executable, str(SAMPLES / sample)],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "state" / sample.removesuffix(".py")).is_dir()
