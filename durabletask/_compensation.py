"""Compensation: the undos of the steps that succeeded, run when an error leaves the function.

One record decides: the error and what is to be undone, in which order. Before
it nothing has been undone, after it the function never goes on. Each undo is a
step (`_steps`) with a record of its own. A host that takes over runs the
function once more, only as far as it recalls, to learn the callables.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

import durabletask._steps as _steps
from durabletask._codec import Shape
from durabletask._errors import DecodeError, ProcessInterrupted, StepError
from durabletask._failure import was_cancelled
from durabletask._model import NO_INDEX, Checkpoint, Ending, Form, Kind, Status
from durabletask._notes import DecisionNote, encode
from durabletask._retry import RetryPolicy
from durabletask._run import Run
from durabletask._undos import Spot, Undo, UndoCall, Undos

_log = logging.getLogger("durabletask")

DECISION_KEY = "compensation"
"""Of the one DECISION of a process; the kind has a space of keys of its own."""

UNDO_RETRY = RetryPolicy(attempts_max=10, delay_s=1.0, factor=2.0, delay_max_s=60.0, jitter=0.2)
"""For an undo whose step and process name no policy: some five minutes in all. A step that fails
once tells its caller, who can do something else; behind an undo there is nobody."""

GRACE_S = 60.0
"""How long a function that only collects may do nothing durable before it is given up."""
SETTLE_S = 1.0
"""The same when the function itself is held at a new call, and only its tasks may still go on."""
LET_GO_S = (0.05, 0.5, 2.0)
"""How long a function may take to end each time that it is cancelled."""

_STEP_NOTES = (Kind.RETRY, Kind.HEARTBEAT)
"""What attempts leave behind under their key, those of a step and those of its undo alike."""


# --- a step with an undo ------------------------------------------------------------------


def undo_call(
    run: Run, fn: Callable[[Any], Any], retry: RetryPolicy | None, timeout_s: float | None
) -> UndoCall:
    """Return how to call an undo.

    Raises:
        InvalidArgumentError: It cannot be called with one argument.
    """
    spec = run.services.callables.spec(fn)
    spec.check((None,))
    return UndoCall(fn, spec, retry or UNDO_RETRY, timeout_s)


async def undoable_step(
    run: Run,
    key: str,
    body: Callable[[], Any],
    shape: Shape,
    retry: RetryPolicy | None,
    undo: UndoCall,
) -> Any:
    """Run or recall a step as any other, and register its undo with its success."""
    if run.gated:
        await run.pass_gate(Kind.DO, key)
    held = run.ask(Kind.DO, key)
    undos = run.undos
    if undos is None:
        undos = run.undos = Undos()
    if held is not None:
        if held.form is Form.VALUE:
            undos.register(Undo(undo, held, shape, (held.epoch, held.seq)))
        await run.recall(held)
        return run.unseal(held, shape)
    requests = _steps.cancel_requests()
    whole = let_finish(run, undos, body)
    step = _steps.StepRun(run, Kind.DO, key, NO_INDEX, whole, shape, retry, undo)
    undos.unsettled += 1
    try:
        value = await step.outcome()
    except Exception:
        if _steps.cancel_requests() > requests:
            await run.overtake(key, NO_INDEX)
        raise
    finally:
        undos.unsettled -= 1
    if _steps.cancel_requests() > requests:
        await run.overtake(key, NO_INDEX)
    return value


def let_finish(run: Run, undos: Undos, body: Callable[[], Any]) -> Callable[[], Any]:
    """Return a body that user code cannot cut off; an interrupt can.

    It runs in a task of its own, the only thing that a cancellation of the
    caller's does not reach.
    """

    async def whole() -> Any:
        attempt = run.services.loop.create_task(_steps.with_fatal(body), name=run.process_id)
        undos.attempts.add(attempt)
        while not attempt.done():
            try:
                await asyncio.wait((attempt,))
            except asyncio.CancelledError:
                if run.interrupted:
                    attempt.cancel()
        undos.attempts.discard(attempt)
        try:
            value, fatal = attempt.result()
        except asyncio.CancelledError as error:
            run.check_interrupted()
            raise StepError("CancelledError", str(error)) from error
        if fatal is not None:
            raise fatal
        return value

    return whole


# --- the decision -------------------------------------------------------------------------


def is_decided(run: Run) -> bool:
    """Return whether an earlier run was to be undone; then it is, and nothing else."""
    notes = run.journal.notes
    return notes is not None and (Kind.DECISION, DECISION_KEY, NO_INDEX) in notes


async def begin(run: Run, error: BaseException) -> Ending | None:
    """Undo what the steps of a function have done that has raised.

    Returns:
        How the process ends; None if the run is interrupted, or if it turns
        out that there is nothing to undo.
    """
    try:
        run.check_interrupted()
        await _meet_stray_cancellation(run)
        run.close()
        await run.steps_over()
        undos = run.undos
        places = () if undos is None else undos.latest_first()
        if not places:
            return None
        note = DecisionNote(
            error=msgspec.Raw(run.services.failures.encode(error)),
            undos=places,
            cancelled=was_cancelled(error),
        )
        mine = Checkpoint(Kind.DECISION, DECISION_KEY, NO_INDEX, Form.VALUE, encode(note))
        decision = await run.decide(mine)
        # All that was there when this run began is older than a decision of its own.
        return await _undo_all(run, decision, newer_than=(run.epoch, run.seq))
    except asyncio.CancelledError:
        run.interrupt()  # if it was not one: a cancellation of the task itself, by nobody we know
        return None


async def carry_on(run: Run, body: Coroutine[Any, Any, Any]) -> Ending | None:
    """Go on undoing where an earlier run has decided it.

    Args:
        body: Of the process function, not begun; the undos are learnt from it.

    Returns:
        How the process ends; None if the run is interrupted.
    """
    decision = run.journal.take(Kind.DECISION, DECISION_KEY)
    try:
        if decision is None:
            raise ProcessInterrupted
        run.collect()
        wanted = {
            (key, index)
            for key, index in _note(run, decision).undos
            if (Kind.UNDO, key, index) not in (run.journal.notes or {})
        }
        if wanted:
            await _collect(run, body, wanted)
        else:
            run.close()
        return await _undo_all(run, decision, newer_than=(decision.epoch, decision.seq))
    except asyncio.CancelledError:
        run.interrupt()
        return None
    finally:
        if inspect.getcoroutinestate(body) == inspect.CORO_CREATED:
            body.close()


def _note(run: Run, decision: Checkpoint) -> DecisionNote:
    try:
        return msgspec.json.decode(decision.payload, type=DecisionNote)
    except msgspec.MsgspecError as problem:
        raise run.quarantine(DecodeError(f"the recorded decision: {problem}")) from problem


async def _meet_stray_cancellation(run: Run) -> None:
    """Let a cancellation that the function has left on its own task hit nothing but this."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        run.check_interrupted()


