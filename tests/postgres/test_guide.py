"""The operating guide for Postgres: what it shows in code runs, in the order of the page.

The page is followed by fixtures, so that each test finds it followed far enough.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from durabletask_postgres.testing import ThrowAwayPostgres

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "postgres.md").read_text(encoding="utf-8")
PSQL = """\
#!{python}
import asyncio, asyncpg, sys

async def main():
    connection = await asyncpg.connect(sys.argv[1])
    await connection.execute(sys.stdin.read())
    await connection.close()

asyncio.run(main())
"""


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowAwayPostgres]:
    """Return a server for this page alone, since the page creates roles."""
    with ThrowAwayPostgres() as server:
        server.sql("create role app login")
        yield server


def run(command: list[str], url: str, path: str = "") -> str:
    """Run a program as a reader would and return what it prints."""
    variables = {**os.environ, "DATABASE_URL": url, "OWNER_URL": url}
    variables["PATH"] = f"{path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def commands(server: ThrowAwayPostgres, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Follow the page to its first program, run twice; return what was printed."""
    folder = tmp_path_factory.mktemp("guide")
    psql = folder / "psql"  # not every machine has one
    psql.write_text(PSQL.format(python=sys.executable))
    psql.chmod(0o755)
    (block,) = blocks("sh")
    quick_start, _ = blocks("python")
    app = server.dsn_of("postgres", user="app")
    program = [sys.executable, "-W", "error", "-c", quick_start]
    return [
        run(["/bin/sh", "-e", "-c", block], server.dsn, str(folder)),
        run(program, app),
        run(program, app),
    ]


HOST = """
async def finish() -> None:
    from durabletask import ProcessHost
    storage = PostgresStorage(os.environ["DATABASE_URL"])
    async with ProcessHost(storage, processes=[fulfil]) as host:
        await host.get(fulfil, "order/7").result()

asyncio.run(finish())
"""


@pytest.fixture(scope="module")
def transactions(server: ThrowAwayPostgres, commands: list[str]) -> list[str]:
    """Follow the page over its transactions; return the order's state after each program."""
    assert commands
    _, text = blocks("python")
    states = []
    for program in (text, text.replace("asyncio.run(main())", "") + HOST):
        run([sys.executable, "-W", "error", "-c", program], server.dsn)
        states.append(server.sql("select state from orders where number = 7"))
    return states


def test_its_commands_run(commands: list[str]) -> None:
    """F073: who owns the schema makes it and grants it, and the role then needs nothing more."""
    migrated, first, second = commands
    assert "the schema 'durabletask' went from version 0 to" in migrated
    assert first == second == "carol has paid\n"


def test_its_transactions_run(transactions: list[str]) -> None:
    """S1.16: spawn and raise_event in the caller's transactions, a step's rows in one of ours."""
    assert transactions == ["seen", "approved"]


@pytest.mark.usefixtures("transactions")
def test_its_queries_run(server: ThrowAwayPostgres) -> None:
    """Every query of the page runs, and the one about a story tells it."""
    answers = [server.sql(block) for block in blocks("sql")]
    assert len(answers) > 5
    assert "do|charge|value|" in answers[-1]
    assert "order|completed|1" in answers[1]
    as_support = "set role support; select error is null from durabletask.process_view"
    assert server.sql(f"{as_support} where process_id = 'order/1'").endswith("t")


def test_it_names_every_argument() -> None:
    """The page tells of everything that PostgresStorage can be told, but for one hidden detail."""
    for name in ("schema", "lease_ttl_s", "connections_max", "notify", "migrate", "retention"):
        assert f"{name}=" in GUIDE or f"`{name}`" in GUIDE, name
    assert "statement_cache_size=0" in GUIDE
    assert "connect_timeout_s" in GUIDE
