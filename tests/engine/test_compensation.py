"""Compensation: `undo=`, when an error leaves the function (rule 8)."""

import asyncio
import logging
from typing import Any

import pytest

from durabletask import Process, ProcessHost, RetryPolicy, Status, current_step
from durabletask.errors import (
    InvalidArgumentError,
    ProcessCancelledError,
    ProcessFailedError,
    ProcessQuarantinedError,
    StepError,
)
from durabletask.storage import Action, Control, Kind, Place
from tests.engine.world import World, virtual


class Books:
    """The outside world: what was done, what was undone, and how often undoing is to fail."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.undone: list[str] = []
        self.failures: dict[str, int] = {}

    async def book(self, name: str, seconds: float = 0.0) -> str:
        if seconds:
            await asyncio.sleep(seconds)
        self.done.append(name)
        return f"receipt {name}"

    def book_in_thread(self, name: str) -> str:
        self.done.append(name)
        return f"receipt {name}"

    async def cancel(self, receipt: str) -> None:
        self.undone.append(receipt)
        if self.failures.get(receipt, 0) > 0:
            self.failures[receipt] -= 1
            raise ConnectionError(f"no answer about {receipt}")

    def cancel_in_thread(self, receipt: str) -> None:
        self.undone.append(receipt)

    async def slowly_cancel(self, receipt: str) -> None:
        await asyncio.sleep(10)
        self.undone.append(receipt)

    async def fail(self, text: str = "no") -> str:
        raise ValueError(text)


def undos(world: World) -> list[tuple[str, str, str]]:
    """Return what is recorded from the decision on."""
    keys = world.keys("p")
    return [each for each in keys if each[0] in ("decision", "undo")]


async def run_to_end(host: ProcessHost, process: Any) -> Any:
    """Spawn process "p" and return its error, or its result."""
    handle = await host.spawn(process, "p")
    try:
        return await handle.result()
    except ProcessFailedError as error:
        return error


DECIDED = ("decision", "compensation", "value")


@virtual
async def test_undone_in_reverse_order(world: World) -> None:
    """Rule 8: each undo is called with its step's result, the latest first; then it fails."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        await proc.do("meal", books.book, "meal")
        await proc.do("flight", books.book, "flight", undo=books.cancel)
        await proc.do("pay", books.fail)

    async with world.host(process) as host:
        error = await run_to_end(host, process)
        assert isinstance(error, ProcessFailedError)
        assert str(error.__cause__) == "ValueError: no"
        assert books.undone == ["receipt flight", "receipt hotel"]
        assert undos(world) == [DECIDED, ("undo", "flight", "value"), ("undo", "hotel", "value")]
        info = await host.get("p").info()
        assert info.status is Status.FAILED
        assert info.compensation is not None
        assert info.compensation.done == ("flight", "hotel")
        assert (info.compensation.failed, info.compensation.open) == ({}, ())
        entries = [each for each in await host.get("p").history() if each.kind == "decision"]
        assert [each.value for each in entries] == [["flight", "hotel"]]
        assert str(entries[0].error) == "ValueError: no"


@virtual
async def test_the_decision_is_one_record(world: World) -> None:
    """Rule 8: error, order and status are one unit, and every unit after it keeps the status."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        await books.fail()

    async with world.host(process) as host:
        await run_to_end(host, process)
        units = world.wires[host].units
        (decision,) = [
            unit for unit in units if any(each.kind is Kind.DECISION for each in unit.checkpoints)
        ]
        assert decision.status is Status.COMPENSATING
        assert len(decision.checkpoints) == 1
        after = units[units.index(decision) + 1 :]
        assert [unit.status for unit in after if unit.ending is None] == [Status.COMPENSATING]


@virtual
async def test_an_error_that_is_caught_undoes_nothing(world: World) -> None:
    """Rule 8: undos run only if the error leaves the function; by hand works beside them."""
    books = Books()

    async def process(proc: Process) -> str:
        hotel = await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        try:
            await proc.do("pay", books.fail)
        except StepError:
            await proc.do("by hand", books.cancel, hotel)
        return "done"

    async with world.host(process) as host:
        assert await run_to_end(host, process) == "done"
        assert books.undone == ["receipt hotel"]
        assert undos(world) == []
        info = await host.get("p").info()
        assert info.compensation is None


@virtual
async def test_a_step_that_failed_is_not_undone(world: World) -> None:
    """Rule 8: an undo belongs to the success of its step."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("pay", books.fail, undo=books.cancel)

    async with world.host(process) as host:
        error = await run_to_end(host, process)
        assert isinstance(error, ProcessFailedError)
        assert (books.undone, undos(world)) == ([], [])