# --- learning the callables anew ----------------------------------------------------------


async def _collect(run: Run, body: Coroutine[Any, Any, Any], wanted: set[Spot]) -> None:
    """Run the function until all undos are registered that are wanted, or no more will be."""
    run.undos = undos = Undos()
    undos.wanted = wanted
    function = run.services.loop.create_task(_quietly(run, body), name=run.process_id)
    undos.function = function
    undos.asked_s = run.services.loop.time()
    function.add_done_callback(lambda _: undos.wake())
    try:
        while undos.wanted and not function.done():
            grace_s = SETTLE_S if undos.stuck else GRACE_S
            left_s = undos.asked_s + grace_s - run.services.loop.time()
            if left_s <= 0:
                # A call that waits to be cancelled as it was then has a limit of its own.
                if run.waiting == undos.held:
                    break
                left_s = grace_s
            await _sleep(run, undos, left_s)
        run.close()
    except asyncio.CancelledError:
        await _let_go(run, function)
        raise
    await _let_go(run, function)
    run.check_interrupted()


async def _sleep(run: Run, undos: Undos, pause_s: float) -> None:
    """Sleep until there is something to look at, but not longer than that."""
    woken = undos.sleeper(run.services.loop.create_future())
    timer = run.services.loop.call_later(pause_s, undos.wake)
    try:
        await run.hold(None, woken)
    finally:
        timer.cancel()


