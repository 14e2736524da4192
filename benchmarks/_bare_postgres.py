"""The barest asyncio program that puts the same rows into Postgres, and nothing else.

It is what the speed on Postgres is quoted against, so nothing here is slower
than it must be: the same coroutines, one future a step, the same values in the
same JSON, tables of the same columns with the same primary keys, everything
that has gathered in one `insert … select from unnest(…)`, which is one round
trip and one commit, on one asyncpg connection. What is the same in all rows is
said in the SQL. It cannot recall, resume, refuse, fence, repeat or check
anything; a key written twice breaks it.

Measured beside it and left: `COPY` (as quick at best, since it takes two round
trips; 20 % less log), payloads sent as text (no quicker), `on conflict do
nothing` (10 to 35 % slower, 20 % more log), a parameter for every column (30 %
slower).
"""

import asyncio
from time import perf_counter, process_time
from typing import Any

import asyncpg
import orjson

from benchmarks._work import Mark, Timing, Turn, step

TABLES = """
    create schema bare;
    create table bare.process (
        like durabletask.process including defaults including generated including identity,
        primary key (process_no), unique (process_id)
    );
    create table bare.checkpoint (
        like durabletask.checkpoint including defaults,
        primary key (process_no, key, index, kind)
    );
"""

SPAWN = """
    insert into bare.process
        (process_id, name, status, epoch, owner_no, created_at, updated_at, started_at,
        creation_id, input_digest, input)
    select id, 'work', 'running', 1, 1, clock_timestamp(), clock_timestamp(), clock_timestamp(),
        '0123456789abcdef0123456789abcdef', '0123456789abcdef0123456789abcdef', given
    from unnest($1::text[], $2::bytea[]) as n (id, given)
    returning process_no
"""

STEP = """
    insert into bare.checkpoint
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    select process_no, clock_timestamp(), 1, seq, -1, 0, false, 'do', key, 'value', payload
    from unnest($1::bigint[], $2::text[], $3::integer[], $4::bytea[])
        as n (process_no, key, seq, payload)
"""

ONE_STEP = """
    insert into bare.checkpoint
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    values ($1, clock_timestamp(), 1, $3, -1, 0, false, 'do', $2, 'value', $4)
"""

END = """
    update bare.process p
    set status = 'completed', seq = n.seq, owner_no = null, updated_at = clock_timestamp(),
        finished_at = clock_timestamp(), ending_form = 'value', ending_payload = n.payload
    from unnest($1::bigint[], $2::integer[], $3::bytea[]) as n (process_no, seq, payload)
    where p.process_no = n.process_no
"""

Connection = Any  # asyncpg.Connection[Record], which exists for the type checker only
Row = tuple[object, ...]


class Writer:
    """Group commit: flush when idle, and what gathers meanwhile is the next batch."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._queues: list[tuple[Any, list[Row], list[asyncio.Future[Any]]]] = []
        self._task: asyncio.Task[None]

    async def open(self) -> None:
        """Make the tables and prepare the statements."""
        await self._connection.execute(TABLES)
        for statement in (SPAWN, STEP, END):
            self._queues.append((await self._connection.prepare(statement), [], []))
        self._task = self._loop.create_task(self._run())

    def spawn(self, *row: object) -> "asyncio.Future[int]":
        """Write (process_id, input); the answer is the number of the process."""
        return self._submit(0, row)

    def step(self, *row: object) -> "asyncio.Future[None]":
        """Write (process_no, key, seq, payload)."""
        return self._submit(1, row)

    def end(self, *row: object) -> "asyncio.Future[None]":
        """Write (process_no, seq, payload)."""
        return self._submit(2, row)

    async def close(self) -> None:
        """End it."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def _submit(self, number: int, row: Row) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = self._loop.create_future()
        _, rows, answers = self._queues[number]
        rows.append(row)
        answers.append(answer)
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None
        return answer

    async def _run(self) -> None:
        while True:
            if not any(rows for _, rows, _ in self._queues):
                self._wake = self._loop.create_future()
                await self._wake
            for number, (statement, rows, answers) in enumerate(self._queues):
                if rows:
                    self._queues[number] = (statement, [], [])
                    try:
                        made = await statement.fetch(*zip(*rows, strict=True))
                    except asyncpg.PostgresError as error:  # else they would wait for ever
                        for answer in answers:
                            answer.set_exception(error)
                        continue
                    if made:
                        for answer, row in zip(answers, made, strict=True):
                            answer.set_result(row[0])
                    else:
                        for answer in answers:
                            answer.set_result(None)


async def run_bare_postgres(
    dsn: str, processes: int, steps: int, mark: Mark | None = None
) -> Timing:
    """Run the whole of it once; `mark` is called before the first step and after the last."""
    connection = await asyncpg.connect(dsn)
    writer = Writer(connection)
    await writer.open()
    turn = Turn(processes)

    async def work(process_no: int) -> int:
        await turn.begin.wait()
        for number in range(steps):
            payload = orjson.dumps(await step(number))
            await writer.step(process_no, f"step {number}", number + 1, payload)
        turn.count()
        await turn.end.wait()
        await writer.end(process_no, steps + 1, orjson.dumps(steps))
        return steps

    async def spawn(process_id: str) -> "asyncio.Task[int]":
        process_no = await writer.spawn(process_id, orjson.dumps([steps]))
        return asyncio.create_task(work(process_no))

    begun_s = perf_counter()
    tasks = await asyncio.gather(*(spawn(f"process/{n}") for n in range(processes)))
    if mark is not None:
        await mark()
    spawned_s = perf_counter()
    cpu_s = process_time()
    turn.begin.set()
    stepped_s = await turn.over
    cpu_s = process_time() - cpu_s
    if mark is not None:
        await mark()
    turn.end.set()
    results = await asyncio.gather(*tasks)
    ended_s = perf_counter()
    assert results == [steps] * processes
    await writer.close()
    await connection.close()
    return Timing(processes * steps, stepped_s - spawned_s, cpu_s, ended_s - begun_s)
