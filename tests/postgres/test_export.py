"""What Postgres holds of a process is exported, tried with new code, and ended in memory."""

import asyncio

from durabletask import Process, ProcessHost
from durabletask.testing import (
    Verdict,
    VirtualClock,
    check_histories,
    export_history,
    import_histories,
    run_virtual,
)
from durabletask_postgres import PostgresStorage
from tests.postgres.server import Postgres
from tests.postgres.stores import PATIENCE_S


async def first() -> str:
    return "first"


async def order(proc: Process) -> list[str]:
    """Be the release that is live: a step, a transaction, a variable, a wait."""

    async def write(connection: object) -> str:
        return "written"

    done = [await proc.do("first", first), await proc.transaction("rows", write)]
    cursor = await proc.var("cursor", 0)
    for _ in range(3):
        await cursor.set(cursor.value + 1)
    return [*done, str(cursor.value), await proc.event("go", str)]


async def without_rows(proc: Process) -> list[str]:
    """Be a later release, which asks for a recorded transaction as a step."""
    return [await proc.do("first", first), await proc.do("rows", first)]


async def without_transaction(proc: Process) -> list[str]:
    """Be the same code where there is no database: what is recorded is known."""
    done = [await proc.do("first", first)]
    cursor = await proc.var("cursor", 0)
    return [*done, str(cursor.value), await proc.event("go", str)]


def test_a_process_in_postgres_is_exported(postgres: Postgres, schema: str) -> None:
    """Issue 4.5: the check knows transactions; an import goes on with what was recorded."""

    async def live() -> bytes:
        storage = PostgresStorage(postgres.dsn, schema=schema, migrate=False)
        async with ProcessHost(storage, processes=[order]) as host, asyncio.timeout(PATIENCE_S):
            handle = await host.spawn(order, "p")
            while not (await handle.info()).waits:
                await asyncio.sleep(0.01)
            return await export_history(host, "p")

    history = asyncio.run(live())
    (report,) = check_histories(order, [history])
    assert (report.verdict, report.waits) == (Verdict.OK, ("event 'go'",))
    (report,) = check_histories(without_rows, [history], name="order")
    assert report.verdict is Verdict.QUARANTINED
    (report,) = check_histories(without_transaction, [history], name="order")
    assert report.left_behind == ("transaction 'rows'",)

    async def finish(clock: VirtualClock) -> list[str]:
        host = ProcessHost(import_histories([history], clock), clock=clock)
        host.process(name="order")(without_transaction)
        async with host:
            await host.raise_event("p", "go", "on")
            result: list[str] = await host.get("p").result()
            return result

    assert run_virtual(finish) == ["first", "3", "on"]
