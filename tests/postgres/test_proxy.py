"""The proxy hurts what it is aimed at, where it is aimed, and nothing else."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.postgres.proxy import Proxy
from tests.postgres.rules import Aim, CutAt, cut_before, cut_in_flight, lose_answer
from tests.postgres.server import Postgres, sql
from tests.postgres.tls import Certificates
from tests.postgres.wire import Message, Side, Splitter, Statements, error, message

INSERT = "insert into t values ($1)"
LOST = (asyncpg.ConnectionDoesNotExistError, ConnectionError)


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    sql(database, "create table t (n int)")
    with Proxy(database) as proxy:
        yield proxy


def count(database: str) -> int:
    return int(sql(database, "select count(*) from t")[0][0])


async def gone(postgres: Postgres, pid: int) -> None:
    """Wait until the server has ended a session."""
    connection = await asyncpg.connect(postgres.dsn)
    while await connection.fetch("select from pg_stat_activity where pid = $1", pid):
        pass
    await connection.close()


async def test_without_rules_everything_passes(proxy: Proxy, database: str) -> None:
    """Large values, transactions, errors and cancellations go through unchanged."""
    connection = await asyncpg.connect(proxy.dsn)
    big = "x" * 3_000_000
    assert await connection.fetchval("select $1::text", big) == big
    async with connection.transaction():
        await connection.execute(INSERT, 1)
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.execute("select from nothing")
    # The cancellation comes on a connection of its own.
    with pytest.raises(TimeoutError):
        await connection.execute("select pg_sleep(600)", timeout=0.05)
    assert await connection.fetchval("select n from t") == 1
    await connection.close()


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize(("aim", "written"), [(cut_before, 0), (lose_answer, 1)])
async def test_a_lost_connection_before_and_after_the_commit(
    proxy: Proxy, database: str, aim: Callable[[str], Aim], written: int, *, prepared: bool
) -> None:
    """Cut before it nothing is written, after its commit it is; to the client both look alike."""
    connection = await asyncpg.connect(proxy.dsn, statement_cache_size=100 if prepared else 0)
    await connection.execute(INSERT, 0)
    rule = aim("insert into t")
    proxy.rules.append(rule)
    with pytest.raises(LOST):
        await connection.execute(INSERT, 1)
    assert rule.hits == 1
    other = await asyncpg.connect(proxy.dsn)
    await other.execute(INSERT, 2)  # a rule is spent once it has hit
    await other.close()
    assert count(database) == 2 + written


@pytest.mark.parametrize(("aim", "written"), [(cut_before, 0), (lose_answer, 1)])
async def test_around_an_explicit_commit(
    proxy: Proxy, database: str, aim: Callable[[str], Aim], written: int
) -> None:
    """The word COMMIT is a statement like any other."""
    connection = await asyncpg.connect(proxy.dsn)
    proxy.rules.append(aim("COMMIT"))
    with pytest.raises(LOST):
        async with connection.transaction():
            await connection.execute(INSERT, 1)
    assert count(database) == written


async def test_in_flight_is_written_or_not(proxy: Proxy, database: str, postgres: Postgres) -> None:
    """Cut with the statement under way: the client sees a lost connection in either case."""
    rule = cut_in_flight("insert into t", times=5)
    proxy.rules.append(rule)
    for _ in range(5):
        connection = await asyncpg.connect(proxy.dsn)
        pid = connection.get_server_pid()
        with pytest.raises(LOST):
            await connection.execute(INSERT, 1)
        await gone(postgres, pid)
    await asyncio.to_thread(rule.wait)
    assert count(database) <= 5


async def test_at_every_message_of_a_session(proxy: Proxy, database: str) -> None:
    """Cut at the n-th message for every n: what was answered is written, from the greeting on."""
    answered, number = 0, 0
    while True:
        rule = CutAt(Side.SERVER, number)
        proxy.rules[:] = [rule]
        try:
            connection = await asyncpg.connect(proxy.dsn)
            await connection.execute(INSERT, number)
            answered += 1
            await connection.close()
        except LOST:
            number += 1
            continue
        break
    assert number > 10
    assert answered == 1
    assert 1 <= count(database) <= number


async def test_a_held_answer_comes_late(proxy: Proxy, database: str) -> None:
    """A black hole loses nothing: what is held passes when it is released."""
    connection = await asyncpg.connect(proxy.dsn)
    proxy.hold(Side.SERVER)
    waiting = asyncio.create_task(connection.execute("insert into t values (1)"))
    while not await asyncio.to_thread(count, database):
        assert not waiting.done()
    proxy.release()
    assert await waiting == "INSERT 0 1"
    await connection.close()


async def test_half_open_towards_the_client(
    proxy: Proxy, database: str, postgres: Postgres
) -> None:
    """The client is cut off and the server knows nothing: the session goes on holding its lock."""
    connection = await asyncpg.connect(proxy.dsn)
    await connection.execute("select pg_advisory_lock(7)")
    pid = connection.get_server_pid()
    proxy.leave_half_open(Side.CLIENT)
    with pytest.raises((*LOST, asyncpg.InterfaceError)):
        await connection.execute("select 1")
    assert not sql(database, "select pg_try_advisory_lock(7)")[0][0]
    proxy.cut_all()
    await gone(postgres, pid)
    assert sql(database, "select pg_try_advisory_lock(7)")[0][0]


async def test_half_open_towards_the_server(proxy: Proxy, postgres: Postgres) -> None:
    """The server is cut off and the client knows nothing: it waits for an answer in vain."""
    connection = await asyncpg.connect(proxy.dsn)
    proxy.leave_half_open(Side.SERVER)
    await gone(postgres, connection.get_server_pid())
    waiting = asyncio.create_task(connection.execute("select 1"))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert done == set()
    proxy.cut_all()
    with pytest.raises(LOST):
        await waiting


async def test_refusing_and_slow(proxy: Proxy) -> None:
    """New connections are refused while the others live; a slow way only takes time."""
    connection = await asyncpg.connect(proxy.dsn)
    proxy.refusing = True
    with pytest.raises(LOST):
        await asyncpg.connect(proxy.dsn)
    proxy.refusing = False
    proxy.latency_s = 0.01
    assert await connection.fetchval("select 1") == 1
    await connection.close()


def test_messages_are_found_in_any_pieces() -> None:
    """However a stream is cut into packets, the same messages come out of it."""
    stream = message("Q", b"select 1\0") + message("X", b"") + error("57P01", "bye")
    for size in range(1, len(stream) + 1):
        splitter = Splitter()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        found = [each for piece in pieces for each in splitter.feed(piece)]
        assert [each.kind for each in found] == ["Q", "X", "E"]
        assert b"".join(each.raw for each in found) == stream


def test_a_statement_is_known_by_name_and_portal() -> None:
    """Bind and Execute mean the text that was prepared under their name."""

    def sent(kind: str, body: bytes) -> str | None:
        return statements.of(Message(kind, message(kind, body)))

    statements = Statements()
    assert sent("P", b"s1\0select 1\0\0\0") == "select 1"
    assert sent("P", b"\0select 2\0\0\0") == "select 2"
    assert sent("B", b"p\0s1\0\0\0\0\0\0\0") == "select 1"
    assert sent("E", b"p\0\0\0\0\0") == "select 1"
    assert sent("B", b"\0\0\0\0\0\0\0\0") == "select 2"
    assert sent("E", b"\0\0\0\0\0") == "select 2"
    assert sent("Q", b"select 3\0") == "select 3"
    assert sent("S", b"") is None


async def test_encrypted_and_checked(database: str, tmp_path: Path) -> None:
    """Through TLS all is as before; a client that trusts another authority does not connect."""
    (tmp_path / "others").mkdir()
    ours, others = Certificates(tmp_path), Certificates(tmp_path / "others")
    with Proxy(database, tls=ours.server) as proxy:
        connection = await asyncpg.connect(ours.checked(proxy.dsn))
        big = "x" * 3_000_000
        assert await connection.fetchval("select $1::text", big) == big
        await connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(others.checked(proxy.dsn))
        # Not asked for, TLS is still preferred by the driver; forbidden, it is not used.
        plain = await asyncpg.connect(f"{proxy.dsn}&sslmode=disable")
        assert await plain.fetchval("select 1") == 1
        await plain.close()
    with Proxy(database) as proxy, pytest.raises(ConnectionError):
        await asyncpg.connect(ours.checked(proxy.dsn))
