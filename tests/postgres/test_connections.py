"""Who gets a connection, what a call on it can end in, and what is left behind."""

import asyncio
import os
import select
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from durabletask.errors import (
    InvalidArgumentError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
    WrongContextError,
)
from durabletask_postgres._connections import Connections
from durabletask_postgres._trouble import UnexpectedError
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.backends import (
    HOLD,
    ISOLATION,
    PID,
    STATEMENTS,
    Control,
    connections_of,
    control_of,
    dsn_as,
    named,
)
from tests.postgres.proxy import Fate, Link, Proxy
from tests.postgres.rules import cut_before, lose_answer
from tests.postgres.server import Postgres, sql
from tests.postgres.wire import CANCEL, Message, Side

# --- how many, and which -------------------------------------------------------------------


async def test_one_caller_at_a_time_needs_one_connection(postgres: Postgres) -> None:
    """Calls one after the other run in one session, and none is opened ahead of need."""
    name = postgres.new_name()
    async with (
        connections_of(named(postgres.dsn, name)) as connections,
        control_of(postgres.dsn) as control,
    ):
        assert await control.sessions(name) == set()
        pids = {(await connections.fetch(PID))[0]["pid"] for _ in range(5)}
        assert await control.sessions(name) == pids
        assert len(pids) == 1


@pytest.mark.parametrize("most", [1, 2])
async def test_connections_are_bounded_and_waited_for_in_turn(
    postgres: Postgres, control: Control, most: int
) -> None:
    """Calls beyond connections_max wait for a connection, first come first served."""
    name = postgres.new_name()
    done: list[int] = []
    async with connections_of(named(postgres.dsn, name), connections_max=most) as connections:

        async def call(number: int) -> None:
            await connections.fetch(HOLD, 4711)
            done.append(number)

        await control.bar(4711)
        async with asyncio.TaskGroup() as group:
            for number in range(most):
                group.create_task(call(number))
            await control.wait_held(4711, most)
            for number in range(most, 8):
                group.create_task(call(number))
            assert len(await control.sessions(name)) == most
            await control.open(4711)
        assert len(await control.sessions(name)) == most
        assert sorted(done) == list(range(8))
        if most == 1:  # two that run at once may end in either order
            assert done == list(range(8))


async def test_a_server_without_more_connections_makes_calls_wait(
    postgres: Postgres, control: Control, role: str
) -> None:
    """Ten connections for five hosts: refused a second connection, calls share the first."""
    sql(postgres.dsn, f"alter role {role} connection limit 1")
    async with connections_of(dsn_as(postgres, role), connections_max=4) as connections:
        await control.bar(4712)
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(connections.fetch(HOLD, 4712)) for _ in range(6)]
            await control.wait_held(4712)
            await control.open(4712)
        assert len({call.result()[0]["pid"] for call in calls}) == 1


async def test_a_server_without_any_connection_is_unavailable(
    postgres: Postgres, role: str
) -> None:
    """Refused the only connection, a call says so, with the two numbers to change."""
    sql(postgres.dsn, f"alter role {role} connection limit 0")
    async with connections_of(dsn_as(postgres, role)) as connections:
        with pytest.raises(StorageUnavailableError, match="max_connections"):
            await connections.fetch(PID)


async def test_who_gives_up_waiting_passes_the_connection_on(postgres: Postgres) -> None:
    """A connection that comes in the moment its waiter is cancelled is not lost."""
    async with connections_of(postgres.dsn, connections_max=1) as connections:
        async with connections.use() as connection:
            pid = await connection.fetchval(PID)
            second = asyncio.create_task(connections.fetch(PID))
            third = asyncio.create_task(connections.fetch(PID))
            await asyncio.sleep(0)
        # The second has been handed the connection and has not run yet.
        second.cancel()
        assert (await third)[0]["pid"] == pid
        assert second.cancelled()


async def test_who_gives_up_waiting_last_leaves_the_connection_free(postgres: Postgres) -> None:
    """The same where nobody else waits: the connection is there for the next call."""
    async with connections_of(postgres.dsn, connections_max=1) as connections:
        async with connections.use() as connection:
            pid = await connection.fetchval(PID)
            second = asyncio.create_task(connections.fetch(PID))
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        assert (await connections.fetch(PID))[0]["pid"] == pid


