"""The process functions whose histories are kept, and what each of them comes to at its end.

They stand for the code of users, which does not change because a library does.
Add functions; a function with a kept history stays as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from durabletask import Process, ProcessClient, RetryPolicy, current_step
from durabletask.errors import (
    EventTimeoutError,
    ProcessCancelledError,
    StepError,
    StepInterruptedError,
)

DONE: list[str] = []
"""What steps did, in this program."""

SLOW = RetryPolicy(attempts_max=5, delay_s=500, factor=1, jitter=0)


@dataclass
class Receipt:
    """What a step returns."""

    number: int
    what: str


async def do(what: str) -> str:
    DONE.append(what)
    return what


async def receipt(number: int, what: str) -> Receipt:
    DONE.append(what)
    return Receipt(number, what)


async def refuse(what: str) -> str:
    DONE.append(what)
    raise ValueError(f"no {what}")


async def slowly(what: str) -> str:
    await asyncio.sleep(300)
    DONE.append(what)
    return what


def saved(what: str) -> str:
    """Run on a thread."""
    DONE.append(what)
    return what


# --- the scenarios ------------------------------------------------------------------------


async def saga(proc: Process, amount: int, who: str) -> dict[str, Any]:
    """Steps, values, a variable, a delay, events, a version, progress."""
    number = await proc.get("number", lambda: 4711)
    version = await proc.version("pricing", 1)
    paid = await proc.do("pay", receipt, amount, f"{who} pays")
    note = await proc.do("file", saved, "filed")
    try:
        await proc.do("refused", refuse, "credit")
        refused = ""
    except StepError as error:
        refused = str(error)
    cursor = await proc.var("cursor", 0)
    while cursor.value < 3:
        await proc.do(f"page/{cursor.value}", do, f"page {cursor.value}")
        await cursor.set(cursor.value + 1)
    delay = await proc.delay("a day", timedelta(days=1))
    first = await proc.event("first", str)
    await proc.report({"waits for": "the second"})
    try:
        missed = await proc.event("missed", timeout=10)
    except EventTimeoutError:
        missed = "timeout"
    both = [first, missed]
    async for each in proc.events("more", int):
        both.append(str(each))
        if each == 0:
            break
    second = await proc.event("second", str)
    await proc.do("last", do, f"{number} is shipped")
    return {
        "paid": [paid.number, paid.what, note],
        "refused": refused,
        "version": version,
        "on time": delay.on_time,
        "events": [*both, second],
        "cursor": cursor.value,
    }


async def races(proc: Process) -> list[Any]:
    """A race that is over, a race that is open, timeouts that are over, left, open."""
    found: list[Any] = []
    fast = proc.delay("fast", timedelta(seconds=1))
    slow = proc.event("slow")
    won = await proc.race("over", slow, fast)
    found.append("fast" if won.won(fast) else "slow")
    async with proc.timeout("left", timedelta(days=1)):
        await proc.do("in time", do, "in time")
    try:
        async with proc.timeout("too late", timedelta(seconds=5)):
            await proc.event("never")
    except TimeoutError:
        found.append("too late")
    try:
        async with asyncio.timeout(7):
            await proc.event("never", key="never again")
    except TimeoutError:
        found.append("cancelled")
    async with proc.timeout("open", timedelta(days=30)):
        yes, no = proc.event("yes", int), proc.delay("no", timedelta(days=20))
        result = await proc.race("open race", yes, no)
        found.append(result.of(yes) if result.won(yes) else "no")
    return found


async def overtaken(proc: Process) -> str:
    """A result that wins against its cancellation by a sibling."""

    async def fails() -> None:
        await asyncio.sleep(0.5)
        raise RuntimeError("the sibling")

    async def other() -> None:
        await proc.do("wins", do, "wins")
        await proc.do("never begins", do, "never")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(other())
            group.create_task(fails())
    except* RuntimeError:
        await proc.do("afterwards", do, "afterwards")
    return await proc.event("go", str)


async def many(proc: Process) -> list[Any]:
    """A map, retries, a heartbeat, a step at most once: all in flight when the host died."""

    async def item(n: int) -> int:
        await asyncio.sleep(n * 20)
        DONE.append(f"item {n}")
        return n * n

    async def flaky() -> int:
        step = current_step()
        if step.attempt < 3:
            raise ConnectionError(f"attempt {step.attempt}")
        return step.attempt

    async def long() -> int:
        step = current_step()
        begun_at: int = step.heartbeat_details or 0
        for page in range(begun_at, 10):
            await asyncio.sleep(10)
            await step.heartbeat(page + 1)
        return begun_at

    async def once() -> str:
        try:
            return await proc.do("once", slowly, "once", at_most_once=True)
        except StepInterruptedError:
            return "interrupted"

    return list(
        await asyncio.gather(
            proc.map("square", item, range(6)),
            proc.do("flaky", flaky, retry=SLOW),
            proc.do("long", long),
            once(),
        )
    )


async def parent(proc: Process) -> list[str]:
    """Children: one called and over, one spawned, one called and waiting; an event sent."""
    over = await proc.call("over", child, "over", False)
    await proc.spawn("spawned", child, "spawned", True, process_id="a child of its own")
    await proc.raise_event("send", "a child of its own", "go", "from the parent")
    return [over, await proc.call("open", child, "open", True)]


async def child(proc: Process, what: str, waits: bool) -> str:
    """A child, which waits for an event or does not."""
    await proc.do("work", do, f"{what} works")
    return f"{what}: {await proc.event('go', str)}" if waits else what


async def undoing(proc: Process) -> None:
    """Three steps to undo: one is undone, one is being tried again, one is still open."""

    async def undo(what: str) -> None:
        DONE.append(f"undo {what}")
        if what == "flight" and current_step().attempt < 3:
            raise ConnectionError("no answer")

    for what in ("hotel", "flight", "car"):
        await proc.do(what, do, what, undo=undo, retry=SLOW)
    await proc.do("pay", refuse, "money", retry=RetryPolicy(attempts_max=1))


async def cancelled(proc: Process) -> str:
    """Cancelled from outside, met, and rolled back by hand in steps."""
    await proc.do("reserve", do, "reserve")
    try:
        await proc.event("paid")
    except ProcessCancelledError as error:
        await proc.do("release", do, "release")
        said = await proc.event("confirmed", str)
        return f"{error}; {said}"
    return "paid"


async def to_cancel(proc: Process) -> str:
    """Asked to cancel itself while no host runs."""
    try:
        await proc.event("paid")
    except ProcessCancelledError as error:
        return str(error)
    return "paid"


async def suspended(proc: Process) -> str:
    """Suspended, with an event that has gathered."""
    await proc.do("before", do, "before")
    return f"after {await proc.event('go', str)}"


async def retried(proc: Process) -> str:
    """Failed, and tried again after a fix: what is forgotten stays in the history."""

    async def mend() -> str:
        return await (do("mended") if "fixed" in DONE else refuse("luck"))

    await proc.do("kept", do, "kept")
    await proc.do("broken", mend)
    return await proc.event("go", str)


async def restarting(proc: Process, round: int) -> str:
    """The third generation, with an event that nobody has taken yet."""
    await proc.do("round", do, f"round {round}")
    await proc.event("next")
    if round < 2:
        proc.restart(round + 1)
    return f"{round} rounds, {await proc.event('end', str)}"


async def booking(proc: Process) -> list[str]:
    """A step that is recorded in one transaction with rows of the user's."""

    async def write(connection: Any) -> str:
        await connection.write("row", 7)
        return "written"

    written = await proc.transaction("write", write)
    return [written, await proc.event("go", str)]


