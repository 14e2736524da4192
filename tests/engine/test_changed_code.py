"""Code that no longer fits what was recorded sets its processes aside, before anything is done."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from durabletask import MemoryStorage, Process, ProcessClient, RetryPolicy, Status
from durabletask.errors import ProcessFinishedError, ProcessQuarantinedError
from tests.engine.world import World, quarantined, settle, virtual, watched


async def nop() -> None:
    """Do nothing; a step."""


async def one() -> int:
    return 1


@dataclass
class New:
    n: int


async def _to_new() -> New:
    return New(1)


CHANGES: list[tuple[str, Any, Any, str]] = [
    ("do to get", lambda p: p.do("k", one), lambda p: p.get("k", 1), "recorded as do"),
    ("get to do", lambda p: p.get("k", 1), lambda p: p.do("k", one), "recorded as get"),
    ("var to get", lambda p: p.var("k", 1), lambda p: p.get("k", 1), "recorded as var"),
    ("do to delay", lambda p: p.do("k", one), lambda p: p.delay("k", timedelta(0)), "as do"),
    ("delay to event", lambda p: p.delay("k", timedelta(0)), lambda p: p.event("k"), "as delay"),
    ("do to event", lambda p: p.do("k", one), lambda p: p.event("x", key="k"), "recorded as do"),
    ("type", lambda p: p.do("k", one), lambda p: p.do("k", _to_new), "'k'"),
    ("var type", lambda p: p.var("k", 1), lambda p: p.var("k", New(1), type=New), "'k'"),
    ("get type", lambda p: p.get("k", 1), lambda p: p.get("k", "", type=str), "'k'"),
]


@pytest.mark.parametrize(("name", "before", "after", "match"), CHANGES, ids=lambda x: str(x)[:20])
def test_code_that_asks_for_something_else_is_quarantined(
    name: str, before: Any, after: Any, match: str
) -> None:
    """F106, S2.13 (rule 4): a recorded kind or type that no longer fits: set aside, unseen."""

    @virtual
    async def test(world: World) -> None:
        seen: list[str] = []
        new = False

        async def body(proc: Process) -> None:
            await (after if new else before)(proc)
            await proc.event("go")

        process = watched(body, seen)
        await world.begin_and_die(process)
        new = True
        told = (await quarantined(world, process, match)).split("hint: ")[1:]
        assert len(set(told)) == len(told), "each hint is said once"
        assert seen == []
        assert "compensation" not in {key for _, key, _ in world.keys("p")}

    test()


OPEN_CHANGES: list[tuple[str, Any, Any]] = [
    ("event's name", lambda p: p.event("x", key="k"), lambda p: p.event("y", key="k")),
    ("event to delay", lambda p: p.event("x", key="k"), lambda p: p.delay("k", timedelta(1))),
    (
        "timed event to delay",
        lambda p: p.event("x", key="k", timeout=9999),
        lambda p: p.delay("k", timedelta(1)),
    ),
    ("delay to event", lambda p: p.delay("k", timedelta(1)), lambda p: p.event("x", key="k")),
    ("delay to do", lambda p: p.delay("k", timedelta(1)), lambda p: p.do("k", one)),
    ("event to do", lambda p: p.event("x", key="k"), lambda p: p.do("k", one)),
    ("event to get", lambda p: p.event("x", key="k"), lambda p: p.get("k", 1)),
    (
        "retry to delay",
        lambda p: p.do("k", _fails, retry=RetryPolicy(delay_s=9999, delay_max_s=9999)),
        lambda p: p.delay("k", timedelta(1)),
    ),
]


async def _fails() -> None:
    raise ValueError("fails")


@pytest.mark.parametrize(("name", "before", "after"), OPEN_CHANGES, ids=lambda x: str(x)[:20])
def test_a_wait_that_became_something_else_is_quarantined(
    name: str, before: Any, after: Any
) -> None:
    """F106 (rules 4, 10): what a key waits for is recorded; another call under it is set aside."""

    @virtual
    async def test(world: World) -> None:
        new = False

        async def process(proc: Process) -> None:
            await (after if new else before)(proc)
            await proc.event("go")

        await world.begin_and_die(process)
        new = True
        await quarantined(world, process, "'k'")

    test()


@virtual
async def test_a_consumed_event_of_another_name_is_quarantined(world: World) -> None:
    """F106 (rule 4): the recorded event's name counts, not only the key."""
    name = "x"

    async def process(proc: Process) -> None:
        await proc.event(name, key="k")
        await proc.event("go")

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    await first.raise_event("p", "x", 1)
    await asyncio.sleep(1)
    world.kill(first)
    name = "y"
    await quarantined(world, process, "'k'")


