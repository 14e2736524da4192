"""The barest asyncio program that does what a durable engine does, and nothing else.

It is what the engine's speed is quoted against, so nothing here is slower than
it must be: the same coroutines, one future a step, the same fields in the same
JSON, a CRC, everything that has gathered in one write and one sync on a
thread. It cannot recall, resume, refuse, list, retry or check anything.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from time import perf_counter, process_time
from zlib import crc32

import msgspec
import orjson

from benchmarks._frame import BareFile
from benchmarks._work import Timing, Turn, step


class Checkpoint(msgspec.Struct, gc=False):
    """A step's outcome, with the fields of the filesystem storage's record."""

    kind: str
    key: str
    payload: msgspec.Raw


class Unit(msgspec.Struct, gc=False, tag_field="t", tag="unit", omit_defaults=True):
    """One line of the file: a step, or the end of a process."""

    id: str
    incarnation: int
    epoch: int
    seq: int
    at: datetime
    prev: int
    checkpoints: tuple[Checkpoint, ...] = ()
    ending: msgspec.Raw | None = None


class New(msgspec.Struct, gc=False, tag_field="t", tag="new"):
    """One line of the file: the beginning of a process."""

    id: str
    incarnation: int
    at: datetime
    name: str
    input: msgspec.Raw
    digest: str
    creation_id: str
    host: str


Row = Unit | New
Flush = Callable[[list[Row]], None]

_encode = msgspec.json.Encoder().encode
_HEX_32 = "0123456789abcdef" * 2


def lines(rows: list[Row]) -> bytes:
    """Return rows as the file holds them: length, CRC, JSON, newline."""
    out = []
    for row in rows:
        payload = _encode(row)
        out.append(b"%08x%08x %b\n" % (len(payload), crc32(payload), payload))
    return b"".join(out)


class Writer:
    """Group commit: flush when idle, and what gathers meanwhile is the next batch."""

    def __init__(self, file: BareFile | None) -> None:
        """With no file the rows go into a dict of lists, as a storage in memory keeps them."""
        self._file = file
        self.kept: dict[str, list[Row]] = {}
        self._loop = asyncio.get_running_loop()
        self._rows: list[Row] = []
        self._answers: list[asyncio.Future[None]] = []
        self._wake: asyncio.Future[None] | None = None
        self._threads = ThreadPoolExecutor(1)
        self._task = self._loop.create_task(self._run())

    def submit(self, row: Row) -> "asyncio.Future[None]":
        """Add a row to the next batch and return the future of its being durable."""
        answer = self._loop.create_future()
        self._rows.append(row)
        self._answers.append(answer)
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None
        return answer

    async def close(self) -> None:
        """End it."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._threads.shutdown()

    async def _run(self) -> None:
        while True:
            if not self._rows:
                self._wake = self._loop.create_future()
                await self._wake
            rows, answers = self._rows, self._answers
            self._rows, self._answers = [], []
            if self._file is None:
                self._keep(rows)
            else:
                await self._loop.run_in_executor(self._threads, self._write, self._file, rows)
            for answer in answers:
                answer.set_result(None)

    def _write(self, file: BareFile, rows: list[Row]) -> None:
        file.append(lines(rows))

    def _keep(self, rows: list[Row]) -> None:
        for row in rows:
            self.kept.setdefault(row.id, []).append(row)


async def run_bare(file: BareFile | None, processes: int, steps: int) -> Timing:
    """Run the whole of it once."""
    writer = Writer(file)
    turn = Turn(processes)

    async def work(process_id: str) -> int:
        await turn.begin.wait()
        for number in range(steps):
            payload = orjson.dumps(await step(number))
            checkpoint = Checkpoint("do", f"step {number}", msgspec.Raw(payload))
            row = Unit(process_id, 1, 1, number + 1, datetime.now(UTC), 1, (checkpoint,))
            await writer.submit(row)
        turn.count()
        await turn.end.wait()
        end = msgspec.Raw(orjson.dumps(steps))
        await writer.submit(Unit(process_id, 1, 1, steps + 1, datetime.now(UTC), 1, ending=end))
        return steps

    async def spawn(process_id: str) -> "asyncio.Task[int]":
        given = msgspec.Raw(orjson.dumps([steps]))
        await writer.submit(
            New(process_id, 1, datetime.now(UTC), "work", given, _HEX_32, _HEX_32, _HEX_32)
        )
        return asyncio.create_task(work(process_id))

    begun_s = perf_counter()
    tasks = await asyncio.gather(*(spawn(f"process/{n}") for n in range(processes)))
    spawned_s = perf_counter()
    cpu_s = process_time()
    turn.begin.set()
    stepped_s = await turn.over
    cpu_s = process_time() - cpu_s
    turn.end.set()
    results = await asyncio.gather(*tasks)
    ended_s = perf_counter()
    assert results == [steps] * processes
    await writer.close()
    return Timing(processes * steps, stepped_s - spawned_s, cpu_s, ended_s - begun_s)