def test_no_connection_is_not_enough() -> None:
    """connections_max below one is refused at once."""
    with pytest.raises(InvalidArgumentError):
        Connections("postgresql://", STATEMENTS, connections_max=0)


@pytest.mark.parametrize("source", [None, 5432, b"cana7ry"])
def test_what_is_neither_dsn_nor_pool(source: Any) -> None:
    """Issue 3, bad input: a variable that is not set is told when the storage is made."""
    with pytest.raises(InvalidArgumentError) as caught:
        Connections(source, STATEMENTS)
    assert type(source).__name__ in str(caught.value)
    assert "cana7ry" not in str(caught.value)
    assert caught.value.hint


# --- how a call ends -----------------------------------------------------------------------


async def test_an_error_of_the_server_leaves_the_connection(postgres: Postgres) -> None:
    """A refused statement is over when its answer comes; its session goes on."""
    async with connections_of(postgres.dsn) as connections:
        before = await connections.fetch(PID)
        with pytest.raises(UnexpectedError) as caught:
            await connections.fetch(ISOLATION, 0)
        assert caught.value.sqlstate == "22012"
        assert await connections.fetch(PID) == before


async def test_a_cancelled_call_leaves_no_session_and_sends_no_cancel(
    postgres: Postgres, control: Control
) -> None:
    """F054, F061: the session of a cancelled call ends, and the server is not asked to cancel."""
    first_messages: list[int] = []

    def listen(link: Link, side: Side, message: Message) -> Fate:
        if not message.kind:
            first_messages.append(message.code)
        return Fate.PASS

    with Proxy(postgres.dsn) as proxy:
        proxy.rules.append(listen)
        name = postgres.new_name()
        async with connections_of(named(proxy.dsn, name), connections_max=1) as connections:
            (row,) = await connections.fetch(PID)
            await control.bar(4714)
            call = asyncio.create_task(connections.fetch(HOLD, 4714))
            await control.wait_held(4714)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            (other,) = await connections.fetch(PID)
            assert other["pid"] != row["pid"]
            await control.open(4714)
            await control.wait_gone(row["pid"])
            assert await control.sessions(name) == {other["pid"]}
    assert len(first_messages) == 2
    assert CANCEL not in first_messages


async def test_no_answer_in_time_is_unknown(postgres: Postgres, control: Control) -> None:
    """A call without an answer ends as unknown; its connection is not used again."""
    async with connections_of(postgres.dsn, connections_max=1) as connections:
        (row,) = await connections.fetch(PID)
        await control.bar(4715)
        with pytest.raises(StorageUnknownError):
            await connections.fetch(HOLD, 4715, timeout_s=0.02)
        (other,) = await connections.fetch(PID)
        assert other["pid"] != row["pid"]
        await control.open(4715)
        await control.wait_gone(row["pid"])


async def test_an_answer_that_comes_with_the_end_of_the_patience_is_unknown(
    postgres: Postgres,
) -> None:
    """F080: a program that stood still meets the answer and the end of its patience at once.

    The connection is then ended between two messages of one call: prepared, and not yet executed.
    """
    async with connections_of(postgres.dsn) as connections:
        line = await connections.dial()
        connection: Any = line.connection
        timeout_s = 0.02
        call = asyncio.create_task(
            line.fetch("select 4719", (), explicit=False, timeout_s=timeout_s)
        )
        await asyncio.sleep(0)
        late_s = asyncio.get_running_loop().time() + timeout_s
        # The loop stands still, as that of a program does that was stopped.
        select.select([connection._transport.get_extra_info("socket").fileno()], [], [])
        while asyncio.get_running_loop().time() <= late_s:
            pass
        with pytest.raises(StorageUnknownError):
            await call
        assert not line.usable


async def test_one_silent_connection_is_waited_for_and_not_all(
    postgres: Postgres, control: Control
) -> None:
    """A network that swallows everything costs one wait: the other connections are made anew."""
    with Proxy(postgres.dsn) as proxy:
        async with connections_of(proxy.dsn) as connections:
            calls = [connections.fetch(HOLD, 4718) for _ in range(4)]
            await control.bar(4718)
            waiting = asyncio.gather(*calls)
            await control.wait_held(4718, 4)
            await control.open(4718)
            before = {row["pid"] for (row,) in await waiting}
            assert len(before) == 4
            proxy.hold()
            with pytest.raises(StorageUnknownError):
                await connections.fetch(PID, timeout_s=0.02)
            proxy.release()
            (row,) = await connections.fetch(PID)
            assert row["pid"] not in before


