"""Steps: run once, recalled ever after, equal on the first run and on every later one."""

import asyncio
import threading
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, current_step
from durabletask.errors import (
    WrongContextError,
)
from tests.engine.world import World, settle, virtual


@virtual
async def test_a_recorded_step_does_not_run_again(world: World) -> None:
    """S4.05, S0.02, F001: after a kill the recorded step is recalled, the rest runs."""
    ran: list[str] = []

    async def step(name: str) -> str:
        ran.append(name)
        return name.upper()

    async def process(proc: Process) -> list[str]:
        first = await proc.do("first", step, "first")
        await proc.event("go")
        return [first, await proc.do("second", step, "second")]

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == ["FIRST", "SECOND"]
    assert ran == ["first", "second"]
    assert world.row("p").epoch == 2


@virtual
async def test_a_step_whose_record_was_lost_runs_again_under_the_same_key(world: World) -> None:
    """F002: effect without record: it runs again, and both runs have one idempotency key."""
    names: list[str] = []

    async def charge() -> None:
        names.append(current_step().idempotency_key)

    async def process(proc: Process) -> str:
        await proc.do("charge", charge)
        return proc.idempotency_key("charge")

    first = world.host(process)
    await first.start()
    world.wires[first].down("commit")
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        name = await second.get(process, "p").result()
    assert names == [name, name]
    assert world.keys("p") == [("do", "charge", "value")]


@virtual
async def test_a_commit_whose_answer_was_lost_counts(world: World) -> None:
    """F003, S3.03: the record was written, the host died before it heard: it is not run again."""
    ran: list[int] = []

    async def charge() -> int:
        ran.append(1)
        return 7

    async def process(proc: Process) -> int:
        return await proc.do("charge", charge)

    first = world.host(process)
    await first.start()

    async def lose(call: str) -> None:
        if call == "commit":
            world.kill(first)
            await asyncio.get_running_loop().create_future()

    world.wires[first].after = lose
    await first.spawn(process, "p")
    await settle()
    async with world.host(process) as second:
        assert await second.get(process, "p").result() == 7
    assert ran == [1]


@virtual
async def test_returned_means_durable(world: World) -> None:
    """S3.03 (rule 1): when do() returns, the storage holds the record already."""
    seen: list[list[tuple[str, str, str]]] = []

    async def one() -> int:
        return 1

    async def process(proc: Process) -> None:
        await proc.do("one", one)
        seen.append(world.keys("p"))

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert seen == [[("do", "one", "value")]]


@virtual
async def test_different_keys_and_processes_are_independent(world: World) -> None:
    """S4.05, S4.16: "1" and "10" are two keys and two processes, "a"+"bc" is not "ab"+"c"."""

    async def echo(value: str) -> str:
        return value

    async def process(proc: Process) -> list[str]:
        return [await proc.do(key, echo, f"{proc.id}:{key}") for key in ("1", "10", "a", "ab")]

    async with world.host(process) as host:
        for process_id in ("1", "10", "a", "bc"):
            result = await (await host.spawn(process, process_id)).result()
            assert result == [f"{process_id}:{key}" for key in ("1", "10", "a", "ab")]


@virtual
async def test_a_step_that_returns_nothing_is_recorded(world: World) -> None:
    """S0.14: None is a value; the step does not run again."""
    ran: list[int] = []

    async def void() -> None:
        ran.append(1)

    async def process(proc: Process) -> object:
        (result,) = await asyncio.gather(proc.do("void", void))
        await proc.event("go")
        return result

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await second.raise_event("p", "go")
        assert await second.get("p").result() is None
    assert ran == [1]


@virtual
async def test_parallel_steps_survive_a_resume(world: World) -> None:
    """S3.05: of parallel steps only those without a record run again."""
    ran: list[str] = []
    gate = asyncio.Event()

    async def step(name: str) -> str:
        ran.append(name)
        if name == "slow":
            await gate.wait()
        return name

    async def process(proc: Process) -> list[str]:
        return await asyncio.gather(
            *(proc.do(name, step, name) for name in ("a", "slow", "b", "c"))
        )

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        await settle()
        gate.set()
        assert await second.get("p").result() == ["a", "slow", "b", "c"]
    assert sorted(ran) == ["a", "b", "c", "slow", "slow"]


@virtual
async def test_ten_thousand_steps_side_by_side(world: World) -> None:
    """F116: gather over 10,000 steps of one process ends, and costs few commits."""

    async def double(n: int) -> int:
        return 2 * n

    async def process(proc: Process) -> int:
        return sum(await asyncio.gather(*(proc.do(f"n{n}", double, n) for n in range(10_000))))

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == 99_990_000
        assert world.wires[host].calls.count("commit") < 20


@virtual
async def test_sync_steps_run_on_threads_and_know_their_step(world: World) -> None:
    """S0.07: a sync step runs off the loop's thread, and current_step() works in it."""

    def where(n: int) -> list[Any]:
        step = current_step()
        return [n, step.key, step.attempt, step.process_id, threading.current_thread().name]

    async def process(proc: Process) -> list[list[Any]]:
        return list(await asyncio.gather(proc.do("a", where, 1), proc.do("b", where, 2)))

    async with world.host(process) as host:
        (a, b) = await (await host.spawn(process, "p")).result()
    assert a[:4] == [1, "a", 1, "p"]
    assert b[:4] == [2, "b", 1, "p"]
    assert threading.current_thread().name not in {a[4], b[4]}


@virtual
async def test_current_step_tells_key_attempt_and_previous_error(world: World) -> None:
    """S0.07, S1.10: inside a step: key, attempt, previous error; outside an error says so."""
    seen: list[tuple[str, int, str]] = []

    async def flaky() -> str:
        step = current_step()
        seen.append((step.key, step.attempt, str(step.previous_error)))
        if step.attempt < 3:
            raise ValueError(f"no {step.attempt}")
        return "yes"

    async def process(proc: Process) -> str:
        with pytest.raises(WrongContextError, match="outside a step"):
            current_step()
        result = await proc.do("flaky", flaky, retry=RetryPolicy(attempts_max=3))
        with pytest.raises(WrongContextError, match="outside a step"):
            current_step()
        return result

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "yes"
    assert seen == [
        ("flaky", 1, "None"),
        ("flaky", 2, "ValueError: no 1"),
        ("flaky", 3, "ValueError: no 2"),
    ]


@virtual
async def test_the_idempotency_key_names_the_incarnation(world: World) -> None:
    """A purged and re-created process gets other idempotency keys (F090)."""

    async def process(proc: Process) -> str:
        return proc.idempotency_key("charge")

    async with world.host(process) as host:
        first = await (await host.spawn(process, "p")).result()
        assert await world.storage.purge(["p"]) == [None]
        second = await (await host.spawn(process, "p")).result()
    assert first != second
    assert {first.split("/")[0], second.split("/")[0]} == {"p"}
