"""Kill the machine at every call, in every way that a disk allows, and look at what comes back.

The explorer watches a `SimulatedFolder` while a scenario works on it. Before
each call that changes something it takes every fate of what is not synced,
lets the storage recover from that disk, and compares what came back with what
must and what may be there at that moment: the promise. It knows nothing of
the storage; how to recover, and what must be there, come from the caller.

Beyond single power losses it tries, at each cut:

* the program alone dies, the next one recovers from the page cache, and then
  the power fails, during that recovery or after it: what a recovery has
  returned must survive (otherwise it served records that were never synced);
* a recovery from a power loss that is itself cut at each of its calls;
* a second recovery, which must find exactly what the first one found.

Each distinct image is recovered once. The states counted are the pairs of
moment and image that were really made.

Source: ALICE (Pillai et al. 2014), CrashMonkey (Mohan et al. 2018).
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from random import Random

from durabletask.testing._disk_fates import Bounds, Fate, Landed, extremes, fates
from durabletask.testing._disk_folder import SimulatedFolder
from durabletask.testing._disk_model import CHANGING

Recovered = Mapping[str, Hashable]
"""What a storage serves after recovery: a digest of everything of each name."""

Promise = Mapping[str, frozenset[Hashable]]
"""For each name what may be found of it; None among them: the name may be missing."""

AFTERMATH = Bounds(subsets_max=6, tears_max=3, entries_max=6, joint_max=12, states_max=24)
"""Of the states that follow from a recovery, of which there are many for each image."""

VIOLATIONS_KEPT = 8
TRACE_SHOWN = 30


@dataclass(slots=True)
class Tally:
    """What an exploration did, so that a run which tried nothing cannot pass for a good one.

    Attributes:
        cuts: Moments at which the machine was stopped.
        states: Pairs of moment and disk, counted one by one.
        images: Distinct disks; each was recovered.
        lost: States in which nothing landed of something that was pending.
        torn: States in which a part of it landed.
        interrupted: States in which a recovery was cut.
        served: States after a recovery from the page cache.
        again: States after a recovery that had ended, which a second recovery must find equal.
        wrong: States that break the promise.
        violations: The first of them, told in full.
    """

    cuts: int = 0
    states: int = 0
    images: int = 0
    lost: int = 0
    torn: int = 0
    interrupted: int = 0
    served: int = 0
    again: int = 0
    wrong: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add what another exploration did."""
        for each in fields(self):
            if each.name != "violations":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.violations = (self.violations + other.violations)[:VIOLATIONS_KEPT]


class _Outcome:
    """What recovery made of one image; one object for all images with the same outcome."""

    __slots__ = ("found", "judged")

    def __init__(self, found: Recovered | str) -> None:
        self.found = found
        self.judged: tuple[object, str | None] = (None, None)


