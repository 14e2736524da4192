"""`proc.transaction` and `connection=` on a real server: the user's rows and ours are one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from durabletask import Process, ProcessClient, ProcessHost, RetryPolicy, current_step
from durabletask.errors import (
    InvalidArgumentError,
    ProcessBusyError,
    StepError,
    UnknownProcessError,
)
from durabletask_postgres import PostgresStorage
from tests.postgres.stores import Connection, connected

PATIENCE_S = 30.0
TABLES = """
create table account (name text primary key, balance integer not null check (balance >= 0));
create table entry (id integer primary key, name text references account deferrable initially
    deferred);
insert into account values ('alice', 100), ('bob', 0);
"""


@pytest.fixture
async def look(database: str) -> AsyncIterator[Connection]:
    """Return a connection of the user's, with tables of the user's, to look with."""
    async with connected(database) as connection:
        await connection.execute(TABLES)
        yield connection


@pytest.fixture
def dsn(database: str, look: Connection) -> str:
    """Return a database that has the user's tables."""
    return database


async def balances(look: Connection) -> dict[str, int]:
    return {each["name"]: each["balance"] for each in await look.fetch("select * from account")}


async def move(connection: Connection) -> int:
    await connection.execute("update account set balance = balance - 10 where name = 'alice'")
    await connection.execute("update account set balance = balance + 10 where name = 'bob'")
    balance: int = await connection.fetchval("select balance from account where name = 'bob'")
    return balance


async def test_the_users_rows_and_the_record_are_one(dsn: str, look: Connection) -> None:
    """Issue 3.5: committed together; a later run recalls it."""

    async def process(proc: Process) -> int:
        moved = await proc.transaction("move", move)
        await proc.event("go")
        return moved

    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        await host.spawn(process, "p")
        while await balances(look) != {"alice": 90, "bob": 10}:
            await asyncio.sleep(0.01)
    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result(PATIENCE_S) == 10
    assert await balances(look) == {"alice": 90, "bob": 10}


@pytest.mark.parametrize("fault", ["check", "deferred", "swallowed", "raised", "ended"])
async def test_what_the_server_refuses_is_the_steps_failure(
    dsn: str, look: Connection, fault: str
) -> None:
    """Rule 2: also where it refuses only at the commit; all is rolled back, the host is well."""

    async def wrong(connection: Connection) -> None:
        await connection.execute("update account set balance = 7 where name = 'bob'")
        match fault:
            case "check":
                await connection.execute("update account set balance = -1 where name = 'alice'")
            case "deferred":
                await connection.execute("insert into entry values (1, 'nobody')")
            case "swallowed":
                try:
                    await connection.execute("select 1/0")
                except asyncpg.DivisionByZeroError:
                    return
            case "ended":
                await connection.execute("rollback")
            case _:
                raise ValueError("no")

    async def process(proc: Process) -> str:
        try:
            await proc.transaction("t", wrong)
        except (StepError, InvalidArgumentError) as error:
            return f"{type(error).__name__} {error}"
        return "?"

    names = {
        "check": "CheckViolationError",
        "deferred": "ForeignKeyViolationError",
        "swallowed": "InvalidArgumentError",
        "ended": "InvalidArgumentError",
        "raised": "ValueError",
    }
    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        result = await (await host.spawn(process, "p")).result(PATIENCE_S)
        assert names[fault] in result
        assert await (await host.spawn(process, "q")).result(PATIENCE_S) == result
    assert await balances(look) == {"alice": 100, "bob": 0}


async def test_a_connection_that_is_cut_in_the_function_costs_time_only(
    dsn: str, look: Connection
) -> None:
    """F009: nothing was committed, and the function runs again; user code sees no failure."""
    runs: list[int] = []

    async def cut_once(connection: Connection) -> int:
        runs.append(1)
        if len(runs) == 1:
            pid = await connection.fetchval("select pg_backend_pid()")
            await look.execute("select pg_terminate_backend($1)", pid)
        return await move(connection)

    async def process(proc: Process) -> int:
        return await proc.transaction("t", cut_once)

    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        assert await (await host.spawn(process, "p")).result(PATIENCE_S) == 10
    assert len(runs) == 2
    assert await balances(look) == {"alice": 90, "bob": 10}


