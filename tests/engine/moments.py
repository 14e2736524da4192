"""Something done to a program from outside, once at every turn of its event loop.

A play is one run of a scenario in virtual time. Its storage answers two turns
after each call begins, so that a turn can lie before, within and after each.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from durabletask import ProcessClient, ProcessHost, Status
from durabletask.errors import ProcessCancelledError, ProcessError, StorageError
from durabletask.storage import Checkpoint, Kind, Snapshot, Unit
from durabletask.testing import VirtualClock
from durabletask.testing._time import VirtualTimeLoop
from tests.engine.world import Wire, World

Fn = Callable[..., Coroutine[Any, Any, Any]]
Act = Callable[[ProcessClient], Coroutine[Any, Any, object]]

OWN_NOTES = frozenset({Kind.WAIT, Kind.RETRY, Kind.OVERTAKEN, Kind.START, Kind.HEARTBEAT})
"""They say how it went, not what came of it."""


class Stage:
    """What the process functions act on, and where it is seen.

    Attributes:
        effects: How often the body of each step began.
    """

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()

    async def act(self, name: str, seconds: float = 0.0) -> str:
        """Have an effect that takes so long; 0 takes one turn of the loop."""
        self.effects[name] += 1
        await asyncio.sleep(seconds)
        return name

    async def fail(self, name: str) -> None:
        """Have an effect and fail."""
        await self.act(name)
        raise ValueError(name)


@dataclass
class Scenario:
    """Process functions of which the first is run as "p", and the events that it is sent.

    Attributes:
        events: Name, payload and after how many seconds.
    """

    fns: Sequence[Fn]
    events: Sequence[tuple[str, object, float]] = ()


@dataclass
class Plot:
    """What happens from outside.

    Attributes:
        turn: Of the loop, at which `act` is done; None for never.
        act: What is done.
        dies: Whether the host dies in the moment after a commit with such a unit;
            another host is there five seconds later.
        dies_then: Whether it dies as soon as `act` is done.
    """

    turn: int | None = None
    act: Act | None = None
    dies: Callable[[Unit], bool] | None = None
    dies_then: bool = False


@dataclass
class Played:
    """What came of a play.

    Attributes:
        turns: The loop's, from the first spawn to the end.
        units: All that were committed.
        died: Whether the host did.
        late: The act came after the end.
    """

    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    effects: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    died: bool = False
    late: bool = False

    def status(self, process_id: str = "p") -> Status:
        return self.snapshots[process_id].row.status

    def came_to(self, process_id: str = "p") -> object:
        """Return how a process ended, and with what."""
        ending = self.snapshots[process_id].row.ending
        return None if ending is None else (ending.status, ending.form, ending.payload)

    def recorded(self, process_id: str = "p") -> set[tuple[str, str, int, str]]:
        """Return kind, key, index and form of what the calls of a process have recorded."""
        return {
            (each.kind.value, each.key, each.index, each.form.value)
            for each in self.snapshots[process_id].checkpoints
            if each.kind not in OWN_NOTES
        }

    def checkpoints(self, process_id: str = "p") -> Sequence[Checkpoint]:
        return self.snapshots[process_id].checkpoints


class _CountingLoop(VirtualTimeLoop):
    """A loop in virtual time that calls back at one turn of it."""

    turns = 0
    at: int | None = None
    then: Callable[[], None] | None = None

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns == self.at and self.then is not None:
            self.then()
        super()._run_once()  # type: ignore[misc]


async def _slow(call: str) -> None:
    if call in ("commit", "request", "claim", "create", "deliver"):
        await asyncio.sleep(0)


def play(make: Callable[[Stage], Scenario], plot: Plot) -> Played:
    """Run a scenario to its end, and return what came of it."""
    clock = VirtualClock()
    played = Played()
    stage = Stage()
    with asyncio.Runner(loop_factory=lambda: _CountingLoop(clock)) as runner:
        runner.run(_program(clock, make(stage), plot, played))
    played.effects = stage.effects
    return played


async def _program(clock: VirtualClock, scenario: Scenario, plot: Plot, played: Played) -> None:
    world = World(clock)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _CountingLoop)
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    async with asyncio.timeout(100_000):
        await _played(world, loop, scenario, plot, played)
    assert not errors, errors[:2]


async def _played(
    world: World, loop: _CountingLoop, scenario: Scenario, plot: Plot, played: Played
) -> None:
    host = _host(world, scenario)
    await host.start()
    dead: asyncio.Future[None] = loop.create_future()
    _arm(world, host, plot, dead)
    await host.spawn(scenario.fns[0], "p")
    begun = loop.turns
    acting: list[asyncio.Task[None]] = []
    if plot.turn is not None and plot.act is not None:
        act = plot.act
        loop.at = begun + plot.turn

        async def acted() -> None:
            client = ProcessClient(world.storage, clock=world.clock)
            try:
                await act(client)
            except ProcessError:
                played.late = True
            if plot.dies_then and not dead.done():
                world.kill(host)
                dead.set_result(None)

        loop.then = lambda: acting.append(loop.create_task(acted()))
    sender = loop.create_task(_send(world, scenario))
    ended = loop.create_task(_ended(host))
    await asyncio.wait([ended, dead], return_when=asyncio.FIRST_COMPLETED)
    if dead.done():
        played.died = True
        await asyncio.sleep(5)
        host = _host(world, scenario)
        await host.start()
        await _ended(host)
    played.turns = loop.turns - begun
    sender.cancel()
    for task in acting:
        await task
    await asyncio.sleep(60)  # children, and what is told to parents
    await host.stop()
    ended.cancel()
    await asyncio.gather(ended, sender, return_exceptions=True)
    for process_id in world.storage._processes:
        (snapshot,) = await world.storage.read([process_id], history=True)
        assert snapshot is not None
        played.snapshots[process_id] = snapshot
    for wire in world.wires.values():
        played.units += wire.units


def _host(world: World, scenario: Scenario) -> ProcessHost:
    host = world.host(*scenario.fns)
    world.wires[host].before = world.wires[host].after = _slow
    return host


def _arm(world: World, host: ProcessHost, plot: Plot, dead: "asyncio.Future[None]") -> None:
    """Let the host die right after the commit that the plot names."""
    if plot.dies is None:
        return
    dies = plot.dies
    wire: Wire = world.wires[host]

    async def after(call: str) -> None:
        if call == "commit" and not dead.done() and any(map(dies, wire.units)):
            world.kill(host)
            dead.set_result(None)
            await asyncio.get_running_loop().create_future()
        await _slow(call)

    wire.after = after


async def _send(world: World, scenario: Scenario) -> None:
    client = ProcessClient(world.storage, clock=world.clock)
    for number, (name, payload, after_s) in enumerate(scenario.events):
        await asyncio.sleep(after_s)
        with suppress(ProcessError, StorageError):
            await client.raise_event("p", name, payload, event_id=f"{number}")


async def _ended(host: ProcessHost) -> None:
    with suppress(ProcessError, ProcessCancelledError):
        await host.get("p").result()


def every_turn(make: Callable[[Stage], Scenario], stride: int = 1) -> range:
    """Return the turns at which something can be done to a scenario, after its spawn."""
    return range(1, play(make, Plot()).turns + 1, stride)
