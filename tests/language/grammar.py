"""The language of process functions: what a program may be, and Hypothesis strategies for it.

A program is a tree of plain data, so that Hypothesis can shrink and print it.
Where an interruption may legally change an outcome, the grammar leaves the
program out, and each rule says why. What is left has one outcome:

- Of the branches of a race exactly one comes, or several lie in the mailbox before
  anybody runs; the others never come, or after a year. Two that come at different times
  could both be there after a death, and then the first in order wins.
- A timeout has nothing left to do by its end but to wait for what never comes,
  `SLACK_S` later than all else can last. A deadline that passes in a downtime cancels
  what was not recorded. The same for a task group that ends by a failing sibling.
- What is in such a durable timeout does not sleep by asyncio's means: a resumed run would sleep
  again, and a deadline that has passed waits half a minute for it and not longer. Nor does what is
  in such a group: its end waits for what is recalled, and not for a sleep.
- No such durable deadline comes behind a timeout of asyncio's that ends by its time, in one line of
  execution: that one begins anew with each run, and the deadline does not wait for it. In front of
  it, in it and beside it there may be one.
- On Python 3.11 and 3.12 no task group in a timeout of asyncio's that ends by its time: that would
  raise CancelledError, and not in a run that no longer comes through the group (`_countable`).
- A map with an item that fails runs one item at a time: which others have begun by then
  is a matter of moments.
- No step with `at_most_once`: that one tells of a death is its purpose.
- No undo in a loop with a cursor: a later run does not come past it any more.
- Outside events reach the first process alone; children are sent theirs by their parent,
  since an event for a process that is not there yet is refused.
"""

import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Literal, TypeAlias

from hypothesis import strategies as st

SLACK_S = 10_000.0
"""More than all downtimes and delays of a storage in one play."""
LIVES = 5
"""In each of them a timeout of asyncio's begins anew."""
UNHEARD_S = 50.0
UNDO_S = 3_600.0
"""At least as long as an undo that fails for good is tried again."""
PAUSE_S = 5.0
"""Between two attempts."""

Undo = Literal["", "works", "breaks"]
When = Literal["early", "later", "never"]
Never = Literal["event", "delay", "race", "gather"]


@dataclass(frozen=True)
class Do:
    """A step; its first attempts may fail."""

    fails: int = 0
    tries: int = 1
    takes_s: float = 0.0
    undo: Undo = ""
    thread: bool = False
    beats: bool = False


@dataclass(frozen=True)
class Get:
    """A value that is chosen once."""


@dataclass(frozen=True)
class Delay:
    """A delay."""

    seconds: float


@dataclass(frozen=True)
class Nap:
    """A sleep that is not durable."""

    seconds: float


@dataclass(frozen=True)
class Event:
    """A wait for an event: raised before anybody runs, at a time, or never (then it times out)."""

    when: When
    at_s: float = 0.0


@dataclass(frozen=True)
class Stream:
    """A loop over several events of a name."""

    count: int
    when: When
    at_s: float = 0.0


@dataclass(frozen=True)
class SendSelf:
    """An event for itself, and the wait for it."""


@dataclass(frozen=True)
class Race:
    """A race that one branch is sure to win.

    Attributes:
        sure: What that branch waits for.
        others: Which never come, or so late; "early" stands only beside an early event.
        place: Of the sure branch.
        nested: Whether it stands in a race of its own.
    """

    sure: "Event | Delay | Child"
    others: tuple[Literal["event", "year", "race", "early"], ...] = ()
    place: int = 0
    nested: bool = False


@dataclass(frozen=True)
class Child:
    """A child process: called, spawned and joined, spoken to, or left to itself."""

    program: "Program"
    how: Literal["call", "join", "talk", "leave"] = "call"


@dataclass(frozen=True)
class Gather:
    """Several bodies side by side; the first failure in order is raised when all have ended."""

    bodies: tuple["Body", ...]


@dataclass(frozen=True)
class Group:
    """A task group whose siblings are done, or wait for ever, when one of them fails."""

    bodies: tuple["Body", ...]
    never: Never


