"""A small world for the engine's tests: one storage in memory, hosts that die, virtual time."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from random import Random
from typing import Any, Concatenate, ParamSpec

import pytest

from durabletask import MemoryStorage, Process, ProcessHost, Status
from durabletask.errors import ProcessQuarantinedError, StorageUnavailableError
from durabletask.storage import (
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    ProcessRow,
    Query,
    Refusal,
    Snapshot,
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock, run_virtual

P = ParamSpec("P")

LONGEST_S = 3 * 3600.0
"""Virtual time that a test may take unless it asks for more; then what hangs is a TimeoutError."""

Hook = Callable[[str], Awaitable[None]]


async def nothing(call: str) -> None:
    """Let a call pass."""


async def hang(call: str) -> None:
    """Never answer, as a dead line."""
    await asyncio.get_running_loop().create_future()


class Wire:
    """One host's line to a storage that others share, with faults to order.

    Attributes:
        before: Awaited before each call with its name; what it raises is the answer.
        after: Awaited after the call was carried out; what it raises hides the answer.
        units: Every unit that was committed through this wire.
    """

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.before: Hook = nothing
        self.after: Hook = nothing
        self.dead = False
        self.closed = 0
        self.calls: list[str] = []
        self.units: list[Unit] = []

    def cut(self) -> None:
        """Answer nothing any more, for ever."""
        self.before, self.dead = hang, True

    def down(self, *calls: str) -> None:
        """Refuse these calls, or all of them, until `up`."""

        async def refuse(call: str) -> None:
            if not calls or call in calls:
                raise StorageUnavailableError(f"{call}: the line is down")

        self.before = refuse

    def up(self) -> None:
        """Let everything pass again."""
        self.before = self.after = nothing

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        self.calls.append("create")
        await self.before("create")
        answer = await self.storage.create(processes, lease)
        await self.after("create")
        return answer

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        self.calls.append("deliver")
        await self.before("deliver")
        answer = await self.storage.deliver(events, mailbox_max=mailbox_max)
        await self.after("deliver")
        return answer

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        self.calls.append("request")
        await self.before("request")
        answer = await self.storage.request(controls)
        await self.after("request")
        return answer

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        self.calls.append("read")
        await self.before("read")
        return await self.storage.read(process_ids, history=history)

    async def list(self, query: Query) -> Page:
        await self.before("list")
        return await self.storage.list(query)

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        await self.before("purge")
        return await self.storage.purge(process_ids)

    async def open_lease(self, host_id: str, label: str) -> Lease:
        self.calls.append("open_lease")
        await self.before("open_lease")
        return await self.storage.open_lease(host_id, label)

    async def renew(self, lease: Lease) -> Lease:
        self.calls.append("renew")
        await self.before("renew")
        return await self.storage.renew(lease)

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        self.calls.append("claim")
        await self.before("claim")
        answer = await self.storage.claim(lease, claim_id, names, count_max=count_max, rooms=rooms)
        await self.after("claim")
        return answer

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        self.calls.append("commit")
        await self.before("commit")
        answer = await self.storage.commit(lease, units)
        self.units += units
        await self.after("commit")
        return answer

    async def close_lease(self, lease: Lease) -> None:
        await self.before("close_lease")
        await self.storage.close_lease(lease)

    async def close(self) -> None:
        self.closed += 1

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        def tell(process_id: str | None) -> None:
            if not self.dead:
                callback(process_id)

        return self.storage.subscribe(tell)


class World:
    """Everything that a test of the engine needs."""

    def __init__(self, clock: VirtualClock, lease_ttl_s: float | None = None) -> None:
        self.clock = clock
        self.storage = MemoryStorage(clock, lease_ttl_s=lease_ttl_s)
        self.wires: dict[ProcessHost, Wire] = {}
        self.loop_errors: list[dict[str, Any]] = []
        self.limit = asyncio.timeout(LONGEST_S)

    def host(
        self, *processes: Callable[..., Coroutine[Any, Any, Any]], **options: Any
    ) -> ProcessHost:
        """Make a host with its own wire; a later one stands for a later start of the program."""
        wire = Wire(self.storage)
        options.setdefault("label", f"host-{len(self.wires)}")
        options.setdefault("random", Random(len(self.wires)))
        host = ProcessHost(wire, processes=processes, clock=self.clock, **options)
        self.wires[host] = wire
        return host

    def kill(self, host: ProcessHost) -> None:
        """Let a host die as by kill -9: nothing of it reaches the storage from now on.

        Its timers fire no more. A step in whose body it is goes on to the end
        of that body, as an effect on its way does; it is never recorded.
        """
        assert host._session is not None
        host._session._timers.close()
        self.wires[host].cut()
        self.storage.fence(lease_of(host))

    async def begin_and_die(
        self,
        process: Callable[..., Coroutine[Any, Any, Any]],
        *args: Any,
        after_s: float = 1.0,
        **options: Any,
    ) -> None:
        """Run a process "p" on a host of its own, for so long, and then kill the host."""
        host = self.host(process, **options)
        await host.start()
        await host.spawn(process, "p", *args)
        await asyncio.sleep(after_s)
        self.kill(host)

    def allow(self, days: float) -> None:
        """Let the test take so many days of virtual time."""
        self.limit.reschedule(asyncio.get_running_loop().time() + days * 86_400)

    def row(self, process_id: str) -> ProcessRow:
        """Return a process as the storage has it."""
        return self.storage._processes[process_id].row()

    def keys(self, process_id: str) -> list[tuple[str, str, str]]:
        """Return (kind, key, form) of everything recorded of a process, in order."""
        found = self.storage._processes[process_id].snapshot(history=True).checkpoints
        return [(each.kind.value, each.key, each.form.value) for each in found]


def lease_of(host: ProcessHost) -> str:
    """Return the identity under which a host writes now."""
    assert host._session is not None
    return host._session.lease.host_id


def virtual(
    test: Callable[Concatenate[World, P], Coroutine[Any, Any, None]],
) -> Callable[P, None]:
    """Run an async test in a `World` of its own, in virtual time.

    The test fails when the loop had to report an exception that nobody had
    retrieved: the engine drops futures, but never errors.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        worlds: list[World] = []

        async def main(clock: VirtualClock) -> None:
            world = World(clock)
            worlds.append(world)
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: world.loop_errors.append(context))
            async with world.limit:
                await test(world, *args, **kwargs)

        run_virtual(main)
        assert not worlds[0].loop_errors, repr(worlds[0].loop_errors[:2])

    signature = inspect.signature(test)
    rest = list(signature.parameters.values())[1:]
    vars(run)["__signature__"] = signature.replace(parameters=rest)
    del vars(run)["__wrapped__"]
    return run


async def settle(rounds: int = 200) -> None:
    """Let everything that is ready run, without letting time pass."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def quarantined(world: World, process: Any, match: str, **options: Any) -> str:
    """Run process "p" on a new host until it is set aside; return the message."""
    async with world.host(process, **options) as host:
        handle = host.get("p")
        with pytest.raises(ProcessQuarantinedError, match=match) as caught:
            await handle.result()
        info = await handle.info()
        assert info.status is Status.QUARANTINED
        assert info.error is not None
        assert info.error.__class__ is caught.value.__cause__.__class__
    return str(caught.value)


def watched(body: Any, seen: list[str]) -> Any:
    """Return a process function that would compensate if the mistake reached it."""

    async def process(proc: Process) -> Any:
        try:
            return await body(proc)
        except Exception as error:
            seen.append(f"{type(error).__name__}")
            raise
        finally:
            await proc.do("compensation", asyncio.sleep, 0)

    return process