@virtual
async def test_cancelled_ends_as_cancelled(world: World) -> None:
    """Rules 7 and 8: ProcessCancelledError that leaves the function undoes too, and cancels."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        raise ProcessCancelledError("not wanted any more")

    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(1)
        assert world.row("p").status is Status.CANCELLED
        assert books.undone == ["receipt hotel"]


@virtual
async def test_cancelled_but_not_all_undone_ends_as_failed(world: World) -> None:
    """Rules 8 and 9: only what failed can be tried again, so what is not undone has failed."""
    books = Books()
    books.failures["receipt hotel"] = 1

    async def process(proc: Process) -> None:
        once = RetryPolicy(attempts_max=1)
        await proc.do("hotel", books.book, "hotel", undo=books.cancel, retry=once)
        raise ProcessCancelledError("not wanted any more")

    async with world.host(process) as host:
        await host.spawn(process, "p")
        await asyncio.sleep(1)
        assert world.row("p").status is Status.FAILED
        ended = await host.get("p").info()
        assert isinstance(ended.error, ProcessCancelledError)


@pytest.mark.parametrize("how", ["result in a thread", "undo in a thread", "partial"])
def test_sync_functions(how: str) -> None:
    """Rule 8: step and undo may be synchronous, each by itself."""

    @virtual
    async def body(world: World) -> None:
        books = Books()

        async def process(proc: Process) -> None:
            fn: Any = books.book_in_thread if how == "result in a thread" else books.book
            undo: Any = books.cancel_in_thread if how == "undo in a thread" else books.cancel
            await proc.do("hotel", fn, "hotel", undo=undo)
            raise ValueError("no")

        async with world.host(process) as host:
            await run_to_end(host, process)
            assert books.undone == ["receipt hotel"]

    body()


@virtual
async def test_an_undo_sees_what_is_recorded(world: World) -> None:
    """Rule 2: the undo's argument is decode(encode(result)), whatever was done to it since."""
    seen: list[Any] = []

    async def make() -> dict[str, list[int]]:
        return {"rooms": [1, 2]}

    async def undo(result: dict[str, list[int]]) -> None:
        seen.append(result)

    async def process(proc: Process) -> None:
        made = await proc.do("make", make, undo=undo)
        made["rooms"].append(3)
        raise ValueError("no")

    async with world.host(process) as host:
        await run_to_end(host, process)
    assert seen == [{"rooms": [1, 2]}]


@virtual
async def test_an_undo_with_a_wrong_signature_is_refused_first(world: World) -> None:
    """Rule 2: what cannot be called with one argument is refused before the step runs."""
    books = Books()
    caught: list[Exception] = []
    wrong: Any = lambda: None  # noqa: E731

    async def process(proc: Process) -> None:
        try:
            await proc.do("hotel", books.book, "hotel", undo=wrong)
        except InvalidArgumentError as error:
            caught.append(error)

    async with world.host(process) as host:
        await run_to_end(host, process)
        assert len(caught) == 1
        assert (books.done, world.keys("p")) == ([], [])


@virtual
async def test_an_undo_is_tried_again(world: World) -> None:
    """Rule 8: without any policy an undo is tried again; its attempts are its own."""
    books = Books()
    attempts: list[tuple[int, str, str]] = []
    books.failures["receipt hotel"] = 2

    async def undo(receipt: str) -> None:
        step = current_step()
        attempts.append((step.attempt, step.key, step.idempotency_key))
        await books.cancel(receipt)

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=undo)
        raise ValueError(proc.idempotency_key("hotel"))

    async with world.host(process) as host:
        error = await run_to_end(host, process)
        assert [attempt for attempt, _, _ in attempts] == [1, 2, 3]
        assert {key for _, key, _ in attempts} == {"hotel"}
        (name,) = {name for _, _, name in attempts}
        assert name != str(error.__cause__).split(": ")[1]
        assert name.endswith("/hotel")
        info = await host.get("p").info()
        assert info.compensation is not None
        assert info.compensation.done == ("hotel",)
        assert info.epoch == 1  # in one go


@virtual
async def test_attempts_of_the_step_are_not_those_of_its_undo(world: World) -> None:
    """Rule 11: what the step needed of its attempts leaves its undo all of its own."""
    books = Books()
    books.failures["receipt hotel"] = 2
    tries: list[int] = []

    async def book(name: str) -> str:
        if len(tries) < 2:
            tries.append(1)
            raise ConnectionError("no answer")
        return await books.book(name)

    async def process(proc: Process) -> None:
        three = RetryPolicy(attempts_max=3, delay_s=1.0)
        await proc.do("hotel", book, "hotel", undo=books.cancel, retry=three)
        await proc.event("go")
        raise ValueError("no")

    await world.begin_and_die(process, after_s=30)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        with pytest.raises(ProcessFailedError):
            await host.get("p").result()
        assert books.undone == ["receipt hotel"] * 3
        assert undos(world) == [DECIDED, ("undo", "hotel", "value")]


