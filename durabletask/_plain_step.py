"""The hot path: a step without retry, timeout or observer, as fast as it can be said.

Whatever is unusual goes the long way, through `_steps`.
"""

import asyncio
from asyncio import current_task
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any

import durabletask._steps as _steps
from durabletask._callable import CallSpec
from durabletask._caller import INSIDE
from durabletask._codec import Shape
from durabletask._errors import StorageError
from durabletask._model import DONE, NO_INDEX, Checkpoint, Form, Kind, Status, Unit
from durabletask._retry import RetryPolicy
from durabletask._run import Run

# Looked up once: an attribute of an enum class costs ten times a global.
_DO, _VALUE, _RUNNING, _WAITING = Kind.DO, Form.VALUE, Status.RUNNING, Status.WAITING


async def plain_step(
    run: Run, key: str, spec: CallSpec, fn: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """Run a step and record it, or return or raise what is recorded."""
    # `step` for an async function without retry, timeout or observer, at its first
    # run and with nothing in its way. One long function, since every call and every object that
    # is made here is some hundredth of what a step costs. Whatever is unusual goes the long way.
    services = run.services
    slots = run.journal.slots
    if run.gated or key in slots or run.journal.notes or not services.trust.holds:
        held = slots.get(key)
        if held is not None and held.form is _VALUE and not (run.gated or run.journal.notes):
            # There is no cancellation to come again.
            run.ask(_DO, key)
            return run.unseal(held, spec.returns)
        body = partial(_steps.call_function, run, spec, fn, args)
        return await step(run, Kind.DO, key, body, spec.returns, None)
    task = current_task(services.loop)
    requests = 1 if task is None else task.cancelling()
    # As `Run.check_caller`. A loop that shuts down has cancelled the writer, and this task too.
    if requests or INSIDE.get() is not run or get_ident() != services.thread:
        run.check_caller(key)
    # As `Journal.ask`.
    slots[key] = None
    if len(slots) >= services.limits.steps_warn:
        run.check_steps(len(slots))
    # As `Run.step_begins`.
    run.steps += 1
    if run.recorded is _WAITING:
        services.writer.mark(run)
    token = INSIDE.set(_steps.Step(run, key))
    try:
        payload, value = spec.returns.record(await fn(*args), "result")
    except (KeyboardInterrupt, SystemExit) as error:
        INSIDE.reset(token)
        run.leave_program(error)
        raise
    except _steps.OUTCOMES as error:
        INSIDE.reset(token)
        failure = _steps.as_failure(run, error, requests)
        return await _steps.settle(run, Kind.DO, key, NO_INDEX, failure)
    INSIDE.reset(token)
    del token, args  # what is kept until the record is durable, the garbage collector visits
    if run.gated:
        run.check_interrupted()
    checkpoint = Checkpoint(_DO, key, NO_INDEX, _VALUE, payload)
    # As `Run.record`, without a coroutine of its own, and as `Run.submit`.
    if run.waiting or run.recorded is not _RUNNING:
        answer = run.submit((checkpoint,))
    else:
        run.seq = seq = run.seq + 1
        answer = services.writer.submit(
            Unit(
                process_id=run.process_id,
                incarnation=run.incarnation,
                epoch=run.epoch,
                seq=seq,
                checkpoints=(checkpoint,),
            )
        )
    try:
        outcome = await answer
    except (asyncio.CancelledError, StorageError):
        outcome = await run.outlast(answer, checkpoint)
    # As `Run.step_ended`.
    run.steps -= 1
    if run.gated or run.waiting:
        run.step_settled()
    if outcome is DONE:
        return value
    return run.unseal(run.held(outcome, checkpoint), spec.returns)


async def step(
    run: Run,
    kind: Kind,
    key: str,
    body: Callable[[], Any],
    shape: Shape,
    retry: RetryPolicy | None,
) -> Any:
    """Return or raise what is recorded under a key, or else make attempts until something is."""
    if run.gated:
        await run.pass_gate(kind, key)
    held = run.ask(kind, key)
    if held is None:
        return await _steps.StepRun(run, kind, key, NO_INDEX, body, shape, retry).outcome()
    await run.recall(held)
    return run.unseal(held, shape)
