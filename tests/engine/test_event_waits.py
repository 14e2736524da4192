"""Waits for events: recorded when they begin, with durable timeouts; what payloads are refused."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import pydantic
import pytest

from durabletask import Limits, Process, ProcessClient, Status
from durabletask.errors import (
    EventTimeoutError,
    InvalidArgumentError,
    InvalidIdError,
    LimitExceededError,
    MailboxFullError,
    ProcessFinishedError,
    SerializationError,
    UnknownProcessError,
)
from tests.engine.world import World, settle, virtual


@dataclass
class Approval:
    by: str


class Pair(NamedTuple):
    a: int
    b: str


class Model(pydantic.BaseModel):
    n: int


async def listener(proc: Process) -> list[str]:
    return [await proc.event("e", str, key=f"k{n}") for n in range(3)]


@virtual
async def test_a_timeout_is_recorded(world: World) -> None:
    """S2.02 (rule 10): EventTimeoutError at the due time, and on every later run at once."""
    at: list[float] = []

    async def process(proc: Process) -> str:
        with pytest.raises(EventTimeoutError, match="'e'") as caught:
            await proc.event("e", timeout=timedelta(seconds=30))
        assert isinstance(caught.value, TimeoutError)
        at.append(world.clock.monotonic_s())
        await proc.event("go")
        return str(caught.value)

    await world.begin_and_die(process, after_s=40)
    async with world.host(process) as host:
        await host.raise_event("p", "e", "too late")
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert at == [pytest.approx(30, abs=0.01), pytest.approx(40, abs=0.01)]


@virtual
async def test_a_deadline_survives_a_restart(world: World) -> None:
    """F088 (rule 10): the deadline of a wait is fixed by its first run."""

    async def process(proc: Process) -> float:
        with pytest.raises(EventTimeoutError):
            await proc.event("e", timeout=100)
        return world.clock.monotonic_s()

    await world.begin_and_die(process, after_s=60)
    assert (world.row("p").wake_at or world.clock.now()) > world.clock.now()
    async with world.host(process) as host:
        assert await host.get(process, "p").result() == pytest.approx(100, abs=0.1)


@virtual
async def test_a_timeout_of_zero_takes_only_what_is_there(world: World) -> None:
    """S2.02: timeout=0: the buffered event, or EventTimeoutError at once."""

    async def process(proc: Process) -> list[str]:
        await proc.event("ready")
        got = [await proc.event("e", str, timeout=0)]
        with pytest.raises(EventTimeoutError):
            await proc.event("e", str, key="again", timeout=timedelta(0))
        return got

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("e", "there")
        await handle.raise_event("ready")
        assert await handle.result() == ["there"]


@pytest.mark.parametrize(
    "timeout", [-1, float("nan"), float("inf"), True, "5", timedelta(seconds=-1), 1e300, 10**400]
)
def test_a_senseless_timeout_is_refused(timeout: Any) -> None:
    """F087: a timeout that is no duration: a clear error, nothing recorded."""

    @virtual
    async def body(world: World) -> None:
        async def process(proc: Process) -> None:
            with pytest.raises(InvalidArgumentError, match="at least 0 ") as caught:
                await proc.event("e", timeout=timeout)
            assert repr(timeout)[:40] in str(caught.value)

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result()
        assert world.keys("p") == []

    body()


@virtual
async def test_a_wait_is_recorded_when_it_begins(world: World) -> None:
    """Rule 10: kind, name and due of a wait, and the status, are in the storage while it lasts."""

    async def process(proc: Process) -> None:
        await proc.event("approved", key="approval", timeout=timedelta(days=2))
        await proc.event("for ever")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        info = await handle.info()
        assert info.status is Status.WAITING
        (wait,) = info.waits
        assert (wait.kind, wait.key, wait.name) == ("event", "approval", "approved")
        assert wait.due_at == info.wake_at == world.clock.now() + timedelta(days=2)
        await handle.raise_event("approved")
        await settle()
        info = await handle.info()
        assert [(each.key, each.due_at) for each in info.waits] == [("for ever", None)]
        assert info.wake_at is None
        assert [each.id async for each in host.list(status="waiting")] == ["p"]


@virtual
async def test_a_step_beside_a_wait_makes_the_process_running(world: World) -> None:
    """Rule 10: status follows what is recorded: running while a step runs, waiting after."""
    gate = asyncio.Event()

    async def slow() -> None:
        await gate.wait()

    async def process(proc: Process) -> None:
        await asyncio.gather(proc.event("e"), proc.do("slow", slow))

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        assert (await handle.info()).status is Status.RUNNING
        gate.set()
        await settle()
        assert (await handle.info()).status is Status.WAITING
        await handle.raise_event("e")
        await handle.result()


@virtual
async def test_many_waits_at_once(world: World) -> None:
    """F116: 2,000 waits side by side: woken in order, the earliest deadline is the wake time."""

    async def process(proc: Process) -> int:
        values = await asyncio.gather(
            *(proc.event("e", int, key=f"k{n}", timeout=1000 + n) for n in range(2000))
        )
        return sum(values)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        assert (await handle.info()).wake_at == world.clock.now() + timedelta(seconds=1000)
        for n in range(2000):
            await handle.raise_event("e", n)
        assert await handle.result() == 1_999_000


@virtual
async def test_waits_that_time_out_leave_nothing_behind(world: World) -> None:
    """A loop of polling waits does not grow the run's memory by one waiter a round."""

    async def process(proc: Process) -> int:
        for n in range(300):
            try:
                await proc.event("e", key=f"k{n}", timeout=1)
            except EventTimeoutError:
                continue
        await proc.event("go")
        return 1

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(400)
        assert host._session is not None
        line = host._session.runs["p"].mailbox._line or {}
        assert len(line.get("e", ())) <= 1
        await handle.raise_event("go")
        await handle.result()


