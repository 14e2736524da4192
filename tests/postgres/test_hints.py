"""What a program without a host hears: ends and news, by one connection, while it waits."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from durabletask import Process, ProcessClient, ProcessHost
from durabletask_postgres import PostgresStorage, _ear
from durabletask_postgres._connections import Connections
from durabletask_postgres._ear import Ear
from durabletask_postgres._notify import SPARE_MAX, Notifier, OnNews
from durabletask_postgres._sql import Statements
from tests.postgres.backends import Control, named, pool_of
from tests.postgres.pooler import Pooler
from tests.postgres.proxy import Fate, Link, Proxy
from tests.postgres.server import Postgres
from tests.postgres.stores import PATIENCE_S
from tests.postgres.wire import Message, Side

NEVER_S = 1e6
"""An interval that no test lives to see the end of."""

TELL = "select pg_notify($1, $2)"


class News:
    """What a subscriber was told."""

    def __init__(self) -> None:
        self.ever: list[str | None] = []
        self._new: asyncio.Queue[str | None] = asyncio.Queue()

    def __call__(self, process_id: str | None) -> None:
        self.ever.append(process_id)
        self._new.put_nowait(process_id)

    async def next(self) -> str | None:
        """Wait for the next one."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._new.get()


@asynccontextmanager
async def storage_of(source: Any, schema: str, **options: Any) -> AsyncIterator[PostgresStorage]:
    """Yield a storage, closed afterwards."""
    storage = PostgresStorage(source, schema=schema, migrate=False, **options)
    try:
        yield storage
    finally:
        await storage.close()


@asynccontextmanager
async def ear_of(dsn: str, schema: str, on_news: OnNews, **options: Any) -> AsyncIterator[Ear]:
    """Yield an ear that nobody wants yet, closed afterwards."""
    statements = Statements(schema)
    connections = Connections(dsn, statements)
    ear = Ear(connections, statements, "me", on_news, **options)
    try:
        yield ear
    finally:
        await ear.close()
        await connections.close()


async def waiting(proc: Process) -> str:
    return await proc.event("go", str)


async def session_of(control: Control, name: str, *, but: int = 0) -> int:
    """Wait until one session of this name listens; return it."""
    question = (
        "select coalesce(max(pid), 0) from pg_stat_activity"
        " where application_name = $1 and pid <> $2 and query ilike 'listen %' and state = 'idle'"
    )
    await control.wait_until(f"select ({question}) > 0", name, but)
    found: int = await control.connection.fetchval(question, name, but)
    return found


# --- results ---------------------------------------------------------------------------------


