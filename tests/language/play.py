"""Playing a program in bad weather: hosts die, freeze and are drained, answers are lost.

A play is one world, one storage, one time, and several lives of a program on a
loop each. Responsible for what happened; refuses to judge it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from random import Random
from typing import Any

from durabletask import MemoryStorage, ProcessClient, ProcessHost, Status
from durabletask.errors import (
    DurableTaskError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import DONE, NewEvent, Query, Snapshot, Unit
from durabletask.testing import VirtualClock
from durabletask.testing._time import VIRTUAL_START
from durabletask.testing.crash import CrashingStorage, Fate, Killed, MortalLoop, StorageCall
from tests.language import grammar
from tests.language.grammar import Program
from tests.language.interpreter import Interpreter, World

ID = "first"
LIVES_MAX = 12
STEPS_MAX = 60_000
LATENCY_S = 0.01
LEASE_S = 100_000.0
"""So that a host which waits for hours does not fill the play with its renewals."""
SLEEP_S = 40.0
"""How long a suspended process rests."""


class Blow(StrEnum):
    """What goes wrong in a life, at a storage call of its first host, or at a callback."""

    KILLED_BEFORE = "the program dies before the call"
    KILLED_AFTER = "the program dies after the call"
    KILLED_AT_CALLBACK = "the program dies before the callback"
    FENCED_BEFORE = "another host takes over before the call"
    FENCED_AFTER = "another host takes over after the call, whose answer comes late"
    DRAINED = "the host is asked to stop at the call"
    REFUSED = "some calls are refused for now"
    LOST = "the answer is lost, and nothing was written"
    DONE = "the answer is lost, and it was written"


class Verb(StrEnum):
    """What is asked of the process from outside."""

    CANCEL = "cancel"
    SUSPEND = "suspend"
    TERMINATE = "terminate"
    RETRY = "retry"


DEADLY = frozenset({
    Blow.KILLED_BEFORE, Blow.KILLED_AFTER, Blow.KILLED_AT_CALLBACK,
    Blow.FENCED_BEFORE, Blow.FENCED_AFTER,
})  # fmt: skip
FENCED = frozenset({Blow.FENCED_BEFORE, Blow.FENCED_AFTER})


@dataclass(frozen=True)
class Trouble:
    """A blow and its place: per mille of the undisturbed play's calls or callbacks."""

    blow: Blow
    at: int


@dataclass(frozen=True)
class Asked:
    """A verb and its place: per mille of the undisturbed play's calls, and so many turns later."""

    verb: Verb
    at: int
    turns: int = 0


@dataclass(frozen=True)
class Weather:
    """What a program has to go through: one trouble for each life."""

    troubles: tuple[Trouble, ...] = ()
    asked: tuple[Asked, ...] = ()
    slow: bool = False
    downtime_s: float = 0.0


@dataclass(frozen=True)
class Written:
    """The storage has done a unit."""

    unit: Unit


@dataclass
class Played:
    """What happened.

    Attributes:
        calls: Of the first host, in the first life; `steps` callbacks there were in it.
        blows: That have really struck.
        statuses: Of each process, in order, as they were recorded.
        problem: Why there was no end, or None.
    """

    world: World
    calls: int = 0
    steps: int = 0
    blows: list[Blow] = field(default_factory=list)
    verbs: list[Verb] = field(default_factory=list)
    statuses: dict[str, list[Status]] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    problem: str | None = None

    @property
    def deaths(self) -> int:
        """How often a host has died or was taken for dead."""
        return sum(blow in DEADLY for blow in self.blows)


def play(program: Program, weather: Weather, scale: Played | None = None) -> Played:
    """Play a program to its end.

    Args:
        program: Of the process that the outside world knows.
        weather: What it goes through.
        scale: The undisturbed play, which says where a place per mille is.
    """
    return _Play(program, weather, scale).run()


