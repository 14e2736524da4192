"""Conformance: every action on every status in every hand, as a table.

What is refused changes nothing; what is granted leaves the status that the
table says, is news to whoever holds the process, and makes claimable what it
says that it does.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from durabletask.storage import (
    CLAIMABLE,
    FINISHED,
    Action,
    Ending,
    Form,
    Lease,
    Leave,
    Refusal,
    Status,
    may_follow,
)
from durabletask.testing._conformance.base import ConformanceBase
from durabletask.testing._conformance.world import World, unit

HANDS = ("held", "released", "parked", "a dead host's")
"""Of processes that were claimed once."""

UNTOUCHED = ("never claimed", "for later")

SUSPENDED_AS = Status.WAITING
"""What the suspended ones of the table are resumed as."""


class Case(NamedTuple):
    """One process of the table, and what is asked of it."""

    action: Action
    status: Status
    hand: str

    @property
    def process_id(self) -> str:
        """Its id."""
        return f"{self.action} {self.status} {self.hand}"


def cases(hand: str) -> Iterator[Case]:
    """Yield every case that there can be in a hand."""
    for action in Action:
        for status in Status:
            if hand in UNTOUCHED and status not in {Status.RUNNING, Status.SUSPENDED}:
                continue
            if hand != "released" and status in FINISHED | {Status.QUARANTINED}:
                continue
            yield Case(action, status, hand)


def refusal(action: Action, status: Status) -> Refusal | None:
    """Return what the table refuses."""
    if action is Action.RETRY:
        retries = status in {Status.FAILED, Status.QUARANTINED}
        return None if retries else Refusal.ILLEGAL_TRANSITION
    if status in FINISHED and (action, status) != (Action.TERMINATE, Status.TERMINATED):
        return Refusal.FINISHED
    if (action, status) == (Action.SUSPEND, Status.QUARANTINED):
        return Refusal.ILLEGAL_TRANSITION
    return None


def status_after(case: Case) -> Status:
    """Return the status that the table says; what is refused keeps its own."""
    if refusal(case.action, case.status) is not None:
        return case.status
    match case.action:
        case Action.TERMINATE:
            return Status.TERMINATED
        case Action.SUSPEND:
            return Status.SUSPENDED
        case Action.RETRY:
            return Status.RUNNING
        case Action.CANCEL if case.hand in UNTOUCHED:
            return Status.CANCELLED
        case Action.RESUME if case.status is Status.SUSPENDED:
            return Status.RUNNING if case.hand in UNTOUCHED else SUSPENDED_AS
    return case.status


def changes(case: Case) -> bool:
    """Return whether the request is granted, and changes anything."""
    if refusal(case.action, case.status) is not None:
        return False
    match case.action:
        case Action.CANCEL:
            return case.status is not Status.COMPENSATING
        case Action.TERMINATE:
            return case.status is not Status.TERMINATED
        case Action.SUSPEND:
            return case.status is not Status.SUSPENDED
        case Action.RESUME:
            return case.status is Status.SUSPENDED
    return True


def is_claimable(case: Case) -> bool:
    """Return whether the next host can take it when it has been asked."""
    if status_after(case) not in CLAIMABLE or case.hand in {"held", "for later"}:
        return False
    return case.hand != "parked" or (changes(case) and case.action is not Action.SUSPEND)


class RequestTableConformance(ConformanceBase):
    """Each action on each status, for each hand in a test of its own."""

    async def test_requests_to_what_a_host_holds(self) -> None:
        """Issue 4.2: granted or refused as the table says; its host keeps it and has the news."""
        await self._play("held")

    async def test_requests_to_what_was_released_or_has_ended(self) -> None:
        """Issue 4.2: granted or refused as the table says, for all nine statuses."""
        await self._play("released")

    async def test_requests_to_what_is_parked(self) -> None:
        """Issue 4.2: what is to act on a request is claimable at once, the rest sleeps on."""
        await self._play("parked")

    async def test_requests_to_what_was_never_claimed(self) -> None:
        """Issue 4.2: granted or refused as the table says."""
        await self._play("never claimed")

    async def test_requests_to_what_starts_later(self) -> None:
        """Issue 4.2: granted or refused as the table says, and none starts early by it."""
        await self._play("for later")

    async def test_requests_to_what_belongs_to_a_dead_host(self) -> None:
        """Issue 4.2: granted or refused as the table says, before anybody has fenced it."""
        await self._play("a dead host's")

    async def _play(self, hand: str) -> None:
        async with self.world() as w:
            lease = await w.host()
            played = list(cases(hand))
            for case in played:
                await self._stand(w, lease, case)
            await w.news(lease)
            if hand == "a dead host's":
                await w.kill(lease)
            for case in played:
                await self._ask(w, case)
            if hand == "a dead host's":
                lease = await w.host("host-2")
            claims = await w.claim(lease, count_max=1_000)
            taken = {each.row.process_id for each in claims.claimed if each.fresh}
            assert taken == {each.process_id for each in played if is_claimable(each)}
            told = {each.row.process_id for each in claims.claimed if not each.fresh}
            changed = {each.process_id for each in played if changes(each)}
            assert told == (changed if hand == "held" else set())

    async def _stand(self, w: World, lease: Lease, case: Case) -> None:
        """Bring a process into its status and its hand."""
        if case.hand in UNTOUCHED:
            later = w.clock.now() + timedelta(days=9) if case.hand == "for later" else None
            await w.add(case.process_id, start_at=later)
        else:
            await self._begin(w, lease, case)
        if case.status is Status.SUSPENDED:
            await w.ask(case.process_id, Action.SUSPEND)
            if case.hand == "held":
                await w.news(lease)

    async def _begin(self, w: World, lease: Lease, case: Case) -> None:
        row = await w.held(case.process_id, lease)
        if case.status in FINISHED | {Status.QUARANTINED}:
            ending = Ending(case.status, Form.ERROR, b"1")
            await w.done(lease, unit(row, 1, ending=ending))
            return
        status = SUSPENDED_AS if case.status is Status.SUSPENDED else case.status
        leave = {"released": Leave.RELEASED, "parked": Leave.PARKED}.get(case.hand)
        wake_at = w.clock.now() + timedelta(days=9)
        await w.done(lease, unit(row, 1, status=status, wake_at=wake_at, leave=leave))

    async def _ask(self, w: World, case: Case) -> None:
        before = await w.history(case.process_id)
        read = {"incarnation": before.row.incarnation, "epoch": before.row.epoch}
        fields = read if case.action is Action.RETRY else {}
        (answer,) = await w.request(w.control(case.process_id, case.action, **fields))
        after = await w.history(case.process_id)
        refused = refusal(case.action, case.status)
        assert answer.refused is refused, case
        if not changes(case):
            assert after == before, case
        if refused is not None:
            assert answer.row is None, case
            return
        assert answer.row == after.row, case
        assert after.row.status is status_after(case), case
        assert may_follow(case.status, after.row.status) or not changes(case), case
        assert (after.row.finished_at is None) == (after.row.status not in FINISHED), case