# --- payloads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "type"),
    [
        (Approval("carol"), Approval),
        (Pair(1, "b"), Pair),
        (Model(n=1), Model),
        ([1, 2], list[int]),
        ({"n": 1}, Model),
        ((1, "b"), tuple[int, str]),
        (None, None),
        ("text", str),
    ],
)
def test_a_payload_comes_back_as_what_the_receiver_names(payload: Any, type: Any) -> None:
    """Rule 2: a structured payload is stored as its fields and read as the wait's type."""

    @virtual
    async def body(world: World) -> None:
        seen: list[Any] = []

        async def process(proc: Process) -> None:
            seen.append(await proc.event("e", type))
            await proc.event("go")

        first = world.host(process)
        await first.start()
        await first.spawn(process, "p")
        await first.raise_event("p", "e", payload)
        await settle()
        world.kill(first)
        async with world.host(process) as second:
            await second.raise_event("p", "go")
            await second.get("p").result()
        assert seen[0] == seen[1]
        assert seen[0].__class__ is seen[1].__class__
        if not isinstance(payload, dict):
            assert seen[0] == payload

    body()


@pytest.mark.parametrize("bad", [object(), float("nan"), ["\ud800"], 2**70, [object()]])
def test_a_payload_without_a_form_is_refused(bad: Any) -> None:
    """F120 (rule 14): refused at raise_event with the path; nothing was written."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(listener) as host:
            await host.spawn(listener, "p")
            with pytest.raises(SerializationError):
                await host.raise_event("p", "e", bad)
        assert "deliver" not in world.wires[host].calls

    body()


@virtual
async def test_a_payload_of_5_mb_is_refused(world: World) -> None:
    """F124, S1.15: beyond 2 MiB: LimitExceededError to the raiser; nothing was written."""
    async with world.host(listener) as host:
        await host.spawn(listener, "p")
        with pytest.raises(LimitExceededError):
            await host.raise_event("p", "e", "x" * 5_000_000)
    assert "deliver" not in world.wires[host].calls


# --- refusals ---------------------------------------------------------------------------------


@virtual
async def test_an_event_to_nobody_is_refused(world: World) -> None:
    """F097, S2.02: to an unknown id: refused, and not kept for a later process of that id."""
    async with world.host(listener) as host:
        with pytest.raises(UnknownProcessError, match="'p'"):
            await host.raise_event("p", "e", "early")
        handle = await host.spawn(listener, "p")
        for text in "abc":
            await handle.raise_event("e", text)
        assert await handle.result() == ["a", "b", "c"]
        with pytest.raises(ProcessFinishedError, match=r"'p' has ended(.|\n)*hint: .*its retry"):
            await host.raise_event("p", "e", "late")
        with pytest.raises(ProcessFinishedError):
            await handle.raise_event("other")


@pytest.mark.parametrize("name", ["", "a\x00", "x" * 256, None, 7])
def test_a_bad_event_name_is_refused(name: Any) -> None:
    """F121: names of events and event ids obey the one rule; nothing was written."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(listener) as host:
            await host.spawn(listener, "p")
            with pytest.raises(InvalidIdError):
                await host.raise_event("p", name)
            if name is not None:
                with pytest.raises(InvalidIdError):
                    await host.raise_event("p", "e", event_id=name)
        assert "deliver" not in world.wires[host].calls

    body()


