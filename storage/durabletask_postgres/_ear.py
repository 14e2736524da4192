"""Hearing what is told, for a storage that has no host and so no heart to hear for it.

Responsible for one connection that listens on the channel while somebody
waits, and for a new one when that is lost. Refuses to matter: a message that
is missed makes a wait as long as the poll interval and nothing wrong.
"""

import asyncio
import logging
import os
import random
from contextlib import suppress
from typing import Final

from durabletask.errors import StorageError
from durabletask_postgres._connections import Connections
from durabletask_postgres._line import Line
from durabletask_postgres._notify import OnNews, listen
from durabletask_postgres._sql import Statements

_log = logging.getLogger("durabletask")

GRACE_S: Final = 10.0
"""After the last one who waits: results that are asked for one by one share a connection."""

CHECK_S: Final = 15.0
"""Between two questions whether the server is still there: a connection can go dead silently."""

ANSWER_MAX_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 5.0
"""Between two attempts to connect; doubled from the first to this. Nobody depends on them."""


class Ear:
    """Listens for as long as it is wanted, on the loop that wants it; no method waits but `close`.

    Never behind a pooler, where the session that listens is not ours.
    """

    def __init__(
        self,
        connections: Connections,
        statements: Statements,
        instance: str,
        on_news: OnNews,
        *,
        grace_s: float = GRACE_S,
        check_s: float = CHECK_S,
        pauses_s: tuple[float, float] = (FIRST_PAUSE_S, LAST_PAUSE_S),
    ) -> None:
        """Prepare; nothing is opened.

        Args:
            connections: Dials the connection; they must have been given a DSN.
            statements: Where the channel and the statement `now` are.
            instance: Of this storage: its own messages are not news.
            on_news: Gets the id of a process, or None for "anything", as it does
                each time after the connection has come to be.
            grace_s: How long it goes on after `rest`.
            check_s: Between two questions whether the server is still there.
            pauses_s: The first and the longest pause between two attempts to connect.
        """
        self._connections = connections
        self._statements = statements
        self._instance = instance
        self._on_news = on_news
        self._grace_s = grace_s
        self._check_s = check_s
        self._pauses_s = pauses_s
        self._pause_s, _ = pauses_s
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None
        self._closed = False
        self._pid = os.getpid()

    def open(self) -> None:
        """Begin to listen, or go on."""
        self._stay()
        if self._closed or self._connections.pooled:
            return
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._live(), name="durabletask ear")

    def rest(self) -> None:
        """End in a while, unless opened again."""
        self._stay()
        if self._task is not None and not self._task.done():
            # Not the running loop: there may be none any more when a wait is thrown away.
            loop = self._task.get_loop()
            if not loop.is_closed():
                self._resting = loop.call_later(self._grace_s, self.end)

    def end(self) -> None:
        """End now; somebody else listens, or nobody needs it."""
        self._stay()
        task, self._task = self._task, None
        if task is not None and not task.done() and not task.get_loop().is_closed():
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End for good; the connection is gone when this returns. Safe to repeat.

        In the child of a fork nothing is waited for: the connection is the parent's.
        """
        self._closed = True
        self.end()
        if self._ending and os.getpid() == self._pid:  # the child of a fork has no such loop
            await asyncio.wait(self._ending)

    def _stay(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    async def _live(self) -> None:
        self._pause_s, last_s = self._pauses_s
        while True:
            try:
                line = await self._connections.dial()
                try:
                    if line.facts.pooled:
                        return
                    await self._attend(line)
                finally:
                    line.terminate()  # an idle session has nothing to lose
            except StorageError as error:
                _log.debug("no message is heard, so waits are as long as polls: %s", error)
            # Programs that lost their sessions in one instant shall not all knock in one instant.
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, last_s)

    async def _attend(self, line: Line) -> None:
        """Listen until the connection is lost."""
        lost = asyncio.Event()
        line.connection.add_termination_listener(lambda _: lost.set())
        await listen(line, self._statements.schema, self._instance, self._on_news, ANSWER_MAX_S)
        self._pause_s, _ = self._pauses_s
        explicit = line.facts.explicit_isolation
        while not lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._check_s):
                    await lost.wait()
                    return
            now = self._statements["now"]
            await line.fetch(now, (), explicit=explicit, timeout_s=ANSWER_MAX_S)
