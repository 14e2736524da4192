"""Errors of a step: recorded, and equal on the first run and on every later one."""

import asyncio
import traceback
from dataclasses import dataclass
from typing import Any

import pytest

from durabletask import Process, RetryPolicy, Status
from durabletask.errors import (
    ProcessFailedError,
    RegistrationError,
    StepError,
    UnregisteredProcessError,
)
from durabletask.testing import VirtualClock, run_virtual
from tests.engine.world import World, settle, virtual


class TransferFailed(Exception):
    """Registered in the tests below."""


class Rich(Exception):
    def __init__(self, code: int, parts: tuple[str, ...]) -> None:
        super().__init__(code, parts)
        self.code = code
        self.parts = parts

    def __str__(self) -> str:
        return f"{self.code}: {'/'.join(self.parts)}"


class Lossy(Exception):
    def __init__(self, text: str, secret: object = None) -> None:
        super().__init__(text)
        self.secret = secret


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def cyclic() -> Exception:
    error = ValueError("cyclic")
    error.__cause__ = KeyError("cause")
    error.__cause__.__context__ = error
    error.args = (error,)
    return error


def grouped() -> Exception:
    return ExceptionGroup("many", [ValueError("one"), ExceptionGroup("in", [KeyError("two")])])


ERRORS: list[Any] = [
    lambda: ValueError("plain"),
    lambda: ValueError(),
    lambda: KeyError("k"),
    lambda: OSError(2, "no such file", "x"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    lambda: Exception("x" * 100_000),
    lambda: Exception("nul \x00 and \ud800 lone"),
    lambda: Exception(object()),
    lambda: StopIteration(5),
    lambda: StopAsyncIteration(),
    lambda: TimeoutError("t"),
    lambda: RecursionError("deep"),
    lambda: MemoryError(),
    lambda: type("Näme", (Exception,), {})("x"),
    lambda: type("x" * 5000, (Exception,), {})("x"),
    NoText,
    cyclic,
    grouped,
    lambda: Rich(5, ("a", "b")),
    lambda: Lossy("text", object()),
    lambda: TransferFailed("no funds"),
]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("make", ERRORS)
def test_an_error_is_equal_on_every_run(make: Any, sync: bool) -> None:
    """F111, S4.06, S4.15 (rules 2, 3): type, text and attributes equal; the step runs once."""

    @virtual
    async def body(world: World) -> None:
        seen: list[tuple[Any, ...]] = []
        ran: list[int] = []

        async def bad() -> None:
            ran.append(1)
            raise make()

        def bad_sync() -> None:
            ran.append(1)
            raise make()

        async def process(proc: Process) -> None:
            try:
                await proc.do("bad", bad_sync if sync else bad)
            except Exception as error:
                cause = error.__cause__
                seen.append(
                    (type(error), str(error), error.args, type(cause), str(cause), vars(error))
                )
            await proc.event("go")

        options = {"errors": [TransferFailed, Rich, Lossy]}
        host = world.host(process, **options)
        await host.start()
        handle = await host.spawn(process, "p")
        while not seen:
            await settle(5)
        await settle()
        assert (await handle.info()).status is Status.WAITING
        world.kill(host)
        async with world.host(process, **options) as again:
            await again.raise_event("p", "go")
            await again.get("p").result()
        assert len(seen) == 2
        assert seen[0] == seen[1]
        assert ran == [1]
        assert len(seen[0][1].encode("utf-8", "surrogatepass")) < 40_000

    body()


@virtual
async def test_an_unregistered_error_is_a_step_error(world: World) -> None:
    """Rule 3, S4.06: StepError with the type's name and the message; it names no code to load."""

    async def bad() -> None:
        raise TransferFailed("no funds")

    async def process(proc: Process) -> list[str]:
        with pytest.raises(StepError) as caught:
            await proc.do("bad", bad)
        return [caught.value.type, caught.value.message]

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == ["TransferFailed", "no funds"]


@virtual
async def test_a_registered_error_comes_back_as_itself(world: World) -> None:
    """Rule 3, S4.03: `except TransferFailed` works on both runs, chained from StepError."""
    caught: list[Exception] = []

    async def bad() -> None:
        raise TransferFailed("no funds", 5)

    async def refund() -> str:
        return "refunded"

    async def process(proc: Process) -> str:
        try:
            await proc.do("bad", bad)
        except TransferFailed as error:
            caught.append(error)
            await proc.event("go")
            return await proc.do("refund", refund)
        return "moved"

    await world.begin_and_die(process, errors=[TransferFailed])
    async with world.host(process, errors=[TransferFailed]) as host:
        await host.raise_event("p", "go")
        assert await host.get(process, "p").result() == "refunded"
    assert [each.args for each in caught] == [("no funds", 5)] * 2
    for error in caught:
        assert isinstance(error.__cause__, StepError)
        assert error.__cause__.type == "TransferFailed"


@virtual
async def test_a_subclass_of_a_registered_error_is_not_that_class(world: World) -> None:
    """Rule 3: what was not registered comes as StepError, never as some base of it."""

    class Special(TransferFailed):
        pass

    async def bad() -> None:
        raise Special("x")

    async def process(proc: Process) -> str:
        try:
            await proc.do("bad", bad)
        except TransferFailed:
            return "TransferFailed"
        except StepError as error:
            return error.type
        return ""

    async with world.host(process, errors=[TransferFailed]) as host:
        assert await (await host.spawn(process, "p")).result() == "Special"


@pytest.mark.parametrize("bad", [[int], [KeyboardInterrupt], ["x"], [TransferFailed()], [None]])
def test_what_is_no_error_class_is_refused(bad: Any) -> None:
    """Bad input: errors=[…] takes exception classes; a clear error before anything starts."""

    @virtual
    async def body(world: World) -> None:
        with pytest.raises(RegistrationError):
            world.host(errors=bad)

    body()


@virtual
async def test_the_step_error_of_a_first_run_shows_where_it_came_from(world: World) -> None:
    """Rule 3: the error leaves at the call: the traceback names the process function's line."""
    text: list[str] = []

    async def bad() -> None:
        raise ValueError("bad")

    async def process(proc: Process) -> None:
        try:
            await proc.do("bad", bad)
        except StepError as error:
            text.append("".join(traceback.format_exception(error)))

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    assert 'await proc.do("bad", bad)' in text[0]


@virtual
async def test_a_workflow_goes_on_after_a_failed_step(world: World) -> None:
    """S0.04: no retry for an expected error; `except StepError`, and the process goes on."""
    ran: list[str] = []

    async def expected() -> None:
        ran.append("expected")
        raise TransferFailed("closed")

    async def process(proc: Process) -> str:
        try:
            policy = RetryPolicy(attempts_max=10, give_up_on=(TransferFailed,))
            await proc.do("may fail", expected, retry=policy)
        except StepError:
            return "went on"
        return "not reached"

    async with world.host(process) as host:
        assert await (await host.spawn(process, "p")).result() == "went on"
    assert ran == ["expected"]


# --- how a process ends -----------------------------------------------------------------------


@pytest.mark.parametrize("make", ERRORS)
def test_an_error_that_leaves_the_function_ends_the_process(make: Any) -> None:
    """S3.04, S4.17, F111 (rule 9): failed, error and history kept; result() raises on any host."""

    @virtual
    async def body(world: World) -> None:
        async def fine() -> int:
            return 5

        async def process(proc: Process) -> None:
            await proc.do("fine", fine)
            raise make()

        async def look(host: Any) -> tuple[str, str, str]:
            with pytest.raises(ProcessFailedError) as caught:
                await host.get("p").result()
            info = await host.get("p").info()
            assert info.status is Status.FAILED
            assert info.error is not None
            assert info.finished_at == world.clock.now()
            assert [each.key for each in await host.get("p").history()] == ["fine"]
            return str(caught.value), caught.value.type, repr(caught.value.__cause__)

        options = {"errors": [TransferFailed, Rich, Lossy]}
        async with world.host(process, **options) as host:
            await host.spawn(process, "p")
            first = await look(host)
        async with world.host(process, **options) as again:
            assert await look(again) == first

    body()


@virtual
async def test_a_failed_process_is_not_run_again(world: World) -> None:
    """S0.01, S4.11, S4.17: not resumed, not silently completed, not deleted."""
    ran: list[int] = []

    async def process(proc: Process) -> None:
        ran.append(1)
        raise ValueError("bad")

    async with world.host(process) as host:
        with pytest.raises(ProcessFailedError):
            await (await host.spawn(process, "p")).result()
    async with world.host(process) as again:
        await asyncio.sleep(100)
        with pytest.raises(ProcessFailedError, match="bad"):
            await (await again.spawn(process, "p")).result()
        assert [each.id async for each in again.list(status=Status.FAILED)] == ["p"]
    assert ran == [1]


@virtual
async def test_a_client_without_the_error_classes_can_still_look(world: World) -> None:
    """Rule 9, S3.04: a client that was not given errors=[…] reads result, info, history."""
    from durabletask import ProcessClient

    async def bad() -> None:
        raise TransferFailed("no funds")

    async def process(proc: Process) -> None:
        await proc.do("bad", bad)

    async with world.host(process, errors=[TransferFailed]) as host:
        with pytest.raises(ProcessFailedError) as caught:
            await (await host.spawn(process, "p")).result()
        assert isinstance(caught.value.__cause__, TransferFailed)
    async with ProcessClient(world.storage) as client:
        handle = client.get("p")
        with pytest.raises(ProcessFailedError, match="TransferFailed: no funds") as seen:
            await handle.result()
        assert seen.value.type == "TransferFailed"
        info = await handle.info()
        assert "no funds" in str(info.error)
        (entry,) = await handle.history()
        assert "no funds" in str(entry.error)
        assert [each.id async for each in client.list()] == ["p"]


@dataclass
class Outcome:
    n: int


@virtual
async def test_a_client_without_the_function_reads_the_result(world: World) -> None:
    """S2.08: get(id) gives plain JSON values, get(fn, id) the annotated class."""
    from durabletask import ProcessClient

    async def process(proc: Process) -> Outcome:
        return Outcome(5)

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
    async with ProcessClient(world.storage) as client:
        assert await client.get(process, "p").result() == Outcome(5)
        assert (await client.get("p").info()).result == {"n": 5}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("retry", [None, RetryPolicy(delay_s=0)])
@pytest.mark.parametrize("where", ["step", "function"])
def test_leaving_the_program_is_no_outcome(kind: Any, retry: Any, where: str) -> None:
    """F012, F013: sys.exit() in a step or function leaves the loop; nothing is recorded of it."""
    kept: list[World] = []

    async def main(clock: VirtualClock) -> None:
        world = World(clock)
        kept.append(world)

        async def leave() -> None:
            raise kind(3)

        async def process(proc: Process) -> None:
            if where == "function":
                await leave()
            try:
                await proc.do("leave", leave, retry=retry)
            finally:
                await proc.do("refund", asyncio.sleep, 0, "refunded")

        async with world.host(process) as host:
            await (await host.spawn(process, "p")).result(timeout=60)

    with pytest.raises(kind):
        run_virtual(main)
    assert kept[0].keys("p") == []
    assert kept[0].row("p").ending is None


@virtual
async def test_an_odd_base_exception_does_not_leave_a_process_in_limbo(world: World) -> None:
    """F082: user code that raises a BaseException of its own: the waiter learns of it."""

    class Odd(BaseException):
        pass

    async def process(proc: Process) -> None:
        raise Odd("neither error nor exit")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        with pytest.raises(Exception, match="Odd") as caught:
            await handle.result(timeout=600)
        assert not isinstance(caught.value, TimeoutError)


@virtual
async def test_a_function_that_is_not_registered(world: World) -> None:
    """S4.14: spawn of an unregistered function: clear error, nothing written."""

    async def process(proc: Process) -> None: ...

    async with world.host() as host:
        with pytest.raises(UnregisteredProcessError, match="not registered"):
            await host.spawn(process, "p")
        assert [each async for each in host.list()] == []
