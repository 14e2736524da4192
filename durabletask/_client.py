"""Everything that needs no execution: spawn, raise, look. A host is a client that also runs."""

import builtins
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, Unpack, overload

from durabletask._bulk import BulkCalls
from durabletask._clock import Clock, SystemClock
from durabletask._codec import Codec
from durabletask._context import Travelling
from durabletask._edge import (
    ON_EXISTING,
    EventObject,
    OnExisting,
    check_existing,
    checked_tags,
    event_of,
    times_of,
)
from durabletask._errors import InvalidArgumentError, ProcessError
from durabletask._failure import Failures
from durabletask._filter import Filter, query_of
from durabletask._handle import ProcessHandle
from durabletask._info import HistoryEntry, ProcessInfo, ProcessPage, Reader
from durabletask._input import Signature
from durabletask._limits import Limits, check_name
from durabletask._model import (
    Created,
    Delivered,
    Ending,
    NewEvent,
    NewProcess,
    Page,
    Snapshot,
)
from durabletask._process import Process
from durabletask._refused import busy, raise_busy, raise_refused, transactions_of
from durabletask._registry import Registry
from durabletask._repeat import repeat_unknown
from durabletask._requests import Requests
from durabletask._retry import RetryPolicy
from durabletask._storage import ProcessStorage
from durabletask._transitions import FINISHED
from durabletask._watch import Watch, unknown

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])

POLL_S = 0.9
"""So that an idle host asks its storage less than twice a second in all, renewals included."""

LIST_PAGE = 100


