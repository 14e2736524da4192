"""What a machine does to two storages: small plans that Hypothesis draws and shrinks.

A plan names processes by a few ids and says everything else relative to what
is there ("the next unit", "an epoch behind"), so that most of it is legal and
some of it is not.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

from durabletask.storage import (
    FINISHED,
    NO_INDEX,
    Action,
    Checkpoint,
    Control,
    Ending,
    Form,
    Kind,
    Leave,
    NewEvent,
    NewProcess,
    Parent,
    Place,
    ProcessRow,
    Query,
    Snapshot,
    Status,
    Unit,
)

IDS = ("1", "10", "a/../b", "\u00e9", "e\u0301", "%_'\"")
CHILDREN = ("child", "child/1", "0")
EVERYBODY = (*IDS, *CHILDREN)
NAMES = ("alpha", "beta")

SENT_MAX = 3  # of the mailboxes that units send to

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


class Reach(NamedTuple):
    """What a unit does beyond its own process.

    Attributes:
        spawns: Ids of children, each under a key of its own.
        sends: To other processes or itself.
        restarts: The unit restarts; of the rest only what it consumes is left.
    """

    spawns: tuple[str, ...] = ()
    sends: tuple[NewEvent, ...] = ()
    meets_cancel: bool = False
    restarts: bool = False


class ControlPlan(NamedTuple):
    """A request, relative to the process as it stands.

    Attributes:
        which: Counted through all processes; negative: one that is none.
        repeats: Positive: the request before the last, or the one before that, …; and nothing else.
        epoch_step: Of a retry: 0 is the present epoch.
        forgets: So many of the latest checkpoints, and one that is not there.
        restores: So many of the latest events, consumed or not.
    """

    which: int
    action: Action
    repeats: int
    epoch_step: int
    forgets: int
    restores: int
    compensates: bool


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
    reach: "Reach"


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

_APT = {
    Action.RESUME: (Status.SUSPENDED,),
    Action.RETRY: (Status.FAILED, Status.QUARANTINED),
}
"""What most of the requests of an action are for, where there is any."""

queries = st.builds(
    Query,
    statuses=st.none() | st.frozensets(st.sampled_from(Status)),
    name=st.none() | st.sampled_from(NAMES),
    prefix=st.none() | st.sampled_from(("1", "e", "%", "a/", "")),
    tags=st.sampled_from(({}, {"team": "red"}, {"team": "r"})),
    parent_id=st.none() | st.sampled_from(("1", "10")),
    limit=st.sampled_from((1, 2, 1_000)),
)

create_plans = st.builds(
    CreatePlan,
    st.sampled_from(IDS),
    st.sampled_from(NAMES),
    st.integers(1, 2),
    st.booleans(),
    _mostly(None, 0.0, 5.0),
    st.booleans(),
)

_events = st.builds(
    lambda process_id, event_id, payload: NewEvent(
        process_id=process_id, event_id=event_id, name="ping", payload=payload
    ),
    st.sampled_from((*IDS[:4], *IDS[:4], *EVERYBODY, "nobody")),
    st.sampled_from(("e1", "e2", "e3", "e4", "e5")),
    st.sampled_from(_PAYLOADS),
)

_reaches = st.builds(
    Reach,
    st.lists(st.sampled_from((*CHILDREN, *CHILDREN, *IDS[:2])), max_size=2, unique=True).map(tuple),
    st.lists(_events, max_size=2).map(tuple),
    st.booleans(),
    _mostly(False, False, True),
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
    st.just(Reach()) | st.just(Reach()) | _reaches,
)

control_plans = st.builds(
    ControlPlan,
    st.integers(-1, 12),
    st.sampled_from((*Action, Action.SUSPEND, Action.RESUME, Action.RETRY)),
    _mostly(0, 1, 2, 3, 11),
    _mostly(0, 0, -1, 1),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)

event_plans = _events


def _at(now: datetime, in_s: float | None) -> datetime | None:
    return None if in_s is None else now + timedelta(seconds=in_s)


def process_of(plan: CreatePlan, above: ProcessRow | None, now: datetime) -> NewProcess:
    """Return what a plan creates now.

    Args:
        plan: What to create.
        above: The parent of what is tagged; without one it has none.
        now: What its start counts from.
    """
    parent = Parent(above.process_id, above.incarnation, 0, "child") if above else None
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
        parent=parent if plan.tagged else None,
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
    unit = Unit(
        process_id=row.process_id,
        incarnation=row.incarnation + plan.incarnation_step,
        epoch=row.epoch + plan.epoch_step,
        seq=max(1, seq_before + plan.seq_step),
        consumes=tuple(mailbox[: plan.takes]) if plan.takes >= 0 else (99,),
    )
    if plan.reach.restarts:
        leave = Leave.RELEASED if plan.leave is not None else None
        return msgspec.structs.replace(unit, restart=b'["again"]', leave=leave)
    checkpoints = plan.checkpoints
    if (plan.reach.spawns or plan.reach.sends) and all(each.replaces for each in checkpoints):
        # A unit that reaches others has one that is its own, by which its repeat is known.
        key = f"reach {unit.epoch}.{unit.seq}"
        checkpoints = (*checkpoints, Checkpoint(Kind.SEND, key, NO_INDEX, Form.VALUE, b"null"))
    return msgspec.structs.replace(
        unit,
        checkpoints=checkpoints,
        status=plan.status,
        wake_at=_at(now, plan.wake_in_s) if plan.status is not None else None,
        ending=plan.ending,
        leave=plan.leave,
        spawns=tuple(_child(row, process_id) for process_id in plan.reach.spawns),
        sends=plan.reach.sends,
        mailbox_max=SENT_MAX,
        meets_cancel=plan.reach.meets_cancel,
    )


def _child(row: ProcessRow, process_id: str) -> NewProcess:
    return NewProcess(
        process_id=process_id,
        name=NAMES[len(process_id) % 2],
        input=b"[]",
        input_digest="digest of a child",
        creation_id=f"spawned by {row.process_id}",
        parent=Parent(row.process_id, row.incarnation, row.generation, f"spawn {process_id}"),
    )


def control_of(plan: ControlPlan, found: Sequence[Snapshot], request_id: str) -> Control:
    """Return the request that a plan makes of the processes that there are."""
    if plan.which < 0 or not found:
        return Control(process_id="nobody", action=plan.action, request_id=request_id)
    apt = [each for each in found if each.row.status in _APT.get(plan.action, ())]
    among = apt if apt and plan.which % 4 else found
    chosen = among[plan.which % len(among)]
    row = chosen.row
    ending = {
        Action.CANCEL: Ending(Status.CANCELLED, Form.ERROR, b'{"by":"request"}'),
        Action.TERMINATE: Ending(Status.TERMINATED, Form.ERROR, b'{"by":"request"}'),
    }.get(plan.action)
    control = Control(
        process_id=row.process_id,
        action=plan.action,
        request_id=request_id,
        reason=b'"%s"' % request_id.encode(),
        ending=ending,
    )
    if plan.action is not Action.RETRY:
        return control
    latest = [Place(each.kind, each.key, each.index) for each in chosen.checkpoints[::-1]]
    return msgspec.structs.replace(
        control,
        incarnation=row.incarnation,
        epoch=row.epoch + plan.epoch_step,
        status=Status.COMPENSATING if plan.compensates else Status.RUNNING,
        forget=(*latest[: plan.forgets], Place(Kind.DO, "none", 0)),
        restores=tuple(each.position for each in chosen.events[::-1][: plan.restores]),
    )


def is_plain(unit: Unit) -> bool:
    """Return whether a unit does nothing but record checkpoints of which the first write wins."""
    others = unit.consumes or unit.status or unit.ending or unit.leave
    reach = unit.spawns or unit.sends or unit.meets_cancel or unit.restart is not None
    if others or reach or not unit.checkpoints:
        return False
    return not any(each.replaces for each in unit.checkpoints)
