"""What cannot be read on the disk stops the processes that it belongs to, and no others."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count

import pytest

from durabletask import Process, ProcessHost
from durabletask.errors import (
    ProcessQuarantinedError,
    StorageCorruptError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import DONE, Ending, Form, Refusal, Status, UnitOutcome
from durabletask.testing._conformance.world import NAME, World, event, new, step, unit
from durabletask_postgres import PostgresStorage
from durabletask_postgres.testing import ThrowAwayPostgres
from tests.postgres.damage import damage
from tests.postgres.disk import (
    ALL,
    LONG,
    LONG_S,
    Disk,
    Fill,
    finished,
    idle,
    idle_with_far_inputs,
    lettered,
    running,
    running_with_far_steps,
    stepped,
    told,
)
from tests.postgres.stores import PATIENCE_S, connected

BUSY = UnitOutcome(refused=Refusal.BUSY)

_CLAIMS = count()
"""A claim of one world must not be taken for the repeat of one of another."""


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    """Return a server for the tests here."""
    with ThrowAwayPostgres() as server:
        yield Disk(server)


async def taken(world: World, *, count_max: int = 30) -> list[str]:
    """Claim all there is for a new host; return the ids in order, those with damage as "!id"."""
    lease = await world.host("other")
    ids: list[str] = []
    more = True
    until_s = time.monotonic() + PATIENCE_S
    while more:
        assert time.monotonic() < until_s
        claims = await world.claim(lease, count_max=count_max, claim_id=f"taken {next(_CLAIMS)}")
        more = claims.more or bool(claims.claimed)
        assert len(claims.claimed) <= count_max
        for each in claims.claimed:
            if each.damage is not None:
                assert (each.checkpoints, each.events) == ((), ())
            ids.append(each.row.process_id if each.damage is None else f"!{each.row.process_id}")
    return ids


def hurt(ids: set[str]) -> set[str]:
    """Return ids as `taken` writes those with damage."""
    return {f"!{each}" for each in ids}


# --- hosts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, Status.WAITING])
async def test_processes_whose_rows_are_damaged_stop_and_no_others(
    disk: Disk, status: Status | None
) -> None:
    """G13: steps and changes of a batch: theirs are busy, everything else is recorded."""
    async with disk.damaged("process", running) as it:
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
    disk: Disk, table: str, fill: Fill, far: bool
) -> None:
    """G13: the next host goes on with all whole processes, and can set the others aside."""
    async with disk.damaged(table, fill, far=far) as it:
        await disk.expire(it.schema)
        assert set(await taken(it.world)) == it.whole | hurt(it.lost)
        lease = await it.world.host("other")
        for row in await it.world.listed():
            # Nobody knows whether something was recorded: no death is counted.
            assert (row.deaths, row.epoch) == (0, 2)
            aside = Ending(Status.QUARANTINED, Form.ERROR, b"{}")
            await it.world.done(lease, unit(row, 1, ending=aside))
        assert not (await it.world.claim(lease)).claimed


async def test_a_takeover_passes_by_rows_that_are_damaged(disk: Disk) -> None:
    """G13: nobody can take those, and they hold up neither this takeover nor any later claim."""
    async with disk.damaged("process", running) as it:
        await disk.expire(it.schema)
        assert set(await taken(it.world)) == it.whole
        async with connected(it.dsn) as connection:
            leases = await connection.fetchval(f"select count(*) from {it.schema}.lease")
            assert leases == 1


async def test_rows_that_can_be_read_again_are_let_go_as_the_log_says(disk: Disk) -> None:
    """G13: what a takeover leaves behind is not lost: one statement brings it back to everybody."""
    schema = await disk.schema()
    async with disk.world(schema) as world:
        await running(world, disk.dsn)
    page = damage(disk.server, f"{schema}.process", page=2)
    await disk.expire(schema)
    async with disk.world(schema) as world:
        first = await taken(world)
    damage(disk.server, f"{schema}.process", page=2, content=page)
    said = re.findall("HINT:  once it can: (select .*)", disk.server.log.read_text())
    assert f'"{schema}".' in said[-1]
    assert disk.server.sql(said[-1]) == "t"
    async with disk.world(schema) as world:
        second = await taken(world)
    assert len(second) > 5
    assert sorted(first + second) == ALL


async def test_a_host_sets_aside_what_is_damaged_and_completes_the_others(disk: Disk) -> None:
    """G13: no step runs again, no user code runs for what is damaged, and the host goes on."""
    ran: list[str] = []
    async with disk.damaged("checkpoint", stepped) as it:
        storage = PostgresStorage(it.dsn, schema=it.schema, lease_ttl_s=LONG_S)
        host = ProcessHost(storage)

        async def make_text() -> str:
            ran.append("step")
            return ""

        @host.process
        async def order(proc: Process) -> int:
            ran.append(proc.id)
            return len(await proc.do("a", make_text))

        async with asyncio.timeout(PATIENCE_S), host:
            for each in ALL:
                result = host.get(order, each).result()
                if each in it.lost:
                    with pytest.raises(ProcessQuarantinedError, match="history is damaged"):
                        await result
                else:
                    assert await result == len(LONG) - 2
        assert set(ran) == it.whole
        await storage.close()


@pytest.mark.parametrize("count_max", [7, 1000])
async def test_what_nobody_holds_is_claimed_around_damaged_rows(disk: Disk, count_max: int) -> None:
    """G13: all others are taken, in their order and no more at once than asked for."""
    async with disk.damaged("process", idle) as it:
        assert await taken(it.world, count_max=count_max) == sorted(it.whole)


async def test_no_more_is_claimed_around_damaged_rows_than_there_is_room_for(disk: Disk) -> None:
    """Issue 4.3: a limit of a name holds there too."""
    async with disk.damaged("process", idle) as it:
        whole = sorted(it.whole)
        lease = await it.world.host("other")
        for room in (3, 0):
            found = await it.world.take(lease, rooms={NAME: room})
            assert list(found) == whole[:room]
        assert await taken(it.world) == whole[3:]


async def test_what_nobody_holds_is_claimed_around_damaged_inputs(disk: Disk) -> None:
    """G13: a process whose input cannot be read is handed out with its damage."""
    async with disk.damaged("process", idle_with_far_inputs, far=True) as it:
        assert set(await taken(it.world)) == it.whole | hurt(it.lost)


async def test_a_repeated_claim_hands_out_the_same(disk: Disk) -> None:
    """G13 G8: also where some of it is damaged."""
    async with disk.damaged("process", idle_with_far_inputs, far=True) as it:
        lease = await it.world.host("other")
        first = await it.world.claim(lease, claim_id="one")
        again = await it.world.claim(lease, claim_id="one")
        assert again.claimed == first.claimed
        assert len(first.claimed) == len(it.rows)


@pytest.mark.parametrize("table", ["process", "event", "checkpoint"])
async def test_news_reach_all_processes_but_those_of_which_they_are_damaged(
    disk: Disk, table: str
) -> None:
    """G13: a host hears of its other processes; one in memory needs no history."""
    async with disk.damaged(table, told) as it:
        news = await it.world.news(await it.world.host("me"))
        heard = {each for each, claimed in news.items() if claimed.events}
        assert heard == (it.whole | it.lost if table == "checkpoint" else it.whole)
        bad = {each for each, claimed in news.items() if claimed.damage is not None}
        assert bad == (it.lost if table == "event" else set())
        assert not await it.world.news(await it.world.host("me"))


async def test_letters_reach_all_processes_but_those_of_which_they_are_damaged(disk: Disk) -> None:
    """G13: neither claims nor deliveries to others stumble on a letter that cannot be read."""
    async with disk.damaged("letter", lettered) as it:
        answers = await it.world.send(*(event(each, "f") for each in ALL))
        refused = {each for each, answer in zip(ALL, answers, strict=True) if answer.refused}
        assert refused == it.lost
        assert {answer.refused for answer in answers} == {None, Refusal.BUSY}
        found = await it.world.take(await it.world.host("other"))
        assert {each for each in found if len(found[each].events) == 2} == it.whole
        assert {each for each in found if not found[each].events} == it.lost


async def test_letters_are_moved_by_claims_around_one_that_is_damaged(disk: Disk) -> None:
    """G13: those to other processes arrive."""
    async with disk.damaged("letter", lettered) as it:
        found = await it.world.take(await it.world.host("other"))
        assert {each for each in found if found[each].events} == it.whole
        assert set(found) == set(ALL)


async def test_an_index_of_which_a_page_is_damaged_holds_up_no_claim(disk: Disk) -> None:
    """G13: what it leads to is found by another way."""
    schema = await disk.schema()
    ids = [f"p{number:03}" for number in range(900)]
    async with disk.world(schema) as world:
        await world.add(*ids)
    damage(disk.server, f"{schema}.process_claimable", page=1)
    async with disk.world(schema) as world:
        assert set(await taken(world, count_max=1000)) == set(ids)


async def test_what_can_be_read_and_not_written_is_left_alone_for_a_minute(disk: Disk) -> None:
    """G13: it is noted for people, holds up nobody, and is tried again."""
    schema = await disk.schema()
    async with disk.world(schema) as world, connected(disk.dsn) as connection:
        await world.add("p", "q", "r")
        await connection.execute(UNWRITABLE.replace("SCHEMA", schema))
        assert await taken(world, count_max=1) == ["p", "r"]
        noted = f"select process_no, at, message from {schema}.damage"
        (before,) = await connection.fetch(noted)
        assert (before["process_no"], before["message"]) == (2, "no such page")
        assert not await taken(world)
        assert await connection.fetch(noted) == [before]
        await connection.execute(f"update {schema}.damage set at = at - interval '1 min'")
        assert not await taken(world)
        assert await connection.fetch(noted) != [before]
        await connection.execute(f"drop trigger damaged on {schema}.process")
        assert await taken(world) == ["q"]


UNWRITABLE = """
create function SCHEMA.fail() returns trigger language plpgsql as $$
begin
    raise exception 'no such page' using errcode = 'XX001';
