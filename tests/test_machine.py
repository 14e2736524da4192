"""The state machine itself is tested: equal storages pass, and each planted difference is found."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from durabletask._memory import MemoryStorage
from durabletask._memory_process import ProcessState
from durabletask.storage import (
    DONE,
    Claims,
    Clock,
    Control,
    Controlled,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    ProcessStorage,
    Query,
    Refusal,
    Unit,
    UnitOutcome,
)
from durabletask.testing import VirtualClock
from durabletask.testing._machine_steps import is_plain
from durabletask.testing.machine import StorageMachine

FEW = settings(
    max_examples=150,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


class MemoryMachine(StorageMachine):
    """Memory against memory: two hosts at a time, with leases that end."""

    hosts_max = 2
    lease_ttl_s = 15.0
    kind: type[MemoryStorage] = MemoryStorage

    def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        return self.kind(clock, lease_ttl_s=self.lease_ttl_s)

    async def reopen(self, storage: ProcessStorage, *, crash: bool) -> ProcessStorage:
        assert isinstance(storage, MemoryStorage)
        if crash:
            storage.crash()
        return storage


class Forgetful(MemoryStorage):
    """A crash takes back the newest checkpoint of each process."""

    def crash(self) -> None:
        super().crash()
        for process in self._processes.values():
            process.few = process.few[:-1]


class Undying(MemoryStorage):
    """A crash counts no deaths."""

    def crash(self) -> None:
        deaths = {key: each.deaths for key, each in self._processes.items()}
        super().crash()
        for key, each in self._processes.items():
            each.deaths = deaths[key]


class Deaf(MemoryStorage):
    """Claims bring no news."""

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        claims = await super().claim(lease, claim_id, names, count_max=count_max, rooms=rooms)
        fresh = tuple(each for each in claims.claimed if each.fresh)
        return msgspec.structs.replace(claims, claimed=fresh)


class Roomy(MemoryStorage):
    """Claims take of each name what there is."""

    async def claim(self, lease: Lease, claim_id: str, names: Sequence[str], **more: Any) -> Claims:
        return await super().claim(lease, claim_id, names, count_max=more["count_max"])


class Lavish(MemoryStorage):
    """A mailbox takes one more than it should."""

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        return await super().deliver(events, mailbox_max=mailbox_max + 1)


class Ruthless(MemoryStorage):
    """Purging says that it did not, and does."""

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        for process_id in process_ids:
            self._processes.pop(process_id, None)
        return [Refusal.UNKNOWN_PROCESS for _ in process_ids]


class Skipping(MemoryStorage):
    """Each page after the first leaves a process out."""

    async def list(self, query: Query) -> Page:
        page = await super().list(query)
        return page if query.cursor is None else Page(page.rows[1:], page.cursor)


class Numbered(MemoryStorage):
    """Numbers all creations in one row, and records late units of steps alone: its choices."""

    def __init__(self, clock: Clock, *, lease_ttl_s: float | None) -> None:
        super().__init__(clock, lease_ttl_s=lease_ttl_s)
        self.number = 40

    def _begin(self, new: NewProcess, now: datetime) -> ProcessState:
        process = super()._begin(new, now)
        self.number += 3
        process.incarnation = self.number
        return process

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        outcomes: list[UnitOutcome] = []
        for unit in units:
            outcomes += await super().commit(lease, [unit])
            process = self._processes.get(unit.process_id)
            may_be = process and outcomes[-1] == DONE and is_plain(unit) and not process.generation
            if process and may_be and unit.seq < process.seq:
                for each in unit.checkpoints:
                    if process.find(each.kind, each.key, each.index) is None:
                        process.record(msgspec.structs.replace(each, epoch=unit.epoch))
        return outcomes


class Obedient(MemoryStorage):
    """A late copy of a request is carried out again."""

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        for each in self._processes.values():
            if each.asked is not None:
                each.asked.request_ids = ()
        return await super().request(controls)


class Merciless(MemoryStorage):
    """What a retry puts aside is gone."""

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        answers = await super().request(controls)
        for each in self._processes.values():
            if each.asked is not None:
                each.asked.forgotten = ()
        return answers


class Childless(MemoryStorage):
    """Nobody is told of the end of a child."""

    def __init__(self, clock: Clock, *, lease_ttl_s: float | None) -> None:
        super().__init__(clock, lease_ttl_s=lease_ttl_s)
        self._kin._tell = lambda *_: []  # type: ignore[method-assign]


class Nostalgic(MemoryStorage):
    """The next generation keeps the checkpoints of the one before."""

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        outcomes: list[UnitOutcome] = []
        for unit in units:
            process = self._processes.get(unit.process_id)
            kept = process.checkpoints() if process else ()
            outcomes += await super().commit(lease, [unit])
            if unit.restart is not None and process is not None:
                for each in kept:
                    process.record(each)
        return outcomes


class Reborn(MemoryStorage):
    """An id that was purged begins again as its own first incarnation."""

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        answer = await super().purge(process_ids)
        self._purged.clear()
        return answer


class Hasty(MemoryStorage):
    """The last unit of a batch is acknowledged and not written."""

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        outcomes = list(await super().commit(lease, units[:-1]))
        return [*outcomes, UnitOutcome()][: len(units)]


def test_equal_storages_are_found_equal() -> None:
    """The control: with two hosts at a time and leases that end, nothing differs."""
    run_state_machine_as_test(MemoryMachine, settings=settings(FEW, max_examples=50))


def test_what_is_the_storages_choice_is_not_compared() -> None:
    """The control: other numbers for incarnations, and late steps recorded, are no difference."""
    machine = type("NumberedMachine", (MemoryMachine,), {"kind": Numbered})
    run_state_machine_as_test(machine, settings=FEW)


@pytest.mark.parametrize(
    "kind",
    [
        Forgetful,
        Undying,
        Deaf,
        Roomy,
        Lavish,
        Ruthless,
        Skipping,
        Obedient,
        Merciless,
        Childless,
        Nostalgic,
        Reborn,
        Hasty,
    ],
)
def test_a_planted_difference_is_found(kind: type[MemoryStorage]) -> None:
    """FAILURES 3.7: a storage that differs in one respect is told from the model in 4,000 runs.

    The rarest takes some 300; where the tests lie decides which ones are drawn.
    """
    machine = type("PlantedMachine", (MemoryMachine,), {"kind": kind})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings(FEW, max_examples=4_000))
