"""A damaged page is an error for who reads it, and for nobody else."""

import asyncpg
import pytest

from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.damage import damage


@pytest.mark.parametrize("version", [16, 18])
async def test_one_page_of_a_table_is_unreadable(version: int) -> None:
    """With and without checksums: rows of that page raise, rows of the next page are there."""
    with ThrowAwayPostgres(version=version) as server:
        server.sql("create table t (n int primary key, text text)")
        server.sql("insert into t select n, repeat('x', 1000) from generate_series(1, 20) n")
        with pytest.raises(ValueError, match="t has no page 9"):
            damage(server, "t", page=9)
        damage(server, "t", page=1)
        connection = await asyncpg.connect(server.dsn)
        assert await connection.fetchval("select n from t where n = 1") == 1
        assert await connection.fetchval("select n from t where n = 20") == 20
        with pytest.raises(asyncpg.DataCorruptedError) as caught:
            await connection.fetch("select n from t where n = 9")
        assert caught.value.sqlstate == "XX001"
        await connection.close()
