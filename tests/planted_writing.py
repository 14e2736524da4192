"""Mistakes that storages make with ownership, claims and recorded results."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from durabletask._memory import MemoryStorage
from durabletask._memory_hosts import Host, Hosts
from durabletask._memory_process import ProcessState
from durabletask._memory_queue import ClaimQueue
from durabletask.storage import (
    DONE,
    FINISHED,
    Checkpoint,
    Claims,
    Created,
    Lease,
    Leave,
    NewProcess,
    ProcessRow,
    Refusal,
    Unit,
    UnitOutcome,
)
from tests.planted_named import caught_by
from tests.planted_storage import planted

# --- ownership ---------------------------------------------------------------------------


@planted
def no_fence(patch: pytest.MonkeyPatch) -> None:
    """C01: a fenced host writes as if nothing had happened, for whatever it held."""
    apply = ProcessState.apply

    def unfenced(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        mine = msgspec.structs.replace(unit, epoch=self.epoch, seq=self.seq + 1)
        return apply(self, self.owner or host_id, mine, *rest)

    patch.setattr(Hosts, "holding", lambda _, lease: Host(lease.host_id, lease.label))
    patch.setattr(ProcessState, "apply", unfenced)


@planted
def fence_without_epoch(patch: pytest.MonkeyPatch) -> None:
    """C01: the host is checked but not the epoch, so its own late unit gets through."""
    apply = ProcessState.apply

    def careless(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        if unit.epoch < self.epoch:
            unit = msgspec.structs.replace(unit, epoch=self.epoch, seq=self.seq + 1)
        return apply(self, host_id, unit, *rest)

    patch.setattr(ProcessState, "apply", careless)


@planted
def incarnation_ignored(patch: pytest.MonkeyPatch) -> None:
    """G5: a unit for the purged process of that id is recorded in the new one."""
    apply = ProcessState.apply

    def careless(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        unit = msgspec.structs.replace(unit, incarnation=self.incarnation)
        return apply(self, host_id, unit, *rest)

    patch.setattr(ProcessState, "apply", careless)


@planted
def epoch_reused(patch: pytest.MonkeyPatch) -> None:
    """C04: a takeover hands the process out under the epoch that it had."""
    take = ProcessState.take

    def same_epoch(self: ProcessState, host_id: str, label: str, now: datetime) -> None:
        before = self.epoch
        take(self, host_id, label, now)
        self.epoch = before or 1

    patch.setattr(ProcessState, "take", same_epoch)


@planted
def renewal_revives(patch: pytest.MonkeyPatch) -> None:
    """C06 C07: renewing does not look at the fence, and gives a lost lease back."""

    async def renew(self: MemoryStorage, lease: Lease) -> Lease:
        self._hosts.fenced.discard(lease.host_id)
        return self._hosts.open(lease.host_id, lease.label, self._now())

    patch.setattr(MemoryStorage, "renew", renew)


@planted
def held_is_taken_again(patch: pytest.MonkeyPatch) -> None:
    """C13: a claim does not look whether the process has an owner."""
    take = ProcessState.take

    def still_claimable(self: ProcessState, host_id: str, label: str, now: datetime) -> None:
        since = self.claimable_at
        take(self, host_id, label, now)
        self.claimable_at = since

    patch.setattr(ProcessState, "take", still_claimable)


@planted
def claim_without_limit(patch: pytest.MonkeyPatch) -> None:
    """C13: a claim takes whatever it finds."""
    claim = MemoryStorage._claim

    def greedy(
        self: MemoryStorage,
        host: Host,
        claim_id: str,
        names: Sequence[str],
        count_max: int,
        *rest: Any,
    ) -> None:
        claim(self, host, claim_id, names, 10_000 if count_max else 0, *rest)

    patch.setattr(MemoryStorage, "_claim", greedy)


@caught_by("test_no_more_of_a_name_is_taken_than_there_is_room_for")
def rooms_ignored(patch: pytest.MonkeyPatch) -> None:
    """Issue 4.3: a host is given more of a name than it may run."""
    claim = MemoryStorage.claim

    async def roomy(self: MemoryStorage, *args: Any, rooms: object = None, **more: Any) -> object:
        return await claim(self, *args, **more)

    patch.setattr(MemoryStorage, "claim", roomy)


@caught_by("test_others_are_taken_in_place_of_what_has_no_room")
def a_full_name_stands_in_the_way(patch: pytest.MonkeyPatch) -> None:
    """G12: what is the oldest is looked at first, and what has no room dropped afterwards."""
    claim = MemoryStorage._claim

    def by_age_alone(
        self: MemoryStorage,
        host: Host,
        claim_id: str,
        names: Sequence[str],
        count_max: int,
        *rest: Any,
    ) -> None:
        oldest = sorted(
            (each for each in self._processes.values() if each.claimable_at),
            key=lambda each: str(each.claimable_at),
        )[:count_max]
        kept = [name for name in names if any(each.name == name for each in oldest)]
        claim(self, host, claim_id, kept, count_max, *rest)

    patch.setattr(MemoryStorage, "_claim", by_age_alone)


@caught_by("test_there_is_no_more_of_a_name_without_room")
def full_names_are_asked_for_again(patch: pytest.MonkeyPatch) -> None:
    """G13: there is more of a name for which there is no room, so the host asks without end."""
    claim = MemoryStorage.claim

    async def restless(
        self: MemoryStorage, lease: Lease, claim_id: str, names: Sequence[str], **more: Any
    ) -> Claims:
        answer = await claim(self, lease, claim_id, names, **more)
        next_at = self._queue.next_at(names)
        return msgspec.structs.replace(answer, more=next_at is not None and next_at <= self._now())

    patch.setattr(MemoryStorage, "claim", restless)


@planted
def newest_first(patch: pytest.MonkeyPatch) -> None:
    """G12: claims take the newest, so that the oldest starve."""

    def pop(self: ClaimQueue, names: Iterable[str], now: datetime) -> ProcessState | None:
        ready = [
            each
            for each in self._processes.values()
            if each.name in names and each.claimable_at is not None and each.claimable_at <= now
        ]
        return max(ready, key=lambda each: str(each.claimable_at), default=None)

    patch.setattr(ClaimQueue, "pop", pop)


@planted
def names_ignored(patch: pytest.MonkeyPatch) -> None:
    """S0.10: a host is given processes whose function it does not have."""
    pop = ClaimQueue.pop
    patch.setattr(ClaimQueue, "pop", lambda self, _, now: pop(self, tuple(self._heaps), now))


@planted
def start_at_ignored(patch: pytest.MonkeyPatch) -> None:
    """S1.02: a process that is to start tomorrow starts now."""
    create = MemoryStorage._create

    def at_once(self: MemoryStorage, new: NewProcess, host: Host | None, now: datetime) -> Created:
        created = create(self, new, host, now)
        process = self._processes[new.process_id]
        if process.claimable_at is not None:
            process.claimable_at = now
            self._queue.push(process)
        return created

    patch.setattr(MemoryStorage, "_create", at_once)


@planted
def due_rounded_down(patch: pytest.MonkeyPatch) -> None:
    """C40: the due time is kept in whole seconds, so a timer fires early."""
    leave = ProcessState._leave

    def rounded(self: ProcessState, how: Leave, now: datetime) -> None:
        leave(self, how, now)
        if self.parked and self.claimable_at is not None:
            self.claimable_at -= timedelta(milliseconds=1)

    patch.setattr(ProcessState, "_leave", rounded)


@planted
def claim_id_ignored(patch: pytest.MonkeyPatch) -> None:
    """A repeated claim takes more instead of returning what the first one took."""
    claim = MemoryStorage.claim
    turn = iter(range(1_000_000))

    async def forgetful(
        self: MemoryStorage, lease: Lease, claim_id: str, names: Sequence[str], **more: Any
    ) -> object:
        return await claim(self, lease, f"{claim_id}/{next(turn)}", names, **more)

    patch.setattr(MemoryStorage, "claim", forgetful)


@planted
def dead_hosts_keep_everything(patch: pytest.MonkeyPatch) -> None:
    """G12: nobody fences a host whose lease has ended."""
    patch.setattr(Hosts, "ended", lambda _self, _now: ())


@planted
def living_hosts_are_fenced(patch: pytest.MonkeyPatch) -> None:
    """G5: every claim fences all other hosts."""
    patch.setattr(Hosts, "ended", lambda self, _now: tuple(self))


@planted
def every_takeover_is_a_death(patch: pytest.MonkeyPatch) -> None:
    """Rule 12: deaths count although the process had recorded something."""
    let_go = ProcessState.let_go

    def counted(self: ProcessState, now: datetime, *, died: bool) -> None:
        self.deaths += died and self.seq > 0
        let_go(self, now, died=died)

    patch.setattr(ProcessState, "let_go", counted)


@planted
def a_clean_stop_is_a_death(patch: pytest.MonkeyPatch) -> None:
    """Rule 12: closing a lease counts a death for what it held."""
    let_go = ProcessState.let_go

    def counted(self: ProcessState, now: datetime, *, died: bool) -> None:
        let_go(self, now, died=True)

    patch.setattr(ProcessState, "let_go", counted)


# --- results -----------------------------------------------------------------------------


@planted
def last_write_wins(patch: pytest.MonkeyPatch) -> None:
    """C16: a later checkpoint overwrites the recorded one."""
    patch.setattr(ProcessState, "_held", lambda _self, _unit: ())


@planted
def own_value_returned(patch: pytest.MonkeyPatch) -> None:
    """C17: whoever came second is told that its value was recorded."""
    apply = ProcessState.apply

    def lying(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        outcome = apply(self, host_id, unit, *rest)
        return DONE if outcome.held else outcome

    patch.setattr(ProcessState, "apply", lying)


@planted
def live_objects_returned(patch: pytest.MonkeyPatch) -> None:
    """C22: a returned row shares its tags with the store."""
    row = ProcessState.row

    def shared(self: ProcessState) -> ProcessRow:
        if self.tags is None:
            self.tags = {}
        return msgspec.structs.replace(row(self), tags=self.tags)

    patch.setattr(ProcessState, "row", shared)


@planted
def writes_after_the_end(patch: pytest.MonkeyPatch) -> None:
    """C27 S4.19: the last owner can still record after the final record."""
    apply = ProcessState.apply

    def late(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        if self.status in FINISHED and unit.epoch == self.epoch and unit.seq > self.seq:
            for each in unit.checkpoints:
                self.record(each)
            return DONE
        return apply(self, host_id, unit, *rest)

    patch.setattr(ProcessState, "apply", late)


@planted
def end_deletes_the_history(patch: pytest.MonkeyPatch) -> None:
    """C28 S4.17: what has ended has no history any more."""
    end = ProcessState.end

    def forget(self: ProcessState, *args: Any) -> None:
        end(self, *args)
        self.few, self.many = (), None

    patch.setattr(ProcessState, "end", forget)


@planted
def unit_written_in_parts(patch: pytest.MonkeyPatch) -> None:
    """G11: checkpoints are written before the mailbox is looked at."""
    apply = ProcessState.apply

    def in_parts(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        outcome = apply(self, host_id, unit, *rest)
        if outcome.refused is Refusal.NOT_IN_MAILBOX:
            for each in unit.checkpoints:
                self.record(each)
        return outcome

    patch.setattr(ProcessState, "apply", in_parts)


@planted
def event_taken_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """C30: the event leaves the mailbox although its checkpoint was overtaken."""
    apply = ProcessState.apply

    def two_steps(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        outcome = apply(self, host_id, unit, *rest)
        if outcome.held and self.mailbox is not None:
            for position in unit.consumes:
                if position in self.mailbox.unconsumed:
                    self.mailbox.consume(position)
        return outcome

    patch.setattr(ProcessState, "apply", two_steps)


@planted
def neighbours_fail_together(patch: pytest.MonkeyPatch) -> None:
    """G13: one refused unit refuses the rest of its batch."""
    commit = MemoryStorage.commit

    async def all_or_none(
        self: MemoryStorage, lease: Lease, units: Sequence[Unit]
    ) -> Sequence[UnitOutcome]:
        outcomes: list[UnitOutcome] = []
        for unit in units:
            if any(each.refused for each in outcomes):
                outcomes.append(UnitOutcome(refused=Refusal.NOT_OWNER))
            else:
                outcomes += await commit(self, lease, [unit])
        return outcomes

    patch.setattr(MemoryStorage, "commit", all_or_none)


@planted
def repeats_are_applied(patch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: nothing knows that a unit was applied before."""
    apply = ProcessState.apply

    def again(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        if unit.epoch == self.epoch and unit.seq <= self.seq and self.owner == host_id:
            for each in unit.checkpoints:
                if each.replaces:
                    self.record(msgspec.structs.replace(each, epoch=self.epoch, seq=unit.seq))
        return apply(self, host_id, unit, *rest)

    patch.setattr(ProcessState, "apply", again)


@planted
def repeats_are_refused(patch: pytest.MonkeyPatch) -> None:
    """C19: a repeat after a lost answer is told that it was too late."""
    patch.setattr(
        ProcessState,
        "_answer_again",
        lambda _self, _unit: UnitOutcome(refused=Refusal.NOT_OWNER),
    )


@planted
def replaced_in_place(patch: pytest.MonkeyPatch) -> None:
    """The history is not in the order recorded: a replacement stays where the first one was."""
    checkpoints = ProcessState.checkpoints

    def by_key(self: ProcessState) -> tuple[Checkpoint, ...]:
        return tuple(sorted(checkpoints(self), key=lambda each: not each.replaces))

    patch.setattr(ProcessState, "checkpoints", by_key)


@planted
def key_without_index(patch: pytest.MonkeyPatch) -> None:
    """Checkpoints are found by kind and key alone, so one of a series stands for all."""
    find = ProcessState.find

    def by_key(self: ProcessState, kind: str, key: str, index: int) -> Checkpoint | None:
        for each in self.checkpoints():
            if (each.kind, each.key) == (kind, key):
                return each
        return find(self, kind, key, index)

    patch.setattr(ProcessState, "find", by_key)


@planted
def no_transition_table(patch: pytest.MonkeyPatch) -> None:
    """Rule 8: a process that compensates can complete."""
    patch.setattr(ProcessState, "_may_become", lambda _self, _unit: True)


@planted
def unstamped_checkpoints(patch: pytest.MonkeyPatch) -> None:
    """`epoch`, `seq` and `at` are left as they came."""
    record = ProcessState.record

    def bare(self: ProcessState, new: Checkpoint) -> None:
        record(self, msgspec.structs.replace(new, at=None))

    patch.setattr(ProcessState, "record", bare)


@planted
def values_are_parsed(patch: pytest.MonkeyPatch) -> None:
    """F122: a payload is decoded and encoded again on its way."""
    record = ProcessState.record

    def parsed(self: ProcessState, new: Checkpoint) -> None:
        text = json.dumps(json.loads(new.payload)).encode()
        record(self, msgspec.structs.replace(new, payload=text))

    patch.setattr(ProcessState, "record", parsed)
