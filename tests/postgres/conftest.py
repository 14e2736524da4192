"""One real Postgres for all tests here, and empty places in it.

`database` is a database of the test's own, 0.1 s; `schema` is a schema with our
tables, empty, in the database `postgres.dsn` leads to, and `free_schema` a name
that no schema has there, both for nothing.
"""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.postgres.backends import Control, control_of
from tests.postgres.server import Postgres, running_server, sql
from tests.postgres.stores import Schemas


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return the server of the test run, started at the first use and stopped at the end."""
    with running_server() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of an empty database, dropped after the test."""
    with postgres.new_database() as dsn:
        yield dsn


@pytest.fixture
def free_schema(postgres: Postgres) -> Iterator[str]:
    """Return a name for a schema in the common database; it does not exist yet, nor afterwards."""
    name = postgres.new_name()
    yield name
    sql(postgres.dsn, f"drop schema if exists {name} cascade")


@pytest.fixture(scope="session")
def schemas(postgres: Postgres) -> Iterator[Schemas]:
    """Return schemas of the common database that have all migrations and are used again."""
    with Schemas(postgres) as schemas:
        yield schemas


@pytest.fixture
def schema(schemas: Schemas) -> Iterator[str]:
    """Return an empty schema with all migrations."""
    with schemas.new() as name:
        yield name


@pytest.fixture
async def control(postgres: Postgres) -> AsyncIterator[Control]:
    """Return a connection to look at the server with."""
    async with control_of(postgres.dsn) as control:
        yield control


@pytest.fixture
def role(postgres: Postgres) -> Iterator[str]:
    """Return a role that may log in and nothing else."""
    name = postgres.new_name()
    sql(postgres.dsn, f"create role {name} login")
    yield name
    sql(postgres.dsn, f"drop owned by {name}", f"drop role {name}")
