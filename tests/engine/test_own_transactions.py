"""Spawning and raising in a transaction of the caller's own."""

import asyncio

import pytest

from durabletask import Process, ProcessClient
from durabletask.errors import (
    InvalidArgumentError,
    ProcessBusyError,
    ProcessExistsError,
    ProcessFinishedError,
    UnknownProcessError,
)
from durabletask.storage import Transactions
from tests.engine.database import Connection, Database, database_of, host_of
from tests.engine.world import World, virtual


async def simple(proc: Process, number: int) -> int:
    return number


async def waits(proc: Process) -> list[str]:
    return [await proc.event("go", str, key=f"go {n}") for n in range(2)]


@virtual
async def test_a_process_is_spawned_with_the_callers_transaction(world: World) -> None:
    """Issue 3.5: it exists if and when the caller commits, together with the caller's rows."""
    database = database_of(world)
    async with host_of(world, simple) as host:
        connection = Connection(database)
        async with connection.transaction():
            await connection.write("order", 7)
            handle = await host.spawn(simple, "p", 7, connection=connection)
            await asyncio.sleep(60)
            with pytest.raises(UnknownProcessError):
                await handle.info()
            assert database.table == {}
        assert await handle.result(timeout=2.0) == 7
        assert database.table == {"order": 7}
        connection.begin()
        handle = await host.spawn(simple, "q", 7, connection=connection)
        connection.rollback()
        await asyncio.sleep(60)
        with pytest.raises(UnknownProcessError):
            await handle.info()


@virtual
async def test_an_open_transaction_holds_up_nobody_else(world: World) -> None:
    """Issue 3.5, G13: meanwhile the id is busy for others, and everything else goes on."""
    database = database_of(world)
    async with host_of(world, simple) as host:
        connection = Connection(database)
        other = Connection(database)
        async with connection.transaction():
            handle = await host.spawn(simple, "p", 7, connection=connection)
            assert await (await host.spawn(simple, "q", 1)).result(timeout=1.0) == 1
            with pytest.raises(ProcessBusyError, match="'p'"):
                await host.spawn(simple, "p", 7)
            async with other.transaction():
                begun_s = world.clock.monotonic_s()
                with pytest.raises(ProcessBusyError, match="'p'"):
                    await host.spawn(simple, "p", 7, connection=other)
                # At once: to wait inside a transaction would hold up what that has locked.
                assert world.clock.monotonic_s() == begun_s
            waiting = asyncio.create_task(host.spawn(simple, "p", 7))
            await asyncio.sleep(1)
        assert await (await waiting).result() == await handle.result() == 7


@virtual
async def test_a_spawn_in_a_transaction_is_idempotent(world: World) -> None:
    """Rule 13: the same id, function and input is the same process, in a transaction too."""
    database = database_of(world)
    async with host_of(world, simple) as host:
        await (await host.spawn(simple, "p", 7)).result()
        connection = Connection(database)
        async with connection.transaction():
            handle = await host.spawn(simple, "p", 7, connection=connection)
            with pytest.raises(ProcessExistsError):
                await host.spawn(simple, "p", 8, connection=connection)
        assert await handle.result() == 7


@virtual
async def test_an_event_is_raised_with_the_callers_transaction(world: World) -> None:
    """Issue 3.5: events arrive when the caller commits, in order; a rolled back one never."""
    database = database_of(world)
    async with host_of(world, waits) as host:
        handle = await host.spawn(waits, "p")
        connection = Connection(database)
        connection.begin()
        await host.raise_event("p", "go", "never", connection=connection)
        connection.rollback()
        async with connection.transaction():
            await host.raise_event("p", "go", "first", connection=connection)
            await handle.raise_event("go", "second", connection=connection)
            with pytest.raises(UnknownProcessError):
                await host.raise_event("none", "go", connection=connection)
            await asyncio.sleep(60)
            assert world.row("p").status == "waiting"
        assert await handle.result(timeout=2.0) == ["first", "second"]
        async with connection.transaction():
            with pytest.raises(ProcessFinishedError):
                await handle.raise_event("go", "late", connection=connection)


@virtual
async def test_a_connection_without_a_transaction_is_refused(world: World) -> None:
    """Bad input: no open transaction, or no connection at all; nothing is written."""
    database = database_of(world)
    async with host_of(world, waits) as host:
        await host.spawn(waits, "p")
        for connection in (Connection(database), Connection(Database(world.clock)), "dsn"):
            with pytest.raises(InvalidArgumentError):
                await host.spawn(waits, "q", connection=connection)
            with pytest.raises(InvalidArgumentError):
                await host.raise_event("p", "go", connection=connection)
        assert list(database._processes) == ["p"]
        assert database._processes["p"].events() == ()


@virtual
async def test_a_storage_without_transactions_says_so(world: World) -> None:
    """Bad input: connection= with a storage that has none: an error with a hint, and no write."""
    client = ProcessClient(world.storage, processes=[simple])
    assert not isinstance(world.storage, Transactions)
    with pytest.raises(InvalidArgumentError, match="MemoryStorage") as caught:
        await client.spawn(simple, "p", 7, connection=object())
    assert caught.value.hint is not None
    await client.spawn(simple, "p", 7)
    with pytest.raises(InvalidArgumentError, match="MemoryStorage"):
        await client.raise_event("p", "go", connection=object())
    assert world.storage._processes["p"].events() == ()
