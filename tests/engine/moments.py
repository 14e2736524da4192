"""Something done to a program from outside, once at every turn of its event loop.

A play is one run of a scenario in virtual time. Its storage takes time, so that
a turn can lie before, within and after each call.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from durabletask import ProcessClient, ProcessHost, Status
from durabletask.errors import ProcessCancelledError, ProcessError, StorageError
from durabletask.storage import Checkpoint, Form, Kind, Snapshot, Unit
from durabletask.testing import VirtualClock
from durabletask.testing._time import VirtualTimeLoop
from tests.engine.database import database_of, host_of
from tests.engine.world import World

Fn = Callable[..., Coroutine[Any, Any, Any]]
Act = Callable[[ProcessClient], Coroutine[Any, Any, object]]

LATENCY_S = 0.002
"""Of a storage call, and of its answer: longer than news of a request is held back."""

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
        dies_at: The number, from 1, of the storage call of the host at which it
            dies, and whether the storage has done that call by then.
        acts_at: The number of the storage call of the host behind which `act` is
            done, in place of a turn.
    """

    turn: int | None = None
    act: Act | None = None
    dies: Callable[[Unit], bool] | None = None
    dies_then: bool = False
    dies_at: tuple[int, bool] | None = None
    acts_at: int | None = None


@dataclass
class Played:
    """What came of a play.

    Attributes:
        turns: The loop's, from the first spawn to the end.
        units: All that were committed.
        calls: Of the first host to its storage, from the first spawn on.
        died: Whether the host did.
        kept: The effects of the steps that were recorded when it died.
        late: The act came after the end.
        table: What transactions have written.
    """

    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    effects: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    calls: int = 0
    died: bool = False
    kept: Counter[str] = field(default_factory=Counter)
    late: bool = False
    table: dict[str, object] = field(default_factory=dict)

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


async def cancel(client: ProcessClient) -> None:
    """Ask the process to cancel."""
    await client.get("p").cancel("enough")


def meets(unit: Unit) -> bool:
    """Return whether the process meets a request to cancel in a unit."""
    return unit.process_id == "p" and unit.meets_cancel


def cancelled_marks(played: Played) -> set[tuple[int, int]]:
    """Return by which units ProcessCancelledErrors were recorded."""
    found = set()
    for each in played.checkpoints():
        if each.form is Form.ERROR and b"ProcessCancelledError" in each.payload:
            found.add((each.epoch, each.seq))
    return found


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
    if call in ("commit", "request", "claim", "create", "deliver", "transact"):
        await asyncio.sleep(LATENCY_S)


def play(make: Callable[[Stage], Scenario], plot: Plot) -> Played:
    """Run a scenario to its end, and return what came of it."""
    clock = VirtualClock()
    played = Played()
    stage = Stage()
    with asyncio.Runner(loop_factory=lambda: _CountingLoop(clock)) as runner:
        runner.run(_program(clock, stage, make(stage), plot, played))
    played.effects = stage.effects
    return played


async def _program(
    clock: VirtualClock, stage: Stage, scenario: Scenario, plot: Plot, played: Played
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _CountingLoop)
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    async with asyncio.timeout(100_000):
        await _Play(World(clock), loop, stage, scenario, plot, played).run()
    assert not errors, errors[:2]


class _Play:
    def __init__(
        self,
        world: World,
        loop: _CountingLoop,
        stage: Stage,
        scenario: Scenario,
        plot: Plot,
        played: Played,
    ) -> None:
        self.world, self.loop, self.stage = world, loop, stage
        self.scenario, self.plot, self.played = scenario, plot, played
        self.dead: asyncio.Future[None] = loop.create_future()
        self.acting: list[asyncio.Task[None]] = []
        self.counting = False
        # By the task that makes the call: calls overlap, and one has its number from its beginning.
        self.numbers: dict[asyncio.Task[Any] | None, int] = {}

    async def run(self) -> None:
        loop, plot, played = self.loop, self.plot, self.played
        self.host = host = self.new_host()
        wire = self.world.wires[host]
        wire.before, wire.after = self.before, self.after
        await host.start()
        await host.spawn(self.scenario.fns[0], "p")
        begun, self.counting = loop.turns, True
        if plot.turn is not None:
            loop.at, loop.then = begun + plot.turn, self.act
        sender = loop.create_task(self.send())
        ended = loop.create_task(_ended(host))
        await asyncio.wait([ended, self.dead], return_when=asyncio.FIRST_COMPLETED)
        self.counting = False
        if played.died:
            await asyncio.sleep(5)
            host = self.new_host()
            await host.start()
            await _ended(host)
        played.turns = loop.turns - begun
        sender.cancel()
        for task in self.acting:
            await task
        await asyncio.sleep(10)  # children, and what is told to parents
        await host.stop()
        ended.cancel()
        await asyncio.gather(ended, sender, return_exceptions=True)
        for process_id in self.world.storage._processes:
            (snapshot,) = await self.world.storage.read([process_id], history=True)
            assert snapshot is not None
            played.snapshots[process_id] = snapshot
        for each in self.world.wires.values():
            played.units += each.units
        played.table = database_of(self.world).table

    def new_host(self) -> ProcessHost:
        host = host_of(self.world, *self.scenario.fns)
        self.world.wires[host].before = self.world.wires[host].after = _slow
        return host

    def act(self) -> None:
        self.acting.append(self.loop.create_task(self.acted()))

    async def acted(self) -> None:
        assert self.plot.act is not None
        try:
            await self.plot.act(ProcessClient(self.world.storage, clock=self.world.clock))
        except ProcessError:
            self.played.late = True
        if self.plot.dies_then and not self.dead.done():
            self.die()

    def die(self) -> None:
        self.played.died = True
        for process in self.world.storage._processes.values():
            for each in process.checkpoints():
                if each.kind not in OWN_NOTES:
                    name = each.key if each.index < 0 else f"{each.key}[{each.index}]"
                    self.played.kept[name] = self.stage.effects[name]
        self.world.kill(self.host)
        self.dead.set_result(None)

    async def before(self, call: str) -> None:
        if self.counting:
            self.played.calls += 1
            self.numbers[asyncio.current_task()] = self.played.calls
            if self.plot.dies_at == (self.played.calls, False):
                self.die()
                await self.loop.create_future()
        await _slow(call)

    async def after(self, call: str) -> None:
        number = self.numbers.pop(asyncio.current_task(), None)
        if self.counting and number is not None:
            units = self.world.wires[self.host].units
            dies = self.plot.dies is not None and call == "commit"
            if (dies and any(map(self.plot.dies or bool, units))) or (
                self.plot.dies_at == (number, True)
            ):
                self.die()
                await self.loop.create_future()
            if self.plot.acts_at == number and not self.acting:
                self.act()
        await _slow(call)

    async def send(self) -> None:
        client = ProcessClient(self.world.storage, clock=self.world.clock)
        for number, (name, payload, after_s) in enumerate(self.scenario.events):
            await asyncio.sleep(after_s)
            with suppress(ProcessError, StorageError):
                await client.raise_event("p", name, payload, event_id=f"{number}")


async def _ended(host: ProcessHost) -> None:
    with suppress(ProcessError, ProcessCancelledError):
        await host.get("p").result()


def every_turn(make: Callable[[Stage], Scenario], stride: int = 1) -> range:
    """Return the turns at which something can be done to a scenario, after its spawn."""
    return range(1, play(make, Plot()).turns + 1, stride)
