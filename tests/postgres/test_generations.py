"""History is bounded: what goes on for ever by beginning anew does not grow."""

import pytest

from durabletask_postgres import PostgresStorage
from tests.engine.generations import begin_anew
from tests.postgres.server import Postgres, sql


@pytest.mark.soak
async def test_a_hundred_thousand_generations_do_not_grow_tables(
    postgres: Postgres, schema: str
) -> None:
    """S2.06: as many rows after all of them as after a tenth; what is dead of them is vacuumed."""
    tables = ("process", "checkpoint", "event", "forgotten", "letter", "claim_mark")
    count = " + ".join(f"(select count(*) from {schema}.{each})" for each in tables)

    def rows() -> int:
        ((found,),) = sql(postgres.dsn, f"select {count}")
        return int(found)

    before, after = await begin_anew(PostgresStorage(postgres.dsn, schema=schema), rows)
    assert after <= before + 10
