"""Waiting for the result of an id that has belonged to more than one process."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.errors import UnknownProcessError
from durabletask.storage import ProcessStorage
from durabletask_filesystem import FileSystemStorage
from tests.engine.world import World, virtual


async def work(proc: Process, number: int) -> int:
    return number


async def results_of_one_id(storage: ProcessStorage) -> None:
    """Let three processes have one id in turns; check what each handle's result is."""
    async with asyncio.timeout(60), ProcessHost(storage, processes=[work]) as host:
        first = await host.spawn(work, "p", 1)
        assert await first.result() == await first.result() == 1
        second = await host.spawn(work, "p", 2, on_existing="replace")
        assert await second.result() == 2
        with pytest.raises(UnknownProcessError, match="'p' was purged or replaced"):
            await first.result()
        await second.purge()
        with pytest.raises(UnknownProcessError, match="no process has the id"):
            await second.result()
        third = await host.spawn(work, "p", 3)
        assert await third.result() == await host.get(work, "p").result() == 3
        with pytest.raises(UnknownProcessError, match="get"):
            await second.result()


@pytest.mark.parametrize("kind", ["memory", "files"])
async def test_a_handle_tells_the_result_of_its_process_or_none(kind: str, tmp_path: Path) -> None:
    """G9: never that of the next one with the id, which somebody else may have begun."""
    storage = MemoryStorage() if kind == "memory" else FileSystemStorage(tmp_path)
    await results_of_one_id(storage)


@virtual
async def test_who_waits_for_the_next_is_not_told_the_end_of_the_one_before(world: World) -> None:
    """G9: though the host that ran it hears only now that its end is recorded."""
    host = world.host(work)
    is_late = asyncio.Event()

    async def late(call: str) -> None:
        if call == "commit":
            await is_late.wait()

    async with host:
        world.wires[host].after = late
        first = await host.spawn(work, "p", 1)
        await asyncio.sleep(1)
        assert (await host.get("p").info()).finished_at is not None
        soon = timedelta(minutes=1)
        second = await host.spawn(work, "p", 2, on_existing="replace", start_at=soon)
        results = asyncio.gather(first.result(), second.result())
        await asyncio.sleep(1)
        world.wires[host].up()
        is_late.set()
        earlier, later = await results
        assert (earlier, later) == (1, 2)
