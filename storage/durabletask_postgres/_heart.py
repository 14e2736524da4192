"""The heartbeat of a host: a thread with a loop and a connection of its own.

Responsible for what must go on while the main loop is busy: the lease is
renewed, the session holds the witness lock by whose absence others see at
once that this host has died, messages are heard, and a main loop that answers
no more is told of. Refuses to know what the host does. Fencing keeps records
safe when all of this fails; it only costs time then.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from durabletask.errors import StorageFailedError, WrongContextError
from durabletask.storage import Clock, Lease
from durabletask_postgres._connections import Connections
from durabletask_postgres._notify import OnNews
from durabletask_postgres._pulse import Pulse
from durabletask_postgres._sql import Statements
from durabletask_postgres._watchdog import Watchdog, post

_log = logging.getLogger("durabletask")

LIMIT_SHARE: Final = 1 / 3
"""Of a lease's life: how long the main loop may take to answer."""

CLOSE_MAX_S: Final = 2.0
NEWS_MAX: Final = 1_000
"""More messages than this in one turn of the main loop mean "anything"."""

T = TypeVar("T")


class Heart:
    """Keeps one lease alive from a thread of its own; used from the loop that starts it."""

    def __init__(
        self,
        connections: Connections,
        statements: Statements,
        lease: Lease,
        *,
        instance: str,
        on_news: OnNews | None,
        clock: Clock,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            connections: Dials the connection; they must have been given a DSN.
            statements: Where `renew`, `witness` and `evict` are.
            lease: As `open_lease` gave it, with a time to live.
            instance: Of this storage: its own messages are not news.
            on_news: Called on the main loop with the id of a process that may
                need this host, or None for "anything"; None to hear nothing.
            clock: Measures when a renewal is due.
        """
        assert lease.ttl_s is not None
        self._arguments = (connections, statements, lease, lease.ttl_s, instance, clock)
        self._label = lease.label
        self._ttl_s = lease.ttl_s
        self._clock = clock
        self._on_news = on_news
        self._news: deque[str | None] = deque(maxlen=NEWS_MAX)
        self._told = False
        self._closing = False
        self._asked: set[asyncio.Task[Any]] = set()
        self._pid = os.getpid()
        self._pulse: Pulse | None = None
        self._loop: asyncio.AbstractEventLoop
        self._main: asyncio.AbstractEventLoop
        self._ended: asyncio.Future[None]
        self._stop: asyncio.Event
        self._thread: threading.Thread

    @property
    def witness(self) -> bool:
        """Whether its session holds the witness lock at this moment."""
        return self._pulse is not None and self._pulse.witness

    def start(self) -> None:
        """Begin; returns at once."""
        self._main = asyncio.get_running_loop()
        self._ended = self._main.create_future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        connections, statements, lease, ttl_s, instance, clock = self._arguments
        self._pulse = Pulse(
            connections,
            statements,
            lease,
            ttl_s,
            instance=instance,
            on_news=None if self._on_news is None else self._hear,
            clock=clock,
        )
        watchdog = Watchdog(self._main, self._ttl_s * LIMIT_SHARE, self._clock)
        # A daemon, so that a program ends that does so without closing the storage.
        self._thread = threading.Thread(
            target=self._beat,
            args=(self._pulse, watchdog),
            name=f"durabletask heart {self._label}",
            daemon=True,
        )
        self._thread.start()

    async def ready(self) -> None:
        """Wait until the connection stands, with its witness lock where it can have one.

        Raises:
            StorageError: It does not, within a third of the lease's life; why not.
        """
        assert self._pulse is not None
        await self._ask(self._pulse.settled)

    async def renew(self) -> Lease:
        """Renew the lease by a question that is asked after this call.

        Waits for a connection, up to a third of the lease's life, and asks
        again where an answer is lost.

        Raises:
            LeaseLostError: The host has been fenced, for good.
            StorageUnavailableError: There is no connection; nothing was written.
            StorageUnknownError: The answer was lost.
            StorageFailedError: The heart has stopped.
        """
        assert self._pulse is not None
        return await self._ask(self._pulse.renew)

    async def close(self) -> None:
        """End the thread, the connection and with it the witness lock. Safe to repeat.

        Returns after two seconds at the latest; what hangs then ends with the program.
        """
        self._closing = True
        if self._pulse is None or os.getpid() != self._pid:
            return
        if post(self._loop, self._stop.set):
            _, hanging = await asyncio.wait([self._ended], timeout=CLOSE_MAX_S)
            if hanging:
                _log.warning("the heart of host %s does not end", self._label)
                return
        self._thread.join(CLOSE_MAX_S)  # its last statement was to say so

    async def _ask(self, what: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have something done on the thread's loop. Cancelled, it goes on there unheard."""
        if os.getpid() != self._pid:
            raise WrongContextError(
                "this host was started by another process, before a fork",
                hint="start the host after the fork",
            )
        answer: asyncio.Future[T] = self._main.create_future()
        try:
            if post(self._loop, self._begin, what, answer):
                either: tuple[asyncio.Future[Any], ...] = (answer, self._ended)
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        raise StorageFailedError(f"the heart of host {self._label} has stopped")

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _tell(self) -> None:
        # First this, then the messages: one that comes in between is told twice, not never.
        self._told = False
        news: dict[str | None, None] = {}
        while self._news:
            news[self._news.popleft()] = None
        if self._on_news is not None and not self._closing:
            for process_id in news:
                self._on_news(process_id)

    # --- on the thread ------------------------------------------------------------------------

    def _beat(self, pulse: Pulse, watchdog: Watchdog) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live(pulse, watchdog))
        finally:
            post(self._main, self._end)

    async def _live(self, pulse: Pulse, watchdog: Watchdog) -> None:
        """Beat until told to stop, or until the main loop is closed and nobody needs this host."""
        beating = asyncio.create_task(pulse.run())
        ends = (asyncio.create_task(watchdog.watch()), asyncio.create_task(self._stop.wait()))
        await asyncio.wait((beating, *ends), return_when=asyncio.FIRST_COMPLETED)
        if beating.done() and beating.exception() is None:
            # The lease is lost; whoever asks is told so.
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for each in (beating, *ends):
            each.cancel()
        for outcome in await asyncio.gather(beating, *ends, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _begin(
        self, what: Callable[[], Coroutine[Any, Any, T]], answer: "asyncio.Future[T]"
    ) -> None:
        asked = self._loop.create_task(what())
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        asked.add_done_callback(lambda task: post(self._main, _pass_on, task, answer))

    def _hear(self, process_id: str | None) -> None:
        # At the limit the oldest makes room for an "anything", which covers it.
        self._news.append(None if len(self._news) == NEWS_MAX else process_id)
        if not self._told:
            self._told = True
            post(self._main, self._tell)


def _pass_on(asked: "asyncio.Task[T]", answer: "asyncio.Future[T]") -> None:
    """Answer on the main loop as a task of the thread has ended; a cancelled one never answers."""
    error = None if asked.cancelled() else asked.exception()
    if answer.done() or asked.cancelled():
        return
    if error is None:
        answer.set_result(asked.result())
    else:
        answer.set_exception(error)
