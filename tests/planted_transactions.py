"""Mistakes that storages make with processes that are held, and with transactions of the user's."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from durabletask._memory import MemoryStorage
from durabletask.storage import (
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Refusal,
    Unit,
    UnitOutcome,
)
from tests.engine.database import Connection, Database
from tests.planted_storage import planted

Body = Callable[[Any], Awaitable[bytes]]


@planted
def busy_for_the_whole_batch(patch: pytest.MonkeyPatch) -> None:
    """G13: one process that is held makes every unit of the batch wait."""
    commit = MemoryStorage.commit

    async def all_or_none(self: MemoryStorage, lease: Lease, units: Sequence[Unit]) -> Any:
        if any(self._busy[unit.process_id] for unit in units):
            return [UnitOutcome(Refusal.BUSY) for _ in units]
        return await commit(self, lease, units)

    patch.setattr(MemoryStorage, "commit", all_or_none)


@planted
def busy_only_once(patch: pytest.MonkeyPatch) -> None:
    """G6: a later unit of the held process in the same batch is written before the first."""
    commit = MemoryStorage.commit

    async def overtaking(self: MemoryStorage, lease: Lease, units: Sequence[Unit]) -> Any:
        outcomes = list(await commit(self, lease, units))
        for place, unit in enumerate(units):
            if self._busy[unit.process_id] and place:
                before, self._busy[unit.process_id] = self._busy[unit.process_id], 0
                outcomes[place : place + 1] = await commit(self, lease, [unit])
                self._busy[unit.process_id] = before
        return outcomes

    patch.setattr(MemoryStorage, "commit", overtaking)


@planted
def busy_is_unknown_process(patch: pytest.MonkeyPatch) -> None:
    """G10: an event to a held process is refused for good."""
    deliver = MemoryStorage._deliver

    def final(self: MemoryStorage, event: NewEvent, *rest: Any) -> Delivered:
        if self._busy[event.process_id]:
            return Delivered(Refusal.UNKNOWN_PROCESS)
        return deliver(self, event, *rest)

    patch.setattr(MemoryStorage, "_deliver", final)


@planted
def creation_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """G9: a creation in the user's transaction is there before that is committed."""

    async def at_once(self: Database, connection: Any, process: NewProcess) -> Created:
        self._check(connection)
        return self._create(process, None, self._now())

    patch.setattr(Database, "create_in", at_once)


@planted
def a_connection_without_a_transaction_will_do(patch: pytest.MonkeyPatch) -> None:
    """Bad input: what is written without a transaction is committed at once, or never."""

    def lenient(self: Database, connection: Any) -> None:
        if isinstance(connection, Connection):
            connection.is_open = True

    patch.setattr(Database, "_check", lenient)


@planted
def delivery_locks_the_process(patch: pytest.MonkeyPatch) -> None:
    """G13: an event in an open transaction of the user's stops the process that it is for."""
    deliver_in = Database.deliver_in

    async def locking(
        self: Database, connection: Any, event: NewEvent, *, mailbox_max: int
    ) -> Delivered:
        answer = await deliver_in(self, connection, event, mailbox_max=mailbox_max)
        connection.locks.enter_context(self.hold(event.process_id))
        return answer

    patch.setattr(Database, "deliver_in", locking)


@planted
def rows_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """Issue 3.5: the body commits by itself, and the record follows in a commit of its own."""
    transact = Database.transact

    async def two_commits(self: Database, lease: Lease, unit: Unit, body: Body) -> UnitOutcome:
        async def eager(connection: Any) -> bytes:
            payload = await body(connection)
            connection.commit()
            connection.begin()
            return payload

        return await transact(self, lease, unit, eager)

    patch.setattr(Database, "transact", two_commits)


@planted
def held_and_yet_committed(patch: pytest.MonkeyPatch) -> None:
    """F003: a repeat is told what is held, and what its body wrote is committed a second time."""
    transact = Database.transact

    async def twice(self: Database, lease: Lease, unit: Unit, body: Body) -> UnitOutcome:
        outcome = await transact(self, lease, unit, body)
        if outcome.held:
            await body(Connection(self))
        return outcome

    patch.setattr(Database, "transact", twice)


@planted
def fence_checked_only_before(patch: pytest.MonkeyPatch) -> None:
    """G5 F016: the fence is looked at before the body runs, and not with the commit."""
    transact = Database.transact

    async def early(self: Database, lease: Lease, unit: Unit, body: Body) -> UnitOutcome:
        refused = self._refusal(lease, unit)
        if refused is not None:
            return refused
        with pytest.MonkeyPatch.context() as blind:
            blind.setattr(Database, "_refusal", lambda *_: None)
            return await transact(self, lease, unit, body)

    patch.setattr(Database, "transact", early)


@planted
def transaction_raises_the_sequence(patch: pytest.MonkeyPatch) -> None:
    """G6: units of a lower seq that are on their way count as written, and are lost."""
    transact = Database.transact

    async def counting(self: Database, lease: Lease, unit: Unit, body: Body) -> UnitOutcome:
        outcome = await transact(self, lease, unit, body)
        process = self._processes[unit.process_id]
        process.seq = max(process.seq, unit.seq)
        return outcome

    patch.setattr(Database, "transact", counting)
