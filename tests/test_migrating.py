"""docs/migrating.md: our side of each pair runs and does what the other side did."""

import asyncio
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import durabletask
from durabletask import Process, ProcessHandle, ProcessHost
from tests.engine.world import World, virtual

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DID: list[str] = []


def service(name: str) -> Any:
    """Return a step that notes that it ran."""

    async def run(*args: object) -> str:
        DID.append(f"{name} {args[0]}")
        return f"{name}/{args[0]}"

    return run


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the page defines."""
    services = ModuleType("services")
    for name in ("activate", "ask", "create", "charge", "refund", "ship"):
        setattr(services, name, service(name))
    monkeypatch.setitem(sys.modules, "services", services)
    DID.clear()
    names: dict[str, Any] = {"__name__": "migrated"}
    for block in BLOCKS:
        exec(block, names)
    return names


def test_registering_a_user(code: dict[str, Any]) -> None:
    """Issue 4.7: the saga of Gaev.DurableTask, killed while it waits, goes on here."""

    @virtual
    async def test(world: World) -> None:
        await world.begin_and_die(code["register"], "carol")
        async with world.host(code["register"]) as host:
            await host.raise_event("p", "answer")
            await host.get("p").result()

    test()
    assert DID == ["create carol", "ask carol", "activate create/carol"]


@pytest.mark.parametrize("approved", [True, False])
def test_an_order(code: dict[str, Any], approved: bool) -> None:
    """Issue 4.7: the workflow of DBOS, with its timeout and without."""

    @virtual
    async def test(world: World) -> None:
        world.allow(2)
        await world.begin_and_die(code["fulfil"], "7")
        async with world.host(code["fulfil"]) as host:
            await asyncio.sleep(60)
            if approved:
                await host.raise_event("p", "approval")
            assert await host.get("p").result() == ("shipped" if approved else "refunded")

    test()
    last = "ship 7" if approved else "refund charge/7"
    assert list(DID) == ["charge 7", last]


def test_the_names_of_the_tables_exist() -> None:
    """Issue 4.7: each call and option that the pages name as ours is one."""
    pages = [PAGE, (Path(__file__).parents[1] / "docs" / "comparison.md").read_text("utf-8")]
    for page in pages:
        for owner, name in re.findall(r"`(?:await )?(proc|handle|host)\.(\w+)", page):
            kind = {"proc": Process, "handle": ProcessHandle, "host": ProcessHost}[owner]
            theirs = name[0].isupper()  # C#
            assert theirs or hasattr(kind, name), (owner, name)
    for name in ("retry", "concurrency"):
        assert name in inspect.signature(ProcessHost.process).parameters
    assert "from_key" in inspect.signature(ProcessHandle.retry).parameters
    assert hasattr(durabletask.RetryPolicy(), "factor")
