"""Where a DSN leads, what is done behind a pooler, and that no password is ever told."""

import asyncio
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from durabletask.errors import (
    DurableTaskError,
    StorageAccessError,
    StorageUnavailableError,
)
from durabletask_postgres.__main__ import REFUSED, main
from durabletask_postgres._connections import Connections
from durabletask_postgres._sql import Statements
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.pooler import Pooler
from tests.postgres.proxy import Proxy
from tests.postgres.server import Postgres
from tests.postgres.tls import Certificates

PID = "select pg_backend_pid() as pid"
CANARY = "cana7ry"
PASSWORDS = ("local all postgres trust\n", "local all all scram-sha-256\n")


@pytest.fixture(scope="module")
def guarded() -> Iterator[ThrowAwayPostgres]:
    """Return a server that asks everybody but its superuser for a password."""
    with ThrowAwayPostgres(hba="".join(PASSWORDS)) as server:
        server.sql("create role worker login password 'right-one'")
        yield server


async def failure(dsn: str, **options: Any) -> DurableTaskError:
    """Return the error of a first call."""
    connections = Connections(dsn, Statements(), connect_timeout_s=5.0, **options)
    try:
        with pytest.raises(DurableTaskError) as caught:
            await connections.fetch(PID)
        return caught.value
    finally:
        await connections.close()


BROKEN = (
    "postgresql://u:{0}@127.0.0.1:1/db",
    "postgresql://u:12/{0}@127.0.0.1:1/db",
    "postgresql://u:{0}/x@127.0.0.1:1/db",
    "postgresql://u:x#{0}@127.0.0.1/db",
    "postgresql://u:x?{0}@127.0.0.1/db",
    "postgresql://u:x@{0}@127.0.0.1:1/db",
    "postgresql://u:{0}@[::1/db",
    "postgresql://u:{0}:@127.0.0.1:x/db",
    "mysql://u:{0}@127.0.0.1/db",
    "{0}",
    "u:{0}@127.0.0.1/db",
    "host=127.0.0.1 password={0}",
    "postgresql://u@127.0.0.1:1/db?password={0}&sslmode=odd",
    "postgresql://u@127.0.0.1:1/db?password={0}&{0}",
)


@pytest.mark.parametrize("dsn", BROKEN)
async def test_no_part_of_a_password_is_told(
    dsn: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """F138: wherever a DSN is cut wrong, no message, traceback or log repeats the password."""
    caplog.set_level(logging.DEBUG)
    error = await failure(dsn.format(CANARY))
    text = "".join(traceback.format_exception(error)) + caplog.text
    await asyncio.to_thread(main, ["migrate", dsn.format(CANARY)])
    captured = capsys.readouterr()
    assert "Error: " in captured.err
    assert CANARY not in text + captured.out + captured.err


async def test_a_server_that_repeats_a_piece_is_not_repeated(guarded: ThrowAwayPostgres) -> None:
    """F138: a password cut in two makes a database of one piece; the server's message is kept."""
    dsn = (
        f"postgresql:///{CANARY}@x?host={guarded.folder}&port=5432&user=postgres&password={CANARY}"
    )
    error = await failure(dsn)
    assert isinstance(error, StorageAccessError)
    assert CANARY not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://u:{0}@nowhere.invalid/db", "'nowhere.invalid'"),
        ("postgresql://u:x@{0}@127.0.0.1:1,[::1]:1/db", "'127.0.0.1,[::1]'"),
        ("postgresql:///db?host=/nowhere&user=u&password={0}", "'/nowhere'"),
        ("postgresql://u:{0}/x@127.0.0.1:1/db", None),
        ("postgresql://u?{0}@127.0.0.1:1/db", None),
    ],
)
async def test_where_a_dsn_leads_is_told_if_it_is_sure(dsn: str, place: str | None) -> None:
    """Issue 3, bad input: without a server the error names where one was looked for."""
    error = await failure(dsn.format(CANARY))
    assert CANARY not in str(error)
    if place is None:
        assert "leads to" not in str(error)
    else:
        assert isinstance(error, StorageUnavailableError)
        assert f"leads to {place}" in str(error)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("channel_binding=require", '"channel_binding"'),
        ("sslmode=verify-full&sslrootcert=no/such.pem", "not there: sslrootcert"),
    ],
)
async def test_an_option_that_cannot_be_is_told(options: str, told: str) -> None:
    """Issue 3, bad input: what is wrong is the DSN, and neither the schema nor the server."""
    with ThrowAwayPostgres(tcp=True) as server:
        error = await failure(f"postgresql://postgres@127.0.0.1:{server.port}/postgres?{options}")
    assert isinstance(error, StorageAccessError)
    assert told in str(error)
    assert "migrate" not in str(error)
    assert error.hint


