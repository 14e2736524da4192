"""What is asked of processes from outside: cancel, terminate, suspend, resume, retry.

Asked of one, it is asked of its descendants too where the seam says so, and
all of that is there after a crash or nothing of it.
"""

from collections.abc import Sequence
from copy import copy
from datetime import datetime
from typing import Any

import msgspec

from durabletask.storage import (
    CLAIMABLE,
    FINISHED,
    REQUESTS_KEPT,
    Action,
    Control,
    Controlled,
    Ending,
    Refusal,
    Status,
)
from durabletask_filesystem._commit import check_payload
from durabletask_filesystem._group import Group
from durabletask_filesystem._history import Library
from durabletask_filesystem._log import DamageError, Log
from durabletask_filesystem._reach import Reach
from durabletask_filesystem._reading import bare_row
from durabletask_filesystem._records import ControlRecord, encode, outer_of, stored
from durabletask_filesystem._state import Proc
from durabletask_filesystem._table import Table

_MAY_RETRY = frozenset({Status.FAILED, Status.QUARANTINED})

_BUSY = Controlled(Refusal.BUSY)


class Controls:
    """Takes what is asked."""

    def __init__(self, log: Log, table: Table, library: Library, reach: Reach) -> None:
        self._log = log
        self._table = table
        self._library = library
        self._reach = reach

    def request(self, controls: Sequence[Control], now: datetime) -> tuple[Controlled, ...]:
        """Ask something of processes; see the seam for the rules.

        Raises:
            InvalidArgumentError: A payload is not JSON; nothing was written.
        """
        for control in controls:
            check_payload(control.reason)
            if control.ending is not None:
                check_payload(control.ending.payload)
            encode(control)  # raises now what could not be encoded later
        return tuple([self._request(control, now) for control in controls])

    def _request(self, control: Control, now: datetime) -> Controlled:
        process_id = control.process_id
        try:
            proc = self._find(process_id)
        except DamageError:
            return _BUSY
        if proc is None:
            return Controlled(Refusal.UNKNOWN_PROCESS)
        if control.request_id in proc.more.requests:
            return Controlled(row=bare_row(self._library, proc))
        refused = _refusal(proc, control)
        if refused is not None:
            return Controlled(refused)
        others = self._table.family.below(proc) if _descends(proc, control) else []
        everyone = (proc, *others)
        if control.ending is not None:
            for each in everyone:
                self._reach.prepare(each)
        group = Group(self._log, self._table)
        ended = [
            each
            for each in everyone
            if self._grant(group, each, control, now, is_asked=each is proc)
        ]
        for each in ended:
            # Only now: who ends by the same request is not told of others.
            assert control.ending is not None
            self._reach.tell_parent(group, each, control.ending, now)
        self._table.stirred.update(dict.fromkeys(each.id for each in everyone))
        group.write()
        parent = proc.more.parent
        if control.action is Action.RETRY and parent is not None:
            # Those above it may have left the line when it ended.
            self._table.family.complete(self._library.finished_long_ago, (parent.process_id,))
        after = self._find(process_id)
        assert after is not None
        return Controlled(row=bare_row(self._library, after))

    def _find(self, process_id: str) -> Proc | None:
        proc = self._table.procs.get(process_id)
        if proc is None:
            if process_id in self._table.damage:
                raise DamageError(0, 0, self._table.damage[process_id])
            proc = self._library.finished(process_id)
        return proc

    def _grant(
        self, group: Group, proc: Proc, control: Control, now: datetime, *, is_asked: bool
    ) -> bool:
        """Write what comes of it for one process; return whether it ends by it.

        Of the one that was asked it is written in any case that it was.
        """
        request_id = control.request_id if is_asked else ""
        fields = _effect(proc, control, request_id, now)
        if fields is None:
            if not is_asked:
                return False
            fields = {} if proc.finished_at is None else _last_word_again(proc, request_id)

        def make(prev: int) -> ControlRecord:
            return ControlRecord(proc.id, proc.incarnation, now, request_id, prev, **fields)

        group.add(proc, make)
        return "action" in fields and "ending" in fields


