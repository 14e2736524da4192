"""What can be asked of a process from outside, one by one: by any client, in any state."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient, Status
from durabletask.errors import (
    InvalidArgumentError,
    ProcessBusyError,
    ProcessCancelledError,
    ProcessFailedError,
    ProcessFinishedError,
    ProcessStateError,
    ProcessTerminatedError,
    SerializationError,
    StorageUnknownError,
    UnknownProcessError,
)
from durabletask.storage import Controlled, Refusal
from tests.engine.world import World, settle, virtual


async def waits(proc: Process) -> str:
    await proc.event("go")
    return "went"


async def fails(proc: Process) -> None:
    raise ValueError("no")


async def empty(proc: Process) -> None: ...


@virtual
async def test_cancel_raises_in_the_process_and_from_its_result(world: World) -> None:
    """S1.09, S2.08: a waiting process meets the request; its result is that error."""
    met: list[str] = []

    async def process(proc: Process) -> None:
        try:
            await proc.event("go")
        except ProcessCancelledError as error:
            met.append(str(error))
            raise

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        await handle.cancel("no longer needed")
        with pytest.raises(ProcessCancelledError, match=r"^no longer needed$"):
            await handle.result()
        info = await handle.info()
    assert met == ["no longer needed"]
    assert info.status is Status.CANCELLED
    assert (info.cancel_requested, info.cancel_met, info.cancel_reason) == (
        True,
        True,
        "no longer needed",
    )


@virtual
async def test_cancel_without_a_reason(world: World) -> None:
    """S1.09: a reason is not needed, and a second request changes nothing."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p", start_at=timedelta(days=1))
        await handle.cancel()
        with pytest.raises(ProcessCancelledError, match="was cancelled"):
            await handle.result()
        with pytest.raises(ProcessFinishedError, match="is cancelled: cancel is not possible"):
            await handle.cancel("again")
        assert (await handle.info()).cancel_reason is None


@virtual
async def test_a_client_cancels_what_a_host_elsewhere_runs(world: World) -> None:
    """S1.09: any client may ask; the host that has the process hears of it."""
    async with world.host(waits) as host:
        await host.spawn(waits, "p")
        async with ProcessClient(world.storage) as client:
            await client.get("p").cancel("from afar")
        with pytest.raises(ProcessCancelledError, match="from afar"):
            await host.get(waits, "p").result()


@virtual
async def test_a_process_that_catches_its_cancellation_completes(world: World) -> None:
    """S1.09: cooperative: what catches it and returns is completed, and shows that it was asked."""

    async def process(proc: Process) -> str:
        try:
            await proc.event("go")
        except ProcessCancelledError:
            await proc.do("undo", asyncio.sleep, 0)
        return "cleaned up"

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        await handle.cancel()
        assert await handle.result() == "cleaned up"
        assert (await handle.info()).cancel_met


@virtual
async def test_terminate_ends_at_once_with_output(world: World) -> None:
    """S2.10: no more code runs; the result raises with reason and output; info shows them."""
    ran: list[str] = []

    async def process(proc: Process) -> None:
        try:
            await proc.event("go")
        finally:
            await proc.do("finally", ran.append, "must not run")

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        await handle.terminate("wrong customer", output={"refund": 7})
        with pytest.raises(ProcessTerminatedError, match=r"terminated: wrong customer$") as caught:
            await handle.result()
        assert caught.value.output == {"refund": 7}
        info = await handle.info()
        assert (info.status, info.result) == (Status.TERMINATED, {"refund": 7})
        assert isinstance(info.error, ProcessTerminatedError)
        assert info.error.output == {"refund": 7}
        await handle.terminate("again")
        assert (await handle.info()).result == {"refund": 7}
        with pytest.raises(ProcessFinishedError, match="possible now: purge"):
            await handle.suspend()
    assert ran == []