async def test_transactions_that_wait_for_each_other_give_way(dsn: str, look: Connection) -> None:
    """F009: a deadlock between two of them is no failure of either."""
    meet = asyncio.Barrier(2)
    runs: list[str] = []

    def crossing(first: str, second: str) -> Any:
        async def cross(connection: Connection) -> None:
            runs.append(first)
            add = "update account set balance = balance + 1 where name = $1"
            await connection.execute(add, first)
            if len(runs) <= 2:
                await meet.wait()
            await connection.execute(add, second)

        return cross

    async def process(proc: Process, first: str, second: str) -> str:
        try:
            await proc.transaction("t", crossing(first, second))
        except StepError as error:
            return str(error)
        return "done"

    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        handles = [
            await host.spawn(process, "p", "alice", "bob"),
            await host.spawn(process, "q", "bob", "alice"),
        ]
        assert [await each.result(PATIENCE_S) for each in handles] == ["done", "done"]
    assert len(runs) == 3
    assert await balances(look) == {"alice": 102, "bob": 2}


async def test_each_attempt_is_a_transaction_of_its_own(dsn: str, look: Connection) -> None:
    """Rule 11: what a failed attempt wrote is gone before the next begins."""

    async def third_time(connection: Connection) -> int:
        balance = await move(connection)
        if current_step().attempt < 3:
            raise ValueError("not yet")
        return balance

    async def process(proc: Process) -> int:
        retry = RetryPolicy(attempts_max=3, delay_s=0.01)
        return await proc.transaction("t", third_time, retry=retry)

    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        assert await (await host.spawn(process, "p")).result(PATIENCE_S) == 10
    assert await balances(look) == {"alice": 90, "bob": 10}


async def test_cancelled_by_user_code_both_runs_see_the_same(dsn: str, look: Connection) -> None:
    """Rule 6: cancelled at any point of it: rolled back and recorded so, or committed and seen."""

    async def process(proc: Process, rounds: int) -> bool:
        task = asyncio.ensure_future(proc.transaction("t", move))
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        return not isinstance(done[0], BaseException)

    async with ProcessHost(PostgresStorage(dsn), processes=[process]) as host:
        handles = [await host.spawn(process, f"p{n}", n * 3) for n in range(1, 40)]
        committed = [await each.result(PATIENCE_S) for each in handles]
    assert await balances(look) == {"alice": 100 - 10 * sum(committed), "bob": 10 * sum(committed)}


async def test_a_spawn_and_an_event_in_the_users_transaction(dsn: str, look: Connection) -> None:
    """Issue 3.5: nothing is there before the commit, all after, and nobody waits meanwhile."""

    async def waits(proc: Process) -> str:
        return await proc.event("go", str)

    client = ProcessClient(PostgresStorage(dsn), processes=[waits])
    async with (
        ProcessHost(PostgresStorage(dsn), processes=[waits]) as host,
        client,
        connected(dsn) as mine,
    ):
        transaction = mine.transaction()
        await transaction.start()
        await mine.execute("insert into account values ('carol', 1)")
        handle = await client.spawn(waits, "p", connection=mine)
        await client.raise_event("p", "go", "committed", connection=mine)
        with pytest.raises(UnknownProcessError):
            await host.get("p").info()
        with pytest.raises(ProcessBusyError, match="'p'"):
            await host.spawn(waits, "p")
        other = await host.spawn(waits, "q")
        await other.raise_event("go", "beside")
        assert await other.result(PATIENCE_S) == "beside"
        await transaction.commit()
        assert await handle.result(PATIENCE_S) == "committed"
        with pytest.raises(InvalidArgumentError, match="transaction"):
            await client.spawn(waits, "r", connection=mine)
    assert (await balances(look))["carol"] == 1
