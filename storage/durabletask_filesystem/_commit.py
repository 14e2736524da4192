"""Committing units: the hot path.

What is asked first decides: ownership, repeat, finished, held checkpoints,
mailbox, transition, other processes. Only then is a unit written, whole;
memory changes by the same function that reads it again at opening.
"""

from collections.abc import Sequence
from copy import copy
from datetime import datetime
from itertools import islice

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from durabletask.errors import InvalidArgumentError
from durabletask.storage import (
    CHILD_ENDED,
    CLAIMABLE,
    DONE,
    EVENTS_KEPT,
    FINISHED,
    Checkpoint,
    Event,
    Leave,
    Refusal,
    Status,
    Unit,
    UnitOutcome,
    may_follow,
)
from durabletask_filesystem._frames import OVERHEAD_BYTES
from durabletask_filesystem._group import Group
from durabletask_filesystem._history import Library
from durabletask_filesystem._log import PENDING_BYTES_MAX, DamageError, Log
from durabletask_filesystem._reach import Plan, Reach
from durabletask_filesystem._records import (
    CheckpointRecord,
    ControlRecord,
    EndingRecord,
    RestartRecord,
    UnitRecord,
    encode,
    outer_of,
    stored,
)
from durabletask_filesystem._state import (
    OFFSET_MASK,
    PACKED_MAX,
    SEGMENT_SHIFT,
    Proc,
    add_key,
    has_key,
    ranges,
    slot,
)
from durabletask_filesystem._table import Table

_NOT_OWNER = UnitOutcome(refused=Refusal.NOT_OWNER)
_FINISHED = UnitOutcome(refused=Refusal.FINISHED)
_NOT_IN_MAILBOX = UnitOutcome(refused=Refusal.NOT_IN_MAILBOX)
_ILLEGAL = UnitOutcome(refused=Refusal.ILLEGAL_TRANSITION)
_BUSY = UnitOutcome(refused=Refusal.BUSY)

_ENDINGS = FINISHED | {Status.QUARANTINED}

_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_SPACE = ord(" ")  # all white space of JSON is at or below it


def check_payload(payload: bytes) -> None:
    """Refuse what would make a record unreadable.

    Raises:
        InvalidArgumentError: The payload is not JSON text.
    """
    try:
        _check_json(payload)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(
            f"the payload {payload[:40]!r} is not JSON: {error}",
            hint="encode values as UTF-8 JSON text before they cross the storage seam",
        ) from None


def _check_units(units: Sequence[Unit]) -> list[int]:
    """Refuse a batch that cannot be written, before anything of it is.

    Returns:
        The places of the units that do more than a unit of steps can.

    Raises:
        InvalidArgumentError: A payload is not JSON, or something stands beside a restart.
    """
    check = _check_json
    payload = b""
    special: list[int] = []
    try:
        for place, unit in enumerate(units):
            for each in unit.checkpoints:
                payload = each.payload
                check(payload)
            if unit.ending is not None:
                payload = unit.ending.payload
                check(payload)
            if unit.spawns or unit.sends or unit.meets_cancel or unit.restart is not None:
                special.append(place)
                for payload in _others_payloads(unit):
                    check(payload)
    except msgspec.DecodeError:
        check_payload(payload)
    return special


def _others_payloads(unit: Unit) -> list[bytes]:
    if unit.restart is not None and (
        unit.checkpoints
        or unit.status is not None
        or unit.ending is not None
        or unit.spawns
        or unit.sends
    ):
        raise InvalidArgumentError(
            f"unit {unit.seq} of process {unit.process_id!r} restarts it and does something else",
            hint="nothing but `consumes`, `meets_cancel` and `leave` may stand beside `restart`",
        )
    payloads = [child.input for child in unit.spawns]
    payloads += [event.payload for event in unit.sends]
    return payloads if unit.restart is None else [unit.restart]


def _consumed(proc: Proc, mailbox: Sequence[Event], unit: Unit) -> list[int]:
    """Return the positions of the events that a process has taken, as far as it knows them."""
    known = set() if proc.mail is None else set(proc.mail.ids.values())
    left = {event.position for event in mailbox} - set(unit.consumes)
    return sorted(known - left)