@virtual
async def test_terminate_needs_an_output_that_can_be_stored(world: World) -> None:
    """S2.10: an output without an exact JSON form is refused before anything is written."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p")
        with pytest.raises(SerializationError):
            await handle.terminate(output=float("nan"))
        for reason in (5, "x" * 20_000):
            with pytest.raises(InvalidArgumentError, match="a reason is"):
                await handle.cancel(reason)  # type: ignore[arg-type]
        assert not (await handle.info()).cancel_requested
        await handle.cancel("lone \ud800 surrogate")
        assert (await handle.info()).cancel_reason == "lone \\ud800 surrogate"


@virtual
async def test_suspend_lets_nothing_run_and_events_gather(world: World) -> None:
    """S2.09: suspended with reason; events are kept; after resume it takes them in order."""

    async def process(proc: Process) -> list[int]:
        return [await proc.event("n", int, key=f"n{turn}") for turn in range(3)]

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        await handle.suspend("audit")
        await asyncio.sleep(5)
        for number in range(3):
            await handle.raise_event("n", number)
        await asyncio.sleep(60)
        info = await handle.info()
        assert (info.status, info.suspend_reason) == (Status.SUSPENDED, "audit")
        assert info.reason == "it is suspended: audit"
        assert not [kind for kind, _, _ in world.keys("p") if kind == "event"]
        await handle.suspend("another reason changes nothing")
        assert (await handle.info()).suspend_reason == "audit"
        await handle.resume()
        assert await handle.result() == [0, 1, 2]
        assert (await handle.info()).suspend_reason is None


@virtual
async def test_a_timer_that_fell_due_while_suspended_runs_at_resume(world: World) -> None:
    """S2.09: a delay that is over meanwhile is over at resume, and says that it was late."""

    async def process(proc: Process) -> bool:
        return (await proc.delay("pause", timedelta(minutes=1))).on_time

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await settle()
        await handle.suspend()
        await asyncio.sleep(600)
        assert (await handle.info()).status is Status.SUSPENDED
        await handle.resume()
        assert await handle.result(timeout=5) is False


@virtual
async def test_terminate_and_cancel_work_on_what_is_suspended(world: World) -> None:
    """S2.09: terminate still works at once; cancel takes effect at resume."""
    async with world.host(waits) as host:
        first, second = [await host.spawn(waits, name) for name in ("a", "b")]
        await settle()
        for handle in (first, second):
            await handle.suspend()
        await asyncio.sleep(1)
        await first.terminate()
        with pytest.raises(ProcessTerminatedError):
            await first.result(timeout=5)
        await second.cancel("enough")
        await asyncio.sleep(60)
        assert (await second.info()).status is Status.SUSPENDED
        await second.resume()
        with pytest.raises(ProcessCancelledError, match="enough"):
            await second.result(timeout=5)


@virtual
async def test_resume_of_what_is_not_suspended_changes_nothing(world: World) -> None:
    """S2.09: resume is harmless, and refused only for what has ended or never was."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p")
        await handle.resume()
        await handle.raise_event("go")
        assert await handle.result() == "went"
        with pytest.raises(ProcessFinishedError, match="is completed: resume is not possible"):
            await handle.resume()


ASKED = ["cancel", "terminate", "suspend", "resume", "retry", "purge"]


@pytest.mark.parametrize("verb", ASKED)
@virtual
async def test_an_unknown_process_is_said_to_be_unknown(world: World, verb: str) -> None:
    """Every verb names the id that nobody has."""
    async with ProcessClient(world.storage) as client:
        with pytest.raises(UnknownProcessError, match="'nobody'"):
            await getattr(client.get("nobody"), verb)()


@virtual
async def test_what_is_not_possible_names_the_status_and_what_is(world: World) -> None:
    """The error says how the process stands and what can be asked of it instead."""
    async with world.host(waits, fails, empty) as host:
        running = await host.spawn(waits, "running")
        for verb in ("retry", "purge"):
            with pytest.raises(ProcessStateError, match=f"is (running|waiting): {verb}") as caught:
                await getattr(running, verb)()
            assert caught.value.hint == "possible now: cancel, suspend, terminate"
            assert caught.value.process_id == "running"
        failed = await host.spawn(fails, "failed")
        with pytest.raises(ProcessFailedError):
            await failed.result()
        with pytest.raises(ProcessFinishedError, match="possible now: purge, retry"):
            await failed.cancel()
        done = await host.spawn(empty, "done")
        await done.result()
        with pytest.raises(ProcessStateError, match="is completed: retry is not possible"):
            await done.retry()


