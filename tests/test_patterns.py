"""docs/patterns.md: every pattern runs, is killed on the way, and comes to the end that is told."""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from durabletask import Status
from durabletask.errors import ProcessFailedError
from tests.engine.world import World, virtual

PAGE = (Path(__file__).parents[1] / "docs" / "patterns.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Shop(ModuleType):
    """The outside world of the patterns: what was done in it, and what is to fail."""

    def __init__(self) -> None:
        super().__init__("shop")
        self.did: list[str] = []
        self.pending = 3
        self.busy: Counter[str] = Counter()
        self.charges = True
        self.hotels = True

        class TooManyRequests(Exception):
            pass

        self.TooManyRequests = TooManyRequests

    def note(self, *what: object) -> None:
        self.did.append(" ".join(map(str, what)))

    async def book_hotel(self, city: str) -> str:
        if not self.hotels:
            raise LookupError(f"no hotel in {city}")
        self.note("hotel", city)
        return f"hotel in {city}"

    async def book_flight(self, city: str) -> str:
        self.note("flight", city)
        return f"flight to {city}"

    async def cancel_hotel(self, hotel: str) -> None:
        self.note("cancel", hotel)

    async def cancel_flight(self, flight: str) -> None:
        self.note("cancel", flight)

    async def charge(self, hotel: str, flight: str) -> None:
        if not self.charges:
            raise ValueError("no money")
        self.note("charge")

    async def remind(self, what: str) -> None:
        self.note("remind", what)

    async def ask_status(self, job: str) -> str:
        self.pending -= 1
        return "pending" if self.pending >= 0 else f"{job} is done"

    async def list_orders(self, month: str) -> list[int]:
        return list(range(30))

    async def render(self, order: int) -> str:
        await asyncio.sleep(1)
        self.note("page", order)
        return str(order)

    async def send(self, whom: str, pages: int) -> None:
        self.note("send", whom, pages)

    async def pack(self, parcel: str) -> None:
        self.note("pack", parcel)

    async def copy_page(self, table: str, page: int) -> bool:
        await asyncio.sleep(1)
        self.note("copy", page)
        return page < 9

    async def bill(self, customer: str, month: int) -> None:
        self.note("bill", customer, month)

    async def translate(self, text: str) -> str:
        self.busy[text] += 1
        if self.busy[text] < 3:
            raise self.TooManyRequests
        self.note("translate", text)
        return text.upper()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop()
    monkeypatch.setitem(sys.modules, "shop", shop)
    return shop


def code(world: World | None = None) -> dict[str, Any]:
    """Return what the blocks of the page define, in one namespace."""
    names: dict[str, Any] = {"__name__": "patterns"}
    if world is not None:
        names["proc_now"] = world.clock.now
    for block in BLOCKS:
        exec(block, names)
    return names


async def killed_and_resumed(
    world: World, fn: Callable[..., Coroutine[Any, Any, Any]], *args: Any, after_s: float = 5.5
) -> None:
    """Begin a process "p" on a host that dies by kill -9."""
    await world.begin_and_die(fn, *args, after_s=after_s)


def test_the_blocks_are_one_page() -> None:
    """Issue 4.7: each pattern of the issue has its heading."""
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert len(headings) == 8
    assert all(len(line) <= 100 for block in BLOCKS for line in block.splitlines())


def test_saga(shop: Shop) -> None:
    """Issue 4.7: the steps of a saga are undone in reverse order when a later one fails."""

    @virtual
    async def test(world: World) -> None:
        shop.charges = False
        travel = code()["travel"]
        async with world.host(travel) as host:
            with pytest.raises(ProcessFailedError):
                await (await host.spawn(travel, "p", "Lisbon")).result()
            shop.charges = True
            good = await host.spawn(travel, "q", "Rome")
            assert await good.result() == "hotel in Rome, flight to Rome"

    test()
    assert shop.did[:4] == [
        "hotel Lisbon",
        "flight Lisbon",
        "cancel flight to Lisbon",
        "cancel hotel in Lisbon",
    ]


@pytest.mark.parametrize("answers", [True, False])
def test_approval(shop: Shop, answers: bool) -> None:
    """Issue 4.7: reminded each day, over after seven, whatever restarts between."""

    @virtual
    async def test(world: World) -> None:
        world.allow(20)
        names = code(world)
        await killed_and_resumed(world, names["approval"], "a car", after_s=2.5 * 86_400)
        begun_s = world.clock.monotonic_s()
        async with world.host(names["approval"]) as host:
            handle = host.get("p")
            if answers:
                await asyncio.sleep(86_400)
                await handle.raise_event("decision", names["Decision"]("carol", approved=True))
                assert await handle.result() == "approved by carol"
                assert shop.did == ["remind a car"] * 3
                return
            assert await handle.result() == "nobody answered"
            assert world.clock.monotonic_s() - begun_s == pytest.approx(4.5 * 86_400, abs=9)
            assert shop.did == ["remind a car"] * 7

    test()


@pytest.mark.parametrize("name", ["poll_in_rounds", "poll_as_one_step"])
def test_polling(shop: Shop, name: str) -> None:
    """Issue 4.7: asked until it is ready, over a restart; given up in time."""

    @virtual
    async def test(world: World) -> None:
        world.allow(2)
        shop.pending = 5
        poll = code()[name]
        await killed_and_resumed(world, poll, "job")
        async with world.host(poll) as host:
            assert await host.get("p").result() == "job is done"
            shop.pending = 10**6
            late = await host.spawn(poll, "q", "job")
            with pytest.raises(ProcessFailedError):
                await late.result()
            assert world.clock.monotonic_s() < 7 * 3600

    test()


def test_fan_out(shop: Shop) -> None:
    """Issue 4.7: no page that is recorded is rendered again."""

    @virtual
    async def test(world: World) -> None:
        invoices = code()["invoices"]
        await killed_and_resumed(world, invoices, "May", after_s=1.5)
        async with world.host(invoices) as host:
            assert await host.get("p").result() == 30

    test()
    done = Counter(shop.did)
    # Twenty were rendered before the host died, ten were in flight, whose bodies no kill stops.
    assert sum(done[f"page {n}"] for n in range(20)) == 20
    assert all(done[f"page {n}"] <= 2 for n in range(20, 30))
    assert (done["send customer 30"], done["send books 30"]) == (1, 1)


def test_children(shop: Shop) -> None:
    """Issue 4.7: children have ids, take events, and are waited for."""

    @virtual
    async def test(world: World) -> None:
        names = code()
        order, shipment = names["order"], names["shipment"]
        host = world.host(order, shipment)
        await host.start()
        await host.spawn(order, "p", ["a", "b"])
        await asyncio.sleep(1)
        world.kill(host)
        async with world.host(order, shipment) as host:
            for parcel in ("b", "a"):
                await host.raise_event(f"shipment/{parcel}", "delivered", f"{parcel} is there")
            assert await host.get("p").result() == ["a is there", "b is there"]

    test()
    assert shop.did == ["pack a", "pack b"]


def test_cursor(shop: Shop) -> None:
    """Issue 4.7: a loop goes on from its cursor."""

    @virtual
    async def test(world: World) -> None:
        copy = code()["copy"]
        await killed_and_resumed(world, copy, "table")
        async with world.host(copy) as host:
            assert await host.get("p").result() == 9

    test()
    assert set(Counter(shop.did)) == {f"copy {n}" for n in range(10)}
    assert Counter(Counter(shop.did).values())[1] >= 9


def test_restart(shop: Shop) -> None:
    """Issue 4.7: a process that goes on for ever keeps the history of one generation."""

    @virtual
    async def test(world: World) -> None:
        world.allow(400)
        subscription = code()["subscription"]
        await killed_and_resumed(world, subscription, "ann", 0, after_s=100.5 * 86_400)
        async with world.host(subscription) as host:
            await asyncio.sleep(31 * 86_400)
            assert len(world.keys("p")) <= 3
            await host.raise_event("p", "cancelled")
            assert await host.get("p").result() == "ann paid 4 months"

    test()
    assert shop.did == [f"bill ann {n}" for n in range(4)]


def test_rate_limit(shop: Shop) -> None:
    """Issue 4.7: ten a minute at most, each tried until it is let through, once each."""

    @virtual
    async def test(world: World) -> None:
        translate_all = code()["translate_all"]
        texts = [f"text {n}" for n in range(25)]
        await killed_and_resumed(world, translate_all, texts, after_s=90)
        async with world.host(translate_all) as host:
            assert await host.get("p").result() == [text.upper() for text in texts]
        assert world.clock.monotonic_s() >= 180

    test()
    assert Counter(Counter(shop.did).values()) == {1: 25}


def test_human_correction(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 4.7: after a retry only the failed step runs again."""

    @virtual
    async def test(world: World) -> None:
        names = code()
        shop.hotels = False
        async with world.host(names["booking"]) as host:
            handle = await host.spawn(names["booking"], "p", "Lisbon")
            with pytest.raises(ProcessFailedError):
                await handle.result()
            shop.hotels = True
            assert await names["put_right"](host, "p") == "hotel in Lisbon"
            assert (await handle.info()).status is Status.COMPLETED

    test()
    assert capsys.readouterr().out == "p failed: LookupError: no hotel in Lisbon\n"
    assert shop.did == ["hotel Lisbon", "send customer 1"]
