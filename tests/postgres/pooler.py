"""A pooler in transaction mode, as unkind as a real one may be.

Behaves as pgbouncer 1.18 with `pool_mode=transaction` and no authentication:
a client has a server's session from the first message of a transaction to
its end, and what it leaves in a session (SET, LISTEN, session locks, named
statements) stays there for whoever comes next. The real one mostly gives a
client the session that it had last, so that such mistakes show only under
load; this one never does where there is another. Refuses to know what is
sent, and what is stored.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from tests.postgres.server import moved
from tests.postgres.session import TRACKED, ServerSession, open_session
from tests.postgres.streams import connect, first_message
from tests.postgres.threaded import LoopThread
from tests.postgres.wire import CANCEL, GSS, SSL, Message, Splitter, error, key_of, message

CHUNK_BYTES = 64 * 1024
WAIT_MAX_S = 120.0
"""How long a client waits for a session; pgbouncer's query_wait_timeout."""

ACCEPTED = {"user", "database", *TRACKED}
"""What a client may ask for at its start; everything else is an error, not a setting."""


class PoolerError(Exception):
    """A client is told this and is cut."""


@dataclass(eq=False)
class Client:
    """One client's connection.

    Attributes:
        wanted: The settings that every session must have for it.
        session: What it has until the transaction's end.
        last: What it had before, and should not get again.
        unanswered: How often the server still has to say that it is ready.
        unsynced: Whether messages have been sent that no such answer ends yet.
    """

    writer: asyncio.StreamWriter
    wanted: dict[str, str] = field(default_factory=dict)
    session: ServerSession | None = None
    last: ServerSession | None = None
    unanswered: int = 0
    unsynced: bool = False

    def sends(self, kind: str) -> None:
        """Keep count of a message to the server."""
        self.unsynced = kind not in {"S", "Q", "F"}
        self.unanswered += not self.unsynced

    def fail(self, text: str) -> None:
        """Say why, and close."""
        self.writer.write(error("08P01", text))
        self.writer.close()


class Pool:
    """The sessions of one user in one database: at most `size`."""

    def __init__(self, dsn: str, first: Message, size: int) -> None:
        self._dsn = dsn
        self._first = first
        self._size = size
        self._idle: list[ServerSession] = []
        self._count = 0
        self._changed = asyncio.Condition()

    async def take(self, last: ServerSession | None) -> ServerSession:
        """Return a session, another one than `last` where that can be."""
        async with self._changed:
            try:
                async with asyncio.timeout(WAIT_MAX_S):
                    await self._changed.wait_for(lambda: self._idle or self._count < self._size)
            except TimeoutError:
                raise PoolerError("query_wait_timeout") from None
            others = [session for session in self._idle if session is not last]
            if not others and self._count < self._size:
                self._count += 1
            else:
                session = (others or self._idle)[0]
                self._idle.remove(session)
                return session
        try:
            return await open_session(self._dsn, self._first)
        except (OSError, EOFError) as cause:
            await self.lose()
            raise PoolerError("server login has been failing, try again later") from cause

    async def give_back(self, session: ServerSession) -> None:
        """Let the next one have it, as it was left."""
        async with self._changed:
            self._idle.append(session)
            self._changed.notify()

    async def lose(self, session: ServerSession | None = None) -> None:
        """Make room for a new session: this one has ended, or was never there."""
        async with self._changed:
            self._count -= 1
            if session in self._idle:
                self._idle.remove(session)
            self._changed.notify()