@virtual
async def test_a_removed_error_class_is_quarantined(world: World) -> None:
    """F125 (rule 4): the recorded error's class is not registered any more: named, set aside."""

    class TransferFailed(Exception):
        pass

    async def bad() -> None:
        raise TransferFailed("no")

    async def process(proc: Process) -> None:
        try:
            await proc.do("bad", bad)
        except TransferFailed:
            await proc.event("go")

    await world.begin_and_die(process, errors=[TransferFailed])
    await quarantined(world, process, "TransferFailed")


@virtual
async def test_input_that_no_longer_fits_is_quarantined(world: World) -> None:
    """Rule 4, F125: a process function that lost or gained a parameter: set aside, it is named."""

    async def before(proc: Process, amount: int) -> None:
        await proc.event("go")

    async def after(proc: Process, sum: int) -> None:
        await proc.event("go")

    after.__name__ = "before"
    await world.begin_and_die(before, 5)
    await quarantined(world, after, "amount")


def damaging(fresh: bool) -> type[MemoryStorage]:
    """Return a storage that reports what it hands out of "p", or tells of it, as damaged."""

    class Damaging(MemoryStorage):
        async def claim(self, *args: Any, **kwargs: Any) -> Any:
            claims = await super().claim(*args, **kwargs)
            claimed = tuple(
                msgspec.structs.replace(each, damage="bad frame at 4711", checkpoints=(), events=())
                if each.row.process_id == "p" and each.fresh == fresh
                else each
                for each in claims.claimed
            )
            return msgspec.structs.replace(claims, claimed=claimed)

    return Damaging


async def waiting(proc: Process) -> str:
    await proc.event("go")
    return "done"


@virtual
async def test_damage_sets_aside_its_process_only(world: World) -> None:
    """S4.15: a history that the storage reports as damaged: set aside, neighbours go on."""
    await world.begin_and_die(waiting)
    world.storage.__class__ = damaging(fresh=True)
    async with world.host(waiting) as host:
        other = await host.spawn(waiting, "q")
        with pytest.raises(ProcessQuarantinedError, match="bad frame at 4711"):
            await host.get("p").result()
        await other.raise_event("go")
        assert await other.result() == "done"


@virtual
async def test_a_mailbox_that_cannot_be_read_sets_aside_its_process(world: World) -> None:
    """G13: news that is damaged is no news to wait on for ever; the process says why it stands."""
    world.storage.__class__ = damaging(fresh=False)
    async with world.host(waiting) as host, ProcessClient(world.storage) as client:
        handles = [await host.spawn(waiting, process_id) for process_id in ("p", "q")]
        await settle()
        for handle in handles:
            await client.raise_event(handle.id, "go")
        assert await handles[1].result() == "done"
        with pytest.raises(ProcessQuarantinedError, match="bad frame at 4711"):
            await handles[0].result()


@virtual
async def test_a_nested_call_is_refused(world: World) -> None:
    """Rule 4: a durable call inside a step's body: set aside, told to call outside."""
    kinds: list[Callable[[Process], Any]] = [
        lambda proc: proc.do("inner", one),
        lambda proc: proc.get("inner", 1),
        lambda proc: proc.delay("inner", timedelta(1)),
        lambda proc: proc.event("inner"),
    ]
    for number, nested in enumerate(kinds):

        async def process(proc: Process) -> None:
            async def outer() -> None:
                await nested(proc)  # noqa: B023  run before the next round

            await proc.do("outer", outer)

        async with world.host(process) as host:
            handle = await host.spawn(process, f"p{number}")
            with pytest.raises(ProcessQuarantinedError, match="inside the body of a step"):
                await handle.result()
        assert world.keys(f"p{number}") == []


