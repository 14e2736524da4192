"""A race: the first of several waits, with all that it takes and decides in one record.

Its branches are waits that never begin. Refuses to know what they wait for
beyond an event in the mailbox and a due time (`_branch`).
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, cast

import msgspec

import durabletask._waits as _waits
from durabletask._branch import Branch, Branches, Won
from durabletask._culprits import mark
from durabletask._durable_call import DurableCall, DurableWait
from durabletask._errors import InvalidArgumentError, KeyConflictError, NonDeterminismError
from durabletask._mailbox import name_of
from durabletask._model import NO_INDEX, Checkpoint, Event, Form, Kind
from durabletask._notes import RESULT, BranchNote, RaceNote, WaitNote, encode
from durabletask._run import Run

T = TypeVar("T")

BRANCHES_MAX = 1_000
"""All of them are looked at whenever the race wakes up, and stand in one note."""


@dataclass(frozen=True, slots=True, eq=False)
class RaceResult:
    """Which branch of a race was first, and what came of it.

    Attributes:
        winner: The key of the branch that won.
        index: Its place among the branches, from 0.
    """

    winner: str
    index: int
    _branches: tuple[DurableWait[Any], ...] = field(repr=False)
    _outcome: Callable[[], Any] = field(repr=False)

    def won(self, branch: DurableWait[Any]) -> bool:
        """Return whether this branch was first.

        Raises:
            InvalidArgumentError: It is no branch of this race.
        """
        if not any(each is branch for each in self._branches):
            raise InvalidArgumentError(
                f"{branch!r} is no branch of this race",
                hint="keep the object that was given to proc.race, and ask with that one",
            )
        return self._branches[self.index] is branch

    def of(self, branch: DurableWait[T]) -> T:
        """Return what came of the branch that won, as awaiting it would have.

        Raises:
            InvalidArgumentError: Another branch won, or it is no branch of this race.
            Exception: What the branch failed with, if it did.
        """
        if not self.won(branch):
            raise InvalidArgumentError(
                f"{branch!r} has no outcome: {self._branches[self.index]!r} was first",
                hint="ask result.won(branch) first",
            )
        return cast("T", self._outcome())


@dataclass(frozen=True, slots=True, eq=False)
class _Leaf:
    """A branch that is no race, with the calls around it, outermost first, and itself."""

    calls: tuple[DurableWait[Any], ...]
    places: tuple[int, ...]
    branch: Branch

    @property
    def kind(self) -> Kind:
        return self.calls[-1].kind

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(call.key for call in self.calls)


def checked(run: Run, key: str, calls: Sequence[object]) -> tuple[DurableWait[Any], ...]:
    """Return the branches of a race, which nobody can await any more.

    Raises:
        InvalidArgumentError: There are none, or too many, or one cannot be a branch.
    """
    refusal = _refusal(run, calls)
    for call in calls:
        # Never to be awaited, and not to be missed either: or Python would warn.
        if isinstance(call, DurableCall) and not (isinstance(call, DurableWait) and call.has_begun):
            call.close()
    if refusal is not None:
        raise InvalidArgumentError(f"race {key!r} {refusal[0]}", hint=refusal[1])
    return tuple(call for call in calls if isinstance(call, DurableWait))


def _refusal(run: Run, calls: Sequence[object]) -> tuple[str, str] | None:
    """Return what is wrong with the branches, and the hint; None if they will do."""
    if not 0 < len(calls) <= BRANCHES_MAX:
        return f"has {len(calls):,} branches", f"1 to {BRANCHES_MAX:,}"
    for call in calls:
        if isinstance(call, DurableCall) and not isinstance(call, DurableWait):
            return (
                f"cannot have {call!r} as a branch, since a step runs and cannot be taken back",
                "race events, delays, children and races; or run steps with asyncio.gather",
            )
        if not isinstance(call, DurableWait):
            return (
                f"cannot have {type(call).__name__} as a branch",
                "give it the durable calls themselves: proc.event(…), proc.delay(…)",
            )
        if call.has_begun:
            return (
                f"cannot have {call!r} as a branch, since it was used before",
                "make each branch in the call of proc.race, and await none of them",
            )
        if call.branch.run is not run:
            return f"cannot have {call!r} of another process as a branch", "use your own `proc`"
        if call.branch.refusal is not None:
            return f"cannot have {call!r} as a branch", call.branch.refusal
    return None


async def race(run: Run, key: str, calls: tuple[DurableWait[Any], ...]) -> RaceResult:
    """Wait for the first of several branches; see `Process.race`."""
    if run.gated:
        await run.pass_gate(Kind.RACE, key)
    held = run.ask(Kind.RACE, key)
    _check_keys(run, key, calls)
    leaves = tuple(_leaves(calls))
    if held is None:
        held = await _decide(run, key, leaves)
    else:
        await run.recall(held)
    return _result(run, held, calls, leaves)


async def _decide(run: Run, key: str, leaves: tuple[_Leaf, ...]) -> Checkpoint:
    """Wait until a branch has won, and record that with all that belongs to it."""
    noted = _waits.recorded_wait(run, key, NO_INDEX)
    plan = _plan(run, key, leaves, noted)
    won = _look(run, plan, noted is not None)
    names = tuple(
        dict.fromkeys(leaf.branch.event_name for leaf in leaves if leaf.branch.event_name)
    )
    note = _note(key, plan, noted)
    while won is None:
        due_at = min((due for due in plan.values() if due is not None), default=None)
        waiter = _waits.in_line(run, names, due_at)
        run.wait_begins(due_at, waiter, note)
        note = None
        try:
            event = await waiter
        except asyncio.CancelledError:
            _step_out(run, names, waiter)
            for name in names[:1]:
                run.mailbox.leave(name, waiter)
            run.wait_broken(waiter)
            await run.record_cancelled(Kind.RACE, key, NO_INDEX)
            raise
        run.wait_ended(waiter)
        _step_out(run, names, waiter)
        won = _look(run, plan, noted is not None, event)
    leaf, how = won
    outcome = leaf.branch.seal(leaf.path[-1], how)
    payload = encode(RaceNote(leaf.path, leaf.kind, msgspec.Raw(outcome)))
    consumes = () if how.event is None else (how.event.position,)
    return await run.record(Checkpoint(Kind.RACE, key, NO_INDEX, Form.VALUE, payload), consumes)


def _step_out(run: Run, names: Iterable[str], waiter: "asyncio.Future[Event | None]") -> None:
    for name in names:
        run.mailbox.step_out(name, waiter)


_Plan = dict[_Leaf, datetime | None]
"""The branches in order, with their due times."""


def _look(
    run: Run, plan: _Plan, resumed: bool, handed: Event | None = None
) -> tuple[_Leaf, Won] | None:
    """Return the first branch, in order, that is over now; what it takes leaves the mailbox.

    Args:
        resumed: Whether the wait began in an earlier run.
        handed: The event that ended the wait in line; given back if another branch wins.
    """
    now = run.services.now()
    for leaf, due_at in plan.items():
        name = leaf.branch.event_name
        event = None
        if name:
            event = handed if handed and name_of(handed) == name else run.mailbox.take(name)
        if event is None and (due_at is None or due_at > now):
            continue
        if handed is not None and event is not handed:
            run.mailbox.give_back(handed)
        begun_at = run.begun_at
        late = resumed and due_at is not None and begun_at is not None and due_at < begun_at
        return leaf, Won(event, due_at, late)
    return None


def _plan(run: Run, key: str, leaves: Sequence[_Leaf], noted: WaitNote | None) -> _Plan:
    """Return when each branch is due: as recorded, and from now on for one that is new."""
    if noted is not None and noted.kind is not Kind.RACE:
        raise _waits.changed(run, key, "a race", _waits.described(noted))
    before = {(each.path, each.kind): each.due_at for each in noted.branches} if noted else {}
    plan: _Plan = {}
    for leaf in leaves:
        slot = leaf.path, leaf.kind
        plan[leaf] = before[slot] if slot in before else leaf.branch.due_at()
    return plan


def _note(key: str, plan: _Plan, noted: WaitNote | None) -> Checkpoint | None:
    """Return the record that the wait begins, if it is not recorded like that already."""
    branches = tuple(
        BranchNote(leaf.path, leaf.kind, leaf.branch.event_name, due_at)
        for leaf, due_at in plan.items()
    )
    if noted is not None and noted.branches == branches:
        return None
    due_at = min((due for due in plan.values() if due is not None), default=None)
    note = WaitNote(due_at=due_at, kind=Kind.RACE, branches=branches)
    # It replaces: code with one more delay fixes the due time of that one too.
    return Checkpoint(Kind.WAIT, key, NO_INDEX, Form.VALUE, encode(note), replaces=True)


def _leaves(
    calls: Sequence[DurableWait[Any]],
    around: tuple[DurableWait[Any], ...] = (),
    places: tuple[int, ...] = (),
) -> Iterator[_Leaf]:
    for place, call in enumerate(calls):
        if isinstance(call.branch, Branches):
            yield from _leaves(call.branch.calls, (*around, call), (*places, place))
        else:
            yield _Leaf((*around, call), (*places, place), call.branch)


def _check_keys(run: Run, key: str, calls: Sequence[DurableWait[Any]]) -> None:
    seen: set[str] = set()
    for call in calls:
        if call.key in seen:
            raise run.quarantine(
                KeyConflictError(
                    f"two branches of race {key!r} have the key {call.key!r}",
                    hint="give each branch its own key: proc.event(name, key=…)",
                )
            )
        seen.add(call.key)
        if isinstance(call.branch, Branches):
            _check_keys(run, call.key, call.branch.calls)


def _result(
    run: Run, held: Checkpoint, calls: tuple[DurableWait[Any], ...], leaves: Sequence[_Leaf]
) -> RaceResult:
    if held.form is not Form.VALUE:
        run.unseal(held, run.services.any_shape)
    note = _waits.decode_note(run, held, RaceNote)
    for leaf in leaves:
        if (leaf.path, leaf.kind) == (note.path, note.kind):
            if leaf.kind is Kind.CALL:
                # The child has no other end: who awaits it again would wait for ever.
                run.journal.use_up(leaf.path[-1], RESULT)
            return _nested(held, calls, leaf, bytes(note.outcome))
    raise run.quarantine(
        NonDeterminismError(
            f"race {held.key!r} is recorded as won by {note.kind.value} {'/'.join(note.path)!r}, "
            "which is no branch of it any more",
            hint="bring the branch back, or give the race a new key",
        )
    )


def _nested(
    held: Checkpoint, calls: tuple[DurableWait[Any], ...], leaf: _Leaf, outcome: bytes
) -> RaceResult:
    """Return the result of the outermost race, with those of the nested ones in it."""
    sides = [calls]
    sides += [cast("Branches", call.branch).calls for call in leaf.calls[:-1]]

    def came_of() -> Any:
        try:
            return leaf.branch.unseal(leaf.path[-1], outcome)
        except Exception as error:
            mark(error, held)
            raise

    result = RaceResult(leaf.path[-1], leaf.places[-1], sides[-1], came_of)
    for depth in range(len(sides) - 2, -1, -1):
        inner = result
        result = RaceResult(
            leaf.path[depth],
            leaf.places[depth],
            sides[depth],
            lambda inner=inner: inner,  # type: ignore[misc]
        )
    return result
