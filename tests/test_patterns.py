"""The page of patterns: its code is that of the samples, its output theirs, and each survives."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durabletask import ProcessClient, ProcessHost
from durabletask.errors import ProcessFailedError, ProcessStateError
from durabletask.testing import crash_everywhere

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "patterns.md").read_text(encoding="utf-8")
SAMPLES = sorted((ROOT / "samples" / "patterns").glob("*.py"))
SECTIONS = {
    found[1]: section
    for section in PAGE.split("\n## ")[1:]
    if (found := re.search(r"samples/patterns/(\w+)\.py", section))
}


def load(name: str) -> Any:
    """Return a fresh copy of a sample as a module; its outside world is as new."""
    path = ROOT / "samples" / "patterns" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"pattern_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


def blocks(section: str, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_each_sample_has_its_section() -> None:
    """The page tells of every sample, and of no other."""
    assert sorted(SECTIONS) == [path.stem for path in SAMPLES]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_page_shows_what_runs(path: Path) -> None:
    """S2.17: each block of code is in the sample word for word, and the output is what it prints.

    The sample runs as a program of its own, with warnings as errors.
    """
    section = SECTIONS[path.stem]
    code = path.read_text(encoding="utf-8")
    shown = blocks(section, "python")
    assert shown
    for block in shown:
        for part in block.strip("\n").split("\n\n\n"):
            assert part in code, part
    (output,) = blocks(section, "text")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == output


def saga() -> dict[str, Any]:
    """A trip that cannot be booked whole: the bookings are gone, each undone."""
    module = load("saga")

    def reset() -> None:
        module.agency.__init__()

    return {
        "fn": module.trip,
        "args": ("Oslo",),
        "host": partial(ProcessHost, errors=[module.SoldOutError]),
        "reset": reset,
        "observe": lambda: module.agency.bookings,
    }


def approval() -> dict[str, Any]:
    """An expense that is approved at once."""
    module = load("approval")
    answer = module.Answer(by="carol", approved=True)
    return {"fn": module.expense, "args": ("a lamp",), "events": [("Answer", answer)]}


def polling() -> dict[str, Any]:
    """A job that is ready after some minutes."""
    return {"fn": load("polling").render, "args": ("small",)}


def fan_out() -> dict[str, Any]:
    """Every invoice is made."""
    module = load("fan_out")

    def reset() -> None:
        module.counter.__init__()

    return {
        "fn": module.monthly_invoices,
        "args": ("2026-01",),
        "reset": reset,
        "observe": lambda: sorted(set(module.counter.made)),
    }


def children() -> dict[str, Any]:
    """Two parcels, one lost."""
    module = load("children")
    return {
        "fn": module.order,
        "args": (["ox", "vase"],),
        "processes": [module.parcel, module.survey],
    }


def long_loop() -> dict[str, Any]:
    """Each page is copied, and one at most is copied again."""
    module = load("long_loop")
    module.PAGES = 5
    return {
        "fn": module.copy_table,
        "args": (),
        "reset": module.copied.clear,
        "observe": lambda: (sorted(module.copied), sum(module.copied.values()) <= 6),
    }


def rate_limit() -> dict[str, Any]:
    """A text that is refused once."""
    module = load("rate_limit")

    def reset() -> None:
        module.api.window, module.api.asked = 0, 2

    return {
        "fn": module.article,
        "args": ("text",),
        "host": partial(ProcessHost, errors=[module.TooManyRequestsError]),
        "reset": reset,
    }


def correction() -> dict[str, Any]:
    """An order that is mended by hand, whenever the program dies meanwhile."""
    module = load("correction")

    def reset() -> None:
        module.addresses["ben"] = "?"

    async def main(host: ProcessHost) -> None:
        handle = await host.spawn(module.order, "order/ben", "ben")
        try:
            await handle.result()
        except ProcessFailedError:
            module.addresses["ben"] = "2 Side Street"
            try:
                await handle.retry()
            except ProcessStateError:
                pytest.fail("it has failed, so it can be retried")
            assert await handle.result() == "delivered to 2 Side Street"

    return {"fn": module.order, "args": ("ben",), "main": main, "reset": reset}


CRASHES = [saga, approval, polling, fan_out, children, long_loop, rate_limit, correction]


@pytest.mark.parametrize("make", CRASHES, ids=lambda make: make.__name__)
def test_dead_at_every_call(make: Any) -> None:
    """F024: the program dies before and after each storage call; the pattern ends the same."""
    options = make()
    crash_everywhere(options.pop("fn"), *options.pop("args"), **options).check()


def test_a_restart_is_one_record() -> None:
    """F024: dead at every call around two restarts: the third day comes once."""
    module = load("long_loop")

    async def take_stock(day: int) -> int:
        if day == 2:
            raise ValueError("sold out")
        return day

    module.take_stock = take_stock
    crash_everywhere(module.watch_stock, 0).check()


def test_every_pattern_dies_everywhere() -> None:
    """No sample is left out of the test above."""
    assert {make.__name__ for make in CRASHES} == {path.stem for path in SAMPLES}


def test_an_expense_that_nobody_decides() -> None:
    """The other way through the approval: reminded three times in all, then it expires."""
    module = load("approval")
    sent: list[str] = []

    async def send_mail(text: str) -> None:
        sent.append(text)

    module.send_mail = send_mail

    async def main(clock: Any) -> str:
        storage = module.MemoryStorage(clock, lease_ttl_s=None)
        async with ProcessHost(storage, processes=[module.expense], clock=clock) as host:
            handle = await host.spawn(module.expense, "p", "a desk")
            async with asyncio.timeout(8 * 86_400):
                return str(await handle.result())

    assert module.run_virtual(main) == "expired"
    assert [text.split(":")[0] for text in sent] == [
        "please approve",
        "reminder 1",
        "reminder 2",
        "reminder 3",
        "nobody has decided about a desk",
    ]


def test_an_answer_that_came_while_nothing_ran() -> None:
    """As the page says: it counts, though the deadline has passed when the program starts again."""
    module = load("approval")

    async def main(clock: Any) -> str:
        storage = module.MemoryStorage(clock, lease_ttl_s=None)
        async with ProcessHost(storage, processes=[module.expense], clock=clock) as host:
            await host.spawn(module.expense, "p", "a desk")
            await asyncio.sleep(3_600)
        answer = module.Answer(by="carol", approved=False)
        await ProcessClient(storage).raise_event("p", answer)
        await asyncio.sleep(30 * 86_400)
        async with ProcessHost(storage, processes=[module.expense], clock=clock) as host:
            return str(await host.get("p").result())

    assert module.run_virtual(main) == "refused by carol"


def test_a_retry_takes_back_what_it_is_told() -> None:
    """As the page says: `retry(from_key=)` puts aside all from there on, effects included."""
    module = load("correction")
    charged: list[str] = []

    async def charge(customer: str) -> None:
        charged.append(customer)

    module.charge = charge

    async def main(clock: Any) -> list[bool]:
        storage = module.MemoryStorage(clock, lease_ttl_s=None)
        async with ProcessHost(storage, processes=[module.order], clock=clock) as host:
            handle = await host.spawn(module.order, "p", "ben")
            with pytest.raises(ProcessFailedError):
                await handle.result()
            module.addresses["ben"] = "2 Side Street"
            await handle.retry(from_key="charge")
            await handle.result()
            return [entry.forgotten for entry in await handle.history()]

    assert module.run_virtual(main).count(True) == 2
    assert charged == ["ben", "ben"]
