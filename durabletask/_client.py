"""Everything that needs no execution: spawn, raise, look. A host is a client that also runs."""

import builtins
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, overload

from durabletask._codec import Codec
from durabletask._errors import (
    InvalidArgumentError,
    ProcessError,
    ProcessExistsError,
)
from durabletask._failure import Failures
from durabletask._handle import ProcessHandle
from durabletask._info import HistoryEntry, ProcessInfo, Reader
from durabletask._input import Signature
from durabletask._limits import Limits, check_name
from durabletask._model import (
    Created,
    Delivered,
    Ending,
    NewEvent,
    NewProcess,
    Query,
    Snapshot,
    Status,
)
from durabletask._process import Process
from durabletask._refused import raise_busy, raise_refused, transactions_of
from durabletask._registry import Registry
from durabletask._repeat import repeat_unknown
from durabletask._retry import RetryPolicy
from durabletask._storage import ProcessStorage
from durabletask._watch import Watch, unknown

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])

POLL_S = 0.9
"""So that an idle host asks its storage less than twice a second in all, renewals included."""


class ProcessClient:
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
            random: Source of ids and jitter.
        """
        self.storage = storage
        self.limits = limits or Limits()
        self.codec = Codec(types, self.limits)
        self.failures = Failures(errors, self.codec)
        self.registry = Registry(self.codec, self.limits)
        self._random = random or SystemRandom()
        self._poll_s = poll_s
        self._reader = Reader(self.codec.view, self.failures)
        self._watch = Watch(storage, poll_s, self._is_here)
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
        self, *, name: str | None = None, retry: RetryPolicy | None = None
    ) -> Callable[[F], F]: ...
    def process(
        self,
        fn: F | None = None,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> F | Callable[[F], F]:
        """Register a process function; a decorator, with or without arguments.

        Args:
            fn: `async def fn(proc: Process, …)`. Returned unchanged.
            name: Under which its processes are stored; the function's name if
                not given. It must stay, for as long as such processes live.
            retry: For its steps that name no policy of their own.

        Raises:
            RegistrationError: It is no process function, or the name is taken.
        """

        def register(fn: F) -> F:
            self._check_registering()
            self.registry.add(fn, name, retry)
            return fn

        return register if fn is None else register(fn)

    # --- processes --------------------------------------------------------------------------

    async def spawn(
        self,
        fn: Callable[[Process, *Ts], Coroutine[Any, Any, T]],
        process_id: str,
        *args: *Ts,
        tags: Mapping[str, str] | None = None,
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
            connection: Of yours, with an open transaction: the process is
                created in it, and exists if and when you commit it. Then
                whichever host claims it runs it. Only for storages in a
                database that is yours as well, such as Postgres.

        Raises:
            ProcessExistsError: The id belongs to another function or input.
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
        process = NewProcess(
            process_id=process_id,
            name=definition.name,
            input=payload,
            input_digest=digest,
            creation_id=self._new_id(),
            tags=_checked_tags(tags),
        )

        async def create() -> Created:
            created = await self._create(process)
            raise_busy(process_id, created)
            return created

        if connection is None:
            created = await repeat_unknown(create)
        else:
            created = await transactions_of(self.storage).create_in(connection, process)
            raise_busy(process_id, created)
        row = created.row
        if row is not None and not created.fresh and row.input_digest != digest:
            what = "input" if row.name == definition.name else f"function, {row.name!r}"
            raise ProcessExistsError(
                process_id,
                f"process {process_id!r} exists already with another {what}",
                hint="one id is one piece of work: use another id, or purge the old process",
            )
        return ProcessHandle(self, process_id, definition.signature.returns)

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

    async def raise_event(
        self,
        process_id: str,
        name: str,
        payload: object = None,
        *,
        event_id: str | None = None,
        connection: object | None = None,
    ) -> None:
        """Put an event into a process's mailbox, durably.

        It is kept until the process takes it, whether or not it waits or runs.

        Args:
            process_id: The process.
            name: What `proc.event(name)` asks for.
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
        check_name("event name", name)
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
        self,
        *,
        status: Status | str | Iterable[Status | str] | None = None,
        name: str | None = None,
        prefix: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ProcessInfo]:
        """Iterate over processes in order of creation; every filter given must match.

        Args:
            status: One or several.
            name: Of the process function.
            prefix: Of the process_id.
            tags: All of them must be there, with these values.
        """
        self._check_usable()
        statuses = None if status is None else _checked_statuses(status)
        cursor: str | None = None
        while True:
            page = await self.storage.list(
                Query(
                    statuses=statuses,
                    name=name,
                    prefix=prefix,
                    tags=_checked_tags(tags),
                    cursor=cursor,
                )
            )
            for row in page.rows:
                yield self._reader.info(row, self.registry, None)
            cursor = page.cursor
            if cursor is None:
                return

    # --- for handles ------------------------------------------------------------------------

    async def wait_ended(self, process_id: str) -> Ending:
        """Wait until a process has ended or is quarantined; for `ProcessHandle.result`."""
        self._check_usable()
        return await self._watch.wait(process_id)

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

    def _is_here(self, process_id: str) -> bool:
        return False

    def _check_usable(self) -> None:
        """Raise if the client cannot be used now."""

    def _check_registering(self) -> None:
        """Raise if no function can be registered now."""

    # --- inside -----------------------------------------------------------------------------

    async def _read(self, process_id: str) -> Snapshot:
        self._check_usable()
        (snapshot,) = await self.storage.read([process_id], history=True)
        if snapshot is None:
            raise unknown(process_id)
        return snapshot

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"


def _checked_statuses(status: Status | str | Iterable[Status | str]) -> frozenset[Status]:
    try:
        return frozenset(Status(one) for one in ((status,) if isinstance(status, str) else status))
    except ValueError as problem:
        raise InvalidArgumentError(
            str(problem), hint="one or several of " + ", ".join(Status)
        ) from None


def _checked_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    return {
        check_name("tag", key): check_name(f"tag {key!r}", value)
        for key, value in (tags or {}).items()
    }