@virtual
async def test_a_full_mailbox_is_an_error_to_the_raiser(world: World) -> None:
    """F101 (rule 14): beyond mailbox_max: MailboxFullError; what was there stays in order."""
    gate = asyncio.Event()

    async def process(proc: Process) -> list[int]:
        await proc.do("wait", gate.wait)
        return [await proc.event("e", int, key=f"k{n}") for n in range(4)]

    async with world.host(process, limits=Limits(mailbox_max=3)) as host:
        handle = await host.spawn(process, "p")
        for n in range(3):
            await handle.raise_event("e", n)
        with pytest.raises(MailboxFullError, match="3 unconsumed"):
            await handle.raise_event("e", 3)
        gate.set()
        await settle()
        await handle.raise_event("e", 4)
        assert await handle.result() == [0, 1, 2, 4]


@virtual
async def test_a_stream_of_events_goes_on_after_a_restart(world: World) -> None:
    """F095: `events()` recalls what it took and goes on with the next, in order."""
    seen: list[int] = []

    async def process(proc: Process) -> list[int]:
        got = []
        async for n in proc.events("n", int):
            got.append(n)
            seen.append(n)
            if n == 5:
                break
        return got

    first = world.host(process)
    await first.start()
    await first.spawn(process, "p")
    for n in range(3):
        await first.raise_event("p", "n", n)
    await settle()
    world.kill(first)
    async with world.host(process) as second:
        for n in range(3, 6):
            await second.raise_event("p", "n", n)
        assert await second.get(process, "p").result() == [0, 1, 2, 3, 4, 5]
    assert seen == [0, 1, 2, 0, 1, 2, 3, 4, 5]


@virtual
async def test_events_from_many_senders_keep_each_senders_order(world: World) -> None:
    """F095, G8: concurrent senders: nothing lost, nothing twice, each sender's order kept."""

    async def process(proc: Process) -> list[list[int]]:
        got = []
        async for pair in proc.events("e", list[int]):
            got.append(pair)
            if len(got) == 200:
                break
        return got

    async with world.host(process) as host, ProcessClient(world.storage) as client:
        handle = await host.spawn(process, "p")

        async def send(sender: int) -> None:
            for n in range(20):
                where = host if (sender + n) % 2 else client
                await where.raise_event("p", "e", [sender, n])

        await asyncio.gather(*(send(sender) for sender in range(10)))
        got = await handle.result()
    # A second run of the process would be seen here: an event given out twice is refused.
    assert world.row("p").epoch == 1
    for sender in range(10):
        assert [n for who, n in got if who == sender] == list(range(20))
