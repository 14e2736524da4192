"""proc.transaction: what the function writes and its record are committed together."""

import asyncio
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, Status, current_step
from durabletask.errors import (
    InvalidArgumentError,
    ProcessFailedError,
    SerializationError,
    StepError,
    StorageUnavailableError,
    StorageUnknownError,
)
from tests.engine.database import Connection, Database, database_of, host_of
from tests.engine.world import World, settle, virtual


async def nop() -> None:
    """Do nothing; a step."""


@virtual
async def test_the_rows_and_the_record_are_one(world: World) -> None:
    """Issue 3.5, G1: once committed it never runs again, also on another host."""
    database = database_of(world)
    runs: list[int] = []

    async def book(connection: Connection) -> Decimal:
        runs.append(current_step().attempt)
        await connection.write("booking", 7)
        await asyncio.sleep(1)
        assert database.table == {}
        return Decimal("7.50")

    async def process(proc: Process) -> str:
        before = await proc.do("before", lambda: 1)
        booked = await proc.transaction("book", book)
        assert (type(booked), database.table) == (Decimal, {"booking": 7})
        await proc.event("go")
        return f"{before} {booked}"

    first = host_of(world, process)
    await first.start()
    handle = await first.spawn(process, "p")
    await asyncio.sleep(10)
    world.kill(first)
    async with host_of(world, process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == "1 7.50"
        history = await second.get("p").history()
    assert runs == [1]
    recorded = [(kind, key) for kind, key, _ in world.keys("p") if kind != "wait"]
    assert recorded == [("do", "before"), ("transaction", "book"), ("event", "go")]
    assert ("transaction", "book") in [(each.kind, each.key) for each in history]
    assert handle.id == "p"


@virtual
async def test_what_it_raises_is_recorded_and_its_rows_are_not(world: World) -> None:
    """Rule 2: rolled back, then recorded as any step's failure; a later run meets it too."""
    database = database_of(world)

    async def fail(connection: Connection) -> None:
        await connection.write("row", 1)
        raise ValueError("no")

    async def process(proc: Process) -> str:
        try:
            await proc.transaction("t", fail)
        except StepError as error:
            await proc.event("go")
            return str(error)
        return "?"

    first = host_of(world, process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(1)
    world.kill(first)
    async with host_of(world, process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == "ValueError: no"
    assert database.table == {}
    assert world.keys("p")[0] == ("transaction", "t", "error")


@virtual
async def test_it_is_tried_again_by_policy(world: World) -> None:
    """Rule 11: each attempt is a transaction of its own; attempts are counted and recorded."""
    database = database_of(world)
    seen: list[tuple[int, str]] = []

    async def shaky(connection: Connection) -> int:
        step = current_step()
        seen.append((step.attempt, str(step.previous_error)))
        await connection.write(f"row {step.attempt}", 1)
        if step.attempt < 3:
            raise ValueError("shaky")
        return step.attempt

    async def process(proc: Process) -> int:
        return await proc.transaction("t", shaky, retry=RetryPolicy(attempts_max=5, delay_s=60))

    async with host_of(world, process) as host:
        assert await (await host.spawn(process, "p")).result() == 3
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert seen[2][1] == "ValueError: shaky"
    assert database.table == {"row 3": 1}


@pytest.mark.parametrize("when", ["lost", "refused", "cut", "busy"])
def test_an_outage_is_seen_by_nobody(when: str) -> None:
    """F003 F009: the answer is lost, the commit refused, the line cut, the process held."""

    @virtual
    async def body(world: World) -> None:
        database = database_of(world)
        seen: list[str] = []

        async def book(connection: Connection) -> str:
            seen.append("ran")
            await connection.write("row", len(seen))
            if when == "cut" and len(seen) == 1:
                connection.lost = True
                await connection.write("other", 1)
            return f"run {len(seen)}"

        async def once(call: str) -> None:
            database.before_commit = database.after_commit = _nothing
            raise (StorageUnknownError if when == "lost" else StorageUnavailableError)("fault")

        async def process(proc: Process) -> str:
            try:
                return await proc.transaction("t", book)
            except Exception:
                seen.append("compensated")
                raise

        if when == "lost":
            database.after_commit = once
        elif when == "refused":
            database.before_commit = once
        async with host_of(world, process) as host:
            handle = await host.spawn(process, "p")
            if when == "busy":
                with database.hold("p"):
                    await asyncio.sleep(60)
            result = await handle.result(timeout=10.0)
        runs = 1 if when in ("lost", "busy") else 2
        assert (result, seen) == (f"run {runs}", ["ran"] * runs)
        assert database.table == {"row": runs}

    body()


async def _nothing(call: str) -> None:
    """Let a call pass."""


@virtual
async def test_a_result_that_cannot_be_stored_rolls_back(world: World) -> None:
    """Rule 2: encoded before the commit; recorded as its failure at once, whatever the policy."""
    database = database_of(world)
    runs: list[int] = []

    async def odd(connection: Connection) -> Any:
        runs.append(1)
        await connection.write("row", 1)
        return object()

    async def process(proc: Process) -> None:
        await proc.transaction("t", odd, retry=RetryPolicy(attempts_max=None, delay_s=1))

    async with host_of(world, process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(ProcessFailedError) as caught:
            await handle.result()
    assert isinstance(caught.value.__cause__, SerializationError | StepError)
    assert "SerializationError" in caught.value.type
    assert (len(runs), database.table) == (1, {})


@virtual
async def test_cancelled_by_user_code_it_is_rolled_back(world: World) -> None:
    """Rule 6: the cancellation is recorded; a later run meets it in the same place."""
    database = database_of(world)
    runs: list[int] = []

    async def slow(connection: Connection) -> None:
        runs.append(1)
        await connection.write("row", 1)
        await asyncio.sleep(100)

    async def process(proc: Process) -> str:
        try:
            async with asyncio.timeout(5):
                await proc.transaction("t", slow)
        except TimeoutError:
            await proc.event("go")
            return "timed out"
        return "?"

    first = host_of(world, process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(10)
    world.kill(first)
    async with host_of(world, process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == "timed out"
    assert (runs, database.table) == ([1], {})
    assert ("transaction", "t", "cancelled") in world.keys("p")


@virtual
async def test_a_commit_that_wins_against_a_cancellation(world: World) -> None:
    """Rule 6: what was committed is what both runs see; the cancellation comes at the next call."""
    database = database_of(world)

    async def book(connection: Connection) -> str:
        await connection.write("row", 1)
        return "booked"

    async def hang(call: str) -> None:
        await asyncio.get_running_loop().create_future()

    async def process(proc: Process) -> str:
        booked = "?"
        try:
            async with asyncio.timeout(5):
                booked = await proc.transaction("t", book)
                await proc.do("next", nop)
        except TimeoutError:
            await proc.event("go")
            return f"{booked}, then timed out"
        return "?"

    database.after_commit = hang
    first = host_of(world, process)
    await first.start()
    await first.spawn(process, "p")
    await asyncio.sleep(10)
    world.kill(first)
    async with host_of(world, process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == "booked, then timed out"
    assert database.table == {"row": 1}


@virtual
async def test_a_host_that_lost_its_lease_commits_nothing(world: World) -> None:
    """G5 F016: fenced in the middle of the body, its rows are rolled back; the next run's count."""
    database = database_of(world)
    runs: list[int] = []

    async def book(connection: Connection) -> int:
        runs.append(1)
        await connection.write(f"row {len(runs)}", 1)
        await asyncio.sleep(5)
        return len(runs)

    async def process(proc: Process) -> int:
        try:
            return await proc.transaction("t", book)
        except Exception:
            runs.append(99)
            raise

    async with host_of(world, process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        database.crash()
        assert await handle.result() == 2
    assert (runs, database.table) == ([1, 1], {"row 2": 1})


@virtual
async def test_a_drain_lets_it_be_committed(world: World) -> None:
    """F011: a transaction in flight is a step in flight; what comes after it is not begun."""
    database = database_of(world)

    async def slow(connection: Connection) -> None:
        await connection.write("row", 1)
        await asyncio.sleep(5)

    async def process(proc: Process) -> str:
        await proc.transaction("t", slow)
        await proc.do("after", nop)
        return "done"

    host = host_of(world, process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop()
    assert database.table == {"row": 1}
    assert [key for _, key, _ in world.keys("p")] == ["t"]
    async with host_of(world, process) as second:
        assert await second.get(process, "p").result() == "done"


@virtual
async def test_beside_other_steps_everything_is_recorded(world: World) -> None:
    """G6: transactions overtake no step that is on its way, and lose none."""
    database = database_of(world)

    async def book(connection: Connection) -> str:
        key = current_step().key
        await connection.write(key, 1)
        await asyncio.sleep(int(key) % 3)
        return key

    async def process(proc: Process) -> list[str]:
        counter = await proc.var("counter", 0)
        calls: list[Any] = []
        for n in range(30):
            calls += [proc.transaction(f"{n}", book), proc.do(f"do {n}", nop), counter.set(n)]
        return [each for each in await asyncio.gather(*calls) if each]

    async with host_of(world, process) as host:
        handle = await host.spawn(process, "p")
        assert await handle.result() == [f"{n}" for n in range(30)]
    assert len(database.table) == 30
    assert len(world.keys("p")) == 61


@virtual
async def test_a_child_can_be_spawned_in_it(world: World) -> None:
    """Issue 3.5: the connection is good for spawn and raise_event as well: all or nothing."""
    database_of(world)

    async def other(proc: Process) -> str:
        return await proc.event("go", str)

    async with host_of(world, other) as client:

        async def order(connection: Connection) -> None:
            await connection.write("order", 1)
            await client.spawn(other, "other", connection=connection)
            if current_step().attempt == 1:
                raise ValueError("not yet")

        async def process(proc: Process) -> None:
            await proc.transaction("t", order, retry=RetryPolicy(attempts_max=2, delay_s=1))

        async with host_of(world, process) as host:
            await (await host.spawn(process, "p")).result()
            await host.raise_event("other", "go", "child")
            assert await client.get(other, "other").result() == "child"


@dataclass
class Booking:
    """A value that needs a type to come back as what it was."""

    number: int


@virtual
async def test_the_type_says_how_the_result_is_stored(world: World) -> None:
    """`type=` where the function has no annotation, as for get."""
    database_of(world)

    async def book(connection):  # type: ignore[no-untyped-def]
        return Booking(3)

    async def process(proc: Process) -> int:
        booked = await proc.transaction("t", book, type=Booking)
        await proc.event("go")
        return booked.number

    first = host_of(world, process)
    await first.start()
    await first.spawn(process, "p")
    await settle()
    world.kill(first)
    async with host_of(world, process) as second:
        await second.raise_event("p", "go")
        assert await second.get(process, "p").result() == 3


@virtual
async def test_what_cannot_be_a_transaction_is_refused(world: World) -> None:
    """Bad input: a storage without transactions, a function that takes nothing, or waits for none.

    A call that is refused records nothing; what the function did is rolled back.
    """

    async def good(connection: Any) -> int:
        return 1

    async def takes_nothing() -> int:
        return 1

    def sync(connection: Connection) -> int:
        connection.staged.append(lambda: None)
        return 1

    async def ends_it(connection: Connection) -> None:
        connection.commit()

    async def process(proc: Process, which: str) -> str:
        try:
            match which:
                case "good":
                    await proc.transaction("t", good)
                case "nothing":
                    await proc.transaction("t", takes_nothing)  # type: ignore[arg-type]
                case "sync":
                    await proc.transaction("t", sync)  # type: ignore[arg-type]
                case _:
                    await proc.transaction("t", ends_it)
        except (InvalidArgumentError, StepError) as error:
            return f"{type(error).__name__}: {error}"
        return "?"

    async with world.host(process) as host:
        handle = await host.spawn(process, "none", "good")
        assert (await handle.result()).startswith("InvalidArgumentError: Wire has no transactions")
    world.storage = Database(world.clock, lease_ttl_s=None)
    async with host_of(world, process) as host:
        for which, what in (
            ("nothing", "cannot be called"),
            ("sync", "is not async"),
            ("ends it", "was ended by its function"),
        ):
            handle = await host.spawn(process, which, which)
            assert re.match(f"InvalidArgumentError: .*{what}", await handle.result())
        assert world.keys("nothing") == []


@virtual
async def test_a_durable_call_inside_quarantines(world: World) -> None:
    """Rule 3: as in any step; nothing of the transaction is committed."""
    database = database_of(world)

    async def process(proc: Process) -> None:
        async def nested(connection: Connection) -> None:
            await connection.write("row", 1)
            await proc.do("inner", nop)

        await proc.transaction("t", nested)

    async with host_of(world, process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(1)
        assert (await handle.info()).status is Status.QUARANTINED
    assert database.table == {}


@virtual
async def test_a_storage_error_of_the_function_is_its_own(world: World) -> None:
    """Rule 2: what the function met elsewhere is a failure to record, and no reason to repeat."""
    database_of(world)
    runs: list[int] = []

    async def meets(connection: Connection) -> None:
        runs.append(1)
        raise StorageUnavailableError("some other storage")

    async def process(proc: Process) -> str:
        try:
            await proc.transaction("t", meets)
        except Exception as error:
            return str(error)
        return "?"

    async with host_of(world, process) as host:
        result = await (await host.spawn(process, "p")).result()
    assert "some other storage" in result
    assert runs == [1]


@virtual
async def test_who_swallows_its_interrupt_commits_nothing(world: World) -> None:
    """F011: a drain that gave up waiting, and a function that goes on all the same."""
    database = database_of(world)

    async def stubborn(connection: Connection) -> str:
        await connection.write("row", 1)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await nop()
        return "committed"

    async def process(proc: Process) -> str:
        return await proc.transaction("t", stubborn)

    host = host_of(world, process)
    await host.start()
    await host.spawn(process, "p")
    await asyncio.sleep(1)
    await host.stop(drain_s=5)
    assert (database.table, world.keys("p")) == ({}, [])


@virtual
async def test_it_does_not_begin_again_without_a_trusted_lease(world: World) -> None:
    """F016: an outage in its midst, longer than the lease is trusted: another may run it now."""
    world.storage = database = Database(world.clock, lease_ttl_s=15.0)
    runs: list[float] = []

    async def book(connection: Connection) -> None:
        runs.append(world.clock.monotonic_s())
        await connection.write("row", 1)

    async def refuse(call: str) -> None:
        raise StorageUnavailableError("down")

    async def process(proc: Process) -> None:
        await proc.transaction("t", book)

    async with host_of(world, process) as host:
        database.before_commit = refuse
        world.wires[host].down("renew")
        handle = await host.spawn(process, "p")
        await asyncio.sleep(60)
        assert len(runs) > 5
        assert max(runs) < 13
        database.before_commit = _nothing
        world.wires[host].up()
        await handle.result(timeout=10.0)
    assert database.table == {"row": 1}
