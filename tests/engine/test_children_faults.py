"""Children, messages and restarts over a storage that loses answers, refuses, or is on disk."""

import gc
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any

import pytest

from durabletask import Process, ProcessHost
from durabletask.storage import ProcessStorage
from durabletask.testing import VirtualClock
from durabletask.testing.crash import Fate, Program, Search, crash_everywhere
from tests.crash.on_disk import OnDisk
from tests.crash.world import steady
from tests.engine.test_children import beside, double, failing, fails, one
from tests.engine.test_sends import sink, source, to_itself

Fn = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


async def again(proc: Process, number: int) -> int:
    got = await proc.call("c", double, number)
    if number < 2:
        proc.restart(number + 1)
    return got


PROGRAMS: list[tuple[Fn, tuple[int, ...]]] = [
    (one, ()), (beside, ()), (source, (2,)), (to_itself, ()), (again, (0,)), (failing, ()),
]  # fmt: skip


def program(fn: Fn, args: tuple[int, ...]) -> Program:
    """Return a program that runs a process "p" to its end, whatever the storage answers."""

    def host(storage: ProcessStorage, clock: VirtualClock, random: Random) -> ProcessHost:
        fns = [fn, *(each for each in (double, sink, fails) if each is not fn)]
        return ProcessHost(storage, processes=fns, clock=clock, random=random)

    async def main(host: ProcessHost) -> None:
        handle = await steady(lambda: host.spawn(fn, "p", *args))
        await steady(handle.result)

    return Program(host=host, main=main)


@pytest.mark.parametrize(("fn", "args"), PROGRAMS, ids=[fn.__name__ for fn, _ in PROGRAMS])
@pytest.mark.parametrize("fate", [Fate.UNKNOWN_DONE, Fate.UNKNOWN_LOST, Fate.UNAVAILABLE])
def test_answers_that_are_lost(fn: Fn, args: tuple[int, ...], fate: Fate) -> None:
    """Rule 1 (F024): what is repeated spawns nothing twice, delivers nothing twice."""
    Search(program(fn, args)).run((fate,), count=2).check()


@pytest.mark.parametrize(("fn", "args"), [(one, ()), (source, (2,)), (again, (0,))])
def test_on_files(fn: Fn, args: tuple[int, ...]) -> None:
    """S1.05 (F024): the same on files, dead before and after each call."""
    others = [each for each in (double, sink) if each is not fn]
    crash_everywhere(fn, *args, process_id="p", processes=others, survivor=OnDisk).check()
