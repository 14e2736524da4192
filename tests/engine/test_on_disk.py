"""The engine over a folder, in real time: what must hold on the storage that people begin with."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from durabletask import Process, ProcessHost, RetryPolicy, Status, current_step
from durabletask.errors import (
    EventTimeoutError,
    InvalidIdError,
    ProcessFailedError,
    ProcessQuarantinedError,
    StepError,
    StorageBusyError,
    StorageFormatError,
)
from durabletask_filesystem import FileSystemStorage


class TransferFailed(Exception):
    """Comes back as itself."""


Hosts = Callable[..., ProcessHost]


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    """Return what makes a host over one folder; each call is another start of the program."""

    def make(*processes: Any, **options: Any) -> ProcessHost:
        return ProcessHost(FileSystemStorage(tmp_path / "state"), processes=processes, **options)

    return make


async def test_a_saga_goes_on_where_it_stood(hosts: Hosts) -> None:
    """S4.10, S0.02, S4.05: steps, values, errors, a wait and its event over a clean restart."""
    ran: list[str] = []
    seen: list[list[Any]] = []

    async def step(name: str) -> str:
        ran.append(f"{name}#{current_step().attempt}")
        if name == "flaky" and current_step().attempt == 1:
            raise ValueError("once")
        if name == "bad":
            raise TransferFailed("no funds")
        return name

    async def process(proc: Process, start: int) -> str:
        story: list[Any] = [start, await proc.get("id", uuid4)]
        seen.append(story)
        story.append(await proc.do("one", step, "one"))
        story.append(await proc.do("flaky", step, "flaky", retry=RetryPolicy(delay_s=0)))
        try:
            await proc.do("bad", step, "bad")
        except TransferFailed as error:
            story.append(str(error))
        counter = await proc.var("n", 0)
        await counter.set(counter.value + 1)
        story.append(counter.value)
        story.append(await proc.event("go", str))
        await proc.delay("short", timedelta(milliseconds=1))
        return f"{story[-1]}, {counter.value}"

    first = hosts(process, errors=[TransferFailed])
    async with first:
        handle = await first.spawn(process, "p", 7)
        while (await handle.info()).status is not Status.WAITING:
            await asyncio.sleep(0)
    async with hosts(process, errors=[TransferFailed]) as second:
        await second.raise_event("p", "go", "ahead")
        assert await second.get(process, "p").result() == "ahead, 2"
        assert (await second.get("p").info()).epoch == 2
    assert ran == ["one#1", "flaky#1", "flaky#2", "bad#1"]
    assert isinstance(seen[0][1], UUID)
    assert seen[0][:5] == seen[1][:5] == [7, seen[0][1], "one", "flaky", "no funds"]


async def test_ends_are_kept(hosts: Hosts) -> None:
    """S4.11, S4.17, S3.04: completed, failed and quarantined ones stay so over a restart."""

    async def good(proc: Process) -> tuple[int, str]:
        return 1, "x"

    async def bad(proc: Process) -> None:
        raise ValueError("bad")

    async def twice(proc: Process) -> None:
        await proc.get("k", 1)
        await proc.get("k", 1)

    functions = (good, bad, twice)
    async with hosts(*functions) as first:
        for fn in functions:
            await first.spawn(fn, fn.__name__)
        await first.get("good").result()
        for name in ("bad", "twice"):
            with pytest.raises((ProcessFailedError, ProcessQuarantinedError)):
                await first.get(name).result()
    async with hosts(*functions) as second:
        assert await second.get(good, "good").result() == (1, "x")
        with pytest.raises(ProcessFailedError, match="ValueError: bad"):
            await second.get("bad").result()
        with pytest.raises(ProcessQuarantinedError, match="'k' was used twice"):
            await second.get("twice").result()
        assert [each.status.value async for each in second.list()] == [
            "completed",
            "failed",
            "quarantined",
        ]


async def test_a_drain_records_the_step_in_flight(hosts: Hosts) -> None:
    """F011, S4.13: stop() lets the step end and records it; no `finally` compensates."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await go.wait()
        return "slow"

    async def refund() -> None: ...

    async def process(proc: Process) -> str:
        try:
            value = await proc.do("slow", slow)
            await proc.event("go")
            return value
        finally:
            await proc.do("refund", refund)

    host = hosts(process)
    await host.start()
    await host.spawn(process, "p")
    await begun.wait()
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0)
    go.set()
    await stopping
    async with hosts(process) as again:
        assert "refund" not in [each.key for each in await again.get("p").history()]
        await again.raise_event("p", "go")
        assert await again.get(process, "p").result() == "slow"