class _Play:
    def __init__(self, program: Program, weather: Weather, scale: Played | None) -> None:
        self.program = program
        self.weather = weather
        self.scale = scale
        self.world = World.of(program)
        self.fn = Interpreter(self.world).language
        self.clock = VirtualClock()
        self.storage = MemoryStorage(self.clock, lease_ttl_s=LEASE_S)
        self.played = Played(self.world)
        self.to_ask = list(weather.asked)
        self.asleep = False
        self.clients = 0
        self.lines: list[CrashingStorage] = []

    def run(self) -> Played:
        played = self.played
        try:
            self._live(self._create(), MortalLoop(self.clock, steps_max=STEPS_MAX))
            for number in range(LIVES_MAX):
                if _Life(self, number).live():
                    break
                self.clock.advance(self.weather.downtime_s)
            else:
                played.problem = f"no end after {LIVES_MAX} lives"
        except RuntimeError as error:
            # The loop's own: a deadlock in virtual time, or no end of callbacks.
            played.problem = f"{error}"
        self._live(self._read(), MortalLoop(self.clock, steps_max=STEPS_MAX))
        return played

    def _live(self, main: Any, loop: MortalLoop) -> None:
        loop.live(main)

    async def _create(self) -> None:
        client = self.client()
        await client.spawn(self.fn, ID, 0, 0, False)
        await self.raise_until(-1.0)

    async def raise_until(self, at_s: float) -> None:
        """Raise what is due; what was raised before is known by its id."""
        for event_id, name, due_s in sorted(
            grammar.outside(self.program), key=lambda each: each[2]
        ):
            if due_s <= at_s:
                event = NewEvent(
                    process_id=ID, event_id=event_id, name=name, payload=f'"{event_id}"'.encode()
                )
                await self.storage.deliver([event], mailbox_max=1_000)

    async def _read(self) -> None:
        page = await self.storage.list(Query(limit=1_000))
        found = await self.storage.read([row.process_id for row in page.rows], history=True)
        self.played.snapshots = {each.row.process_id: each for each in found if each}

    def client(self) -> ProcessClient:
        """Return the client of the world outside, whose line never breaks."""
        wire = CrashingStorage(self.storage, lambda _: None, _nobody, self.witness)
        self.clients += 1
        self.lines.append(wire)
        return ProcessClient(
            wire,
            processes=[self.fn],
            clock=self.clock,
            random=Random(-self.clients),
            poll_s=LEASE_S,
        )

    def witness(self, call: StorageCall, arguments: Any, answer: Any) -> None:
        """Note what the storage has done."""
        if call.method == "commit":
            for unit, outcome in zip(arguments, answer, strict=True):
                if outcome == DONE:
                    self.world.trace.append(Written(unit))
        for process in self.storage._processes.values():
            row = process.row()
            statuses = self.played.statuses.setdefault(row.process_id, [])
            if not statuses or statuses[-1] is not row.status:
                statuses.append(row.status)


async def _nobody() -> Any:
    raise AssertionError("the world outside does not die")


