"""The checker is checked: what requests, retries, restarts and children may do, and may not.

Each bad history is reported by the function that is named with it, and by no other.
"""

from typing import Any

import pytest

from durabletask.storage import Action, Checkpoint, Ending, Form, Kind, Status
from durabletask.testing._history_facts import Facts
from durabletask.testing.history import INVARIANTS
from tests.chaos.handmade import FAIL, FINISH, INFO, SILENT, Story, child, held, sent

LATE = "process belongs to another host, epoch or incarnation"
FAILED = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')
TERMINATED = Ending(Status.TERMINATED, Form.ERROR, b'{"type":"T"}')


def begun() -> Story:
    """Tell of a process that a first host has taken."""
    return Story().created().taken(1)


def step(key: str, payload: bytes = b'"v"', **fields: Any) -> Checkpoint:
    return held(key, payload, **fields)


def failed() -> Story:
    """Tell of a process that did a step, and failed with another."""
    return (
        begun()
        .ran("a")
        .wrote(1, 1, step("a"))
        .ran("b")
        .wrote(1, 2, step("b", b'"1"'))
        .wrote(1, 3, ending=FAILED)
    )


def retried(**options: Any) -> Story:
    """Tell of a retry of it that forgets what failed."""
    return failed().asked(Action.RETRY, forgets=("b",), **options)


def restarted(**options: Any) -> Story:
    """Tell of a process that did a step and restarted."""
    return begun().ran("a").wrote(1, 1, step("a", b'"1"')).wrote(1, 2, restart=b"[2]", **options)


def spawned(**options: Any) -> Story:
    """Tell of a process that has spawned a child."""
    return begun().wrote(1, 1, spawns=(child(),), **options)


GOOD: dict[str, Story] = {
    "cancelled, and met": begun()
    .asked(Action.CANCEL)
    .asked(Action.CANCEL, "again")
    .wrote(1, 1, meets_cancel=True)
    .wrote(1, 2, ending=FINISH),
    "cancelled, and the answer is lost": begun().asked(Action.CANCEL, answer=INFO),
    "a request that was refused": begun()
    .wrote(1, 1, ending=FINISH)
    .asked(Action.CANCEL, answer=FAIL, stored=False),
    "suspended and resumed": begun()
    .asked(Action.SUSPEND)
    .asked(Action.RESUME, "r2")
    .wrote(1, 1, ending=FINISH),
    "terminated, and let go": begun()
    .ran("a")
    .asked(Action.TERMINATE, ending=TERMINATED)
    .wrote(1, 1, step("a"), answer=FAIL, why="process has finished", stored=False)
    .wrote(1, 2, left=True),
    "a step is recorded while its end is on its way": begun()
    .ran("a")
    .asked(Action.TERMINATE, ending=TERMINATED, answer=SILENT)
    .wrote(1, 1, step("a")),
    "retried, and what was forgotten runs again": retried()
    .taken(3, "h3")
    .ran("b", 3)
    .wrote(3, 1, step("b", b'"2"'), ending=FINISH),
    "retried twice under one id": failed()
    .asked(Action.RETRY, forgets=("b",), answer=INFO)
    .asked(Action.RETRY, forgets=("b",), stored=False, answer=INFO)
    .taken(3, "h3")
    .ran("b", 3)
    .wrote(3, 1, step("b", b'"2"'), ending=FINISH),
    "a retry that may have been made, and was not": failed().asked(
        Action.RETRY, forgets=("b",), answer=INFO, stored=False
    ),
    "a retry gives an event back": begun()
    .raised("e1", 1)
    .wrote(1, 1, consumes=(1,))
    .wrote(1, 2, ending=FAILED)
    .asked(Action.RETRY, restores=(1,))
    .taken(3, "h3")
    .wrote(3, 1, consumes=(1,)),
    "restarted, and the key is used again": restarted()
    .wrote(1, 3, left=True)
    .taken(2, "h2")
    .ran("a", 2, generation=1)
    .wrote(2, 1, step("a", b'"2"')),
    "restarted, and the answer is lost": restarted(answer=INFO),
    "a restart is on its way, and was not made": restarted(answer=INFO, stored=False),
    "restarted, and created again": restarted().created("c2", digest=""),
    "a child that ends": spawned().over("c1", FINISH).told(1, FINISH),
    "a child that ends when its parent is over": spawned()
    .wrote(1, 2, ending=FINISH)
    .over("c1", FINISH),
    "a child of the generation before": spawned().wrote(1, 2, restart=b"[2]").over("c1", FINISH),
    "a child that was terminated with its parent": spawned()
    .asked(Action.TERMINATE, ending=TERMINATED)
    .beside("c1", status=Status.TERMINATED, ending=TERMINATED),
    "a child that was cancelled with its parent": spawned()
    .asked(Action.CANCEL)
    .beside("c1", cancel_reason=b'"why"'),
    "a spawn that was not": spawned(answer=INFO, stored=False),
    "two calls of one child, and the second refused": spawned()
    .wrote(1, 2, spawns=(child(),), answer=FAIL, why="other origin", stored=False)
    .beside("c1"),
    "a step that beats": begun()
    .wrote(1, 1, step("a", b"1", kind=Kind.HEARTBEAT, replaces=True))
    .ran("a")
    .wrote(1, 2, step("a")),
    "an event to a child": spawned(sends=(sent("e1"),)).beside("c1", "e1"),
}

