"""What goes on without the main loop: renewal, the witness, messages, and a word when it hangs."""

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from durabletask.errors import (
    LeaseLostError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
    WrongContextError,
)
from durabletask.storage import Lease, SystemClock
from durabletask_postgres._connections import Connections
from durabletask_postgres._heart import NEWS_MAX, Heart
from durabletask_postgres._migrate import ensure_schema
from durabletask_postgres._pulse import Pulse
from durabletask_postgres._sql import Statements
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.backends import Control
from tests.postgres.pooler import Pooler
from tests.postgres.proxy import Proxy
from tests.postgres.rules import lose_answer
from tests.postgres.server import Postgres, sql
from tests.postgres.stores import Schemas
from tests.postgres.wire import Side

ROOT = Path(__file__).parents[2]
LOOKS_MAX = 5_000
BLOCK_MAX_S = 60.0
TTL_S = 1.5
"""Short, so that a share of it is soon over; no test fails when it is not met, unless a connection
takes longer than a third of it time after time."""

LONG_S = 1e6
"""Long, so that nothing happens by time alone."""

WITNESSES = (
    "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2"
    " and classid = '{0}.fence'::regclass and granted"
)


class Beating:
    """A heart with a lease of its own, and what it has said."""

    def __init__(self, dsn: str, schema: str, ttl_s: float, host_id: str) -> None:
        self.schema = schema
        self.news: list[str | None] = []
        self.ever: list[str | None] = []
        self.connections = Connections(
            dsn, Statements(schema), setup=lambda each: ensure_schema(each, Statements(schema))
        )
        self.statements = Statements(schema)
        self.ttl_s = ttl_s
        self.host_id = host_id
        self.told = asyncio.Event()
        self.heart: Heart

    async def start(self) -> None:
        """Open the lease and start the heart."""
        statement = self.statements["open_lease"]
        ((_, now_at),) = await self.connections.fetch(statement, self.host_id, "label", self.ttl_s)
        lease = Lease(self.host_id, "label", self.ttl_s, now_at)
        self.heart = Heart(
            self.connections,
            self.statements,
            lease,
            instance="me",
            on_news=self._hear,
            clock=SystemClock(),
        )
        self.heart.start()

    async def ready(self) -> None:
        """Wait for the heart, which by itself waits for a third of a short lease's life only."""
        for _ in range(LOOKS_MAX):
            with suppress(StorageUnavailableError):
                await self.heart.ready()
                return
        raise AssertionError("never ready")

    async def heard(self, news: str | None) -> None:
        """Wait until something has been heard since the last wait."""
        while news not in self.news:
            self.told.clear()
            await self.told.wait()
        self.news.clear()

    async def close(self) -> None:
        """Stop the heart and close the connections."""
        await self.heart.close()
        await self.connections.close()

    def _hear(self, process_id: str | None) -> None:
        self.news.append(process_id)
        self.ever.append(process_id)
        self.told.set()


@asynccontextmanager
async def beating(
    dsn: str, schema: str, *, ttl_s: float = LONG_S, host_id: str = "h1"
) -> AsyncIterator[Beating]:
    """Yield a heart that beats, closed afterwards."""
    each = Beating(dsn, schema, ttl_s, host_id)
    await each.start()
    try:
        yield each
    finally:
        await each.close()


def block_until(true: Callable[[], bool]) -> None:
    """Block the calling thread, and with it the main loop, until something is true."""
    clock = SystemClock()
    ends_s = clock.monotonic_s() + BLOCK_MAX_S
    while not true():
        assert clock.monotonic_s() < ends_s, "never true"
        os.sched_yield()


# --- the witness ---------------------------------------------------------------------------


