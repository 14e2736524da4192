"""Every call of the disk fails, once and for ever: errors that are signalled lose nothing."""

import errno
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from durabletask.errors import StorageFailedError, StorageUnavailableError
from durabletask.testing.disk import (
    CHANGING,
    Bounds,
    Fault,
    Promise,
    SimulatedFolder,
    breach,
    fates,
)
from durabletask_filesystem._store import Store
from tests.filesystem.crash_play import Stage, Subject, promised, quiet, stages
from tests.filesystem.crash_scenarios import SCENARIOS, Scenario, Step, Torn, Turn
from tests.filesystem.planted import SyncsAgain

FEW = Bounds(subsets_max=16, tears_max=8, entries_max=16, states_max=64)
TRIES = 3
FAULTS = (
    Fault(0, errno.EIO, frozenset({"sync"})),
    Fault(0, errno.EIO, frozenset({"sync_entries"})),
    Fault(0, errno.ENOSPC, frozenset({"append"})),
    Fault(0, errno.ENOSPC, frozenset({"append"}), landed=0.5),
    Fault(0, errno.EDQUOT, frozenset({"append", "create", "make_subfolder"}), landed=1.0),
    Fault(0, errno.EIO, frozenset({"append", "truncate"}), landed=0.9),
    Fault(0, errno.EIO),
    Fault(0, errno.EIO, frozenset({"close"})),
    Fault(0, errno.EROFS, CHANGING),
    Fault(0, errno.EMFILE, frozenset({"open_end", "create", "read", "map", "names", "size"})),
)


@dataclass(slots=True)
class Course:
    """What happened to the runs with faults."""

    refused: int = 0
    poisoned: int = 0
    disks: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Player:
    """Plays one scenario on one failing disk."""

    scenario: Scenario
    fault: Fault
    subject: Subject
    course: Course
    folder: SimulatedFolder = field(default_factory=SimulatedFolder)
    store: Store | None = None

    def play(self, plan: list[Stage]) -> None:
        """Play until the end or until nothing goes any more, then crash and look."""
        self.folder.fault = self.fault
        promise = plan[0].after
        for step, stage in zip((None, *self.scenario.steps), plan, strict=True):
            if self._attempt(step):
                promise = stage.after
                continue
            if self.store is not None and poisoned(self.store):
                # Not acknowledged, so it may be there or not.
                promise = stage.during
                self._stays_poisoned()
            break
        self._judge(promise)

    def _attempt(self, step: Step | None) -> bool:
        """Take a step, again if it was refused; return whether it was acknowledged."""
        for attempt in range(TRIES):
            try:
                self._take(step)
                return True
            except StorageUnavailableError:
                self.course.refused += 1
                if attempt and not self.fault.for_ever:
                    self._wrong("still refused, though the disk is well again")
            except StorageFailedError:
                self.course.poisoned += 1
                return False
            except OSError as error:
                self._wrong(f"an error of the disk crossed the seam: {error}")
                return False
        return False

    def _take(self, step: Step | None) -> None:
        if step is Turn.KILL:
            self.folder, self.store = self.folder.after_process_crash(), None
            self.folder.fault = self.fault
        elif step is Turn.REOPEN and self.store is not None:
            store, self.store = self.store, None
            store.close()
        if self.store is None:
            self.store = self.subject.open(self.folder, Random(self.fault.nth))
        match step:
            case Turn.ROTATE:
                self.store.rotate()
            case Turn.COMPACT:
                self.store.compact()
            case Torn(requests):
                self.store.apply(requests)
            case tuple():
                self.store.apply(step)
            case _:
                pass

    def _stays_poisoned(self) -> None:
        """Check that a poisoned store never answers again, though the disk is well by now."""
        self.folder.fault = None
        assert self.store is not None
        for step in SCENARIOS[1].steps:
            try:
                self._take(step)
            except StorageFailedError:
                continue
            self._wrong(f"a poisoned store answered {step}")

    def _judge(self, promise: Promise) -> None:
        """Check the disk as the next program finds it, and as a power loss leaves it."""
        random = Random(1)
        self.folder.fault = None
        disks = [SimulatedFolder(fate.image) for fate in fates(self.folder, FEW, random)]
        for disk in [self.folder.after_process_crash(), *disks]:
            self.course.disks += 1
            found = promised(self.scenario, self.subject.served(disk))
            wrong = breach(found, promise)
            if wrong is not None:
                self._wrong(wrong)

    def _wrong(self, what: str) -> None:
        self.course.wrong.append(f"{self.scenario.name}, {self.fault}: {what}")


def poisoned(store: Store) -> bool:
    """Return whether a store refuses for good."""
    try:
        store.apply(())
    except StorageFailedError:
        return True
    except StorageUnavailableError:
        return False
    return False


def run(subject: Subject, fault: Fault, scenarios: tuple[Scenario, ...] = SCENARIOS) -> Course:
    """Let the nth matching call fail, for every n that there is, in each scenario."""
    course = Course()
    with quiet():
        for scenario in scenarios:
            plan = stages(scenario)
            nth = struck = 1
            while struck:
                player = Player(scenario, replace(fault, nth=nth), subject, course)
                player.play(plan)
                struck = player.fault.struck
                nth += 1
    return course


def name(fault: Fault) -> str:
    """Return how a fault is called in the list of tests."""
    calls = "any call" if len(fault.calls) in {0, len(CHANGING)} else "/".join(sorted(fault.calls))
    return f"{errno.errorcode[fault.number]} at {calls}, {fault.landed:.0%} landed"


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_every_call_fails(fault: Fault, *, for_ever: bool) -> None:
    """The nth call fails, for every n: what was acknowledged stays, what was refused is not there.

    F026, F027, F028: a failed sync is final, a full disk is not. G1, G14, I22.
    """
    course = run(Subject(), replace(fault, for_ever=for_ever))
    print(
        f"{name(fault)}: {course.refused} refused, {course.poisoned} poisoned, "
        f"{course.disks} disks, {len(course.wrong)} wrong"
    )
    assert not course.wrong, course.wrong[:5]
    assert course.disks > len(SCENARIOS)


def test_taking_a_second_sync_for_the_first_is_caught() -> None:
    """A storage that repeats a failed fsync acknowledges what is not on the disk (F026, C43)."""
    fault = Fault(0, errno.EIO, frozenset({"sync"}))
    course = run(Subject(dress=SyncsAgain), fault)
    print(f"planted 'C43 fsync retried': caught in {len(course.wrong)} of {course.disks:,} states")
    assert course.wrong
