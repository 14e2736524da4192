"""Opens streams to a server, and reads what a client says first."""

import asyncio

from tests.postgres.server import address
from tests.postgres.wire import Message


async def connect(dsn: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the server of a DSN; nothing is said yet."""
    host, port = address(dsn)
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


async def first_message(reader: asyncio.StreamReader) -> Message:
    """Read one message without a letter, and not a byte more.

    Raises:
        EOFError: The client has gone.
    """
    length = await reader.readexactly(4)
    return Message("", length + await reader.readexactly(int.from_bytes(length, "big") - 4))
