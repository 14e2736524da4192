"""The durable calls that reach other processes, and the one that begins the own anew.

A thin face: it checks arguments, makes the call object and hands over.
"""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, NoReturn, TypeVar, TypeVarTuple

import durabletask._children as _children
from durabletask._durable_call import Calls, DurableCall, DurableWait
from durabletask._edge import checked_tags, event_of, moment_of
from durabletask._errors import InvalidArgumentError, ProcessInterrupted, UnregisteredProcessError
from durabletask._limits import check_name
from durabletask._model import Kind, NewEvent
from durabletask._run import Run

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Child(Generic[T]):
    """A process that this one has spawned.

    Attributes:
        id: Its process_id; from outside it is a process like any other.
    """

    __slots__ = ("_birth", "_key", "_run", "id")

    def __init__(self, run: Run, key: str, child_id: str, birth: _children.Birth) -> None:
        self.id = child_id
        self._run = run
        self._key = key
        self._birth = birth

    def __repr__(self) -> str:
        return f"<child {self.id!a}>"

    def result(self) -> DurableWait[T]:
        """Wait for the child's end, once in a run; also a branch of a race, until it wins one.

        Raises:
            ProcessFailedError: It failed or was cancelled; `__cause__` is its error.
            ProcessTerminatedError: It was ended from outside.
        """
        shape = self._birth.shape
        body = _children.result(self._run, self._key, self.id, shape)
        branch = _children.ChildBranch(self._run, self._key, self.id, shape)
        return DurableWait(Kind.CALL, self._key, body, branch)


class ChildCalls(Calls):
    """What a process does to others, and to itself: `spawn`, `call`, `raise_event`, `restart`."""

    __slots__ = ()

    def spawn(
        self,
        key: str,
        fn: Callable[[Any, *Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
        process_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        start_at: datetime | timedelta | None = None,
        deadline: datetime | timedelta | None = None,
    ) -> DurableCall[Child[T]]:
        """Create a child process, in one record with the key, and do not wait for it.

        It goes on whatever becomes of this process, but for `cancel` and
        `terminate`, which reach the children of a process too.

        Args:
            key: Names the call within the process.
            fn: A process function, registered on this host.
            *args: What it takes after its `Process`.
            process_id: Of the child; derived from this process and the key if
                not given, and then nobody else's.
            tags: Short texts to find it by.
            start_at: Not before; aware, or from now on.
            deadline: When it is cancelled unless it has ended; aware, or from
                `start_at` on, or from now on without one.

        Raises:
            ProcessExistsError: Recorded: the id belongs to a process that this
                call did not spawn.
            InvalidArgumentError, SerializationError, LimitExceededError: It cannot
                be spawned so; nothing was recorded.
            ProcessInterrupted: This host has no such process function: the process
                is quarantined, since a deployment that forgets one is no
                failure of the child, and nobody is to roll back because of it.
        """
        birth = self._birth(key, fn, args, process_id, tags, start_at, deadline)
        return DurableCall(Kind.CHILD, key, _spawn(self._run, key, birth))

    def call(
        self,
        key: str,
        fn: Callable[[Any, *Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
        process_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        deadline: datetime | timedelta | None = None,
    ) -> DurableCall[T]:
        """Create a child process and wait for its result; see `spawn`.

        To race a child, `spawn` it and race its `result()`.

        Raises:
            ProcessFailedError: It failed or was cancelled; `__cause__` is its error.
            ProcessTerminatedError: It was ended from outside.
            ProcessExistsError: As for `spawn`.
        """
        birth = self._birth(key, fn, args, process_id, tags, None, deadline)
        return DurableCall(Kind.CALL, key, _children.call(self._run, key, birth))

    def raise_event(
        self, key: str, process_id: str, name: str | object, payload: object = None
    ) -> DurableCall[None]:
        """Put an event into another process's mailbox, in one record with the key.

        It is delivered once, however often this process is resumed.

        Args:
            key: Names the call within the process.
            process_id: The receiver; it may be this process.
            name: What the receiver asks for; or an object whose class is both
                name and type, without `payload`.
            payload: Any value with an exact JSON form.

        Raises:
            UnknownProcessError, ProcessFinishedError, MailboxFullError:
                Recorded: the receiver cannot take it.
            SerializationError: The payload has no exact JSON form; nothing was recorded.
        """
        run = self._run
        check_name("key", key)
        name, payload = event_of(name, payload)
        event = NewEvent(
            process_id=check_name("process_id", process_id),
            event_id=_children.derived_id(run, key),
            name=name,
            payload=run.services.codec.shape_of(payload).encode(payload, "payload"),
        )
        return DurableCall(Kind.SEND, key, _children.send(run, key, event))

    def restart(self, *args: Any, drop_undos: bool = False) -> NoReturn:
        """Begin the function anew under the same id: the next generation, with an empty history.

        For what goes on for ever: a process that restarts does not grow. Events
        that nobody has taken stay. Unwinds like an interrupt: no durable call
        of this generation does anything any more, steps in flight and children
        are not waited for. Ends that children come to later are not told.

        Args:
            *args: What the function takes after its `Process`.
            drop_undos: Whether the undos that are registered are dropped.

        Raises:
            InvalidArgumentError: Undos are registered, or the function does
                not take the arguments; the process goes on.
            SerializationError: An argument cannot be stored; the process goes on.
        """
        run = self._run
        run.check_caller("restart")
        if run.undos and not drop_undos:
            raise InvalidArgumentError(
                f"process {run.process_id!r} cannot restart: it would forget its undos",
                hint="restart after what may have to be undone, or restart(…, drop_undos=True)",
            )
        definition = run.services.registry.named(run.name)
        assert definition is not None  # it runs
        payload, _ = definition.signature.encode(run.process_id, args)
        run.restart(payload)
        raise ProcessInterrupted

    def _birth(
        self,
        key: str,
        fn: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        process_id: str | None,
        tags: Mapping[str, str] | None,
        start_at: datetime | timedelta | None,
        deadline: datetime | timedelta | None,
    ) -> _children.Birth:
        run = self._run
        check_name("key", key)
        child_id = _children.derived_id(run, key) if process_id is None else process_id
        check_name("process_id", child_id)
        try:
            definition = run.services.registry.of(fn)
        except UnregisteredProcessError as error:
            run.check_caller(key)
            raise run.quarantine(error) from error
        input, digest = definition.signature.encode(child_id, args)
        now = run.services.now()
        starts = moment_of("start_at", start_at, now)
        return _children.Birth(
            process_id=child_id,
            name=definition.name,
            input=input,
            digest=f"{definition.name}:{digest}",
            shape=definition.signature.returns,
            tags=checked_tags(tags),
            start_at=starts,
            deadline_at=moment_of("deadline", deadline, starts or now),
            context=run.services.travelling.capture(),
        )


async def _spawn(run: Run, key: str, birth: _children.Birth) -> Child[Any]:
    return Child(run, key, await _children.spawn(run, key, birth), birth)
