"""The user's rows and ours are one: in the user's transaction, and in a step's own."""

from collections import Counter
from typing import Literal

import pytest

from durabletask import Process, ProcessClient, ProcessHost
from durabletask.errors import StepError, StorageError
from durabletask_postgres import PostgresStorage
from tests.postgres.proxy import Fate, Link, Proxy
from tests.postgres.stores import PATIENCE_S, Connection, Schemas, connected
from tests.postgres.wire import Message, Side

IsolationLevels = Literal["read_committed", "repeatable_read", "serializable"]

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

CUTS = 10
PAID = "paid"


class AtCommit:
    """Cuts connections at COMMIT: before it reaches the server, or before its answer is heard."""

    def __init__(self, answer: bool, times: int) -> None:
        self.hits = 0
        self._answer = answer
        self._times = times

    def __call__(self, link: Link, side: Side, message: Message) -> Fate:
        if self.hits == self._times or "commit" not in (each.strip() for each in link.running):
            return Fate.PASS
        if not self._answer:
            self.hits += 1
            return Fate.CUT
        if side is Side.CLIENT:
            return Fate.PASS
        if message.kind != "Z":
            return Fate.DROP
        self.hits += 1
        return Fate.CUT


async def rows(dsn: str, schema: str) -> Counter[str]:
    """Return how often each process has been written into the user's table."""
    async with connected(dsn) as connection:
        found = await connection.fetch(f"select name from {schema}.paid")
        return Counter(each["name"] for each in found)


async def make_table(dsn: str, schema: str) -> None:
    """Make the user's table, which forgives no row but counts them."""
    async with connected(dsn) as connection:
        await connection.execute(f"create table if not exists {schema}.paid (name text not null)")
        await connection.execute(f"delete from {schema}.paid")


@pytest.mark.parametrize("answer", [False, True])
async def test_rows_of_a_transaction_are_written_once_however_often_it_is_cut(
    schemas: Schemas, answer: bool
) -> None:
    """Issue 3 point 5 F003: cut before COMMIT or its answer, ten times: one row a process."""

    async def pay(proc: Process) -> str:
        async def body(connection: Connection) -> str:
            await connection.execute(f"insert into {schema}.paid values ($1)", proc.id)
            return proc.id

        return await proc.transaction("pay", body)

    with schemas.new() as schema, Proxy(schemas.dsn) as proxy:
        await make_table(schemas.dsn, schema)
        rule = AtCommit(answer, CUTS)
        proxy.rules.append(rule)
        storage = PostgresStorage(proxy.dsn, schema=schema, lease_ttl_s=LONG_S)
        async with ProcessHost(storage, processes=[pay]) as host:
            ids = [f"p{number}" for number in range(CUTS)]
            handles = [await host.spawn(pay, each) for each in ids]
            assert [await each.result(timeout=PATIENCE_S) for each in handles] == ids
        assert rule.hits == CUTS
        assert await rows(schemas.dsn, schema) == Counter(ids)


async def test_a_transaction_whose_session_is_ended_runs_again(schemas: Schemas) -> None:
    """F068: an administrator ends the session inside of the body; its rows are written once."""
    begun = 0

    async def pay(proc: Process) -> str:
        async def body(connection: Connection) -> str:
            nonlocal begun
            begun += 1
            await connection.execute(f"insert into {schema}.paid values ($1)", proc.id)
            if begun == 1:
                await connection.execute("select pg_terminate_backend(pg_backend_pid())")
            return PAID

        return await proc.transaction("pay", body)

    with schemas.new() as schema:
        await make_table(schemas.dsn, schema)
        storage = PostgresStorage(schemas.dsn, schema=schema, lease_ttl_s=LONG_S)
        async with ProcessHost(storage, processes=[pay]) as host:
            handle = await host.spawn(pay, "p")
            assert await handle.result(timeout=PATIENCE_S) == PAID
        assert begun == 2
        assert await rows(schemas.dsn, schema) == {"p": 1}


async def test_a_constraint_that_fails_at_commit_is_the_step_s_failure(schemas: Schemas) -> None:
    """Rule 3: a deferred constraint of the user's is an error of the function, recorded as such."""

    async def pay(proc: Process) -> str:
        async def body(connection: Connection) -> None:
            await connection.execute(f"insert into {schema}.once values (1), (1)")

        try:
            await proc.transaction("pay", body)
        except StepError as error:
            return error.type
        return "nothing"

    with schemas.new() as schema:
        async with connected(schemas.dsn) as connection:
            await connection.execute(
                f"create table {schema}.once (n int unique deferrable initially deferred)"
            )
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessHost(storage, processes=[pay]) as host:
            handle = await host.spawn(pay, "p")
            assert "UniqueViolation" in await handle.result(timeout=PATIENCE_S)
        async with connected(schemas.dsn) as connection:
            await connection.execute(f"drop table {schema}.once")


async def test_a_spawn_in_the_users_transaction_is_as_real_as_its_rows(schemas: Schemas) -> None:
    """S1.16: open, nobody waits for it; rolled back, nothing was; committed, it runs."""

    async def order(proc: Process, number: int) -> int:
        return await proc.do("double", lambda: number * 2)

    with schemas.new() as schema:
        await make_table(schemas.dsn, schema)
        storage = PostgresStorage(schemas.dsn, schema=schema)
        client = ProcessClient(
            PostgresStorage(schemas.dsn, schema=schema, notify=True), processes=[order]
        )
        async with ProcessHost(storage, processes=[order]) as host, connected(schemas.dsn) as user:

            async def place(number: int) -> None:
                await client.spawn(order, f"order/{number}", number, connection=user)
                await user.execute(f"insert into {schema}.paid values ($1)", f"order/{number}")

            undone = user.transaction()
            await undone.start()
            await place(1)
            others = [await host.spawn(order, f"other/{number}", number) for number in range(20)]
            assert [await each.result(timeout=PATIENCE_S) for each in others] == [
                2 * number for number in range(20)
            ]
            assert list(await storage.read(["order/1"])) == [None]
            await undone.rollback()
            async with user.transaction():
                await place(2)
            handle = client.get(order, "order/2")
            assert await handle.result(timeout=PATIENCE_S) == 4
            assert await rows(schemas.dsn, schema) == {"order/2": 1}
        await client.storage.close()


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_the_users_transaction_may_have_any_isolation(
    schemas: Schemas, isolation: IsolationLevels
) -> None:
    """F074: spawning and raising in it works whatever it sees."""

    async def order(proc: Process, number: int) -> str:
        return f"{number} {await proc.event('paid', str)}"

    with schemas.new() as schema:
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessHost(storage, processes=[order]) as host, connected(schemas.dsn) as user:
            async with user.transaction(isolation=isolation):
                await host.spawn(order, "p", 7, connection=user)
                again = await host.spawn(order, "p", 7, connection=user)
            async with user.transaction(isolation=isolation):
                await again.raise_event("paid", "cash", connection=user)
            assert await again.result(timeout=PATIENCE_S) == "7 cash"


async def test_a_transaction_that_only_reads_takes_nothing(schemas: Schemas) -> None:
    """Issue 3, bad input: the error is the storage's and not the driver's; nothing is there."""

    async def order(proc: Process) -> None:
        await proc.event("paid", str)

    with schemas.new() as schema:
        storage = PostgresStorage(schemas.dsn, schema=schema)
        async with ProcessHost(storage, processes=[order]) as host, connected(schemas.dsn) as user:
            async with user.transaction(readonly=True):
                with pytest.raises(StorageError):
                    await host.spawn(order, "p", connection=user)
            assert list(await storage.read(["p"])) == [None]
