"""Cancelled from outside: once, durably, at every moment of every kind of durable call."""

from functools import partial

import msgspec
import pytest

from durabletask import Status
from tests.engine.bodies import BODIES, SIDE_BY_SIDE, scenario
from tests.engine.moments import (
    Played,
    Plot,
    cancel,
    cancelled_marks,
    every_turn,
    meets,
    play,
)


def assert_legal(played: Played, style: str, about: str) -> None:
    row = played.snapshots["p"].row
    came = played.came_to()
    assert row.status in (Status.CANCELLED, Status.COMPLETED), (about, row.status, came)
    assert len(cancelled_marks(played)) == row.cancel_met, (about, cancelled_marks(played))
    ending = row.ending
    assert ending is not None
    if not row.cancel_met:
        assert row.epoch == 0 or msgspec.json.decode(ending.payload) == "done", (about, came)
    elif style == "caught":
        assert msgspec.json.decode(ending.payload) == "caught", (about, came)
    else:
        assert row.status is Status.CANCELLED, (about, came)
        assert b"enough" in ending.payload
    if style == "rolls back" and row.cancel_met:
        assert ("do", "rollback", -1, "value") in played.recorded(), about


@pytest.mark.parametrize("style", ["through", "caught", "rolls back"])
@pytest.mark.parametrize("name", BODIES)
def test_cancelled_at_every_turn(name: str, style: str) -> None:
    """S1.09 (rule 7): whenever it comes: met once, in one unit, and each step ran once."""
    make = partial(scenario, BODIES[name], style)
    for turn in every_turn(make, 1 if style == "caught" else 4):
        about = f"{name}, {style}, turn {turn}"
        played = play(make, Plot(turn, cancel))
        assert_legal(played, style, about)
        assert name == "retried" or max(played.effects.values(), default=0) <= 1, about


@pytest.mark.parametrize("style", ["through", "caught", "rolls back"])
@pytest.mark.parametrize("name", BODIES)
def test_cancelled_and_resumed(name: str, style: str) -> None:
    """S1.09 (rules 2, 7): the host dies when it is met: the next one comes to the same end."""
    make = partial(scenario, BODIES[name], style)
    for turn in every_turn(make, 7):
        about = f"{name}, {style}, turn {turn}"
        once = play(make, Plot(turn, cancel))
        again = play(make, Plot(turn, cancel, dies=meets))
        assert again.died == once.snapshots["p"].row.cancel_met, about
        assert again.came_to() == once.came_to(), about
        assert cancelled_marks(again) == cancelled_marks(once), about
        if name not in SIDE_BY_SIDE:
            assert again.recorded() == once.recorded(), about


@pytest.mark.parametrize("style", ["through", "caught"])
@pytest.mark.parametrize("name", BODIES)
def test_cancelled_while_its_host_dies(name: str, style: str) -> None:
    """S1.09 (rule 7): the host dies before it hears of the request: the next one meets it."""
    make = partial(scenario, BODIES[name], style)
    for turn in every_turn(make, 7):
        played = play(make, Plot(turn, cancel, dies_then=True))
        assert_legal(played, style, f"{name}, {style}, turn {turn}")
