"""One lease's worth of running: claims processes, runs them, gives them back.

A host has one session at a time. When its lease is lost the session is over,
with everything it had in memory, and the host begins another one.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from datetime import datetime
from threading import get_ident
from typing import Any
from weakref import WeakSet

from durabletask._claiming import Claiming
from durabletask._config import Config
from durabletask._control import to_cancel
from durabletask._errors import (
    DecodeError,
    HostStateError,
    ProcessBusyError,
    StorageError,
    StorageFailedError,
    StorageRewoundError,
    StorageUnknownError,
)
from durabletask._group import GroupCommit
from durabletask._lease import Trust, keep_renewed
from durabletask._model import (
    Claimed,
    Created,
    Ending,
    Event,
    Leave,
    NewProcess,
    ProcessRow,
    Refusal,
    Status,
)
from durabletask._observe import tell_process
from durabletask._overdue import Overdue
from durabletask._repeat import repeat_unknown
from durabletask._run import Run
from durabletask._runner import damaged, deadly, execute, quarantined, unwind
from durabletask._services import Services
from durabletask._storage import Hints
from durabletask._suspects import SUSPECT_DEATHS, Suspects
from durabletask._threads import StepThreads
from durabletask._timers import Timers
from durabletask._transitions import FINISHED
from durabletask._writer import Writer

_log = logging.getLogger("durabletask")

RELEASE_PAUSE_S = 1.0
"""How long a process rests whose run the storage refused."""
CREATE_MAX = 1_000
BUSY_PAUSE_S = 0.25
"""Between two tries of a creation that may have happened and whose id is busy now."""
IDS_NAMED_MAX = 10
CLOSE_S = 5.0
"""How long a stop waits for a storage that does not answer."""


class Session:
    """Runs processes under one lease."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self.runs: dict[str, Run] = {}
        self.broken: asyncio.Future[Exception] = self._loop.create_future()
        """Set with the error that ended the lease or the storage."""
        self._claims = Claiming(
            config, self.runs, self._resident, self._take, self._break, self._new_id
        )
        self.places = self._claims.places
        # News of a process whose creation the storage has acknowledged and we have not yet heard.
        self._early: dict[str, list[Claimed]] = {}
        self._creating = False
        self._anew: dict[str, list[Claimed]] = {}  # claimed before a run that restarts has left
        # Creation ids of those whose answer was lost: they may have happened.
        self._unsure: set[str] = set()
        self._draining = False
        # One for all of them, as each would otherwise get a copy of its own, of 64 bytes.
        self._callbacks = copy_context()
        self._unwinding: set[asyncio.Task[None]] = set()
        self._trust = Trust(config.clock)
        self._threads = StepThreads(config.limits.threads_max, "durabletask step")

    async def open(self) -> None:
        """Take a lease and begin to claim.

        Raises:
            StorageError: There is none to be had.
        """
        config = self._config
        host_id = self._new_id()
        asked_s = config.clock.monotonic_s()
        self.lease = await config.storage.open_lease(host_id, config.label)
        self._trust.take(self.lease, asked_s)
        self._writer = Writer(
            config.storage,
            self.lease,
            units_max=config.limits.batch_units_max,
            bytes_max=config.limits.batch_bytes_max,
            on_broken=self._break,
        )
        self._creations: GroupCommit[NewProcess, Created] = GroupCommit(self._create, CREATE_MAX)
        self.create = self._creations.submit
        self._timers = Timers(self._loop, self._trust.now, config.clock.recheck_s)
        self._overdue = Overdue(
            self._timers, self._trust.now, self._cancel, self._start_late, self._news
        )
        self._suspects = Suspects(self._start_late, self._news)
        self._services = self._make_services()
        self._unsubscribe = (
            config.storage.subscribe(self._claims.hint)
            if isinstance(config.storage, Hints)
            else lambda: None
        )
        _sessions.add(self)
        renewal = keep_renewed(config.storage, self.lease, self._trust, config.clock, self._break)
        claims = self._claims.for_ever(self.lease, self._trust)
        self._claiming = self._loop.create_task(claims, name="durabletask claims")
        self._renewing = self._loop.create_task(renewal, name="durabletask lease")

    def now(self) -> datetime:
        """Return the storage's time, as well as it is known."""
        return self._trust.now()

    def deliver(self, process_id: str, event: Event) -> None:
        """Hand a stored event to the run it is for, if that keeps the order of arrival."""
        run = self.runs.get(process_id)
        if event.consumed:
            return
        if run is not None and event.position == run.mailbox.position + 1:
            run.mailbox.add((event,))
        else:
            self._claims.look()

    async def drain(self, drain_s: float) -> None:
        """Begin nothing more; let steps in flight finish and be recorded, then interrupt."""
        self._draining = True
        try:
            # The lease is renewed until the end: a drain may take longer than its time.
            await self._end_tasks([self._claiming])
            for run in list(self.runs.values()):
                run.drain()
            await self._wait_steps(drain_s)
            await self._interrupt_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._creations.wait_idle()
                    await self._writer.wait_idle()
        except asyncio.CancelledError:
            # A second signal, or a caller that gives up: what is held back must not hang.
            for run in list(self.runs.values()):
                run.interrupt()
            raise

    async def _wait_steps(self, drain_s: float) -> None:
        tasks = [run.task for run in self.runs.values() if run.task is not None]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=drain_s)
        if late:
            names = sorted(ascii(run.process_id) for run in self.runs.values())
            _log.warning(
                "drain: %d processes had steps in flight after %.1f s, which run again: %s",
                len(late),
                drain_s,
                ", ".join(names[:IDS_NAMED_MAX]),
            )
            once = sorted(f"{id!a} {key!a}" for id, key in self._services.once)
            if once:
                _log.warning(
                    "drain: %d of these steps are at_most_once: they do not run again, and fail "
                    "with StepInterruptedError: %s",
                    len(once),
                    ", ".join(once[:IDS_NAMED_MAX]),
                )

    async def close(self) -> None:
        """End the session at once; what it still holds is for others to claim."""
        _sessions.discard(self)
        self._unsubscribe()
        error = HostStateError("the host has stopped")
        await self._overdue.close()
        self._timers.close()
        self._trust.close()
        await self._end_tasks([self._claiming, self._renewing])
        await self._interrupt_all()
        await self._creations.close(error)
        await self._writer.close(error)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if not (self.broken.done() and isinstance(self.broken.result(), StorageFailedError)):
            # A lost one too: the storage has things of it to put away. And one that is not lost,
            # of a storage gone back in time, would keep the processes from the next session.
            await self._close_lease()

    async def _close_lease(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._config.storage.close_lease(self.lease)
        except (StorageError, TimeoutError) as error:
            # It ends by itself then; stopping must not depend on a storage that does not answer.
            why = str(error) or f"no answer within {CLOSE_S:.0f} s"
            _log.warning("the lease of host %s was not given back: %s", self.lease.host_id, why)

    def forget_after_fork(self) -> None:
        """Refuse everything in a forked child: the lease and the sockets are the parent's."""
        error = StorageFailedError("this is a forked child; the host belongs to its parent")
        self._writer.abandon(error)
        self._creations.abandon(error)
        for run in list(self.runs.values()):
            run.interrupt()

    # --- taking processes -------------------------------------------------------------------

    def _resident(self) -> int:
        return len(self.runs) + len(self._overdue) + len(self._suspects)

    def _take(self, claimed: Claimed) -> None:
        if claimed.fresh:
            self._start(claimed)
        else:
            self._news(claimed)

    async def _create(self, processes: list[NewProcess]) -> Sequence[Created]:
        lease = self.lease if self._resident() < self._config.limits.resident_max else None

        async def call() -> Sequence[Created]:
            try:
                return await self._config.storage.create(processes, lease)
            except StorageUnknownError:
                self._unsure.update(new.creation_id for new in processes)
                raise

        self._creating = True
        try:
            # For as long as the lease lasts: what it created here is ours to run.
            created = await repeat_unknown(call, float("inf"))
            for place, answer in enumerate(created):
                self._created(place, processes[place], answer)
        except StorageRewoundError as error:
            self._break(error)
            raise
        finally:
            self._creating = False
            self._early.clear()
        return created

    def _created(self, place: int, new: NewProcess, answer: Created) -> None:
        row = answer.row
        if row is None and new.creation_id in self._unsure:
            # What was created before the answer was lost is ours to run: not let go until known.
            future = self._creations.take_back(place)
            self._loop.call_later(BUSY_PAUSE_S, self._creations.put_first, [new], [future])
            return
        if self._unsure:
            self._unsure.discard(new.creation_id)
        if row is None or not answer.fresh:
            return
        if row.owner == self.lease.host_id and row.ending is None:
            self._start(Claimed(row))

    def _news(self, claimed: Claimed) -> None:
        run = self.runs.get(claimed.row.process_id)
        if claimed.row.process_id in self._anew:
            self._anew[claimed.row.process_id].append(claimed)
        elif run is not None and claimed.damage is not None:
            # Its mailbox cannot be read: it would wait for ever for what is there.
            run.quarantine(damaged(run.process_id, claimed.damage))
        elif run is not None:
            # First, or the end of a child that was cancelled with it would end the wait for it.
            self._heed(run, claimed.row)
            run.mailbox.add(claimed.events)
        elif claimed.row.process_id in self._suspects:
            self._suspects.add_news(claimed)
        elif claimed.row.process_id in self._overdue:
            self._overdue.add_news(claimed)
        elif self._creating:
            self._early.setdefault(claimed.row.process_id, []).append(claimed)

    def _heed(self, run: Run, row: ProcessRow) -> None:
        """Do what was asked of a process from outside."""
        if row.status in FINISHED or row.status is Status.SUSPENDED:
            run.stand_back(at_once=row.status in FINISHED)
        elif row.cancel_reason is not None and not row.cancel_met:
            run.cancel(row.cancel_reason)

    def _new_id(self) -> str:
        return f"{self._config.random.getrandbits(128):032x}"

    # --- running ----------------------------------------------------------------------------

    def _start(self, claimed: Claimed) -> None:
        row = claimed.row
        definition = self._config.registry.named(row.name)
        before = self.runs.get(row.process_id)
        if before is not None and (row.incarnation, row.epoch) > before.tenure:
            self._anew[row.process_id] = [claimed]
        if before is not None or definition is None or self._draining:
            return
        if not self._overdue.may_start(claimed):
            self.places.occupy(row.name)
            for news in self._early.pop(row.process_id, ()):
                self._news(news)
            return
        suspect = row.deaths >= SUSPECT_DEATHS
        if suspect and not self._suspects.may_start(claimed):
            self.places.occupy(row.name)
            return
        run = Run(self._services, claimed, definition.retry or self._config.retry)
        self.runs[row.process_id] = run
        self.places.occupy(row.name)
        if claimed.damage is not None:
            run.quarantine_error = damaged(row.process_id, claimed.damage)
        if suspect:
            self._try(run, row.deaths)
        body = execute(run, definition)
        run.task = self._loop.create_task(
            body, name=row.process_id, context=self._context(run, row)
        )
        run.task.add_done_callback(run, context=self._callbacks)
        for news in self._early.pop(row.process_id, ()) if self._early else ():
            self._news(news)
        tell_process(self._config.observers, run, Status.RUNNING, bool(claimed.checkpoints))

    def _start_late(self, claimed: Claimed) -> None:
        """Start a process that was held back, with a place of its name."""
        self.places.give_back(claimed.row.name)
        self._start(claimed)

    def _try(self, run: Run, deaths: int) -> None:
        """Run a suspect by itself, or not at all any more."""
        if deaths >= self._config.limits.deaths_max:
            run.quarantine_error = deadly(run.process_id, deaths)
        else:
            # Soon and not at once, since the next one must not start in the middle of a record.
            run.watch(lambda: self._clear(run))

    def _clear(self, run: Run) -> None:
        run.regate()
        self._loop.call_soon(self._suspects.cleared, run.process_id)

    def _context(self, run: Run, row: ProcessRow) -> Context | None:
        try:
            return self._config.travelling.restore(row.context)
        except DecodeError as error:
            run.quarantine_error = error
            return None

    def incarnation_of(self, process_id: str) -> int | None:
        """Return which incarnation of a process is here, or None."""
        anew = self._anew.get(process_id)
        if anew is not None:
            return anew[0].row.incarnation
        run = self.runs.get(process_id)
        return None if run is None else run.incarnation

    def _left(self, run: Run, task: "asyncio.Task[Ending | None]") -> None:
        self.runs.pop(run.process_id, None)
        self._overdue.forget(run.process_id)
        self.places.give_back(run.name)
        self._suspects.cleared(run.process_id)
        ending = None
        if not task.cancelled():
            error = task.exception()
            if error is None:
                ending = task.result()
            elif not isinstance(error, KeyboardInterrupt | SystemExit):
                # A fault of ours stops this process only, visibly, and loses nothing.
                _log.error("process %s: the engine failed", ascii(run.process_id), exc_info=error)
                run.submit(ending=quarantined(run, error))
        if ending is None and not (self._draining or self.broken.done()):
            if run.outside is None or not run.outside.leaves:
                # Interrupted by a refusal: to be claimed anew, but not at once and over and over.
                self._loop.call_later(RELEASE_PAUSE_S, self._release, run)
            elif run.outside.restart is None:
                self._release(run)
        self._claims.left(run.process_id, ended=ending is not None)
        anew = self._anew.get(run.process_id)
        # Who waits since it was asked to be tried again is not told of the end before that.
        is_over = anew is None or anew[0].row.incarnation != run.incarnation
        self._config.on_left(run.process_id, run.incarnation, ending if is_over else None)
        tell_process(self._config.observers, run, ending.status if ending else None, True)
        for claimed in self._anew.pop(run.process_id, ()):
            self._take(claimed)

    def _release(self, run: Run) -> None:
        if not (self._draining or self.broken.done()):
            run.submit(leave=Leave.RELEASED)

    async def _cancel(self, process_id: str, reason: str) -> None:
        """Ask the storage to cancel a process; its answer comes as news, or it has ended."""
        config = self._config
        control = to_cancel(process_id, self._new_id(), reason, config.failures)
        (answer,) = await repeat_unknown(lambda: config.storage.request([control]))
        if answer.refused is Refusal.BUSY:
            raise ProcessBusyError(f"process {process_id!r} is busy")
        self._claims.look()

    def _make_services(self) -> Services:
        config = self._config
        return Services(
            host_id=self.lease.host_id,
            loop=self._loop,
            thread=get_ident(),
            writer=self._writer,
            timers=self._timers,
            trust=self._trust,
            now=self._trust.now,
            monotonic_s=config.clock.monotonic_s,
            random=config.random,
            registry=config.registry,
            codec=config.codec,
            any_shape=config.codec.shape(),
            failures=config.failures,
            callables=config.callables,
            limits=config.limits,
            travelling=config.travelling,
            threads=self._threads,
            observers=config.observers,
            on_interrupt=self._unwind,
            on_left=self._left,
        )

    # --- ending -----------------------------------------------------------------------------

    def _break(self, error: Exception) -> None:
        """Take note that nothing can be recorded any more."""
        if not self.broken.done():
            self.broken.set_result(error)
            for run in list(self.runs.values()):
                run.interrupt()

    def _unwind(self, run: Run) -> None:
        task = self._loop.create_task(unwind(run), name=f"unwind {run.process_id}")
        self._unwinding.add(task)
        task.add_done_callback(self._unwinding.discard)

    async def _interrupt_all(self) -> None:
        for run in list(self.runs.values()):
            run.interrupt()
        tasks = [run.task for run in self.runs.values() if run.task is not None]
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=STUCK_S)
            if stuck:
                _log.error(
                    "stop: %d processes do not end; they are left behind: %s",
                    len(stuck),
                    ", ".join(sorted(ascii(task.get_name()) for task in stuck)[:IDS_NAMED_MAX]),
                )
        await self._end_tasks(list(self._unwinding))

    async def _end_tasks(self, tasks: "list[asyncio.Task[Any]]") -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


STUCK_S = 10.0
"""How long after its interrupt a process may take to end before the host stops without it."""

_sessions: "WeakSet[Session]" = WeakSet()


def _after_fork() -> None:
    for session in _sessions:
        session.forget_after_fork()


os.register_at_fork(after_in_child=_after_fork)