end
$$;
create trigger damaged before update on SCHEMA.process
for each row when (new.process_id = 'q') execute function SCHEMA.fail();
"""


async def test_the_mark_of_the_last_commit_may_be_what_is_damaged(disk: Disk) -> None:
    """G13: a host whose last acknowledged step cannot be read goes on with its processes."""
    schema = await disk.schema()
    async with disk.world(schema) as world:
        lease = await world.host("me")
        rows = await world.add(*ALL, lease=lease)
        await world.done(lease, *(unit(row, 1, step("a", LONG)) for row in rows))
        async with connected(disk.dsn) as connection:
            page = await connection.fetchval(
                f"select max(ctid)::text::point from {schema}.checkpoint"
            )
        # Postgres itself can write to no table of which the last page is damaged.
        other = await world.host("other")
        more = await world.add(*(f"q{each}" for each in ALL), lease=other)
        await world.done(other, *(unit(row, 1, step("a", LONG)) for row in more))
        damage(disk.server, f"{schema}.checkpoint", page=int(page.x))
        with suppress(StorageUnavailableError, StorageUnknownError):
            await world.storage.renew(lease)  # the connections are gone, as the server was
        units = [unit(row, 2, step("b"), status=Status.WAITING) for row in rows[:20]]
        await world.commit(lease, *units)
        assert await world.commit(lease, *units) == [DONE] * len(units)


# --- clients -------------------------------------------------------------------------------


async def test_reading_a_damaged_history_says_which_it_is(disk: Disk) -> None:
    """G13: a corrupt-error names the process; the others are read."""
    async with disk.damaged("checkpoint", finished) as it:
        for row in it.rows:
            if row.process_id in it.lost:
                with pytest.raises(StorageCorruptError, match=f"'{row.process_id}'"):
                    await it.world.storage.read([row.process_id], history=True)
            else:
                assert (await it.world.history(row.process_id)).checkpoints
        # Without the history nothing is missing.
        assert all(await it.world.storage.read(ALL))


async def test_reading_a_damaged_row_says_which_it_is(disk: Disk) -> None:
    """G13: a corrupt-error names all that cannot be read, and no others."""
    async with disk.damaged("process", idle) as it:
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
async def test_what_can_be_read_is_listed(disk: Disk, table: str, fill: Fill, far: bool) -> None:
    """G13: a listing has all processes whose rows are there, in pages and in order."""
    async with disk.damaged(table, fill, far=far) as it:
        listed = await it.world.listed(limit=7, statuses=frozenset({Status.RUNNING}))
        there = it.whole | (it.lost if far or table != "process" else set())
        assert [row.process_id for row in listed] == sorted(there)
        assert {row.input for row in listed} >= {it.rows[0].input}
        assert not await it.world.listed(name="another")


async def test_events_reach_all_processes_whose_rows_can_be_read(disk: Disk) -> None:
    """G13: of one batch of deliveries those to damaged processes are busy."""
    async with disk.damaged("process", idle) as it:
        answers = await it.world.send(*(event(each, "e") for each in ALL))
        refused = {each for each, answer in zip(ALL, answers, strict=True) if answer.refused}
        assert refused == it.lost


async def test_creations_and_purges_stop_at_nothing_but_what_is_damaged(disk: Disk) -> None:
    """G13: an id that exists and cannot be read is busy; its neighbours in the batch are not."""
    async with disk.damaged("process", finished) as it:
        created = await it.world.storage.create([new(each) for each in [*ALL, "q"]])
        assert {each for each, one in zip(ALL, created, strict=False) if one.refused} == it.lost
        assert created[-1].fresh
        purged = await it.world.storage.purge(ALL)
        assert {each for each, answer in zip(ALL, purged, strict=True) if answer} == it.lost


@pytest.mark.parametrize("table", ["process", "checkpoint"])
async def test_what_is_kept_too_long_is_purged_around_what_is_damaged(
    disk: Disk, table: str
) -> None:
    """G13: retention leaves those that cannot be read and goes on with the others."""
    async with disk.damaged(table, finished) as it:
        assert isinstance(it.world.storage, PostgresStorage)
        purge = it.world.storage._statements["purge_finished"]
        counts = [(await it.world.storage._fetch(purge, timedelta(0), 40))[0][0] for _ in range(4)]
        assert counts[-1] == 0
        assert sum(counts) == len(it.whole)
