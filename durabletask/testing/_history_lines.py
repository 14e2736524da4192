"""Requests to a storage and its answers, as the lines of a history that stand for them."""

from durabletask._model import (
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    NewEvent,
    NewProcess,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask.testing._history_records import (
    Commit,
    Create,
    Deliver,
    Phase,
    Request,
    Sent,
    Spawn,
    Taken,
    creation_digest,
    digest,
    ending_text,
    parent_text,
    write_of,
)


def create_line(new: NewProcess, host_id: str) -> Create:
    """Return the request to create a process."""
    return Create(
        phase=Phase.INVOKE,
        process_id=new.process_id,
        host_id=host_id,
        creation_id=new.creation_id,
        digest=creation_digest(new.name, new.input),
        replace=new.replace,
    )


def deliver_line(event: NewEvent) -> Deliver:
    """Return the request to deliver an event."""
    return Deliver(
        phase=Phase.INVOKE,
        process_id=event.process_id,
        event_id=event.event_id,
        name=event.name,
        digest=digest(event.payload),
    )


def phase_of(refused: Refusal | None) -> Phase:
    """Return what a refusal means."""
    return Phase.OK if refused is None else Phase.FAIL


def created_line(answer: Created, host_id: str) -> Create:
    """Return the answer to a creation."""
    row = answer.row
    if row is None:
        return Create(phase=Phase.FAIL, why=answer.refused or "")
    return Create(
        phase=Phase.OK,
        process_id=row.process_id,
        creation_id=row.creation_id,
        # A restart has given it other arguments than those of its creation.
        digest="" if row.generation else creation_digest(row.name, row.input),
        fresh=answer.fresh,
        # Repeated later it may belong to the same host by a claim, in a later epoch.
        owned=answer.fresh and bool(host_id) and row.owner == host_id and row.epoch == 1,
        incarnation=row.incarnation,
        epoch=row.epoch,
    )


def delivered_line(answer: Delivered) -> Deliver:
    """Return the answer to a delivery."""
    event = answer.event
    if event is None:
        return Deliver(phase=Phase.FAIL, why=answer.refused or "")
    return Deliver(
        phase=Phase.OK,
        event_id=event.event_id,
        name=event.name,
        digest=digest(event.payload),
        position=event.position,
    )


def request_line(control: Control) -> Request:
    """Return what is asked of a process."""
    return Request(
        phase=Phase.INVOKE,
        process_id=control.process_id,
        action=control.action,
        request_id=control.request_id,
        incarnation=control.incarnation,
        epoch=control.epoch,
        reason=digest(control.reason),
        ending=ending_text(control.ending),
        forgets=tuple((each.kind, each.key, each.index) for each in control.forget),
        restores=control.restores,
        status=control.status,
    )


def requested_line(answer: Controlled) -> Request:
    """Return the answer to a request."""
    row = answer.row
    if answer.refused is not None or row is None:
        return Request(phase=Phase.FAIL, why=answer.refused or "")
    return Request(
        phase=Phase.OK,
        incarnation=row.incarnation,
        generation=row.generation,
        epoch=row.epoch,
        reason="" if row.cancel_reason is None else digest(row.cancel_reason),
        ending=ending_text(row.ending),
        status=row.status,
    )


def taken_of(claims: Claims) -> tuple[Taken, ...]:
    """Return what a claim took."""
    return tuple(
        Taken(
            each.row.process_id,
            each.row.incarnation,
            each.row.epoch,
            len(each.checkpoints),
            tuple(event.position for event in each.events),
        )
        for each in claims.claimed
        # A damaged one is handed out to be set aside: its history is what could be read.
        if each.fresh and each.damage is None
    )


def commit_line(unit: Unit, host_id: str) -> Commit:
    """Return the request to record a unit."""
    return Commit(
        phase=Phase.INVOKE,
        process_id=unit.process_id,
        host_id=host_id,
        incarnation=unit.incarnation,
        epoch=unit.epoch,
        seq=unit.seq,
        writes=tuple(write_of(each) for each in unit.checkpoints),
        consumes=unit.consumes,
        status=unit.status,
        ending=ending_text(unit.ending),
        left=unit.leave is not None,
        spawns=tuple(_spawn_of(each) for each in unit.spawns),
        sends=tuple(
            Sent(each.process_id, each.event_id, each.name, digest(each.payload))
            for each in unit.sends
        ),
        restart="" if unit.restart is None else digest(unit.restart),
        meets_cancel=unit.meets_cancel,
    )


def _spawn_of(new: NewProcess) -> Spawn:
    return Spawn(
        new.process_id,
        new.creation_id,
        creation_digest(new.name, new.input),
        parent_text(new.parent),
    )


def committed_line(outcome: UnitOutcome) -> Commit:
    """Return the answer to a unit."""
    return Commit(
        phase=phase_of(outcome.refused),
        why=outcome.refused or "",
        held=tuple(write_of(each) for each in outcome.held),
    )
