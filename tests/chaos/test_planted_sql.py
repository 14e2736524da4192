"""Mistakes planted into the SQL, each caught by the checker or by a process that is stuck.

Every scenario is played twice: as the schema is, which must be right, and with
the mistake. Two hosts speak to one schema at the seam; what they ask and are
told is recorded. A third session stands in their way where a moment has to
last: what waits for it is known to be in the middle of what it does.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec
import pytest

from durabletask import Process, ProcessClient, ProcessHost, _claiming
from durabletask._notes import EventNote, encode
from durabletask.errors import LeaseLostError, StorageUnavailableError
from durabletask.storage import (
    Checkpoint,
    Claims,
    Form,
    Kind,
    Lease,
    NewEvent,
    NewProcess,
    Status,
    Unit,
)
from durabletask.testing.history import HistoryList, RecordingStorage, check, dump
from durabletask_postgres import PostgresStorage
from tests.postgres.server import Postgres, running_server, sql

NAME = "f"
STUCK = "stuck"
"""Something could have gone on and did not."""

Connection = Any  # asyncpg's, whose records are not ours to type
Host = tuple[RecordingStorage, Lease]


Scenario = Callable[["Schema"], Awaitable[set[str]]]
Plant = Callable[["Schema"], Awaitable[None]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Return a server for the tests of this module."""
    with running_server() as server:
        yield server


@dataclass
class Schema:
    """One schema and hosts on it.

    Attributes:
        barrier: A session whose open transaction gets in the way of others.
        aside: A session that looks on, and plants.
        weak_fence: Whether a lone step, which is no function's, has the weaker lock too.
    """

    dsn: str
    name: str
    barrier: Connection
    aside: Connection
    history: HistoryList = field(default_factory=HistoryList)
    storages: list[PostgresStorage] = field(default_factory=list)
    pools: list[Any] = field(default_factory=list)
    weak_fence: bool = False

    async def host(self, label: str) -> Host:
        """Return a host's storage and its lease, which only its time can end."""
        pool = await asyncpg.create_pool(self.dsn, min_size=0, max_size=4)
        self.pools.append(pool)
        storage = PostgresStorage(pool, schema=self.name, lease_ttl_s=3_600)
        self.storages.append(storage)
        if self.weak_fence:
            commits = storage._commits
            assert "for share" in commits._step
            commits._step = commits._step.replace("for share", "for key share")
        recording = RecordingStorage(storage, self.history)
        return recording, await recording.open_lease(label, label)

    async def fetch(self, session: Connection, text: str, *args: object) -> list[Any]:
        """Run a statement that says `durabletask.`; return its rows."""
        named = text.replace("durabletask.", f"{self.name}.")
        found: list[Any] = await session.fetch(named, *args)
        return found

    async def plant(self, function: str, before: str, after: str) -> None:
        """Replace what matches in a function's text, wherever it stands there."""
        text, _ = await self._function(function)
        assert re.search(before, text), f"{function} has no {before!r} any more: plant it anew"
        await self.aside.execute(re.sub(before, after.replace("durabletask", self.name), text))

    async def make_patient(self, *functions: str) -> None:
        """Let functions wait for a lock for as long as it takes."""
        for function in functions:
            _, name = await self._function(function)
            await self.aside.execute(f"alter function {name} set lock_timeout = 0")

    async def _function(self, name: str) -> tuple[str, str]:
        ((text, signature),) = await self.aside.fetch(
            "select pg_get_functiondef(p.oid), p.oid::regprocedure::text from pg_proc p"
            " where p.pronamespace = $1::text::regnamespace and p.proname = $2",
            self.name,
            name,
        )
        return text, signature

    async def wait_waiting(self, count: int, task: "asyncio.Task[Any]") -> None:
        """Return when so many sessions wait for a lock, or the task is done without."""
        while not task.done():
            waiting = await self.aside.fetch("select distinct pid from pg_locks where not granted")
            if len(waiting) >= count:
                return
            await asyncio.sleep(0.005)

    async def end_lease(self, host: Host) -> None:
        """Let a lease's time be over."""
        await self.fetch(
            self.aside,
            "update durabletask.lease set expires_at = '-infinity' where host_no ="
            " (select host_no from durabletask.fence where host_id = $1)",
            host[1].host_id,
        )

    async def verdict(self) -> set[str]:
        """Return the invariants that are broken."""
        final = await dump(self.storages[0])
        return {each.invariant for each in check(self.history.operations, final, effects=False)}

    async def close(self) -> None:
        """Give everything back."""
        for storage in self.storages:
            await storage.close()
        for pool in self.pools:
            await pool.close()
        await self.barrier.close()
        await self.aside.close()


def new(process_id: str) -> NewProcess:
    return NewProcess(
        process_id=process_id, name=NAME, input=b"1", input_digest="d", creation_id=process_id
    )


