"""The checker raises no false alarm: random runs against the memory storage break no promise."""

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from durabletask._memory import MemoryStorage
from durabletask.storage import Kind, Lease, ProcessStorage, Unit
from durabletask.testing import VirtualClock
from durabletask.testing._machine_steps import UnitPlan
from durabletask.testing.history import HistoryList, RecordingStorage, check, dump
from durabletask.testing.machine import StorageMachine


class RecordedMachine(StorageMachine):
    """Memory against memory, one of them recorded and judged at the end."""

    hosts_max = 2
    lease_ttl_s = 15.0

    def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        self.inner = MemoryStorage(clock, lease_ttl_s=self.lease_ttl_s)
        self.history = HistoryList()
        self.seqs = itertools.count(1)
        return RecordingStorage(self.inner, self.history)

    async def reopen(self, storage: ProcessStorage, *, crash: bool) -> ProcessStorage:
        if crash:
            self.inner.crash()
        return storage

    def commit(self, data: st.DataObject, plans: list[UnitPlan]) -> None:
        """Commit what a host would: each unit has a number of its own, each note its form."""
        super().commit(data, [_as_of_a_host(plan) for plan in plans])

    def _commit(self, lease: Lease, units: Sequence[Unit]) -> None:
        """Give units numbers that no other has, and repeat none.

        The repeat of a refused unit is answered DONE once a later one was written, which no
        history can tell from a record.
        """
        if isinstance(units, list):
            numbered = [msgspec.structs.replace(unit, seq=next(self.seqs)) for unit in units]
            super()._commit(lease, numbered)

    def teardown(self) -> None:
        final = self.loop.run_until_complete(dump(self.inner))
        super().teardown()
        found = check(self.history.operations, final, effects=False)
        # No host repeats a client's creation with its lease, as the machine does.
        wrong = [str(each) for each in found if "and to creation" not in each.what]
        assert wrong == []


def _as_of_a_host(plan: UnitPlan) -> UnitPlan:
    def mended(checkpoint: Any) -> Any:
        kind = Kind.DO if checkpoint.kind is Kind.RETRY else checkpoint.kind
        replaces = kind is Kind.VAR
        # Keys are of one kind: what is a variable is no step.
        key = f"{kind} {checkpoint.key}"
        return msgspec.structs.replace(checkpoint, kind=kind, key=key, replaces=replaces)

    checkpoints = {
        (each.kind, each.key, each.index): each for each in map(mended, plan.checkpoints)
    }
    # A unit that restarts and leaves is answered DONE for a terminated process, and only leaves.
    leave = None if plan.reach.restarts else plan.leave
    return plan._replace(
        leave=leave,
        seq_step=1,
        incarnation_step=0,
        epoch_step=0,
        checkpoints=tuple(checkpoints.values()),
    )


def test_random_runs_break_no_promise() -> None:
    """No false alarm: what the model does in random runs of 40 steps is right by the checker."""
    run_state_machine_as_test(
        RecordedMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