async def test_hostile_ids_stay_inside_the_folder(tmp_path: Path, hosts: Hosts) -> None:
    """F121, S4.16: no id becomes a path; those that differ by case or form are different."""
    ids = ["../../x", "/etc/x", "CON", "a", "A", "\u00e9", "e\u0301", "..", "x" * 255, "%2e%2e"]

    async def process(proc: Process) -> str:
        return await proc.get(proc.id[:100] or "k", proc.id)

    async with hosts(process) as host:
        for each in ids:
            assert await (await host.spawn(process, each)).result() == each
        with pytest.raises(InvalidIdError):
            await host.spawn(process, "a\x00b")
        assert sorted([each.id async for each in host.list()]) == sorted(ids)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


async def test_a_folder_that_another_host_holds(tmp_path: Path, hosts: Hosts) -> None:
    """S4.14, bad input: the second host is refused, with the pid of the first."""

    async def process(proc: Process) -> int:
        return 1

    async with hosts(process) as first:
        second = hosts(process)
        with pytest.raises(StorageBusyError, match=str(os.getpid())):
            await second.start()
        assert await (await first.spawn(process, "p")).result() == 1
    async with hosts(process) as third:
        assert await third.get(process, "p").result() == 1


async def test_a_folder_that_is_no_store_or_a_newer_one(tmp_path: Path) -> None:
    """Bad input: a folder of a newer format, or of something else: refused, nothing touched."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    host = ProcessHost(FileSystemStorage(other))
    with pytest.raises(StorageFormatError):
        await host.start()
    assert [each.name for each in other.iterdir()] == ["letter.txt"]


async def test_durable_waits_in_real_time(hosts: Hosts) -> None:
    """S2.02, S2.03: a delay and a timeout of some milliseconds are over, and not early."""

    async def process(proc: Process) -> bool:
        result = await proc.delay("short", timedelta(milliseconds=3))
        with pytest.raises(EventTimeoutError):
            await proc.event("never", timeout=0.003)
        return result.actual >= result.desired

    async with hosts(process) as host:
        assert await (await host.spawn(process, "p")).result() is True


async def test_many_processes_side_by_side(hosts: Hosts) -> None:
    """F116, S3.05: 300 processes of 10 parallel steps on disk, each step once."""
    ran: list[str] = []

    async def step(name: str) -> int:
        ran.append(name)
        return len(name)

    async def process(proc: Process) -> int:
        return sum(
            await asyncio.gather(*(proc.do(f"k{n}", step, f"{proc.id}/{n}") for n in range(10)))
        )

    async with hosts(process) as host:
        handles = await asyncio.gather(*(host.spawn(process, f"p{n:03}") for n in range(300)))
        assert {await each.result() for each in handles} == {60}
    assert len(ran) == len(set(ran)) == 3000


PROGRAM = """
import asyncio, os, sys
from durabletask import Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

async def effect(name: str) -> str:
    with open(sys.argv[2], "a") as ledger:
        ledger.write(name + "\\n")
    return name

async def process(proc: Process) -> str:
    await proc.do("first", effect, "first")
    if sys.argv[3] == "die":
        os._exit(9)
    return await proc.do("second", effect, "second")

async def main() -> None:
    async with ProcessHost(FileSystemStorage(sys.argv[1]), processes=[process]) as host:
        print(await (await host.spawn(process, "p")).result())

asyncio.run(main())
"""


def test_os_exit_in_the_middle(tmp_path: Path) -> None:
    """F013, F006: os._exit() is as kill -9: the next start recalls what was recorded."""
    program, ledger = tmp_path / "program.py", tmp_path / "ledger"
    program.write_text(PROGRAM)
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'storage'}"}

    def run(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), str(tmp_path / "state"), str(ledger), how]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env=environment
        )

    assert run("die").returncode == 9
    assert run("die").returncode == 9
    last = run("live")
    assert (last.returncode, last.stdout) == (0, "second\n"), last.stderr
    assert ledger.read_text() == "first\nsecond\n"


async def test_an_unregistered_error_and_a_failed_step_on_disk(hosts: Hosts) -> None:
    """S4.06: a stored failure is thrown again with equal type and message, without running."""
    ran: list[int] = []
    seen: list[str] = []

    async def bad() -> None:
        ran.append(1)
        raise KeyError("nope")

    async def process(proc: Process) -> None:
        with pytest.raises(StepError) as caught:
            await proc.do("bad", bad)
        seen.append(repr(caught.value))
        await proc.event("go")

    async with hosts(process) as first:
        handle = await first.spawn(process, "p")
        while not seen:
            await asyncio.sleep(0)
        assert (await handle.info()).error is None
    async with hosts(process) as second:
        await second.raise_event("p", "go")
        await second.get("p").result()
    assert ran == [1]
    assert seen[0] == seen[1]
