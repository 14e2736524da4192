"""Telling other hosts to look now, and understanding what they tell.

Knows the channel, which is the schema, and the form of a message:
`<instance>:<process id>`, or `<instance>:` for "anything". Refuses to matter:
a message that is late, lost or never sent makes a wait longer and nothing
wrong. It travels in a statement of its own after the commit, because a commit
that notifies takes a lock that every other such commit waits for.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from durabletask.errors import StorageError
from durabletask_postgres._line import Line
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import DRIVER_ERRORS, storage_error

_log = logging.getLogger("durabletask")

PAYLOAD_BYTES_MAX: Final = 7_999
"""The server's limit."""

PAUSE_S: Final = 0.01
"""For each message, so that a busy host does not make the others look a thousand times a second."""

SPARE_MAX: Final = 10
"""Messages that go out without a pause after a quiet while: where one program waits for another,
message by message, no pause is in their way."""

Fetch = Callable[..., Awaitable[object]]
OnNews = Callable[[str | None], None]
"""Gets the id of a process, or None for "anything"."""


class Heard(NamedTuple):
    """A message: whether this storage itself sent it, and the process it names, if one."""

    own: bool
    process_id: str | None


def new_instance() -> str:
    """Return a random name for one storage object, by which it knows its own messages."""
    return secrets.token_hex(8)


def told(instance: str, process_id: str | None) -> str:
    """Return the message about a process, or about anything."""
    message = f"{instance}:{process_id or ''}"
    return message if len(message.encode()) <= PAYLOAD_BYTES_MAX else f"{instance}:"


def heard(message: str, instance: str) -> Heard:
    """Understand a message; anybody may send any text, and what is odd means "anything"."""
    sender, _, process_id = message.partition(":")
    return Heard(sender == instance, process_id or None)


async def listen(
    line: Line, channel: str, instance: str, on_news: OnNews, timeout_s: float
) -> None:
    """Have what others tell passed on for as long as the connection lasts.

    Args:
        line: A session of its own, not a pooler's.
        channel: The schema.
        instance: Whose messages are not news.
        on_news: Called on the connection's loop; with None as soon as it listens.
        timeout_s: How long to wait for the server's answer.

    Raises:
        StorageError: It does not listen.
    """

    def hear(connection: object, pid: int, channel: str, message: object) -> None:
        news = heard(str(message), instance)
        if not news.own:
            on_news(news.process_id)

    try:
        async with asyncio.timeout(timeout_s):
            await line.connection.add_listener(channel, hear)
    except DRIVER_ERRORS as error:
        raise storage_error(error, sent=True) from error
    on_news(None)  # first listen, then look: nobody heard what was told until now


class Notifier:
    """Sends messages, one statement at a time; what gathers meanwhile becomes "anything"."""

    __slots__ = (
        "_closed",
        "_fetch",
        "_instance",
        "_pause_s",
        "_pending",
        "_schema",
        "_statement",
        "_task",
        "_used_s",
    )

    def __init__(
        self, fetch: Fetch, statements: Statements, instance: str, *, pause_s: float = PAUSE_S
    ) -> None:
        """Send nothing yet.

        Args:
            fetch: `Connections.fetch`.
            statements: Where the statement `notify` is.
            instance: Of this storage, see `new_instance`.
            pause_s: After each message.
        """
        self._pause_s = pause_s
        self._fetch = fetch
        self._statement = statements["notify"]
        self._schema = statements.schema
        self._instance = instance
        self._pending: set[str | None] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        # Up to which instant the pauses of all messages have been used up; never long ago.
        self._used_s = -math.inf

    def tell(self, process_id: str | None) -> None:
        """Let other hosts know soon that a process, or anything, may need them. Never raises."""
        if self._closed:
            return
        # Two is all that has to be known: the second one makes it "anything".
        if len(self._pending) < 2:
            self._pending.add(process_id)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._send(), name="durabletask notify"
            )

    async def close(self) -> None:
        """Send what is pending, then nothing more. Safe to repeat."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _send(self) -> None:
        try:
            while self._pending:
                pending, self._pending = self._pending, set()
                process_id = pending.pop() if len(pending) == 1 else None
                try:
                    await self._fetch(
                        self._statement, self._schema, told(self._instance, process_id)
                    )
                except StorageError as error:
                    _log.debug("other hosts were not told, and will see when they look: %s", error)
                await self._pause()
        finally:
            self._task = None

    async def _pause(self) -> None:
        now_s = asyncio.get_running_loop().time()
        earliest_s = now_s - SPARE_MAX * self._pause_s
        self._used_s = max(self._used_s, earliest_s) + self._pause_s
        if self._used_s > now_s and not self._closed:
            await asyncio.sleep(self._used_s - now_s)
