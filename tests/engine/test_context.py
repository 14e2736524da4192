"""Context variables that travel with a process."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import InvalidArgumentError, SerializationError
from tests.engine.world import World, settle, virtual

tenant: ContextVar[Any] = ContextVar("tenant")
trace: ContextVar[Any] = ContextVar("trace", default="no trace")
other: ContextVar[str] = ContextVar("other", default="nothing")


@dataclass(frozen=True)
class Tenant:
    name: str
    limit: Decimal


async def look(proc: Process) -> list[Any]:
    return [tenant.get("unset"), trace.get(), other.get()]


async def look_later(proc: Process) -> list[Any]:
    await proc.event("go")
    return [tenant.get("unset"), await proc.do("step", in_step)]


async def in_step() -> Any:
    return tenant.get("unset")


async def spawned(host: ProcessClient, fn: Any, process_id: str, **values: Any) -> Any:
    """Spawn a process in a task of its own, where these variables are set."""

    async def spawn() -> Any:
        for variable in (tenant, trace, other):
            if variable.name in values:
                variable.set(values[variable.name])
        return await host.spawn(fn, process_id)

    return await asyncio.create_task(spawn())


@virtual
async def test_what_is_set_at_the_spawn_is_set_in_the_process(world: World) -> None:
    """Issue 4.5: the variables that the host names, each with its value; no other one."""
    async with world.host(look, context=[tenant, trace]) as host:
        handle = await spawned(host, look, "p", tenant="acme", trace=7, other="stays here")
        assert await handle.result() == ["acme", 7, "nothing"]


@virtual
async def test_unset_stays_unset(world: World) -> None:
    """Issue 4.5: a variable that was not set has its default, whatever the host was started in."""
    token = tenant.set("of whoever started the host")
    try:
        async with world.host(look, context=[tenant, trace]) as host:
            tenant.reset(token)
            handle = await spawned(host, look, "p", trace=7)
            assert await handle.result() == ["unset", 7, "nothing"]
            handle = await spawned(host, look, "q")
            assert await handle.result() == ["unset", "no trace", "nothing"]
            assert world.row("q").context is None
    finally:
        tenant.set("unset")


@virtual
async def test_it_travels_across_resumes_and_hosts(world: World) -> None:
    """Issue 4.5: a host that takes over sets what was captured, and its steps see it too."""
    first = world.host(look_later, context=[tenant])
    await first.start()
    await spawned(first, look_later, "p", tenant="acme")
    await settle()
    world.kill(first)
    async with world.host(look_later, context=[trace, tenant]) as host:
        await host.raise_event("p", "go")
        assert await host.get("p").result() == ["acme", "acme"]


@virtual
async def test_a_host_that_does_not_name_it_leaves_it(world: World) -> None:
    """Issue 4.5: it stays stored for those that do."""
    async with ProcessClient(world.storage, processes=[look], context=[tenant]) as client:
        await spawned(client, look, "p", tenant="acme")
        await spawned(client, look, "q", tenant="acme")
    async with world.host(look, context=[trace]) as host:
        assert await host.get("p").result() == ["unset", "no trace", "nothing"]
    assert world.row("q").context == b'{"tenant":"acme"}'


@virtual
async def test_children_have_what_their_parent_has_set(world: World) -> None:
    """Issue 4.5: a child is spawned with what holds in its parent there and then."""

    async def parent(proc: Process) -> list[Any]:
        first = await proc.call("first", look)
        tenant.set("changed")
        child = await proc.spawn("second", look)
        return [first, await child.result(), await proc.call("third", grand)]

    async def grand(proc: Process) -> list[Any]:
        return await proc.call("deep", look)

    async with world.host(parent, look, grand, context=[tenant]) as host:
        handle = await spawned(host, parent, "p", tenant="acme")
        first, second, third = await handle.result()
    assert (first[0], second[0], third[0]) == ("acme", "changed", "changed")


@virtual
async def test_processes_do_not_see_each_others(world: World) -> None:
    """Issue 4.5: what one sets is its own; the next one has its own."""

    async def process(proc: Process) -> Any:
        before = tenant.get("unset")
        tenant.set(f"set by {proc.id}")
        await proc.delay("pause", timedelta(seconds=1))
        return before

    async with world.host(process, context=[tenant]) as host:
        handles = [await spawned(host, process, f"p{n}", tenant=n) for n in range(5)]
        assert [await handle.result() for handle in handles] == list(range(5))


@virtual
async def test_values_follow_rule_two(world: World) -> None:
    """Issue 4.5, rule 2: exact types come back; a class needs `types=`; else nothing is written."""
    exact = {"tuple": (1, 2), "decimal": Decimal("1.10"), "bytes": b"x"}

    async def process(proc: Process) -> bool:
        return bool(tenant.get() == (exact, Tenant("acme", Decimal(5))))

    async with world.host(process, context=[tenant], types=[Tenant]) as host:
        handle = await spawned(host, process, "p", tenant=(exact, Tenant("acme", Decimal(5))))
        assert await handle.result() is True
        for wrong in (object(), float("nan")):
            with pytest.raises(SerializationError, match="context variable 'tenant'") as caught:
                await spawned(host, process, "q", tenant=wrong)
            assert str(caught.value).count("hint:") == 1
            assert caught.value.hint
        assert "q" not in world.storage._processes


@virtual
async def test_a_value_that_no_longer_fits_quarantines(world: World) -> None:
    """Rule 4: a host without the class sets the process aside; it goes on where it is there."""
    async with ProcessClient(
        world.storage, processes=[look], context=[tenant], types=[Tenant]
    ) as client:
        await spawned(client, look, "p", tenant=Tenant("acme", Decimal(5)))
    async with world.host(look, context=[tenant]) as host:
        await asyncio.sleep(5)
        info = await host.get("p").info()
        assert info.status is Status.QUARANTINED
        assert "tenant" in str(info.error)


def test_two_variables_of_one_name_are_refused() -> None:
    """Issue 4.5: a value is stored under the name of its variable."""

    @virtual
    async def refuse(world: World) -> None:
        with pytest.raises(InvalidArgumentError, match="two variables named 'tenant'"):
            world.host(context=[tenant, ContextVar("tenant")])
        with pytest.raises(InvalidArgumentError, match="takes ContextVars"):
            world.host(context=["tenant"])
        world.host(context=[tenant, tenant])

    refuse()
