"""Waiting for the result of an id that has belonged to more than one process, on Postgres."""

from durabletask_postgres import PostgresStorage
from tests.engine.test_replaced import results_of_one_id
from tests.postgres.stores import Schemas


async def test_a_handle_tells_the_result_of_its_process_or_none(schemas: Schemas) -> None:
    """G9: never that of the next one with the id, which somebody else may have begun."""
    with schemas.new() as schema:
        storage = PostgresStorage(schemas.dsn, schema=schema)
        await results_of_one_id(storage)
        await storage.close()
