"""How long does a page of a list take among 1,000,000 processes?

Most have completed; each thousandth is of a rare status, and the last thousand
are not over yet. They are of two names and a rare one, have one of two prefixes
(those of the second came later), a tenth has tags and a twentieth a parent.
Pages of 100 by every filter, by what many match, few or none, and by several at
once of which one matches few, through the storage's own method; and what a
creation and an end cost beside that, with the indexes of the lists and without.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import perf_counter

import asyncpg

from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server, percentiles
from durabletask.storage import Query, Status
from durabletask_postgres import PostgresStorage

COUNT = 1_000_000
PAGES = 20
WRITES = 20
BATCH = 500
PAGE_MAX_MS = 10.0

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

PROCESSES = """
    insert into durabletask.process
        (process_id, name, status, epoch, created_at, updated_at, started_at, finished_at,
        creation_id, input_digest, ending_form, ending_payload, input, tags, parent_id,
        parent_incarnation, parent_generation, parent_key)
    select case when n < {count} / 2 then 'first/' else 'second/' end || n,
        case when n % 1000 = 3 then 'rare' when n % 2 = 0 then 'even' else 'odd' end,
        case
            when n > {count} - 1000 then
                (array['running', 'waiting', 'suspended', 'compensating', 'quarantined'])[1 + n % 5]
            when n % 1000 < 3 then (array['failed', 'cancelled', 'terminated'])[1 + n % 1000]
            else 'completed'
        end,
        1, at, at, at, case when n <= {count} - 1000 then at + interval '1 min' end,
        md5(n::text), md5('input'), 'value', 'null', '[{{"n": 1}}]',
        case when n % 10 = 0 then
            jsonb_build_object('team', (array['red', 'blue'])[1 + n / 10 % 2], 'order', n::text)
        end,
        case when n % 20 = 5 then 'parent/' || n / 2000 end, case when n % 20 = 5 then 1 end,
        case when n % 20 = 5 then 0 end, case when n % 20 = 5 then 'child' end
    from generate_series(1, {count}) n
    cross join lateral (
        select timestamptz '{begin}' + n * interval '30 days' / {count} as at
    ) created
"""

INDEXES = ("process_phase", "process_name", "process_tags")
"""Those that only lists use."""

CREATE = """
    insert into durabletask.process (process_id, name, status, epoch, owner_no, created_at,
        updated_at, creation_id, input_digest, input)
    select 'new/' || $1::int || '/' || n, 'even', 'running', 1, 1, clock_timestamp(),
        clock_timestamp(), 'c', 'd', '[1]'
    from generate_series(1, $2::int) n
"""

END = """
    update durabletask.process
    set status = 'completed', owner_no = null, finished_at = clock_timestamp(), seq = 2,
        ending_form = 'value', ending_payload = '1'
    where process_id = any (select 'new/' || $1::int || '/' || n from generate_series(1, $2::int) n)
"""


def queries() -> dict[str, Query]:
    """Return what is asked, by what it is called."""
    middle, late = BEGIN + 15 * DAY, BEGIN + 29 * DAY
    found = {f"status {each}": Query(statuses=frozenset({each})) for each in Status}
    few = frozenset({Status.FAILED, Status.TERMINATED})
    return found | {
        "all": Query(),
        "not over": Query(statuses=frozenset({Status.RUNNING, Status.WAITING})),
        "name, half": Query(name="even"),
        "name, rare": Query(name="rare"),
        "name, none": Query(name="nobody"),
        "prefix, half, early": Query(prefix="first/"),
        "prefix, few": Query(prefix="second/77777"),
        "prefix, none": Query(prefix="third/"),
        "tags, many": Query(tags={"team": "red"}),
        "tags, one": Query(tags={"order": "500000"}),
        "tags, none": Query(tags={"team": "green"}),
        "created, from the middle": Query(created_from=middle),
        "created, a minute": Query(
            created_from=middle, created_until=middle + timedelta(minutes=1)
        ),
        "finished, all": Query(finished_from=BEGIN),
        "finished, two hours": Query(finished_from=late, finished_until=late + timedelta(hours=2)),
        "finished, a minute": Query(
            finished_from=middle, finished_until=middle + timedelta(minutes=1)
        ),
        "parent, 100 children": Query(parent_id="parent/250"),
        "parent, none": Query(parent_id="nobody"),
        "few by status, name": Query(statuses=few, name="odd"),
        "few by status, tags": Query(statuses=few, tags={"team": "red"}),
        "few by status, prefix": Query(statuses=few, prefix="second/"),
        "few by status, finished": Query(statuses=few, finished_from=late),
        "few by name, created": Query(name="rare", created_from=late),
        "few by tags, status": Query(
            tags={"order": "500000"}, statuses=frozenset({Status.COMPLETED})
        ),
        "few by parent, status": Query(parent_id="parent/250", statuses=few),
    }


async def measure_pages(dsn: str, pages: int) -> dict[str, list[float]]:
    """Return the ms of each page by query; the queries take turns."""
    storage = PostgresStorage(dsn)
    told: dict[str, list[float]] = {}
    for turn in range(pages + 1):
        for name, query in queries().items():
            begun_s = perf_counter()
            await storage.list(query)
            if turn:  # the first one opens, plans and reads what nobody has read before
                told.setdefault(name, []).append((perf_counter() - begun_s) * 1e3)
    await storage.close()
    return told


async def measure_writes(dsn: str, batch: int, first: int) -> dict[str, list[float]]:
    """Return the us of a creation and of an end, each in batches."""
    connection = await asyncpg.connect(dsn)
    told: dict[str, list[float]] = {"created": [], "ended": []}
    for number in range(first, first + WRITES):
        for what, statement in (("created", CREATE), ("ended", END)):
            begun_s = perf_counter()
            await connection.execute(statement, number, batch)
            told[what].append((perf_counter() - begun_s) * 1e6 / batch)
    await connection.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("latency of a page of a list on Postgres", argv, PAGES)
    count, batch = chosen.size(COUNT, 2_000), chosen.size(BATCH, 5)
    with lend_server(chosen) as server, server.database() as dsn:
        text = PROCESSES.format(count=count, begin=BEGIN.isoformat())
        server.sql(text, "vacuum analyze", dsn=dsn)
        told = asyncio.run(measure_pages(dsn, chosen.repeats))
        server.sql("checkpoint", dsn=dsn)  # after which a page is logged whole, once
        with_them = asyncio.run(measure_writes(dsn, batch, 0))
        dropped = (f"drop index durabletask.{each}" for each in INDEXES)
        server.sql(*dropped, "vacuum durabletask.process", "checkpoint", dsn=dsn)
        without = asyncio.run(measure_writes(dsn, batch, WRITES))
    tell(f"ms a page of 100, of {count:,} processes", told, ".2f")
    written = {f"{what}, with": each for what, each in with_them.items()}
    written |= {f"{what}, without": each for what, each in without.items()}
    tell("us a process, the indexes of lists", written, ".1f")
    for what in with_them:
        rates = ratios(sorted(with_them[what]), sorted(without[what]))
        conclude(f"ratio, {what} with the indexes of lists to without", rates)
    slowest = max(told, key=lambda name: percentiles(told[name])[0])
    conclude(f"ms, the slowest page ({slowest})", told[slowest], at_most=PAGE_MAX_MS)


if __name__ == "__main__":
    main()
