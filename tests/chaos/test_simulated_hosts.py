"""Many simulated lives of three hosts, judged by the checker; and planted bugs that it must see."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

import durabletask._claiming as _claiming
import tests.planted_keeping
import tests.planted_writing  # noqa: F401  (importing plants them)
from durabletask._memory_hosts import Host, Hosts
from durabletask._memory_process import ProcessState
from durabletask.errors import StorageUnavailableError, StorageUnknownError
from durabletask.storage import (
    DONE,
    Delivered,
    Lease,
    NewEvent,
    ProcessStorage,
    Unit,
    UnitOutcome,
)
from durabletask.testing.history import tally
from tests.chaos.simulation import FaultyWire, Wrap, play
from tests.planted_storage import PLANTS
from tests.test_crash_planted import acknowledged_early, newest_event_first, overwritten

SEEDS = 40
CAUGHT_BY = 60
"""So many seeds a planted bug may need to be seen."""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Keep the warnings of a hundred outages out of the report."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_no_promise_is_broken() -> None:
    """G1-G12 F016 F051-F053 F058 F060 F080: outages, lost answers, zombies and deaths, 40 lives."""
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        played = play(seed)
        assert played.violations == [], f"seed {seed}"
        seen += tally(played.history)
    print(seen)
    # A harness in which nothing goes wrong proves nothing.
    assert seen["commit info StorageUnknownError"] > 100
    assert seen["commit fail LeaseLostError"] > 5
    assert seen["execute invoke"] > SEEDS * 60


@pytest.mark.soak
def test_no_promise_is_broken_in_many_lives() -> None:
    """G1-G12: as above, 10,000 lives."""
    for seed in range(10_000):
        assert play(seed).violations == [], f"seed {seed}"


# --- planted bugs ------------------------------------------------------------------------


class Between:
    """What a backend puts between the engine and its line; a mistake overrides a method."""

    def __init__(self, wire: FaultyWire) -> None:
        self.wire = wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wire, name)


class AcknowledgesFirst(Between):
    """C18: a commit is answered when it was sent, not when it is done."""

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        task = asyncio.ensure_future(self.wire.commit(lease, units))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return [DONE] * len(units)


class TakesUnknownForFailure(Between):
    """C19: a lost answer is told as "nothing was written"."""

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        try:
            return await self.wire.deliver(events, mailbox_max=mailbox_max)
        except StorageUnknownError as error:
            raise StorageUnavailableError(str(error)) from error


class TakesUnknownForSuccess(Between):
    """C20: a lost answer is told as done."""

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        try:
            return await self.wire.commit(lease, units)
        except StorageUnknownError:
            return [DONE] * len(units)


class ReadsAndDecides(Between):
    """C21: after a lost answer it reads; what is not there is taken for not written."""

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        try:
            return await self.wire.deliver(events, mailbox_max=mailbox_max)
        except StorageUnknownError as error:
            found = await self.wire.storage.read([events[0].process_id], history=True)
            for event in found[0].events if found[0] else ():
                if event.event_id == events[0].event_id:
                    return [Delivered(event=event)]
            raise StorageUnavailableError(str(error)) from error


class ConsumesApart(Between):
    """C30: what a unit records and what it consumes are two transactions."""

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        without = [msgspec.structs.replace(unit, consumes=()) for unit in units]
        outcomes = await self.wire.commit(lease, without)
        for unit, outcome in zip(units, outcomes, strict=True):
            mailbox = self.wire.storage._processes[unit.process_id].mailbox
            for position in unit.consumes if outcome == DONE else ():
                try:
                    await self.wire.before("consume")
                except (StorageUnavailableError, StorageUnknownError):
                    continue
                if mailbox is not None and position in mailbox.unconsumed:
                    mailbox.consume(position)
        return outcomes


def backend(mistake: Callable[[FaultyWire], Any]) -> Wrap:
    def wrap(wire: FaultyWire) -> ProcessStorage:
        between: ProcessStorage = mistake(wire)
        return between

    return wrap


def caught(by: set[str], wrap: Wrap = lambda wire: wire) -> bool:
    """Play until the checker reports one of these; return whether it did."""
    return any(
        by & {each.invariant for each in play(seed, wrap).violations} for seed in range(CAUGHT_BY)
    )


BACKENDS: dict[type[Between], set[str]] = {
    AcknowledgesFirst: {"I1"},
    TakesUnknownForFailure: {"I9", "I22"},
    TakesUnknownForSuccess: {"I1"},
    ReadsAndDecides: {"I9", "I22", "I8"},
    ConsumesApart: {"I11", "I23"},
}


@pytest.mark.parametrize("mistake", BACKENDS, ids=[each.__name__ for each in BACKENDS])
def test_a_backend_with_a_mistake_is_caught(mistake: type[Between]) -> None:
    """C18-C21 C30: each breaks a promise that the checker sees, and names."""
    assert caught(BACKENDS[mistake], backend(mistake)), mistake.__doc__


STORAGES = {
    "no_fence": {"I2", "I8", "I9"},  # C01
    "epoch_reused": {"I7"},  # C04
    "renewal_revives": {"I9"},  # C06 C07
    "claim_without_limit": {"I7"},  # C13
    "no_deduplication": {"I11"},  # C31
    "last_in_first_out": {"I12"},  # C32
    "owners_hear_nothing": {"I16"},  # C36
}


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_with_a_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """C01 C04 C06 C13 C31 C32 C36: the mistakes that memory can have, seen in what hosts do."""
    PLANTS[name](monkeypatch)
    assert caught(STORAGES[name]), PLANTS[name].__doc__


def hints_without_polling(plant: pytest.MonkeyPatch) -> None:
    """C36: a host looks only when it is told to."""
    plant.setattr(_claiming, "POLL_MIN_S", 1e9)
    plant.setattr(_claiming.Claiming, "_idle_max_s", lambda self: 1e9)


def unfenced(plant: pytest.MonkeyPatch) -> None:
    """C01: nobody looks whose lease and which epoch it is; what comes is recorded as it is."""
    apply = ProcessState.apply

    def careless(self: ProcessState, host_id: str, unit: Unit, *rest: Any) -> UnitOutcome:
        mine = self.epoch, self.seq, self.owner
        self.epoch, self.owner = unit.epoch, host_id
        if unit.epoch != mine[0]:
            self.seq = unit.seq - 1
        outcome = apply(self, host_id, unit, *rest)
        if unit.epoch != mine[0]:
            self.epoch, self.seq, self.owner = mine
        return outcome

    plant.setattr(Hosts, "holding", lambda _, lease: Host(lease.host_id, lease.label))
    plant.setattr(ProcessState, "apply", careless)


ENGINES: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    acknowledged_early: {"I3"},
    hints_without_polling: {"I16"},
    unfenced: {"I8", "I9"},
    newest_event_first: {"I12"},
    overwritten: {"I5", "I1", "I3"},
}


@pytest.mark.parametrize("plant", ENGINES, ids=[each.__name__ for each in ENGINES])
def test_an_engine_with_a_mistake_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C01 C15-C18 C32 C36: what the engine does wrong shows in what it asks of the storage."""
    plant(monkeypatch)
    assert caught(ENGINES[plant]), plant.__doc__