class ProcessClient(BulkCalls):
    """Spawns processes, raises events and looks at what there is, without running anything.

    Use it as an async context manager, so that waits for results end with it.
    """

    def __init__(
        self,
        storage: ProcessStorage,
        *,
        processes: Iterable[Callable[..., Coroutine[Any, Any, Any]]] = (),
        types: Iterable[type] = (),
        errors: Iterable[type[Exception]] = (),
        limits: Limits | None = None,
        poll_s: float = POLL_S,
        clock: Clock | None = None,
        context: Iterable[ContextVar[Any]] = (),
        random: Random | None = None,
    ) -> None:
        """Prepare a client; nothing is opened yet.

        Args:
            storage: Where the processes live.
            processes: Process functions to register.
            types: Classes that may stand in values without an annotation.
            errors: Exception classes that come back as themselves.
            limits: What is let through; see `Limits`.
            poll_s: Longest time between two looks at the storage.
            clock: Where time comes from, for what is given as a timedelta.
            context: Context variables that travel with what is spawned here; see `ProcessHost`.
            random: Source of ids and jitter.
        """
        self.storage = storage
        self.limits = limits or Limits()
        self.codec = Codec(types, self.limits)
        self.failures = Failures(errors, self.codec)
        self.registry = Registry(self.codec, self.limits)
        self._random = random or SystemRandom()
        self._poll_s = poll_s
        self._clock: Clock = clock or SystemClock()
        self._travelling = Travelling(context, self.codec)
        self._requests = Requests(storage, self._new_id)
        self._reader = Reader(self.codec.view, self.failures)
        self._watch = Watch(storage, poll_s, self._here)
        for fn in processes:
            self.registry.add(fn)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all waits and close the storage. Safe to repeat."""
        await self._watch.close(ProcessError("", "the client was closed"))
        await self.storage.close()

    # --- registering ------------------------------------------------------------------------

    @overload
    def process(self, fn: F) -> F: ...
    @overload
    def process(
        self,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        concurrency: int | None = None,
    ) -> Callable[[F], F]: ...
    def process(
        self,
        fn: F | None = None,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        concurrency: int | None = None,
    ) -> F | Callable[[F], F]:
        """Register a process function; a decorator, with or without arguments.

        Args:
            fn: `async def fn(proc: Process, …)`. Returned unchanged.
            name: Under which its processes are stored; the function's name if
                not given. It must stay, for as long as such processes live.
            retry: For its steps that name no policy of their own.
            concurrency: So many of its processes at most are in this host's
                memory at once, those that wait included; the others stay
                claimable for other hosts. None for no limit but that of all.

        Raises:
            RegistrationError: It is no process function, or the name is taken.
        """

        def register(fn: F) -> F:
            self._check_registering()
            self.registry.add(fn, name, retry, concurrency)
            return fn

        return register if fn is None else register(fn)

    # --- processes --------------------------------------------------------------------------

    async def spawn(
        self,
        fn: Callable[[Process, *Ts], Coroutine[Any, Any, T]],
        process_id: str,
        *args: *Ts,
        tags: Mapping[str, str] | None = None,
        start_at: datetime | timedelta | None = None,
        deadline: datetime | timedelta | None = None,
        on_existing: OnExisting = "return",
        connection: object | None = None,
    ) -> ProcessHandle[T]:
        """Create a process, durably, unless it exists.

        Idempotent: the same id with the same function and input is the same
        process, until it is purged, even if it has finished.

        Args:
            fn: A registered process function.
            process_id: 1 to 255 bytes of UTF-8 of your choice, such as "transfer/4711".
            *args: What the function takes after its `Process`.
            tags: Short texts to find it by.
            start_at: Not before; aware, or from now on.
            deadline: When it is cancelled unless it has ended; aware, or from
                `start_at` on, or from now on without one.
            on_existing: What becomes of the call where the id exists:
                "return" the handle, if function and input are the same;
                "error"; or "replace" it, if it has finished, by a new process
                that has nothing of it.
            connection: Of yours, with an open transaction: the process is
                created in it, and exists if and when you commit it. Then
                whichever host claims it runs it. Only for storages in a
                database that is yours as well, such as Postgres.

        Raises:
            ProcessExistsError: The id belongs to another function or input, or
                to any process (`on_existing="error"`), or to one that has not
                finished ("replace"); nothing was written.
            UnregisteredProcessError: `fn` is not registered.
            InvalidIdError, InvalidArgumentError, SerializationError,
            LimitExceededError: The id or the arguments cannot be stored.
            ProcessBusyError: Another open transaction is creating or holding
                it; nothing was written.
            StorageUnavailableError: Nothing was written; try again.
            StorageUnknownError: The answer was lost; try again.
        """
        self._check_usable()
        check_name("process_id", process_id)
        definition = self.registry.of(fn)
        payload, digest = definition.signature.encode(process_id, args)
        digest = f"{definition.name}:{digest}"
        if on_existing not in ON_EXISTING:
            raise InvalidArgumentError(
                f"on_existing is {on_existing!r}", hint="one of " + ", ".join(ON_EXISTING)
            )
        starts, ends = times_of(start_at, deadline, self._now())
        process = NewProcess(
            process_id=process_id,
            name=definition.name,
            input=payload,
            input_digest=digest,
            creation_id=self._new_id(),
            replace=on_existing == "replace",
            start_at=starts,
            deadline_at=ends,
            tags=checked_tags(tags),
            context=self._travelling.capture(),
        )

        async def create() -> Created:
            created = await self._create(process)
            raise_busy(process_id, created)
            row = created.row
            if process.replace and row is not None and row.status in FINISHED and not created.fresh:
                raise busy(process_id)  # it could not be replaced, and can be by now
            return created

        if connection is None:
            created = await repeat_unknown(create)
        else:
            created = await transactions_of(self.storage).create_in(connection, process)
            raise_busy(process_id, created)
        if created.row is not None and not created.fresh:
            check_existing(created.row, definition.name, digest, on_existing)
        incarnation = None if created.row is None else created.row.incarnation
        return ProcessHandle(self, process_id, definition.signature.returns, incarnation)

    @overload
    def get(self, fn_or_id: str) -> ProcessHandle[Any]: ...
    @overload
    def get(
        self, fn_or_id: Callable[..., Coroutine[Any, Any, T]], process_id: str
    ) -> ProcessHandle[T]: ...
    def get(
        self,
        fn_or_id: str | Callable[..., Coroutine[Any, Any, Any]],
        process_id: str | None = None,
    ) -> ProcessHandle[Any]:
        """Return the handle of a process, `get(id)` or, typed, `get(fn, id)`.

        Looks nothing up: an unknown id shows at the first use of the handle.
        """
        if isinstance(fn_or_id, str):
            if process_id is not None:
                raise InvalidArgumentError("get takes an id, or a function and an id")
            return ProcessHandle(self, check_name("process_id", fn_or_id), self.codec.view)
        shape = Signature(fn_or_id, self.codec, self.limits).returns
        return ProcessHandle(self, check_name("process_id", process_id), shape)

    @overload
    async def raise_event(
        self,
        process_id: str,
        name: str,
        payload: object = None,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None: ...
    @overload
    async def raise_event(
        self,
        process_id: str,
        name: EventObject,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None: ...
    async def raise_event(
        self,
        process_id: str,
        name: str | EventObject,
        payload: object = None,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None:
        """Put an event into a process's mailbox, durably.

        It is kept until the process takes it, whether or not it waits or runs.

        Args:
            process_id: The process.
            name: What `proc.event(name)` asks for. Or, without `payload`, an
                object of the class that `proc.event(cls)` asks for; the name
                of the event is that of the class.
            payload: Any value with an exact JSON form; a dataclass and the
                like is stored as its fields and comes back as what the
                receiver's `type=` says.
            event_id: The same id raised again is the same event. Without one
                a repeated call is another event.
            connection: Of yours, with an open transaction: the event is raised
                if and when you commit it. See `spawn`. If the process has
                ended by then, the event is dropped.

        Raises:
            UnknownProcessError: There is no such process.
            ProcessFinishedError: It has ended.
            MailboxFullError: Too many events wait there already.
            ProcessBusyError: Another open transaction holds the process.
            StorageUnavailableError: Nothing was written; try again.
            StorageUnknownError: The answer was lost; repeat with an `event_id`.
        """
        self._check_usable()
        check_name("process_id", process_id)
        name, payload = event_of(name, payload)
        event_id = self._new_id() if event_id is None else check_name("event_id", event_id)
        event = NewEvent(
            process_id=process_id,
            event_id=event_id,
            name=name,
            payload=self.codec.shape_of(payload).encode(payload, "payload"),
        )
        mailbox_max = self.limits.mailbox_max

        async def deliver() -> Delivered:
            (answer,) = await self.storage.deliver([event], mailbox_max=mailbox_max)
            raise_busy(process_id, answer)
            return answer

        if connection is None:
            answer = await repeat_unknown(deliver)
        else:
            answer = await transactions_of(self.storage).deliver_in(
                connection, event, mailbox_max=mailbox_max
            )
            raise_busy(process_id, answer)
        raise_refused(answer, event, mailbox_max)
        self._delivered(process_id, answer)

    async def list(
        self, *, limit: int | None = None, **filter: Unpack[Filter]
    ) -> AsyncIterator[ProcessInfo]:
        """Iterate over processes in order of creation; every filter given must match.

        However many there are, one page of them is in memory at once. One that
        exists throughout comes once.

        Args:
            limit: So many at most, or all.
            **filter: `status` (one or several), `name` of the process
                function, `prefix` of the process_id, `tags` (all of them, with
                these values), `created_from` and `created_until`,
                `finished_from` and `finished_until` (aware; the first is
                included, the second not), `parent` (its id).

        Raises:
            InvalidArgumentError, InvalidIdError: The filter means nothing.
        """
        cursor: str | None = None
        while limit is None or limit > 0:
            page = await self._page(filter, min(limit or LIST_PAGE, LIST_PAGE), cursor)
            for row in page.rows:
                yield self._reader.info(row, self.registry, None)
            cursor = page.cursor
            if cursor is None:
                return
            limit = None if limit is None else limit - len(page.rows)

    async def list_page(
        self, *, cursor: str | None = None, limit: int = LIST_PAGE, **filter: Unpack[Filter]
    ) -> ProcessPage:
        """Return one page of what `list` gives, for user interfaces that page.

        Args:
            cursor: Of the page before, with the same filter; None for the first.
            limit: At most so many, 1 to 1,000. A page may have fewer although
                it is not the last one.
            **filter: As for `list`.

        Raises:
            InvalidArgumentError, InvalidIdError: The filter, limit or cursor means nothing.
        """
        page = await self._page(filter, limit, cursor)
        infos = tuple(self._reader.info(row, self.registry, None) for row in page.rows)
        return ProcessPage(infos, page.cursor)

    # --- for handles ------------------------------------------------------------------------

    async def wait_ended(self, process_id: str, incarnation: int | None) -> Ending:
        """Wait until a process has ended or is quarantined; for `ProcessHandle.result`."""
        self._check_usable()
        return await self._watch.wait(process_id, incarnation)

    async def info(self, process_id: str) -> ProcessInfo:
        """Describe a process; for `ProcessHandle.info`."""
        snapshot = await self._read(process_id)
        return self._reader.info(snapshot.row, self.registry, snapshot)

    async def history(self, process_id: str) -> builtins.list[HistoryEntry]:
        """Return a process's history; for `ProcessHandle.history`."""
        return self._reader.history(await self._read(process_id))

    # --- what a host does otherwise ---------------------------------------------------------

    async def _create(self, process: NewProcess) -> Created:
        (created,) = await self.storage.create([process])
        return created

    def _delivered(self, process_id: str, answer: Delivered) -> None:
        """Take note of an event that was stored."""

    def _here(self, process_id: str) -> int | None:
        return None

    def _now(self) -> datetime:
        """Return the storage's time, as well as it is known."""
        return self._clock.now()

    def _check_usable(self) -> None:
        """Raise if the client cannot be used now."""

    def _check_registering(self) -> None:
        """Raise if no function can be registered now."""

    # --- inside -----------------------------------------------------------------------------

    async def _page(self, filter: Filter, limit: int, cursor: str | None) -> Page:
        self._check_usable()
        return await self.storage.list(query_of(filter, limit, cursor))

    async def _read(self, process_id: str) -> Snapshot:
        self._check_usable()
        (snapshot,) = await self.storage.read([process_id], history=True)
        if snapshot is None:
            raise unknown(process_id)
        return snapshot

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"