@pytest.mark.parametrize(("rule", "written"), [(cut_before, False), (lose_answer, True)])
async def test_a_cut_connection_is_unknown_and_a_repeat_works(
    postgres: Postgres, free_schema: str, rule: Any, written: bool
) -> None:
    """F051, F052: cut before the server or after its commit, the call says the same: unknown."""
    sql(postgres.dsn, f"create schema {free_schema}", f"create table {free_schema}.t (a int)")
    with Proxy(postgres.dsn) as proxy:
        async with connections_of(proxy.dsn) as connections:
            await connections.fetch(PID)
            proxy.rules.append(rule("insert into"))
            with pytest.raises(StorageUnknownError):
                await connections.fetch(f"insert into {free_schema}.t values (1)")
            rows = await connections.fetch(f"select a from {free_schema}.t")
            assert len(rows) == int(written)


async def test_a_restart_of_the_server_costs_time_only() -> None:
    """F050: calls fail while it is down, as unavailable or unknown, and work when it is back."""
    with ThrowAwayPostgres() as server:
        async with connections_of(server.dsn) as connections:
            await connections.fetch(PID)
            server.crash()
            for _ in range(3):
                with pytest.raises((StorageUnavailableError, StorageUnknownError)):
                    await connections.fetch(PID)
            server.start()
            for _ in range(3):
                try:
                    await connections.fetch(PID)
                    break
                except (StorageUnavailableError, StorageUnknownError):
                    continue
            assert await connections.fetch(PID)


async def _fetch(connections: Connections, write: str) -> None:
    await connections.fetch(write)


async def _use(connections: Connections, write: str) -> None:
    async with connections.use() as connection:
        await connection.execute(write)


@pytest.mark.parametrize("way", [_fetch, _use])
async def test_a_commit_that_no_standby_has_is_unknown(
    way: Callable[[Connections, str], Coroutine[Any, Any, None]],
) -> None:
    """F061: a wait for a standby that ends early has committed here only: unknown, not done."""
    settings = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    write = (
        "with sync as (select set_config('synchronous_commit', 'on', true))"
        " insert into written select 1 from sync"
    )
    with ThrowAwayPostgres(settings=settings) as server:
        server.sql("create table written (a int)")
        async with connections_of(server.dsn) as connections, control_of(server.dsn) as control:
            call = asyncio.create_task(way(connections, write))
            waiting = "from pg_stat_activity where wait_event = 'SyncRep'"
            await control.wait_until(f"select count(*) = 1 {waiting}")
            await control.connection.fetch(f"select pg_cancel_backend(pid) {waiting}")
            with pytest.raises(StorageUnknownError, match="no standby"):
                await call


# --- isolation -----------------------------------------------------------------------------


async def test_read_committed_is_asked_for_where_it_is_not_the_default(
    postgres: Postgres, role: str
) -> None:
    """F055: under default_transaction_isolation=serializable each call is READ COMMITTED."""
    sql(postgres.dsn, f"alter role {role} set default_transaction_isolation = 'serializable'")
    async with connections_of(dsn_as(postgres, role), connections_max=1) as connections:
        (row,) = await connections.fetch(ISOLATION, 1)
        assert row["level"] == "read committed"
        assert connections.explicit_isolation
        with pytest.raises(UnexpectedError):
            await connections.fetch(ISOLATION, 0)
        assert (await connections.fetch(ISOLATION, 1))[0]["level"] == "read committed"


async def test_a_default_that_changes_later_is_met(postgres: Postgres) -> None:
    """A function that refuses the isolation makes the next call ask for READ COMMITTED."""
    check = "do $$ begin raise exception 'x' using errcode = 'DT003'; end $$"
    async with connections_of(postgres.dsn) as connections:
        assert not connections.explicit_isolation
        with pytest.raises(StorageUnavailableError):
            await connections.fetch(check)
        assert connections.explicit_isolation
        assert (await connections.fetch(ISOLATION, 1))[0]["level"] == "read committed"


# --- what is done once ---------------------------------------------------------------------


