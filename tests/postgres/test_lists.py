"""Lists: whichever way a page is looked for, it is the page."""

from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import msgspec

from durabletask.storage import ProcessRow, ProcessStorage, Query, Status
from durabletask_postgres._sql import Statements
from tests.postgres.gates import plant
from tests.postgres.server import Postgres
from tests.postgres.stores import connected, make, new_world

COUNT = 400
LIMIT = 7

# Unevenly spread, so that what is rare, what is frequent and what comes late are all there; and
# many of one instant.
ROWS = f"""
insert into durabletask.process (
    process_id, name, status, created_at, updated_at, finished_at, creation_id, input_digest, input,
    tags, parent_id, parent_incarnation, parent_generation, parent_key)
select case when n % 3 = 0 then 'a/' when n < 300 then 'b/' else 'c/' end || n,
    case when n % 90 = 7 then 'rare' when n % 2 = 0 then 'even' else 'odd' end,
    s.status, at, at,
    case when durabletask.is_finished(s.status) then at + n % 40 * interval '1 s' end,
    'c', 'd', '1',
    case when n % 4 = 0 then jsonb_build_object('team', n / 200, 'number', n::text) end,
    case when n % 5 = 0 then 'parent' end, case when n % 5 = 0 then 1 end,
    case when n % 5 = 0 then 0 end, case when n % 5 = 0 then 'k' end
from generate_series(1, {COUNT}) n
cross join lateral (select now() + n / 25 * interval '10 s' as at) t
cross join lateral (
    select (
        case when n % 100 = 50 then array['terminated', 'quarantined']
        when n > 370 then array['running', 'waiting', 'suspended', 'compensating']
        when n % 50 = 1 then array['failed', 'cancelled', 'running']
        else array['completed'] end
    ) as them
) m
cross join lateral (select them[1 + n % cardinality(them)] as status) s
""".replace("'team', n / 200", "'team', (n / 200)::text")


def matches(row: ProcessRow, query: Query) -> bool:
    """Return whether a query is to find a process: the seam, word by word."""
    ended = row.finished_at
    return (
        (query.statuses is None or row.status in query.statuses)
        and (query.name is None or row.name == query.name)
        and (query.prefix is None or row.process_id.startswith(query.prefix))
        and query.tags.items() <= row.tags.items()
        and (query.created_from is None or row.created_at >= query.created_from)
        and (query.created_until is None or row.created_at < query.created_until)
        and (query.finished_from is None or (ended is not None and ended >= query.finished_from))
        and (query.finished_until is None or (ended is not None and ended < query.finished_until))
        and (query.parent_id is None or _parent_of(row) == query.parent_id)
    )


def _parent_of(row: ProcessRow) -> str | None:
    return None if row.parent is None else row.parent.process_id


def drawn(random: Random, rows: list[ProcessRow]) -> Query:
    """Return a query with one to three filters, and half of them over few statuses."""
    at = random.choice(rows).created_at
    few = frozenset(random.sample(list(Status), random.choice((1, 2, 5))))
    fields: list[Callable[[], dict[str, Any]]] = [
        lambda: {"statuses": few},
        lambda: {"name": random.choice(("even", "odd", "rare", "none"))},
        lambda: {"prefix": random.choice(("a/", "b/", "c/", "c/39", "a/3", "zzz", ""))},
        lambda: {"tags": random.choice(({"team": "0"}, {"team": "1"}, {"number": "200"}))},
        lambda: {"created_from": at, "created_until": at + timedelta(seconds=50)},
        lambda: {"created_from": at},
        lambda: {"finished_from": at},
        lambda: {"finished_until": at},
        lambda: {"finished_from": at, "finished_until": at + timedelta(seconds=30)},
        lambda: {"parent_id": random.choice(("parent", "nobody"))},
    ]
    chosen: dict[str, Any] = {}
    for field in random.sample(fields, random.randint(0, 3)):
        chosen |= field()
    return Query(**chosen, limit=LIMIT)


async def pages(storage: ProcessStorage, query: Query) -> list[str]:
    """Return the ids that a query finds, page by page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await storage.list(msgspec.structs.replace(query, cursor=cursor))
        assert len(page.rows) <= LIMIT
        found += [row.process_id for row in page.rows]
        cursor = page.cursor
        if cursor is None:
            return found


async def test_every_way_finds_the_same_pages(postgres: Postgres, free_schema: str) -> None:
    """Issue 4 point 2: of 120 random queries each finds what matches, in order, page by page."""
    await make(postgres.dsn, free_schema)
    # So few that each of the ways is gone: near, few, and all.
    await plant(postgres.dsn, free_schema, "list_processes", "integer := 1000", "integer := 15")
    await plant(postgres.dsn, free_schema, "list_processes", "integer := 5000", "integer := 30")
    random = Random(4)
    async with new_world(postgres.dsn, free_schema) as world:
        async with connected(postgres.dsn) as connection:
            await connection.execute(Statements(free_schema).rewrite(ROWS))
        rows = await world.listed()
        assert len(rows) == COUNT
        assert rows == sorted(rows, key=lambda row: (row.created_at, row.process_id))
        for _ in range(120):
            query = drawn(random, rows)
            expected = [row.process_id for row in rows if matches(row, query)]
            assert await pages(world.storage, query) == expected, query
