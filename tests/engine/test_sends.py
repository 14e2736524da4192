"""Events from process to process: delivered with the record of their call, once."""

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from durabletask import Limits, Process, ProcessHost
from durabletask.errors import (
    DurableTaskError,
    InvalidArgumentError,
    InvalidIdError,
    ProcessFailedError,
    SerializationError,
)
from durabletask.testing.crash import crash_everywhere
from tests.engine.world import World, virtual


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


@dataclass
class Paid:
    """An event that is its own name and type."""

    amount: int


async def sink(proc: Process, count: int) -> list[int]:
    return [await proc.event("n", int, key=f"n{number}") for number in range(count)]


async def source(proc: Process, count: int) -> list[int]:
    child = await proc.spawn("sink", sink, count)
    for number in range(count):
        await proc.raise_event(f"send {number}", child.id, "n", number)
    return await child.result()


async def to_itself(proc: Process) -> list[int]:
    for number in range(3):
        await proc.raise_event(f"send {number}", proc.id, "n", number)
    return [await proc.event("n", int, key=f"n{number}") for number in range(3)]


async def ping(proc: Process, other: str, rounds: int) -> int:
    for number in range(rounds):
        await proc.raise_event(f"ping {number}", other, "ping", number)
        assert await proc.event("pong", int, key=f"pong {number}") == number
    return rounds


async def pong(proc: Process, other: str, rounds: int) -> int:
    for number in range(rounds):
        got = await proc.event("ping", int, key=f"ping {number}")
        await proc.raise_event(f"pong {number}", other, "pong", got)
    return rounds


@virtual
async def test_to_others_in_order(world: World) -> None:
    """G8: events of one sender arrive in the order sent."""
    async with world.host(source, sink) as host:
        assert await (await host.spawn(source, "p", 50)).result() == list(range(50))


@virtual
async def test_to_itself(world: World) -> None:
    """A process may send to itself, before it waits."""
    async with world.host(to_itself) as host:
        assert await (await host.spawn(to_itself, "p")).result() == [0, 1, 2]


@virtual
async def test_back_and_forth_on_two_hosts(world: World) -> None:
    """Two processes on two hosts answer each other."""
    async with world.host(ping) as one, world.host(pong) as two:
        second = await two.spawn(pong, "b", "a", 20)
        first = await one.spawn(ping, "a", "b", 20)
        assert (await first.result(), await second.result()) == (20, 20)


@virtual
async def test_an_object_is_name_and_payload(world: World) -> None:
    """A class of events is name and type at both ends."""

    async def receiver(proc: Process) -> int:
        return (await proc.event(Paid)).amount

    async def process(proc: Process) -> int:
        child = await proc.spawn("c", receiver)
        await proc.raise_event("s", child.id, Paid(7))
        return await child.result()

    async with world.host(process, receiver) as host:
        assert await (await host.spawn(process, "p")).result() == 7


@virtual
async def test_what_cannot_be_received_is_recorded(world: World) -> None:
    """Rules 2, 14: nobody there, ended, full: the same error at once and at each resume."""
    seen: list[list[str]] = []

    async def ended(proc: Process) -> None: ...

    async def full(proc: Process) -> None:
        await proc.event("never")

    async def process(proc: Process) -> None:
        errors = []
        for receiver in ("nobody", "ended", "full"):
            try:
                await proc.raise_event(receiver, receiver, "n", 1)
            except DurableTaskError as error:
                errors.append(f"{type(error).__name__}: {error}")
        seen.append(errors)
        await proc.event("go")

    limits = Limits(mailbox_max=1)
    host = world.host(process, ended, full, limits=limits)
    await host.start()
    await (await host.spawn(ended, "ended")).result()
    await host.spawn(full, "full")
    await host.raise_event("full", "n")
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    world.kill(host)
    async with world.host(process, ended, full, limits=limits) as second:
        await second.raise_event("p", "go")
        await second.get("p").result()
    assert [text.partition(":")[0] for text in seen[0]] == [
        "UnknownProcessError", "ProcessFinishedError", "MailboxFullError",
    ]  # fmt: skip
    assert seen[0] == seen[1]
    assert [key[2] for key in world.keys("p") if key[0] == "send"] == ["error"] * 3


@virtual
async def test_mistakes_are_refused_before_anything_is_recorded(world: World) -> None:
    """Rule 14: a reserved name, a payload without a form, two payloads."""

    async def process(proc: Process) -> None:
        with pytest.raises(InvalidIdError):
            proc.raise_event("a", "x", "durabletask:child:completed", 1)
        with pytest.raises(SerializationError):
            proc.raise_event("a", "x", "n", object())
        with pytest.raises(InvalidArgumentError):
            proc.raise_event("a", "x", Paid(1), 2)
        with pytest.raises(InvalidIdError):
            proc.raise_event("a", "", "n")

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert world.keys("p") == []


def test_delivered_once_wherever_it_dies() -> None:
    """G8 (F024): sender and receiver die at every storage call; every event arrives once."""
    report = crash_everywhere(source, 2, process_id="p", processes=[sink])
    report.check()
    assert report.expected["p", "status"] == "completed"


def test_to_itself_once_wherever_it_dies() -> None:
    """G8 (F024): the same where both are one; the program also dies twice."""
    crash_everywhere(to_itself, process_id="p").check()

    async def once(proc: Process) -> int:
        await proc.raise_event("send", proc.id, "n", 1)
        return await proc.event("n", int)

    crash_everywhere(once, process_id="p", pairs=True).check()


@virtual
async def test_a_retry_does_not_send_again(world: World) -> None:
    """G8, rule 9: what was put aside with its record has been delivered, and is known there."""
    broken = [True]

    async def step() -> None:
        if broken[0]:
            raise ValueError("broken")

    async def sends(proc: Process) -> None:
        await proc.raise_event("send", "sink", "n", 1)
        await proc.do("step", step)

    async with world.host(sends, sink) as host:
        receiver = await host.spawn(sink, "sink", 2)
        handle = await host.spawn(sends, "p")
        with pytest.raises(ProcessFailedError, match="broken"):
            await handle.result()
        broken[0] = False
        await handle.retry(from_key="send")
        await handle.result()
        await receiver.raise_event("n", 2)
        assert await receiver.result() == [1, 2]


def test_in_pairs_of_deaths() -> None:
    """G8: two processes that answer each other, and their program dies twice."""

    async def main(host: ProcessHost) -> None:
        second = await host.spawn(pong, "b", "a", 2)
        first = await host.spawn(ping, "a", "b", 2)
        await first.result()
        await second.result()

    crash_everywhere(ping, "b", 2, process_id="a", processes=[pong], main=main).check()