async def test_setup_runs_once_and_before_every_call(postgres: Postgres) -> None:
    """Of many first calls at once one sets up, and the others wait for it."""
    done: list[str] = []

    async def set_up(connection: Any) -> None:
        await connection.execute("select 1")
        done.append("setup")

    async def call(connections: Connections) -> None:
        await connections.fetch(PID)
        done.append("call")

    async with (
        connections_of(postgres.dsn, setup=set_up) as connections,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(5):
            group.create_task(call(connections))
    assert done == ["setup"] + ["call"] * 5


async def test_a_setup_that_failed_is_tried_again(postgres: Postgres) -> None:
    """The next call sets up again; an error of the driver has been turned into one of ours."""
    end = "select pg_terminate_backend(pg_backend_pid())"
    texts = iter(["select 1 / 0", end, "select 1"])

    async def set_up(connection: Any) -> None:
        await connection.execute(next(texts))

    async with connections_of(postgres.dsn, setup=set_up) as connections:
        with pytest.raises(UnexpectedError):
            await connections.fetch(PID)
        with pytest.raises(StorageUnavailableError):  # what was asked was not sent: no doubt
            await connections.fetch(PID)
        assert not connections.ready
        assert await connections.fetch(PID)
        assert connections.ready


# --- a transaction of the caller's ---------------------------------------------------------


async def test_a_borrowed_connection_comes_back_clean_or_not_at_all(postgres: Postgres) -> None:
    """A body that ends inside of a transaction costs the connection, and its errors pass."""
    async with connections_of(postgres.dsn, connections_max=1) as connections:
        async with connections.use() as connection:
            first = await connection.fetchval(PID)
        with pytest.raises(ZeroDivisionError):
            await _leave_open(connections, first)
        async with connections.use() as connection:
            assert await connection.fetchval(PID) != first
            assert not connection.is_in_transaction()


async def _leave_open(connections: Connections, pid: int) -> None:
    async with connections.use() as connection:
        assert await connection.fetchval(PID) == pid
        await connection.execute("begin")
        raise ZeroDivisionError


# --- whose it is ---------------------------------------------------------------------------


async def test_another_loop_is_refused(postgres: Postgres) -> None:
    """A storage belongs to the loop that used it first; a call from another one sends nothing."""
    async with connections_of(postgres.dsn) as connections:
        await connections.fetch(PID)
        with pytest.raises(WrongContextError, match="one storage for each loop"):
            await asyncio.to_thread(lambda: asyncio.run(connections.fetch(PID)))


async def test_the_child_of_a_fork_is_refused(postgres: Postgres) -> None:
    """F015: a forked child neither uses nor closes the connections; the parent is unharmed."""
    async with connections_of(postgres.dsn) as connections:
        before = await connections.fetch(PID)
        child = os.fork()
        if not child:
            os._exit(_in_the_child(connections))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await connections.fetch(PID) == before


def _in_the_child(connections: Connections) -> int:
    """Use and close connections of the parent; return 0 if that was refused and did nothing."""
    try:
        connections.fetch(PID).send(None)
    except WrongContextError:
        try:
            connections.close().send(None)
        except StopIteration:
            return 0
    except BaseException:
        return 1
    return 2


async def test_a_closed_storage_says_so(postgres: Postgres) -> None:
    """After close, which can be repeated, a call is refused for good."""
    async with connections_of(postgres.dsn) as connections:
        await connections.fetch(PID)
        await connections.close()
        await connections.close()
        with pytest.raises(StorageFailedError, match="closed"):
            await connections.fetch(PID)


async def test_closing_lets_a_call_end_and_refuses_who_waits(
    postgres: Postgres, control: Control
) -> None:
    """What is in use when the storage is closed gets its answer; then its session ends."""
    async with connections_of(postgres.dsn, connections_max=1) as connections:
        await control.bar(4716)
        running = asyncio.create_task(connections.fetch(HOLD, 4716))
        await control.wait_held(4716)
        waiting = asyncio.create_task(connections.fetch(PID))
        await asyncio.sleep(0)
        await connections.close()
        with pytest.raises(StorageFailedError):
            await waiting
        await control.open(4716)
        (row,) = await running
        await control.wait_gone(row["pid"])


async def test_a_value_that_cannot_be_sent_is_not_unknown(postgres: Postgres) -> None:
    """What the driver cannot encode has never left: refused, and the next call goes through."""
    async with connections_of(postgres.dsn) as connections:
        for value in (2**40, "text"):
            with pytest.raises(UnexpectedError, match="invalid input"):
                await connections.fetch("select $1::integer", value)
        assert await connections.fetch(PID)
