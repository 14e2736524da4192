"""What cannot be read on the disk stops the processes that it belongs to, and no others."""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import asyncpg
import pytest

from durabletask.errors import StorageCorruptError
from durabletask.storage import DONE, Ending, Form, ProcessRow, Refusal, Status, UnitOutcome
from durabletask.testing._conformance.world import World, event, new, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.damage import damage
from tests.postgres.stores import connected, make, new_world

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

BUSY = UnitOutcome(refused=Refusal.BUSY)

ALL = [f"p{number:02}" for number in range(100)]

LONG = b'"' + b"x" * 550 + b'"'
"""Ten of these fill a page."""

ELSEWHERE = random.Random(1).randbytes(5_000)
"""So long, and so hard to compress, that it is kept apart from its row."""

Fill = Callable[[World, str], Awaitable[Sequence[ProcessRow]]]


@dataclass(frozen=True)
class Damaged:
    """A database with a page that cannot be read.

    Attributes:
        world: A storage in it.
        dsn: Its DSN; the schema is "x".
        rows: The processes as they were.
        lost: The ids of those of which something stands on the page.
    """

    world: World
    dsn: str
    rows: Sequence[ProcessRow]
    lost: set[str]

    @property
    def whole(self) -> set[str]:
        """The ids of all others."""
        return {row.process_id for row in self.rows} - self.lost


@asynccontextmanager
async def damaged(table: str, fill: Fill, *, far: bool = False) -> AsyncIterator[Damaged]:
    """Fill a server of its own, then damage a page of a table, or of the long values of it."""
    with ThrowAwayPostgres() as server:
        await make(server.dsn, "x")
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            rows = await fill(world, server.dsn)
        damage(server, values_of(server, table) if far else f"x.{table}", page=2)
        lost = await unreadable(server.dsn, table, rows)
        assert 0 < len(lost) < 20
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            yield Damaged(world, server.dsn, rows, lost)


def values_of(server: ThrowAwayPostgres, table: str) -> str:
    """Return where the long values of a table are kept."""
    query = f"select reltoastrelid::regclass from pg_class where oid = 'x.{table}'::regclass"
    return server.sql(query)


async def unreadable(dsn: str, table: str, rows: Sequence[ProcessRow]) -> set[str]:
    """Return the processes of which something in a table cannot be read."""
    found: set[str] = set()
    async with connected(dsn, enable_seqscan="off", enable_bitmapscan="off") as connection:
        for row in rows:
            try:
                query = f"select * from x.{table} where process_no = $1"
                await connection.fetch(query, row.incarnation)
            except asyncpg.DataCorruptedError:
                found.add(row.process_id)
    return found


async def expire(dsn: str) -> None:
    """Let the leases of all hosts have ended that nobody holds a session for."""
    async with connected(dsn) as connection:
        await connection.execute("update x.lease set expires_at = now() - interval '1 s'")


async def taken(world: World, *, count_max: int = 30) -> list[str]:
    """Claim all there is for a new host; return the ids in order, those with damage as "!id"."""
    lease = await world.host("other")
    ids: list[str] = []
    # Claims of an earlier world must not be taken for repeated.
    names = (f"{id(world)} {number}" for number in count())
    while found := await world.take(lease, count_max=count_max, claim_id=next(names)):
        assert len(found) <= count_max
        for each, claimed in found.items():
            if claimed.damage is not None:
                assert (claimed.checkpoints, claimed.events) == ((), ())
            ids.append(each if claimed.damage is None else f"!{each}")
    return ids


def hurt(ids: set[str]) -> set[str]:
    """Return ids as `taken` writes those with damage."""
    return {f"!{each}" for each in ids}


# --- how the database is filled ------------------------------------------------------------