@dataclass(frozen=True)
class Timeout:
    """A body in a timeout, durable or asyncio's; with `never` it waits until that is over."""

    body: "Body"
    never: Never | Literal[""] = ""
    durable: bool = True


@dataclass(frozen=True)
class FirstDone:
    """`asyncio.wait(FIRST_COMPLETED)` of a delay and what never comes, which is cancelled."""

    seconds: float
    never: Never


@dataclass(frozen=True)
class Map:
    """A step for each of many items."""

    count: int
    fails_at: int = -1
    concurrency: int | None = None
    takes_s: float = 0.0


@dataclass(frozen=True)
class Try:
    """A body whose errors are handled."""

    body: "Body"
    handler: "Body"


@dataclass(frozen=True)
class Loop:
    """A body several times."""

    count: int
    body: "Body"


@dataclass(frozen=True)
class Cursor:
    """A loop whose place is a durable variable: a later run begins where the last one was."""

    count: int
    body: "Body"


@dataclass(frozen=True)
class Report:
    """A report of progress."""


@dataclass(frozen=True)
class Version:
    """The version of the code, recorded."""


@dataclass(frozen=True)
class Fail:
    """An error of the function's own."""


Node: TypeAlias = (
    Do | Get | Delay | Nap | Event | Stream | SendSelf | Race | Child | Gather | Group | Timeout
    | FirstDone | Map | Try | Loop | Cursor | Report | Version | Fail
)  # fmt: skip
Body: TypeAlias = tuple[Node, ...]


@dataclass(frozen=True)
class Program:
    """A process: one body for each generation."""

    bodies: tuple[Body, ...]


# --- what a program holds ---------------------------------------------------------------------


def under(key: str, body: Body) -> Iterator[tuple[str, Node]]:
    """Yield the nodes of a body with their keys."""
    return ((f"{key}.{place}", node) for place, node in enumerate(body))


def inner(key: str, node: Node) -> Iterator[tuple[str, Body]]:
    """Yield the bodies in a node of the same process, with their keys."""
    match node:
        case Gather(bodies) | Group(bodies):
            yield from ((f"{key}.{place}", body) for place, body in enumerate(bodies))
        case Timeout(body):
            yield key, body
        case Try(body, handler):
            yield from ((f"{key}.try", body), (f"{key}.except", handler))
        case Loop(count, body) | Cursor(count, body):
            yield from ((f"{key}.{turn}", body) for turn in range(count))
        case _:
            return


def nodes(key: str, body: Body) -> Iterator[tuple[str, Node]]:
    """Yield all nodes of a body with their keys, but not those of other processes."""
    for at, node in under(key, body):
        yield at, node
        for place, part in inner(at, node):
            yield from nodes(place, part)


def of(program: Program) -> Iterator[tuple[str, Node]]:
    """Yield all nodes of a process with their keys."""
    for number, body in enumerate(program.bodies):
        yield from nodes(f"g{number}", body)


def programs(program: Program) -> Iterator[Program]:
    """Yield a program and those of all its children."""
    yield program
    for _, node in of(program):
        child = node.sure if isinstance(node, Race) else node
        if isinstance(child, Child):
            yield from programs(child.program)


def outside(program: Program) -> Iterator[tuple[str, str, float]]:
    """Yield id, name and time of all events that are raised from outside; early ones at -1."""
    for key, node in of(program):
        wait: Node = node
        if isinstance(node, Race):
            wait = node.sure
            for number, other in enumerate(node.others):
                if other == "early":
                    yield f"{key}/{number}", f"{key}/{number}", -1.0
        if isinstance(wait, Event | Stream) and wait.when != "never":
            at_s = -1.0 if wait.when == "early" else wait.at_s
            for number in range(wait.count if isinstance(wait, Stream) else 1):
                yield f"{key} {number}", key, at_s


def longest_of(body: Body) -> float:
    """Return how long a body can take, undisturbed, in seconds."""
    return sum(map(longest, body))