BAD: dict[str, tuple[str, str, Story]] = {
    "an acknowledged cancel is lost": (
        "requests_are_kept",
        "I1",
        begun().asked(Action.CANCEL, stored=False),
    ),
    "an acknowledged suspension is lost": (
        "requests_are_kept",
        "I1",
        begun().asked(Action.SUSPEND, stored=False),
    ),
    "an acknowledged retry is lost": (
        "requests_are_kept",
        "I1",
        failed().asked(Action.RETRY, stored=False),
    ),
    "an acknowledged restart is lost": (
        "requests_are_kept",
        "I1",
        begun().wrote(1, 1, restart=b"[2]", stored=False),
    ),
    "what was put aside is lost": (
        "acknowledged_is_kept",
        "I1",
        retried().forget_for_good("b"),
    ),
    "cancelled by nobody": ("requests_were_made", "I2", begun().having(cancel_reason=b'"why"')),
    "cancelled for another reason": (
        "requests_were_made",
        "I2",
        begun().asked(Action.CANCEL, answer=INFO).having(cancel_reason=b'"no"'),
    ),
    "met by nobody": ("requests_were_made", "I2", begun().having(cancel_met=True)),
    "suspended by nobody": ("requests_were_made", "I2", begun().being(Status.SUSPENDED)),
    "restarted by nobody": (
        "requests_were_made",
        "I2",
        restarted().having(generation=2),
    ),
    "put aside by nobody": (
        "requests_were_made",
        "I2",
        failed().asked(Action.RETRY, forgets=("a",)).put_aside("b"),
    ),
    "restarted with something else": (
        "nothing_is_invented",
        "I2",
        restarted().having(input=b"[3]"),
    ),
    "terminated by nobody": (
        "nothing_is_invented",
        "I2",
        begun().being(Status.TERMINATED, TERMINATED),
    ),
    "cancelled though that was refused": (
        "requests_were_made",
        "I22",
        begun().asked(Action.CANCEL, answer=FAIL),
    ),
    "two values in one generation": (
        "one_result",
        "I3",
        begun()
        .ran("a")
        .wrote(1, 1, step("a", b'"1"'))
        .saw_held(1, 2, step("a", b'"2"', epoch=1, seq=1))
        .wrote(1, 3, restart=b"[2]"),
    ),
    "what a retry has kept runs again": (
        "recorded_is_not_run_again",
        "I5",
        retried().taken(3, "h3").ran("a", 3),
    ),
    "what the generation has recorded runs again": (
        "recorded_is_not_run_again",
        "I5",
        restarted()
        .ran("a", generation=1)
        .wrote(1, 3, step("a"))
        .taken(2, "h2")
        .ran("a", 2, generation=1),
    ),
    "run twice in a generation": (
        "effects_are_bounded",
        "I6",
        restarted().ran("a", generation=1).ran("a", generation=1),
    ),
    "a step of the generation before": (
        "no_late_write",
        "I8",
        restarted().hold(1, 1, step("a", b'"1"')),
    ),
    "a late host's child": (
        "refused_reaches_nobody",
        "I9",
        spawned(answer=FAIL, why=LATE, stored=False).beside("c1"),
    ),
    "a refused unit's child": (
        "refused_reaches_nobody",
        "I22",
        spawned(answer=FAIL, why="mailbox is full", stored=False).beside("c1"),
    ),
    "a refused unit's event": (
        "refused_reaches_nobody",
        "I22",
        spawned()
        .wrote(1, 2, sends=(sent("e1"),), answer=FAIL, why="mailbox is full", stored=False)
        .beside("c1", "e1"),
    ),
    "the end of a child that nobody spawned": (
        "ends_are_told",
        "I11",
        begun().told(1, FINISH),
    ),
    "the end of a child that goes on": (
        "ends_are_told",
        "I11",
        spawned().beside("c1").told(1, FINISH),
    ),
    "an end that is told to nobody": (
        "ends_are_told",
        "I11",
        spawned()
        .wrote(1, 2, ending=FAILED, answer=INFO, stored=False)
        .beside("c1", status=Status.TERMINATED, ending=TERMINATED)
        .asked(Action.TERMINATE, ending=TERMINATED, answer=INFO, stored=False),
    ),
    "recorded after it was terminated": (
        "terminated_for_good",
        "I14",
        begun().ran("a").asked(Action.TERMINATE, ending=TERMINATED).wrote(1, 1, step("a")),
    ),
    "terminated, and it goes on": (
        "terminated_for_good",
        "I14",
        begun().asked(Action.TERMINATE, ending=TERMINATED, stored=False).being(Status.RUNNING),
    ),
    "ended more often than it was retried": (
        "one_end",
        "I14",
        retried().wrote(3, 1, ending=FINISH).wrote(3, 2, ending=FINISH, stored=False),
    ),
    "a child is missing": ("reach_is_whole", "I23", spawned()),
    "an event is missing": (
        "reach_is_whole",
        "I23",
        spawned(sends=(sent("e1"), sent("e2"))).beside("c1", "e1"),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_happen_is_not_reported(name: str) -> None:
    """No false alarm: requests, retries, restarts and children as the seam allows them."""
    assert GOOD[name].verdict(effects=False) == set()


@pytest.mark.parametrize("name", BAD)
def test_what_must_not_happen_is_reported(name: str) -> None:
    """I1-I3 I5 I6 I8 I9 I11 I14 I22 I23: each is reported by its function and by no other."""
    function, invariant, story = BAD[name]
    facts = Facts(story.operations, [story.final(), *story.others])
    found = {each.__name__: {one.invariant for one in each(facts)} for each in INVARIANTS}
    assert {each: codes for each, codes in found.items() if codes} == {function: {invariant}}
