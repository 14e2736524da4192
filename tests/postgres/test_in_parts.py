"""A call of the seam that takes several statements, of which a later one is not carried out."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from durabletask.errors import (
    LeaseLostError,
    StorageFormatError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import Kind, ProcessRow, Status, Unit
from durabletask.testing._conformance.world import child, event, new, step, unit
from durabletask_postgres._sql import Statements
from tests.postgres.gates import fence_behind, plant
from tests.postgres.server import Postgres
from tests.postgres.stores import connected, make, new_world

Batch = Callable[[ProcessRow, ProcessRow], list[Unit]]


def _rounds(p: ProcessRow, q: ProcessRow) -> list[Unit]:
    return [
        unit(p, 1, step("a"), status=Status.WAITING),
        unit(q, 1, step("b"), status=Status.WAITING),
        unit(q, 2, step("c"), status=Status.RUNNING),
    ]


def _steps(p: ProcessRow, q: ProcessRow) -> list[Unit]:
    return [unit(p, 1, step("a")), unit(q, 0, step("b"))]  # of which one is not counted


def _turns(p: ProcessRow, q: ProcessRow) -> list[Unit]:
    born = unit(q, 1, step("b", kind=Kind.CHILD), spawns=(child(q, "c"),))
    return [unit(p, 1, step("a")), born]


@pytest.mark.parametrize(("batch", "keys_of_q"), [(_rounds, ["b"]), (_steps, []), (_turns, [])])
async def test_a_lease_lost_amid_a_batch_is_no_refusal_of_all(
    postgres: Postgres, free_schema: str, batch: Batch, keys_of_q: list[str]
) -> None:
    """G5 F016 F080: what was written before the lease was lost is not called "not written"."""
    await make(postgres.dsn, free_schema)
    await fence_behind(postgres.dsn, free_schema, "a")
    async with new_world(postgres.dsn, free_schema) as world:
        lease = await world.host("me")
        units = batch(*await world.add("p", "q", lease=lease))
        with pytest.raises(StorageUnknownError, match="lost its lease"):
            await world.commit(lease, *units)
        assert list(await world.payloads("p")) == ["a"]
        with pytest.raises(LeaseLostError):
            await world.commit(lease, *units)
        assert list(await world.payloads("p")) == ["a"]
        assert list(await world.payloads("q")) == keys_of_q


async def test_a_lease_lost_before_anything_is_written_is_a_refusal(
    postgres: Postgres, free_schema: str
) -> None:
    """G5: one statement that is refused says so, and nothing is there."""
    await make(postgres.dsn, free_schema)
    await fence_behind(postgres.dsn, free_schema, "a")
    async with new_world(postgres.dsn, free_schema) as world:
        lease = await world.host("me")
        p, q = await world.add("p", "q", lease=lease)
        await world.done(lease, unit(p, 1, step("a")))
        with pytest.raises(LeaseLostError, match="nothing was written"):
            await world.commit(lease, *_rounds(q, p))
        assert await world.payloads("q") == {}


async def test_creations_are_not_called_unwritten_where_the_rest_cannot_be_read(
    postgres: Postgres, free_schema: str
) -> None:
    """F050 F060: one is made, the other was there before, and what it is cannot be asked for."""
    await make(postgres.dsn, free_schema)
    rename = Statements(free_schema).rewrite("alter view durabletask.process_row rename to away")
    async with new_world(postgres.dsn, free_schema) as world, connected(postgres.dsn) as user:
        await world.add("there")
        await user.execute(rename)
        with pytest.raises(StorageUnknownError):
            await world.storage.create([new("made"), new("there")])
        with pytest.raises(StorageFormatError):
            await world.storage.create([new("there")])  # of which nothing was to be written
        await user.execute(f"alter view {free_schema}.away rename to process_row")
        created, there = await world.storage.create([new("made"), new("there")])
        assert created.fresh
        assert there.row is not None


@pytest.mark.parametrize("function", ["create_processes", "post_letter"])
async def test_what_ends_with_the_users_session_was_not_written(
    postgres: Postgres, free_schema: str, function: str
) -> None:
    """F050: a user's transaction that ends with its session is rolled back: nobody need doubt."""
    await make(postgres.dsn, free_schema)
    at_once = "perform pg_terminate_backend(pg_backend_pid());"
    await plant(postgres.dsn, free_schema, function, "perform durabletask.be_durable();", at_once)
    async with new_world(postgres.dsn, free_schema) as world, connected(postgres.dsn) as user:
        await user.execute("begin")
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "create_processes": partial(world.transactions.create_in, user, new("p")),
            "post_letter": partial(
                world.transactions.deliver_in, user, event("p", "e"), mailbox_max=9
            ),
        }
        with pytest.raises(StorageUnavailableError):
            await calls[function]()


async def test_a_creation_that_is_refused_as_a_whole_is_called_so(
    postgres: Postgres, free_schema: str
) -> None:
    """F050: the only statement fails; it was certainly not written, and that is what is said."""
    await make(postgres.dsn, free_schema)
    rename = "alter function durabletask.create_processes rename to away"
    async with new_world(postgres.dsn, free_schema) as world, connected(postgres.dsn) as user:
        await user.execute(Statements(free_schema).rewrite(rename))
        with pytest.raises(StorageFormatError):
            await world.storage.create([new("p"), new("q")])
        assert [*await world.storage.read(["p", "q"])] == [None, None]
