"""The page of concepts says what the code says: every verb, status, limit and error."""

import ast
import asyncio
import inspect
import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durabletask import (
    Limits,
    MemoryStorage,
    Process,
    ProcessClient,
    ProcessHandle,
    ProcessHost,
    RetryPolicy,
    Status,
    errors,
)
from durabletask._filter import Filter
from durabletask._transitions import NEXT
from durabletask.testing import VirtualClock, run_virtual

PAGE = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`\n]+)`|^    (.+)$", re.MULTILINE)
INLINE = [inline or block for inline, block in CODE.findall(PAGE)]


def named(word: str) -> bool:
    """Return whether the page has a word in code."""
    return any(re.search(rf"\b{re.escape(word)}\b", code) for code in INLINE)


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def public(cls: type) -> list[str]:
    """Return the public methods and properties of a class, inherited ones too."""
    return [name for name, _ in inspect.getmembers(cls) if not name.startswith("_")]


@pytest.mark.parametrize("name", [*public(Process), *public(ProcessHandle)])
def test_every_verb_is_told(name: str) -> None:
    """What a process can say and what can be done to it stands on the page."""
    assert named(name)


@pytest.mark.parametrize("cls", [Process, ProcessHost, ProcessClient])
def test_every_option_is_told(cls: type) -> None:
    """Each option of a durable call and of `spawn` stands on the page."""
    methods = public(Process) if cls is Process else ["spawn", "raise_event", "list", "process"]
    missing = []
    for method in methods:
        function = getattr(cls, method)
        if not callable(function):
            continue
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and not named(name):
                missing.append(f"{method}({name}=)")
    assert [each for each in missing if each not in ("list(limit=)", "process(name=)")] == []


def test_the_filter_is_told() -> None:
    """Everything that processes can be looked for by stands on the page."""
    assert [name for name in Filter.__annotations__ if not named(name)] == []


def test_the_table_of_statuses_is_the_table() -> None:
    """Which status may follow which is told as it is."""
    told = {}
    for name, _, after in rows("Statuses"):
        told[Status(name.strip("`"))] = {
            Status(word) for word in re.findall(r"`(\w+)`", after.split("(")[0])
        }
    assert told == {status: set(after) for status, after in NEXT.items()}


def test_the_limits_are_told() -> None:
    """Each limit stands on the page with its default."""
    defaults = {field.name: field.default for field in fields(Limits)}
    text = {cells[0]: cells[1:] for cells in rows("Names and limits")}
    for name, default in defaults.items():
        assert isinstance(default, int)
        whole = default % 2**20 == 0
        number = f"{default // 2**20} MiB" if whole else f"{default:,}"
        row = next((cells for key, cells in text.items() if f"`{name}`" in key), None)
        if row is None:
            row = next(cells for cells in text.values() if f"`{name}`" in cells[1])
        assert number in " ".join(row), name


def test_the_retry_policy_is_told() -> None:
    """Each member of a policy stands on the page, with its default where that is a number."""
    call = re.search(r"`RetryPolicy\((attempts_max[^)]*)\)`", PAGE)
    assert call is not None
    told = dict(part.split("=") for part in call[1].split(", "))
    policy = RetryPolicy()
    assert {name: str(getattr(policy, name)) for name in told} == told
    assert [field.name for field in fields(RetryPolicy) if not named(field.name)] == []


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_told(name: str) -> None:
    """Each class of errors stands on the page, but for the base of those about one process."""
    assert named(name) or name == "ProcessError"


BLOCKS = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", PAGE, re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[0])
def test_its_code_is_code(block: str) -> None:
    """What is shown as code can be read as such, and calls only what there is."""
    lines = [line[4:] for line in block.splitlines()]
    body = "\n".join(f"    {line}" for line in lines)
    body = body.replace(", …)", ", *rest)").replace("…", "...")
    tree = ast.parse(f"async def page():\n{body}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = OWNERS.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            check_keywords(node, node.func)


OWNERS = {"proc": Process, "host": ProcessHost, "handle": ProcessHandle, "client": ProcessClient}


def check_keywords(call: ast.Call, function: ast.Attribute) -> None:
    """Refuse an option that the call shown does not have."""
    owner = OWNERS.get(function.value.id) if isinstance(function.value, ast.Name) else None
    if owner is None:
        return
    parameters = inspect.signature(getattr(owner, function.attr)).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        assert {keyword.arg for keyword in call.keywords} <= {*parameters}, ast.unparse(call)


async def nothing() -> None:
    """Do nothing; a step."""


async def used_twice(proc: Process) -> None:
    await proc.do("ship", nothing)
    await proc.do("ship", nothing)


async def asks_otherwise(proc: Process) -> None:
    await proc.event("go")
    if proc.resuming:
        await proc.delay("ship", timedelta(0))
    await proc.do("ship", nothing)
    await proc.event("never")


async def nested(proc: Process) -> None:
    async def body() -> None:
        await proc.do("ship", nothing)

    await proc.do("outer", body)


async def races_a_step(proc: Process) -> None:
    await proc.race("first", proc.do("ship", nothing))  # type: ignore[arg-type]


async def lends(proc: Process) -> None:
    async def is_late() -> None:
        await asyncio.sleep(60)
        await proc.do("ship", nothing)

    LENT.append(proc)
    LATE.append(asyncio.create_task(is_late()))
    await proc.event("back")


async def borrows(proc: Process) -> None:
    await LENT[0].do("ship", nothing)


LENT: list[Process] = []
LATE: list[asyncio.Task[None]] = []
MISUSES = [used_twice, asks_otherwise, nested, races_a_step, lends, borrows]


def test_misuse_is_told_as_it_is() -> None:
    """What the page says that errors say, they say."""
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    said: list[str] = []

    async def outcome(host: ProcessHost, fn: Any, process_id: str) -> None:
        handle = await host.spawn(fn, process_id)
        with pytest.raises(errors.ProcessError) as caught:
            await handle.result()
        said.append(str(caught.value.__cause__))

    async def main(clock: VirtualClock) -> None:
        storage = MemoryStorage(clock, lease_ttl_s=None)
        async with ProcessHost(storage, processes=MISUSES, clock=clock) as host:
            await host.spawn(asks_otherwise, "p")
            await host.raise_event("p", "go")
            await asyncio.sleep(1)
        async with ProcessHost(storage, processes=MISUSES, clock=clock) as host:
            await outcome(host, used_twice, "order/1")
            await outcome(host, asks_otherwise, "p")
            await outcome(host, nested, "order/3")
            lender = await host.spawn(lends, "order/7")
            await asyncio.sleep(1)
            await outcome(host, borrows, "order/8")
            with pytest.raises(errors.WrongContextError) as foreign:
                await LENT[0].do("ship", nothing)
            said.append(str(foreign.value))
            await lender.raise_event("back")
            await lender.result()
            with pytest.raises(errors.WrongContextError) as late:
                await LATE[0]
            said.append(str(late.value))
            await outcome(host, races_a_step, "order/9")

    LENT.clear()
    LATE.clear()
    run_virtual(main)
    assert said == block.rstrip("\n").split("\n\n")


def test_links_within_the_page() -> None:
    """The table of contents leads to headings."""
    headings = {
        re.sub(r"[^\w -]", "", line[3:]).strip().lower().replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("## ")
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) == headings
