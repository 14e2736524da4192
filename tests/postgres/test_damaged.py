"""What cannot be read on the disk stops the processes that it belongs to, and no others."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from durabletask.storage import DONE, ProcessRow, Refusal, Status, UnitOutcome
from durabletask.testing._conformance.world import step, unit
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.damage import damage
from tests.postgres.stores import aside, connected, make, new_world

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

BUSY = UnitOutcome(refused=Refusal.BUSY)


@dataclass(frozen=True)
class Damaged:
    """A database in which one page of a table cannot be read.

    Attributes:
        dsn: Its DSN; the schema is "x".
        rows: 100 processes of the host "me", each with one step, ten rows of each table a page.
        lost: The ids of those of which something stands on the page.
    """

    dsn: str
    rows: list[ProcessRow]
    lost: frozenset[str]


@contextmanager
def new_damaged(table: str) -> Iterator[Damaged]:
    """Make a server, fill it, and damage a page of a table of the storage."""
    long = b'"' + b"x" * 550 + b'"'

    async def fill(dsn: str) -> list[ProcessRow]:
        await make(dsn, "x")
        async with new_world(dsn, "x", lease_ttl_s=LONG_S) as world:
            lease = await world.host("me")
            rows = await world.add(
                *(f"p{number}" for number in range(100)), lease=lease, input=long
            )
            await world.done(lease, *(unit(row, 1, step("a", long)) for row in rows))
            return rows

    with ThrowAwayPostgres() as server:
        rows = aside(lambda: fill(server.dsn))
        on_page = (
            f"select p.process_id from x.process p join x.{table} t on t.process_no = p.process_no"
            " where t.ctid::text like '(2,%'"
        )
        lost = frozenset(server.sql(on_page).split())
        assert 5 < len(lost) < 15
        damage(server, f"x.{table}", page=2)
        yield Damaged(server.dsn, rows, lost)


@pytest.fixture(scope="module")
def damaged_rows() -> Iterator[Damaged]:
    """Some processes' own rows cannot be read."""
    with new_damaged("process") as damaged:
        yield damaged


@pytest.fixture(scope="module")
def damaged_checkpoints() -> Iterator[Damaged]:
    """Some processes' checkpoints cannot be read."""
    with new_damaged("checkpoint") as damaged:
        yield damaged


@pytest.mark.parametrize("status", [None, Status.WAITING])
async def test_processes_whose_rows_are_damaged_stop_and_no_others(
    damaged_rows: Damaged, status: Status | None
) -> None:
    """G13: steps and changes of a batch: theirs are busy, everything else is recorded."""
    seq = 3 if status else 2
    async with new_world(damaged_rows.dsn, "x", lease_ttl_s=LONG_S) as world:
        lease = await world.host("me")
        units = [unit(row, seq, step(f"b{seq}"), status=status) for row in damaged_rows.rows]
        outcomes = await world.commit(lease, *units)
        busy = {each.process_id for each, it in zip(units, outcomes, strict=True) if it == BUSY}
        done = {each.process_id for each, it in zip(units, outcomes, strict=True) if it == DONE}
        assert busy == damaged_rows.lost
        assert len(done) + len(busy) == len(units)


@pytest.mark.parametrize("which", ["damaged_checkpoints", "damaged_rows"])
async def test_a_takeover_passes_by_what_is_damaged(
    request: pytest.FixtureRequest, which: str
) -> None:
    """G13: the next host goes on with all processes but those that cannot be read."""
    damaged: Damaged = request.getfixturevalue(which)
    async with new_world(damaged.dsn, "x", lease_ttl_s=LONG_S) as world:
        lease = await world.host("other")
        async with connected(damaged.dsn) as connection:
            await connection.execute("update x.lease set expires_at = now() where not witness")
            await connection.execute(
                "update x.lease set expires_at = now() where host_no <>"
                " (select host_no from x.fence where host_id = 'other')"
            )
        whole = {row.process_id for row in damaged.rows} - damaged.lost
        taken: set[str] = set()
        for _ in range(20):
            claims = await world.claim(lease, count_max=50)
            taken |= {each.row.process_id for each in claims.claimed if each.damage is None}
        assert taken == whole
