"""Logs: structured, escaped, and without anything that may be a secret."""

import asyncio
import io
import logging
from typing import Any

import pytest

from durabletask import Process, RetryPolicy
from durabletask.errors import StorageUnavailableError
from tests.engine.world import World, lease_of, settle, virtual

SECRET = "canary-4711-secret"


class Leaky(Exception):
    """Carries the secret."""


@pytest.fixture
def everything() -> Any:
    """Return a stream with all that any logger says at any level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


async def bad(text: str) -> str:
    raise Leaky(text)


async def good(text: str) -> str:
    return text


async def odd(text: str) -> Any:
    return {text: object()}


async def busy(proc: Process, secret: str) -> str:
    for key, fn in (("bad", bad), ("odd", odd)):
        try:
            await proc.do(key, fn, secret, retry=RetryPolicy(attempts_max=2, delay_s=1))
        except Exception:
            await proc.get(f"after {key}", secret)
    await proc.do("good", good, secret)
    await proc.var("var", secret)
    return str(await proc.event("e", str))


async def failing(proc: Process, secret: str) -> None:
    raise Leaky(secret)


async def conflicting(proc: Process, secret: str) -> None:
    await proc.do("k", good, secret)
    await proc.do("k", good, secret)


async def misfit(proc: Process, secret: str) -> int:
    return await proc.event("e", int)


async def unfit(proc: Process, secret: str) -> Any:
    return {secret: object()}


@virtual
async def test_no_secret_in_any_log(world: World, everything: io.StringIO) -> None:
    """F138, S0.12: canaries in inputs, results, errors and events are in no log at any level."""
    functions = (busy, failing, conflicting, misfit, unfit)
    first = world.host(*functions)
    await first.start()
    for fn in functions:
        await first.spawn(fn, fn.__name__, SECRET)
    await asyncio.sleep(5)
    await first.raise_event("misfit", "e", SECRET)
    await asyncio.sleep(5)
    world.storage.fence(lease_of(first))
    await asyncio.sleep(50)
    await first.raise_event("busy", "e", SECRET)
    for fn in functions:
        await asyncio.gather(first.get(fn.__name__).result(), return_exceptions=True)
    world.wires[first].down()
    await asyncio.sleep(30)
    world.wires[first].up()
    await asyncio.sleep(30)
    await first.stop()
    text = everything.getvalue()
    assert "quarantined" in text
    assert "lease" in text
    assert SECRET not in text


@virtual
async def test_ids_are_escaped(world: World, everything: io.StringIO) -> None:
    """F139: ids and keys with newlines of other alphabets and direction marks are escaped."""
    hostile = "p\u2028CRITICAL root forged\u202e"

    async def process(proc: Process, twice: bool) -> None:
        for n in range(6):
            await proc.do(f"{hostile}{n}", good, "x")
        if twice:
            await proc.do(f"{hostile}0", good, "x")
        try:
            await proc.event("go")
        except asyncio.CancelledError:
            if twice is None:
                await asyncio.sleep(0)
            raise

    from durabletask import Limits

    first = world.host(process, limits=Limits(steps_warn=3))
    await first.start()
    await first.spawn(process, hostile, False)
    await first.spawn(process, hostile + "2", True)
    await settle()
    await first.stop()
    renamed = process

    async def empty(proc: Process, twice: bool) -> None: ...

    empty.__name__ = "process"
    async with world.host(empty) as second:
        await second.get(hostile).result()
    assert renamed is process
    text = everything.getvalue()
    assert "checkpoints" in text
    assert "without asking" in text
    assert "\u2028" not in text
    assert "\u202e" not in text


@virtual
async def test_an_outage_is_logged_and_not_a_thousand_times(
    world: World, everything: io.StringIO
) -> None:
    """S0.12: an outage is a warning, with what the storage said; back-off bounds the lines."""

    async def process(proc: Process) -> None:
        await proc.event("go")
        await proc.do("k", good, "x")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("go")

        async def refuse(call: str) -> None:
            raise StorageUnavailableError("no route to host")

        world.wires[host].before = refuse
        await asyncio.sleep(600)
        world.wires[host].up()
        await handle.result()
    lines = [each for each in everything.getvalue().splitlines() if "no route" in each]
    assert 5 < len(lines) < 1500
    assert all(each.startswith("WARNING durabletask") for each in lines)


@virtual
async def test_records_carry_the_process_as_a_field(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """S0.12: a quarantine is an ERROR with process_id and process_name as fields."""
    async with world.host(conflicting) as host:
        await asyncio.gather(
            (await host.spawn(conflicting, "p", "x")).result(), return_exceptions=True
        )
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.__dict__["process_id"] == "p"
    assert record.__dict__["process_name"] == "conflicting"
    assert "KeyConflictError" in record.getMessage()


@virtual
async def test_a_healthy_run_says_nothing_loud(world: World, everything: io.StringIO) -> None:
    """S0.12: a process that runs, waits, resumes and ends logs no warning."""

    async def process(proc: Process) -> str:
        await proc.do("k", good, "x")
        return str(await proc.event("go"))

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go", "x")
        await host.get("p").result()
    assert "WARNING" not in everything.getvalue()
    assert "ERROR" not in everything.getvalue()
