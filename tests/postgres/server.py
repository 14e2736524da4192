"""Where the tests find Postgres: a server of their own, or the one that a variable names.

Hands out databases and schemas that nobody else uses. Refuses to know what a
test keeps in them.
"""

import asyncio
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg

from durabletask_postgres.testing import ThrowAwayPostgres

VARIABLE = "DURABLETASK_TEST_POSTGRES"
"""A DSN of a superuser; the tests then create and drop databases there."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server that runs; `dsn` is a superuser's and leads to a database that is always there."""

    dsn: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def host(self) -> str:
        """The folder of the server's socket, or the name or address of its machine."""
        return address(self.dsn)[0]

    @property
    def port(self) -> int:
        """The port, which is a part of the socket's name too."""
        return address(self.dsn)[1]

    def dsn_of(self, database: str) -> str:
        """Return the DSN of another database of the same server."""
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{database}"))

    def new_name(self) -> str:
        """Return a name for a database or schema that no test, here or in a parallel run, has."""
        return f"t{os.getpid()}_{next(self._numbers)}"

    @contextmanager
    def new_database(self) -> Iterator[str]:
        """Create an empty database and yield its DSN; it is dropped, whoever is connected."""
        name = self.new_name()
        sql(self.dsn, f"create database {name}")
        try:
            yield self.dsn_of(name)
        finally:
            sql(self.dsn, f"drop database {name} with (force)")


@contextmanager
def running_server() -> Iterator[Postgres]:
    """Yield the server of the test run."""
    given = os.environ.get(VARIABLE)
    if given:
        yield Postgres(given)
        return
    with ThrowAwayPostgres() as server:
        yield Postgres(server.dsn)


def address(dsn: str) -> tuple[str, int]:
    """Return host and port of a DSN; the host is a folder where it begins with a slash."""
    parts = urlsplit(dsn)
    asked = parse_qs(parts.query)
    host = asked.get("host", [parts.hostname or "localhost"])[0]
    return host, int(asked.get("port", [parts.port or 5432])[0])


def moved(dsn: str, host: str, port: int) -> str:
    """Return a DSN of the same user and database, reached at another place."""
    parts = urlsplit(dsn)
    user, at, _ = parts.netloc.rpartition("@")
    kept = {name: texts[0] for name, texts in parse_qs(parts.query).items()}
    query = urlencode({**kept, "host": host, "port": port})
    return urlunsplit(parts._replace(netloc=user + at, query=query))


def sql(dsn: str, *statements: str) -> list[asyncpg.Record]:
    """Run statements one after the other, each committed by itself; return the last one's rows.

    For fixtures and tests that are not async; works below a running loop too.
    """

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn)
        try:
            rows: list[asyncpg.Record] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    # A thread of its own, since the calling one may have a running loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