def longest(node: Node) -> float:
    """Return how long a node can take, undisturbed, in seconds."""
    match node:
        case Do(takes_s=takes_s, tries=tries, undo=undo):
            return tries * (takes_s + PAUSE_S) + (UNDO_S if undo else 0.0)
        case Delay(seconds) | Nap(seconds) | FirstDone(seconds):
            return seconds
        case Event(when="never"):
            return UNHEARD_S
        case Event(at_s=at_s) | Stream(at_s=at_s):
            return at_s
        case Race(sure):
            return longest(sure)
        case Child(program):
            return sum(map(longest_of, program.bodies))
        case Map(count, takes_s=takes_s):
            return count * takes_s
        case Group() | Timeout(never="event" | "delay" | "race" | "gather"):
            durable = isinstance(node, Group) or node.durable
            return limit_s(node) * (1 if durable else LIVES)
        case _:
            return sum(longest_of(body) for _, body in inner("", node))


def limit_s(node: Group | Timeout) -> float:
    """Return how long a timeout or a group waits: for a hundred days, where it is never over."""
    lasts = sum(longest_of(body) for _, body in inner("", node))
    if isinstance(node, Timeout) and not node.never:
        return lasts + 100 * 86_400.0
    return lasts + SLACK_S


def is_recalled_at_once(body: Body) -> bool:
    """Return whether a resumed run comes through the body, once recorded, without any sleep."""
    return not any(isinstance(node, Nap) or _begins_anew(node) for _, node in nodes("", body))


def keeps_its_deadlines(body: Body) -> bool:
    """Return whether no durable deadline is behind a timeout that begins anew with each run."""
    begins_anew = False
    for node in body:
        within = [each for _, each in nodes("", (node,))]
        if begins_anew and any(_is_deadline(each) for each in within):
            return False
        if not all(map(keeps_its_deadlines, _lines(node))):
            return False
        begins_anew = begins_anew or any(_begins_anew(each) for each in within)
    return True


def _is_deadline(node: Node) -> bool:
    return isinstance(node, Group) or (
        isinstance(node, Timeout) and node.durable and bool(node.never)
    )


def _begins_anew(node: Node) -> bool:
    return isinstance(node, Timeout) and not node.durable and bool(node.never)


def _lines(node: Node) -> Iterator[Body]:
    """Yield what is done in a node, one thing after the other."""
    match node:
        case Try(body, handler):
            yield (*body, *handler)
        case Loop(count, body):
            yield body * count
        case _:
            yield from (body for _, body in inner("", node))


# --- strategies -------------------------------------------------------------------------------

_moments = st.sampled_from((0.0, 1.0, 15.0))
_seconds = st.sampled_from((0.0, 7.0, 60.0))
_nevers: st.SearchStrategy[Never] = st.sampled_from(("event", "delay", "race", "gather"))
_dos = st.builds(
    Do,
    fails=st.sampled_from((0, 0, 0, 1, 2)),
    tries=st.sampled_from((1, 1, 3)),
    takes_s=_moments,
    undo=st.sampled_from(("", "", "works", "breaks")),
    thread=st.sampled_from((False, False, False, True)),
    beats=st.booleans(),
)
_plain_dos = st.builds(Do, takes_s=_moments, fails=st.sampled_from((0, 0, 0, 1)))
_others: st.SearchStrategy[Literal["event", "year", "race"]] = st.sampled_from(
    ("event", "year", "race")
)
_early = st.builds(Event, st.just("early"))
_later = st.builds(Event, st.just("later"), st.sampled_from((3.0, 30.0, 300.0)))
_unheard = st.builds(Event, st.just("never"))


def _races(sure: st.SearchStrategy[Event | Delay | Child]) -> st.SearchStrategy[Race]:
    few = st.lists(_others, max_size=2).map(tuple)
    return st.builds(Race, sure, few, st.integers(0, 2), st.booleans())


_early_races = st.builds(
    Race,
    _early,
    st.lists(st.sampled_from(("event", "year", "race", "early")), max_size=3).map(tuple),
    st.integers(0, 3),
    st.booleans(),
)