# --- what is played -----------------------------------------------------------------------

Fn = Callable[..., Coroutine[Any, Any, Any]]


async def nothing(client: ProcessClient) -> None:
    """Ask for nothing."""


def raising(*events: tuple[str, str, Any]) -> Callable[[ProcessClient], Awaitable[None]]:
    """Return what raises events: process, name, payload."""

    async def play(client: ProcessClient) -> None:
        for process_id, name, payload in events:
            await client.raise_event(process_id, name, payload)

    return play


@dataclass(frozen=True)
class Scenario:
    """A history: how it was made and what it comes to.

    Attributes:
        fn: Spawned as "p" with `args`.
        before: Asked while the first host runs.
        after_s: When that host dies, by kill -9.
        asleep: Asked when it is dead, before the history is written.
        finish: Asked at the end, by today's code.
        comes_to: The result, or the text of the error, of each process.
        does: What steps do after the resume, in any order.
    """

    fn: Fn
    args: tuple[Any, ...] = ()
    others: tuple[Fn, ...] = ()
    before: Callable[[ProcessClient], Awaitable[None]] = nothing
    after_s: float = 60.0
    slow_commit_s: float = 0.0
    asleep: Callable[[ProcessClient], Awaitable[None]] = nothing
    finish: Callable[[ProcessClient], Awaitable[None]] = nothing
    comes_to: dict[str, Any] = field(default_factory=dict)
    does: tuple[str, ...] = ()


