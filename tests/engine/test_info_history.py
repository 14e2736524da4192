"""What can be seen of a process from outside."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durabletask import Process, ProcessClient, RetryPolicy, Status
from durabletask.errors import ProcessFailedError
from tests.engine.world import World, virtual


async def nop() -> None:
    """Do nothing; a step."""


async def empty(proc: Process) -> None: ...


@virtual
async def test_the_history_tells_the_story(world: World) -> None:
    """S3.01, S0.08: steps with values, errors, failed attempts, waits, events, in order."""

    async def value() -> list[int]:
        return [1, 2]

    tries: list[int] = []

    async def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError(f"failure {len(tries)}")
        return "third time"

    async def bad() -> None:
        raise KeyError("bad")

    async def process(proc: Process) -> None:
        await proc.do("value", value)
        await asyncio.sleep(1)
        await proc.do("flaky", flaky, retry=RetryPolicy(delay_s=10))
        try:
            await proc.do("bad", bad)
        except Exception:
            await asyncio.sleep(1)
        await proc.event("go", key="wait")
        await asyncio.sleep(1)
        await proc.delay("pause", timedelta(seconds=5))
        await asyncio.sleep(1)
        await proc.get("got", (1, 2))
        await asyncio.sleep(1)
        await proc.var("var", 7)

    async with world.host(process) as host:
        handle = await host.spawn(process, "p")
        await asyncio.sleep(50)
        await handle.raise_event("go", {"by": "carol"})
        await handle.result()
        history = await handle.history()
    assert [(each.kind, each.key, each.form) for each in history] == [
        ("do", "value", "value"),
        ("retry", "flaky", "value"),
        ("do", "flaky", "value"),
        ("do", "bad", "error"),
        ("wait", "wait", "value"),
        ("raised", "go", "value"),
        ("event", "wait", "value"),
        ("wait", "pause", "value"),
        ("delay", "pause", "value"),
        ("get", "got", "value"),
        ("var", "var", "value"),
    ]
    by = {(each.kind, each.key): each for each in history}
    assert by["do", "value"].value == [1, 2]
    assert by["retry", "flaky"].attempts == 2
    assert [str(each) for each in by["retry", "flaky"].errors] == [
        "ValueError: failure 1",
        "ValueError: failure 2",
    ]
    assert "KeyError" in str(by["do", "bad"].error)
    assert by["raised", "go"].value == by["event", "wait"].value == {"by": "carol"}
    assert all(each.epoch == 1 for each in history if each.kind != "raised")
    assert [each.at for each in history] == sorted(each.at for each in history)


@virtual
async def test_info_has_the_timestamps(world: World) -> None:
    """S2.08, S1.12: created, started, updated, finished, wake time, host, result or error."""

    async def process(proc: Process, fail: bool) -> int:
        await asyncio.sleep(10)
        await proc.do("step", nop)
        await asyncio.sleep(10)
        if fail:
            raise ValueError("bad")
        return 7

    async with world.host(process, label="kitchen") as host:
        begun = world.clock.now()
        good, bad = await host.spawn(process, "good", False), await host.spawn(process, "bad", True)
        info = await good.info()
        assert (info.status, info.host, info.result, info.error) == (
            Status.RUNNING,
            "kitchen",
            None,
            None,
        )
        assert (info.created_at, info.started_at, info.finished_at) == (begun, begun, None)
        await good.result()
        with pytest.raises(ProcessFailedError):
            await bad.result()
        done, failed = await good.info(), await bad.info()
    assert (done.status, done.result, done.error) == (Status.COMPLETED, 7, None)
    assert done.finished_at == done.updated_at == begun + timedelta(seconds=20)
    assert done.host is None
    assert (failed.status, failed.result) == (Status.FAILED, None)
    assert "bad" in str(failed.error)
    assert (done.incarnation, done.generation, done.epoch) == (1, 0, 1)


@virtual
async def test_info_of_a_process_that_has_only_been_created(world: World) -> None:
    """S2.08: before any host has it: running by status, not started, no host, its reason."""
    async with ProcessClient(world.storage, processes=[empty]) as client:
        handle = await client.spawn(empty, "p")
        info = await handle.info()
        assert (info.status, info.started_at, info.host) == (Status.RUNNING, None, None)
        assert info.reason is None
        assert await handle.history() == []


@virtual
async def test_list_filters_and_pages(world: World) -> None:
    """S2.18 (shape): by status, name, prefix and tags; every process once, in order of creation."""

    async def a(proc: Process) -> None:
        await proc.event("go")

    async def b(proc: Process) -> None:
        raise ValueError

    async with world.host(a, b) as host:
        for n in range(150):
            await host.spawn(a, f"order/{n}", tags={"odd": str(n % 2)})
            await asyncio.sleep(0.001)
        for n in range(130):
            await host.spawn(b, f"refund/{n}")
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)

        async def ids(**filters: Any) -> list[str]:
            return [each.id async for each in host.list(**filters)]

        everything = [f"order/{n}" for n in range(150)] + [f"refund/{n}" for n in range(130)]
        assert await ids() == everything
        assert await ids(name="b") == everything[150:]
        assert await ids(prefix="order/") == everything[:150]
        assert await ids(prefix="order/1") == [each for each in everything if "order/1" in each]
        assert await ids(status=Status.FAILED) == everything[150:]
        assert await ids(status="waiting") == everything[:150]
        assert await ids(status=[Status.FAILED, "waiting"]) == everything
        assert await ids(status="completed") == []
        assert await ids(tags={"odd": "1"}, prefix="order/14") == [
            f"order/{n}" for n in (141, 143, 145, 147, 149)
        ]
        assert await ids(name="nobody") == []


@virtual
async def test_a_handle_is_cheap_and_says_which_process(world: World) -> None:
    """get(id) looks nothing up; repr and id name the process, escaped."""
    async with world.host(empty) as host:
        handle = host.get("a\u202eb")
        assert handle.id == "a\u202eb"
        assert repr(handle).isascii()
        assert world.wires[host].calls.count("read") == 0


@virtual
async def test_get_is_typed_by_the_function(world: World) -> None:
    """get(fn, id): the result comes as the function's annotation says."""

    async def process(proc: Process) -> tuple[int, str]:
        return 1, "x"

    async with world.host(process) as host:
        await (await host.spawn(process, "p")).result()
        assert await host.get(process, "p").result() == (1, "x")
        assert await host.get("p").result() in ((1, "x"), [1, "x"])


