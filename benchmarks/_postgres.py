"""What the benchmarks on Postgres share: a server, databases with our tables, what it counted.

The server is a throw-away one with the defaults of production, `fsync` among
them, on a disk; or the one that `DURABLETASK_TEST_POSTGRES` names, of which
nothing is known. Knows nothing of what is measured.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from benchmarks._frame import RAM_DISKS, ROOT, Options, filesystem_of
from durabletask.storage import Query
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres

VARIABLE = "DURABLETASK_TEST_POSTGRES"
"""A DSN of a superuser; databases are created and dropped there."""


class Server:
    """A server that runs, and makes databases: each empty but for our tables."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._names = (f"bench_{os.getpid()}_{number}" for number in count())
        self._template = next(self._names)
        self.sql(f"create database {self._template}")
        asyncio.run(_migrate(self.dsn_of(self._template)))

    def dsn_of(self, database: str) -> str:
        """Return where one of its databases is."""
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{database}"))

    @contextmanager
    def database(self) -> Iterator[str]:
        """Lend a new database; yields its DSN."""
        name = next(self._names)
        self.sql(f"create database {name} template {self._template}")
        try:
            yield self.dsn_of(name)
        finally:
            self.sql(f"drop database {name} with (force)")

    def sql(self, *statements: str, dsn: str | None = None) -> None:
        """Run statements, each committed by itself."""
        asyncio.run(_execute(dsn or self._dsn, statements))

    def close(self) -> None:
        """Drop what it has made for itself."""
        self.sql(f"drop database {self._template}")


@contextmanager
def lend_server(chosen: Options) -> Iterator[Server]:
    """Lend a server that nobody else uses, or the one that the variable names.

    Raises:
        SystemExit: Its files are on a RAM disk, where a commit costs nothing.
    """
    given = os.environ.get(VARIABLE)
    if given:
        server = Server(given)
        try:
            yield server
        finally:
            server.close()
        return
    with ThrowAwayPostgres() as throw_away:
        kind = filesystem_of(throw_away.folder, Path("/proc/mounts"))
        if kind in RAM_DISKS and not chosen.tiny:
            raise SystemExit(
                f"{throw_away.folder} is on {kind}, a RAM disk: name a server by {VARIABLE}"
            )
        yield Server(throw_away.dsn)


# --- what the server counted ---------------------------------------------------------------


class Count(NamedTuple):
    """What a server has done since it was made.

    Attributes:
        wal_bytes: Written, or about to be, to the log that is synced.
        transactions: Those that wrote something.
    """

    wal_bytes: int
    transactions: int

    def since(self, earlier: "Count") -> "Count":
        """Return what came in between."""
        return Count(self.wal_bytes - earlier.wal_bytes, self.transactions - earlier.transactions)


class Meter:
    """Reads the server's counters where it is told to; each look is a round trip."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self._seen: list[Count] = []

    async def mark(self) -> None:
        """Look."""
        row = await self._connection.fetchrow(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,"
            " pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        )
        assert row is not None
        self._seen.append(Count(row[0], row[1]))

    def counted(self) -> Count:
        """Return what came between the first look and the last."""
        return self._seen[-1].since(self._seen[0])


async def committed(dsn: str) -> int:
    """Return how many transactions the sessions of this database have reported."""
    connection = await asyncpg.connect(dsn)
    found: int = await connection.fetchval(
        "select xact_commit from pg_stat_database where datname = current_database()"
    )
    await connection.close()
    return found


# --- programs beside this one --------------------------------------------------------------


@contextmanager
def program(file: str, *arguments: object) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a benchmark's file beside this program; it should end when its standard input does.

    It is killed if an error ends this one first, and may be killed at any time.
    """
    paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    with subprocess.Popen(
        [sys.executable, file, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        try:
            yield running
        except BaseException:
            running.kill()
            raise


# --- the telling ---------------------------------------------------------------------------


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 of one round of latencies."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def _migrate(dsn: str) -> None:
    storage = PostgresStorage(dsn)
    await storage.list(Query(limit=1))
    await storage.close()


async def _execute(dsn: str, statements: Sequence[str]) -> None:
    connection: Any = await asyncpg.connect(dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()
