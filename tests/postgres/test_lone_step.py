"""A lone step goes as one statement without a function: what that alone must not lose."""

import asyncio
from typing import cast

import pytest

from durabletask.errors import LeaseLostError, StorageUnavailableError, StorageUnknownError
from durabletask.testing._conformance.world import World, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres._connections import Connections
from durabletask_postgres._sql import Statements
from tests.postgres.backends import HOLD, PID, Control, connections_of
from tests.postgres.gates import wait_blocked
from tests.postgres.server import Postgres
from tests.postgres.stores import Schemas, connected, new_world

ISOLATIONS = ["read committed", "repeatable read", "serializable"]

LIMIT_S = 60.0
"""Of a call that is answered at once. Nobody waits for its end: the loop's clock is put forward."""


def connections_in(world: World) -> Connections:
    """Return the connections of a world's storage."""
    return cast("PostgresStorage", world.storage)._connections


async def change_default(connections: Connections, isolation: str) -> None:
    """Change the isolation of the session that is asked next, as a new configuration would."""
    async with connections.use() as connection:
        await connection.execute(f"set default_transaction_isolation = '{isolation}'")


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_step_that_waits_for_its_fence_is_refused_once_that_is_set(
    schemas: Schemas, isolation: str
) -> None:
    """F055: in every isolation a step behind a fence that is being set is not written."""
    with schemas.new() as schema:
        fence = Statements(schema).rewrite("update durabletask.fence set fenced_at = now()")
        async with new_world(schemas.dsn, schema) as world, connected(schemas.dsn) as other:
            lease = await world.host("me")
            (row,) = await world.add("p", lease=lease)
            await world.done(lease, unit(row, 1, step("a")))
            await change_default(connections_in(world), isolation)
            await world.done(lease, unit(row, 2, step("b")))
            late = unit(row, 3, step("c"))
            async with other.transaction():
                await other.execute(fence)
                call = asyncio.create_task(world.commit(lease, late))
                await wait_blocked(other, 1)
            with pytest.raises((LeaseLostError, StorageUnavailableError)):
                await call
            for _ in range(2):  # the first may still learn of the isolation
                with pytest.raises((LeaseLostError, StorageUnavailableError)) as refused:
                    await world.commit(lease, late)
            assert refused.type is LeaseLostError
            assert list(await world.payloads("p")) == ["a", "b"]


async def test_one_after_another_has_its_own_limit(
    postgres: Postgres, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One timer serves all calls of a connection: it ends no later one, and each in its time."""
    async with connections_of(postgres.dsn, connections_max=1) as connections:
        (row,) = await connections.fetch(PID, timeout_s=LIMIT_S)
        await control.bar(4730)
        patient = asyncio.create_task(connections.fetch(HOLD, 4730, timeout_s=1000 * LIMIT_S))
        await control.wait_held(4730)
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + LIMIT_S)  # the first call's limit is over
        for _ in range(3):  # and is looked at, as the loop has gone round
            await asyncio.sleep(0)
        await control.open(4730)
        assert (await patient)[0]["pid"] == row["pid"]
        await control.bar(4731)
        with pytest.raises(StorageUnknownError):
            await connections.fetch(HOLD, 4731, timeout_s=0.02)
        await control.open(4731)
