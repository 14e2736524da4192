"""A process that begins anew a hundred thousand times, and how much is kept of it meanwhile."""

import asyncio
import os
from collections.abc import Callable

from durabletask import Limits, Process, ProcessHost
from durabletask.storage import EVENTS_KEPT, ProcessStorage

GENERATIONS = int(os.environ.get("GENERATIONS", "100000"))
EARLY = GENERATIONS // 10


async def begin_anew(storage: ProcessStorage, size: Callable[[], int]) -> tuple[int, int]:
    """Run all generations, each with a step, an event of its own and a report.

    Returns:
        What `size` gave after a tenth of them, and after all.
    """
    early = asyncio.Event()
    go_on = asyncio.Event()

    async def work(proc: Process, number: int) -> int:
        await proc.do("step", asyncio.sleep, 0)
        await proc.raise_event("send", proc.id, "again", number)
        assert await proc.event("again", int) == number
        await proc.report(number)
        if number == EARLY:
            early.set()
            await go_on.wait()
        if number < GENERATIONS:
            proc.restart(number + 1)
        return number

    host = ProcessHost(storage, processes=[work], limits=Limits())
    async with host:
        handle = await host.spawn(work, "p", 1)
        await early.wait()
        before = size()
        go_on.set()
        assert await handle.result() == GENERATIONS
        assert (await handle.info()).generation == GENERATIONS - 1
        (snapshot,) = await storage.read(["p"], history=True)
        assert snapshot is not None
        assert len(snapshot.checkpoints) < 10
        assert len(snapshot.events) <= EVENTS_KEPT + 1
        return before, size()
