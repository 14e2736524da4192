"""PostgresStorage keeps every promise of the seam: over a DSN, and over a pool of the user's."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from itertools import count

import asyncpg
import pytest

from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.conformance import StorageConformance
from durabletask_postgres import PostgresStorage
from tests.postgres.stores import LEASE_TTL_S, Schemas, SchemaUser, at_time, fence_all, held


class TestPostgres(StorageConformance):
    """Over a DSN: with a heartbeat, a witness and messages."""

    @pytest.fixture(autouse=True)
    async def surroundings(self, schemas: Schemas) -> AsyncIterator[None]:
        self.schemas = schemas
        self.taken: list[str] = []
        self.crashes = count()
        yield
        for schema in self.taken:
            schemas.give_back(schema, virtual=True)

    async def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.clock = clock
        self.taken.append(self.schemas.take(virtual=True))  # some tests open several storages
        return self.at(self.taken[-1])

    async def reopen(self, storage: ProcessStorage, *, crash: bool = False) -> ProcessStorage:
        # Closing a storage ends its sessions and no lease, as a kill does.
        await storage.close()
        opened = self.at(self.taken[-1])
        if crash:
            self.clock.advance(LEASE_TTL_S)
            await fence_all(opened, f"after-crash-{next(self.crashes)}")
        return opened

    def at(self, schema: str) -> ProcessStorage:
        storage = PostgresStorage(self.schemas.dsn, schema=schema, lease_ttl_s=LEASE_TTL_S)
        return at_time(storage, self.clock, self.schemas, schema)

    def holding(
        self, storage: ProcessStorage, process_id: str
    ) -> AbstractAsyncContextManager[None]:
        return held(self.schemas.dsn, self.taken[-1], process_id)

    def user(self, storage: ProcessStorage) -> SchemaUser:
        return SchemaUser(self.schemas.dsn, self.taken[-1])


class TestPostgresOverAPool(TestPostgres):
    """Over a pool, as it is set up by whoever made it: no heartbeat, no witness."""

    @pytest.fixture(autouse=True)
    async def pool(
        self, schemas: Schemas, surroundings: None
    ) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
        async with asyncpg.create_pool(schemas.dsn, min_size=0, max_size=4) as self.shared:
            yield self.shared

    def at(self, schema: str) -> ProcessStorage:
        storage = PostgresStorage(self.shared, schema=schema, lease_ttl_s=LEASE_TTL_S)
        return at_time(storage, self.clock, self.schemas, schema)