async def _cancel(client: ProcessClient) -> None:
    await client.get("p").cancel("not wanted any more")


async def _suspend(client: ProcessClient) -> None:
    await client.get("p").suspend("for the weekend")
    await client.raise_event("p", "go", "gathered")


async def _resume(client: ProcessClient) -> None:
    await client.get("p").resume()


async def _retry(client: ProcessClient) -> None:
    await asyncio.sleep(10)
    DONE.append("fixed")
    await client.get("p").retry()


async def _cancel_in_time(client: ProcessClient) -> None:
    await asyncio.sleep(10)
    await _cancel(client)


SCENARIOS: dict[str, Scenario] = {
    "saga": Scenario(
        saga,
        (30, "carol"),
        before=raising(("p", "first", "one"), ("p", "more", 7), ("p", "more", 0)),
        after_s=86_400 + 60,
        finish=raising(("p", "second", "two")),
        comes_to={
            "p": {
                "paid": [30, "carol pays", "filed"],
                "refused": "ValueError: no credit",
                "version": 1,
                "on time": True,
                "events": ["one", "timeout", "7", "0", "two"],
                "cursor": 3,
            }
        },
        does=("4711 is shipped",),
    ),
    "races": Scenario(
        races,
        finish=raising(("p", "yes", 5)),
        comes_to={"p": ["fast", "too late", "cancelled", 5]},
    ),
    "overtaken": Scenario(
        overtaken, slow_commit_s=1.0, finish=raising(("p", "go", "on")), comes_to={"p": "on"}
    ),
    "many": Scenario(
        many,
        after_s=55,
        comes_to={"p": [[0, 1, 4, 9, 16, 25], 3, 5, "interrupted"]},
        does=("item 3", "item 4", "item 5"),
    ),
    "family": Scenario(
        parent,
        others=(child,),
        finish=raising(("p/1.0/open", "go", "on")),
        comes_to={"p": ["over", "open: on"], "a child of its own": "spawned: from the parent"},
    ),
    "undoing": Scenario(
        undoing,
        comes_to={"p": "ValueError: no money"},
        does=("undo flight", "undo flight", "undo hotel"),
    ),
    "cancelled": Scenario(
        cancelled,
        before=_cancel_in_time,
        finish=raising(("p", "confirmed", "released")),
        comes_to={"p": "not wanted any more; released"},
    ),
    "to_cancel": Scenario(to_cancel, asleep=_cancel, comes_to={"p": "not wanted any more"}),
    "suspended": Scenario(
        suspended, asleep=_suspend, finish=_resume, comes_to={"p": "after gathered"}
    ),
    "retried": Scenario(
        retried, before=_retry, finish=raising(("p", "go", "on")), comes_to={"p": "on"}
    ),
    "restarting": Scenario(
        restarting,
        (0,),
        before=raising(("p", "next", None), ("p", "end", "the end"), ("p", "next", None)),
        finish=raising(("p", "next", None)),
        comes_to={"p": "2 rounds, the end"},
    ),
    "booking": Scenario(
        booking, finish=raising(("p", "go", "on")), comes_to={"p": ["written", "on"]}
    ),
}