def _refusal(proc: Proc, control: Control) -> Refusal | None:
    status = proc.status
    match control.action:
        case Action.RETRY:
            if status not in _MAY_RETRY or control.status not in CLAIMABLE:
                return Refusal.ILLEGAL_TRANSITION
            same = (control.incarnation, control.epoch) == (proc.incarnation, proc.epoch)
            return None if same else Refusal.NOT_OWNER
        case Action.TERMINATE if status is Status.TERMINATED:
            return None
        case Action.SUSPEND if status is Status.QUARANTINED:
            return Refusal.ILLEGAL_TRANSITION
    return Refusal.FINISHED if status in FINISHED else None


def _may_cancel(proc: Proc) -> bool:
    return not (
        proc.more.cancel_reason is not None
        or proc.status in FINISHED
        or proc.standing is Status.COMPENSATING
    )


def _descends(proc: Proc, control: Control) -> bool:
    if control.action is Action.CANCEL:
        return _may_cancel(proc)
    return control.action is Action.TERMINATE


def _effect(proc: Proc, control: Control, request_id: str, now: datetime) -> dict[str, Any] | None:
    """Return what a request changes, as fields of a record; None if nothing."""
    action = control.action
    match action:
        case Action.CANCEL if _may_cancel(proc):
            fields = _with_reason(control)
            if proc.epoch == 0 and control.ending is not None:
                fields |= _end(proc, control, control.ending, request_id, now)
            return fields
        case Action.TERMINATE if proc.status not in FINISHED:
            assert control.ending is not None, "who terminates says what the process ends with"
            return {"action": action} | _end(proc, control, control.ending, request_id, now)
        case Action.SUSPEND if proc.status is not Status.SUSPENDED:
            return _with_reason(control)
        case Action.RESUME if proc.status is Status.SUSPENDED:
            return {"action": action}
        case Action.RETRY:
            return {
                "action": action,
                "forget": control.forget,
                "restores": control.restores,
                "state": _revived(proc, control, now),
            }
    return None


def _with_reason(control: Control) -> dict[str, Any]:
    return {
        "action": control.action,
        "reason": msgspec.Raw(control.reason),
        "outer": outer_of(control.reason),
    }


def _known(proc: Proc, request_id: str) -> tuple[str, ...]:
    requests = proc.more.requests
    return (*requests, request_id)[-REQUESTS_KEPT:] if request_id else requests


def _bare(proc: Proc) -> Proc:
    """Return a copy without what is true only of a process that has not finished."""
    bare = copy(proc)
    bare.owner = bare.wake_at = bare.due_at = bare.ending = bare.keys = bare.mail = None
    bare.parked = False
    bare.spot = 0
    return bare


def _end(
    proc: Proc, control: Control, ending: Ending, request_id: str, now: datetime
) -> dict[str, Any]:
    last = _bare(proc)
    last.status = ending.status
    last.updated_at = now
    last.change(requests=_known(proc, request_id), suspend_reason=None, resumes_as=None)
    if control.action is Action.CANCEL:
        last.change(cancel_reason=control.reason)
    return {"ending": stored(ending), "state": last}


def _last_word_again(proc: Proc, request_id: str) -> dict[str, Any]:
    """Return what says once more how a process has ended, and that it was asked."""
    assert proc.ending is not None
    last = _bare(proc)
    last.change(requests=_known(proc, request_id))
    return {"ending": stored(proc.ending), "state": last}


def _revived(proc: Proc, control: Control, now: datetime) -> Proc:
    alive = _bare(proc)
    alive.status = control.status
    alive.epoch += 1
    alive.seq = alive.deaths = 0
    alive.due_at = alive.updated_at = now
    alive.change(finished_at=None, requests=_known(proc, control.request_id))
    return alive