class Explorer:
    """Tries every crash of one scenario.

    Args:
        recover: Opens the storage on a folder and returns what it serves, or
            a text where it refuses to open. It abandons the storage without
            closing it. It must do the same on equal disks.
        bounds: How far to go at each cut.
        aftermath: How far to go in what follows a recovery.
        interrupt_every: Of the images that no earlier moment had, every
            so-manyth is recovered once more with a cut at each call.
        ignored: Prefix of paths that recovery never reads.

    Attributes:
        promise: What must and may be found now. Replace it, never change it.
    """

    def __init__(
        self,
        recover: Callable[[SimulatedFolder], Recovered | str],
        *,
        seed: int = 0,
        bounds: Bounds = Bounds(),  # noqa: B008  (frozen)
        aftermath: Bounds = AFTERMATH,
        interrupt_every: int = 50,
        ignored: str | None = None,
    ) -> None:
        self.promise: Promise = {}
        self.tally = Tally()
        self._recover = recover
        self._random = Random(seed)
        self._bounds = bounds
        self._aftermath = aftermath
        self._interrupt_every = interrupt_every
        self._ignored = ignored
        self._known: dict[int, _Outcome] = {}
        self._outcomes: dict[object, _Outcome] = {}
        self._unsure: dict[int, str] = {}
        self._trace: list[str] = []

    def watch(self, folder: SimulatedFolder) -> None:
        """Cut before each call on a folder from now on."""

        def before(call: str, name: str) -> None:
            if call in CHANGING:
                self.cut(folder)
            self._trace.append(f"{call} {name}")

        folder.watch = before

    def cut(self, folder: SimulatedFolder) -> None:
        """Stop the machine at this moment, in every way; call it once more at the end."""
        self.tally.cuts += 1
        pending = 0
        for fate in fates(folder, self._bounds, self._random):
            pending += 1
            self._try(fate, "power loss")
        if pending > 1:
            self._program_dies(folder)

    def forget(self) -> None:
        """Drop what is known of images: the storage itself has become another."""
        self._known.clear()

    def _program_dies(self, folder: SimulatedFolder) -> None:
        """Recover from the page cache; cut that recovery; then fail the power after it."""
        survivor = folder.after_process_crash()

        def before(call: str, _name: str) -> None:
            if call in CHANGING:
                for fate in fates(survivor, self._aftermath, self._random):
                    self.tally.served += 1
                    self._try(fate, f"program killed, then power loss before {call} of recovery")

        survivor.watch = before
        outcome = self._outcome(self._recover(survivor))
        survivor.watch = None
        self._judge(outcome, "program killed")
        if isinstance(outcome.found, str):
            return
        for fate in fates(survivor, replace(self._aftermath, states_max=256), self._random):
            self.tally.served += 1
            self.tally.states += 1
            then = self._after(fate, depth=1)
            if then is not outcome:
                self._wrong(
                    "power loss after a recovery that followed a killed program",
                    f"recovery had served {_difference(then.found, outcome.found)}",
                )

    def _try(self, fate: Fate, how: str, *, depth: int = 0) -> None:
        """Count one state and judge what recovery makes of it."""
        tally = self.tally
        tally.states += 1
        if fate.landed is Landed.PART:
            tally.torn += 1
        elif fate.landed is Landed.NONE:
            tally.lost += 1
        outcome = self._known.get(self._key(fate))
        if outcome is None:
            outcome = self._after(fate, depth)
        self._judge(outcome, how)
        unsure = self._unsure.get(self._key(fate))
        if unsure is not None:
            self._wrong(how, unsure)

    def _key(self, fate: Fate) -> int:
        """Return the key of what recovery reads of a disk."""
        if self._ignored is None:
            return fate.key
        key = fate.key
        for item in fate.files.items():
            if item[0].startswith(self._ignored):
                key ^= hash(item)
        return key

    def _after(self, fate: Fate, depth: int) -> _Outcome:
        """Return what recovery makes of a disk, recovering it if nobody has."""
        key = self._key(fate)
        outcome = self._known.get(key)
        if outcome is not None:
            return outcome
        self.tally.images += 1
        folder = SimulatedFolder(fate.image)
        if depth == 0 and self.tally.images % self._interrupt_every == 0:
            self._interrupt(fate)
        outcome = self._known[key] = self._outcome(self._recover(folder))
        if isinstance(outcome.found, str):
            return outcome
        if depth == 0:
            self._once_more(key, outcome, extremes(folder))
        return outcome

    def _once_more(self, key: int, outcome: _Outcome, disks: Iterable[Fate]) -> None:
        """Fail the power after a recovery has ended; the next one must find the same."""
        for disk in disks:
            self.tally.states += 1
            self.tally.again += 1
            then = self._after(disk, depth=1)
            if then is not outcome:
                self._unsure[key] = (
                    f"a second recovery differs: {_difference(then.found, outcome.found)}"
                )

    def _interrupt(self, fate: Fate) -> None:
        """Recover a disk and fail the power before each call of that recovery."""
        folder = SimulatedFolder(fate.image)

        def before(call: str, _name: str) -> None:
            if call in CHANGING:
                for again in fates(folder, self._aftermath, self._random):
                    self.tally.interrupted += 1
                    self._try(again, f"power loss before {call} of a recovery", depth=1)

        folder.watch = before
        outcome = self._outcome(self._recover(folder))
        folder.watch = None
        self._once_more(self._key(fate), outcome, fates(folder, self._aftermath, self._random))

    def _outcome(self, found: Recovered | str) -> _Outcome:
        key: object = found if isinstance(found, str) else frozenset(found.items())
        return self._outcomes.setdefault(key, _Outcome(found))

    def _judge(self, outcome: _Outcome, how: str) -> None:
        """Compare an outcome with the promise; remembered, as both repeat a lot."""
        promise, wrong = outcome.judged
        if promise is not self.promise:
            wrong = breach(outcome.found, self.promise)
            outcome.judged = (self.promise, wrong)
        if wrong is not None:
            self._wrong(how, wrong)

    def _wrong(self, how: str, what: str) -> None:
        self.tally.wrong += 1
        if len(self.tally.violations) < VIOLATIONS_KEPT:
            trace = "\n    ".join(self._trace[-TRACE_SHOWN:])
            self.tally.violations.append(f"{how}: {what}\n  after the calls\n    {trace}")


def breach(found: Recovered | str, promise: Promise) -> str | None:
    """Return how what was found breaks a promise, or None."""
    if isinstance(found, str):
        return f"the store does not open: {found}"
    for name, allowed in promise.items():
        state = found.get(name)
        if state not in allowed:
            return f"{name!r} is {state!r}, but must be one of {sorted(map(repr, allowed))}"
    for name in found:
        if name not in promise:
            return f"{name!r} was never stored, but is there"
    return None


def _difference(found: Recovered | str, expected: Recovered | str) -> str:
    if isinstance(found, str) or isinstance(expected, str):
        return f"{expected!r}, now {found!r}"
    changed = Counter(expected.items())
    changed.subtract(Counter(found.items()))
    names = sorted({name for (name, _), count in changed.items() if count})
    return ", ".join(
        f"{name!r} as {expected.get(name)!r}, now {found.get(name)!r}" for name in names
    )
