"""What is asked of one stored process from outside, as plain state transitions.

No clock, no neighbours: who its descendants are is for `MemoryStorage` to say.
"""

from datetime import datetime

from durabletask._memory_process import Asked, ProcessState
from durabletask._model import REQUESTS_KEPT, Action, Control, Ending, Refusal, Status
from durabletask._transitions import CLAIMABLE, FINISHED

_DESCEND = frozenset({Action.CANCEL, Action.TERMINATE})
_MAY_RETRY = frozenset({Status.FAILED, Status.QUARANTINED})


def is_known(process: ProcessState, control: Control) -> bool:
    """Return whether this very request has been answered before."""
    return process.asked is not None and control.request_id in process.asked.request_ids


def remember(process: ProcessState, control: Control) -> None:
    """Keep the id of a request that was not refused."""
    asked = process.asked = process.asked or Asked()
    asked.request_ids = (*asked.request_ids, control.request_id)[-REQUESTS_KEPT:]


def refusal(process: ProcessState, control: Control) -> Refusal | None:
    """Return why a process cannot be asked that, or None."""
    status = process.status
    if control.action is Action.RETRY:
        if status not in _MAY_RETRY:
            return Refusal.ILLEGAL_TRANSITION
        same = (control.incarnation, control.epoch) == (process.incarnation, process.epoch)
        return None if same else Refusal.NOT_OWNER
    if status in FINISHED:
        again = control.action is Action.TERMINATE and status is Status.TERMINATED
        return None if again else Refusal.FINISHED
    if control.action is Action.SUSPEND and status is Status.QUARANTINED:
        return Refusal.ILLEGAL_TRANSITION
    return None


def descends(process: ProcessState, control: Control) -> bool:
    """Return whether a request that is about to be granted is one for the descendants too."""
    if control.action is Action.CANCEL:
        return may_cancel(process)
    return control.action in _DESCEND


def may_cancel(process: ProcessState) -> bool:
    """Return whether a request to cancel would change anything."""
    asked_before = process.asked is not None and process.asked.cancel_reason is not None
    return not (
        asked_before or process.status in FINISHED or process.standing is Status.COMPENSATING
    )


def grant(process: ProcessState, control: Control, now: datetime) -> bool:
    """Do what is asked, which was not refused; return whether the process has ended by it."""
    match control.action:
        case Action.CANCEL:
            return may_cancel(process) and cancel(process, control.reason, control.ending, now)
        case Action.TERMINATE:
            return process.status not in FINISHED and terminate(process, control.ending, now)
        case Action.SUSPEND:
            _suspend(process, control.reason, now)
        case Action.RESUME:
            _resume(process, now)
        case Action.RETRY:
            _retry(process, control, now)
    return False


def cancel(process: ProcessState, reason: bytes, ending: Ending | None, now: datetime) -> bool:
    """Leave the request for the process to meet, or end it if it was never started."""
    asked = process.asked = process.asked or Asked()
    asked.cancel_reason = reason
    process.updated_at = now
    if process.epoch == 0 and ending is not None:
        process.end(ending, now)
        return True
    process.stir(now)
    return False


def terminate(process: ProcessState, ending: Ending | None, now: datetime) -> bool:
    """End the process; its owner stays until it lets go."""
    assert ending is not None, "a request to terminate names what the process ends with"
    process.end(ending, now)
    process.updated_at = now
    process.stir(now)
    return True


def _suspend(process: ProcessState, reason: bytes, now: datetime) -> None:
    if process.status is Status.SUSPENDED:
        return
    asked = process.asked = process.asked or Asked()
    asked.status_after, asked.suspend_reason = process.status, reason
    process.status = Status.SUSPENDED
    process.claimable_at = None
    process.updated_at = now
    process.stir(now)


def _resume(process: ProcessState, now: datetime) -> None:
    asked = process.asked
    if asked is None or asked.status_after is None:
        return
    process.status = asked.status_after
    asked.status_after = asked.suspend_reason = None
    process.parked = False
    process.updated_at = now
    if process.owner is not None:
        process.news = True
    elif process.status in CLAIMABLE:
        process.claimable_at = max(now, process.start_at or now)


def _retry(process: ProcessState, control: Control, now: datetime) -> None:
    process.forget(control.forget)
    if process.mailbox is not None:
        for position in control.restores:
            process.mailbox.restore(position)
    process.status = control.status
    process.ending = process.finished_at = None
    process.epoch += 1
    process.seq = process.deaths = 0
    process.claimable_at = process.updated_at = now