def unit(claims: Claims, seq: int, *checkpoints: Checkpoint, **fields: Any) -> Unit:
    """Return a unit of the first process that was claimed."""
    row = claims.claimed[0].row
    return Unit(
        process_id=row.process_id,
        incarnation=row.incarnation,
        epoch=row.epoch,
        seq=seq,
        checkpoints=checkpoints,
        **fields,
    )


def step(key: str) -> Checkpoint:
    return Checkpoint(Kind.DO, key, -1, Form.VALUE, b'"v"')


async def claim(host: Host, claim_id: str, count: int = 10) -> Claims:
    return await host[0].claim(host[1], claim_id, [NAME], count_max=count)


# --- scenarios: each returns what is wrong -----------------------------------------------


async def late_steps(schema: Schema, keys: str) -> set[str]:
    """A commit is under way, past its fence, when its lease ends and another host claims."""
    one, two = await schema.host("one"), await schema.host("two")
    await schema.make_patient("record_steps", "claim")
    await one[0].create([new("p")])
    held = await claim(one, "1")
    await schema.barrier.execute("begin")
    # The same place, not committed: whoever inserts it too waits for what becomes of it.
    await schema.fetch(
        schema.barrier,
        "insert into durabletask.checkpoint"
        " (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)"
        " values ($1, now(), 9, 9, -1, 0, false, 'do', $2, 'value', '1')",
        held.claimed[0].row.incarnation,
        keys[0],
    )
    units = [unit(held, seq, step(key)) for seq, key in enumerate(keys, 1)]
    late = asyncio.create_task(one[0].commit(one[1], units))
    await schema.wait_waiting(1, late)
    await schema.end_lease(one)
    # Either it waits for the commit too, or it does not and has the process now.
    taking = asyncio.create_task(claim(two, "2"))
    await schema.wait_waiting(2, taking)
    await schema.barrier.execute("rollback")
    await asyncio.gather(late, taking)
    return await schema.verdict()


async def late_step(schema: Schema) -> set[str]:
    """As above, with a lone step, which has a statement of its own."""
    return await late_steps(schema, "a")


async def late_batch(schema: Schema) -> set[str]:
    """As above, with a batch of steps."""
    return await late_steps(schema, "ab")


async def takeover(schema: Schema) -> set[str]:
    """A host that was fenced goes on: it renews, and claims."""
    one, two = await schema.host("one"), await schema.host("two")
    await one[0].create([new("p"), new("q")])
    await claim(one, "1", 1)
    await schema.end_lease(one)
    await claim(two, "2")
    with suppress(LeaseLostError):
        await one[0].renew(one[1])
    with suppress(LeaseLostError):
        await claim(one, "3")
    return await schema.verdict()


async def held_up_claim(schema: Schema) -> set[str]:
    """A claim has to wait; what became claimable meanwhile is claimable for it."""
    one = await schema.host("one")
    await schema.make_patient("claim")
    await schema.barrier.execute("begin")
    await schema.fetch(schema.barrier, "select from durabletask.fence for update")
    taking = asyncio.create_task(claim(one, "1"))
    await schema.wait_waiting(1, taking)
    await one[0].create([new("p")])
    await schema.barrier.execute("rollback")
    taken = await taking
    return await schema.verdict() | (set() if taken.claimed else {STUCK})


async def locked_neighbour(schema: Schema) -> set[str]:
    """Somebody's open transaction holds one process; the others are claimed all the same."""
    one = await schema.host("one")
    await one[0].create([new(process_id) for process_id in "pqr"])
    await schema.barrier.execute("begin")
    await schema.fetch(
        schema.barrier, "select from durabletask.process where process_id = 'p' for update"
    )
    taken = 0
    with suppress(StorageUnavailableError):
        taken = len((await claim(one, "1")).claimed)
    await schema.barrier.execute("rollback")
    return await schema.verdict() | (set() if taken == 2 else {STUCK})


async def crowd(schema: Schema) -> set[str]:
    """There is more than a claim has room for."""
    one = await schema.host("one")
    await one[0].create([new(process_id) for process_id in "pqrst"])
    await claim(one, "1", 2)
    return await schema.verdict()


async def consumed(schema: Schema) -> set[str]:
    """Events of two processes arrive in turns, and one is consumed."""
    one = await schema.host("one")
    await one[0].create([new("p"), new("q")])
    for number, process_id in enumerate("pqp"):
        event = NewEvent(process_id=process_id, event_id=f"e{number}", name="go", payload=b"1")
        await one[0].deliver([event], mailbox_max=9)
    held = await claim(one, "1")
    taken = held.claimed[0].events[0].position
    note = Checkpoint(Kind.EVENT, "x", -1, Form.VALUE, encode(EventNote("go", msgspec.Raw(b"1"))))
    await one[0].commit(one[1], [unit(held, 1, note, consumes=(taken,), status=Status.RUNNING)])
    return await schema.verdict()


# --- plants ------------------------------------------------------------------------------


async def nothing(schema: Schema) -> None:
    """Leave the schema as it is."""


