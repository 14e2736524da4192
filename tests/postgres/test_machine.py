"""PostgresStorage answers as MemoryStorage does, whatever is asked and however its hosts end.

Two hosts at a time, over one pool and in a database that lives by the machine's
clock. That a host over a DSN is told the same is for the conformance suite.
"""

from collections.abc import Sequence
from typing import ClassVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from durabletask.storage import Lease, ProcessStorage, Unit
from durabletask.testing import VirtualClock
from durabletask.testing._machine_steps import UnitPlan, is_plain, unit_plans
from durabletask.testing.machine import StorageMachine
from durabletask_postgres import PostgresStorage
from tests.postgres.stores import Schemas, at_time

LEASE_TTL_S = 15.0
"""As in the model. Over a pool no heart renews it by the real time."""


class PostgresMachine(StorageMachine):
    """Two hosts at a time, with leases that end by the machine's clock."""

    hosts_max = 2
    lease_ttl_s = LEASE_TTL_S
    schemas: ClassVar[Schemas]

    def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.schema = self.schemas.take(virtual=True)
        self.pool = asyncpg.create_pool(self.schemas.dsn, min_size=0, max_size=2)
        return self.at(clock)

    def at(self, clock: VirtualClock) -> ProcessStorage:
        storage = PostgresStorage(self.pool, schema=self.schema, lease_ttl_s=LEASE_TTL_S)
        return at_time(storage, clock, self.schemas, self.schema)

    async def reopen(self, storage: ProcessStorage, *, crash: bool) -> ProcessStorage:
        await storage.close()
        if crash:
            # Over a pool nobody sees a host die: its lease has to end.
            self.clock.advance(LEASE_TTL_S)
        return self.at(self.clock)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), plans=st.lists(unit_plans, min_size=5, max_size=20))
    def commit_many(self, data: st.DataObject, plans: list[UnitPlan]) -> None:
        """Commit a batch of which the storage makes several parts."""
        self.commit(data, plans)

    def _commit(self, lease: Lease, units: Sequence[Unit]) -> None:
        """Leave out what no host sends: changes that are older than a step that was recorded.

        A step leaves its process's row alone, so there is no telling that they are.
        """
        super()._commit(lease, [unit for unit in units if not self._is_late(unit, units)])

    def _is_late(self, unit: Unit, batch: Sequence[Unit]) -> bool:
        if is_plain(unit):
            return False
        (found,) = self.loop.run_until_complete(self.model.read([unit.process_id]))
        there = 0 if found is None else found.row.seq
        steps = [
            each.seq for each in batch if each.process_id == unit.process_id and is_plain(each)
        ]
        return self._row_seq(unit.process_id) < unit.seq <= max(there, *steps, 0)

    def _row_seq(self, process_id: str) -> int:
        query = f"select seq from {self.schema}.process where process_id = $1"
        seq: int | None = self.loop.run_until_complete(self.pool.fetchval(query, process_id))
        return seq or 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.storage.close())
        self.loop.run_until_complete(self.pool.close())
        self.loop.close()
        self.schemas.give_back(self.schema, virtual=True)


@pytest.mark.parametrize("examples", [15, pytest.param(200, marks=pytest.mark.soak)])
def test_nothing_tells_postgres_from_memory(schemas: Schemas, examples: int) -> None:
    """FAILURES 3.7: in random runs of 40 steps every answer and every history is the model's."""
    PostgresMachine.schemas = schemas
    run_state_machine_as_test(
        PostgresMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