class _Life:
    """One life of the program: one or two hosts, and the world outside."""

    def __init__(self, of: _Play, number: int) -> None:
        self.of = of
        self.number = number
        troubles = of.weather.troubles
        self.trouble = troubles[number] if number < len(troubles) else None
        blow = self.trouble.blow if self.trouble else None
        self.at = self._place(self.trouble.at, blow) if self.trouble else -1
        kill_at = self.at if blow is Blow.KILLED_AT_CALLBACK else None
        steps_max = STEPS_MAX if of.scale is None else 20 * of.scale.steps + 2_000
        self.loop = MortalLoop(of.clock, kill_at, steps_max)
        self.stop = asyncio.Event()
        self.hosts: list[ProcessHost] = []
        self.lines: list[CrashingStorage] = []
        self.asking: set[asyncio.Task[None]] = set()
        self.ended = False

    def _place(self, per_mille: int, blow: Blow | None) -> int:
        scale = self.of.scale
        assert scale is not None
        if blow is Blow.KILLED_AT_CALLBACK:
            return scale.steps * per_mille // 1_000
        return 1 + scale.calls * per_mille // 1_000

    def live(self) -> bool:
        """Live; return whether everything has come to its end."""
        played = self.of.played
        try:
            self.loop.live(self._main())
        except Killed:
            assert self.trouble is not None
            if self.trouble.blow is Blow.KILLED_AT_CALLBACK:
                played.blows.append(self.trouble.blow)
        except (StorageUnavailableError, StorageUnknownError):
            pass  # the host could not even start; whoever watches it starts it again
        finally:
            for line in (*self.lines, *self.of.lines):
                line.cut_off()
            if self.number == 0 and self.lines:
                played.calls, played.steps = len(self.lines[0].calls), self.loop.steps
        self.of.storage.crash()
        return self.ended

    async def _main(self) -> None:
        of = self.of
        slow_s = LATENCY_S if of.weather.slow else 0.0
        blow = self.trouble.blow if self.trouble else None
        async with AsyncExitStack() as stack:
            for place in range(2 if blow in FENCED else 1):
                plan = self._plan if place == 0 else _calm
                line: Any = CrashingStorage(of.storage, plan, self._die, of.witness, slow_s)
                if place == 0 and blow in FENCED:
                    line = _Fenced(line, self)
                self.lines.append(line)
                random = Random(self.number * 2 + place)
                host = ProcessHost(
                    line,
                    processes=[of.fn],
                    clock=of.clock,
                    random=random,
                    label=f"host-{place}",
                    poll_s=LEASE_S,
                )
                self.hosts.append(host)
                await stack.enter_async_context(host)
            outside = asyncio.create_task(self._outside())
            ends = asyncio.create_task(self._until_the_end())
            stops = asyncio.create_task(self.stop.wait())
            done, _ = await asyncio.wait(
                [ends, stops, outside], return_when=asyncio.FIRST_COMPLETED
            )
            if outside in done:
                await outside
                done, _ = await asyncio.wait([ends, stops], return_when=asyncio.FIRST_COMPLETED)
            self.ended = ends in done
            if self.ended:
                await ends
            for each in (outside, ends, stops, *self.asking):
                each.cancel()
            await asyncio.gather(outside, ends, stops, *self.asking, return_exceptions=True)

    # --- what strikes it ----------------------------------------------------------------------

    async def _die(self) -> Any:
        await self.loop.kill()

    def _plan(self, call: StorageCall) -> Fate | None:
        """Decide what becomes of a call of the first host."""
        for asked in [each for each in self.of.to_ask if each.verb is not Verb.RETRY]:
            if call.number >= self._place(asked.at, None):
                self.of.to_ask.remove(asked)
                self.asking.add(asyncio.create_task(self._ask(asked)))
        trouble = self.trouble
        if trouble is None or trouble.blow in FENCED:
            return None
        if trouble.blow is Blow.REFUSED and self.at <= call.number < self.at + 3:
            return self._strike(Fate.UNAVAILABLE)
        if call.number != self.at or call.method in ("close", "close_lease"):
            return None
        if trouble.blow is Blow.DRAINED:
            self.stop.set()
            return self._strike(None)
        fates = {
            Blow.KILLED_BEFORE: Fate.DIE_BEFORE,
            Blow.KILLED_AFTER: Fate.DIE_AFTER,
            Blow.LOST: Fate.UNKNOWN_LOST,
            Blow.DONE: Fate.UNKNOWN_DONE,
        }
        return self._strike(fates[trouble.blow]) if trouble.blow in fates else None

    def _strike(self, fate: Fate | None) -> Fate | None:
        assert self.trouble is not None
        self.of.played.blows.append(self.trouble.blow)
        return fate

    def fence(self) -> None:
        """Take the first host for dead."""
        session = self.hosts[0]._session
        if session is not None:
            self._strike(None)
            self.of.storage.fence(session.lease.host_id)

    # --- the world outside --------------------------------------------------------------------

    async def _outside(self) -> None:
        """Raise each event at its time, and those of a downtime at once."""
        of = self.of
        for at_s in sorted({at_s for _, _, at_s in grammar.outside(of.program)}):
            due_at = VIRTUAL_START + timedelta(seconds=at_s)
            await asyncio.sleep(max(0.0, (due_at - of.clock.now()).total_seconds()))
            await of.raise_until(at_s)

    async def _ask(self, asked: Asked) -> None:
        of = self.of
        for _ in range(asked.turns):
            await asyncio.sleep(0)
        handle = of.client().get(ID)
        of.played.verbs.append(asked.verb)
        with suppress(DurableTaskError):
            if asked.verb is Verb.CANCEL:
                await handle.cancel("enough")
            elif asked.verb is Verb.TERMINATE:
                await handle.terminate("enough")
            else:
                of.asleep = True
                await handle.suspend("wait")
                await asyncio.sleep(SLEEP_S)
                await handle.resume()
                of.asleep = False

    async def _until_the_end(self) -> None:
        """Wait until every process has ended, and retry the first one if that is asked."""
        of = self.of
        client = of.client()
        if of.asleep and not self.asking:
            with suppress(DurableTaskError):
                await client.get(ID).resume()
            of.asleep = False
        while True:
            page = await of.storage.list(Query(limit=1_000))
            open_ = [row.process_id for row in page.rows if row.finished_at is None]
            alive = [each for each in open_ if of.storage._processes[each].row().ending is None]
            for process_id in alive:
                with suppress(DurableTaskError):
                    await client.get(process_id).result()
            if alive:
                continue
            retries = [each for each in of.to_ask if each.verb is Verb.RETRY]
            if not retries or not await self._retry(client, retries[0]):
                return

    async def _retry(self, client: ProcessClient, asked: Asked) -> bool:
        self.of.to_ask.remove(asked)
        self.of.world.mended = True
        self.of.played.verbs.append(asked.verb)
        try:
            await client.get(ID).retry()
        except DurableTaskError:
            return False
        # What became due while it had ended was refused.
        await self.of.raise_until((self.of.clock.now() - VIRTUAL_START).total_seconds())
        return True


def _calm(_call: StorageCall) -> None:
    return None


class _Fenced:
    """A line on which, at one call, the host is taken for dead, and hears of it late."""

    def __init__(self, line: CrashingStorage, life: _Life) -> None:
        self._line = line
        self._life = life
        self.calls = line.calls
        self.cut_off = line.cut_off
        self.subscribe = line.subscribe

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._line, name), name)

    async def _call(self, method: Any, name: str, *args: Any, **options: Any) -> Any:
        life = self._life
        assert life.trouble is not None
        here = len(self.calls) + 1 == life.at and not name.startswith("close")
        if here and life.trouble.blow is Blow.FENCED_BEFORE:
            life.fence()
            await asyncio.sleep(3.0)
        answer = await method(*args, **options)
        if here and life.trouble.blow is Blow.FENCED_AFTER:
            life.fence()
            await asyncio.sleep(3.0)
        return answer


def unit_order(trace: Sequence[object]) -> list[Unit]:
    """Return the units of a trace."""
    return [each.unit for each in trace if isinstance(each, Written)]
