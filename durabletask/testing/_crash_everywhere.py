"""Does a process function come to the same end wherever its program dies?

Responsible for trying every point and comparing what came of it. What differs
between two undisturbed runs (times, random values) is not compared by value.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any, TypeVarTuple

from durabletask._host import ProcessHost
from durabletask._process import Process
from durabletask.errors import ProcessFailedError, ProcessFinishedError
from durabletask.storage import Form, Kind, ProcessStorage, Snapshot, Status
from durabletask.testing._crash_play import (
    CrashPoint,
    InMemory,
    LifeWitness,
    Program,
    Story,
    Survivor,
    play,
)
from durabletask.testing._crash_storage import Fate
from durabletask.testing._time import VIRTUAL_START, VirtualClock

Ts = TypeVarTuple("Ts")
Facts = dict[tuple[str, str], object]
"""What came of a program: (process_id, what) to value."""

DEADLY = (Fate.DIE_BEFORE, Fate.DIE_AFTER)

_ELSEWHEN = timedelta(days=401, hours=7, seconds=13)  # no round number, so that times show
# A life after a crash may take so much longer than an undisturbed one, and is not yet endless.
_STEPS_FACTOR, _STEPS_MORE = 20, 2_000
# Say how it went, not what came of it.
_OWN_NOTES = frozenset({Kind.WAIT, Kind.RETRY, Kind.OVERTAKEN, Kind.HEARTBEAT})
_TIMED = frozenset({Kind.DELAY})


@dataclass(frozen=True, slots=True)
class Difference:
    """A point at which a crash shows.

    Attributes:
        points: What went wrong, life by life.
        what: What was different.
    """

    points: tuple[CrashPoint, ...]
    where: str
    what: tuple[str, ...]

    def __str__(self) -> str:
        return "\n    ".join((self.where, *self.what))


@dataclass(slots=True)
class CrashReport:
    """What came of dying everywhere.

    Attributes:
        runs: How often the program was run from its beginning to its end.
        deaths: How often it died on the way.
        expected: What comes of it undisturbed; a value that varies is `...`.
        differences: Where something else came of it.
    """

    runs: int = 0
    deaths: int = 0
    expected: Facts = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.runs:,} runs with {self.deaths:,} deaths, {len(self.differences):,} differ"
        return "\n  ".join((head, *map(str, self.differences)))

    def check(self) -> None:
        """Raise unless every run came to the same end.

        Raises:
            AssertionError: Some did not; the message names each point and what was different.
        """
        if self.differences:
            raise AssertionError(str(self))


def crash_everywhere(
    fn: Callable[[Process, *Ts], Coroutine[Any, Any, Any]],
    *args: *Ts,
    process_id: str = "crashing",
    events: Sequence[tuple[str, object]] = (),
    processes: Iterable[Callable[..., Coroutine[Any, Any, Any]]] = (),
    main: Callable[[ProcessHost], Coroutine[Any, Any, object]] | None = None,
    host: Callable[..., ProcessHost] = ProcessHost,
    survivor: Callable[[VirtualClock], Survivor] = InMemory,
    reset: Callable[[], object] | None = None,
    observe: Callable[[], object] | None = None,
    pairs: bool = False,
    callbacks: bool = False,
) -> CrashReport:
    """Run a process once per storage call before and after which its program can die.

    After each death a new host resumes the process in virtual time, and what
    comes of it is compared with an undisturbed run: how each process ended,
    and what is recorded under each key. A value that differs between two
    undisturbed runs is only compared by its presence.

    Run it in a plain function, not in a running event loop. The dead are kept
    in memory (some 50 KiB each) until the interpreter ends.

    Args:
        fn: The process function.
        *args: Its arguments after the `Process`.
        process_id: Of the process.
        events: Names and payloads, raised in this order as soon as it is spawned.
        processes: Further process functions that the host must know.
        main: What to do with the host instead of spawning, raising and
            waiting for the result. It is run again after each death.
        host: Makes a host, as `ProcessHost` does; `partial(ProcessHost, errors=[…])`.
        survivor: Makes what the storage lies on; `InMemory` if not given.
        reset: Called before each run: puts the outside world back.
        observe: Called after each run: returns what has become of the outside
            world, which must be equal too. Steps run at least once, so what
            they do there has to bear a repetition.
        pairs: Also die twice, at every pair of points: for small processes.
        callbacks: Also die before every callback of the event loop.

    Returns:
        What differed, and where; `report.check()` raises if anything did.

    Raises:
        ValueError: Undisturbed runs differ in what they record, or do not end.
    """

    def make_host(storage: ProcessStorage, clock: VirtualClock, random: Random) -> ProcessHost:
        return host(storage, processes=[fn, *processes], clock=clock, random=random)

    async def spawn(host: ProcessHost) -> None:
        handle = await host.spawn(fn, process_id, *args)
        for number, (name, payload) in enumerate(events):
            with suppress(ProcessFinishedError):
                await host.raise_event(process_id, name, payload, event_id=f"{number}")
        with suppress(ProcessFailedError):
            await handle.result()

    program = Program(host=make_host, main=main or spawn, survivor=survivor)
    search = Search(program, reset=reset, observe=observe)
    for snapshot in search.undisturbed().snapshots:
        if snapshot.row.status is Status.QUARANTINED:
            raise ValueError(f"undisturbed, process {snapshot.row.process_id!r} is quarantined")
    return search.run(pairs=pairs, callbacks=callbacks)


class Search:
    """Tries the points of one program.

    Args:
        program: What is run.
        reset: Called before each run.
        observe: Called after each run; its answer is a fact like the others.
        witness: Hears what the storage does.
        judge: Called after each run; returns what else is wrong with it.
    """

    def __init__(
        self,
        program: Program,
        *,
        reset: Callable[[], object] | None = None,
        observe: Callable[[], object] | None = None,
        witness: LifeWitness | None = None,
        judge: Callable[[Story], Sequence[str]] | None = None,
    ) -> None:
        self._program = program
        self._reset = reset
        self._observe = observe
        self._witness = witness
        self._judge = judge
        self._reference: Story | None = None
        self.report = CrashReport()

    def run(
        self,
        fates: Sequence[Fate] = DEADLY,
        *,
        count: int = 1,
        pairs: bool = False,
        callbacks: bool = False,
    ) -> CrashReport:
        """Try each fate at each call, and what else is asked for.

        Args:
            fates: What is tried.
            count: How many calls in a row meet it.
            pairs: Also try each pair of points, in two lives.
            callbacks: Also kill before each callback of the loop.
        """
        life = (self._reference or self.undisturbed()).lives[0]
        points = [CrashPoint(call.number, fate, count) for call in life.calls for fate in fates]
        if callbacks:
            points += [CrashPoint(step) for step in range(life.steps)]
        for point in points:
            story = self.try_points((point,))
            if pairs and len(story.lives) > 1:
                for call in story.lives[1].calls:
                    for fate in fates:
                        self.try_points((point, CrashPoint(call.number, fate)))
        return self.report

    def try_points(self, points: tuple[CrashPoint, ...]) -> Story:
        """Run the program once with these points, and note what differs."""
        lives = self._reference.lives if self._reference else ()
        steps_max = sum(life.steps for life in lives) * _STEPS_FACTOR + _STEPS_MORE
        story, facts = self._play(points, steps_max=steps_max)
        self.report.deaths += story.deaths
        what = [*self._differing(facts), *(self._judge(story) if self._judge else ())]
        if story.problem is not None:
            what.insert(0, story.problem)
        if what:
            where = "; ".join(str(life) for life in story.lives)
            self.report.differences.append(Difference(points, where, tuple(what)))
        return story

    def undisturbed(self) -> Story:
        """Run without a crash, twice at different times: what is to come of it.

        Raises:
            ValueError: The two record different things, or do not end.
        """
        stories = []
        facts = []
        for seed, start in enumerate((VIRTUAL_START, VIRTUAL_START + _ELSEWHEN)):
            story, found = self._play((), start=start, seed=seed)
            wrong = self._judge(story) if self._judge else ()
            if story.problem or wrong or story.deaths:
                raise ValueError(f"undisturbed: {story.problem or [*wrong, *story.lives]}")
            stories.append(story)
            facts.append(found)
        first, second = facts
        if first.keys() != second.keys():
            names = sorted(map(str, first.keys() ^ second.keys()))
            raise ValueError(f"two undisturbed runs record different things: {', '.join(names)}")
        self.report.expected = {
            what: value if second[what] == value else ... for what, value in first.items()
        }
        self._reference = stories[0]
        return self._reference

    def _play(self, points: Sequence[CrashPoint], **how: Any) -> tuple[Story, Facts]:
        if self._reset is not None:
            self._reset()
        self.report.runs += 1
        story = play(self._program, points, witness=self._witness, **how)
        facts = {fact: value for each in story.snapshots for fact, value in facts_of(each)}
        if self._observe is not None:
            facts["the outside world", "observed"] = self._observe()
        return story, facts

    def _differing(self, facts: Facts) -> Iterator[str]:
        expected = self.report.expected
        for about in sorted(expected.keys() | facts.keys()):
            name = " ".join(about)
            if about not in facts:
                yield f"{name}: missing; it should be {expected[about]!r}"
            elif about not in expected:
                yield f"{name}: {facts[about]!r}, which should not be there"
            elif expected[about] is not ... and expected[about] != facts[about]:
                yield f"{name}: {facts[about]!r} instead of {expected[about]!r}"


def facts_of(snapshot: Snapshot) -> Iterator[tuple[tuple[str, str], object]]:
    """Yield what came of one process: how it ended, and what is recorded under each key."""
    row = snapshot.row
    about = partial(_about, row.process_id)
    yield about("status"), row.status
    yield about("incarnation"), (row.incarnation, row.generation)
    if row.ending is not None:
        yield about("ended with"), row.ending.form
        yield about("came to"), row.ending.payload
    for held in snapshot.checkpoints:
        if held.kind in _OWN_NOTES:
            continue
        name = held.key if held.index < 0 else f"{held.key}[{held.index}]"
        yield about(f"{held.kind} {name!r} is recorded as"), held.form
        if held.form is not Form.CANCELLED and held.kind not in _TIMED:
            yield about(f"{held.kind} {name!r} holds"), held.payload
    for event in snapshot.events:
        yield about(f"event {event.position}"), (event.name, event.payload, event.consumed)


def _about(process_id: str, what: str) -> tuple[str, str]:
    return process_id, what
