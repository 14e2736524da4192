"""What the forked programs do: run a host, be the clients, spawn against each other, read the end.

Each function here is one program, from its start to its end; nothing of the
database is touched before it was forked.
"""

import asyncio
import itertools
import json
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import asyncpg
import msgspec

from durabletask import Process, ProcessClient, ProcessHost, RetryPolicy
from durabletask.errors import ProcessExistsError, StorageError
from durabletask.storage import ProcessStorage
from durabletask.testing.history import Effects, HistoryFile, RecordingStorage, dump
from durabletask_postgres import PostgresStorage

_log = logging.getLogger(__name__)

T = TypeVar("T")

READY = b"r"
DRAIN_S = 30.0
AGAIN_S = 0.05
IN_ORDER = 0.33
DROPPED = 0.2
FAILURES = (
    StorageError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""What a client meets when the database goes, in its own transactions too; it tries again."""

TABLES = """\
create table public.written (process_id text);
create table public.ordered (name text primary key);
"""
LANES = 24
"""Sagas that the client keeps going at once: more than two cores can do without a pause."""

RACED = 1_000
RACED_AT_ONCE = 50
DIFFERENT = 10
"""Every so manieth raced id is spawned with another input by the second host."""


@dataclass(frozen=True)
class Setting:
    """Where and how a round is played.

    Attributes:
        lease_ttl_s: Short where hosts are paused for longer than it.
        step_s: How long a step may take; long where hosts are to be met in the middle of one.
    """

    folder: Path
    dsn: str
    lease_ttl_s: float
    step_s: float
    seed: int

    def storage(self, history: HistoryFile) -> ProcessStorage:
        """Return what one program sees of the database."""
        return RecordingStorage(self.plain(), history)

    def plain(self) -> PostgresStorage:
        """Return the storage itself."""
        return PostgresStorage(self.dsn, lease_ttl_s=self.lease_ttl_s, connections_max=2)

    def history(self, name: str) -> HistoryFile:
        """Make the history of one program."""
        return HistoryFile(self.folder / f"{name}.history")


class Sagas:
    """The process functions, and the world that their steps act on."""

    def __init__(self, effects: Effects, chance: Random, step_s: float) -> None:
        self._effects = effects
        self._step_s = step_s
        self._chance = chance
        self._counted = itertools.count()

    def _token(self) -> str:
        """Return a result that no other run of the step has: a changed one is then seen."""
        # From the threads of steps too: a count may be shared with them, a generator not.
        return f"{os.getpid()}/{next(self._counted)}"

    async def act(self) -> str:
        """Take a moment, have an effect, take another one."""
        with self._effects.during():
            await asyncio.sleep(self._chance.uniform(0, self._step_s))
        return self._token()

    def act_in_thread(self) -> str:
        """Have an effect in a thread."""
        self._effects()
        return self._token()

    async def flaky(self) -> str:
        """Have an effect, and fail every other time."""
        self._effects()
        if self._chance.random() < 0.5:
            raise ConnectionError("try again")
        return self._token()

    async def _write(self, process_id: str, connection: Any) -> str:
        """Write a row in the transaction that records the step; its only effect."""
        await connection.execute("insert into public.written values ($1)", process_id)
        return self._token()

    async def saga(self, proc: Process, steps: int, delay_s: float) -> list[int]:
        """Do 1 to 20 steps, a pair at once, rows, a wait, and take two events; never refund."""
        saw, done = self._effects.saw, False
        try:
            for n in range(steps):
                saw(proc, f"step {n}", await proc.do(f"step {n}", self.act))
            await asyncio.gather(
                proc.do("left", self.act), proc.do("right", self.act_in_thread), proc.get("id", 1)
            )
            written = partial(self._write, proc.id)
            saw(proc, "rows", await proc.transaction("rows", written))
            await proc.delay("pause", timedelta(seconds=delay_s))
            retry = RetryPolicy(attempts_max=None, delay_s=0.01, delay_max_s=0.05)
            saw(proc, "flaky", await proc.do("flaky", self.flaky, retry=retry))
            taken = [
                saw(proc, key, await proc.event("go", int, key=key)) for key in ("first", "second")
            ]
            done = True
            return taken
        finally:
            if not done:
                # Whatever happened was an interrupt, and that is nothing that happens.
                await proc.do("refund", self.act)

    async def short(self, proc: Process, number: int) -> int:
        """Do one step."""
        await proc.do("step", self.act)
        return number


def make_host(setting: Setting, name: str, chance: Random) -> ProcessHost:
    """Return a host that is not started yet, with a history of its own."""
    history = setting.history(name)
    sagas = Sagas(Effects(history), chance, setting.step_s)
    return ProcessHost(
        setting.storage(history), processes=[sagas.saga, sagas.short], label=name, drain_s=DRAIN_S
    )


async def run_host(setting: Setting, name: str, ready: int) -> None:
    """Run a host until SIGTERM.

    Args:
        setting: Where.
        name: Of the host and its history.
        ready: Gets one byte when the host has started.
    """
    chance = Random(f"{setting.seed} {name}")
    for attempt in itertools.count():
        host = make_host(setting, f"{name}-{attempt}", chance)
        try:
            await host.start()
            break
        except StorageError as error:
            _log.warning("%s did not start: %s", name, error)
            await asyncio.sleep(AGAIN_S)  # the server is down; whoever starts a host tries again
    serving = asyncio.create_task(host.serve())
    await asyncio.sleep(0)
    os.write(ready, READY)
    await serving
    await host.stop()


async def run_client(setting: Setting, ready: int) -> None:
    """Keep sagas going and raise their events until a file "enough" is there; finish those begun.

    Writes the ids of all that must have ended into "expected.json".
    """
    chance = Random(setting.seed)
    history = setting.history("client")
    sagas = Sagas(Effects(history), chance, setting.step_s)
    numbers, begun = itertools.count(), list[str]()
    enough = setting.folder / "enough"
    async with ProcessClient(setting.storage(history), processes=[sagas.saga]) as client:
        os.write(ready, READY)

        async def lane() -> None:
            while not enough.exists():
                process_id = f"saga/{next(numbers)}"
                begun.append(process_id)
                await lead(client, sagas, process_id, chance, setting.dsn)

        await asyncio.gather(*(lane() for _ in range(LANES)))
    (setting.folder / "expected.json").write_text(json.dumps(begun))


async def lead(
    client: ProcessClient, sagas: Sagas, process_id: str, chance: Random, dsn: str
) -> None:
    """Spawn one saga, raise its two events in order, and wait for its result.

    Every third saga and event goes through a transaction of the client's own.
    """
    steps, delay_s = chance.randint(1, 20), chance.uniform(0, 2) ** 4 / 8
    spawn = partial(client.spawn, sagas.saga, process_id, steps, delay_s)
    await _by_itself_or_in_order(spawn, dsn, process_id, chance)
    for n in (1, 2):
        await asyncio.sleep(chance.uniform(0, 0.1))
        event_id = f"{process_id}/{n}"
        deliver = partial(client.raise_event, process_id, "go", n, event_id=event_id)
        await _by_itself_or_in_order(deliver, dsn, event_id, chance)
    assert await steady(client.get(sagas.saga, process_id).result) == [1, 2]


async def _by_itself_or_in_order(
    call: Callable[..., Awaitable[object]], dsn: str, name: str, chance: Random
) -> None:
    """Make a call by itself, or with a row of an order's in one transaction."""
    if chance.random() >= IN_ORDER:
        await steady(call)
        return

    async def order(*, dropped: bool) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            with suppress(Dropped):
                async with connection.transaction():
                    insert = "insert into public.ordered values ($1) on conflict do nothing"
                    await connection.execute(insert, name)
                    await call(connection=connection)
                    if dropped:
                        raise Dropped
        finally:
            connection.terminate()

    # First one that is rolled back now and then: of that nothing is ever seen.
    if chance.random() < DROPPED:
        await steady(partial(order, dropped=True))
    await steady(partial(order, dropped=False))


class Dropped(Exception):
    """The client has thought better of it."""


async def steady(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until the storage has answered it."""
    while True:
        try:
            return await call()
        except FAILURES:
            await asyncio.sleep(AGAIN_S)


async def run_racer(setting: Setting, name: str, ready: int) -> None:
    """Be one of two hosts that spawn the same ids at once, some with another input.

    Writes the ids that it was refused into "NAME.json".
    """
    history = setting.history(name)
    sagas = Sagas(Effects(history), Random(name), setting.step_s)
    refused: list[str] = []
    room = asyncio.Semaphore(RACED_AT_ONCE)
    host = ProcessHost(setting.storage(history), processes=[sagas.short], label=name)

    async def spawn(number: int) -> None:
        process_id = f"raced/{number}"
        differs = number % DIFFERENT == 0
        async with room:
            try:
                await host.spawn(sagas.short, process_id, os.getpid() if differs else number)
            except ProcessExistsError:
                refused.append(process_id)
            await host.get(process_id).result()

    async with host:
        os.write(ready, READY)
        while not (setting.folder / "go").exists():
            await asyncio.sleep(0.001)
        await asyncio.gather(*(spawn(number) for number in range(RACED)))
    (setting.folder / f"{name}.json").write_text(json.dumps(refused))


async def run_reader(setting: Setting, ready: int) -> None:
    """Write the final state into "final.json", and the users' rows beside it."""
    storage = setting.plain()
    final = await dump(storage)
    await storage.close()
    (setting.folder / "final.json").write_bytes(msgspec.json.encode(final))
    connection = await asyncpg.connect(setting.dsn)
    for table in ("written", "ordered"):
        rows = [name for (name,) in await connection.fetch(f"table public.{table}")]
        (setting.folder / f"{table}.json").write_text(json.dumps(rows))
    await connection.close()
    os.write(ready, READY)