@virtual
async def test_setting_a_variable_inside_a_step_is_refused(world: World) -> None:
    """Rule 4: Var.set is a durable call; inside a step's body it is refused too."""

    async def process(proc: Process) -> None:
        variable = await proc.var("v", 1)

        async def outer() -> None:
            await variable.set(2)

        await proc.do("outer", outer)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessQuarantinedError, match="inside the body of a step"):
            await handle.result()


@virtual
async def test_an_event_that_does_not_fit_stays_where_it_is(world: World) -> None:
    """Rule 4, F125: a payload of another type: set aside, the event is not consumed."""
    wants: Any = int

    async def process(proc: Process) -> Any:
        return await proc.event("e", wants)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("e", "not a number")
        with pytest.raises(ProcessQuarantinedError, match="'e'"):
            await handle.result()
    events = world.storage._processes["p"].snapshot(history=True).events
    assert [each.consumed for each in events] == [False]


@virtual
async def test_a_quarantined_process_is_left_alone(world: World) -> None:
    """Rule 4: it is not claimed again, takes events, keeps its history; others go on."""

    async def process(proc: Process) -> None:
        await proc.do("k", one)
        await proc.do("k", one)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessQuarantinedError):
            await handle.result()
        await asyncio.sleep(1)
        await handle.raise_event("kept", 1)
    epoch = world.row("p").epoch
    async with world.host(process) as again:
        await asyncio.sleep(100)
        assert world.row("p").epoch == epoch
        assert [each.key for each in await again.get("p").history()] == ["k", "kept"]
        with pytest.raises(ProcessQuarantinedError):
            await again.get("p").result()
        # Spawning it again is the same process, still set aside.
        with pytest.raises(ProcessQuarantinedError):
            await (await again.spawn(process, "p")).result()


@virtual
async def test_steps_in_flight_of_a_quarantined_process_are_not_recorded(world: World) -> None:
    """Rules 4, 5: what runs beside the mistake is interrupted, unrecorded, and ends."""
    ended: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("slow")
        return "slow"

    async def process(proc: Process) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(proc.do("slow", slow))
            await proc.do("k", one)
            await asyncio.sleep(1)
            await proc.do("k", one)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessQuarantinedError):
            await handle.result()
        await settle()
    assert ended == ["slow"]
    assert world.keys("p") == [("do", "k", "value")]


@virtual
async def test_a_finished_process_cannot_be_set_aside(world: World) -> None:
    """A late task's mistake after the end changes nothing of the end."""

    async def late(proc: Process) -> None:
        await asyncio.sleep(1)
        await proc.do("late", one)

    tasks: list[asyncio.Task[None]] = []

    async def process(proc: Process) -> str:
        tasks.append(asyncio.create_task(late(proc)))
        return "done"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == "done"
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(ProcessFinishedError):
            await handle.raise_event("e")
    assert world.row("p").status is Status.COMPLETED


@virtual
async def test_a_renamed_key_warns(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """F106 (rule 4): a run that ends without asking for a recorded key logs its name."""
    key = "old name"

    async def process(proc: Process) -> None:
        await proc.do(key, one)
        await proc.event("go")

    await world.begin_and_die(process)
    key = "new name"
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    (record,) = (each for each in caplog.records if "without asking" in each.getMessage())
    assert "do 'old name'" in record.getMessage()
    assert record.levelname == "WARNING"
    assert record.__dict__["process_id"] == "p"


@virtual
async def test_a_run_that_asks_for_everything_does_not_warn(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """F106: in another order, and cancelled or failed keys included: no warning."""
    order = ["a", "b"]

    async def process(proc: Process) -> None:
        for key in order:
            await proc.do(key, one)
        await proc.event("go")

    await world.begin_and_die(process)
    order.reverse()
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert "without asking" not in caplog.text
