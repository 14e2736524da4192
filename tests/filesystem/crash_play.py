"""Plays a scenario on a simulated disk and lets the explorer crash it at every call.

What must be found is not written by hand: a second store on a perfect disk
plays the same requests one atom at a time (one unit, one creation, one event),
and what it serves after each atom is what a crash may leave. So a process must
be found after a prefix of its atoms, with every byte of every value; and all
of them together too, so that what touches several is there as a whole.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from random import Random
from zlib import crc32

import msgspec

from durabletask.storage import Page, Query, Snapshot
from durabletask.testing.disk import (
    AFTERMATH,
    Bounds,
    Explorer,
    Landed,
    Promise,
    SimulatedFolder,
    Tally,
    fates,
)
from durabletask_filesystem._files import Folder
from durabletask_filesystem._requests import (
    Ask,
    Commit,
    Create,
    Deliver,
    ListPage,
    Purge,
    Read,
    Request,
)
from durabletask_filesystem._store import Store
from tests.filesystem.crash_scenarios import NOW, Scenario, Torn, Turn

LIST = ListPage(Query(limit=1000))
_encode = msgspec.msgpack.Encoder().encode


class StoppedClock:
    """Time that stands still, so that equal requests leave equal records."""

    recheck_s = float("inf")

    def now(self) -> datetime:
        """Return the one moment there is."""
        return NOW

    def monotonic_s(self) -> float:
        """Return the one moment there is."""
        return 0.0


CLOCK = StoppedClock()
ALL = Bounds()
TOGETHER = "all of them"
"""Stands among the processes for all of them at one moment."""

State = tuple[str, int, int, int, int, int]
"""Of one process: status, epoch, seq, checkpoints, events, and a digest of all there is."""


class PowerLoss(BaseException):
    """Ends a batch at its sync; nothing of the storage may catch it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The storage under test.

    Attributes:
        dress: Wraps the disk, to plant a mistake in how it is used.
        dress_recovery: The same for the store that recovers.
        salted: Whether chance is chance; without, all segments get one salt.
    """

    dress: Callable[[SimulatedFolder], Folder] = lambda folder: folder
    dress_recovery: Callable[[SimulatedFolder], Folder] | None = None
    salted: bool = True

    def open(self, folder: SimulatedFolder, entropy: Random) -> Store:
        """Open the store on a disk."""
        chance = entropy.randbytes if self.salted else bytes
        return Store.open(self.dress(folder), CLOCK, entropy=chance)

    def served(self, folder: SimulatedFolder) -> dict[str, State] | str:
        """Recover, and return all that is served, or why nothing is."""
        dress = self.dress_recovery or self.dress
        chance = partial(drawn_from, folder) if self.salted else bytes
        try:
            return states(Store.open(dress(folder), CLOCK, entropy=chance))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def drawn_from(folder: SimulatedFolder, count: int) -> bytes:
    """Return random bytes for a recovery, the same on equal disks, as the explorer asks.

    They depend on the manifest, which holds the salts that there are, and on which segments there
    are: so a salt comes again only where the same segment is made once more. They do not depend
    on torn bytes: so the disks of a thousand tears are one disk once these are cut, which is then
    recovered once and not a thousand times.
    """
    files = folder.image().files
    names = " ".join(sorted(name for name in files if name.startswith("segments/")))
    return Random(crc32(names.encode(), crc32(files.get("MANIFEST", b"")))).randbytes(count)


def states(store: Store) -> dict[str, State]:
    """Return the state of every process that a store serves, found by listing and by reading."""
    (page,) = store.apply((LIST,))
    if not isinstance(page, Page):
        raise TypeError(f"list answered {page!r}")
    listed = {row.process_id: row for row in page.rows}
    if not listed:
        return {}
    (snapshots,) = store.apply((Read(tuple(listed), history=True),))
    if not isinstance(snapshots, tuple):
        raise TypeError(f"read answered {snapshots!r}")
    found = {}
    for snapshot in snapshots:
        if not isinstance(snapshot, Snapshot) or listed[snapshot.row.process_id] != snapshot.row:
            raise ValueError(f"listed {sorted(listed)}, but read {snapshot!r}")
        found[snapshot.row.process_id] = state(snapshot)
    found[TOGETHER] = "", 0, 0, 0, 0, hash(tuple(sorted(found.items())))
    return found


def state(snapshot: Snapshot) -> State:
    """Return one process as a digest of everything, but for who held it when the host died."""
    row = msgspec.structs.replace(snapshot.row, owner=None, owner_label=None, deaths=0)
    parts = (row, snapshot.checkpoints, snapshot.events, snapshot.forgotten)
    return (
        str(row.status),
        row.epoch,
        row.seq,
        len(snapshot.checkpoints),
        len(snapshot.events),
        hash(_encode(parts)),
    )


def atoms(request: Request) -> Iterator[Request]:
    """Yield the parts of a request that must be whole each, and may be there without the next."""
    match request:
        case Create(processes, lease):
            yield from (Create((process,), lease) for process in processes)
        case Deliver(events, mailbox_max):
            yield from (Deliver((event,), mailbox_max) for event in events)
        case Commit(lease, units):
            yield from (Commit(lease, (unit,)) for unit in units)
        case Purge(ids):
            yield from (Purge((id,)) for id in ids)
        case Ask(controls):
            yield from (Ask((control,)) for control in controls)
        case _:
            yield request


@dataclass(frozen=True, slots=True)
class Stage:
    """What may be found during a step, and what must be after it."""

    during: Promise
    after: Promise


def stages(scenario: Scenario) -> list[Stage]:
    """Play a scenario on a perfect disk and return what each step may leave."""
    subject, entropy = Subject(), Random(0)
    folder = SimulatedFolder()
    store = subject.open(folder, entropy)
    timeline: list[dict[str, State]] = [{}]
    spans: list[tuple[int, int]] = []
    torn: int | None = None
    for step in scenario.steps:
        # What a torn batch holds may still be missing while the next step repeats it.
        first = len(timeline) - 1 if torn is None else torn
        torn = first if isinstance(step, Torn) else None
        if isinstance(step, Turn):
            folder, store = turn(step, subject, folder, store, entropy)
        else:
            for request in step.requests if isinstance(step, Torn) else step:
                for atom in atoms(request):
                    answers = store.apply((atom,))
                    assert not any(isinstance(answer, Exception) for answer in answers), answers
                    timeline.append(states(store))
        spans.append((first, len(timeline)))
    names = {name for found in timeline for name in found} - _left_out(scenario)

    def promise(first: int, end: int) -> Promise:
        return {name: frozenset(found.get(name) for found in timeline[first:end]) for name in names}

    found = [Stage(promise(0, 1), promise(0, 1))]
    for step, (first, end) in zip(scenario.steps, spans, strict=True):
        during = promise(first, end)
        found.append(Stage(during, during if isinstance(step, Torn) else promise(end - 1, end)))
    return found


def _left_out(scenario: Scenario) -> set[str]:
    """Return what there is no promise for: the order of atoms is another after a torn batch."""
    return {TOGETHER} if any(isinstance(step, Torn) for step in scenario.steps) else set()


def promised(scenario: Scenario, found: dict[str, State] | str) -> dict[str, State] | str:
    """Return what was found, but for what the stages of the scenario promise nothing about."""
    if isinstance(found, str):
        return found
    left_out = _left_out(scenario)
    return {name: state for name, state in found.items() if name not in left_out}


def turn(
    step: Turn, subject: Subject, folder: SimulatedFolder, store: Store, entropy: Random
) -> tuple[SimulatedFolder, Store]:
    """Take a step that is no batch; the store that goes on may be another."""
    match step:
        case Turn.ROTATE:
            store.rotate()
        case Turn.COMPACT:
            store.compact()
        case Turn.REOPEN:
            store.close()
            store = subject.open(folder, entropy)
        case Turn.KILL:
            watch, folder = folder.watch, folder.after_process_crash()
            folder.watch = watch
            store = subject.open(folder, entropy)
    return folder, store


def explore(
    scenario: Scenario,
    subject: Subject,
    *,
    seed: int = 0,
    bounds: Bounds = ALL,
    aftermath: Bounds = AFTERMATH,
    interrupt_every: int = 50,
) -> Tally:
    """Crash one scenario at every call in every way, for each of its variants."""
    plan = stages(scenario)
    explorer = Explorer(
        lambda folder: promised(scenario, subject.served(folder)),
        seed=seed,
        bounds=bounds,
        aftermath=aftermath,
        interrupt_every=interrupt_every,
        ignored="torn/",
    )
    with quiet():
        for variant in range(scenario.variants):
            _play(scenario, subject, plan, explorer, Random(f"{seed}/{scenario.name}/{variant}"))
    return explorer.tally


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the storage from logging a million repairs."""
    logger = logging.getLogger("durabletask.filesystem")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _play(
    scenario: Scenario, subject: Subject, plan: list[Stage], explorer: Explorer, random: Random
) -> None:
    folder = SimulatedFolder()
    explorer.promise = plan[0].during
    explorer.watch(folder)
    store = subject.open(folder, random)
    for step, stage in zip(scenario.steps, plan[1:], strict=True):
        explorer.promise = stage.during
        match step:
            case Turn():
                folder, store = turn(step, subject, folder, store, random)
                explorer.watch(folder)
            case Torn(requests):
                folder = _torn(folder, store, requests, random)
                explorer.watch(folder)
                store = subject.open(folder, random)
            case requests:
                store.apply(requests)
        explorer.promise = stage.after
    explorer.cut(folder)
    if not explorer.tally.wrong:
        found = states(store)
        assert explorer.promise == {name: frozenset({found.get(name)}) for name in explorer.promise}


def _torn(
    folder: SimulatedFolder, store: Store, requests: tuple[Request, ...], random: Random
) -> SimulatedFolder:
    """Lose the power at the sync of a batch; return a disk on which a part of it landed."""
    explore = folder.watch

    def lose(call: str, name: str) -> None:
        if explore is not None:
            explore(call, name)
        if call == "sync":
            raise PowerLoss

    folder.watch = lose
    try:
        store.apply(requests)
    except PowerLoss:
        pass
    folder.watch = None
    parts = [
        fate for fate in fates(folder, Bounds(tears_max=64), random) if fate.landed is Landed.PART
    ]
    return SimulatedFolder(random.choice(parts).image)