class Committer:
    """Writes units."""

    def __init__(self, log: Log, table: Table, library: Library, reach: Reach) -> None:
        self._log = log
        self._table = table
        self._library = library
        self._reach = reach

    def commit(self, host: str, units: Sequence[Unit], now: datetime) -> tuple[UnitOutcome, ...]:
        """Record units of processes that this host holds; see the seam for the rules."""
        special = _check_units(units)
        outcomes: list[UnitOutcome] = []
        busy: set[str] = set()
        while True:
            first = len(outcomes)
            stop = next((place for place in special if place >= first), None) if special else None
            count = 0 if busy else self._write_steps(host, units, first, stop, now)
            outcomes += [DONE] * count
            if len(outcomes) == len(units):
                return tuple(outcomes)
            if not count:
                unit = units[len(outcomes)]
                # Behind a unit that goes again later nothing of its process may be written.
                outcome = _BUSY if unit.process_id in busy else self._commit(host, unit, now)
                if outcome.refused is Refusal.BUSY:
                    busy.add(unit.process_id)
                outcomes.append(outcome)

    def _commit(self, host: str, unit: Unit, now: datetime) -> UnitOutcome:
        proc = self._table.procs.get(unit.process_id)
        if proc is None:
            return self._answer_gone(host, unit, now)
        if unit.epoch != proc.epoch or unit.incarnation != proc.incarnation:
            return _NOT_OWNER
        if unit.seq <= proc.seq:
            if not self._was_refused(proc, unit):
                return self._answer_again(proc, unit)
            unit = replace(unit, status=None, wake_at=None)  # later ones have said since
        if proc.owner != host:
            return _NOT_OWNER
        refused = self._refused(proc, unit)
        if refused is not None:
            return refused
        if unit.restart is not None:
            return self._restart(proc, unit, unit.restart, now)
        if not unit.spawns and not unit.sends:
            return self._write(proc, unit, None, now)
        plan = self._reach.plan(unit)
        if isinstance(plan, UnitOutcome):
            return plan
        return self._write(proc, unit, plan, now)

    # --- deciding ------------------------------------------------------------------------

    def _refused(self, proc: Proc, unit: Unit) -> UnitOutcome | None:
        keys = proc.keys
        if keys is None:
            keys = self._load(proc)
        for each in unit.checkpoints:
            if not has_key(keys, slot(each.kind, each.key, each.index)):
                continue
            if each.replaces:
                dead = self._table.dead
                dead[self._log.number] = dead.get(self._log.number, 0) + len(each.payload)
            else:
                held = self._held(proc, unit)
                if held:
                    return UnitOutcome(held=held)
        if unit.consumes:
            pending = proc.mail.pending if proc.mail is not None else {}
            if len(set(unit.consumes)) < len(unit.consumes) or not all(
                position in pending for position in unit.consumes
            ):
                return _NOT_IN_MAILBOX
        if unit.status is not None or unit.ending is not None or unit.restart is not None:
            return self._illegal(proc, unit)
        return None

    def _illegal(self, proc: Proc, unit: Unit) -> UnitOutcome | None:
        status = proc.standing
        if unit.status is not None:
            if unit.status not in CLAIMABLE or not may_follow(status, unit.status):
                return _ILLEGAL
            status = unit.status
        if unit.restart is not None and not may_follow(status, Status.RUNNING):
            return _ILLEGAL
        if unit.ending is not None and (
            proc.status is Status.SUSPENDED
            or unit.ending.status not in _ENDINGS
            or not may_follow(status, unit.ending.status)
        ):
            return _ILLEGAL
        return None

    def _held(self, proc: Proc, unit: Unit) -> tuple[Checkpoint, ...]:
        """Return the first-wins checkpoints of a unit that another unit has recorded."""
        history = self._library.history(self._library.trail(proc))
        stored = {(each.kind, each.key, each.index): each for each in history.checkpoints}
        held = []
        for each in unit.checkpoints:
            found = None if each.replaces else stored.get((each.kind, each.key, each.index))
            if found is not None and (found.epoch, found.seq) != (unit.epoch, unit.seq):
                held.append(found)
        return tuple(held)

    def _was_refused(self, proc: Proc, unit: Unit) -> bool:
        """Return whether nothing is recorded of a unit that reaches others, later ones being."""
        if not (unit.spawns or unit.sends):
            return False
        keys = proc.keys if proc.keys is not None else self._load(proc)
        return not any(
            has_key(keys, slot(each.kind, each.key, each.index)) for each in unit.checkpoints
        )

    def _answer_again(self, proc: Proc, unit: Unit) -> UnitOutcome:
        """Answer a unit that is not newer than the last one applied: written, or overtaken."""
        if all(each.replaces for each in unit.checkpoints):
            return DONE
        held = self._held(proc, unit)
        return UnitOutcome(held=held) if held else DONE

    def _answer_gone(self, host: str, unit: Unit, now: datetime) -> UnitOutcome:
        """Answer a unit of a process that is not among the unfinished."""
        proc = self._library.finished(unit.process_id)
        if proc is None:
            return _NOT_OWNER
        if unit.epoch != proc.epoch or unit.incarnation != proc.incarnation:
            return _NOT_OWNER
        if unit.seq <= proc.seq:
            return self._answer_again(proc, unit)
        if proc.owner != host or unit.leave is None:
            return _FINISHED
        if unit.checkpoints or unit.ending is not None or unit.spawns or unit.sends:
            return _FINISHED
        self.release(proc, unit.seq, now)
        return DONE

    def _load(self, proc: Proc) -> bytes | set[int]:
        try:
            self._library.load(proc)
        except DamageError:
            # Its host was told when it claimed it; now it can only be set aside.
            proc.keys = b""
        keys = proc.keys
        assert keys is not None
        return keys

    def _write_steps(
        self, host: str, units: Sequence[Unit], first: int, stop: int | None, now: datetime
    ) -> int:
        """Write units from the `first` on, while each is one new checkpoint and nothing else.

        The hot path: what `_commit` and `Table.apply_unit` do with such a
        unit, without their questions and without a call. A test compares the
        two. Returns how many it wrote; it stops before a unit that is
        anything else, and after a part that the log should write out.
        """
        log = self._log
        procs = self._table.procs
        base = log.number << SEGMENT_SHIFT  # the spot of the active segment's beginning
        begun = end = 0
        payloads: list[bytes] = []
        try:
            for unit in islice(units, first, stop):
                proc = procs.get(unit.process_id)
                checkpoints = unit.checkpoints
                seq = unit.seq
                if (
                    proc is None
                    or len(checkpoints) != 1
                    or (keys := proc.keys) is None
                    or unit.status is not None
                    or unit.ending is not None
                    or unit.leave is not None
                    or unit.consumes
                    or seq <= proc.seq
                    or unit.epoch != proc.epoch
                    or unit.incarnation != proc.incarnation
                    or proc.owner != host
                    or end - begun > PENDING_BYTES_MAX
                ):
                    break
                (each,) = checkpoints
                kind, key, index, payload = each.kind, each.key, each.index, each.payload
                place = hash((kind, key, index))
                if type(keys) is bytes and len(keys) < PACKED_MAX:
                    packed = place.to_bytes(8, "little", signed=True)
                    if packed in keys:
                        break
                    keys += packed
                elif has_key(keys, place):
                    break
                spot = proc.spot
                if spot < base:
                    spot = base  # its first record in this segment
                prev = spot & OFFSET_MASK
                outer = "" if payload[0] > _SPACE and payload[-1] > _SPACE else outer_of(payload)
                record = CheckpointRecord(
                    kind, key, Raw(payload), index, each.form, each.replaces, outer
                )
                line = encode(
                    UnitRecord(
                        unit.process_id, unit.incarnation, unit.epoch, seq, now, prev, (record,)
                    )
                )
                if not payloads:
                    begun = end = log.begin_batch()
                payloads.append(line)
                proc.seq = seq
                proc.updated_at = now
                proc.deaths = 0
                proc.spot = spot + (end - prev)
                proc.keys = keys if keys is not proc.keys else add_key(keys, place)
                end += len(line) + OVERHEAD_BYTES
        finally:
            # Also when an id cannot be encoded: what stands in memory by now has to be written.
            if payloads:
                log.extend(payloads, end)
        return len(payloads)

    # --- writing -------------------------------------------------------------------------

    def _write(self, proc: Proc, unit: Unit, plan: Plan | None, now: datetime) -> UnitOutcome:
        meets = unit.meets_cancel and proc.more.cancel_reason is not None
        if plan is None and not meets and (unit.ending is None or proc.more.parent is None):
            number, spot = self._log.number, proc.spot
            prev = spot & OFFSET_MASK if spot >> SEGMENT_SHIFT == number else 0
            record = self._record(proc, unit, now, prev)
            offset = self._log.append(encode(record))
            self._table.apply_unit(proc, record, number, offset)
            return DONE
        encode(unit)  # raises now what could not be encoded later
        if unit.ending is not None:
            self._reach.prepare(proc)
        group = Group(self._log, self._table)
        if plan is not None:
            self._reach.carry_out(group, proc, unit, plan, now)
        if meets:
            group.add(
                proc,
                lambda prev: ControlRecord(proc.id, proc.incarnation, now, prev=prev, met=True),
            )
        group.add(proc, lambda prev: self._record(proc, unit, now, prev))
        if unit.ending is not None:
            self._reach.tell_parent(group, proc, unit.ending, now)
        group.write()
        return DONE

    def _record(self, proc: Proc, unit: Unit, now: datetime, prev: int) -> UnitRecord:
        ending = unit.ending
        return UnitRecord(
            unit.process_id,
            unit.incarnation,
            unit.epoch,
            unit.seq,
            now,
            prev,
            tuple(
                [
                    CheckpointRecord(
                        each.kind,
                        each.key,
                        Raw(each.payload),
                        each.index,
                        each.form,
                        each.replaces,
                        outer_of(each.payload),
                    )
                    for each in unit.checkpoints
                ]
            ),
            unit.consumes,
            unit.status,
            unit.wake_at if unit.status is not None else None,
            None if ending is None else stored(ending),
            self._leave_of(proc, unit) if ending is None else None,
            self._last_state(proc, unit, now) if ending is not None else None,
        )

    def _leave_of(self, proc: Proc, unit: Unit) -> Leave | None:
        if unit.leave is Leave.PARKED and proc.id in self._table.news:
            # What the host has not heard of must not sleep with the process.
            return Leave.RELEASED
        return unit.leave

    def _restart(self, proc: Proc, unit: Unit, input: bytes, now: datetime) -> UnitOutcome:
        """Let a process begin anew."""
        try:
            old = self._library.creation(proc)
            weights = self._library.weigh(proc, generation=True)
            mailbox = self._library.pending(proc) if proc.events else ()
        except DamageError:
            return _BUSY
        pending = {
            event.position
            for event in mailbox
            if event.position not in unit.consumes and not event.name.startswith(CHILD_ENDED)
        }
        kept = sorted(pending.union(_consumed(proc, mailbox, unit)[-EVENTS_KEPT:]))
        number, spot = self._log.number, proc.spot
        extra = proc.more
        record = RestartRecord(
            unit.process_id,
            unit.incarnation,
            unit.epoch,
            unit.seq,
            now,
            spot & OFFSET_MASK if spot >> SEGMENT_SHIFT == number else 0,
            old.name,
            Raw(input),
            old.digest,
            old.creation_id,
            old.start_at,
            old.deadline_at,
            old.tags,
            old.context,
            old.parent,
            outer_of(input),
            ranges(kept),
            ranges(sorted(pending)),
            extra.cancel_reason is not None and (extra.cancel_met or unit.meets_cancel),
            self._leave_of(proc, unit),
        )
        offset = self._log.append(encode(record))
        self._table.apply_restart(proc, record, number, offset)
        dead = self._table.dead
        for segment, size in weights.items():
            dead[segment] = dead.get(segment, 0) + size
        return DONE

    def release(self, proc: Proc, seq: int, now: datetime, *, is_death: bool = False) -> None:
        """Write that what has ended without its owner has none any more."""
        assert proc.ending is not None
        last = copy(proc)
        last.seq = seq
        last.updated_at = now
        last.owner = last.ending = None
        if is_death and not seq:
            last.deaths += 1
        number = self._log.number
        spot = self._table.gone.get(proc.id, 0)
        record = UnitRecord(
            proc.id,
            proc.incarnation,
            proc.epoch,
            seq,
            now,
            spot & OFFSET_MASK if spot >> SEGMENT_SHIFT == number else 0,
            ending=stored(proc.ending),
            leave=Leave.RELEASED,
            state=last,
        )
        offset = self._log.append(encode(record))
        self._table.apply_release(record, number, offset)

    def write_ending(self, proc: Proc, ending: EndingRecord, now: datetime) -> None:
        """Set a process aside, without asking whether that may follow."""
        number, spot = self._log.number, proc.spot
        record = UnitRecord(
            proc.id,
            proc.incarnation,
            proc.epoch,
            proc.seq + 1,
            now,
            spot & OFFSET_MASK if spot >> SEGMENT_SHIFT == number else 0,
            ending=ending,
        )
        offset = self._log.append(encode(record))
        self._table.apply_unit(proc, record, number, offset)
        proc.due_at = None

    def _last_state(self, proc: Proc, unit: Unit, now: datetime) -> Proc | None:
        """Return all there is to know of a process that this unit ends; None if it is set aside."""
        ending = unit.ending
        assert ending is not None
        if ending.status not in FINISHED:
            return None
        last = copy(proc)
        last.status = ending.status
        last.seq = unit.seq
        last.updated_at = now
        last.owner = last.wake_at = last.due_at = last.ending = last.keys = last.mail = None
        last.deaths = last.spot = 0
        return last