@virtual
async def test_a_quarantined_process_cannot_be_suspended(world: World) -> None:
    """S2.09: it runs nowhere; it can be retried, cancelled or terminated."""

    async def process(proc: Process) -> None:
        await proc.do("a", asyncio.sleep, 0)
        await proc.do("a", asyncio.sleep, 0)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(5)
        with pytest.raises(ProcessStateError) as caught:
            await handle.suspend()
        assert caught.value.hint == "possible now: cancel, retry, terminate"
        await handle.terminate("given up")
        with pytest.raises(ProcessTerminatedError):
            await handle.result()


@virtual
async def test_purge_removes_the_finished_and_what_is_below(world: World) -> None:
    """S2.11: recursive, only what is complete, with a count; an unfinished child stays."""

    async def grandchild(proc: Process) -> None: ...

    async def child(proc: Process) -> None:
        await proc.call("grandchild", grandchild, process_id=f"{proc.id}/g")

    async def parent(proc: Process) -> None:
        for number in range(3):
            await proc.call(f"child{number}", child, process_id=f"c{number}")
        await proc.spawn("endless", waits, process_id="endless")

    async with world.host(parent, child, grandchild, waits) as host:
        handle = await host.spawn(parent, "p")
        await handle.result()
        assert await handle.purge() == 7
        left = [info.id async for info in host.list()]
        assert left == ["endless"]
        with pytest.raises(UnknownProcessError):
            await handle.purge()
        assert (await host.get("endless").info()).status is Status.WAITING


@virtual
async def test_purge_of_one_alone(world: World) -> None:
    """S2.11: not recursive, what is below stays."""

    async def parent(proc: Process) -> None:
        await proc.call("child", empty, process_id="c")

    async with world.host(parent, empty) as host:
        handle = await host.spawn(parent, "p")
        await handle.result()
        assert await handle.purge(recursive=False) == 1
        assert [info.id async for info in host.list()] == ["c"]


@pytest.mark.parametrize("verb", ASKED[:4])
@virtual
async def test_a_lost_answer_is_asked_for_again(world: World, verb: str) -> None:
    """A request whose answer is lost is repeated with the same id, and done once."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p")
        await settle()
        wire = world.wires[host]
        lost = [StorageUnknownError("lost")] * 3

        async def lose(call: str) -> None:
            if call == "request" and lost:
                raise lost.pop()

        wire.after = lose
        wire.calls.clear()
        await getattr(handle, verb)()
        assert wire.calls.count("request") == 4
    assert not lost


@virtual
async def test_a_purge_whose_answer_is_lost_counts_once(world: World) -> None:
    """S2.11: gone at the repeat means that the first call had removed it."""
    async with world.host(empty) as host:
        handle = await host.spawn(empty, "p")
        await handle.result()
        storage, purge = world.storage, world.storage.purge
        lost = [1]

        async def lose(ids: Any) -> Any:
            answers = await purge(ids)
            if lost:
                lost.pop()
                raise StorageUnknownError("lost")
            return answers

        storage.purge = lose  # type: ignore[method-assign,assignment]
        assert await handle.purge() == 1


@virtual
async def test_a_busy_process_is_asked_again_for_a_while(world: World) -> None:
    """A process that somebody's transaction holds is asked again, and named if it stays so."""
    async with world.host(waits) as host:
        handle = await host.spawn(waits, "p")
        await settle()
        request, refusals = world.storage.request, [2]

        async def busy(controls: Any) -> Any:
            if refusals[0]:
                refusals[0] -= 1
                return [Controlled(Refusal.BUSY) for _ in controls]
            return await request(controls)

        world.storage.request = busy  # type: ignore[method-assign]
        await handle.suspend()
        assert (await handle.info()).status is Status.SUSPENDED
        refusals[0] = 10_000
        with pytest.raises(ProcessBusyError, match="'p'"):
            await handle.resume()
        with pytest.raises(ProcessBusyError, match=r"1 processes, 'p' among them.*0 are done"):
            await host.resume(prefix="p")
