"""A step for each of many items: bounded concurrency, one checkpoint an item, results in order.

Responsible for which items may begin, and for what the whole comes to. One item
is a step like any other (`_steps`). The rules, each of them the same on a
resumed run:

- Items begin in their order. After the first failure no further item begins;
  those in flight go on to their outcome, and then the failure of the lowest
  index is raised.
- Those in flight when a host died go on as well: every item before the last
  that has any record had begun. So once the whole is over, what is recorded
  has no gap, and a later run finds nothing to begin.
- If user code cancels the whole, each item in flight records that it was
  cancelled. If none was, the first that had not begun does.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import durabletask._steps as _steps
from durabletask._callable import CallSpec
from durabletask._caller import INSIDE
from durabletask._errors import ProcessInterrupted
from durabletask._model import Checkpoint, Form, Kind
from durabletask._retry import RetryPolicy
from durabletask._run import Run
from durabletask._turns import moment

CONCURRENCY = 1_000
"""Items in flight unless it is said: as many as one commit takes without being slower for it."""

_BEGUN = (Kind.RETRY, Kind.HEARTBEAT, Kind.OVERTAKEN)
"""What the engine itself may have noted about an item that has begun."""


class Map:
    """One `Process.map` in one run."""

    def __init__(
        self,
        run: Run,
        key: str,
        spec: CallSpec,
        fn: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        concurrency: int | None,
        retry: RetryPolicy | None,
        timeout_s: float | None,
    ) -> None:
        self._run = run
        self._key = key
        self._spec = spec
        self._fn = fn
        self._items = items
        self._concurrency = concurrency or CONCURRENCY
        self._retry = retry
        self._timeout_s = timeout_s
        self._plain = (
            spec.is_async
            and retry is None
            and timeout_s is None
            and not run.services.observers
            and not run.journal.notes
        )
        self._results: list[Any] = [None] * len(items)
        self._failures: dict[int, Exception] = {}
        self._open = True
        """Whether an item may begin that has not begun in an earlier run."""
        self._asked_to_stop = False
        """Whether user code has cancelled the whole."""
        self._cancelled = False
        """Whether it is recorded of an item that it was cancelled."""
        self._interrupted = False
        self._left: list[int] = []
        """The items to run."""
        self._unbegun: list[int] = []
        """Those that were stopped before they began."""
        self._last: Checkpoint | None = None
        """The latest record that is recalled, if nothing is left to run."""
        self._begun = 0
        """Every item below had begun, in this run or an earlier one."""

    async def results(self) -> list[Any]:
        """Run what is not recorded yet; return the results or raise what they come to."""
        run = self._run
        run.check_caller(self._key)
        self._look()
        if run.gated and self._items:
            # A call that is new where anything is left to run.
            await self._pass_gate(self._left[0] if self._left else 0)
        elif run.gated and not run.collecting:
            await run.stay_open(self._key)
        tasks = [self._relive(held) for held in self._recall()]
        tasks += [self._work() for _ in range(min(self._concurrency, len(self._left)))]
        self._pending: Iterator[int] = iter(self._left)
        if tasks:
            await self._wait([run.services.loop.create_task(each) for each in tasks])
        return await self._outcome()

    # --- what is recorded ---------------------------------------------------------------------

    def _look(self) -> None:
        """Find out, without asking for it, what there is and so what is left to do."""
        slots, notes = self._run.journal.slots, self._run.journal.notes or {}
        unrecorded = []
        for index in range(len(self._items)):
            held = slots.get((self._key, index))
            if held is None:
                unrecorded.append(index)
            elif held.form is not Form.VALUE:
                self._open = False
            if notes and any((kind, self._key, index) in notes for kind in _BEGUN):
                self._begun = index + 1
                self._open = self._open and (Kind.OVERTAKEN, self._key, index) not in notes
            elif held is not None:
                self._begun = index + 1
        self._left = [index for index in unrecorded if self._open or index < self._begun]

    async def _pass_gate(self, index: int) -> None:
        """Let the first item meet what is to be met before the whole begins."""
        try:
            await self._run.pass_gate(Kind.DO, self._key, index)
        except Exception as error:  # noqa: BLE001  (recorded as the failure of the item)
            self._failures[index] = error
            self._open = False
            self._left = [other for other in self._left if index < other < self._begun]

    def _recall(self) -> list[Checkpoint]:
        """Take what is recorded; return the items to which a cancellation has to come again."""
        run, journal, key = self._run, self._run.journal, self._key
        relived: list[Checkpoint] = []
        notes = journal.notes or {}
        self._check_limits(len(journal.slots), len(journal.slots) + len(self._left))
        for index in range(len(self._items)):
            if journal.slots.get((key, index)) is None:
                continue
            held = run.ask(Kind.DO, key, index)
            assert held is not None
            if not self._left:
                self._last = max(self._last or held, held, key=moment)
            if held.form is Form.CANCELLED or (Kind.OVERTAKEN, key, index) in notes:
                relived.append(held)
            else:
                self._unseal(held)
        return relived

    def _check_limits(self, before: int, after: int) -> None:
        """Refuse too many items before the first of them begins."""
        limits = self._run.services.limits
        if after > limits.steps_max:
            self._run.check_steps(after)
        elif before < limits.steps_warn <= after:
            self._run.check_steps(limits.steps_warn)

    def _unseal(self, held: Checkpoint) -> None:
        try:
            self._results[held.index] = self._run.unseal(held, self._spec.returns)
        except Exception as error:  # noqa: BLE001  (the recorded failure of an item, raised later)
            self._failures[held.index] = error

    async def _relive(self, held: Checkpoint) -> None:
        """Wait until an item that was cancelled in an earlier run is cancelled again."""
        try:
            await self._run.recall(held)
        except ProcessInterrupted:
            self._interrupted = True
        except asyncio.CancelledError:
            self._cancelled = True
        else:
            self._unseal(held)

    # --- what is not --------------------------------------------------------------------------

    async def _work(self) -> None:
        """Run one item after the other, in turns with the other workers."""
        try:
            while not self._asked_to_stop:
                index = next(self._pending, None)
                if index is None or not (self._open or index < self._begun):
                    return
                await self._run_item(index)
        except ProcessInterrupted:
            self._interrupted = True

    async def _run_item(self, index: int) -> None:
        run = self._run
        begun = False
        try:
            if run.gated:
                await run.pass_gate(Kind.DO, self._key, index)
            run.ask(Kind.DO, self._key, index)
            begun = True
            self._results[index] = await self._step(index)
        except ProcessInterrupted:
            raise
        except asyncio.CancelledError:
            if begun:
                self._cancelled = True
            else:
                self._unbegun.append(index)
        except Exception as error:  # noqa: BLE001  (the recorded failure of an item, raised later)
            self._failures[index] = error
            self._open = False

    async def _step(self, index: int) -> Any:
        run, item = self._run, self._items[index]
        if self._plain and run.services.trust.holds:
            return await self._plain_step(index, item)
        body: Callable[[], Any] = partial(self._fn, item)
        if not self._spec.is_async:
            body = partial(_steps.call_function, run, self._spec, self._fn, (item,))
        if self._timeout_s is not None:
            body = _steps.timed(body, self._timeout_s)
        step = _steps.StepRun(run, Kind.DO, self._key, index, body, self._spec.returns, self._retry)
        return await step.outcome()

    async def _plain_step(self, index: int, item: Any) -> Any:
        """Run an item as `plain_step` runs a step, with as few coroutines inside each other."""
        run, key, shape = self._run, self._key, self._spec.returns
        run.step_begins()
        token = INSIDE.set(_steps.Step(run, key, index))
        try:
            payload, value = shape.record(await self._fn(item), "result")
        except (KeyboardInterrupt, SystemExit) as error:
            INSIDE.reset(token)
            run.leave_program(error)
            raise
        except _steps.OUTCOMES as error:
            INSIDE.reset(token)
            # A worker that was asked to stop begins no item: the request came during this one.
            failure = _steps.as_failure(run, error, 0)
            return await _steps.settle(run, Kind.DO, key, index, failure)
        INSIDE.reset(token)
        checkpoint = Checkpoint(Kind.DO, key, index, Form.VALUE, payload)
        held = await run.record(checkpoint)
        run.step_ended()
        return value if held is checkpoint else run.unseal(held, shape)

    async def _wait(self, tasks: "Sequence[asyncio.Task[None]]") -> None:
        """Wait until all tasks have ended, whoever is cancelled; pass each cancellation on."""
        run = self._run
        while True:
            try:
                await asyncio.wait(tasks)
                break
            except asyncio.CancelledError:
                self._asked_to_stop = True
                for task in tasks:
                    task.cancel()
        run.check_interrupted()
        if self._interrupted:
            raise ProcessInterrupted
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                raise error

    # --- what it comes to -----------------------------------------------------------------------

    async def _outcome(self) -> list[Any]:
        run = self._run
        if self._cancelled:
            raise asyncio.CancelledError
        unbegun = None
        if not self._failures:
            unbegun = min(self._unbegun, default=next(self._pending, None))
        if self._asked_to_stop and unbegun is not None:
            await run.record_cancelled(Kind.DO, self._key, unbegun)
            raise asyncio.CancelledError
        if self._asked_to_stop:
            # All outcomes were there first.
            await run.overtake(self._key, 0)
        if self._failures:
            if self._last is not None:
                await run.take_turn(self._last)
            raise self._failures[min(self._failures)]
        return self._results
