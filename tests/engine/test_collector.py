"""The garbage collector rests while a host takes in a crowd, and at no other time."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from durabletask import MemoryStorage, Process, ProcessClient, ProcessHost
from durabletask._collector import REST_MAX_S, CollectorRest
from durabletask.storage import Claims
from durabletask.testing import VirtualClock, run_virtual

CROWD = 1_100
"""More than one claim takes."""


class Watched(MemoryStorage):
    """Notes at each claim that is answered with processes if the collector is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    async def claim(self, *args: Any, **options: Any) -> Claims:
        """Claim, and take note."""
        claims = await super().claim(*args, **options)
        if claims.claimed:
            self.seen.append(gc.isenabled())
        return claims


@contextmanager
def collector(*, at_work: bool) -> Iterator[None]:
    """Have the collector at work or not, and put it back as it was."""
    before = gc.isenabled()
    (gc.enable if at_work else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


async def add_crowd(storage: MemoryStorage) -> None:
    """Have many processes created that no host has taken yet."""

    async def work(proc: Process) -> None:
        """Do nothing."""

    client = ProcessClient(storage, processes=[work])
    async with client:
        await asyncio.gather(*(client.spawn(work, f"p{number}") for number in range(CROWD)))


@pytest.mark.parametrize("at_work", [True, False])
async def test_it_rests_from_the_second_claim_of_a_crowd_to_the_last(at_work: bool) -> None:
    """10,000 processes go on a quarter sooner; afterwards it is at work if it was before."""
    with collector(at_work=at_work):
        storage = Watched()
        await add_crowd(storage)
        host = ProcessHost(storage)
        ended = asyncio.Semaphore(0)

        @host.process
        async def work(proc: Process) -> None:
            ended.release()

        async with host:
            for _ in range(CROWD):
                await ended.acquire()
            while gc.isenabled() is not at_work:
                await asyncio.sleep(0)
        assert storage.seen == [at_work, False]


async def test_a_host_that_stops_amid_a_crowd_wakes_it() -> None:
    """Whatever ends the claiming, the collector goes on."""
    with collector(at_work=True):
        storage = Watched()
        await add_crowd(storage)
        host = ProcessHost(storage, drain_s=0)
        amid = asyncio.Event()

        @host.process
        async def work(proc: Process) -> None:
            if not gc.isenabled():
                amid.set()
            await asyncio.Event().wait()

        async with host:
            await amid.wait()
        assert gc.isenabled()


def test_it_rests_for_a_moment_and_not_again_before_the_crowd_has_gone() -> None:
    """A backlog of hours leaves garbage too."""

    async def scenario(clock: VirtualClock) -> None:
        rest = CollectorRest(asyncio.get_running_loop())
        rest.begin()
        assert not gc.isenabled()
        await asyncio.sleep(REST_MAX_S)
        await asyncio.sleep(0)
        assert gc.isenabled()
        rest.begin()
        assert gc.isenabled()
        rest.end()
        rest.begin()
        assert not gc.isenabled()
        rest.end()
        assert gc.isenabled()

    with collector(at_work=True):
        run_virtual(scenario)


async def test_hosts_of_one_program_count_as_one() -> None:
    """It goes on when the last of them has what it wanted."""
    loop = asyncio.get_running_loop()
    with collector(at_work=True):
        first, second = CollectorRest(loop), CollectorRest(loop)
        first.begin()
        second.begin()
        first.end()
        first.end()
        assert not gc.isenabled()
        second.end()
        assert gc.isenabled()


FORKS = """
import asyncio, gc, os, sys
from durabletask._collector import CollectorRest

async def main() -> None:
    CollectorRest(asyncio.get_running_loop()).begin()
    assert not gc.isenabled()
    child = os.fork()
    if not child:
        os._exit(0 if gc.isenabled() else 7)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asyncio.run(main())
"""


def test_a_forked_child_has_it_at_work() -> None:
    """A worker that a program forks while its host takes in a crowd lives on without that host."""
    assert subprocess.run([sys.executable, "-c", FORKS], timeout=30, check=False).returncode == 0
