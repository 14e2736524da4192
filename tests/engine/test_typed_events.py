"""Events by class: the class is name and type in one."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest

from durabletask import Process, ProcessClient
from durabletask.errors import InvalidArgumentError, InvalidIdError
from tests.engine.world import World, settle, virtual


@dataclass(frozen=True)
class Approved:
    by: str
    limit: Decimal = Decimal(0)


@attrs.frozen
class Rejected:
    reason: str


class Paid(msgspec.Struct, frozen=True):
    amount: Decimal


class Shipped(pydantic.BaseModel):
    parcels: int


class Moved(NamedTuple):
    place: str


class Order:
    @dataclass(frozen=True)
    class Cancelled:
        """Goes by its own name, without that of the class around it."""

        reason: str


EVENTS: list[Any] = [
    Approved("carol", Decimal("1.10")),
    Rejected("too late"),
    Paid(Decimal("5.00")),
    Shipped(parcels=3),
    Moved("attic"),
    Order.Cancelled("too late"),
]


async def one(proc: Process, name: str) -> str:
    cls = next(type(event) for event in EVENTS if type(event).__name__ == name)
    taken: object = await proc.event(cls)
    return repr(taken)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@virtual
async def test_a_class_is_name_and_type(world: World, event: Any) -> None:
    """Issue 4.4: dataclass, attrs, msgspec, pydantic, NamedTuple: raised as an object, and back."""
    name = type(event).__name__
    async with world.host(one) as host:
        handle = await host.spawn(one, "p", name)
        await settle()
        (wait,) = (await handle.info()).waits
        assert (wait.kind, wait.name, wait.key) == ("event", name, name)
        await handle.raise_event(event)
        assert await handle.result() == repr(event)


@virtual
async def test_it_is_the_same_as_by_name(world: World) -> None:
    """Issue 4.4: who does not have the class raises and takes by its name."""

    async def process(proc: Process) -> tuple[str, Any, str]:
        first = await proc.event(Approved)
        second = await proc.event("Approved", key="plain")
        third = await proc.event(Approved, key="third", timeout=timedelta(hours=1))
        return first.by, second, third.by

    async with world.host(process, types=[Approved]) as host:
        await host.spawn(process, "p")
        async with ProcessClient(world.storage) as client:
            await client.raise_event("p", "Approved", {"by": "a", "limit": "0"})
            await client.raise_event("p", Approved("b"), event_id="once")
            await client.raise_event("p", Approved("b"), event_id="once")
            await client.get("p").raise_event(Approved("c"))
            assert await host.get(process, "p").result() == ("a", Approved("b"), "c")


@virtual
async def test_a_stream_and_a_race_by_class(world: World) -> None:
    """Issue 4.4: `events` and branches of a race take a class as well; so does a process's own."""

    async def process(proc: Process) -> list[str]:
        found: list[str] = []
        async for approved in proc.events(Approved):
            found.append(approved.by)
            if len(found) == 2:
                break
        rejected, paid = proc.event(Rejected), proc.event(Paid)
        first = await proc.race("first", rejected, paid)
        return [*found, repr(first.of(paid) if first.won(paid) else first.of(rejected))]

    async def sender(proc: Process) -> None:
        await proc.raise_event("to p", "p", Paid(Decimal(7)))

    async with world.host(process, sender) as host:
        handle = await host.spawn(process, "p")
        for by in ("a", "b"):
            await handle.raise_event(Approved(by))
        await host.spawn(sender, "s")
        assert await handle.result() == ["a", "b", repr(Paid(Decimal(7)))]


@virtual
async def test_what_is_no_event_is_refused(world: World) -> None:
    """Issue 4.4: a class without a name of its own, an object and a payload, a class raised."""
    seen: list[str] = []

    async def process(proc: Process) -> None:
        wrong: list[tuple[Any, ...]] = [(int,), (dict,), (Approved, Rejected), (5,), ("",)]
        for args in wrong:
            for ask in (proc.event, proc.events):
                with pytest.raises((InvalidArgumentError, InvalidIdError)):
                    ask(*args)
        seen.append("all refused")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", start_at=timedelta(hours=1))
        raised: list[tuple[Any, ...]] = [
            (5,),
            (Approved,),
            (Approved("x"), "payload"),
            ({"by": "x"},),
            (None,),
        ]
        for args in raised:
            with pytest.raises((InvalidArgumentError, InvalidIdError)):
                await handle.raise_event(*args)
        await handle.result()
        assert [each.kind for each in await handle.history()] == []
    assert seen == ["all refused"]


@virtual
async def test_names_of_the_engines_are_refused_at_the_edge(world: World) -> None:
    """Nobody can forge the end of a child: "durabletask:…" is neither raised nor waited for."""
    forged = "durabletask:child:completed"
    seen: list[str] = []

    async def process(proc: Process) -> None:
        for ask in (
            lambda: proc.event(forged),
            lambda: proc.events(forged),
            lambda: proc.raise_event("k", "p", forged),
        ):
            with pytest.raises(InvalidIdError, match="begins with 'durabletask:'"):
                ask()
        seen.append("all refused")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p", start_at=timedelta(hours=1))
        with pytest.raises(InvalidIdError, match="begins with 'durabletask:'"):
            await handle.raise_event(forged)
        with pytest.raises(InvalidIdError, match="begins with 'durabletask:'"):
            await host.raise_event("p", forged, 1)
        await handle.raise_event("durabletask", "a name like any other")
        await handle.result()
    assert seen == ["all refused"]
