"""Cut connections, lost answers, cancelled calls, a failover: time is lost, and nothing else."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import pytest

from durabletask import Process, ProcessHost, Status
from durabletask.errors import StorageUnavailableError, StorageUnknownError
from durabletask.storage import DONE, Lease, ProcessRow, Refusal, Unit
from durabletask.testing._conformance.world import World, step, unit
from durabletask_postgres import PostgresStorage
from tests.postgres.backends import Control
from tests.postgres.gates import new_gate
from tests.postgres.proxy import Fate, Link, Proxy
from tests.postgres.rules import Aim, cut_before, cut_in_flight, lose_answer
from tests.postgres.server import Postgres
from tests.postgres.stores import PATIENCE_S, Schemas, connected, make, new_world
from tests.postgres.wire import Message, Side

LONG_S = 600.0
"""A lease that certainly lasts longer than the test."""

CUTS = 10
"""Of each fault for each statement that commits: 30 of each fault in all."""

Fault = Callable[..., Aim]
Units = Callable[[int, Sequence[ProcessRow]], Sequence[Unit]]

LONE = "for share"
STEPS = "record_steps("
UNITS = "commit_units("


def lone(seq: int, rows: Sequence[ProcessRow]) -> Sequence[Unit]:
    """A lone step."""
    return [unit(rows[0], seq, step(f"k{seq}"))]


def steps(seq: int, rows: Sequence[ProcessRow]) -> Sequence[Unit]:
    """Steps of several processes."""
    return [unit(row, seq, step(f"k{seq}")) for row in rows]


def changes(seq: int, rows: Sequence[ProcessRow]) -> Sequence[Unit]:
    """Units that change their processes' rows too."""
    return [unit(row, seq, step(f"k{seq}"), status=Status.WAITING) for row in rows]


async def keys(dsn: str, schema: str) -> list[str]:
    """Return the keys of the checkpoints of process "p", past every proxy."""
    query = f"select key from {schema}.checkpoint_view where process_id = 'p' order by epoch, seq"
    async with connected(dsn) as connection:
        return [each["key"] for each in await connection.fetch(query)]


@pytest.mark.parametrize(("units", "marker"), [(lone, LONE), (steps, STEPS), (changes, UNITS)])
@pytest.mark.parametrize(
    ("fault", "there"),
    [(cut_before, {False}), (cut_in_flight, {False, True}), (lose_answer, {True})],
)
async def test_a_commit_that_was_cut_is_settled_by_repeating_it(
    schemas: Schemas, units: Units, marker: str, fault: Fault, there: set[bool]
) -> None:
    """F003 FAILURES 0.1: written or not, the answer is "unknown", and the repeat makes it once."""
    with schemas.new() as schema, Proxy(schemas.dsn) as proxy:
        async with new_world(proxy.dsn, schema, lease_ttl_s=LONG_S, notify=False) as world:
            lease = await world.host("me")
            rows = await world.add("p", "q", lease=lease)
            for seq in range(2, 2 * CUTS + 1, 2):
                await world.done(lease, *units(seq - 1, rows))  # the first one goes another way
                batch = units(seq, rows)
                aim = fault(marker)
                proxy.rules.append(aim)
                with pytest.raises((StorageUnknownError, StorageUnavailableError)) as caught:
                    await world.commit(lease, *batch)
                proxy.rules.remove(aim)
                assert aim.hits == 1
                written = f"k{seq}" in await keys(schemas.dsn, schema)
                assert written in there
                assert caught.type is StorageUnknownError or not written
                await world.done(lease, *batch)
            expected = [f"k{seq}" for seq in range(1, 2 * CUTS + 1)]
            assert await keys(schemas.dsn, schema) == expected
            found = await world.history("p")
            assert (found.row.seq, found.row.epoch) == (2 * CUTS, 1)


async def test_a_backend_that_is_still_at_work_is_not_overtaken(
    postgres: Postgres, free_schema: str
) -> None:
    """F053: cut off before its commit, it goes on; the repeat waits for it."""
    await make(postgres.dsn, free_schema)
    with Proxy(postgres.dsn) as proxy:
        async with (
            new_world(proxy.dsn, free_schema, lease_ttl_s=LONG_S, notify=False) as world,
            new_gate(postgres.dsn, free_schema, "checkpoint", "new.key = 'slow'") as gate,
        ):
            lease = await world.host("me")
            (row,) = await world.add("p", lease=lease)
            first = asyncio.create_task(world.commit(lease, unit(row, 1, step("slow"))))
            await gate.wait()
            proxy.cut_all()
            with pytest.raises(StorageUnknownError):
                await first
            (outcome,) = await world.commit(lease, unit(row, 1, step("slow")))
            assert outcome.refused is Refusal.BUSY
            assert await keys(postgres.dsn, free_schema) == []
            await gate.open()
            await _until_done(world, lease, unit(row, 1, step("slow")))
            assert await keys(postgres.dsn, free_schema) == ["slow"]


