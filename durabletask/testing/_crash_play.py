"""Playing a program through several lives, each of which may end in a crash.

A program is a host and what is done with it from outside. A life is one run
of it on a loop of its own; time and the storage go on from life to life.
Responsible for what happened; refuses to judge it.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from random import Random
from typing import Any, Protocol

from durabletask._host import ProcessHost
from durabletask._memory import MemoryStorage
from durabletask.errors import StorageUnavailableError, StorageUnknownError
from durabletask.storage import ProcessStorage, Query, Snapshot
from durabletask.testing._crash_loop import STEPS_MAX, Killed, MortalLoop
from durabletask.testing._crash_storage import CrashingStorage, Fate, StorageCall, Witness
from durabletask.testing._time import VIRTUAL_START, VirtualClock, VirtualTimeLoop

LIVES_MAX = 20
"""Of one program: a program that fails by itself is started again, but not for ever."""


class Survivor(Protocol):
    """What outlives a program: the disk or the server under its storage."""

    def open(self) -> ProcessStorage:
        """Return a storage for one life, or for reading at the end."""
        ...

    def crashed(self) -> None:
        """Do what happens around a storage when its program dies, such as losing its lock."""
        ...


class InMemory:
    """A `MemoryStorage` that sees at once when its host has died."""

    def __init__(self, clock: VirtualClock, *, lease_ttl_s: float | None = None) -> None:
        self._storage = MemoryStorage(clock, lease_ttl_s=lease_ttl_s)

    def open(self) -> ProcessStorage:
        """Return the one storage."""
        return self._storage

    def crashed(self) -> None:
        """End the dead host's lease."""
        self._storage.crash()


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is run again after every crash.

    Attributes:
        host: Makes the host of one life.
        main: What the program does with its host; repeatable, as a program that
            is started again has to be.
        survivor: Makes what its storage lies on.
        latency_s: Of each storage call and of each answer.
        downtime_s: Time between a death and the next start.
        restarts: How often it is started again after it has come to its end.
    """

    host: Callable[[ProcessStorage, VirtualClock, Random], ProcessHost]
    main: Callable[[ProcessHost], Coroutine[Any, Any, object]]
    survivor: Callable[[VirtualClock], Survivor] = InMemory
    latency_s: float = 0.0
    downtime_s: float = 0.0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """Something that goes wrong once in a life.

    Attributes:
        number: Of the storage call, from 1; or of the loop's callback, from 0.
        fate: What becomes of the call; None for a kill before the callback.
        count: So many calls in a row meet the fate.
    """

    number: int
    fate: Fate | None = None
    count: int = 1

    def __str__(self) -> str:
        if self.fate is None:
            return f"callback {self.number}, the program dies before it"
        last = f" to {self.number + self.count - 1}" if self.count > 1 else ""
        return f"call {self.number}{last}, {self.fate}"

    def meets(self, number: int) -> bool:
        """Whether a call is one of those that go wrong."""
        return self.number <= number < self.number + self.count


@dataclass(slots=True)
class Life:
    """One run of the program.

    Attributes:
        point: What was to go wrong.
        calls: What it asked of its storage.
        steps: Callbacks that began.
        death: How it ended; None if it came to its end.
    """

    point: CrashPoint | None
    calls: list[StorageCall] = field(default_factory=list)
    steps: int = 0
    death: str | None = None

    def __str__(self) -> str:
        if self.death is None:
            return "lived"
        return f"{self.death} ({self.calls[-1]})" if self.calls else self.death


@dataclass(slots=True)
class Story:
    """All lives of a program.

    Attributes:
        snapshots: Every process at the end, with its history.
        problem: Why it never came to its end, or None.
    """

    lives: list[Life] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    problem: str | None = None

    @property
    def deaths(self) -> int:
        """How many lives did not come to their end."""
        return sum(life.death is not None for life in self.lives)


LifeWitness = Callable[[int, StorageCall, Any, Any], None]
"""Hears of each call that the storage has done, and in which life, counted from 1."""


def play(
    program: Program,
    points: Sequence[CrashPoint] = (),
    *,
    start: datetime = VIRTUAL_START,
    seed: int = 0,
    witness: LifeWitness | None = None,
    steps_max: int = STEPS_MAX,
) -> Story:
    """Run a program to its end; its nth life meets the nth point, if it comes so far.

    Args:
        program: What to run.
        points: One for each life that is to be disturbed.
        start: The wall time at which it begins.
        seed: Of each host's ids and jitter.
        witness: Hears what the storage does.
        steps_max: Callbacks of the loop in one life; with more it never ends.
    """
    clock = VirtualClock(start)
    survivor = program.survivor(clock)
    story = Story()
    while story.problem is None:
        number = len(story.lives) + 1
        if number > LIVES_MAX:
            story.problem = f"no end after {LIVES_MAX} lives; the last one: {story.lives[-1]}"
            break
        life = Life(points[number - 1] if number <= len(points) else None)
        story.lives.append(life)
        try:
            _live(
                program,
                life,
                survivor.open(),
                clock,
                Random(seed * LIVES_MAX + number),
                None if witness is None else partial(witness, number),
                steps_max,
            )
        except RuntimeError as error:
            # The loop's own: a deadlock in virtual time, or no end of callbacks.
            story.problem = str(error)
        if life.death is not None:
            survivor.crashed()
        elif len(story.lives) - story.deaths > program.restarts:
            break
        clock.advance(program.downtime_s)
    story.snapshots = read_all(survivor.open(), clock)
    return story


def _live(
    program: Program,
    life: Life,
    storage: ProcessStorage,
    clock: VirtualClock,
    random: Random,
    witness: Witness | None,
    steps_max: int,
) -> None:
    point = life.point
    kill_at = point.number if point is not None and point.fate is None else None
    loop = MortalLoop(clock, kill_at, steps_max)

    def plan(call: StorageCall) -> Fate | None:
        return point.fate if point is not None and point.meets(call.number) else None

    crashing = CrashingStorage(storage, plan, loop.kill, witness, program.latency_s)
    life.calls = crashing.calls

    async def run() -> None:
        async with program.host(crashing, clock, random) as host:
            await program.main(host)

    try:
        loop.live(run())
    except Killed:
        life.death = f"died at {point}"
    except (StorageUnavailableError, StorageUnknownError) as error:
        life.death = f"ended with {type(error).__name__} after {point}"
    except Exception as error:
        error.add_note(f"raised by the program in a life with {point or 'no crash'}")
        raise
    finally:
        life.steps = loop.steps
        crashing.cut_off()


def read_all(storage: ProcessStorage, clock: VirtualClock) -> list[Snapshot]:
    """Return every process of a storage with its history, and close it."""

    async def read() -> list[Snapshot]:
        page = await storage.list(Query(limit=1_000))
        found = await storage.read([row.process_id for row in page.rows], history=True)
        await storage.close()
        return [snapshot for snapshot in found if snapshot is not None]

    loop = VirtualTimeLoop(clock)
    try:
        return loop.run_until_complete(read())
    finally:
        loop.close()
