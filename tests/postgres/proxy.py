"""A proxy between client and Postgres that hurts connections at chosen messages.

Reads the protocol, so a fault can be aimed: before a statement reaches the
server, or after the server has committed but before the client hears of it.
Refuses to know what is stored. It runs in a thread of its own; rules are
called there.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Protocol, Self

from tests.postgres.server import moved
from tests.postgres.streams import connect, first_message
from tests.postgres.threaded import LoopThread
from tests.postgres.wire import GSS, SSL, Message, Side, Splitter, Statements

CHUNK_BYTES = 64 * 1024

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Fate(Enum):
    """What becomes of a message, and of its connection."""

    PASS = "it goes on"
    DROP = "it vanishes; the connection stays"
    CUT = "it vanishes, and both ends are cut"
    LAST = "it goes on, then both ends are cut"


class Rule(Protocol):
    """Decides the fate of each message; the first one that does not say PASS holds."""

    def __call__(self, link: "Link", side: Side, message: Message) -> Fate: ...


class Link:
    """One client's connection through the proxy.

    Attributes:
        number: Counts from 0 in the order of arrival.
        running: The statements that the server has been told to run since it
            was last ready; what an answer may be an answer to.
        told: The side that has been cut while the other is left waiting.
    """

    def __init__(
        self,
        number: int,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        self.number = number
        self.running: list[str] = []
        self.told: Side | None = None
        self.statements = Statements()
        self._writers = {Side.CLIENT: client, Side.SERVER: server}

    def writer_towards(self, side: Side) -> asyncio.StreamWriter:
        """Return where what a side receives is written to."""
        return self._writers[side]

    def cut(self) -> None:
        """Break the connection on both sides, without a good-bye."""
        for writer in self._writers.values():
            writer.transport.abort()

    def leave_half_open(self, told: Side) -> None:
        """Break one side only; what the other side sends from here on reaches nobody."""
        self.told = told
        self._writers[told].transport.abort()


class Proxy:
    """Listens on 127.0.0.1 and passes on to one server, as its rules say.

    Attributes:
        dsn: The way through the proxy, to the same database as the one given.
        rules: Asked for each message, in order.
        latency_s: How long each packet takes in each direction.
        refusing: New connections are cut at once.
        links: The connections that are open.
    """

    def __init__(self, dsn: str, *, tls: ssl.SSLContext | None = None) -> None:
        """Prepare a proxy before the server of `dsn`; with `tls` clients may encrypt."""
        self.rules: list[Rule] = []
        self.latency_s = 0.0
        self.refusing = False
        self.links: list[Link] = []
        self._to = dsn
        self._tls = tls
        self._count = 0
        self._open: dict[Side, asyncio.Event] = {}

    def __enter__(self) -> Self:
        self._thread = LoopThread().__enter__()
        port = self._thread.call(self._listen())
        self.dsn = moved(self._to, "127.0.0.1", port)
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.call(self._close())
        self._thread.__exit__()

    def cut_all(self) -> None:
        """Break every connection, on both sides."""
        self._each(Link.cut)

    def leave_half_open(self, told: Side) -> None:
        """Break every connection on one side; the other hears nothing and goes on waiting."""
        self._each(lambda link: link.leave_half_open(told))

    def lead_to(self, dsn: str) -> None:
        """Lead to another server from here on, as a name may after a failover; cut all links."""
        self._to = dsn
        self.cut_all()

    def hold(self, *sides: Side) -> None:
        """Become a black hole for what these sides send, by default both; kept for `release`."""
        for side in sides or tuple(Side):
            self._thread.loop.call_soon_threadsafe(self._open[side].clear)

    def release(self) -> None:
        """Pass on what was held, and all that comes."""
        for gate in self._open.values():
            self._thread.loop.call_soon_threadsafe(gate.set)

    def _each(self, act: Callable[[Link], None]) -> None:
        async def run() -> None:
            for link in self.links:
                act(link)

        self._thread.call(run())

    async def _listen(self) -> int:
        for side in Side:
            self._open[side] = asyncio.Event()
            self._open[side].set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._server.close()
        for link in self.links:
            link.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self.refusing:
                first = await self._first_message(reader, writer)
                upstream, server = await connect(self._to)
                await self._link(first, (reader, writer), (upstream, server))
        except (OSError, EOFError):
            pass  # one of the two ends has gone before anything was said
        except asyncio.CancelledError:
            pass  # the proxy's loop ends; passed on, asyncio logs it as an error of ours
        finally:
            writer.transport.abort()

    async def _link(self, first: Message, client: Ends, server: Ends) -> None:
        link = Link(self._count, client[1], server[1])
        self._count += 1
        self.links.append(link)
        try:
            if self._judge(link, Side.CLIENT, first) is Fate.PASS:
                server[1].write(first.raw)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(link, Side.CLIENT, client[0]))
                    both.create_task(self._pump(link, Side.SERVER, server[0]))
        finally:
            link.cut()
            self.links.remove(link)

    async def _first_message(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Message:
        """Answer questions about encryption; return the first message that is for the server."""
        while True:
            first = await first_message(reader)
            if first.code not in {SSL, GSS}:
                return first
            encrypt = first.code == SSL and self._tls is not None
            writer.write(b"S" if encrypt else b"N")
            await writer.drain()
            if encrypt:
                assert self._tls is not None
                await writer.start_tls(self._tls)

    async def _pump(self, link: Link, side: Side, reader: asyncio.StreamReader) -> None:
        other = Side.SERVER if side is Side.CLIENT else Side.CLIENT
        splitter = Splitter()
        writer = link.writer_towards(other)
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                await self._open[side].wait()
                if link.told is other:
                    continue
                for message in splitter.feed(data):
                    fate = self._judge(link, side, message)
                    if fate in {Fate.PASS, Fate.LAST}:
                        writer.write(message.raw)
                    if fate in {Fate.CUT, Fate.LAST}:
                        await writer.drain()
                        link.cut()
                        return
                await writer.drain()
        if link.told is not side:
            writer.close()

    def _judge(self, link: Link, side: Side, message: Message) -> Fate:
        if side is Side.CLIENT:
            statement = link.statements.of(message)
            if statement is not None and message.kind in {"Q", "B"}:
                link.running.append(statement)
        fates = (rule(link, side, message) for rule in self.rules)
        fate = next((fate for fate in fates if fate is not Fate.PASS), Fate.PASS)
        if side is Side.SERVER and message.kind == "Z":
            link.running.clear()
        return fate
