"""PostgresStorage keeps every promise behind a pooler, encrypted, on an older server."""

from collections.abc import Iterator

import pytest

from durabletask.storage import ProcessStorage
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres import test_conformance
from tests.postgres.pgbouncer import POOLERS
from tests.postgres.proxy import Proxy
from tests.postgres.server import Postgres
from tests.postgres.stores import LEASE_TTL_S, Schemas, at_time
from tests.postgres.tls import Certificates


@pytest.fixture(scope="module")
def old_and_strict() -> Iterator[Schemas]:
    settings = {"default_transaction_isolation": "serializable"}
    with (
        ThrowAwayPostgres(version=16, settings=settings) as server,
        Schemas(Postgres(server.dsn)) as schemas,
    ):
        yield schemas


@pytest.fixture(scope="module")
def encrypted(old_and_strict: Schemas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    certificates = Certificates(tmp_path_factory.mktemp("tls"))
    with Proxy(old_and_strict.dsn, tls=certificates.server) as proxy:
        yield certificates.checked(proxy.dsn)


class TestBehindAPooler(test_conformance.TestPostgres):
    """F064: in transaction mode no session is ours, and nothing has to be set up for it."""

    @pytest.fixture(autouse=True, params=POOLERS)
    def way(
        self, request: pytest.FixtureRequest, schemas: Schemas, surroundings: None
    ) -> Iterator[None]:
        with request.param(schemas.dsn) as pooler:
            self.dsn = pooler.dsn
            yield

    def at(self, schema: str) -> ProcessStorage:
        storage = PostgresStorage(self.dsn, schema=schema, lease_ttl_s=LEASE_TTL_S)
        return at_time(storage, self.clock, self.schemas, schema)


class TestSerializableEncryptedAndOld(test_conformance.TestPostgres):
    """Postgres 16 whose default is serializable, through TLS, without a cache of statements."""

    @pytest.fixture(name="schemas")
    def schemas_of_another_server(self, old_and_strict: Schemas) -> Schemas:
        return old_and_strict

    @pytest.fixture(autouse=True)
    def way(self, encrypted: str, surroundings: None) -> None:
        self.dsn = encrypted

    def at(self, schema: str) -> ProcessStorage:
        storage = PostgresStorage(
            self.dsn, schema=schema, lease_ttl_s=LEASE_TTL_S, statement_cache_size=0
        )
        return at_time(storage, self.clock, self.schemas, schema)
