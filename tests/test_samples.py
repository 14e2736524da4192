"""The samples, each run as a user runs it: a program of its own with a folder of its own."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from durabletask_postgres.testing import ThrowAwayPostgres

ROOT = Path(__file__).parents[1]
USAGE = "add NAME | tran NAME AMOUNT | delete NAME | exit"
SAMPLES = ROOT / "samples"
TOLD_ELSEWHERE = {"demo", "data", "patterns"}  # tests/test_demo.py, tests/test_patterns.py


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
    assert USAGE in third
    assert "the amount must be a number, such as 12.50" in third


def test_credit_card_and_control_c(tmp_path: Path) -> None:
    """Control-C ends the console in order while nothing is typed, and a deleted card can be new."""
    assert "ann: a card" in run("credit_card.py", tmp_path, typed="add ann\ndelete ann\nadd ann\n")
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(SAMPLES / "credit_card.py"), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "  card/ann: resumed\n"
            program.stdin.write("what\n")
            program.stdin.flush()
            assert {program.stdout.readline() for _ in range(2)} == {f"  {USAGE}\n"}
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=30) == 0
            assert program.stderr is not None
            assert not program.stderr.read()
        finally:
            program.kill()


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
    assert "has lost its lease" in refused
    assert any(line.startswith("B goes on under a new identity") for line in lines)


@contextmanager
def approvals(*arguments: str, errors: int | None = None) -> Iterator[httpx.Client]:
    """Run the web application and yield a browser at its page; control-C ends it in order.

    Args:
        arguments: Of its command line.
        errors: Where its error output goes; by default here, and there is to be none.
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(SAMPLES / "approvals_web.py"), "--port=0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if errors is None else errors,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            url = program.stdout.readline().split()[0]
            with httpx.Client(base_url=url, headers={"origin": url}, timeout=30) as browser:
                yield browser
            program.send_signal(signal.SIGINT)
            _, told = program.communicate(timeout=30)
            assert not told, told
            assert program.returncode == 0
        finally:
            program.kill()


def order(browser: httpx.Client, item: str) -> int:
    """Order something and return the number that the page shows for it."""
    answer = browser.post("/orders", data={"item": item, "amount": "12.50"}, follow_redirects=True)
    assert answer.status_code == 200, answer.text
    return max(int(number) for number in re.findall(r'"/orders/(\d+)/approve"', answer.text))


def shipped(browser: httpx.Client, number: int) -> bool:
    """Return whether the page shows an order as shipped, looking until it does or for too long."""
    return any(
        re.search(rf"<tr><td>{number}<td .*<td>shipped$", browser.get("/").text, re.MULTILINE)
        for _ in range(2_000)
    )


def test_approvals_web() -> None:
    """S1.01 S1.16: an order waits on the page, a click approves it, and a host ships it."""
    with approvals() as browser:
        assert "Nothing waits." in browser.get("/").text
        first = order(browser, "a lamp")
        second = order(browser, "<script>alert('x')</script>")
        page = browser.get("/").text
        assert "<script>" not in page
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page

        assert browser.post(f"/orders/{first}/approve").status_code == 303
        assert shipped(browser, first)
        assert browser.post(f"/orders/{first}/approve").status_code == 409
        page = browser.get("/").text
        assert f'"/orders/{first}/approve"' not in page
        assert f'"/orders/{second}/approve"' in page

        for wrong in ({"item": "x"}, {"item": "", "amount": "1"}, {"item": "x", "amount": "-1"}):
            assert browser.post("/orders", data=wrong).status_code == 422
        assert browser.post("/orders", content=b"\xff").status_code == 422
        assert browser.post(f"/orders/{2**63}/approve").status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_approvals_web_answers_no_foreign_page(
    foreign: httpx.Client, method: str, headers: dict[str, str]
) -> None:
    """F137: a foreign page cannot make a browser approve, nor reach the page by another name."""
    answer = foreign.request(method, "/orders/1/approve", headers=headers)
    assert answer.status_code in {403, 421}
    assert '"/orders/1/approve"' in foreign.get("/").text, "it still waits"
    if "host" in headers:
        assert foreign.get("/", headers=headers).status_code == 421


@pytest.fixture(scope="module")
def foreign() -> Iterator[httpx.Client]:
    """Return a browser at a page with one order that waits."""
    with approvals() as browser:
        assert order(browser, "a lamp") == 1
        assert "frame-ancestors 'none'" in browser.get("/").headers["content-security-policy"]
        yield browser


FAIL_AT_COMMIT = """
    create function refuse() returns trigger language plpgsql as
        $$ begin raise exception 'not today'; end $$;
    create constraint trigger refuse after insert on {table}
        deferrable initially deferred for each row execute function refuse()
"""


def test_approvals_web_does_all_or_nothing() -> None:
    """S1.16: an order without its process, or an event without its approval, cannot come to be."""
    with (
        ThrowAwayPostgres() as server,
        approvals("--dsn", server.dsn, errors=subprocess.DEVNULL) as browser,
    ):
        number = order(browser, "a lamp")
        server.sql(FAIL_AT_COMMIT.format(table="audit"))
        assert browser.post(f"/orders/{number}/approve").status_code == 500
        server.sql("drop function refuse() cascade")
        assert server.sql("select state from orders") == "waiting"
        assert server.sql("select count(*) from durabletask.event_view") == "0"
        assert server.sql("select count(*) from durabletask.letter") == "0"

        assert browser.post(f"/orders/{number}/approve").status_code == 303
        assert shipped(browser, number)
        assert server.sql("select order_number, said from audit") == f"{number}|approved"

        server.sql(FAIL_AT_COMMIT.format(table="orders"))
        answer = browser.post("/orders", data={"item": "a chair", "amount": "3"})
        assert answer.status_code == 500
        assert server.sql("select count(*) from orders") == "1"
        assert server.sql("select count(*) from durabletask.process_view") == "1"


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