async def test_a_wrong_password_is_an_access_error(
    guarded: ThrowAwayPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong password names the role and what to correct, and never itself."""
    caplog.set_level(logging.DEBUG)
    error = await failure(guarded.dsn_of("postgres", user="worker", password=CANARY + "@/:?#"))
    assert isinstance(error, StorageAccessError)
    assert "worker" in str(error)
    assert error.hint
    assert CANARY not in "".join(traceback.format_exception(error)) + caplog.text


async def test_the_password_of_the_environment_is_kept_too(
    guarded: ThrowAwayPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGPASSWORD serves where the DSN has none, and is told as little."""
    dsn = guarded.dsn_of("postgres", user="worker")
    monkeypatch.setenv("PGPASSWORD", CANARY)
    error = await failure(dsn)
    assert CANARY not in "".join(traceback.format_exception(error))
    monkeypatch.setenv("PGPASSWORD", "right-one")
    connections = Connections(dsn, Statements())
    try:
        assert await connections.fetch(PID)
    finally:
        await connections.close()


def test_the_command_line_reports_a_wrong_password(
    guarded: ThrowAwayPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """`migrate` with a wrong password is one message and exit code 2."""
    dsn = guarded.dsn_of("postgres", user="worker", password=CANARY)
    assert main(["migrate", dsn]) == REFUSED
    captured = capsys.readouterr()
    assert "StorageAccessError" in captured.err
    assert CANARY not in captured.out + captured.err


async def test_an_application_name_of_the_users_stays(postgres: Postgres) -> None:
    """Sessions are called durabletask unless the DSN says otherwise."""
    for dsn, name in (
        (postgres.dsn, "durabletask"),
        (f"{postgres.dsn}&application_name={quote('my app')}", "my app"),
    ):
        connections = Connections(dsn, Statements())
        (row,) = await connections.fetch("select current_setting('application_name') as name")
        await connections.close()
        assert row["name"] == name


async def test_a_server_that_does_not_answer_is_unavailable(postgres: Postgres) -> None:
    """A connection that is accepted and then says nothing is given up in time."""
    with Proxy(postgres.dsn) as proxy:
        proxy.hold()
        connections = Connections(proxy.dsn, Statements(), connect_timeout_s=0.05)
        with pytest.raises(StorageUnavailableError):
            await connections.fetch(PID)
        await connections.close()


async def test_a_proxy_is_no_pooler(postgres: Postgres) -> None:
    """What passes a session on as it is can be used like the server itself."""
    with Proxy(postgres.dsn) as proxy:
        connections = Connections(proxy.dsn, Statements())
        await connections.fetch(PID)
        assert not connections.pooled
        await connections.close()


async def test_a_certificate_of_nobody_known_is_an_access_error(
    postgres: Postgres, tmp_path: Path
) -> None:
    """A server that cannot prove who it is is refused until somebody acts; ours is taken."""
    ours, others = (tmp_path / name for name in ("ours", "others"))
    for folder in (ours, others):
        folder.mkdir()
    certificates = Certificates(ours)
    with Proxy(postgres.dsn, tls=certificates.server) as proxy:
        error = await failure(Certificates(others).checked(proxy.dsn))
        assert isinstance(error, StorageAccessError)
        assert "certificate" in str(error)
        assert error.hint
        connections = Connections(certificates.checked(proxy.dsn), Statements())
        assert await connections.fetch(PID)
        await connections.close()


async def test_a_pooler_is_met_without_a_word_in_the_dsn(postgres: Postgres) -> None:
    """F064: behind a pooler nothing is prepared under a name, so sessions can be changed."""
    with Pooler(postgres.dsn, size=3) as pooler:
        connections = Connections(pooler.dsn, Statements(), connections_max=3)
        try:
            for _ in range(4):
                rows = await asyncio.gather(
                    *(
                        connections.fetch("select $1::int as n, pg_backend_pid()", n)
                        for n in range(9)
                    )
                )
                assert [row["n"] for (row,) in rows] == list(range(9))
            assert connections.pooled
            async with connections.use() as connection, connection.transaction():
                assert await connection.fetchval("select count(*) from pg_prepared_statements") == 0
        finally:
            await connections.close()


async def test_read_committed_is_kept_behind_a_pooler(postgres: Postgres) -> None:
    """F064, F055: asked for in the transaction itself, it holds whichever session that gets."""
    level = "select current_setting('transaction_isolation') as level"
    with Pooler(postgres.dsn, size=3) as pooler:
        connections = Connections(pooler.dsn, Statements(), connections_max=3)
        connections.explicit_isolation = True
        try:
            rows = await asyncio.gather(*(connections.fetch(level) for _ in range(9)))
            assert {row["level"] for (row,) in rows} == {"read committed"}
        finally:
            await connections.close()


async def test_a_pool_that_prepares_behind_a_pooler_is_told_how_not_to(postgres: Postgres) -> None:
    """A given pool with asyncpg's cache meets a missing statement; the hint names the option."""
    statement = "select $1::int"
    with Pooler(postgres.dsn, size=2) as pooler:
        pool: Any = asyncpg.create_pool(pooler.dsn, min_size=1, max_size=1)
        connections = Connections(pool, Statements())
        other = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
        try:
            assert await connections.fetch(statement, 1)
            # The one session that knows the statement is in use by another client from here on.
            await other.execute("begin")
            with pytest.raises(StorageUnavailableError, match="statement_cache_size=0"):
                await connections.fetch(statement, 1)
        finally:
            other.terminate()
            await connections.close()
            pool.terminate()
