"""Simulated hosts on one storage in memory, in virtual time, with everything that can go wrong.

Calls are late, refused, lost before or after they were done, or held back
until the lease is over; hosts die. What happens is drawn from a seed. The
calls and the steps are recorded, and the checker judges them at the end.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any

from durabletask import Limits, MemoryStorage, Process, ProcessClient, ProcessHost, RetryPolicy
from durabletask.errors import DurableTaskError, StorageUnavailableError, StorageUnknownError
from durabletask.storage import (
    FINISHED,
    Control,
    Controlled,
    Delivered,
    Lease,
    NewEvent,
    ProcessStorage,
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock, run_virtual
from durabletask.testing.history import (
    AnyOperation,
    Effects,
    HistoryList,
    RecordingStorage,
    Violation,
    check,
    dump,
)
from tests.engine.world import Wire

LEASE_TTL_S = 3.0
PROCESSES = 12
HOSTS = 3
RESIDENT_MAX = 5
KILLS = 3
FAULTS_S = 25.0
HEALED_S = 120.0
"""Virtual time in which everything must end when the faults are over."""

Wrap = Callable[["FaultyWire"], ProcessStorage]


class FaultyWire(Wire):
    """A line that is slow, refuses, loses answers, and holds calls back for longer than a lease."""

    def __init__(self, storage: MemoryStorage, chance: Random) -> None:
        super().__init__(storage)
        self._chance = chance
        self.before, self.after = self._on_the_way, self._on_the_way_back

    async def _on_the_way(self, call: str) -> None:
        await asyncio.sleep(self._chance.uniform(0, 0.03))
        drawn = self._chance.random()
        if drawn < 0.02:
            raise StorageUnavailableError(f"{call}: refused")
        if drawn < 0.04:
            raise StorageUnknownError(f"{call}: lost on the way")
        if drawn < 0.06:
            await asyncio.sleep(self._chance.uniform(0.5, 3) * LEASE_TTL_S)

    async def _on_the_way_back(self, call: str) -> None:
        await asyncio.sleep(self._chance.uniform(0, 0.03))
        if self._chance.random() < 0.04:
            raise StorageUnknownError(f"{call}: done, and the answer is lost")

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        self._maybe_cut(partial(self.storage.commit, lease, units))
        return await super().commit(lease, units)

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        self._maybe_cut(partial(self.storage.deliver, events, mailbox_max=mailbox_max))
        return await super().deliver(events, mailbox_max=mailbox_max)

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        self._maybe_cut(partial(self.storage.request, controls))
        return await super().request(controls)

    def _maybe_cut(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Cut a call off while it is on its way: it lands later, its sender dead or alive."""
        if self._chance.random() < 0.03 and not self.dead:
            asyncio.get_running_loop().call_later(self._chance.uniform(0, 6), self._land, call)
            raise StorageUnknownError("cut off while it is on its way")

    def _land(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        task = asyncio.ensure_future(call())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        def tell(process_id: str | None) -> None:
            # Hints may be lost: they only shorten a wait.
            if self._chance.random() >= 0.3:
                callback(process_id)

        return super().subscribe(tell)


@dataclass
class Played:
    """One run, judged."""

    history: list[AnyOperation]
    violations: list[Violation]


@dataclass
class World:
    """All that exists in one run."""

    clock: VirtualClock
    chance: Random
    wrap: Wrap
    storage: MemoryStorage = field(init=False)
    history: HistoryList = field(default_factory=HistoryList)
    wires: dict[ProcessHost, FaultyWire] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.storage = MemoryStorage(self.clock, lease_ttl_s=LEASE_TTL_S)
        self.effects = Effects(self.history)
        self.tokens = itertools.count(1)

    # --- the processes -----------------------------------------------------------------------

    async def act(self, value: int, takes_s: float) -> list[int]:
        """Be a step: an effect that takes a while, and a result that no other run of it has."""
        with self.effects.during():
            await asyncio.sleep(takes_s)
        return [value, next(self.tokens)]

    async def flaky(self, value: int) -> int:
        """Be a step that fails half of the time."""
        self.effects()
        if self.chance.random() < 0.5:
            raise ConnectionError("try again")
        return value

    async def saga(self, proc: Process, number: int) -> int:
        """Do a little of everything, and add it up."""
        total, saw = 0, self.effects.saw
        for n in range(number % 5 + 1):
            result = await proc.do(f"step {n}", self.act, n, 0.1 * (number % 3))
            total += saw(proc, f"step {n}", result)[0]
        left, right = proc.do("left", self.act, 1, 0.2), proc.do("right", self.act, 2, 0.1)
        total += sum(value for value, _ in await asyncio.gather(left, right))
        await proc.delay("pause", timedelta(seconds=number % 4))
        retry = RetryPolicy(attempts_max=None, delay_s=0.1, delay_max_s=0.5)
        total += saw(proc, "flaky", await proc.do("flaky", self.flaky, 3, retry=retry))
        for key in ("first", "second"):
            total += saw(proc, key, await proc.event("go", int, key=key))
        return total

    # --- the hosts ---------------------------------------------------------------------------

    def wire(self) -> tuple[FaultyWire, ProcessStorage]:
        """Return a new line to the storage, and what a program sees of it."""
        wire = FaultyWire(self.storage, self.chance)
        return wire, RecordingStorage(self.wrap(wire), self.history)

    async def start(self) -> None:
        """Start a host, however often that takes."""
        await steady(self._start)

    async def _start(self) -> None:
        wire, storage = self.wire()
        host = ProcessHost(
            storage,
            processes=[self.saga],
            clock=self.clock,
            random=Random(self.chance.random()),
            limits=Limits(resident_max=RESIDENT_MAX),
        )
        await host.start()
        self.wires[host] = wire

    async def kill(self) -> None:
        """Let a host die without a word, and another one start."""
        host = self.chance.choice(list(self.wires))
        self.wires.pop(host).cut()
        if host._session is not None:
            host._session._timers.close()
        await self.start()

    def heal(self) -> None:
        """End all faults."""
        for wire in self.wires.values():
            wire.up()
            wire._chance = _Calm()

    # --- the clients -------------------------------------------------------------------------

    async def spawn_all(self) -> None:
        """Spawn each process, twice and by two programs at once, and raise its events in order."""
        clients = []
        for _ in range(2):
            _, storage = self.wire()
            clients.append(ProcessClient(storage, processes=[self.saga]))
        await asyncio.gather(
            *(self._lead(clients, number) for number in range(PROCESSES)),
        )

    async def _lead(self, clients: list[ProcessClient], number: int) -> None:
        process_id = f"saga/{number}"
        await asyncio.sleep(self.chance.uniform(0, 5))
        await asyncio.gather(
            *(steady(partial(client.spawn, self.saga, process_id, number)) for client in clients)
        )
        for n in range(2):
            await asyncio.sleep(self.chance.uniform(0, 4))
            event_id = f"{process_id}/{n}"
            client = self.chance.choice(clients)
            await steady(partial(client.raise_event, process_id, "go", n, event_id=event_id))
        with suppress(DurableTaskError):
            # Not repeated: who is told that nothing was written may take that at its word.
            await client.raise_event(process_id, "more", event_id=f"{process_id}/more")

    async def all_ended(self) -> None:
        """Return when every process has ended."""
        while not all(each.status in FINISHED for each in self.storage._processes.values()):
            await asyncio.sleep(0.5)


class _Calm(Random):
    """No chance: nothing happens any more."""

    def random(self) -> float:
        return 1.0

    def uniform(self, a: float, b: float) -> float:
        del b
        return a


async def steady(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat a call until it is known to be done."""
    while True:
        try:
            await call()
            return
        except DurableTaskError:
            await asyncio.sleep(0.2)


async def _play(world: World) -> None:
    starts = [asyncio.create_task(world.start()) for _ in range(HOSTS)]
    leading = asyncio.create_task(world.spawn_all())
    for _ in range(KILLS):
        await asyncio.sleep(world.chance.uniform(0, FAULTS_S / KILLS))
        if world.wires:
            await world.kill()
    await asyncio.wait([*starts, leading], timeout=HEALED_S)
    world.heal()
    await asyncio.wait([asyncio.create_task(world.all_ended())], timeout=HEALED_S)
    stops = [asyncio.create_task(host.stop()) for host in world.wires]
    await asyncio.wait(stops, timeout=HEALED_S)


def play(seed: int, wrap: Wrap = lambda wire: wire) -> Played:
    """Run everything once.

    Args:
        seed: Of all that happens.
        wrap: Puts something between a program and its line: a backend's mistake.
    """

    async def main(clock: VirtualClock) -> Played:
        world = World(clock, Random(seed), wrap)
        await _play(world)
        final = await dump(world.storage)
        history = list(world.history.operations)
        ended = [f"saga/{number}" for number in range(PROCESSES)]
        return Played(history, check(history, final, ended=ended))

    return run_virtual(main)
