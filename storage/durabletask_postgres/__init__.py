"""Postgres storage: one database, many hosts. Needs asyncpg, the extra `postgres`."""
