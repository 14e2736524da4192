"""Any program of the language comes to the same end, whatever happens to its hosts.

Programs are drawn from a grammar (grammar.py, which says what it leaves out and
why), run by one interpreter (interpreter.py), and played undisturbed and in bad
weather (play.py); the judge compares.
"""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from durabletask import Status
from tests.language.grammar import Program, first_programs
from tests.language.judge import broken, differences
from tests.language.play import ID, Asked, Blow, Played, Trouble, Verb, Weather, play

QUICK = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

_places = st.integers(0, 1_000)
_troubles = st.builds(Trouble, st.sampled_from(Blow), _places)
_troubles_many = st.lists(_troubles, min_size=1, max_size=3).map(tuple)
_troubles_few = st.lists(_troubles, max_size=2).map(tuple)
_downtimes = st.sampled_from((0.0, 5.0, 300.0))

weathers = st.builds(Weather, _troubles_many, slow=st.booleans(), downtime_s=_downtimes)
_verbs = st.builds(Asked, st.sampled_from(Verb), _places, st.integers(0, 12))
demands = st.builds(
    Weather,
    _troubles_few,
    st.lists(_verbs, min_size=1, max_size=3).map(tuple),
    slow=st.booleans(),
    downtime_s=_downtimes,
)


@pytest.fixture(autouse=True)
def _unscanned() -> Iterator[None]:
    """Keep the collector from walking through the dead again and again."""
    yield
    gc.freeze()


def none(found: list[str]) -> None:
    """Fail with what was found."""
    assert not found, "\n".join(found)


def undisturbed(program: Program, weather: Weather) -> Played:
    """Play a program without any trouble, for the comparison."""
    played = play(program, Weather(slow=weather.slow))
    assert played.problem is None, played.problem
    none(broken(played))
    ends = {each.row.status for each in played.snapshots.values()}
    assert ends <= {Status.COMPLETED, Status.FAILED}
    return played


def compare(program: Program, weather: Weather) -> None:
    """Play a program in bad weather: it comes to what it comes to undisturbed."""
    expected = undisturbed(program, weather)
    played = play(program, weather, expected)
    for blow in played.blows:
        event(blow)
    none(differences(expected, played))
    none(broken(played))


def demand(program: Program, weather: Weather) -> None:
    """Play a program of which something is asked: all that happens is legal."""
    expected = undisturbed(program, weather)
    played = play(program, weather, expected)
    for verb in played.verbs:
        event(verb)
    assert played.problem is None, played.problem
    none(broken(played, retried=Verb.RETRY in played.verbs))
    status = played.snapshots[ID].row.status
    event(status)
    if Verb.CANCEL not in played.verbs:
        assert status is not Status.CANCELLED
    if Verb.TERMINATE not in played.verbs:
        assert status is not Status.TERMINATED


@QUICK
@given(first_programs(), weathers)
def test_the_same_end_in_any_weather(program: Program, weather: Weather) -> None:
    """G1-G4 G7 G8: the same result, the same records, the same effects once each."""
    compare(program, weather)


@settings(QUICK, max_examples=200)
@given(first_programs(), demands)
def test_legal_whatever_is_asked(program: Program, weather: Weather) -> None:
    """Rules 7 8 9: cancelled, suspended, terminated, retried at any moment; legal all the same."""
    demand(program, weather)


# --- for long -------------------------------------------------------------------------------

EXAMPLES = 20_000
PORTION = 500
"""So many examples are played in a process of their own: the dead are kept until its end."""


def explore(check: Callable[[Program, Weather], None], number: int) -> None:
    """Play a portion of examples."""
    weather = weathers if check is compare else demands
    portion = settings(
        QUICK,
        max_examples=PORTION,
        derandomize=False,
        database=None,
        phases=[Phase.generate],  # to shrink a program that hangs takes longer than all the rest
    )
    run = seeded(number)(portion(given(first_programs(3), weather)(check)))
    run()


@pytest.mark.soak
@pytest.mark.parametrize("number", range(EXAMPLES // PORTION))
@pytest.mark.parametrize("check", [compare, demand])
def test_for_long(check: Callable[[Program, Weather], None], number: int) -> None:
    """G1-G4 G7 G8: as above, 20,000 programs each, and deeper ones; the number is their seed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(explore, check, number).result()