async def idle(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that nobody holds."""
    return await world.add(*ALL, input=LONG)


async def idle_with_far_inputs(world: World, dsn: str) -> Sequence[ProcessRow]:
    """The same; their inputs are kept elsewhere."""
    return await world.add(*ALL[:30], input=ELSEWHERE)


async def running(world: World, dsn: str, payload: bytes = LONG) -> Sequence[ProcessRow]:
    """Processes of a host, each with a step."""
    lease = await world.host("me")
    rows = await world.add(*ALL, lease=lease, input=LONG)
    await world.done(lease, *(unit(row, 1, step("a", payload)) for row in rows))
    return rows


async def running_with_far_steps(world: World, dsn: str) -> Sequence[ProcessRow]:
    """The same; the results of the steps are kept elsewhere."""
    return await running(world, dsn, ELSEWHERE)


async def told(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes of a host, each with a step and an event that the host has not heard of."""
    rows = await running(world, dsn)
    await world.sent(*(event(row.process_id, "e", LONG) for row in rows))
    return rows


async def lettered(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that nobody holds, each with a letter of a user's transaction."""
    rows = await idle(world, dsn)
    async with connected(dsn) as connection, connection.transaction():
        for each in ALL:
            letter = event(each, "e", LONG)
            await world.transactions.deliver_in(connection, letter, mailbox_max=9)
    return rows


async def finished(world: World, dsn: str) -> Sequence[ProcessRow]:
    """Processes that have ended."""
    rows = await running(world, dsn)
    ending = Ending(Status.COMPLETED, Form.VALUE, b"1")
    await world.done(await world.host("me"), *(unit(row, 2, ending=ending) for row in rows))
    return rows


# --- hosts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, Status.WAITING])
async def test_processes_whose_rows_are_damaged_stop_and_no_others(status: Status | None) -> None:
    """G13: steps and changes of a batch: theirs are busy, everything else is recorded."""
    async with damaged("process", running) as it:
        lease = await it.world.host("me")
        units = [unit(row, 2, step("b"), status=status) for row in it.rows]
        outcomes = await it.world.commit(lease, *units)
        answers = list(zip(it.rows, outcomes, strict=True))
        assert {row.process_id for row, answer in answers if answer == BUSY} == it.lost
        assert {row.process_id for row, answer in answers if answer == DONE} == it.whole


@pytest.mark.parametrize(
    ("table", "fill", "far"),
    [
        ("checkpoint", running, False),
        ("checkpoint", running_with_far_steps, True),
        ("event", told, False),
    ],
)
async def test_a_takeover_hands_out_what_is_damaged_as_such(
    table: str, fill: Fill, far: bool
) -> None:
    """G13: the next host goes on with all whole processes, and can set the others aside."""
    async with damaged(table, fill, far=far) as it:
        await expire(it.dsn)
        assert set(await taken(it.world)) == it.whole | hurt(it.lost)
        lease = await it.world.host("other")
        for row in await it.world.listed():
            # Nobody knows whether something was recorded: no death is counted.
            assert (row.deaths, row.epoch) == (0, 2)
            aside = Ending(Status.QUARANTINED, Form.ERROR, b"{}")
            await it.world.done(lease, unit(row, 1, ending=aside))
        assert not (await it.world.claim(lease)).claimed


async def test_a_takeover_passes_by_rows_that_are_damaged() -> None:
    """G13: nobody can take those, and they hold up neither this takeover nor any later claim."""
    async with damaged("process", running) as it:
        await expire(it.dsn)
        assert set(await taken(it.world)) == it.whole
        async with connected(it.dsn) as connection:
            assert await connection.fetchval("select count(*) from x.lease") == 1


async def test_rows_that_can_be_read_again_are_let_go_as_the_log_says() -> None:
    """G13: what a takeover leaves behind is not lost: one statement brings it back to everybody."""
    with ThrowAwayPostgres() as server:
        await make(server.dsn, "x")
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            await running(world, server.dsn)
        page = damage(server, "x.process", page=2)
        await expire(server.dsn)
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            first = await taken(world)
        damage(server, "x.process", page=2, content=page)
        (said,) = re.findall("HINT:  once it can: (select .*)", server.log.read_text())
        assert server.sql(said) == "t"
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            second = await taken(world)
        assert len(second) > 5
        assert sorted(first + second) == ALL


@pytest.mark.parametrize("count_max", [7, 1000])
async def test_what_nobody_holds_is_claimed_around_damaged_rows(count_max: int) -> None:
    """G13: all others are taken, in their order and no more at once than asked for."""
    async with damaged("process", idle) as it:
        assert await taken(it.world, count_max=count_max) == sorted(it.whole)


async def test_what_nobody_holds_is_claimed_around_damaged_inputs() -> None:
    """G13: a process whose input cannot be read is handed out with its damage."""
    async with damaged("process", idle_with_far_inputs, far=True) as it:
        assert set(await taken(it.world)) == it.whole | hurt(it.lost)


async def test_a_repeated_claim_hands_out_the_same() -> None:
    """G13 G8: also where some of it is damaged."""
    async with damaged("process", idle_with_far_inputs, far=True) as it:
        lease = await it.world.host("other")
        first = await it.world.claim(lease, claim_id="one")
        again = await it.world.claim(lease, claim_id="one")
        assert again.claimed == first.claimed
        assert len(first.claimed) == len(it.rows)


@pytest.mark.parametrize("table", ["process", "event", "checkpoint"])
async def test_news_reach_all_processes_but_those_of_which_they_are_damaged(table: str) -> None:
    """G13: a host hears of its other processes; one in memory needs no history."""
    async with damaged(table, told) as it:
        news = await it.world.news(await it.world.host("me"))
        heard = {each for each, claimed in news.items() if claimed.events}
        assert heard == (it.whole | it.lost if table == "checkpoint" else it.whole)
        bad = {each for each, claimed in news.items() if claimed.damage is not None}
        assert bad == (it.lost if table == "event" else set())
        assert not await it.world.news(await it.world.host("me"))


async def test_letters_reach_all_processes_but_those_of_which_they_are_damaged() -> None:
    """G13: neither claims nor deliveries to others stumble on a letter that cannot be read."""
    async with damaged("letter", lettered) as it:
        answers = await it.world.send(*(event(each, "f") for each in ALL))
        refused = {each for each, answer in zip(ALL, answers, strict=True) if answer.refused}
        assert refused == it.lost
        assert {answer.refused for answer in answers} == {None, Refusal.BUSY}
        found = await it.world.take(await it.world.host("other"))
        assert {each for each in found if len(found[each].events) == 2} == it.whole
        assert {each for each in found if not found[each].events} == it.lost


async def test_letters_are_moved_by_claims_around_one_that_is_damaged() -> None:
    """G13: those to other processes arrive."""
    async with damaged("letter", lettered) as it:
        found = await it.world.take(await it.world.host("other"))
        assert {each for each in found if found[each].events} == it.whole
        assert set(found) == set(ALL)


async def test_an_index_of_which_a_page_is_damaged_holds_up_no_claim() -> None:
    """G13: what it leads to is found by another way."""
    with ThrowAwayPostgres() as server:
        await make(server.dsn, "x")
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            ids = [f"p{number:03}" for number in range(900)]
            await world.add(*ids)
        damage(server, "x.process_claimable", page=1)
        async with new_world(server.dsn, "x", lease_ttl_s=LONG_S) as world:
            assert set(await taken(world, count_max=1000)) == set(ids)


# --- clients -------------------------------------------------------------------------------


async def test_reading_a_damaged_history_says_which_it_is() -> None:
    """G13: a corrupt-error names the process; the others are read."""
    async with damaged("checkpoint", finished) as it:
        for row in it.rows:
            if row.process_id in it.lost:
                with pytest.raises(StorageCorruptError, match=f"'{row.process_id}'"):
                    await it.world.storage.read([row.process_id], history=True)
            else:
                assert (await it.world.history(row.process_id)).checkpoints
        # Without the history nothing is missing.
        assert all(await it.world.storage.read(ALL))


async def test_reading_a_damaged_row_says_which_it_is() -> None:
    """G13: a corrupt-error names all that cannot be read, and no others."""
    async with damaged("process", idle) as it:
        with pytest.raises(StorageCorruptError) as caught:
            await it.world.storage.read(ALL)
        named = {each for each in ALL if f"'{each}'" in str(caught.value)}
        assert named
        assert named <= it.lost
        assert all(await it.world.storage.read(sorted(it.whole)))


@pytest.mark.parametrize(
    ("table", "fill", "far"),
    [
        ("process", idle, False),
        ("process", idle_with_far_inputs, True),
        ("checkpoint", told, False),
    ],
)
async def test_what_can_be_read_is_listed(table: str, fill: Fill, far: bool) -> None:
    """G13: a listing has all processes whose rows are there, in pages and in order."""
    async with damaged(table, fill, far=far) as it:
        listed = await it.world.listed(limit=7, statuses=frozenset({Status.RUNNING}))
        there = it.whole | (it.lost if far or table != "process" else set())
        assert [row.process_id for row in listed] == sorted(there)
        assert {row.input for row in listed} >= {it.rows[0].input}
        assert not await it.world.listed(name="another")


async def test_events_reach_all_processes_whose_rows_can_be_read() -> None:
    """G13: of one batch of deliveries those to damaged processes are busy."""
    async with damaged("process", idle) as it:
        answers = await it.world.send(*(event(each, "e") for each in ALL))
        refused = {each for each, answer in zip(ALL, answers, strict=True) if answer.refused}
        assert refused == it.lost


async def test_creations_and_purges_stop_at_nothing_but_what_is_damaged() -> None:
    """G13: an id that exists and cannot be read is busy; its neighbours in the batch are not."""
    async with damaged("process", finished) as it:
        created = await it.world.storage.create([new(each) for each in [*ALL, "q"]])
        assert {each for each, one in zip(ALL, created, strict=False) if one.refused} == it.lost
        assert created[-1].fresh
        purged = await it.world.storage.purge(ALL)
        assert {each for each, answer in zip(ALL, purged, strict=True) if answer} == it.lost


@pytest.mark.parametrize("table", ["process", "checkpoint"])
async def test_what_is_kept_too_long_is_purged_around_what_is_damaged(table: str) -> None:
    """G13: retention leaves those that cannot be read and goes on with the others."""
    async with damaged(table, finished) as it:
        assert isinstance(it.world.storage, PostgresStorage)
        purge = it.world.storage._statements["purge_finished"]
        counts = [(await it.world.storage._fetch(purge, timedelta(0), 40))[0][0] for _ in range(4)]
        assert counts[-1] == 0
        assert sum(counts) == len(it.whole)
