"""A limit on everything that can grow, each tried from both sides."""

import asyncio
import logging
import threading
from typing import Any

import pytest

from durabletask import Limits, Process, Status
from durabletask.errors import (
    LimitExceededError,
    ProcessQuarantinedError,
    SerializationError,
)
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


@pytest.mark.parametrize(("steps", "quarantined"), [(5, False), (6, True)])
def test_the_number_of_steps(steps: int, quarantined: bool) -> None:
    """F115, S1.15 (rule 14): steps_max checkpoints are fine, one more sets the process aside."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> int:
            for n in range(steps):
                await proc.do(f"k{n}", nop)
            return steps

        async with world.host(process, limits=Limits(steps_max=5, steps_warn=3)) as host:
            handle = await host.spawn(process, "p")
            if quarantined:
                with pytest.raises(ProcessQuarantinedError, match="more than 5"):
                    await handle.result()
            else:
                assert await handle.result() == steps

    body()


@virtual
async def test_many_steps_warn_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """F115: at steps_warn a warning with the process's id, once in a run."""

    async def process(proc: Process) -> None:
        for n in range(8):
            await proc.do(f"k{n}", nop)

    async with world.host(process, limits=Limits(steps_warn=5)) as host:
        await (await host.spawn(process, "p")).result()
    records = [each for each in caplog.records if "checkpoints" in each.getMessage()]
    assert [each.__dict__["process_id"] for each in records] == ["p"]
    assert records[0].levelno == logging.WARNING


@virtual
async def test_the_cost_of_a_resume_is_linear(world: World) -> None:
    """F115: 5,000 recorded steps are recalled without a commit each."""

    async def process(proc: Process) -> int:
        for n in range(5_000):
            await proc.do(f"k{n}", nop)
        await proc.event("go")
        return 1

    await world.begin_and_die(process, after_s=100)
    async with world.host(process) as host:
        await settle()
        await host.raise_event("p", "go")
        assert await host.get("p").result() == 1
        assert world.wires[host].calls.count("commit") <= 5


@pytest.mark.parametrize(("size", "fits"), [(98, True), (99, False)])
def test_the_size_of_a_value(size: int, fits: bool) -> None:
    """F124 (rule 14): value_bytes_max encoded bytes fit, one more is LimitExceededError."""

    @virtual
    async def body(world: World) -> None:
        async def make() -> str:
            return "x" * size

        async def process(proc: Process) -> bool:
            try:
                await proc.do("value", make)
            except LimitExceededError:
                return False
            return True

        async with world.host(process, limits=Limits(value_bytes_max=100)) as host:
            assert await (await host.spawn(process, "p")).result() is fits

    body()


@pytest.mark.parametrize(("depth", "fits"), [(10, True), (11, False), (10_000, False)])
def test_the_depth_of_a_value(depth: int, fits: bool) -> None:
    """F124, F115: depth_max levels fit; far more is an error too and no RecursionError."""

    @virtual
    async def body(world: World) -> None:
        async def make() -> Any:
            value: Any = 1
            for _ in range(depth):
                value = [value]
            return value

        async def process(proc: Process) -> bool:
            try:
                await proc.do("value", make)
            except SerializationError as error:
                return "hint: nest it less" not in str(error)
            return True

        async with world.host(process, limits=Limits(depth_max=10)) as host:
            assert await (await host.spawn(process, "p")).result() is fits

    body()


@pytest.mark.parametrize(("size", "fits"), [(84, True), (300, False)])
def test_the_size_of_the_input(size: int, fits: bool) -> None:
    """F124: input_bytes_max for all arguments together; refused before anything is written."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process, text: str) -> int:
            return len(text)

        async with world.host(process, limits=Limits(input_bytes_max=100)) as host:
            if fits:
                assert await (await host.spawn(process, "p", "x" * size)).result() == size
            else:
                with pytest.raises(LimitExceededError):
                    await host.spawn(process, "p", "x" * size)
                assert "create" not in world.wires[host].calls

    body()


@virtual
async def test_sync_steps_run_on_a_bounded_pool(world: World) -> None:
    """Rule 14: at most threads_max sync steps at once; the others wait their turn and all end."""
    lock = threading.Lock()
    now = most = 0

    def step() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.001)
        with lock:
            now -= 1

    async def process(proc: Process) -> None:
        await asyncio.gather(*(proc.do(f"k{n}", step) for n in range(20)))

    async with world.host(process, limits=Limits(threads_max=3)) as host:
        await (await host.spawn(process, "p")).result()
    assert 1 <= most <= 3


@virtual
async def test_batches_are_bounded_in_units_and_bytes(world: World) -> None:
    """S1.15 (rule 14): no commit has more than batch_units_max units or batch_bytes_max bytes."""
    sizes: list[tuple[int, int]] = []

    async def make() -> str:
        return "x" * 1_000

    async def process(proc: Process) -> None:
        await asyncio.gather(*(proc.do(f"k{n}", make) for n in range(200)))

    limits = Limits(batch_units_max=50, batch_bytes_max=20_000)
    async with world.host(process, limits=limits) as host:
        wire = world.wires[host]
        seen = 0

        async def after(call: str) -> None:
            nonlocal seen
            if call == "commit":
                units = wire.units[seen:]
                seen = len(wire.units)
                sizes.append(
                    (len(units), sum(len(c.payload) for unit in units for c in unit.checkpoints))
                )

        wire.after = after
        await (await host.spawn(process, "p")).result()
    assert max(units for units, _ in sizes) <= 50
    assert max(size for _, size in sizes) <= 20_000
    assert world.row("p").status is Status.COMPLETED


@virtual
async def test_a_unit_larger_than_a_batch_goes_alone(world: World) -> None:
    """Rule 14: one value above batch_bytes_max is still recorded, by itself."""

    async def make() -> str:
        return "x" * 50_000

    async def process(proc: Process) -> int:
        return len(await proc.do("big", make))

    async with world.host(process, limits=Limits(batch_bytes_max=1_000)) as host:
        assert await (await host.spawn(process, "p")).result() == 50_000


@virtual
async def test_deep_recursion_in_user_code_fails_its_process_only(world: World) -> None:
    """F010, F115: RecursionError in a process: it fails, its neighbour and the host go on."""

    def deep(n: int) -> int:
        return deep(n + 1) + 1

    async def bad(proc: Process) -> int:
        return deep(0)

    async def good(proc: Process) -> int:
        await proc.event("go")
        return 1

    async with world.host(bad, good) as host:
        first, second = await host.spawn(bad, "bad"), await host.spawn(good, "good")
        with pytest.raises(Exception, match="RecursionError"):
            await first.result()
        await second.raise_event("go")
        assert await second.result() == 1


@virtual
async def test_memory_error_in_user_code_fails_its_process_only(world: World) -> None:
    """F010: MemoryError in a step is the step's error; the host goes on."""

    async def hungry() -> None:
        raise MemoryError

    async def process(proc: Process) -> str:
        try:
            await proc.do("hungry", hungry)
        except Exception as error:
            return str(error)
        return ""

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "MemoryError"
