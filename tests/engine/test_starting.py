"""How a process can be started: later, with a deadline, and where its id exists already."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import (
    InvalidArgumentError,
    ProcessCancelledError,
    ProcessExistsError,
    ProcessFailedError,
    StorageUnknownError,
    UnknownProcessError,
)
from durabletask.storage import Created, Lease, NewProcess
from tests.engine.database import Connection, database_of, host_of
from tests.engine.world import World, settle, virtual


async def empty(proc: Process) -> None: ...


async def echo(proc: Process, text: str) -> str:
    return text


async def waits(proc: Process) -> None:
    await proc.event("go")


async def fails(proc: Process) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("how", ["timedelta", "datetime", "other zone"])
@virtual
async def test_a_process_starts_not_before_its_time(world: World, how: str) -> None:
    """S1.02, S2.07: start_at, as a moment or from now on, is kept to the second and shown."""
    due_at = world.clock.now() + timedelta(hours=1)
    forms: dict[str, datetime | timedelta] = {
        "timedelta": timedelta(hours=1),
        "datetime": due_at,
        "other zone": due_at.astimezone(timezone(timedelta(hours=-7))),
    }
    start_at = forms[how]
    async with world.host(empty) as host:
        handle = await host.spawn(empty, "p", start_at=start_at)
        await asyncio.sleep(3599)
        info = await handle.info()
        assert (info.started_at, info.host, info.start_at) == (None, None, due_at)
        assert info.reason is not None
        assert "not to start before" in info.reason
        await handle.result()
        info = await handle.info()
        assert info.started_at is not None
        assert timedelta(0) <= info.started_at - due_at < timedelta(seconds=2)


@virtual
async def test_what_is_to_start_later_survives_the_host(world: World) -> None:
    """S2.07: nobody needs to be there when it falls due; the next host runs it."""
    async with world.host(echo) as host:
        await host.spawn(echo, "p", "later", start_at=timedelta(hours=1))
    await asyncio.sleep(7200)
    async with world.host(echo) as host:
        assert await host.get(echo, "p").result(timeout=5) == "later"


@virtual
async def test_a_start_in_the_past_is_now(world: World) -> None:
    """S2.07: a moment that has come is no delay."""
    async with world.host(echo) as host:
        past = world.clock.now() - timedelta(days=1)
        for process_id, start_at in (("a", past), ("b", timedelta(0)), ("c", timedelta(-1))):
            handle = await host.spawn(echo, process_id, "x", start_at=start_at)
            assert await handle.result(timeout=2) == "x"


@virtual
async def test_a_deadline_cancels_what_has_not_ended(world: World) -> None:
    """Issue 4: a deadline is a request to cancel at its time; who is done before is left alone."""
    async with world.host(waits) as host:
        late = await host.spawn(waits, "late", deadline=timedelta(minutes=1))
        done = await host.spawn(waits, "done", deadline=world.clock.now() + timedelta(minutes=1))
        assert (await late.info()).deadline_at == (await done.info()).deadline_at
        await done.raise_event("go")
        await done.result()
        with pytest.raises(ProcessCancelledError, match="deadline"):
            await late.result()
        assert (await late.info()).cancel_requested
        assert (await done.info()).status is Status.COMPLETED


@virtual
async def test_a_deadline_counts_from_the_start(world: World) -> None:
    """Issue 4: a timedelta says how long the process may take, however late it is to begin."""
    async with world.host(waits) as host:
        handle = await host.spawn(
            waits, "p", start_at=timedelta(hours=1), deadline=timedelta(minutes=1)
        )
        info = await handle.info()
        assert info.start_at is not None
        assert info.deadline_at == info.start_at + timedelta(minutes=1)


@virtual
async def test_a_childs_deadline_counts_from_its_start_too(world: World) -> None:
    """Issue 4: one that begins tomorrow with an hour of time has that hour, and not none."""

    async def parent(proc: Process) -> str:
        child = await proc.spawn(
            "c", echo, "x", start_at=timedelta(days=1), deadline=timedelta(hours=1)
        )
        return await child.result()

    world.allow(days=2)
    async with world.host(parent, echo) as host:
        assert await (await host.spawn(parent, "p")).result() == "x"


WRONG: list[dict[str, Any]] = [
    {"start_at": datetime(2030, 1, 1)},
    {"deadline": datetime(2030, 1, 1)},
    {"start_at": 5},
    {"deadline": "tomorrow"},
    {"start_at": timedelta.max},
    {"deadline": timedelta(0)},
    {"deadline": timedelta(-1)},
    {"start_at": datetime(2030, 1, 2, tzinfo=UTC), "deadline": datetime(2030, 1, 1, tzinfo=UTC)},
    {"on_existing": "ignore"},
    {"on_existing": None},
    {"tags": ["team"]},
    {"tags": "team"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@virtual
async def test_wrong_times_are_refused_at_the_edge(world: World, wrong: dict[str, Any]) -> None:
    """Issue 4: bad input is named, with the right form, and nothing is written."""
    async with world.host(empty) as host:
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))) as caught:
            await host.spawn(empty, "p", **wrong)
        assert caught.value.hint
        assert [info.id async for info in host.list()] == []


# --- where the id exists -----------------------------------------------------------------------


@virtual
async def test_return_gives_what_is_there(world: World) -> None:
    """S2.07 (ignore): the same function and input is the same process, finished or not."""
    async with world.host(echo) as host:
        for _ in range(3):
            handle = await host.spawn(echo, "p", "x", on_existing="return")
            assert await handle.result() == "x"
        assert (await handle.info()).incarnation == 1
        with pytest.raises(ProcessExistsError, match="another input"):
            await host.spawn(echo, "p", "y")


@virtual
async def test_error_refuses_any_that_is_there(world: World) -> None:
    """S2.07 (error): the same function and input is refused too; its own repeat is not."""
    async with world.host(echo) as host:
        wire = world.wires[host]
        lost = [1]

        async def lose(call: str) -> None:
            if call == "create" and lost:
                lost.pop()
                raise StorageUnknownError("lost")

        wire.after = lose
        handle = await host.spawn(echo, "p", "x", on_existing="error")
        assert not lost
        assert await handle.result() == "x"
        with pytest.raises(ProcessExistsError, match="'p' exists already"):
            await host.spawn(echo, "p", "x", on_existing="error")


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "terminated"])
@virtual
async def test_replace_makes_the_next_incarnation_of_what_has_finished(
    world: World, end: str
) -> None:
    """S2.07: a finished process makes way, however it ended; the new one has nothing of it."""
    functions: dict[str, Any] = {"completed": empty, "failed": fails}
    fn = functions.get(end, waits)
    async with world.host(empty, fails, waits, echo) as host:
        handle = await host.spawn(fn, "p", tags={"old": "yes"})
        await settle()
        if end == "cancelled":
            await handle.cancel()
        if end == "terminated":
            await handle.terminate()
        await asyncio.sleep(1)
        assert (await handle.info()).status.value == end
        fresh = await host.spawn(echo, "p", "new", on_existing="replace")
        assert await fresh.result() == "new"
        info = await fresh.info()
        assert (info.name, info.tags) == ("echo", {})
        assert info.incarnation == 2


@virtual
async def test_replace_refuses_what_has_not_finished(world: World) -> None:
    """S2.07: a live process is never replaced, the same input or not, nor a quarantined one."""
    async with world.host(waits, echo) as host:
        handle = await host.spawn(waits, "p")
        await settle()
        for fn, args in ((waits, ()), (echo, ("x",))):
            with pytest.raises(ProcessExistsError, match="only a finished one") as caught:
                await host.spawn(fn, "p", *args, on_existing="replace")
            assert caught.value.process_id == "p"
        await handle.suspend()
        with pytest.raises(ProcessExistsError, match="is suspended"):
            await host.spawn(waits, "p", on_existing="replace")
        await handle.resume()
        await handle.raise_event("go")
        await handle.result()


@virtual
async def test_replace_of_what_its_host_lets_go_of_just_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2.07: found finished and not replaced, since it was held still: it is asked again."""
    async with world.host(echo) as host:
        await (await host.spawn(echo, "p", "old")).result()
        wire = world.wires[host]
        create = wire.create

        async def too_early(
            processes: Sequence[NewProcess], lease: Lease | None = None
        ) -> Sequence[Created]:
            monkeypatch.setattr(wire, "create", create)
            return [Created(world.row("p"))]

        monkeypatch.setattr(wire, "create", too_early)
        handle = await host.spawn(echo, "p", "new", on_existing="replace")
        assert await handle.result() == "new"