async def key_share(schema: Schema) -> None:
    """C03: the fence is locked as a foreign key locks, which does not keep it from being set."""
    await schema.plant("hold_fence", "for share", "for key share")
    schema.weak_fence = True


async def fence_not_looked_at(schema: Schema) -> None:
    """C01: whoever asks is let in."""
    await schema.plant("hold_fence", r"and f\.fenced_at is null", "")


async def renewal_revives(schema: Schema) -> None:
    """C06 C07: renewing does not look at the fence."""
    await schema.plant("renew_lease", r"if not found or not exists \(", "if false and not exists (")


async def transaction_time(schema: Schema) -> None:
    """C09: the time is that at which the transaction began, however long it has waited since."""
    await schema.plant("clock", r"clock_timestamp\(\)", "now()")


async def waits_for_locked(schema: Schema) -> None:
    """C13: a claim waits for the rows that others have locked."""
    await schema.plant("claim", "skip locked", "")


async def without_limit(schema: Schema) -> None:
    """C13: a claim takes whatever there is."""
    await schema.plant("claim", r"\blimit (count_max|n\.share)", "limit 1000")


async def consumes_apart(schema: Schema) -> None:
    """C30: what is recorded and what is consumed do not go together."""
    await schema.plant("commit_units", "set consumed = true", "set consumed = false")


async def one_sequence(schema: Schema) -> None:
    """C33: the order of events comes from a sequence, which all processes share."""
    await schema.aside.execute(f"create sequence {schema.name}.planted")
    await schema.plant(
        "put_event",
        r"returning p\.event_count into v_position;",
        "returning p.event_count into v_position; v_position := nextval('durabletask.planted');",
    )


CASES: dict[str, tuple[Plant, Scenario, set[str]]] = {
    "C01": (fence_not_looked_at, takeover, {"I9"}),
    "C03 a step": (key_share, late_step, {"I8"}),
    "C03 a batch": (key_share, late_batch, {"I8"}),
    "C06": (renewal_revives, takeover, {"I9"}),
    "C09": (transaction_time, held_up_claim, {STUCK}),
    "C13 locks": (waits_for_locked, locked_neighbour, {STUCK}),
    "C13 limit": (without_limit, crowd, {"I7"}),
    "C30": (consumes_apart, consumed, {"I23"}),
    "C33": (one_sequence, consumed, {"I8"}),
}


async def judged(postgres: Postgres, plant: Plant, scenario: Scenario) -> set[str]:
    """Play a scenario in a schema of its own with a mistake in it."""
    name = postgres.new_name()
    schema = Schema(
        postgres.dsn, name, await asyncpg.connect(postgres.dsn), await asyncpg.connect(postgres.dsn)
    )
    try:
        # The first to come makes the schema; its lease is no host's in the scenario.
        await schema.host("maker")
        await plant(schema)
        return await scenario(schema)
    finally:
        await schema.close()
        sql(postgres.dsn, f"drop schema {name} cascade")


@pytest.mark.parametrize("case", CASES)
async def test_a_planted_mistake_is_caught(case: str, postgres: Postgres) -> None:
    """C01 C03 C06 C09 C13 C30 C33 F069 F083: each shows, and without it nothing does."""
    plant, scenario, by = CASES[case]
    assert await judged(postgres, nothing, scenario) == set()
    assert by <= await judged(postgres, plant, scenario), plant.__doc__


async def nop() -> None:
    """Do nothing; a step."""


class Looked(PostgresStorage):
    """A storage that says when its host has looked for the first time."""

    def __init__(self, dsn: str, **options: Any) -> None:
        super().__init__(dsn, **options)
        self.has_looked = asyncio.Event()

    async def claim(self, *args: Any, **options: Any) -> Claims:
        claims = await super().claim(*args, **options)
        self.has_looked.set()
        return claims


async def deaf_host_runs(postgres: Postgres, name: str, wait_s: float | None) -> bool:
    """Spawn through a client while the only host, which is idle, hears no message."""

    async def process(proc: Process) -> None:
        await proc.do("step", nop)

    deaf = Looked(postgres.dsn, schema=name, notify=False)
    async with (
        ProcessHost(deaf, processes=[process]),
        ProcessClient(PostgresStorage(postgres.dsn, schema=name), processes=[process]) as client,
    ):
        await deaf.has_looked.wait()  # and has found nothing yet
        handle = await client.spawn(process, "p")
        try:
            await handle.result(wait_s)
        except TimeoutError:
            return False
        return True


async def test_messages_without_polling_are_caught(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C36 F065: a host that looks only when it is told to never runs what it was not told of."""
    names = [postgres.new_name(), postgres.new_name()]
    assert await deaf_host_runs(postgres, names[0], None)
    monkeypatch.setattr(_claiming, "POLL_MIN_S", 1e9)
    monkeypatch.setattr(_claiming.Claiming, "_idle_max_s", lambda self: 1e9)
    assert not await deaf_host_runs(postgres, names[1], 2.0)
    sql(postgres.dsn, *(f"drop schema {name} cascade" for name in names))
