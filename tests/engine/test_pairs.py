"""Every verb with every other one: dead at every storage call, cancelled at every await.

The processes are generated (`verbs.py`): 19 verbs are 190 pairs, one after the other and side by
side. Deaths before and after each storage call: 4,106 in turn, 3,666 side by side. Requests to
cancel at each turn of the event loop, and so at each await: 13,159 in turn, 12,238 side by side;
and the death of the host as it is met. `make test` takes all deaths in turn and every fourth one
side by side, every fifth turn in turn and every sixteenth side by side, beginning at another
place with each pair; the soak takes all. On a folder each verb stands in two pairs, dead at every
call.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import pytest

from durabletask import Status
from durabletask.storage import Form, Kind
from tests.crash.on_disk import OnDisk
from tests.crash.scenarios import Scenario as OnFolder
from tests.crash.scenarios import alone, search
from tests.crash.world import World
from tests.engine.moments import (
    Played,
    Plot,
    Scenario,
    Stage,
    cancel,
    cancelled_marks,
    meets,
    play,
)
from tests.engine.verbs import (
    PAIRS,
    VERBS,
    Verb,
    in_turn,
    once,
    side_by_side,
    transaction,
)

Compose = Callable[[Verb, Verb, Stage], Scenario]
Make = Callable[[Stage], Scenario]
Record = tuple[str, str, int, str]

every_verb = pytest.mark.parametrize("first", VERBS)


def thinned(*shares: tuple[Compose, int]) -> pytest.MarkDecorator:
    """Return a parametrization: how a pair stands, and every how many places; all in the soak."""
    places = [pytest.param(each, share) for each, share in shares]
    places += [pytest.param(each, 1, marks=pytest.mark.soak) for each, share in shares if share > 1]
    return pytest.mark.parametrize(("compose", "share"), places)


def pairs(first: Verb) -> Iterator[tuple[int, Verb, Verb, str]]:
    """Yield the pairs with a verb: their number, and what to call each."""
    for number, (one, two) in enumerate(PAIRS):
        if one is first:
            yield number, one, two, f"{one.__name__} and {two.__name__}"


def recorded(played: Played) -> set[Record]:
    """Return what is recorded; a step that runs at most once may have failed by a death."""
    return {
        (kind, key, index, "any" if "once" in key else form)
        for kind, key, index, form in played.recorded()
    }


# --- the judge ----------------------------------------------------------------------------------


def assert_nothing_repeated(expected: Played, played: Played, about: str) -> None:
    """What is recorded ran once; all else once more for a death; no child, no row twice."""
    assert played.snapshots.keys() <= expected.snapshots.keys(), about
    assert {key: played.effects[key] for key in played.kept} == played.kept, about
    for name, count in played.effects.items():
        if not name.startswith("undo of"):
            assert count <= expected.effects[name] + played.died, (about, name)
    rows = [key for kind, key, _, form in played.recorded() if (kind, form) == WRITTEN]
    assert sorted(played.table) == sorted(key.replace("transaction", "row") for key in rows), about


WRITTEN = (Kind.TRANSACTION.value, Form.VALUE.value)
UNDOING = (Kind.UNDO.value, Kind.DECISION.value)


def assert_cancelled_legally(expected: Played, played: Played, about: str) -> None:
    """It is met once, and nothing new comes but what undoes; or not at all: nothing is undone."""
    row = played.snapshots["p"].row
    assert len(cancelled_marks(played)) == row.cancel_met, about
    assert_nothing_repeated(expected, played, about)
    undone = {name: count for name, count in played.effects.items() if name.startswith("undo of")}
    if not row.cancel_met:
        assert played.came_to() == expected.came_to(), (about, played.came_to())
        assert recorded(played) == recorded(expected), about
        assert not undone, about
        return
    assert row.status is Status.CANCELLED, (about, played.came_to())
    met = {
        (each.kind.value, each.key, each.index)
        for each in played.checkpoints()
        if (each.epoch, each.seq) in cancelled_marks(played)
    }
    new = {each for each in recorded(played) if each[0] not in UNDOING and each[:3] not in met}
    assert new <= recorded(expected), (about, new - recorded(expected))
    done = [key for kind, key, _, form in new if key.endswith("undoable") and form == "value"]
    assert set(undone) == {f"undo of {key}" for key in done}, (about, undone)
    assert all(count <= 1 + played.died for count in undone.values()), (about, undone)
    for process_id, snapshot in played.snapshots.items():
        assert snapshot.row.status in (Status.COMPLETED, Status.CANCELLED), (about, process_id)


# --- dead, and cancelled ------------------------------------------------------------------------


@thinned((in_turn, 1), (side_by_side, 4))
@every_verb
def test_dead_at_every_call(first: Verb, compose: Compose, share: int) -> None:
    """S1.05 (rules 1, 2; F024): the same result and records; what is recorded ran once."""
    cases = 0
    for number, one, two, names in pairs(first):
        make = partial(compose, one, two)
        expected = play(make, Plot())
        assert expected.status() is Status.COMPLETED, (names, expected.came_to())
        points = [(call, done) for call in range(1, expected.calls + 1) for done in (False, True)]
        for call, done in islice(points, number % share, None, share):
            about = f"{names}, call {call}, {done}"
            played = play(make, Plot(dies_at=(call, done)))
            assert played.died or call == expected.calls, about  # it may have come to its end
            assert played.came_to() == expected.came_to(), about
            assert recorded(played) == recorded(expected), about
            assert_nothing_repeated(expected, played, about)
            cases += 1
    print(f"{cases} deaths")


@thinned((in_turn, 5), (side_by_side, 16))
@every_verb
def test_cancelled_at_every_await(first: Verb, compose: Compose, share: int) -> None:
    """S1.09 (rules 2, 7): met once or not at all; the same where the host dies as it is met."""
    cases: Counter[str] = Counter()
    for number, one, two, names in pairs(first):
        make = partial(compose, one, two)
        expected = play(make, Plot())
        for place, turn in enumerate(range(1 + number % share, expected.turns + 1, share)):
            about = f"{names}, turn {turn}"
            played = play(make, Plot(turn, cancel))
            assert_cancelled_legally(expected, played, about)
            row = played.snapshots["p"].row
            cases[row.status] += 1
            if not row.cancel_met or (share > 1 and (number + place) % 4):
                continue
            again = play(make, Plot(turn, cancel, dies=meets))
            assert_cancelled_legally(expected, again, about)
            assert again.status() is row.status, (about, again.came_to())
            # Side by side more may be recorded by the time of the death; or it was at its end.
            if compose is in_turn or not again.died:
                assert again.came_to() == played.came_to(), about
                assert recorded(again) == recorded(played), about
            cases["dead"] += again.died
    print(dict(cases))
    assert cases[Status.CANCELLED] >= cases["dead"]
    # Two transactions are over before the host hears of the request.
    assert cases[Status.CANCELLED] > 0 or first is transaction


# --- on a folder --------------------------------------------------------------------------------

FOLDED = tuple(verb for verb in VERBS if verb not in (once, transaction))
"""A death tells in a step that runs at most once; a folder has no transactions of its users."""


class _Acting(Stage):
    """A stage whose effects a world notes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def act(self, name: str, seconds: float = 0.0) -> str:
        return await self._world.effect(name)


@pytest.mark.parametrize("first", FOLDED)
def test_dead_at_every_call_on_a_folder(first: Verb) -> None:
    """S1.05, S3.02 (rules 1, 2; F001-F003): over files: dead before and after each call."""
    place = FOLDED.index(first)
    second = FOLDED[(place + 5) % len(FOLDED)]
    compose = side_by_side if place % 2 else in_turn

    def make(world: World) -> OnFolder:
        scenario = compose(first, second, _Acting(world))
        return OnFolder(scenario.fns, alone(scenario.fns[0], events=scenario.events).main)

    report = search(make, survivor=OnDisk).run()
    report.check()
    assert report.deaths >= 10
