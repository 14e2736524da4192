"""One session of the pooler on the server: its start, its settings, its messages.

Knows what the session has been set to; refuses to know who uses it.
"""

import asyncio
from dataclasses import dataclass, field

from tests.postgres.streams import connect
from tests.postgres.wire import Message, Splitter, message

TRACKED = {
    "application_name",
    "client_encoding",
    "datestyle",
    "standard_conforming_strings",
    "timezone",
}
"""The settings that follow a client from session to session; the server reports each change."""


@dataclass(eq=False)
class ServerSession:
    """A session; `task` hears what the server says.

    Attributes:
        key: What a cancellation must name.
        reported: The settings that the server has told at the start.
        defaults: Those of them that follow a client.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    key: bytes = b""
    reported: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    _now: dict[str, str] = field(default_factory=dict)
    _splitter: Splitter = field(default_factory=Splitter)
    _adopting: int = 0

    def adopt(self, wanted: dict[str, str]) -> None:
        """Set what differs from what a client wants; nobody hears the answer."""
        changes = {
            name: value for name, value in wanted.items() if self._now.get(name.lower()) != value
        }
        if changes:
            quoted = {name: value.replace("'", "''") for name, value in changes.items()}
            text = "".join(f"SET {name}='{value}';" for name, value in quoted.items())
            self.writer.write(message("Q", f"{text}\0".encode()))
            self._adopting += 1
            self._now |= {name.lower(): value for name, value in changes.items()}

    def heard(self, data: bytes) -> list[Message]:
        """Return what the server has said to a client; answers to `adopt` are not among it."""
        told = []
        for each in self._splitter.feed(data):
            if not self._adopting:
                self._keep(each)
                told.append(each)
            elif each.kind == "Z":
                self._adopting -= 1
        return told

    async def start(self, first: Message) -> None:
        """Introduce itself as a client's user and wait until the server is ready.

        Raises:
            EOFError: The server has refused.
        """
        asked = first.parameters
        names = {"user": asked["user"], "database": asked.get("database", asked["user"])}
        body = "".join(f"{name}\0{value}\0" for name, value in names.items()) + "\0"
        raw = first.raw[4:8] + body.encode()
        self.writer.write((len(raw) + 4).to_bytes(4, "big") + raw)
        while True:
            data = await self.reader.read(8192)
            if not data:
                raise EOFError
            for each in self._splitter.feed(data):
                self._keep(each)
                if each.kind == "K":
                    self.key = each.body
                if each.kind == "Z":
                    self.defaults = {
                        name: value
                        for name, value in self.reported.items()
                        if name.lower() in TRACKED
                    }
                    return

    def _keep(self, each: Message) -> None:
        if each.kind == "S":
            name, value = each.body.decode().split("\0")[:2]
            if name.lower() in TRACKED:
                self._now[name.lower()] = value
            if not self.defaults:
                self.reported[name] = value


async def open_session(dsn: str, first: Message) -> ServerSession:
    """Open a session for the user and the database of a client's first message."""
    session = ServerSession(*await connect(dsn))
    try:
        await session.start(first)
    except BaseException:
        session.writer.transport.abort()
        raise
    return session
