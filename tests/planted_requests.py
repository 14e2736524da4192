"""Mistakes that storages make with what is asked from outside, with retries and with restarts."""

from typing import Any

import msgspec
import pytest

from durabletask import _memory, _memory_requests
from durabletask._memory import MemoryStorage
from durabletask._memory_process import Mailbox, ProcessState
from durabletask.storage import (
    Claimed,
    Control,
    Event,
    Leave,
    Refusal,
    Status,
    Unit,
    UnitOutcome,
)
from tests.planted_named import caught_by

# --- requests ----------------------------------------------------------------------------


@caught_by("test_a_late_copy_of_a_request_changes_nothing")
def requests_without_an_id(patch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: nothing knows that a request was made before."""
    patch.setattr(_memory, "is_known", lambda _process, _control: False)


@caught_by("test_the_latest_requests_are_known")
def only_the_last_request_is_known(patch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: the late copy of the last request but one is carried out again."""
    remember = _memory_requests.remember

    def forgetful(process: ProcessState, control: Control) -> None:
        remember(process, control)
        assert process.asked is not None
        process.asked.request_ids = process.asked.request_ids[-1:]

    patch.setattr(_memory, "remember", forgetful)


@caught_by("test_a_repeat_finds_its_request_whatever_happened_since")
def refused_before_it_is_known(patch: pytest.MonkeyPatch) -> None:
    """C19: a repeat after a lost answer is told that the process has finished."""
    known = _memory_requests.is_known

    def late(process: ProcessState, control: Control) -> bool:
        return process.ending is None and known(process, control)

    patch.setattr(_memory, "is_known", late)


@caught_by("test_there_is_one_request_to_cancel_for_all_time")
def cancelled_twice(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: once the request was met, another one can be made."""
    may_cancel = _memory_requests.may_cancel

    def again(process: ProcessState) -> bool:
        return may_cancel(process) or (process.asked is not None and process.asked.cancel_met)

    patch.setattr(_memory_requests, "may_cancel", again)


@caught_by("test_who_was_started_once_is_not_cancelled_at_once")
def never_started_by_its_records(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: what has recorded nothing is taken for never started, though it may run."""
    cancel = _memory_requests.cancel

    def careless(process: ProcessState, *args: Any) -> bool:
        epoch = process.epoch
        if not process.checkpoints():
            process.epoch = 0
        ended = cancel(process, *args)
        process.epoch = epoch
        return ended

    patch.setattr(_memory_requests, "cancel", careless)


@caught_by("test_a_parked_process_comes_back_to_be_cancelled")
def requests_wake_nobody(patch: pytest.MonkeyPatch) -> None:
    """C36: a parked process sleeps on although it was asked to cancel."""
    cancel = _memory_requests.cancel

    def asleep(process: ProcessState, *args: Any) -> bool:
        parked, at = process.parked, process.claimable_at
        ended = cancel(process, *args)
        if parked:
            process.parked, process.claimable_at = parked, at
        return ended

    patch.setattr(_memory_requests, "cancel", asleep)


@caught_by("test_an_owner_hears_of_every_request_once")
def requests_are_no_news(patch: pytest.MonkeyPatch) -> None:
    """C36: who holds the process is never told what was asked of it."""
    grant = _memory_requests.grant

    def silent(process: ProcessState, *args: Any) -> bool:
        ended = grant(process, *args)
        process.news = False
        return ended

    patch.setattr(_memory, "grant", silent)


@caught_by("test_the_owner_of_a_terminated_process_can_only_let_go")
def terminated_and_taken_away(patch: pytest.MonkeyPatch) -> None:
    """G10: the owner of what was terminated is not told, since it is no owner any more."""
    terminate = _memory_requests.terminate

    def abrupt(process: ProcessState, *args: Any) -> bool:
        ended = terminate(process, *args)
        process.owner = process.owner_label = None
        return ended

    patch.setattr(_memory_requests, "terminate", abrupt)


@caught_by("test_the_owner_of_a_terminated_process_can_only_let_go")
def the_last_unit_of_the_terminated_counts(patch: pytest.MonkeyPatch) -> None:
    """I14: what a host records in the unit with which it lets go is written."""
    leave_ended = ProcessState._leave_ended

    def late(self: ProcessState, unit: Unit, *rest: Any) -> UnitOutcome:
        if unit.leave is not None:
            for each in unit.checkpoints:
                self.record(each)
        return leave_ended(self, msgspec.structs.replace(unit, checkpoints=()), *rest)

    patch.setattr(ProcessState, "_leave_ended", late)


@caught_by("test_a_terminated_process_is_purged_once_it_was_let_go")
def purged_under_its_host(patch: pytest.MonkeyPatch) -> None:
    """S2.11: purging does not look whether a host still holds what was terminated."""
    purge = MemoryStorage._purge

    def careless(self: MemoryStorage, process_id: str) -> Refusal | None:
        process = self._processes.get(process_id)
        if process is not None and process.ending is not None:
            process.owner = None
        return purge(self, process_id)

    patch.setattr(MemoryStorage, "_purge", careless)


@caught_by("test_the_owner_of_a_suspended_process_still_records")
def a_unit_ends_the_suspension(patch: pytest.MonkeyPatch) -> None:
    """S2.09: the status of a unit takes the place of SUSPENDED."""

    def become(self: ProcessState, status: Status, wake_at: Any) -> None:
        self.status, self.wake_at = status, wake_at

    patch.setattr(ProcessState, "_become", become)


@caught_by("test_compensation_stays_one_way_behind_a_suspension")
def suspension_hides_the_status(patch: pytest.MonkeyPatch) -> None:
    """Rule 8: what a suspended process may become is looked up for SUSPENDED."""
    patch.setattr(ProcessState, "standing", property(lambda self: self.status))


@caught_by("test_resumed_a_parked_process_is_claimable_at_once")
def resumed_and_asleep(patch: pytest.MonkeyPatch) -> None:
    """S2.09: what was parked waits on until its wait is due."""
    resume = _memory_requests._resume

    def asleep(process: ProcessState, *args: Any) -> None:
        resume(process, *args)
        if process.wake_at is not None and process.claimable_at is not None:
            process.claimable_at = process.wake_at

    patch.setattr(_memory_requests, "_resume", asleep)


@caught_by("test_a_start_in_the_future_is_waited_for_after_a_resume_too")
def resumed_before_its_start(patch: pytest.MonkeyPatch) -> None:
    """S1.02: a resume makes claimable what is to start tomorrow."""
    resume = _memory_requests._resume

    def at_once(process: ProcessState, now: Any) -> None:
        resume(process, now)
        if process.claimable_at is not None:
            process.claimable_at = now

    patch.setattr(_memory_requests, "_resume", at_once)


# --- retry -------------------------------------------------------------------------------


@caught_by("test_a_retry_is_of_the_history_that_its_caller_has_read")
def retry_of_any_epoch(patch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: what to forget was chosen from another history than the one it is done to."""
    refusal = _memory_requests.refusal

    def careless(process: ProcessState, control: Control) -> Refusal | None:
        here = {"incarnation": process.incarnation, "epoch": process.epoch}
        return refusal(process, msgspec.structs.replace(control, **here))

    patch.setattr(_memory, "refusal", careless)


@caught_by("test_a_retry_is_the_end_of_an_epoch")
def retry_within_the_epoch(patch: pytest.MonkeyPatch) -> None:
    """I8: a late copy of the last owner's unit is taken for one of the time after."""
    retry = _memory_requests._retry

    def same(process: ProcessState, *args: Any) -> None:
        before = process.epoch
        retry(process, *args)
        process.epoch = before

    patch.setattr(_memory_requests, "_retry", same)


@caught_by("test_what_a_retry_forgets_is_put_aside_and_stays_to_be_seen")
def forgotten_for_good(patch: pytest.MonkeyPatch) -> None:
    """Rule 9: what a retry puts aside is deleted."""
    forget = ProcessState.forget

    def delete(self: ProcessState, *args: Any) -> None:
        forget(self, *args)
        if self.asked is not None:
            self.asked.forgotten = ()

    patch.setattr(ProcessState, "forget", delete)


@caught_by("test_what_a_retry_forgets_is_put_aside_and_stays_to_be_seen")
def forgotten_and_handed_out(patch: pytest.MonkeyPatch) -> None:
    """Rule 9: the next owner recalls what was put aside, and fails again."""
    as_claimed = ProcessState.as_claimed

    def both(self: ProcessState, *, fresh: bool) -> Claimed:
        claimed = as_claimed(self, fresh=fresh)
        if not fresh or self.asked is None:
            return claimed
        whole = (*claimed.checkpoints, *self.asked.forgotten)
        return msgspec.structs.replace(claimed, checkpoints=whole)

    patch.setattr(ProcessState, "as_claimed", both)


@caught_by("test_a_retry_puts_consumed_events_back")
def restored_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """G8: an event that is put back stands behind those that arrived after it."""
    restore = Mailbox.restore

    def behind(self: Mailbox, position: int) -> None:
        waiting = dict(self.unconsumed)
        restore(self, position)
        self.unconsumed = waiting | self.unconsumed

    patch.setattr(Mailbox, "restore", behind)


# --- restart -----------------------------------------------------------------------------


@caught_by("test_a_restart_makes_every_key_free_again")
def restarted_with_its_history(patch: pytest.MonkeyPatch) -> None:
    """S2.14: the next generation recalls what the one before has recorded."""
    restart = ProcessState._restart

    def kept(self: ProcessState, input: bytes) -> None:
        few, many = self.few, self.many
        restart(self, input)
        self.few, self.many = few, many

    patch.setattr(ProcessState, "_restart", kept)


@caught_by("test_unconsumed_events_stay")
def restarted_without_its_mailbox(patch: pytest.MonkeyPatch) -> None:
    """S2.14: what nobody has consumed is gone with the history."""

    def empty(self: Mailbox, keep: int) -> None:
        self.unconsumed = {}

    patch.setattr(Mailbox, "forget", empty)


@caught_by("test_a_consumed_event_is_known_after_a_restart")
def restarted_without_the_ids(patch: pytest.MonkeyPatch) -> None:
    """C31: after a restart an event that was consumed can arrive again."""
    forget = Mailbox.forget
    patch.setattr(Mailbox, "forget", lambda self, _keep: forget(self, 0))


@caught_by("test_of_the_consumed_events_the_latest_are_kept")
def restarted_with_every_event(patch: pytest.MonkeyPatch) -> None:
    """Rule 14: the ids of consumed events grow for ever."""
    forget = Mailbox.forget
    patch.setattr(Mailbox, "forget", lambda self, _keep: forget(self, 1_000_000))


@caught_by("test_ends_of_children_are_gone_with_the_restart")
def positions_begin_again(patch: pytest.MonkeyPatch) -> None:
    """G8: after a restart a position is given a second time, for another event."""
    add = Mailbox.add

    def behind_the_last(self: Mailbox, event: Event) -> None:
        highest = max(self.events, default=0)
        add(self, msgspec.structs.replace(event, position=highest + 1))

    patch.setattr(Mailbox, "add", behind_the_last)


@caught_by("test_a_late_step_of_the_generation_before_is_not_recorded")
def late_steps_of_another_generation(patch: pytest.MonkeyPatch) -> None:
    """G2: a late copy of a step finds its key free, and is recorded in the new generation."""
    again = ProcessState._answer_again

    def record(self: ProcessState, unit: Unit) -> UnitOutcome:
        outcome = again(self, unit)
        for each in () if outcome.held else unit.checkpoints:
            if self.find(each.kind, each.key, each.index) is None:
                self.record(msgspec.structs.replace(each, epoch=unit.epoch, seq=unit.seq))
        return outcome

    patch.setattr(ProcessState, "_answer_again", record)


@caught_by("test_a_met_request_to_cancel_is_gone_with_the_restart")
def restarted_and_still_asked(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: a generation that met its request hands it on to the next."""
    restart = ProcessState._restart

    def kept(self: ProcessState, input: bytes) -> None:
        reason = None if self.asked is None else self.asked.cancel_reason
        restart(self, input)
        if self.asked is not None:
            self.asked.cancel_reason = reason

    patch.setattr(ProcessState, "_restart", kept)


@caught_by("test_a_restart_may_leave_its_host")
def restarted_and_held(patch: pytest.MonkeyPatch) -> None:
    """S2.14: the unit that restarts forgets to let go."""
    leave = ProcessState._leave

    def stay(self: ProcessState, how: Leave, now: Any) -> None:
        if not self.generation:
            leave(self, how, now)

    patch.setattr(ProcessState, "_leave", stay)
