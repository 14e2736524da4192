"""Mistakes that storages make with children, their ends, descendants and what units send."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest

from durabletask import _memory_kin
from durabletask._memory_kin import Kin
from durabletask._memory_process import Asked, ProcessState
from durabletask.storage import (
    CHILD_ENDED,
    DONE,
    FINISHED,
    Delivered,
    NewEvent,
    NewProcess,
    Parent,
    Status,
    Unit,
    UnitOutcome,
)
from tests.planted_named import caught_by

Reach = Callable[[ProcessState, Unit, datetime], UnitOutcome]

# --- spawning ----------------------------------------------------------------------------


@caught_by("test_a_refused_unit_spawns_nothing")
def spawned_before_it_is_looked_at(patch: pytest.MonkeyPatch) -> None:
    """C38: children and events go out before it is known whether the unit will be recorded."""
    apply = ProcessState.apply

    def first(
        self: ProcessState, host_id: str, unit: Unit, now: datetime, others: Reach | None = None
    ) -> UnitOutcome:
        if others is not None and (answer := others(self, unit, now)) is not DONE:
            return answer
        return apply(self, host_id, unit, now)

    patch.setattr(ProcessState, "apply", first)


@caught_by("test_a_childs_id_may_be_of_no_other_origin")
def children_by_their_parents_id(patch: pytest.MonkeyPatch) -> None:
    """Issue 4.1: a child of another call, generation or incarnation is taken for this one's."""
    reach = Kin.reach

    def as_there(self: Kin, new: NewProcess) -> NewProcess:
        there = self._processes.get(new.process_id)
        parent = None if there is None else there.parent
        if parent is None or new.parent is None or parent.process_id != new.parent.process_id:
            return new
        return msgspec.structs.replace(new, parent=parent)

    def careless(self: Kin, process: ProcessState, unit: Unit, now: datetime) -> UnitOutcome:
        spawns = tuple(as_there(self, new) for new in unit.spawns)
        return reach(self, process, msgspec.structs.replace(unit, spawns=spawns), now)

    patch.setattr(Kin, "reach", careless)


@caught_by("test_a_child_that_exists_is_taken_for_done")
def a_child_begins_again(patch: pytest.MonkeyPatch) -> None:
    """G9: spawned a second time by the same call, a child makes way for itself."""
    spawn = Kin._spawn

    def anew(self: Kin, process: ProcessState, unit: Unit, new: NewProcess, now: datetime) -> None:
        if new.process_id in self._processes:
            self._begin(new, now)
        spawn(self, process, unit, new, now)

    patch.setattr(Kin, "_spawn", anew)


