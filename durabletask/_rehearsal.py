"""What code would make of a recorded process: resumed as far as it recalls, with nothing done.

A run whose calls return what is recorded; a call that is new is held and never
begins, and nothing is written. It refuses to know where histories come from
and what is said of them (`durabletask.testing`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from threading import get_ident
from typing import Any

import msgspec

from durabletask._callable import Callables
from durabletask._caller import INSIDE
from durabletask._clock import Clock
from durabletask._codec import Codec
from durabletask._context import Travelling
from durabletask._culprits import culprits
from durabletask._errors import DecodeError, ProcessInterrupted, StorageUnavailableError
from durabletask._failure import Failures
from durabletask._lease import Trust
from durabletask._limits import Limits
from durabletask._memory import MemoryStorage
from durabletask._model import (
    NO_INDEX,
    Checkpoint,
    Claimed,
    Created,
    Delivered,
    Form,
    Kind,
    Lease,
    NewEvent,
    NewProcess,
    Snapshot,
    Unit,
    UnitOutcome,
)
from durabletask._notes import DecisionNote
from durabletask._process import Process
from durabletask._registry import Definition, Registry
from durabletask._run import Run
from durabletask._runner import unwind
from durabletask._services import Services
from durabletask._steps import OUTCOMES
from durabletask._timers import Timers
from durabletask._writer import Writer

QUIET_S = 60.0
"""How long the function may recall nothing before this is taken for all that it recalls."""
STUCK_QUIET_S = 1.0
"""The same where the function itself is held, and only its other tasks may still go on."""
UNWIND_S = 30.0
"""After so long, a function that swallows its interrupt is left behind."""

_WAITS = frozenset({Kind.DELAY, Kind.EVENT, Kind.RACE, Kind.TIMEOUT, Kind.CALL})

LONG_AGO = datetime(1000, 1, 1, tzinfo=UTC)
"""The time of a rehearsal is before this, and all that is recorded falls due after it: so that no
recorded wait is ever over, and what falls due before it is a recorded cancellation to come."""


@dataclass(frozen=True, slots=True)
class Cast:
    """What the host has that is to run the code: parts that a `ProcessHost` makes too."""

    registry: Registry
    codec: Codec
    failures: Failures
    limits: Limits
    travelling: Travelling


@dataclass(slots=True)
class Findings:
    """What one process came to under the code; calls are named as "kind 'key'".

    Attributes:
        problem: Because of which it would be quarantined.
        raised: What the function raised that comes from no recorded failure.
        is_over: Whether the function has returned or raised.
        next_calls: The new calls that would begin next.
        waits: The open waits of earlier runs that it got to.
        never_asked: What is recorded and was not asked for until then.
        left_behind: The same, but recorded before the last value of a variable that the
            function has got: the rounds of a loop that goes on from its cursor.
        open_undos: Keys of the steps that are to be undone and whose undo was not found.
    """

    problem: Exception | None = None
    raised: BaseException | None = None
    is_over: bool = False
    next_calls: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    never_asked: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    open_undos: list[str] = field(default_factory=list)


class RehearsedRun(Run):
    """A run that recalls and does nothing else."""

    __slots__ = ("_begun_maps", "asked_s", "findings", "is_stuck")

    def __init__(self, services: Services, claimed: Claimed) -> None:
        super().__init__(services, claimed, None)
        self.findings = Findings()
        self.asked_s = services.loop.time()
        """When something was last recalled, by the loop's time."""
        self.is_stuck = False
        """Whether the function itself has got as far as it can."""
        self._begun_maps: set[str] = set()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has been recalled for so long that nothing more will be."""
        kept = (self._holds or {}).values()
        if any(due_at is not None and due_at < LONG_AGO for due_at in kept):
            return False  # a recorded cancellation is still to come; that has a limit of its own
        quiet_s = STUCK_QUIET_S if self.is_stuck else QUIET_S
        return self.services.loop.time() >= self.asked_s + quiet_s

    async def record(
        self, checkpoint: Checkpoint, consumes: tuple[int, ...] = (), **more: Any
    ) -> Checkpoint:
        """Hold what would be recorded now: the end of a wait, or of a timeout."""
        if self.collecting:
            await self._hold_back()
        return await super().record(checkpoint, consumes, **more)

    async def record_cancelled(self, kind: Kind, key: str, index: int) -> Checkpoint | None:
        """Hold what user code cancels: it would be recorded, and so be new."""
        if self.collecting:
            await self._hold_back()
        return await super().record_cancelled(kind, key, index)

    async def pass_gate(self, kind: Kind, key: str, index: int = NO_INDEX) -> None:
        """Let a call pass that recalls, or goes on waiting; hold one that is new."""
        if not self.collecting:
            await super().pass_gate(kind, key, index)
            return
        if not self.journal.is_new(key, index):
            self.asked_s = self.services.loop.time()
            return
        if kind in _WAITS and self.journal.has_begun(key, index):
            # It makes no record before its end, and is held there. Until then it is looked at as
            # in any run: whether it waits for the same as before.
            self.findings.waits.append(_named(kind, key))
            if kind is not Kind.TIMEOUT:
                self._note_stuck()
            return
        if index != NO_INDEX and kind is Kind.DO and key not in self._begun_maps:
            # A map asks first for the whole, before it recalls what there is of its items.
            self._begun_maps.add(key)
            return
        self.ask(kind, key, index)  # which finds that the key was used before
        name = _named(kind, key)
        if name not in self.findings.next_calls:
            self.findings.next_calls.append(name)
        await self._hold_back()

    async def _hold_back(self) -> None:
        self._note_stuck()
        await self.hold(None, self.services.loop.create_future())

    def _note_stuck(self) -> None:
        self.is_stuck = self.is_stuck or asyncio.current_task() is self.task


async def rehearse(
    cast: Cast, definition: Definition, snapshot: Snapshot, clock: Clock
) -> Findings:
    """Run the function as far as it recalls, and say what it came to.

    Args:
        cast: What the code is run with.
        definition: Of the function.
        snapshot: Of a process that has not ended, with its history.
        clock: Of the running loop, virtual, and before `LONG_AGO`.
    """
    threads = ThreadPoolExecutor(1, "durabletask rehearsal")
    writer = Writer(
        _Nowhere(clock),
        Lease("rehearsal", "rehearsal", None, clock.now()),
        units_max=1,
        bytes_max=1,
        on_broken=lambda error: None,
    )
    services = _services(cast, clock, writer, threads)
    events = tuple(event for event in snapshot.events if not event.consumed)
    run = RehearsedRun(services, Claimed(snapshot.row, True, snapshot.checkpoints, events))
    try:
        return await _findings(run, cast, definition, snapshot)
    finally:
        services.timers.close()
        await writer.close(_refused())
        threads.shutdown(wait=False)


async def _findings(
    run: RehearsedRun, cast: Cast, definition: Definition, snapshot: Snapshot
) -> Findings:
    findings = run.findings
    try:
        context = cast.travelling.restore(snapshot.row.context)
        args, kwargs = definition.signature.decode(run.take_input())
    except DecodeError as problem:
        findings.problem = problem
        _note_never_asked(run, snapshot)
        return findings
    run.collect()
    body = definition.fn(Process(run), *args, **kwargs)
    run.task = run.services.loop.create_task(
        _watched(run, body), name=run.process_id, context=context
    )
    while not (run.task.done() or run.is_quiet or run.interrupted):
        await asyncio.wait((run.task,), timeout=STUCK_QUIET_S)
    findings.problem = run.quarantine_error
    _note_never_asked(run, snapshot)
    findings.open_undos = _open_undos(run, snapshot)
    run.interrupt()
    with suppress(TimeoutError):
        async with asyncio.timeout(UNWIND_S):
            await unwind(run)
    return findings


async def _watched(run: RehearsedRun, body: Coroutine[Any, Any, Any]) -> None:
    """Run the function, and note what it comes to unless it is interrupted."""
    INSIDE.set(run)
    findings = run.findings
    try:
        await body
    except OUTCOMES as error:
        if run.interrupted or isinstance(error, ProcessInterrupted):
            return
        findings.is_over = True
        if not culprits(error):
            findings.raised = error.with_traceback(None)
    else:
        findings.is_over = not run.interrupted


def _note_never_asked(run: RehearsedRun, snapshot: Snapshot) -> None:
    """Note what is recorded and was not asked for, but for what was cancelled: it is no loss."""
    unasked = {id(each) for each in run.journal.never_asked()}
    cursor = max(
        (
            (each.epoch, each.seq)
            for each in snapshot.checkpoints
            if each.kind is Kind.VAR and id(each) not in unasked
        ),
        default=(0, 0),
    )
    for each in run.journal.never_asked():
        if each.form is Form.CANCELLED:
            continue
        is_behind = each.kind is not Kind.VAR and (each.epoch, each.seq) < cursor
        found = run.findings.left_behind if is_behind else run.findings.never_asked
        name = _named(each.kind, each.key)
        if name not in found:
            found.append(name)


def _open_undos(run: Run, snapshot: Snapshot) -> list[str]:
    """Return which steps are still to be undone and have no undo that the code has told."""
    undone = {(each.key, each.index) for each in snapshot.checkpoints if each.kind is Kind.UNDO}
    return [
        spot[0]
        for decision in snapshot.checkpoints
        if decision.kind is Kind.DECISION
        for spot in msgspec.json.decode(decision.payload, type=DecisionNote).undos
        if spot not in undone and (run.undos is None or run.undos.find(spot) is None)
    ]


def _named(kind: Kind, key: str) -> str:
    return f"{kind.value} {key!r}"


def _services(cast: Cast, clock: Clock, writer: Writer, threads: ThreadPoolExecutor) -> Services:
    loop = asyncio.get_running_loop()
    trust = Trust(clock)
    trust.observe(clock.now())
    return Services(
        host_id="rehearsal",
        loop=loop,
        thread=get_ident(),
        writer=writer,
        timers=Timers(loop, clock.now, clock.recheck_s),
        trust=trust,
        now=clock.now,
        monotonic_s=clock.monotonic_s,
        random=Random(0),
        registry=cast.registry,
        codec=cast.codec,
        any_shape=cast.codec.shape(),
        failures=cast.failures,
        callables=Callables(cast.codec),
        limits=cast.limits,
        travelling=cast.travelling,
        threads=threads,
        observers=(),
        on_interrupt=lambda run: None,
        on_left=lambda run, task: None,
    )


class _Nowhere(MemoryStorage):
    """A storage that nothing is ever written to; with transactions, since the code may ask."""

    async def create_in(self, connection: Any, process: NewProcess) -> Created:
        raise _refused()

    async def deliver_in(self, connection: Any, event: NewEvent, *, mailbox_max: int) -> Delivered:
        raise _refused()

    async def transact(
        self, lease: Lease, unit: Unit, body: Callable[[Any], Awaitable[bytes]]
    ) -> UnitOutcome:
        raise _refused()


def _refused() -> StorageUnavailableError:
    return StorageUnavailableError("this is a rehearsal: nothing is written")
