"""What the next call on a key must do: recall, run, or be refused.

Pure: no await, no clock, no storage. A journal holds what earlier runs
recorded; each entry is given out once and then forgotten, so a process that
has caught up costs no more memory than the names of its keys.
"""

from collections.abc import Iterable, Iterator

from durabletask._errors import KeyConflictError, NonDeterminismError
from durabletask._model import NO_INDEX, Checkpoint, Kind

_OWN_SPACE = frozenset(
    {
        Kind.WAIT,
        Kind.RETRY,
        Kind.OVERTAKEN,
        Kind.START,
        Kind.UNDO,
        Kind.DECISION,
        Kind.REPORT,
        Kind.HEARTBEAT,
    }
)

# What the engine noted about a key before there was an outcome says what kind of call it was.
_NOTED_BY = {
    Kind.WAIT: frozenset({Kind.DELAY, Kind.EVENT, Kind.RACE, Kind.TIMEOUT, Kind.CALL}),
    Kind.RETRY: frozenset({Kind.DO, Kind.GET, Kind.TRANSACTION}),
    Kind.START: frozenset({Kind.DO}),
}

_ON_THE_WAY = frozenset({Kind.WAIT, Kind.RETRY, Kind.START, Kind.HEARTBEAT})

# The key alone where there is no index: nearly always, and a string costs less than a tuple.
_Slot = str | tuple[str, int]


class Journal:
    """The record of one process, as one run asks for it."""

    __slots__ = ("_recorded", "notes", "slots", "unasked")

    def __init__(self, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self.slots: dict[_Slot, Checkpoint | None] = {}
        """Every key recorded or in use; None marks one that this run has used."""
        self.notes: dict[tuple[Kind, str, int], Checkpoint] | None = None
        """What the engine itself recorded; None where there is nothing, as in most first runs."""
        self.unasked = 0
        for checkpoint in checkpoints:
            if checkpoint.kind in _OWN_SPACE:
                if self.notes is None:
                    self.notes = {}
                self.notes[checkpoint.kind, checkpoint.key, checkpoint.index] = checkpoint
            else:
                self.slots[_slot(checkpoint.key, checkpoint.index)] = checkpoint
                self.unasked += 1
        self._recorded = len(self.slots)
        if self.notes is not None:
            self._drop_settled(self.notes)

    @property
    def recalling(self) -> bool:
        """Whether every call so far was recorded, and some that are have not been made."""
        return self.unasked > 0 and len(self.slots) == self._recorded

    def add(self, checkpoint: Checkpoint) -> None:
        """Take in what this run records for a call that it has yet to get to."""
        self.slots[_slot(checkpoint.key, checkpoint.index)] = checkpoint
        self.unasked += 1
        self._recorded += 1

    def ask(self, kind: Kind, key: str, index: int = NO_INDEX) -> Checkpoint | None:
        """Return what is recorded under a key, or None if the call is to run now.

        Raises:
            KeyConflictError: This run has asked for the key before.
            NonDeterminismError: It is recorded as a call of another kind.
        """
        slots = self.slots
        slot: _Slot = key if index == NO_INDEX else (key, index)
        if slot not in slots:
            if self.notes:
                self._check_notes(kind, key, index)
            slots[slot] = None
            return None
        held = slots[slot]
        if held is None:
            raise KeyConflictError(
                f"key {key!r} was used twice in one run, the second time by {kind.value}",
                hint='give each call its own key, for example f"ship/{item.id}"',
            )
        if held.kind is not kind:
            raise NonDeterminismError(
                f"key {key!r} is recorded as {held.kind.value}; the code now asks for {kind.value}",
                hint="give the new call a new key, or bring the old code back",
            )
        slots[slot] = None
        self.unasked -= 1
        return held

    def _drop_settled(self, notes: dict[tuple[Kind, str, int], Checkpoint]) -> None:
        """Forget what was noted of calls on their way to an outcome that is recorded by now.

        Not once the process is being undone: the notes of an undo have the place of its step's.
        """
        if any(kind is Kind.DECISION for kind, _, _ in notes):
            return
        for kind, key, index in list(notes):
            if kind in _ON_THE_WAY and _slot(key, index) in self.slots:
                del notes[kind, key, index]
        if not notes:
            self.notes = None

    def _check_notes(self, kind: Kind, key: str, index: int) -> None:
        for noted, kinds in _NOTED_BY.items():
            if self.notes and (noted, key, index) in self.notes and kind not in kinds:
                raise NonDeterminismError(
                    f"a {noted.value} is recorded under key {key!r}, which {kind.value} never "
                    f"makes; the code now asks for {kind.value}",
                    hint="give the new call a new key, or bring the old code back",
                )

    def use_up(self, key: str, index: int) -> None:
        """Take note that another call has taken what this one would return."""
        slot = _slot(key, index)
        if slot not in self.slots:
            self.slots[slot] = None
            self._recorded += 1  # neither a new call nor one that is recorded

    def is_used_up(self, key: str, index: int) -> bool:
        """Return whether this run has taken what the call returns, by itself or otherwise."""
        return self.slots.get(_slot(key, index), self) is None

    def is_new(self, key: str, index: int = NO_INDEX) -> bool:
        """Return whether a key is neither recorded nor used by this run."""
        return _slot(key, index) not in self.slots

    def find(self, kind: Kind, key: str, index: int = NO_INDEX) -> Checkpoint | None:
        """Return what the engine itself recorded about a key, if anything."""
        return None if self.notes is None else self.notes.get((kind, key, index))

    def has_begun(self, key: str, index: int = NO_INDEX) -> bool:
        """Return whether an earlier run noted that a wait began, and this run has not taken it."""
        return self.notes is not None and (Kind.WAIT, key, index) in self.notes

    def take(self, kind: Kind, key: str, index: int = NO_INDEX) -> Checkpoint | None:
        """Return and forget what the engine itself recorded about a key, if anything."""
        if self.notes is None:
            return None
        return self.notes.pop((kind, key, index), None)

    def was_asked(self, held: Checkpoint) -> bool:
        """Return whether this run has asked for what is recorded."""
        return self.slots.get(_slot(held.key, held.index)) is None

    def never_asked(self) -> Iterator[Checkpoint]:
        """Yield the recorded calls that this run has not asked for."""
        return (held for held in self.slots.values() if held is not None)


def _slot(key: str, index: int) -> _Slot:
    return key if index == NO_INDEX else (key, index)
