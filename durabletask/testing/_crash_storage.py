"""A storage between a program and its real storage, in which any call can go wrong.

Responsible for counting the calls and for what becomes of one: it is the
program's last, it is refused, or its answer is lost. Refuses to know what the
calls mean, and how the program dies.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from durabletask.errors import StorageUnavailableError, StorageUnknownError
from durabletask.storage import (
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    Hints,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    ProcessStorage,
    Query,
    Refusal,
    Snapshot,
    Unit,
    UnitOutcome,
)

T = TypeVar("T")


class Fate(StrEnum):
    """What may become of a call, besides an answer."""

    DIE_BEFORE = "the program dies, and the storage never hears of the call"
    DIE_AFTER = "the program dies when the storage has done it and before it hears of that"
    UNAVAILABLE = "refused for now; nothing is written"
    UNKNOWN_LOST = "the answer is lost, and nothing was written"
    UNKNOWN_DONE = "the answer is lost, and it was done"

    @property
    def deadly(self) -> bool:
        """Whether the program does not survive it."""
        return self in (Fate.DIE_BEFORE, Fate.DIE_AFTER)


@dataclass(frozen=True, slots=True)
class StorageCall:
    """One call of the storage.

    Attributes:
        number: From 1, in the order in which the calls begin.
        method: Of `ProcessStorage`.
        about: What it is about, for a reader: ids and keys, no values.
    """

    number: int
    method: str
    about: str

    def __str__(self) -> str:
        return f"call {self.number}, {self.method}({self.about})"


Plan = Callable[[StorageCall], Fate | None]
"""Decides what becomes of a call; None lets it through."""

Witness = Callable[[StorageCall, Any, Any], None]
"""Hears of each call that the storage has done: the call, its arguments and the answer."""


class CrashingStorage:
    """Wraps a storage and lets its plan decide what becomes of each call.

    Hints go through if the wrapped storage gives any.
    """

    def __init__(
        self,
        storage: ProcessStorage,
        plan: Plan,
        die: Callable[[], Awaitable[NoReturn]],
        witness: Witness | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """Wrap a storage for one life of a program.

        Args:
            storage: The real one.
            plan: What becomes of each call.
            die: Ends the program and never returns: `MortalLoop.kill`, or in a
                program of its own `os.kill(os.getpid(), SIGKILL)`.
            witness: Hears what the storage has really done, lost answers too.
            latency_s: How long each call takes on its way there, and each answer on its way back.
        """
        self.calls: list[StorageCall] = []
        """Every call so far."""
        self._storage = storage
        self._plan = plan
        self._die = die
        self._witness = witness
        self._latency_s = latency_s
        self._unsubscribe: list[Callable[[], None]] = []
        if isinstance(storage, Hints):
            self._hints = storage
            # Only then: a host sleeps longer where it is told that there will be hints.
            self.subscribe = self._subscribe

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; see `ProcessStorage`."""
        about = ", ".join(new.process_id for new in processes)
        return await self._call(
            "create", about, processes, lambda: self._storage.create(processes, lease)
        )

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes; see `ProcessStorage`."""
        about = ", ".join(f"{event.process_id}: {event.name}" for event in events)
        return await self._call(
            "deliver", about, events, lambda: self._storage.deliver(events, mailbox_max=mailbox_max)
        )

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        """Ask something of processes; see `ProcessStorage`."""
        about = ", ".join(f"{each.process_id}: {each.action}" for each in controls)
        return await self._call("request", about, controls, lambda: self._storage.request(controls))

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        """Read processes; see `ProcessStorage`."""
        about = ", ".join(process_ids)
        return await self._call(
            "read", about, process_ids, lambda: self._storage.read(process_ids, history=history)
        )

    async def list(self, query: Query) -> Page:
        """List processes; see `ProcessStorage`."""
        return await self._call("list", "", query, lambda: self._storage.list(query))

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        """Remove finished processes; see `ProcessStorage`."""
        about = ", ".join(process_ids)
        return await self._call(
            "purge", about, process_ids, lambda: self._storage.purge(process_ids)
        )

    async def open_lease(self, host_id: str, label: str) -> Lease:
        """Begin a host's right to write; see `ProcessStorage`."""
        return await self._call(
            "open_lease", "", host_id, lambda: self._storage.open_lease(host_id, label)
        )

    async def renew(self, lease: Lease) -> Lease:
        """Prolong a lease; see `ProcessStorage`."""
        return await self._call("renew", "", lease, lambda: self._storage.renew(lease))

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        """Take claimable processes; see `ProcessStorage`."""
        return await self._call(
            "claim",
            "",
            claim_id,
            lambda: self._storage.claim(lease, claim_id, names, count_max=count_max, rooms=rooms),
        )

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units; see `ProcessStorage`."""
        about = "; ".join(_unit_text(unit) for unit in units)
        return await self._call("commit", about, units, lambda: self._storage.commit(lease, units))

    async def close_lease(self, lease: Lease) -> None:
        """End a lease; see `ProcessStorage`."""
        await self._call("close_lease", "", lease, lambda: self._storage.close_lease(lease))

    async def close(self) -> None:
        """Give back files and connections; see `ProcessStorage`."""
        await self._call("close", "", None, self._storage.close)

    def cut_off(self) -> None:
        """Give the dead program no more hints; for whoever has killed it."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    def _subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        unsubscribe = self._hints.subscribe(callback)
        self._unsubscribe.append(unsubscribe)
        return unsubscribe

    async def _call(
        self, method: str, about: str, arguments: Any, act: Callable[[], Awaitable[T]]
    ) -> T:
        call = StorageCall(len(self.calls) + 1, method, about)
        self.calls.append(call)
        fate = self._plan(call)
        if fate is Fate.DIE_BEFORE:
            await self._die()
        if fate is Fate.UNAVAILABLE:
            raise StorageUnavailableError(f"{call}: {fate}")
        if fate is Fate.UNKNOWN_LOST:
            raise StorageUnknownError(f"{call}: {fate}")
        await self._travel()
        answer = await act()
        if self._witness is not None:
            self._witness(call, arguments, answer)
        if fate is Fate.DIE_AFTER:
            await self._die()
        await self._travel()
        if fate is Fate.UNKNOWN_DONE:
            raise StorageUnknownError(f"{call}: {fate}")
        return answer

    async def _travel(self) -> None:
        if self._latency_s:
            await asyncio.sleep(self._latency_s)


def _unit_text(unit: Unit) -> str:
    parts = [f"{each.kind} {each.key!r} {each.form}" for each in unit.checkpoints]
    if unit.status is not None:
        parts.append(f"status {unit.status}")
    if unit.ending is not None:
        parts.append(f"ending {unit.ending.status}")
    if unit.leave is not None:
        parts.append(f"leave {unit.leave}")
    parts += [f"spawn {child.process_id!r}" for child in unit.spawns]
    parts += [f"send {event.name!r} to {event.process_id!r}" for event in unit.sends]
    if unit.meets_cancel:
        parts.append("meets cancel")
    if unit.restart is not None:
        parts.append("restart")
    return f"{unit.process_id}: {', '.join(parts)}"