async def _until_done(world: World, lease: Lease, one: Unit) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (outcomes := await world.commit(lease, one)) != [DONE]:
            assert outcomes[0].refused is Refusal.BUSY


async def test_cancelled_commits_leave_no_doubt_and_no_session(schemas: Schemas) -> None:
    """F054: 100 cancelled at odd moments; each is settled by its repeat, no session is left."""
    random = Random(54)
    with schemas.new() as schema:
        dsn = f"{schemas.dsn}&application_name={schema}"
        async with (
            new_world(dsn, schema, lease_ttl_s=LONG_S, notify=False) as world,
            connected(schemas.dsn) as connection,
        ):
            lease = await world.host("me")
            rows = await world.add("p", "q", lease=lease)
            cancelled = 0
            for seq in range(1, 101):
                batch = random.choice([lone, steps, changes])(seq, rows)
                commit = asyncio.create_task(world.commit(lease, *batch))
                for _ in range(random.randrange(60)):
                    await asyncio.sleep(0)
                commit.cancel()
                await asyncio.wait([commit])
                cancelled += commit.cancelled()
                await world.done(lease, *batch)
            assert cancelled > 10
            assert await keys(schemas.dsn, schema) == [f"k{seq}" for seq in range(1, 101)]
            # Four connections at most, and one for the heart; those terminated end by themselves.
            control = Control(connection)
            count = "select count(*) <= 5 from pg_stat_activity where application_name = $1"
            await control.wait_until(count, schema)
        gone = "select count(*) = 0 from pg_stat_activity where application_name = $1"
        async with connected(schemas.dsn) as connection:
            await Control(connection).wait_until(gone, schema)


class Often:
    """A fault at every third commit or so, of whatever sort."""

    def __init__(self, fault: Fault) -> None:
        self._random = Random(3)
        self._aims = {marker: fault(marker, times=1_000) for marker in (LONE, STEPS, UNITS)}
        self._active = False

    def __call__(self, link: Link, side: Side, message: Message) -> Fate:
        for marker, aim in self._aims.items():
            if any(marker in each for each in link.running):
                if side is Side.CLIENT and message.kind == "B":
                    self._active = self._random.random() < 0.3
                return aim(link, side, message) if self._active else Fate.PASS
        return Fate.PASS

    @property
    def hits(self) -> int:
        """How many connections it has cut."""
        return sum(aim.hits for aim in self._aims.values())


@pytest.mark.parametrize("fault", [cut_before, cut_in_flight, lose_answer])
async def test_processes_do_not_notice_that_connections_are_cut(
    schemas: Schemas, fault: Fault
) -> None:
    """F009 G3: at every third commit or so; each step runs once, and user code sees no error."""
    ran: Counter[str] = Counter()
    seen: list[BaseException] = []

    async def body(proc: Process) -> list[int]:
        try:
            found = [await proc.do(f"s{number}", run, proc.id, number) for number in range(5)]
            found += await asyncio.gather(
                *(proc.do(f"p{number}", run, proc.id, number) for number in range(5, 8))
            )
            await proc.event("go", str)
        except BaseException as error:
            seen.append(error)
            raise
        else:
            return found

    async def run(process_id: str, number: int) -> int:
        ran[f"{process_id}/{number}"] += 1
        return number

    with schemas.new() as schema, Proxy(schemas.dsn) as proxy:
        storage = PostgresStorage(proxy.dsn, schema=schema, lease_ttl_s=LONG_S)
        rule = Often(fault)
        proxy.rules.append(rule)
        async with ProcessHost(storage, processes=[body]) as host:
            handles = [await host.spawn(body, f"p{number}") for number in range(8)]
            for each in handles:
                await each.raise_event("go", "now")
            for each in handles:
                assert await each.result(timeout=PATIENCE_S) == list(range(8))
        assert rule.hits >= 5
    assert seen == []
    assert set(ran.values()) == {1}
    assert len(ran) == 64