def _leaves(*, root: bool, undos: bool) -> list[st.SearchStrategy[Node]]:
    found: list[st.SearchStrategy[Node]] = [
        _dos if undos else _plain_dos,
        _plain_dos,
        st.builds(Get),
        st.builds(Delay, _seconds),
        st.builds(Nap, _moments),
        _unheard,
        st.builds(SendSelf),
        _races(st.builds(Delay, _seconds)),
        st.builds(FirstDone, _seconds, _nevers),
        st.builds(
            Map,
            st.integers(0, 4),
            concurrency=st.sampled_from((None, 1, 2)),
            takes_s=_moments,
        ),
        st.builds(
            Map, st.integers(1, 4), st.integers(0, 3), concurrency=st.just(1), takes_s=_moments
        ),
        st.builds(Report),
        st.builds(Version),
        st.builds(Fail),
    ]
    if root:
        found += [
            _early,
            _later,
            st.builds(Stream, st.integers(1, 3), st.just("early")),
            st.builds(Stream, st.integers(1, 3), st.just("later"), st.sampled_from((3.0, 30.0))),
            _early_races,
            _races(_later),
        ]
    return found


@cache
def bodies(depth: int, *, root: bool, undos: bool) -> st.SearchStrategy[Body]:
    """Return a strategy for bodies: how deep, whether events come from outside, and undos."""
    parts = _leaves(root=root, undos=undos)
    if depth:
        body = bodies(depth - 1, root=root, undos=undos)
        at_once = body.map(_at_once)
        several = _several(body)
        child = st.builds(
            Child, programs_of(depth - 1), st.sampled_from(("call", "join", "talk", "leave"))
        )
        durable = st.booleans()
        parts += [
            st.builds(Gather, several),
            st.builds(Gather, several),
            st.builds(Group, _several(at_once), _nevers),
            st.builds(Timeout, body, st.just(""), durable),
            st.builds(Timeout, body.map(_countable), _nevers, st.just(False)),
            st.builds(Timeout, at_once, _nevers, st.just(True)),
            st.builds(Try, body, body),
            st.builds(Try, body, body),
            st.builds(Loop, st.integers(0, 3), body),
            st.builds(Cursor, st.integers(1, 3), bodies(depth - 1, root=root, undos=False)),
            child,
            _races(st.builds(Child, programs_of(depth - 1), st.just("join"))),
        ]
    return st.lists(st.one_of(parts), min_size=1, max_size=4).map(_in_time)


def _countable(body: Body) -> Body:
    """Return the body up to the first task group, where such make asyncio.timeout miscount.

    Before Python 3.13 a group that fails while it is waited for leaves its task one request to
    cancel, and the timeout around it raises CancelledError for TimeoutError; a run that no longer
    comes through the group does not.
    """
    if sys.version_info >= (3, 13):
        return body
    return tuple(
        takewhile(
            lambda node: not any(isinstance(each, Group) for _, each in nodes("", (node,))), body
        )
    )


def _in_time(drawn: list[Node]) -> Body:
    """Return the drawn nodes as far as they keep their deadlines: cut, since filters are slow."""
    return next(
        body
        for count in range(len(drawn), -1, -1)
        if keeps_its_deadlines(body := tuple(drawn[:count]))
    )


def _at_once(body: Body) -> Body:
    """Return a body without what sleeps."""
    return tuple(node for node in body if is_recalled_at_once((node,)))


def _several(body: st.SearchStrategy[Body]) -> st.SearchStrategy[tuple[Body, ...]]:
    return st.lists(body, min_size=1, max_size=3).map(tuple)


@cache
def programs_of(depth: int) -> st.SearchStrategy[Program]:
    """Return a strategy for the programs of children."""
    return _programs(depth, root=False)


def _programs(depth: int, *, root: bool) -> st.SearchStrategy[Program]:
    body = bodies(depth, root=root, undos=True)
    one = st.builds(Program, st.tuples(body))
    several = st.builds(Program, st.lists(body, min_size=2, max_size=3).map(tuple))
    return st.one_of(one, one, one, several)


@st.composite
def first_programs(draw: st.DrawFn, depth: int = 2) -> Program:
    """Return a strategy for programs of the process that the outside world knows.

    What it draws is copied: Hypothesis shows an example that fails as the calls which have built
    it, and writes out a node that several calls had a hand in once for each, level by level. A copy
    was built by none, and is shown as it is.
    """
    return deepcopy(draw(_programs(depth, root=True)))