async def test_a_client_hears_that_a_process_has_ended(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """S2.08 S3.04: result() in a program without a host returns without any look at intervals."""
    host = ProcessHost(PostgresStorage(postgres.dsn, schema=schema), processes=[waiting])
    storage = PostgresStorage(named(postgres.dsn, schema), schema=schema)
    async with (
        asyncio.timeout(PATIENCE_S),
        host,
        ProcessClient(storage, processes=[waiting], poll_s=NEVER_S) as client,
    ):
        for number in range(3):
            handle = await client.spawn(waiting, f"p{number}")
            result = asyncio.create_task(handle.result())
            listening = await session_of(control, schema)
            await host.raise_event(f"p{number}", "go", "value")
            assert await result == "value"
            # The next one hears by the same connection: it outlives a wait by a while.
            assert await session_of(control, schema) == listening


async def test_a_client_that_hears_nothing_looks(postgres: Postgres, schema: str) -> None:
    """F065: messages that get lost cost the poll interval and nothing else."""

    def lose_messages(link: Link, side: Side, message: Message) -> Fate:
        lost = side is Side.SERVER and message.kind == "A"
        return Fate.DROP if lost else Fate.PASS

    host = ProcessHost(PostgresStorage(postgres.dsn, schema=schema), processes=[waiting])
    with Proxy(postgres.dsn) as proxy:
        proxy.rules.append(lose_messages)
        storage = PostgresStorage(proxy.dsn, schema=schema)
        async with (
            asyncio.timeout(PATIENCE_S),
            host,
            ProcessClient(storage, processes=[waiting], poll_s=0.1) as client,
        ):
            handle = await client.spawn(waiting, "p")
            await host.raise_event("p", "go", "value")
            assert await handle.result() == "value"


# --- the ear ---------------------------------------------------------------------------------


async def test_messages_of_others_are_heard(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F066 F067: "anything" once it listens, then what others send; its own are no news."""
    news = News()
    async with ear_of(postgres.dsn, schema, news) as ear:
        ear.open()
        assert await news.next() is None
        for message in ("other:order/7:a", "me:order/8", "odd"):
            await control.connection.execute(TELL, schema, message)
        assert await news.next() == "order/7:a"
        assert await news.next() is None
        ear.open()  # it is: nothing happens
        await control.connection.execute(TELL, schema, "other:p")
        assert await news.next() == "p"
        assert news.ever == [None, "order/7:a", None, "p"]


async def test_a_connection_that_is_cut_is_replaced(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F050 F066: cut as often as may be, it listens again by itself and says "anything"."""
    news = News()
    async with ear_of(named(postgres.dsn, schema), schema, news, pauses_s=(0, 0)) as ear:
        ear.open()
        before = 0
        for _ in range(5):
            assert await news.next() is None
            before = await session_of(control, schema, but=before)
            await control.connection.execute("select pg_terminate_backend($1)", before)
        assert await news.next() is None
        await control.connection.execute(TELL, schema, "other:p")
        assert await news.next() == "p"


async def test_a_connection_that_dies_silently_is_replaced(
    postgres: Postgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F065 F053: a connection at whose other end nobody is any more is noticed by asking."""
    monkeypatch.setattr(_ear, "ANSWER_MAX_S", 0.5)
    news = News()
    with Proxy(postgres.dsn) as proxy:
        async with ear_of(proxy.dsn, schema, news, check_s=0.01, pauses_s=(0, 0)) as ear:
            ear.open()
            assert await news.next() is None
            proxy.leave_half_open(told=Side.SERVER)
            assert await news.next() is None


async def test_a_server_that_is_not_there_is_tried_again(
    postgres: Postgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F050: an ear that cannot connect is nobody's error, and hears as soon as it can."""
    caplog.set_level(logging.DEBUG, "durabletask")
    news = News()
    with Proxy(postgres.dsn) as proxy:
        proxy.refusing = True
        async with ear_of(proxy.dsn, schema, news, pauses_s=(0, 0)) as ear:
            ear.open()
            while caplog.text.count("no message is heard") < 3:
                await asyncio.sleep(0)
            assert news.ever == []
            proxy.refusing = False
            assert await news.next() is None
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]


async def test_no_connection_is_left_behind(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F054: ended after any number of turns, while it dials, sets up or listens, none leaks."""
    name = schema
    async with ear_of(named(postgres.dsn, name), schema, News()) as ear:
        for turns in range(60):
            ear.open()
            for _ in range(turns):
                await asyncio.sleep(0)
            ear.end()
    await control.wait_until(
        "select not exists (select from pg_stat_activity where application_name = $1)", name
    )


# --- when it listens -------------------------------------------------------------------------


async def test_it_listens_while_somebody_does(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """A connection for all subscribers, given up some time after the last one, gone by close()."""
    async with storage_of(named(postgres.dsn, schema), schema) as storage:
        first, second = News(), News()
        end_first = storage.subscribe(first)
        assert await first.next() is None
        end_second = storage.subscribe(second)
        await control.connection.execute(TELL, schema, "other:p")
        assert [await each.next() for each in (first, second)] == ["p", "p"]
        pid = await session_of(control, schema)
        end_first()
        await control.connection.execute(TELL, schema, "other:q")
        assert await second.next() == "q"
        end_second()
        end_second()
        third = News()
        storage.subscribe(third)
        await control.connection.execute(TELL, schema, "other:r")
        assert await third.next() == "r"
        assert (first.ever, second.ever) == ([None, "p"], ["p", "q"])
        assert await session_of(control, schema) == pid
    await control.wait_gone(pid)


async def test_after_its_grace_the_connection_is_given_up(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """A program that waits for nothing more keeps no connection for it; the next wait has one."""
    news = News()
    async with ear_of(named(postgres.dsn, schema), schema, news, grace_s=0) as ear:
        before = 0
        for _ in range(3):
            ear.open()
            assert await news.next() is None
            before = await session_of(control, schema, but=before)
            ear.rest()
            await control.wait_gone(before)


async def test_a_heart_listens_for_the_whole_storage(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F066: a host's heart takes over and gives back: one connection listens, none is missed."""
    async with storage_of(named(postgres.dsn, schema), schema) as storage:
        news = News()
        storage.subscribe(news)
        assert await news.next() is None
        ear = await session_of(control, schema)
        lease = await storage.open_lease("h1", "label")
        await control.wait_gone(ear)
        assert await news.next() is None
        await control.connection.execute(TELL, schema, "other:p")
        assert await news.next() == "p"
        await storage.close_lease(lease)
        assert await news.next() is None  # the end of the lease is news itself
        assert await news.next() is None
        await session_of(control, schema, but=ear)
        await control.connection.execute(TELL, schema, "other:q")
        assert await news.next() == "q"


async def test_who_wants_no_messages_has_no_connection_for_them(
    postgres: Postgres, schema: str
) -> None:
    """notify=False, or a pool of the user's: waits look at intervals, and nothing is dialled."""
    async with (
        pool_of(postgres.dsn) as pool,
        storage_of(postgres.dsn, schema, notify=False) as silent,
        storage_of(pool, schema) as given,
    ):
        for storage in (silent, given):
            internals: Any = storage
            storage.subscribe(News())()
            assert await storage.read(["p"]) == [None]
            assert internals._ear is None


async def test_behind_a_pooler_nobody_listens(postgres: Postgres, schema: str) -> None:
    """F064: the session that would listen belongs to others; the ear notices and keeps none."""
    news = News()
    with Pooler(postgres.dsn) as pooler:
        async with storage_of(pooler.dsn, schema) as storage:
            ear: Any = storage.__dict__["_ear"]
            storage.subscribe(news)
            async with asyncio.timeout(PATIENCE_S):
                await ear._task
            assert await storage.read(["p"]) == [None]
            storage.subscribe(news)
            assert ear._task.done()
            assert news.ever == []


async def test_a_program_that_forgets_to_close_leaves_nothing(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F014: with its loop the connection ends too."""

    async def run() -> None:
        news = News()
        PostgresStorage(named(postgres.dsn, schema), schema=schema).subscribe(news)
        await news.next()

    await asyncio.to_thread(lambda: asyncio.run(run()))
    await control.wait_until(
        "select not exists (select from pg_stat_activity where application_name = $1)", schema
    )


async def test_the_child_of_a_fork_leaves_the_parents_ear_alone(
    postgres: Postgres, schema: str, control: Control
) -> None:
    """F015: closing in the child ends at once, and the parent goes on to hear."""
    news = News()
    async with storage_of(postgres.dsn, schema) as storage:
        storage.subscribe(news)
        assert await news.next() is None
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _close(storage)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        await control.connection.execute(TELL, schema, "other:p")
        assert await news.next() == "p"


def _close(storage: PostgresStorage) -> None:
    """Close a storage on a loop of this program's own, as a child has one."""
    asyncio.events._set_running_loop(None)
    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(asyncio.wait_for(storage.close(), PATIENCE_S))


# --- how often others are told ---------------------------------------------------------------


async def test_a_quiet_program_tells_without_a_pause(schema: str) -> None:
    """Messages one by one go out at once; many in a row are slowed down, and become "anything"."""
    sent: list[str] = []

    async def fetch(statement: str, channel: str, message: str) -> None:
        sent.append(message)

    notifier = Notifier(fetch, Statements(schema), "me", pause_s=NEVER_S)
    for number in range(SPARE_MAX + 3):
        notifier.tell(str(number))
        for _ in range(5):
            await asyncio.sleep(0)
    assert sent == [f"me:{number}" for number in range(SPARE_MAX + 1)]
    internals: Any = notifier
    internals._task.cancel()
    await asyncio.wait([internals._task])