class Pooler:
    """Listens on 127.0.0.1 for any number of clients and has few sessions on the server.

    Attributes:
        dsn: The way through the pooler, to the same database as the one given.
        clients: Who is connected.
    """

    def __init__(self, dsn: str, *, size: int = 4) -> None:
        """Prepare a pooler with at most `size` sessions per user and database."""
        self.clients: list[Client] = []
        self._to = dsn
        self._size = size
        self._pools: dict[tuple[str, str], Pool] = {}
        self._sessions: dict[ServerSession, Client | None] = {}

    def __enter__(self) -> Self:
        self._thread = LoopThread().__enter__()
        self.dsn = moved(self._to, "127.0.0.1", self._thread.call(self._listen()))
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.call(self._close())
        self._thread.__exit__()

    @property
    def sessions(self) -> int:
        """How many sessions there are on the server now."""
        return len(self._sessions)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._server.close()
        for session in self._sessions:
            session.writer.transport.abort()
        for client in self.clients:
            client.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(writer)
        self.clients.append(client)
        try:
            first = await first_message(reader)
            while first.code in {SSL, GSS}:
                writer.write(b"N")
                first = await first_message(reader)
            if first.code == CANCEL:
                await self._cancel(first)
            else:
                await self._greet(client, first)
                await self._pass_on(client, reader, self._pool(first))
        except PoolerError as trouble:
            client.fail(str(trouble))
        except (OSError, EOFError):
            pass  # the client has gone
        finally:
            self.clients.remove(client)
            if client.session is not None:
                # It is in the middle of something that nobody else may continue.
                client.session.writer.transport.abort()
            writer.close()

    def _pool(self, first: Message) -> Pool:
        asked = first.parameters
        key = asked["user"], asked.get("database", asked["user"])
        if key not in self._pools:
            self._pools[key] = Pool(self._to, first, self._size)
        return self._pools[key]

    async def _greet(self, client: Client, first: Message) -> None:
        """Let a client in, with the settings that a session has by itself and its own."""
        for name in first.parameters:
            if name.lower() not in ACCEPTED:
                raise PoolerError(f"unsupported startup parameter: {name}")
        pool = self._pool(first)
        session = await self._session(pool, client)
        own = {name: value for name, value in first.parameters.items() if name.lower() in TRACKED}
        client.wanted = {**session.defaults, **own}
        for name, value in session.reported.items():
            client.writer.write(
                message("S", f"{name}\0{client.wanted.get(name, value)}\0".encode())
            )
        self._sessions[session] = None
        await pool.give_back(session)
        client.writer.write(message("R", bytes(4)) + message("K", key_of(id(client))))
        client.writer.write(message("Z", b"I"))

    async def _session(self, pool: Pool, client: Client) -> ServerSession:
        session = await pool.take(client.last)
        if session not in self._sessions:
            self._sessions[session] = None
            session.task = asyncio.create_task(self._hear(session, pool))
        return session

    async def _pass_on(self, client: Client, reader: asyncio.StreamReader, pool: Pool) -> None:
        splitter = Splitter()
        while data := await reader.read(CHUNK_BYTES):
            for each in splitter.feed(data):
                if each.kind == "X":
                    return
                if client.session is None:
                    session = await self._session(pool, client)
                    self._sessions[session] = client
                    client.session = session
                    session.adopt(client.wanted)
                client.sends(each.kind)
                client.session.writer.write(each.raw)
            if client.session is not None:
                await client.session.writer.drain()

    async def _hear(self, session: ServerSession, pool: Pool) -> None:
        """Pass on what a server says to the client that has the session; to nobody if none has."""
        with suppress(OSError):
            while data := await session.reader.read(CHUNK_BYTES):
                for each in session.heard(data):
                    client = self._sessions[session]
                    if client is not None and not client.writer.is_closing():
                        await self._tell(client, session, each, pool)
        session.writer.transport.abort()
        client = self._sessions.pop(session)
        await pool.lose(session)
        if client is not None:
            client.session = None
            client.fail("server conn crashed?")

    async def _tell(
        self, client: Client, session: ServerSession, each: Message, pool: Pool
    ) -> None:
        if each.kind == "S":
            name, value = each.body.decode().split("\0")[:2]
            client.wanted |= {name: value} if name.lower() in TRACKED else {}
        elif each.kind == "Z":
            client.unanswered -= 1
            if each.body == b"I" and not client.unanswered and not client.unsynced:
                client.session, client.last = None, session
                self._sessions[session] = None
                await pool.give_back(session)
        client.writer.write(each.raw)
        with suppress(ConnectionError):
            await client.writer.drain()

    async def _cancel(self, first: Message) -> None:
        """Pass on a wish to cancel to the session that the client has at the moment, if any."""
        for client in self.clients:
            if key_of(id(client)) == first.body[4:] and client.session is not None:
                _, writer = await connect(self._to)
                writer.write(first.raw[:8] + client.session.key)
                await writer.drain()
                writer.close()