@virtual
async def test_resuming_and_the_silent_logger(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """`resuming` is true while recorded calls are left; `log` is silent as long."""
    caplog.set_level("INFO")
    seen: list[tuple[bool, bool, bool]] = []

    async def process(proc: Process) -> None:
        proc.log.info("begins")
        before = proc.resuming
        await proc.do("a", nop)
        between = proc.resuming
        await proc.do("b", nop)
        proc.log.info("caught up")
        seen.append((before, between, proc.resuming))
        await proc.event("go")
        proc.log.info("went on")

    await world.begin_and_die(process)
    async with world.host(process) as host:
        await host.raise_event("p", "go")
        await host.get("p").result()
    assert seen == [(False, False, False), (True, True, False)]
    lines = [each.getMessage() for each in caplog.records if each.name == "durabletask.process"]
    assert lines == ["begins", "caught up", "caught up", "went on"]
    assert {
        each.__dict__["process_id"] for each in caplog.records if each.name == "durabletask.process"
    } == {"p"}


@pytest.mark.parametrize("bad", ["nonsense", 5, ["waiting", "nonsense"]])
def test_a_senseless_status_filter_is_a_clear_error(bad: Any) -> None:
    """Bad input: an unknown status names what is allowed."""

    @virtual
    async def body(world: World) -> None:
        async with world.host(empty) as host:
            with pytest.raises((ValueError, TypeError)):
                [each async for each in host.list(status=bad)]

    body()
