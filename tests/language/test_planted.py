"""The machine finds mistakes: each of these is planted into the engine, and shows.

Few examples and a fixed seed, so that a find is a find for everybody.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from msgspec.structs import replace

import durabletask._children as _children
import durabletask._compensation as _compensation
from durabletask._map import Map
from durabletask._model import Claimed, Kind
from durabletask._process_waits import EventStream
from durabletask._run import Run
from durabletask._steps import StepRun
from durabletask._undos import Undos
from tests.language import grammar
from tests.language.grammar import Program
from tests.language.play import Asked, Verb, Weather
from tests.language.test_language import QUICK, compare, demand, weathers

EXAMPLES_MAX = 150

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[Program, Weather], None]


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


def race_not_recorded(patch: pytest.MonkeyPatch) -> None:
    """The winner of a race is kept in memory only."""
    record = Run.record

    async def forgetful(run: Run, checkpoint: Any, *args: Any, **more: Any) -> Any:
        if checkpoint.kind is Kind.RACE:
            return checkpoint
        return await record(run, checkpoint, *args, **more)

    patch.setattr(Run, "record", forgetful)


def undo_repeated(patch: pytest.MonkeyPatch) -> None:
    """A run that goes on undoing does not look at what is undone."""
    undone = _compensation._undone

    async def forgetful(run: Run, spot: Any) -> bool:
        run.journal.take(Kind.UNDO, *spot)
        return await undone(run, spot)

    carry_on = _compensation.carry_on

    async def all_again(run: Run, body: Any) -> Any:
        notes = run.journal.notes or {}
        for place in [each for each in notes if each[0] is Kind.UNDO]:
            del notes[place]
        return await carry_on(run, body)

    patch.setattr(_compensation, "_undone", forgetful)
    patch.setattr(_compensation, "carry_on", all_again)


def undos_in_order(patch: pytest.MonkeyPatch) -> None:
    """What was done first is undone first."""
    latest_first = Undos.latest_first
    patch.setattr(Undos, "latest_first", lambda undos: latest_first(undos)[::-1])


def child_spawned_twice(patch: pytest.MonkeyPatch) -> None:
    """The id of a child has the epoch in it, and its creation is a unit of its own."""
    derived_id, reach = _children.derived_id, _children._reach
    patch.setattr(_children, "derived_id", lambda run, key: derived_id(run, f"{key}/{run.epoch}"))

    async def apart(run: Run, checkpoint: Any, kind: Any = None, **more: Any) -> Any:
        if spawns := more.pop("spawns", None):
            await run.submit((), spawns=spawns)
        return await reach(run, checkpoint, kind, **more)

    patch.setattr(_children, "_reach", apart)


def stream_loses_its_place(patch: pytest.MonkeyPatch) -> None:
    """A loop over events begins behind those that an earlier run has had."""
    init = EventStream.__init__

    def late(stream: Any, run: Run, name: str, shape: Any) -> None:
        init(stream, run, name, shape)
        while run.journal.slots.get((name, stream._index)) is not None:
            stream._index += 1

    patch.setattr(EventStream, "__init__", late)


def item_run_again(patch: pytest.MonkeyPatch) -> None:
    """A map does not recall its last item."""
    init = Map.__init__

    def forgetful(work: Any, run: Run, key: str, *args: Any, **options: Any) -> None:
        slots: dict[Any, Any] = run.journal.slots
        items = [place for place in slots if isinstance(place, tuple) and place[0] == key]
        if items:
            del slots[max(items)]
        init(work, run, key, *args, **options)

    patch.setattr(Map, "__init__", forgetful)


def attempts_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A resumed run does not know of the attempts before."""
    patch.setattr(StepRun, "_recorded_note", lambda _: None)


def result_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A resumed run does not have the last step that was recorded."""
    init = Run.__init__

    def forgetful(run: Run, services: Any, claimed: Claimed, retry: Any) -> None:
        kept = claimed.checkpoints
        if kept and kept[-1].kind is Kind.DO:
            claimed = replace(claimed, checkpoints=kept[:-1])
        init(run, services, claimed, retry)

    patch.setattr(Run, "__init__", forgetful)


def cancel_met_twice(patch: pytest.MonkeyPatch) -> None:
    """A run that is claimed anew takes a request for one that is still to be met."""
    init = Run.__init__

    def eager(run: Run, services: Any, claimed: Claimed, retry: Any) -> None:
        init(run, services, claimed, retry)
        if claimed.row.cancel_reason is not None:
            run.cancel(claimed.row.cancel_reason)

    patch.setattr(Run, "__init__", eager)


def of(*nodes: st.SearchStrategy[grammar.Node]) -> st.SearchStrategy[Program]:
    """Return a strategy for short programs of a few kinds of calls."""
    body = st.lists(st.one_of(nodes), min_size=2, max_size=4).map(tuple)
    return st.builds(Program, st.tuples(body))


_do = st.builds(grammar.Do)
_event = st.builds(grammar.Event, st.just("later"), st.just(30.0))
_undone = st.builds(grammar.Do, undo=st.just("works"))
_retried = st.builds(grammar.Do, st.just(2), st.just(3))
_early = st.builds(grammar.Event, st.just("early"))
_stream = st.builds(grammar.Stream, st.integers(2, 3), st.just("early"))
_map = st.builds(grammar.Map, st.integers(2, 4))
_child = st.builds(grammar.Child, of(_do))
_undoing = st.tuples(_undone, _undone, st.builds(grammar.Fail))
_handled = st.builds(grammar.Try, st.tuples(_event), st.tuples(_event))

PLANTED: dict[str, tuple[Plant, Check, st.SearchStrategy[Program]]] = {
    plant.__name__: (plant, check, programs)
    for plant, check, programs in (
        (race_not_recorded, compare, of(st.builds(grammar.Race, _early), _do)),
        (undo_repeated, compare, st.builds(Program, st.tuples(_undoing))),
        (undos_in_order, compare, st.builds(Program, st.tuples(_undoing))),
        (child_spawned_twice, compare, of(_child, _do)),
        (stream_loses_its_place, compare, of(_stream, _do)),
        (item_run_again, compare, of(_map, _do)),
        (attempts_forgotten, compare, of(_retried)),
        (result_forgotten, compare, of(_do, _event)),
        (cancel_met_twice, demand, st.builds(Program, st.tuples(st.tuples(_handled, _event)))),
    )
}


_cancels = st.builds(
    Weather,
    weathers.map(lambda weather: weather.troubles),
    st.builds(Asked, st.just(Verb.CANCEL), st.integers(0, 300)).map(lambda asked: (asked,)),
)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1-G4 G8: what the promises forbid is seen by the machine."""
    plant, check, programs = PLANTED[name]
    few = settings(
        QUICK, max_examples=EXAMPLES_MAX, derandomize=False, database=None, phases=[Phase.generate]
    )
    run = few(given(programs, weathers if check is compare else _cancels)(check))
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        seeded(7)(run)()


def test_without_a_mistake_nothing_is_found() -> None:
    """The programs that the mistakes are looked for with are right themselves."""
    for _, check, programs in PLANTED.values():
        few = settings(
            QUICK, max_examples=10, derandomize=False, database=None, phases=[Phase.generate]
        )
        run = few(given(programs, weathers if check is compare else _cancels)(check))
        seeded(7)(run)()
