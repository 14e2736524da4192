"""A host: a client that also runs processes. Its life cycle, and nothing of how it runs them."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from types import TracebackType
from typing import Any, Self

from durabletask._callable import Callables
from durabletask._client import POLL_S, ProcessClient
from durabletask._clock import Clock
from durabletask._config import Config
from durabletask._errors import (
    HostStateError,
    LeaseLostError,
    StorageError,
    StorageRewoundError,
)
from durabletask._limits import Limits
from durabletask._model import Created, Delivered, NewProcess
from durabletask._observe import Observer
from durabletask._repeat import BACKOFF_MAX_S, BACKOFF_MIN_S, MAY_PASS, loudness
from durabletask._retention import Retention
from durabletask._retry import RetryPolicy
from durabletask._session import CLOSE_S, Session
from durabletask._storage import ProcessStorage

_log = logging.getLogger("durabletask")

DRAIN_S = 30.0


class _State(StrEnum):
    NEW = "not started"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class ProcessHost(ProcessClient):
    """Runs processes, and resumes every unfinished one when it starts.

    Each start has a fresh identity; `label` is only a name. The storage is
    closed with the host.
    """

    def __init__(
        self,
        storage: ProcessStorage,
        *,
        processes: Iterable[Callable[..., Coroutine[Any, Any, Any]]] = (),
        types: Iterable[type] = (),
        errors: Iterable[type[Exception]] = (),
        label: str | None = None,
        retry: RetryPolicy | None = None,
        observers: Iterable[Observer] = (),
        limits: Limits | None = None,
        clock: Clock | None = None,
        drain_s: float = DRAIN_S,
        poll_s: float = POLL_S,
        context: Iterable[ContextVar[Any]] = (),
        retention: timedelta | Mapping[str, timedelta] | None = None,
        random: Random | None = None,
    ) -> None:
        """Prepare a host; nothing is opened and nothing runs yet.

        Args:
            storage: Where the processes live.
            processes: Process functions to register, besides those decorated.
            types: Classes that may stand in values without an annotation.
            errors: Exception classes that leave a step and come back as themselves.
            label: What the host is called in listings; host name and pid if not given.
            retry: For steps where neither they nor their process name a policy.
            observers: Told of runs and attempts; see `Observer`.
            limits: What is let through; see `Limits`.
            clock: Where time comes from.
            drain_s: How long `stop` lets steps in flight finish.
            poll_s: Longest time between two looks at a storage that others write to.
            context: Context variables that travel: what they hold where a
                process is spawned, here or in a process, they hold in its
                function, after resumes and on other hosts that name them too.
                Each is known by its name; not set there is not set here.
            retention: How long what has finished is kept, for all processes or
                by the names of their functions; then it is purged, in the
                background, if this host runs. None keeps everything.
            random: Source of ids and jitter.

        Raises:
            InvalidArgumentError: A retention is not above zero, or two
                variables have one name.
        """
        super().__init__(
            storage,
            processes=processes,
            types=types,
            errors=errors,
            limits=limits,
            poll_s=poll_s,
            clock=clock,
            context=context,
            random=random,
        )
        self._drain_s = drain_s
        self._config = Config(
            storage=storage,
            registry=self.registry,
            codec=self.codec,
            failures=self.failures,
            callables=Callables(self.codec),
            limits=self.limits,
            clock=self._clock,
            random=self._random,
            retry=retry,
            observers=tuple(observers),
            label=label or f"{socket.gethostname()}:{os.getpid()}",
            poll_s=poll_s,
            travelling=self._travelling,
            on_left=self._watch.tell,
        )
        self._retention = Retention(self._requests, retention, self._random)
        self._state = _State.NEW
        self._session: Session | None = None
        self._failure: Exception | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        if self._failure is not None and error is None:
            raise self._failure

    async def start(self) -> None:
        """Take a lease and resume everything unfinished, in the background.

        Raises:
            HostStateError: It was started before.
            StorageError: The storage cannot be used; the message says why.
        """
        if self._state is not _State.NEW:
            raise HostStateError(
                f"the host is {self._state.value} and cannot be started",
                hint="make a new ProcessHost for each start",
            )
        try:
            self._session = await self._open_session()
        except BaseException:
            await self.storage.close()
            raise
        self._state = _State.RUNNING
        self._supervisor = asyncio.create_task(self._supervise(), name="durabletask host")
        self._retention.begin(self._now)

    async def stop(self, drain_s: float | None = None) -> None:
        """Stop: begin nothing more, let steps in flight be recorded, give everything back.

        Nothing is lost and nothing is compensated: what is unfinished goes on
        at the next start, on this or another host. Safe to repeat.

        Args:
            drain_s: How long steps in flight may take; the host's own if not given.
        """
        if self._stopping is None:
            drain_s = self._drain_s if drain_s is None else drain_s
            self._stopping = asyncio.create_task(self._stop(drain_s), name="durabletask stop")
        # Shielded: a caller that gives up waiting must not leave a host that is half stopped.
        await asyncio.shield(self._stopping)

    async def serve(self) -> None:
        """Run until SIGTERM or SIGINT arrives; then return, so that `async with` drains.

        A second signal ends the program at once, which is as safe as kill -9.

        Raises:
            StorageError: The storage failed for good.
        """
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)

        def ask_stop() -> None:
            self._stop_asked.set()
            for number in signals:
                loop.remove_signal_handler(number)

        for number in signals:
            loop.add_signal_handler(number, ask_stop)
        try:
            await self._stop_asked.wait()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure

    # --- inside -----------------------------------------------------------------------------

    async def _stop(self, drain_s: float) -> None:
        before, self._state = self._state, _State.STOPPING
        self._stop_asked.set()
        await self._retention.close()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if self._session is not None:
            if before is _State.RUNNING:
                await self._session.drain(drain_s)
            await self._session.close()
        await self._watch.close(HostStateError("the host has stopped"))
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.storage.close()
        except TimeoutError:
            _log.warning("the storage did not close within %.0f s; left as it is", CLOSE_S)
        self._state = _State.STOPPED

    async def _open_session(self) -> Session:
        session = Session(self._config)
        await session.open()
        return session

    async def _supervise(self) -> None:
        """Begin a new session when the lease is lost; fail when the storage has failed."""
        while self._session is not None:
            # Waited for and not awaited, which would cancel it together with this task.
            await asyncio.wait([self._session.broken])
            error = self._session.broken.result()
            if isinstance(error, StorageRewoundError):
                _log.error(
                    "the storage has gone back in time; everything in memory is dropped, and the "
                    "host goes on from what is stored: %s",
                    error,
                )
            elif isinstance(error, LeaseLostError):
                _log.warning("the lease is lost; everything in memory is dropped: %s", error)
            else:
                await self._fail(error)
                return
            await self._session.close()
            try:
                self._session = await self._reopen()
            except StorageError as failed:
                await self._fail(failed)
                return

    async def _fail(self, error: Exception) -> None:
        self._failure = error
        self._state = _State.FAILED
        _log.critical("the host has failed: %s", error)
        await self._watch.close(error)
        self._stop_asked.set()

    async def _reopen(self) -> Session:
        wait_s = BACKOFF_MIN_S
        while True:
            try:
                return await self._open_session()
            except (*MAY_PASS, LeaseLostError, StorageRewoundError) as error:
                _log.log(loudness(error), "storage: %s; a lease again in %.2f s", error, wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    async def _create(self, process: NewProcess) -> Created:
        if self._session is None:
            return await super()._create(process)
        try:
            if not self._session.places.is_limited(process.name):
                return await self._session.create(process)
            with self._session.places.held(process.name) as is_there_room:
                if is_there_room:
                    return await self._session.create(process)
            # It waits in the storage, for whoever has room first.
            return await super()._create(process)
        except (LeaseLostError, StorageRewoundError, HostStateError):
            # Between two sessions, or at the end of one: the creation needs no lease.
            self._check_usable()
            return await super()._create(process)

    def _delivered(self, process_id: str, answer: Delivered) -> None:
        session = self._session
        if (
            session is not None
            and answer.event is not None
            and answer.owner == session.lease.host_id
        ):
            session.deliver(process_id, answer.event)

    def _now(self) -> datetime:
        return self._clock.now() if self._session is None else self._session.now()

    def _here(self, process_id: str) -> int | None:
        return None if self._session is None else self._session.incarnation_of(process_id)

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise StorageError(f"the host has failed: {self._failure}") from self._failure
        if self._state is not _State.RUNNING:
            raise HostStateError(
                f"the host is {self._state.value}",
                hint="use it inside `async with host:`, or after `await host.start()`",
            )

    def _check_registering(self) -> None:
        if self._state is not _State.NEW:
            raise HostStateError(
                f"the host is {self._state.value}; functions are registered before it starts",
                hint="decorate them at import time, or give ProcessHost(processes=[…])",
            )