async def _quietly(run: Run, body: Coroutine[Any, Any, Any]) -> None:
    """Run the function for what its calls register; what comes of it was decided before."""
    try:
        await body
    except _steps.OUTCOMES:
        return
    except (KeyboardInterrupt, SystemExit) as error:
        run.leave_program(error)


async def _let_go(run: Run, function: "asyncio.Task[None]") -> None:
    """End the function; one that does not let go is left behind, where every call raises."""
    for pause_s in LET_GO_S:
        if function.done():
            return
        function.cancel()
        try:
            await asyncio.wait((function,), timeout=pause_s)
        except asyncio.CancelledError:
            continue  # of an interrupt, which comes again and again
    if not function.done():
        _log.error(
            "process %s (%s) swallows its cancellation and does not end; nothing that it "
            "does is recorded. Let asyncio.CancelledError pass.",
            ascii(run.process_id),
            ascii(run.name),
            extra={"process_id": run.process_id, "process_name": run.name},
        )


# --- undoing ------------------------------------------------------------------------------


async def _undo_all(run: Run, decision: Checkpoint, newer_than: tuple[int, int]) -> Ending | None:
    """Run each undo that has no outcome yet, one after the other, and say how it all ends."""
    note = _note(run, decision)
    complete = True
    for spot in note.undos:
        for kind in _STEP_NOTES:
            _drop_older(run, kind, spot, newer_than)
        complete &= await _undone(run, spot)
    if not run.end():
        return None
    # What is not all undone ends as failed, since only that can be tried again.
    status = Status.CANCELLED if note.cancelled and complete else Status.FAILED
    return Ending(status, Form.ERROR, bytes(note.error))


async def _undone(run: Run, spot: Spot) -> bool:
    """Run the undo of one step unless it has an outcome, and return whether it succeeded."""
    key, index = spot
    held = run.journal.take(Kind.UNDO, key, index)
    if held is not None:
        return held.form is Form.VALUE
    run.check_interrupted()
    undo = None if run.undos is None else run.undos.find(spot)
    if run.undos is None or undo is None:
        _complain(run, key, "it stays open, since the code asks for no such step with undo=")
        return False
    body = let_finish(run, run.undos, _body(run, undo))
    shape = run.services.any_shape
    step = _steps.StepRun(run, Kind.UNDO, key, index, body, shape, undo.call.retry)
    try:
        await step.outcome()
    except Exception as error:  # noqa: BLE001  (recorded; the other undos still run)
        _complain(run, key, f"it has failed for good: {type(error).__name__}")
        return False
    return True


def _body(run: Run, undo: Undo) -> Callable[[], Any]:
    """Return one attempt of an undo; what it returns is of no interest."""
    call = undo.call

    async def once() -> None:
        # Decoded for each attempt: the one before may have changed it.
        value = run.unseal(undo.held, undo.shape)
        await _steps.call_function(run, call.spec, call.fn, (value,))

    return once if call.timeout_s is None else _steps.timed(once, call.timeout_s)


def _drop_older(run: Run, kind: Kind, spot: Spot, newer_than: tuple[int, int]) -> None:
    """Forget what the attempts of the step itself have left: it is not the undo's."""
    notes = run.journal.notes
    held = None if notes is None else notes.get((kind, *spot))
    if held is not None and (held.epoch, held.seq) < newer_than:
        run.journal.take(kind, *spot)


def _complain(run: Run, key: str, what: str) -> None:
    _log.error(
        "process %s: the undo of step %s: %s",
        ascii(run.process_id),
        ascii(key),
        what,
        extra={"process_id": run.process_id, "process_name": run.name},
    )
