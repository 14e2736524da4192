"""What a machine does to two storages: small plans that Hypothesis draws and shrinks.

A plan names processes by a few ids and says everything else relative to what
is there ("the next unit", "an epoch behind"), so that most of it is legal and
some of it is not.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from hypothesis import strategies as st

from durabletask.storage import (
    FINISHED,
    NO_INDEX,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Leave,
    NewEvent,
    NewProcess,
    Parent,
    ProcessRow,
    Status,
    Unit,
)

IDS = ("1", "10", "a/../b", "\u00e9", "e\u0301", "%_'\"")
NAMES = ("alpha", "beta")

_KEYS = ("a", "b", "c", "d", "\u00e9\U0001f4a9")
_PAYLOADS = (b"null", b'"\\u0000"', b"[1, 2]", b'{"k":"' + b"x" * 200 + b'"}')
_OFFSETS_S = (None, -1.0, 0.0, 0.5, 20.0)


class CreatePlan(NamedTuple):
    """A process to create; one of two callers, so that repeats and strangers both occur."""

    process_id: str
    name: str
    caller: int
    replace: bool
    start_in_s: float | None
    tagged: bool


class UnitPlan(NamedTuple):
    """A unit, relative to the process as it stands.

    Attributes:
        which: Counted through the processes that the host holds; negative through all.
        takes: So many of the oldest unconsumed events are consumed; negative: one that is none.
        seq_step: To the seq of the unit before: 1 is the next, 0 and less are late copies.
        epoch_step: 0 is the present epoch.
        incarnation_step: 0 is the present incarnation.
    """

    which: int
    seq_step: int
    epoch_step: int
    incarnation_step: int
    checkpoints: tuple[Checkpoint, ...]
    takes: int
    status: Status | None
    wake_in_s: float | None
    ending: Ending | None
    leave: Leave | None


def _mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Draw the usual value three times in four."""
    return st.sampled_from((usual,) * (3 * len(others)) + others)


def _place(checkpoint: Checkpoint) -> tuple[str, str, int]:
    return checkpoint.kind, checkpoint.key, checkpoint.index


_checkpoints = st.builds(
    lambda kind, key, index, form, payload: Checkpoint(
        kind, key, index, form, payload, kind in {Kind.VAR, Kind.RETRY}
    ),
    st.sampled_from((Kind.DO, Kind.VAR, Kind.RETRY)),
    st.sampled_from(_KEYS),
    _mostly(NO_INDEX, 0, 7),
    _mostly(Form.VALUE, Form.ERROR),
    st.sampled_from(_PAYLOADS),
)

_ENDINGS = tuple(
    Ending(status, Form.VALUE, b'{"status":"over"}')
    for status in (*sorted(FINISHED), Status.QUARANTINED)
)
_LIVE = (Status.RUNNING, Status.WAITING, Status.SUSPENDED, Status.COMPENSATING)

create_plans = st.builds(
    CreatePlan,
    st.sampled_from(IDS),
    st.sampled_from(NAMES),
    st.integers(1, 2),
    st.booleans(),
    _mostly(None, 0.0, 5.0),
    st.booleans(),
)

unit_plans = st.builds(
    UnitPlan,
    st.integers(-2, 5),
    _mostly(1, 2, 0, -1),
    _mostly(0, 0, 0, -1, 1),
    _mostly(0, 0, 0, -1, 1),
    st.lists(_checkpoints, max_size=3, unique_by=_place).map(tuple),
    _mostly(0, 0, 1, 1, 2, -1),
    _mostly(None, None, Status.WAITING, *_LIVE),
    st.sampled_from(_OFFSETS_S),
    _mostly(None, *(None,) * len(_ENDINGS), *_ENDINGS),
    _mostly(None, *Leave),
)

event_plans = st.builds(
    lambda process_id, event_id, payload: NewEvent(
        process_id=process_id, event_id=event_id, name="ping", payload=payload
    ),
    st.sampled_from((*IDS[:4], *IDS[:4], *IDS, "nobody")),
    st.sampled_from(("e1", "e2", "e3", "e4", "e5")),
    st.sampled_from(_PAYLOADS),
)


def _at(now: datetime, in_s: float | None) -> datetime | None:
    return None if in_s is None else now + timedelta(seconds=in_s)


def process_of(plan: CreatePlan, now: datetime) -> NewProcess:
    """Return what a plan creates now."""
    return NewProcess(
        process_id=plan.process_id,
        name=plan.name,
        input=b'[{"caller":%d}]' % plan.caller,
        input_digest=f"digest {plan.caller}",
        creation_id=f"creation {plan.caller}",
        replace=plan.replace,
        start_at=_at(now, plan.start_in_s),
        tags={"team": "red"} if plan.tagged else {},
        context=b"{}" if plan.tagged else None,
        parent=Parent("1", 1, 0, "child") if plan.tagged else None,
    )


def unit_of(
    plan: UnitPlan, row: ProcessRow, mailbox: Sequence[int], seq_before: int, now: datetime
) -> Unit:
    """Return the unit that a plan makes of a process as it stands.

    Args:
        plan: What to do.
        row: The process.
        mailbox: The positions of its unconsumed events.
        seq_before: Of the unit before.
        now: What `wake_in_s` counts from.
    """
    return Unit(
        process_id=row.process_id,
        incarnation=row.incarnation + plan.incarnation_step,
        epoch=row.epoch + plan.epoch_step,
        seq=max(1, seq_before + plan.seq_step),
        checkpoints=plan.checkpoints,
        consumes=tuple(mailbox[: plan.takes]) if plan.takes >= 0 else (99,),
        status=plan.status,
        wake_at=_at(now, plan.wake_in_s) if plan.status is not None else None,
        ending=plan.ending,
        leave=plan.leave,
    )


def is_plain(unit: Unit) -> bool:
    """Return whether a unit does nothing but record checkpoints of which the first write wins."""
    others = unit.consumes or unit.status or unit.ending or unit.leave
    if others or not unit.checkpoints:
        return False
    return not any(each.replaces for each in unit.checkpoints)
