"""Messages between hosts: what they say, how few they are, and that they never matter."""

import asyncio
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabletask.errors import StorageUnavailableError
from durabletask_postgres import _notify
from durabletask_postgres._connections import Connections
from durabletask_postgres._notify import (
    PAYLOAD_BYTES_MAX,
    Heard,
    Notifier,
    heard,
    new_instance,
    told,
)
from durabletask_postgres._sql import Statements
from tests.postgres.server import Postgres

PROCESS_IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)


class Wire:
    """A fetch that is answered when the test says so."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def fetch(self, statement: str, channel: str, message: str) -> None:
        self.sent.append(message)
        await self.gate.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Return a wire whose statements hang until its gate is opened, with no pause after them."""
    monkeypatch.setattr(_notify, "PAUSE_S", 0.0)
    return Wire()


async def turn() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


@given(st.none() | PROCESS_IDS)
def test_what_is_told_is_heard(process_id: str | None) -> None:
    """A message comes back as what it was, whatever the id, and its sender knows it as its own."""
    assert heard(told("a1", process_id), "a1") == Heard(True, process_id)
    assert heard(told("a1", process_id), "b2") == Heard(False, process_id)


def test_an_id_that_does_not_fit_becomes_anything() -> None:
    """F067: no message is longer than the server takes."""
    assert told("a1", "x" * (PAYLOAD_BYTES_MAX - 3)) != "a1:"
    assert told("a1", "x" * (PAYLOAD_BYTES_MAX - 2)) == "a1:"
    assert told("a1", "ä" * (PAYLOAD_BYTES_MAX // 2)) == "a1:"


@given(st.text())
def test_any_text_can_be_heard(message: str) -> None:
    """Anybody may send on the channel; what is odd names a process or anything, and raises not."""
    assert not heard(message, new_instance()).own


def test_instances_differ() -> None:
    """Two storages never take each other's messages for their own."""
    assert len({new_instance() for _ in range(100)}) == 100


async def test_one_statement_at_a_time(wire: Wire) -> None:
    """While a statement is on its way what gathers is one message, and "anything" if several."""
    notifier = Notifier(wire.fetch, Statements(), "me", pause_s=0)
    notifier.tell("a")
    await turn()
    for process_id in ("b", "c", "d"):
        notifier.tell(process_id)
    await turn()
    assert wire.sent == ["me:a"]
    wire.gate.set()
    await turn()
    assert wire.sent == ["me:a", "me:"]
    notifier.tell("e")
    notifier.tell("e")
    await notifier.close()
    assert wire.sent == ["me:a", "me:", "me:e"]


async def test_closing_sends_what_is_pending_and_then_nothing(wire: Wire) -> None:
    """close() waits for what was told before; what is told afterwards goes nowhere."""
    notifier = Notifier(wire.fetch, Statements(), "me", pause_s=0)
    notifier.tell(None)
    wire.gate.set()
    await notifier.close()
    notifier.tell("a")
    await notifier.close()
    await turn()
    assert wire.sent == ["me:"]


async def test_a_failure_is_nobodys_error(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """F067: a message that cannot be sent is a line at debug level, and the next one is tried."""
    notifier = Notifier(wire.fetch, Statements(), "me", pause_s=0)
    wire.error = StorageUnavailableError("down")
    wire.gate.set()
    notifier.tell("a")
    await turn()
    notifier.tell("b")
    await notifier.close()
    assert wire.sent == ["me:a", "me:b"]
    assert not [each for each in caplog.records if each.levelname != "DEBUG"]


async def test_a_message_reaches_a_listener(postgres: Postgres) -> None:
    """What a notifier sends through real connections arrives on the channel of its schema."""
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    name = postgres.new_name()
    listener = await asyncpg.connect(postgres.dsn)
    statements = Statements(name)
    connections = Connections(postgres.dsn, statements)
    notifier = Notifier(connections.fetch, statements, "me")
    try:
        await listener.add_listener(name, lambda *each: arrived.put_nowait(each[3]))
        notifier.tell("order/7")
        assert await arrived.get() == "me:order/7"
    finally:
        await notifier.close()
        await connections.close()
        await listener.close()