async def test_the_witness_lock_lives_as_long_as_the_heart(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """While the heart beats its session holds the lock; once closed it is gone, with the thread."""
    count = WITNESSES.format(schema)
    async with beating(postgres.dsn, schema) as each:
        await each.heart.ready()
        assert each.heart.witness
        assert await control.connection.fetchval(count) == 1
        assert await control.connection.fetchval(f"select witness from {schema}.lease")
        await each.heart.close()
        assert await control.connection.fetchval(count) == 0
        assert not each.heart.witness
        await each.heart.close()
    assert not [each for each in threading.enumerate() if each.name == "durabletask heart label"]


async def test_two_hosts_have_a_witness_each(
    postgres: Postgres, schemas: Schemas, schema: str, control: Control
) -> None:
    """Hosts of one schema, and of two schemas in one database, do not take each other's lock."""
    with schemas.new() as other:
        async with (
            beating(postgres.dsn, schema) as first,
            beating(postgres.dsn, schema, host_id="h2") as second,
            beating(postgres.dsn, other) as third,
        ):
            for each in (first, second, third):
                await each.heart.ready()
                assert each.heart.witness
            assert await control.connection.fetchval(WITNESSES.format(schema)) == 2
            assert await control.connection.fetchval(WITNESSES.format(other)) == 1


async def test_a_restart_of_the_server_finds_the_witness_back() -> None:
    """F050: after a restart the heart is there again by itself, and says "anything" once more."""
    with ThrowAwayPostgres() as server:
        async with beating(server.dsn, "durabletask") as each:
            await each.heart.ready()
            await each.heard(None)
            server.restart()
            await each.heard(None)
            await each.heart.ready()
            assert each.heart.witness
            assert server.sql(WITNESSES.format("durabletask")) == "1"


async def test_a_session_that_the_server_holds_on_to_is_replaced(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """A cut that the server does not notice leaves the lock with a dead session: it is ended."""
    with Proxy(postgres.dsn) as proxy:
        async with beating(proxy.dsn, schema) as each:
            await each.heart.ready()
            holder = "select pid from pg_locks where classid = $1::regclass and objsubid = 2"
            before = await control.connection.fetchval(holder, f"{schema}.fence")
            proxy.leave_half_open(told=Side.CLIENT)
            await control.wait_gone(before)
            await control.wait_until(f"select ({WITNESSES.format(schema)}) = 1")
            await each.heart.ready()
            assert each.heart.witness


# --- renewal -------------------------------------------------------------------------------


async def test_a_renewal_prolongs_the_lease(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """renew() answers with the server's time, and the lease ends its time to live later."""
    async with beating(postgres.dsn, schema) as each:
        lease = await each.heart.renew()
        ends = await control.connection.fetchval(f"select expires_at from {schema}.lease")
        assert (ends - lease.now_at).total_seconds() == LONG_S
        assert (lease.host_id, lease.label, lease.ttl_s) == ("h1", "label", LONG_S)


async def test_no_two_renewals_share_an_answer(postgres: Postgres, schema: str) -> None:
    """Who asks while a renewal is under way gets one that was asked later, not its answer."""
    async with beating(postgres.dsn, schema) as each:
        first, second = await asyncio.gather(each.heart.renew(), each.heart.renew())
        assert first.now_at < second.now_at


async def test_a_blocked_loop_is_renewed_for_and_told_of(
    postgres: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F081: while user code blocks the loop the lease is renewed, and the log names who blocks."""

    def expires_at() -> datetime:
        (row,) = sql(postgres.dsn, f"select expires_at from {schema}.lease")
        at: datetime = row["expires_at"]
        return at

    async def spin() -> None:
        for _ in range(3):
            before = expires_at()
            block_until(lambda: expires_at() > before)  # noqa: B023  (used in this turn only)
        block_until(lambda: "has not answered" in caplog.text)

    async with beating(postgres.dsn, schema, ttl_s=TTL_S) as each:
        await each.ready()
        await asyncio.create_task(spin(), name="process order/7")
        while "answers again" not in caplog.text:
            await asyncio.sleep(0)
    assert "in task 'process order/7'" in caplog.text
    assert "in spin" in caplog.text


async def test_a_fenced_host_is_told_so_for_good(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """Once fenced, every renewal says so, and the witness goes: nobody waits for this host."""
    async with beating(postgres.dsn, schema) as each:
        await each.heart.ready()
        await control.connection.execute(f"update {schema}.fence set fenced_at = now()")
        for _ in range(2):
            with pytest.raises(LeaseLostError):
                await each.heart.renew()
        await control.wait_until(f"select ({WITNESSES.format(schema)}) = 0")


async def test_a_heart_without_connection_says_so(postgres: Postgres, schema: str) -> None:
    """A server that cannot be reached makes renewals fail as not done, and later succeed again."""
    with Proxy(postgres.dsn) as proxy:
        async with beating(proxy.dsn, schema, ttl_s=TTL_S) as each:
            await each.ready()
            proxy.refusing = True
            proxy.cut_all()
            with pytest.raises(StorageUnavailableError, match="connection"):
                await _renew_until_refused(each)
            proxy.refusing = False
            sql(postgres.dsn, f"update {schema}.lease set expires_at = now() + interval '1 h'")
            await _renew_again(each)


async def _renew_until_refused(each: Beating) -> None:
    for _ in range(LOOKS_MAX):
        try:
            await each.heart.renew()
        except StorageUnknownError:
            continue  # sent in the moment of the cut


async def _renew_again(each: Beating) -> None:
    for _ in range(LOOKS_MAX):
        try:
            await each.heart.renew()
            return
        except (StorageUnavailableError, StorageUnknownError):
            continue
    raise AssertionError("never renewed")


async def test_a_server_that_does_not_answer_is_given_up(postgres: Postgres, schema: str) -> None:
    """F053: a silent connection is replaced after a fifth of the lease's life, not waited for."""
    with Proxy(postgres.dsn) as proxy:
        async with beating(proxy.dsn, schema, ttl_s=TTL_S) as each:
            await each.ready()
            proxy.hold()
            with pytest.raises((StorageUnavailableError, StorageUnknownError)):
                await each.heart.renew()
            proxy.release()
            await _renew_again(each)


async def test_a_lost_answer_is_asked_for_again_at_once(postgres: Postgres, schema: str) -> None:
    """One cut costs a renewal nothing but time: the host hears no error of it."""
    with Proxy(postgres.dsn) as proxy:
        async with beating(proxy.dsn, schema) as each:
            await each.heart.ready()
            proxy.rules.append(lose_answer("renew_lease"))
            assert await each.heart.renew()


async def test_a_lost_answer_is_not_called_unwritten(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F052: the answer is lost, and then no connection: that is true of the repeat only."""
    troubles = iter([StorageUnknownError("lost"), StorageUnavailableError("refused")])

    async def ask() -> Lease:
        raise next(troubles)

    async with beating(postgres.dsn, schema) as each:
        await each.heart.ready()
        monkeypatch.setattr(each.heart._pulse, "_renewed", ask)
        with pytest.raises(StorageUnknownError, match="lost"):
            await each.heart.renew()


async def test_a_cancelled_renewal_harms_nobody(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """Who gives up waiting leaves the heart's session as it is, and the next one is answered."""
    async with beating(postgres.dsn, schema) as each:
        await each.heart.ready()
        holder = "select pid from pg_locks where classid = $1::regclass and objsubid = 2"
        before = await control.connection.fetchval(holder, f"{schema}.fence")
        asking = asyncio.create_task(each.heart.renew())
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await each.heart.renew()
        assert await control.connection.fetchval(holder, f"{schema}.fence") == before


# --- messages ------------------------------------------------------------------------------


async def test_messages_of_others_are_heard(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F066: "anything" once the heart listens, then what others send; its own are no news."""
    async with beating(postgres.dsn, schema) as each:
        await each.heard(None)
        tell = "select pg_notify($1, $2)"
        await control.connection.execute(tell, schema, "other:order/7:a")
        await each.heard("order/7:a")
        await control.connection.execute(tell, schema, "me:order/8")
        await control.connection.execute(tell, schema, "odd")
        await each.heard(None)
        await control.connection.execute(tell, schema, "other:")
        await each.heard(None)
        assert each.news == []
        assert [news for news in each.ever if news is not None] == ["order/7:a"]


async def test_a_flood_of_messages_is_bounded(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """What gathers while the main loop is busy becomes "anything" beyond the limit."""
    async with beating(postgres.dsn, schema) as each:
        await each.heard(None)
        sql(
            postgres.dsn,
            f"select pg_notify('{schema}', 'other:p' || n) from generate_series(1, 3000) n",
        )
        heart: Any = each.heart
        block_until(lambda: len(heart._news) == NEWS_MAX and heart._news[0] is None)
        await each.heard(None)
        assert len(each.news) <= 1


# --- a pooler ------------------------------------------------------------------------------


async def test_behind_a_pooler_there_is_renewal_and_nothing_else(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F064: no session lock and no LISTEN where the session may be another one the next time."""
    with Pooler(postgres.dsn) as pooler:
        async with beating(pooler.dsn, schema) as each:
            await each.heart.ready()
            assert each.connections.pooled
            for _ in range(3):
                assert await each.heart.renew()
            assert not each.heart.witness
            assert await control.connection.fetchval(WITNESSES.format(schema)) == 0
            assert not await control.connection.fetchval(f"select witness from {schema}.lease")


# --- the end -------------------------------------------------------------------------------


async def test_closing_does_not_hang_on_a_silent_server(postgres: Postgres, schema: str) -> None:
    """A heart whose server does not answer is closed all the same."""
    with Proxy(postgres.dsn) as proxy:
        async with beating(proxy.dsn, schema) as each:
            await each.heart.ready()
            proxy.hold()
            await each.heart.close()
            with pytest.raises(StorageFailedError, match="stopped"):
                await each.heart.renew()


async def test_a_heart_ends_with_its_main_loop(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """A loop that was closed without closing the storage leaves no host that looks alive."""

    async def run() -> None:
        each = Beating(postgres.dsn, schema, TTL_S, "h1")
        await each.start()
        await each.ready()
        await each.connections.close()

    await asyncio.to_thread(lambda: asyncio.run(run()))
    await control.wait_until(f"select ({WITNESSES.format(schema)}) = 0")


def test_a_program_that_just_ends_does_end(postgres: Postgres, schema: str) -> None:
    """F014: without closing anything a program exits at once, with its own exit code."""
    program = f"""
        import asyncio, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "storage")!r}]
        from tests.postgres.test_heart import Beating

        async def main():
            each = Beating({postgres.dsn!r}, {schema!r}, 15.0, "h1")
            await each.start()
            await each.heart.ready()
            raise SystemExit(3)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=60
    )
    assert done.returncode == 3, done.stderr.decode()


async def test_the_child_of_a_fork_has_no_heart(postgres: Postgres, schema: str) -> None:
    """F015: a forked child can neither renew the parent's lease nor end its heart."""
    async with beating(postgres.dsn, schema) as each:
        await each.heart.ready()
        child = os.fork()
        if not child:
            os._exit(_in_the_child(each.heart))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await each.heart.renew()


def _in_the_child(heart: Heart) -> int:
    """Renew and close the parent's heart; return 0 if that was refused and did nothing."""
    try:
        heart.renew().send(None)
    except WrongContextError:
        try:
            heart.close().send(None)
        except StopIteration:
            return 0
    except BaseException:
        return 1
    return 2


async def test_a_heart_that_breaks_says_so(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours in the thread is seen: it is reported, and renewals fail for good."""
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    async def broken(self: Pulse) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Pulse, "run", broken)
    async with beating(postgres.dsn, schema) as each:
        with pytest.raises(StorageFailedError):
            await each.heart.renew()
        with pytest.raises(StorageFailedError):
            await each.heart.ready()
    (report,) = seen
    assert report.exc_type is ZeroDivisionError


async def test_only_the_first_failure_to_connect_is_a_warning(
    postgres: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is told once and not at each of its twenty attempts a second."""
    with Proxy(postgres.dsn) as proxy:
        async with beating(proxy.dsn, schema, ttl_s=TTL_S) as each:
            await each.ready()
            caplog.set_level(logging.DEBUG, "durabletask")
            proxy.refusing = True
            proxy.cut_all()
            while caplog.text.count("has no heartbeat") < 4:
                await asyncio.sleep(0)
    levels = [each.levelno for each in caplog.records if "has no heartbeat" in each.getMessage()]
    assert levels[0] == logging.WARNING
    assert set(levels[1:]) == {logging.DEBUG}