@virtual
async def test_an_undo_that_fails_for_good(world: World) -> None:
    """Rule 8: the others still run, what failed is seen, and a retry does only that again."""
    books = Books()
    books.failures["receipt flight"] = 1

    async def process(proc: Process) -> None:
        once = RetryPolicy(attempts_max=1)
        await proc.do("hotel", books.book, "hotel", undo=books.cancel, retry=once)
        await proc.do("flight", books.book, "flight", undo=books.cancel, retry=once)
        await proc.do("pay", books.fail)

    async with world.host(process) as host:
        await run_to_end(host, process)
        info = await host.get("p").info()
        assert info.status is Status.FAILED
        assert str(info.error) == "ValueError: no"
        assert info.compensation is not None
        assert info.compensation.done == ("hotel",)
        assert {key: str(e) for key, e in info.compensation.failed.items()} == {
            "flight": "ConnectionError: no answer about receipt flight"
        }
        await retry_compensation(world, "flight")
        with pytest.raises(ProcessFailedError, match="no"):
            await host.get("p").result()
        again = await host.get("p").info()
        assert again.compensation is not None
        assert again.compensation.done == ("flight", "hotel")
        assert books.undone == ["receipt flight", "receipt hotel", "receipt flight"]
        assert books.done == ["hotel", "flight"]


async def retry_compensation(world: World, *keys: str) -> None:
    """Forget the failed outcomes of these undos and let the process go on, as a retry does."""
    row = world.row("p")
    (answer,) = await world.storage.request(
        [
            Control(
                process_id="p",
                action=Action.RETRY,
                request_id="again",
                incarnation=row.incarnation,
                epoch=row.epoch,
                status=Status.COMPENSATING,
                forget=tuple(Place(Kind.UNDO, key, -1) for key in keys),
            )
        ]
    )
    assert answer.refused is None


@virtual
async def test_an_undo_has_the_timeout_of_its_step(world: World) -> None:
    """Rule 8: an undo that hangs is cut off and tried again, and cannot hold up the others."""
    books = Books()

    async def hangs(receipt: str) -> None:
        books.undone.append(receipt)
        await asyncio.sleep(10_000)

    async def process(proc: Process) -> None:
        twice = RetryPolicy(attempts_max=2, delay_s=1.0)
        await proc.do("hotel", books.book, "hotel", undo=books.cancel)
        await proc.do("flight", books.book, "flight", undo=hangs, timeout=5, retry=twice)
        raise ValueError("no")

    async with world.host(process) as host:
        await run_to_end(host, process)
        assert world.clock.monotonic_s() < 30
        assert books.undone == ["receipt flight", "receipt flight", "receipt hotel"]
        info = await host.get("p").info()
        assert info.compensation is not None
        assert list(info.compensation.failed) == ["flight"]


@virtual
async def test_the_result_of_an_undo_is_of_no_interest(world: World) -> None:
    """Rule 8: what an undo returns need not be anything that can be recorded."""
    books = Books()

    async def undo(receipt: str):  # type: ignore[no-untyped-def]
        await books.cancel(receipt)
        return object()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", undo=undo)
        raise ValueError("no")

    async with world.host(process) as host:
        await run_to_end(host, process)
        assert undos(world) == [DECIDED, ("undo", "hotel", "value")]


@virtual
async def test_an_undo_makes_no_durable_calls(world: World) -> None:
    """Rule 4: an undo that calls the process is a mistake in the program, and named as one."""
    books = Books()

    async def process(proc: Process) -> None:
        undo: Any = lambda receipt: proc.do("by hand", books.cancel, receipt)  # noqa: E731
        await proc.do("hotel", books.book, "hotel", undo=undo)
        raise ValueError("no")

    async with world.host(process) as host:
        await host.spawn(process, "p")
        with pytest.raises(ProcessQuarantinedError, match="'by hand' was used inside the body"):
            await host.get("p").result()
        assert books.undone == []


@virtual
async def test_a_step_that_runs_at_most_once_is_undone(world: World) -> None:
    """Rule 8: at_most_once and undo stand together; a step that may have run is not undone."""
    books = Books()

    async def process(proc: Process) -> None:
        await proc.do("hotel", books.book, "hotel", at_most_once=True, undo=books.cancel)
        await proc.do("slow", books.book, "slow", 20.0, at_most_once=True, undo=books.cancel)

    await world.begin_and_die(process, after_s=5)
    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError, match="StepInterruptedError"):
            await host.get("p").result()
        assert books.undone == ["receipt hotel"]


def test_a_renamed_step_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Rule 4: what the code asks for no more is not undone, and a warning names it."""

    @virtual
    async def body(world: World) -> None:
        books = Books()
        names = ["hotel", "inn"]

        async def process(proc: Process) -> None:
            await proc.do(names.pop(0), books.book, "hotel", undo=books.cancel)
            await proc.event("go")
            raise ValueError("no")

        await world.begin_and_die(process, after_s=5)
        async with world.host(process) as host:
            await host.raise_event("p", "go")
            with pytest.raises(ProcessFailedError):
                await host.get("p").result()
            assert undos(world) == [DECIDED, ("undo", "inn", "value")]

    with caplog.at_level(logging.WARNING, "durabletask"):
        body()
    assert any("do 'hotel'" in line for line in caplog.messages)
