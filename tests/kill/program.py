"""The real program that is killed: one host on a folder, tens of sagas, effects in a ledger.

It does the same at every start: open the folder, which resumes what is
unfinished, spawn everything, wait for the results. An effect is one line that
one `os.write` appends to the ledger before its step returns; the kernel keeps
it when the program dies.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from durabletask import Process, ProcessHost, RetryPolicy, current_step
from durabletask.errors import StepError
from durabletask_filesystem import FileSystemStorage

SAGAS = 30
GUARDED = 6
GUARDED_STEPS = 12
DRAIN_S = 30.0
READY, DONE = b"r", b"d"

Fn = Callable[..., Coroutine[Any, Any, Any]]


class Ledger:
    """The outside world: an append-only file of what was done."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self) -> None:
        """Do what the present step does."""
        step = current_step()
        line = f"{step.process_id}\t{step.key}\t{step.attempt}\t{step.idempotency_key}\n"
        os.write(self._file, line.encode())

    def sync(self, value: int) -> int:
        """Be a synchronous step."""
        self.write()
        return value

    async def quick(self, value: int) -> int:
        """Be a step that does not wait."""
        self.write()
        return value

    async def calm(self, value: int) -> int:
        """Be a step that takes a moment before and after its effect."""
        await asyncio.sleep(0.001)
        self.write()
        await asyncio.sleep(0.001)
        return value

    async def flaky(self, value: int) -> int:
        """Fail at the first two attempts."""
        self.write()
        if current_step().attempt < 3:
            raise ConnectionError(f"attempt {current_step().attempt}")
        return value

    async def refuse(self) -> None:
        """Fail for good."""
        self.write()
        raise ValueError("refused")


def saga_id(number: int) -> str:
    """Return the id of a saga."""
    return f"saga/{number}"


def saga_result(number: int) -> int:
    """Return what a saga comes to, worked out without it."""
    partner = number ^ 1
    return number + 1 + 2 + 3 + partner + (-number if number % 5 == 0 else 0)


def make_host(folder: Path) -> tuple[ProcessHost, Fn, Fn]:
    """Return a host with its two process functions, not yet started."""
    ledger = Ledger(folder / "ledger")
    host = ProcessHost(FileSystemStorage(folder / "state"), drain_s=DRAIN_S)

    async def tell(number: int) -> int:
        # A kill between two spawns leaves a saga whose partner does not exist until the next start.
        partner, event_id = saga_id(number ^ 1), current_step().idempotency_key
        await host.raise_event(partner, "hello", number, event_id=event_id)
        ledger.write()
        return number

    @host.process
    async def saga(proc: Process, number: int) -> int:
        """Await in every way there is."""
        total = await proc.do("reserve", ledger.calm, number)
        policy = RetryPolicy(attempts_max=4, delay_s=0.002)
        total += await proc.do("charge", ledger.flaky, 1, retry=policy)
        first, second = proc.do("pick", ledger.quick, 2), proc.do("print", ledger.sync, 3)
        total += sum(await asyncio.gather(first, second))
        await proc.delay("cool-down", timedelta(milliseconds=2))
        patient = RetryPolicy(attempts_max=None, delay_s=0.005, delay_max_s=0.1)
        await proc.do("tell", tell, number, retry=patient)
        total += await proc.event("hello", int)
        if number % 5 == 0:
            try:
                await proc.do("ship", ledger.refuse)
            except StepError:
                total += await proc.do("undo", ledger.calm, -number)
        return total

    @host.process
    async def guarded(proc: Process, number: int) -> int:
        """Refund whatever happens before the end; an interrupt is nothing that happens."""
        done = False
        try:
            for step in range(GUARDED_STEPS):
                await proc.do(f"step {step}", ledger.calm, number)
                await proc.delay(f"pause {step}", timedelta(milliseconds=1))
            done = True
        finally:
            if not done:
                await proc.do("refund", ledger.quick, number)
        return number

    return host, saga, guarded


async def run(folder: Path, ready: int | None = None) -> None:
    """Run everything to its end, or until a signal asks to stop.

    Args:
        folder: Where the ledger and the state are.
        ready: A descriptor that gets one byte when signals are handled, and another one
            when all work is done.
    """
    host, saga, guarded = make_host(folder)
    async with host:
        serving = asyncio.create_task(host.serve())
        await asyncio.sleep(0)
        if ready is not None:
            os.write(ready, READY)
        working = asyncio.create_task(_work(host, saga, guarded))
        await asyncio.wait([serving, working], return_when=asyncio.FIRST_COMPLETED)
        if ready is not None and working.done():
            os.write(ready, DONE)
        for each in (serving, working):
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each


async def _work(host: ProcessHost, saga: Fn, guarded: Fn) -> None:
    sagas = [await host.spawn(saga, saga_id(number), number) for number in range(SAGAS)]
    others = [await host.spawn(guarded, f"guarded/{number}", number) for number in range(GUARDED)]
    for handle in (*sagas, *others):
        await handle.result()