@virtual
async def test_replace_is_done_once_though_its_answer_is_lost(world: World) -> None:
    """S2.07: a repeat finds its own creation and does not replace that again."""
    async with world.host(fails) as host:
        handle = await host.spawn(fails, "p")
        with pytest.raises(ProcessFailedError):
            await handle.result()
        lost = [1, 2]

        async def lose(call: str) -> None:
            if call == "create" and lost:
                lost.pop()
                raise StorageUnknownError("lost")

        world.wires[host].after = lose
        await host.spawn(fails, "p", on_existing="replace")
        assert not lost
        assert (await handle.info()).incarnation == 2


@virtual
async def test_a_client_can_start_later_and_replace(world: World) -> None:
    """S2.07: what needs no execution needs no host; a client counts by its own clock."""
    async with ProcessClient(world.storage, processes=[empty], clock=world.clock) as client:
        handle = await client.spawn(empty, "p", start_at=timedelta(days=1))
        info = await handle.info()
        assert info.start_at == world.clock.now() + timedelta(days=1)
        assert info.reason is not None
        with pytest.raises(ProcessExistsError):
            await client.spawn(empty, "p", on_existing="error")


@virtual
async def test_all_of_it_in_a_transaction_of_the_callers(world: World) -> None:
    """S2.07, S1.16: start_at, deadline and on_existing mean the same with `connection=`."""
    database = database_of(world)
    async with host_of(world, echo) as host:
        connection = Connection(database)
        async with connection.transaction():
            handle = await host.spawn(
                echo,
                "p",
                "x",
                start_at=timedelta(hours=1),
                deadline=timedelta(hours=2),
                connection=connection,
            )
        info = await handle.info()
        begins = world.clock.now() + timedelta(hours=1)
        assert (info.start_at, info.deadline_at) == (begins, begins + timedelta(hours=2))
        assert await handle.result() == "x"
        connection.begin()
        with pytest.raises(ProcessExistsError, match="exists already"):
            await host.spawn(echo, "p", "x", on_existing="error", connection=connection)
        connection.rollback()
        async with connection.transaction():
            other = await host.spawn(echo, "p", "y", on_existing="replace", connection=connection)
        assert await other.result() == "y"
        with pytest.raises(UnknownProcessError, match="purged or replaced"):
            await handle.result()
