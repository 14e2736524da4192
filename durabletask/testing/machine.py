"""A state machine that does the same to a storage and to the memory storage, and compares.

A backend joins by a subclass of a few lines, and runs its `TestCase` under
pytest. Needs Hypothesis. Where the seam leaves a choice (the cursor's text,
which of several equally long claimable processes is taken first, the time of
the last change, whether a late unit of steps alone is recorded), the machine
does not compare. Incarnations are translated: only that they rise is promised.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from durabletask._memory import MemoryStorage
from durabletask.errors import DurableTaskError
from durabletask.storage import (
    Claims,
    Control,
    Lease,
    NewEvent,
    NewProcess,
    ProcessRow,
    ProcessStorage,
    Query,
    Snapshot,
    Unit,
)
from durabletask.testing._machine_answers import comparable, rows_of
from durabletask.testing._machine_steps import (
    EVERYBODY,
    IDS,
    NAMES,
    ControlPlan,
    CreatePlan,
    UnitPlan,
    control_of,
    control_plans,
    create_plans,
    event_plans,
    is_plain,
    process_of,
    queries,
    unit_of,
    unit_plans,
)
from durabletask.testing._time import VirtualClock

MAILBOX_MAX = 2
REQUESTS_MAX = 12  # more than a storage remembers
TICK_S = 0.000_001  # after each step, so that what happened at different times has different times


class StorageMachine(RuleBasedStateMachine):
    """Two storages that must not differ.

    Attributes:
        hosts_max: How many hosts the storage takes at a time.
        lease_ttl_s: How long its leases hold; None for leases without end.
    """

    hosts_max: ClassVar[int] = 1
    lease_ttl_s: ClassVar[float | None] = None

    def open_storage(self, clock: VirtualClock) -> ProcessStorage:
        """Return a new, empty storage whose time is this clock."""
        raise NotImplementedError

    async def reopen(self, storage: ProcessStorage, *, crash: bool) -> ProcessStorage:
        """Return a new object over its data, closing the old one or leaving it as a kill does.

        A storage that does not outlive its object returns it as it is.
        """
        raise NotImplementedError

    async def compact(self, storage: ProcessStorage) -> None:
        """Tidy up, if the storage does that at all; nothing may change."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.model = MemoryStorage(self.clock, lease_ttl_s=self.lease_ttl_s)
        self.storage = self.loop.run_until_complete(self._opened())
        self.leases: list[Lease] = []
        self.lost: list[Lease] = []
        self.hosts = 0
        self.claims = 0
        self.repeatable: Callable[[ProcessStorage], Awaitable[Claims]] | None = None
        self.committed: tuple[Lease, tuple[Unit, ...]] | None = None
        self.incarnations: dict[str, dict[int, int]] = {}
        self.restarted: dict[tuple[str, int, int], int] = {}
        self.requests: list[Control] = []
        self.asked = 0
        self.open_host()

    async def _opened(self) -> ProcessStorage:
        return self.open_storage(self.clock)

    def teardown(self) -> None:
        """Close the storage and the loop."""
        self.loop.run_until_complete(self.storage.close())
        self.loop.close()

    def both(self, what: Callable[[ProcessStorage], Awaitable[Any]]) -> Any:
        """Do the same to both; return the answer, which is the same."""

        async def ask(storage: ProcessStorage) -> Any:
            try:
                return await what(storage)
            except DurableTaskError as error:
                return type(error)

        expected = self.loop.run_until_complete(ask(self.model))
        found = self.loop.run_until_complete(ask(self.storage))
        assert comparable(found) == comparable(expected)
        self._learn(expected, found)
        self.clock.advance(TICK_S)
        return expected

    def _learn(self, expected: Any, found: Any) -> None:
        """Take note of which incarnation of the model is which of the storage."""
        for ours, theirs in zip(rows_of(expected), rows_of(found), strict=True):
            known = self.incarnations.setdefault(ours.process_id, {})
            assert known.setdefault(ours.incarnation, theirs.incarnation) == theirs.incarnation
            in_order = [known[number] for number in sorted(known)]
            assert in_order == sorted(set(in_order))  # they rise
            if ours.parent is not None and theirs.parent is not None:
                of = self._number(ours.parent.process_id, ours.parent.incarnation)
                assert of == theirs.parent.incarnation

    def _number(self, process_id: str, incarnation: int) -> int:
        """Return what the storage calls an incarnation of the model."""
        known = self.incarnations[process_id]
        latest = max(known)
        return known.get(incarnation, known[latest] + incarnation - latest)

    def _commit(self, lease: Lease, units: Sequence[Unit]) -> None:
        before = {each.row.process_id: each.row for each in self._known()}
        units = [unit for unit in units if not self._is_open(unit)]
        theirs = [self._translated(unit) for unit in units]
        self.both(lambda storage: storage.commit(lease, units if storage is self.model else theirs))
        for each in self._known():
            row = before.get(each.row.process_id)
            if row is not None and each.row.generation > row.generation:
                self.restarted[row.process_id, row.incarnation, row.epoch] = min(
                    unit.seq
                    for unit in units
                    if unit.process_id == row.process_id
                    and unit.restart is not None
                    and unit.seq > row.seq
                )

    def _translated(self, unit: Unit) -> Unit:
        """Return a unit of the model as the storage is to get it."""
        number = self._number(unit.process_id, unit.incarnation)
        spawns = tuple(self._their_child(new) for new in unit.spawns)
        return msgspec.structs.replace(unit, incarnation=number, spawns=spawns)

    def _their_child(self, new: NewProcess) -> NewProcess:
        """Return a process to create as the storage is to get it."""
        if new.parent is None:
            return new
        number = self._number(new.parent.process_id, new.parent.incarnation)
        parent = msgspec.structs.replace(new.parent, incarnation=number)
        return msgspec.structs.replace(new, parent=parent)

    def _is_open(self, unit: Unit) -> bool:
        """Return whether the seam leaves it to the storage to record this unit or not."""
        (found,) = self.loop.run_until_complete(self.model.read([unit.process_id], history=True))
        if found is None or not is_plain(unit) or unit.seq > found.row.seq:
            return False
        if unit.seq < self.restarted.get((unit.process_id, unit.incarnation, unit.epoch), 0):
            return False  # of an earlier generation: never recorded
        there = {(each.kind, each.key, each.index) for each in found.checkpoints}
        return any((each.kind, each.key, each.index) not in there for each in unit.checkpoints)

    def _known(self) -> list[Snapshot]:
        found = self.loop.run_until_complete(self.model.read(EVERYBODY, history=True))
        return [each for each in found if each is not None]

    @initialize(names=st.lists(st.sampled_from(NAMES), min_size=4, max_size=4))
    def begin(self, names: list[str]) -> None:
        """Begin with four processes that the first host holds."""
        plans = [
            CreatePlan(process_id, name, 1, replace=False, start_in_s=None, tagged=False)
            for process_id, name in zip(IDS, names, strict=False)
        ]
        self.create(plans, held=True)

    # --- clients -------------------------------------------------------------------------

    @rule(plans=st.lists(create_plans, min_size=1, max_size=3), held=st.booleans())
    def create(self, plans: list[CreatePlan], held: bool) -> None:
        """Create processes, new ones and known ones, with a lease and without."""
        (above,) = self.loop.run_until_complete(self.model.read(IDS[:1]))
        of = None if above is None else above.row
        new = [process_of(plan, of, self.clock.now()) for plan in plans]
        theirs = [self._their_child(each) for each in new]
        lease = self.leases[0] if held and self.leases else None
        self.both(lambda storage: storage.create(new if storage is self.model else theirs, lease))

    @rule(events=st.lists(event_plans, min_size=1, max_size=4))
    def deliver(self, events: list[NewEvent]) -> None:
        """Deliver events, new ones and known ones."""
        self.both(lambda storage: storage.deliver(events, mailbox_max=MAILBOX_MAX))

    @rule(plans=st.lists(control_plans, min_size=1, max_size=3))
    def request(self, plans: list[ControlPlan]) -> None:
        """Ask something of processes, and repeat what was asked before."""
        found = self._known()
        controls = []
        for plan in plans:
            if plan.repeats and self.requests:
                controls.append(self.requests[-plan.repeats :][0])
                continue
            self.asked += 1
            controls.append(control_of(plan, found, f"request {self.asked}"))
        self.requests = [*self.requests, *controls][-REQUESTS_MAX:]
        theirs = [
            msgspec.structs.replace(
                each, incarnation=self._number(each.process_id, each.incarnation)
            )
            if each.incarnation
            else each
            for each in controls
        ]
        self.both(lambda storage: storage.request(controls if storage is self.model else theirs))

    @rule(
        query=queries,
        process_ids=st.lists(st.sampled_from(EVERYBODY), max_size=3),
        again=st.booleans(),
    )
    def list_and_purge(self, query: Query, process_ids: list[str], again: bool) -> None:
        """List page by page, each storage by its own cursors; purge what has finished of these.

        Args:
            query: What to list.
            process_ids: What to purge.
            again: What was purged is created anew, with no past and a higher number.
        """

        async def pages(storage: ProcessStorage) -> tuple[ProcessRow, ...]:
            rows: tuple[ProcessRow, ...] = ()
            cursor = None
            while True:
                page = await storage.list(msgspec.structs.replace(query, cursor=cursor))
                rows, cursor = rows + page.rows, page.cursor
                if cursor is None:
                    return rows

        self.both(pages)
        answers = self.both(lambda storage: storage.purge(process_ids))
        gone = [each for each, refused in zip(process_ids, answers, strict=True) if not refused]
        if again and gone:
            self.create([CreatePlan(each, NAMES[0], 1, False, None, False) for each in gone], False)

    # --- hosts ---------------------------------------------------------------------------

    @precondition(lambda self: len(self.leases) < self.hosts_max)
    @rule()
    def open_host(self) -> None:
        """Open the lease of a new host."""
        self.hosts += 1
        host_id = f"host-{self.hosts}"
        self.leases.append(self.both(lambda storage: storage.open_lease(host_id, "label")))

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        names=st.sampled_from((NAMES, NAMES, NAMES[:1], NAMES[1:])),
        count_max=st.sampled_from((0, 1, 2, 100, 100)),
        rooms=st.sampled_from(({}, {}, {NAMES[0]: 0}, {NAMES[0]: 1}, {NAMES[0]: 1, NAMES[1]: 2})),
    )
    def claim(
        self,
        data: st.DataObject,
        names: Sequence[str],
        count_max: int,
        rooms: Mapping[str, int],
    ) -> None:
        """Claim some, or only hear the news."""
        lease = data.draw(st.sampled_from(self.leases))
        since = {name: self.model.claimable_since([name]) for name in names}
        rooms = {name: _beyond_ties(since.get(name, ()), room) for name, room in rooms.items()}
        oldest = sorted(at for name, ats in since.items() for at in ats[: rooms.get(name)])
        count_max = _beyond_ties(oldest, count_max)
        self.claims += 1
        claim_id = f"claim-{self.claims}"

        async def ask(storage: ProcessStorage) -> Claims:
            return await storage.claim(lease, claim_id, names, count_max=count_max, rooms=rooms)

        claims = self.both(ask)
        took = isinstance(claims, Claims) and claims.claimed
        self.repeatable = ask if took else None

    def commit(self, data: st.DataObject, plans: list[UnitPlan]) -> None:
        """Commit units, most of them legal, nearly always with a lease that holds."""
        lease = data.draw(st.sampled_from(self.leases * 15 + self.lost[-1:]))
        if not any(each.row.owner for each in self._known()):
            self.claim(data, NAMES, 100, {})
        found = {each.row.process_id: each for each in self._known()}
        held = [each for each in found.values() if each.row.owner == lease.host_id]
        seqs = {key: each.row.seq for key, each in found.items()}
        highest = dict(seqs)
        units = []
        for plan in plans:
            among = held if plan.which >= 0 and held else list(found.values())
            if not among:
                continue
            chosen = among[plan.which % len(among)]
            row = chosen.row
            mailbox = [each.position for each in chosen.events if not each.consumed]
            unit = unit_of(plan, row, mailbox, seqs[row.process_id], self.clock.now())
            # What is known by its record, and not by its number, must not share that with another.
            adds = is_plain(unit) or unit.spawns or unit.sends
            if adds and unit.seq <= highest[row.process_id]:
                unit = msgspec.structs.replace(unit, seq=highest[row.process_id] + 1)
            seqs[row.process_id] = unit.seq
            highest[row.process_id] = max(unit.seq, highest[row.process_id])
            units.append(unit)
        self.committed = (lease, tuple(units))
        self._commit(lease, units)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), plan=unit_plans)
    def commit_one(self, data: st.DataObject, plan: UnitPlan) -> None:
        """Commit a lone unit."""
        self.commit(data, [plan])

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), plans=st.lists(unit_plans, min_size=1, max_size=4))
    def commit_some(self, data: st.DataObject, plans: list[UnitPlan]) -> None:
        """Commit a batch."""
        self.commit(data, plans)

    @rule(claim=st.booleans())
    def repeat(self, claim: bool) -> None:
        """Repeat the latest claim, or the latest batch, as after a lost answer."""
        if claim and self.repeatable is not None:
            self.both(self.repeatable)
        elif self.committed is not None:
            self._commit(*self.committed)

    # --- time, tidying, trouble ----------------------------------------------------------

    @rule(
        data=st.data(),
        what=st.sampled_from(
            ("wait 1", "wait 10", "wait 30", "compact", "close a host", "reopen", "compact, crash")
        ),
    )
    def house_keeping(self, data: st.DataObject, what: str) -> None:
        """Let time pass; compact; close a host; stop in good order, or die, and start again."""
        if what.startswith("wait"):
            self._wait(float(what.removeprefix("wait ")))
        if "compact" in what:
            self.loop.run_until_complete(self.compact(self.storage))
        if "crash" in what:
            self._crash()
        if what == "close a host" and self.leases:
            self._close_host(data.draw(st.sampled_from(self.leases)))
        if what == "reopen":
            while self.leases:
                self._close_host(self.leases[0])
            self.storage = self.loop.run_until_complete(self.reopen(self.storage, crash=False))
            self.open_host()

    def _wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for lease in self.leases:
            self.both(partial(_renew, lease=lease))

    def _close_host(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self.lost.append(lease)
        self.both(lambda storage: storage.close_lease(lease))

    def _crash(self) -> None:
        """No lease survives; what was answered does."""
        self.lost += self.leases
        self.leases.clear()
        self.model.crash()
        self.storage = self.loop.run_until_complete(self.reopen(self.storage, crash=True))
        self.open_host()
        self.both(lambda storage: storage.claim(self.leases[0], "after a crash", (), count_max=0))

    # --- what must be equal after each step ----------------------------------------------

    @invariant()
    def holds_the_same(self) -> None:
        """Every process with its whole history is the same in both."""
        self.both(lambda storage: storage.read([*EVERYBODY, "nobody"], history=True))


async def _renew(storage: ProcessStorage, lease: Lease) -> Lease:
    return await storage.renew(lease)


def _beyond_ties(since: Sequence[datetime], count: int) -> int:
    """Return how many to take: which of several that are as old goes first is nobody's promise."""
    while 0 < count < len(since) and since[count - 1] == since[count]:
        count += 1
    return count
