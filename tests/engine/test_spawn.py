"""Spawn: idempotent by id, input checked and stored with the creation, any id."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from durabletask import Limits, Process, ProcessClient
from durabletask.errors import (
    InvalidArgumentError,
    InvalidIdError,
    LimitExceededError,
    ProcessExistsError,
    SerializationError,
    StorageUnavailableError,
    StorageUnknownError,
)
from tests.engine.world import World, settle, virtual


@dataclass(frozen=True)
class Order:
    id: int
    items: tuple[str, ...]


async def echo(proc: Process, value: int = 1, *rest: str) -> list[Any]:
    return [value, *rest]


async def other(proc: Process, value: int = 1) -> int:
    return value


async def typed(proc: Process, order: Order, amount: Decimal) -> str:
    return f"{type(order).__name__} {order.items} {amount}"


@virtual
async def test_a_live_id_is_never_executed_twice(world: World) -> None:
    """S0.01 (rule 13): the same id, function and input is the same process, finished ones too."""
    ran: list[str] = []

    async def process(proc: Process, n: int) -> int:
        ran.append(proc.id)
        await proc.event("go")
        return n

    async with world.host(process) as host:
        handles = [await host.spawn(process, "p", 5) for _ in range(3)]
        handles += await asyncio.gather(*(host.spawn(process, "p", 5) for _ in range(20)))
        await host.raise_event("p", "go")
        assert [await each.result() for each in handles] == [5] * 23
        assert await (await host.spawn(process, "p", 5)).result() == 5
    assert ran == ["p"]


@virtual
async def test_spawns_that_race_on_two_hosts(world: World) -> None:
    """G9 (rule 13): one of the creations wins, everybody gets it, it runs once."""
    ran: list[str] = []

    async def process(proc: Process) -> str:
        ran.append(proc.id)
        return proc.id

    async with world.host(process) as first, world.host(process) as second:
        for n in range(50):
            handles = await asyncio.gather(
                first.spawn(process, f"p{n}"), second.spawn(process, f"p{n}")
            )
            assert await asyncio.gather(*(each.result() for each in handles)) == [f"p{n}"] * 2
    assert sorted(ran) == sorted(f"p{n}" for n in range(50))


@virtual
async def test_another_input_or_function_is_an_error(world: World) -> None:
    """Rule 13: ProcessExistsError, naming what differs; nothing was written."""
    async with world.host(echo, other) as host:
        await host.spawn(echo, "p", 5)
        with pytest.raises(ProcessExistsError, match="another input") as caught:
            await host.spawn(echo, "p", 6)
        assert caught.value.process_id == "p"
        with pytest.raises(ProcessExistsError, match="another function, 'echo'"):
            await host.spawn(other, "p", 5)
        assert await host.get("p").result() == [5]
        with pytest.raises(ProcessExistsError):
            await host.spawn(echo, "p", 5, "more")


@virtual
async def test_what_equals_its_default_is_the_same_input(world: World) -> None:
    """Rule 13: compared as bound to the signature: f() and f(1) are one where 1 is the default."""
    async with world.host(echo) as host:
        await host.spawn(echo, "p")
        assert await (await host.spawn(echo, "p", 1)).result() == [1]


@virtual
async def test_arguments_are_checked_before_anything_is_written(world: World) -> None:
    """S1.04: too few, too many, of a wrong type, without a form, too large: error, no write."""
    async with world.host(echo, typed) as host:
        spawn: Any = host.spawn
        for fn, args, error in (
            (typed, (), InvalidArgumentError),
            (typed, (Order(1, ()),), InvalidArgumentError),
            (typed, (Order(1, ()), Decimal(1), 3), InvalidArgumentError),
            (typed, (5, Decimal(1)), SerializationError),
            (typed, (Order(1, ()), "1"), SerializationError),
            (typed, (Order(1, (5,)), Decimal(1)), SerializationError),  # type: ignore[arg-type]
            (echo, ("five",), SerializationError),
            (echo, (object(),), SerializationError),
            (echo, (1, 2), SerializationError),
            (echo, (float("nan"),), SerializationError),
            (echo, (1, "\ud800"), SerializationError),
            (echo, (1, "x" * 5_000_000), LimitExceededError),
        ):
            with pytest.raises(error):
                await spawn(fn, "p", *args)
        assert "create" not in world.wires[host].calls
        assert [each async for each in host.list()] == []


@virtual
async def test_input_comes_from_the_storage(world: World) -> None:
    """S4.10, S4.18: the second host gets the arguments as annotated, from the creation."""
    await world.begin_and_die(typed, Order(1, ("a", "b")), Decimal("1.10"), after_s=0)
    async with world.host(typed) as host:
        assert await host.get(typed, "p").result() == "Order ('a', 'b') 1.10"


@virtual
async def test_arguments_are_copies(world: World) -> None:
    """F113: what the caller changes after spawn is not what the process sees."""

    async def process(proc: Process, items: list[int]) -> list[int]:
        await proc.event("go")
        return items

    async with world.host(process) as host:
        items = [1]
        handle = await host.spawn(process, "p", items)
        items.append(2)
        await handle.raise_event("go")
        assert await handle.result() == [1]


@virtual
async def test_a_lost_answer_is_repeated_and_creates_one(world: World) -> None:
    """F006: the creation happened, the answer was lost: repeated, one process, it runs."""
    async with world.host(echo) as host:
        lost = iter([True, True, False])

        async def lose(call: str) -> None:
            if call == "create" and next(lost, False):
                raise StorageUnknownError("the answer was lost")

        world.wires[host].after = lose
        assert await (await host.spawn(echo, "p", 7)).result() == [7]
        assert world.row("p").incarnation == 1


@virtual
async def test_a_storage_that_is_away_is_an_error_to_the_caller_or_a_wait(world: World) -> None:
    """F006, F009: spawn in an outage: StorageUnavailableError and no process, or it is durable."""
    async with world.host(echo) as host:
        world.wires[host].down("create")
        with pytest.raises(StorageUnavailableError):
            await host.spawn(echo, "p", 7)
        world.wires[host].up()
        assert [each async for each in host.list()] == []
        assert await (await host.spawn(echo, "p", 7)).result() == [7]


@virtual
async def test_spawn_returned_means_durable(world: World) -> None:
    """F006, S4.18 (rule 1): the process exists with its input before its first step."""
    host = world.host(echo)
    await host.start()
    await host.spawn(echo, "p", 7)
    world.kill(host)
    async with world.host(echo) as again:
        assert await again.get(echo, "p").result() == [7]


@virtual
async def test_a_client_spawns_and_a_host_runs(world: World) -> None:
    """S3.02: a client without execution creates; a running host finds it at once."""
    async with (
        world.host(echo) as host,
        ProcessClient(world.storage, processes=[echo]) as client,
    ):
        await asyncio.sleep(10)
        assert await (await client.spawn(echo, "p", 3, "x")).result() == [3, "x"]
        assert world.clock.monotonic_s() < 11
        assert (await host.get("p").info()).epoch == 1


@virtual
async def test_tags(world: World) -> None:
    """Tags are stored, listed by, and checked like names."""
    async with world.host(echo) as host:
        await host.spawn(echo, "a", tags={"team": "x", "kind": "1"})
        await host.spawn(echo, "b", tags={"team": "y"})
        assert [each.id async for each in host.list(tags={"team": "x"})] == ["a"]
        assert (await host.get("a").info()).tags == {"team": "x", "kind": "1"}
        for bad in ({"": "x"}, {"x": ""}, {"x": "a\nb"}, {"x": 5}, {5: "x"}):
            with pytest.raises(InvalidIdError):
                await host.spawn(echo, "c", tags=bad)  # type: ignore[arg-type]


# --- ids ----------------------------------------------------------------------------------------

GOOD_IDS = [
    "../../etc/passwd",
    "/",
    ".",
    "..",
    "CON",
    "nul.txt",
    "trailing.",
    "trailing ",
    " ",
    "%2e%2e%2f",
    "a/b",
    "a",
    "A",
    "\u00e9",
    "e\u0301",
    "\U0001f600" * 63,
    "x" * 255,
    "'; DROP TABLE process; --",
    "$(reboot)",
    "<script>alert(1)</script>",
    "\u202eevil",
    "\u2028",
    "\ufeff",
    "{}",
    "%s%n",
    "1",
    "10",
]

BAD_IDS: list[Any] = [
    "",
    "a\x00b",
    "a\nb",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\ud800",
    "x" * 256,
    "é" * 128,
    "x" * 10_000_000,
    None,
    5,
    b"bytes",
    object(),
]


@virtual
async def test_hostile_ids_stay_what_they_are(world: World) -> None:
    """F121, F136, S4.16: any id of 1 to 255 bytes; those that differ by case or form are two."""
    async with world.host(echo) as host:
        for n, process_id in enumerate(GOOD_IDS):
            await host.spawn(echo, process_id, n)
        for n, process_id in enumerate(GOOD_IDS):
            assert await host.get(process_id).result() == [n]
        assert sorted([each.id async for each in host.list()]) == sorted(GOOD_IDS)


@virtual
async def test_a_thousand_random_ids(world: World) -> None:
    """F121: 1,000 ids of random code points come back exactly, in results and in the listing."""
    random = Random(7)

    def point() -> str:
        while True:
            code = random.choice([random.randrange(0x20, 0x250), random.randrange(0x110000)])
            if not (0xD800 <= code < 0xE000 or code < 0x20 or 0x7F <= code < 0xA0):
                return chr(code)

    ids = {"".join(point() for _ in range(random.randint(1, 60))) for _ in range(1000)}
    async with world.host(echo) as host:
        handles = await asyncio.gather(
            *(host.spawn(echo, process_id, n) for n, process_id in enumerate(sorted(ids)))
        )
        results = await asyncio.gather(*(each.result() for each in handles))
        assert results == [[n] for n in range(len(ids))]
        assert {each.id async for each in host.list()} == ids


@pytest.mark.parametrize("bad", BAD_IDS, ids=lambda bad: ascii(bad)[:20])
def test_bad_ids_are_refused(bad: Any) -> None:
    """F121, F139: NUL, empty, 10 MB, surrogates, control characters: refused, nothing written."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(echo) as host:
            for call in (
                lambda: host.spawn(echo, bad, 1),
                lambda: host.raise_event(bad, "e"),
                lambda: host.get(echo, bad).info(),
            ):
                with pytest.raises(InvalidIdError) as caught:
                    await call()
                assert len(str(caught.value)) < 1000
            with pytest.raises((InvalidIdError, InvalidArgumentError, TypeError, Exception)):
                await host.get(bad).info()
        assert {"create", "deliver", "read"}.isdisjoint(world.wires[host].calls)

    body()


@virtual
async def test_thousands_of_spawns_cost_few_round_trips(world: World) -> None:
    """F116, S1.15: spawns side by side share their commits."""
    async with world.host(echo, limits=Limits()) as host:
        handles = await asyncio.gather(*(host.spawn(echo, f"p{n}", n) for n in range(3_000)))
        assert await handles[-1].result() == [2_999]
        await settle()
        assert world.wires[host].calls.count("create") <= 10
