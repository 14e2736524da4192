"""Postgres storage: one database, many hosts. Needs asyncpg, the extra `postgres`.

    storage = PostgresStorage("postgresql://app@db.example/app")

`python -m durabletask_postgres migrate DSN` brings the schema up to date ahead
of a deployment; `… grant ROLE` prints what a role needs that may not do so.
"""

from durabletask_postgres._storage import PostgresStorage

__all__ = ["PostgresStorage"]