@caught_by("test_a_child_is_born_with_the_request_that_is_pending")
def born_unasked(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: a child that is spawned while its parent is being cancelled goes on for ever."""
    spawn = Kin._spawn

    def unasked(
        self: Kin, process: ProcessState, unit: Unit, new: NewProcess, now: datetime
    ) -> None:
        spawn(self, process, msgspec.structs.replace(unit, meets_cancel=True), new, now)

    patch.setattr(Kin, "_spawn", unasked)


@caught_by("test_a_child_is_born_with_the_request_that_is_pending")
def born_asked_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: the children that a cancelled process spawns to clean up are cancelled."""
    spawn = Kin._spawn

    def asked(self: Kin, process: ProcessState, unit: Unit, new: NewProcess, now: datetime) -> None:
        spawn(self, process, unit, new, now)
        if process.asked is not None and process.asked.cancel_reason is not None:
            self._processes[new.process_id].asked = Asked(process.asked.cancel_reason)

    patch.setattr(Kin, "_spawn", asked)


# --- ends --------------------------------------------------------------------------------


def _telling(patch: pytest.MonkeyPatch, change: Callable[..., Parent | None]) -> None:
    """Let `change` say which parent is told of an end."""
    tell = Kin._tell

    def told(
        self: Kin, child: ProcessState, parent: Parent | None, now: datetime, again: str
    ) -> list[str]:
        return tell(self, child, change(self, child, parent, again), now, again)

    patch.setattr(Kin, "_tell", told)


@caught_by("test_only_who_spawned_it_is_told")
def the_next_generation_is_told(patch: pytest.MonkeyPatch) -> None:
    """G8: a process that has restarted hears of the children of the time before."""

    def present(self: Kin, _: ProcessState, parent: Parent | None, again: str) -> Parent | None:
        above = None if parent is None else self._processes.get(parent.process_id)
        if parent is None or above is None or above.incarnation != parent.incarnation:
            return parent
        return msgspec.structs.replace(parent, generation=above.generation)

    _telling(patch, present)


@caught_by("test_only_who_spawned_it_is_told")
def the_next_incarnation_is_told(patch: pytest.MonkeyPatch) -> None:
    """G8: another process of the parent's id hears of the end."""

    def present(self: Kin, _: ProcessState, parent: Parent | None, again: str) -> Parent | None:
        above = None if parent is None else self._processes.get(parent.process_id)
        if parent is None or above is None or above.generation != parent.generation:
            return parent
        return msgspec.structs.replace(parent, incarnation=above.incarnation)

    _telling(patch, present)


@caught_by("test_a_child_that_is_terminated_or_never_starts_has_ended_too")
def ends_by_request_are_untold(patch: pytest.MonkeyPatch) -> None:
    """G11: only a unit with an ending tells the parent."""

    def by_unit(self: Kin, child: ProcessState, parent: Parent, again: str) -> Parent | None:
        return None if child.owner is not None or not child.epoch else parent

    _telling(patch, by_unit)


@caught_by("test_an_ended_child_that_is_spawned_again_is_told_again")
def told_once_for_all(patch: pytest.MonkeyPatch) -> None:
    """Rule 9: who spawns a child that has ended waits for its end for ever."""
    _telling(patch, lambda _self, _child, parent, again: None if again else parent)


@caught_by("test_a_full_mailbox_takes_the_end_of_a_child")
def the_end_is_dropped_where_it_is_full(patch: pytest.MonkeyPatch) -> None:
    """Rule 14: an end that finds no room is told to nobody, ever."""
    deliver = ProcessState.deliver

    def bounded(self: ProcessState, new: NewEvent, now: datetime, mailbox_max: int) -> Delivered:
        if new.name.startswith(CHILD_ENDED):
            mailbox_max = 3
        return deliver(self, new, now, mailbox_max)

    patch.setattr(ProcessState, "deliver", bounded)


@caught_by("test_what_is_set_aside_has_not_ended")
def the_quarantined_have_ended(patch: pytest.MonkeyPatch) -> None:
    """Rule 4: a parent compensates because of a bad deployment of its child."""

    def any_ending(self: Kin, child: ProcessState, now: datetime) -> list[str]:
        return self._tell(child, child.parent, now, "")

    patch.setattr(Kin, "tell_parent", any_ending)


@caught_by("test_what_is_set_aside_has_not_ended")
def one_end_for_all_time(patch: pytest.MonkeyPatch) -> None:
    """Rule 9: a child that failed, was retried and completed is known as failed."""
    deliver = ProcessState.deliver

    def same(self: ProcessState, new: NewEvent, *rest: Any) -> Delivered:
        if new.name.startswith(CHILD_ENDED):
            event_id = new.event_id.rpartition(":")[0] + ":end"
            new = msgspec.structs.replace(new, event_id=event_id)
        return deliver(self, new, *rest)

    patch.setattr(ProcessState, "deliver", same)


@caught_by("test_the_end_of_a_child_wakes_its_parent")
def ends_wake_nobody(patch: pytest.MonkeyPatch) -> None:
    """C36: a parent that is parked sleeps on when its child has ended."""
    deliver = ProcessState.deliver

    def asleep(self: ProcessState, new: NewEvent, *rest: Any) -> Delivered:
        parked, at = self.parked, self.claimable_at
        answer = deliver(self, new, *rest)
        if parked and new.name.startswith(CHILD_ENDED):
            self.parked, self.claimable_at = parked, at
        return answer

    patch.setattr(ProcessState, "deliver", asleep)


# --- descendants -------------------------------------------------------------------------


def _below(patch: pytest.MonkeyPatch, change: Callable[..., list[ProcessState]]) -> None:
    """Let `change` say which of the descendants are asked."""
    below = Kin.unfinished_below
    patch.setattr(
        Kin, "unfinished_below", lambda self, process: change(self, process, below(self, process))
    )


@caught_by("test_a_request_to_cancel_is_one_to_all_descendants")
def only_children_are_asked(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: the children of the children go on."""
    _below(
        patch,
        lambda _self, process, found: [
            each for each in found if each.parent and each.parent.process_id == process.process_id
        ],
    )


@caught_by("test_a_request_to_cancel_is_one_to_all_descendants")
def the_finished_shield_their_children(patch: pytest.MonkeyPatch) -> None:
    """Rule 7: nobody looks below a descendant that has finished."""

    def shielded(
        self: Kin, _process: ProcessState, found: list[ProcessState]
    ) -> list[ProcessState]:
        return [
            each
            for each in found
            if each.parent and self._processes[each.parent.process_id].status not in FINISHED
        ]

    _below(patch, shielded)


@caught_by("test_who_ends_by_the_same_request_is_not_told")
def the_ended_are_told(patch: pytest.MonkeyPatch) -> None:
    """G10: parents that end by the same request find in their mailboxes what nobody will read."""
    tell = Kin._tell

    def told(self: Kin, child: ProcessState, parent: Parent | None, *rest: Any) -> list[str]:
        above = None if parent is None else self._processes.get(parent.process_id)
        if above is None or above.status is not Status.TERMINATED:
            return tell(self, child, parent, *rest)
        above.status = Status.RUNNING
        try:
            return tell(self, child, parent, *rest)
        finally:
            above.status = Status.TERMINATED

    patch.setattr(Kin, "_tell", told)


@caught_by("test_a_request_to_cancel_is_one_to_all_descendants")
def descendants_of_any_incarnation(patch: pytest.MonkeyPatch) -> None:
    """G9: what a purged process of that id has spawned is taken for this one's child."""

    def by_id(child: ProcessState, above: ProcessState) -> bool:
        return child.parent is not None and child.parent.process_id == above.process_id

    patch.setattr(_memory_kin, "_is_child", by_id)


# --- sends -------------------------------------------------------------------------------


@caught_by("test_a_receiver_that_cannot_take_it_refuses_the_whole_unit")
def sent_as_far_as_it_goes(patch: pytest.MonkeyPatch) -> None:
    """C38: of several events those before the refused one are delivered."""
    refused = Kin._refused_send

    def partly(self: Kin, unit: Unit, born: set[str]) -> UnitOutcome | None:
        answer = refused(self, unit, born)
        for event in unit.sends if answer is not None else ():
            receiver = self._processes.get(event.process_id)
            if receiver is None or event.process_id == (answer and answer.culprit):
                break
            receiver.deliver(event, receiver.updated_at, unit.mailbox_max)
        return answer

    patch.setattr(Kin, "_refused_send", partly)


@caught_by("test_a_receiver_that_cannot_take_it_refuses_the_whole_unit")
def each_event_finds_the_same_room(patch: pytest.MonkeyPatch) -> None:
    """Rule 14: room is looked for once for each event, and not for all of a unit."""
    refused = Kin._refused_send

    def alone(self: Kin, unit: Unit, born: set[str]) -> UnitOutcome | None:
        for event in unit.sends:
            answer = refused(self, msgspec.structs.replace(unit, sends=(event,)), born)
            if answer is not None:
                return answer
        return None

    patch.setattr(Kin, "_refused_send", alone)


@caught_by("test_a_child_that_is_spawned_can_be_sent_too_much")
def a_child_is_sent_what_it_cannot_hold(patch: pytest.MonkeyPatch) -> None:
    """F101: where there is no mailbox yet nobody counts, and what is too much is lost."""
    refused = Kin._refused_send

    def uncounted(self: Kin, unit: Unit, born: set[str]) -> UnitOutcome | None:
        sends = tuple(each for each in unit.sends if each.process_id not in born)
        return refused(self, msgspec.structs.replace(unit, sends=sends), born)

    patch.setattr(Kin, "_refused_send", uncounted)


@caught_by("test_a_receiver_that_cannot_take_it_refuses_the_whole_unit")
def nobody_is_named(patch: pytest.MonkeyPatch) -> None:
    """Style 7: who cannot take the event is not said."""
    refused = Kin._refused_send

    def silent(self: Kin, unit: Unit, born: set[str]) -> UnitOutcome | None:
        answer = refused(self, unit, born)
        return None if answer is None else UnitOutcome(refused=answer.refused)

    patch.setattr(Kin, "_refused_send", silent)


@caught_by("test_the_same_event_id_is_the_same_event")
def sent_events_are_refused_before_they_are_known(patch: pytest.MonkeyPatch) -> None:
    """C19: an event that has arrived is refused since its receiver has ended."""
    refused = Kin._refused_send

    def ended(self: Kin, unit: Unit, born: set[str]) -> UnitOutcome | None:
        renamed = tuple(
            msgspec.structs.replace(each, event_id=f"new {each.event_id}") for each in unit.sends
        )
        return refused(self, msgspec.structs.replace(unit, sends=renamed), born)

    patch.setattr(Kin, "_refused_send", ended)


@caught_by("test_a_repeated_unit_sends_nothing_twice")
def repeats_reach_out_again(patch: pytest.MonkeyPatch) -> None:
    """DESIGN 5: a repeated unit changes nothing in its process, and sends again."""
    apply = ProcessState.apply

    def again(
        self: ProcessState, host_id: str, unit: Unit, now: datetime, others: Reach | None = None
    ) -> UnitOutcome:
        if unit.epoch == self.epoch and unit.seq <= self.seq and others is not None:
            renamed = tuple(
                msgspec.structs.replace(each, event_id=f"again {each.event_id}")
                for each in unit.sends
            )
            others(self, msgspec.structs.replace(unit, sends=renamed), now)
        return apply(self, host_id, unit, now, others)

    patch.setattr(ProcessState, "apply", again)
