"""All writes of a host's processes, in order per process, batch by batch.

Responsible for what may be repeated and what ends the writing: an outage, a
process that is busy, a lease that is lost. How batches form is for `_group`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from durabletask._busy import BusyUnits
from durabletask._errors import (
    LeaseLostError,
    StorageError,
    StorageFailedError,
    StorageRewoundError,
)
from durabletask._group import GroupCommit
from durabletask._lease import contract_broken
from durabletask._model import DONE, Lease, Refusal, Unit, UnitOutcome
from durabletask._refused import transactions_of
from durabletask._repeat import BACKOFF_MAX_S, BACKOFF_MIN_S, MAY_PASS, loudness
from durabletask._storage import ProcessStorage

_log = logging.getLogger("durabletask")

BUSY = UnitOutcome(refused=Refusal.BUSY)


class Standing(Protocol):
    """A run that can say, at the moment of a flush, what its status has become."""

    def standing(self) -> Unit | None:
        """Return the unit that records it, or None if that is recorded already."""
        ...


class Writer:
    """All writes of a host's processes, in order per process, through one group commit.

    During an outage it repeats the same batch for as long as the lease lasts;
    user code only sees a step that takes long.
    """

    def __init__(
        self,
        storage: ProcessStorage,
        lease: Lease,
        *,
        units_max: int,
        bytes_max: int,
        on_broken: Callable[[Exception], None],
    ) -> None:
        self.storage = storage
        self._lease = lease
        self._bytes_max = bytes_max
        self._on_broken = on_broken
        self._restless: list[Standing] = []
        self._group = GroupCommit(self._flush, units_max, self._gather)
        self._busy = BusyUnits(self._group.nudge)
        self.task = self._group.task
        self.submit = self._group.submit
        self.follow = self._group.follow
        self.close = self._group.close
        self.abandon = self._group.abandon

    def mark(self, run: Standing) -> None:
        """Have `run.standing()` asked when the next batch leaves.

        Asked then and not now, so that a wait that begins and ends within one
        batch, or a step that starts beside it, costs no record of its own.
        """
        self._restless.append(run)
        self._group.nudge()

    async def transact(
        self,
        unit: Unit,
        body: Callable[[Any], Awaitable[bytes]],
        ready: Callable[[], Awaitable[None]],
    ) -> UnitOutcome:
        """Run a body in a transaction that records its result, until the outcome is known.

        Not in a batch: it takes as long as the body does. Where the storage has
        refused or the answer was lost, the body runs again.

        Args:
            unit: As `Transactions.transact` takes it.
            body: The same.
            ready: Awaited before each time that the body may run.

        Raises:
            Exception: What the body raised, or made the database raise in the
                end; nothing was written.
            StorageError: Nothing can be recorded any more.
        """
        transactions = transactions_of(self.storage)
        raised: BaseException | None = None

        async def watched(connection: Any) -> bytes:
            nonlocal raised
            raised = None
            try:
                return await body(connection)
            except BaseException as error:
                raised = error
                raise

        wait_s = BACKOFF_MIN_S
        while True:
            await ready()
            try:
                outcome = await transactions.transact(self._lease, unit, watched)
                if outcome.refused is not Refusal.BUSY:
                    return outcome
                _log.debug("process %s is busy", ascii(unit.process_id))
            except MAY_PASS as error:
                if error is raised:
                    raise
                _log.log(
                    loudness(error), "storage: %s; the transaction again in %.2f s", error, wait_s
                )
            except (LeaseLostError, StorageRewoundError, StorageFailedError) as error:
                if error is not raised:
                    self._on_broken(error)
                raise
            except StorageError as error:
                if error is raised:
                    raise
                raise self._failed(contract_broken(error)) from error
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, BACKOFF_MAX_S)

    async def wait_idle(self) -> None:
        """Wait until everything submitted or marked so far is recorded, busy or not."""
        self._ask_standing()
        await self._group.wait_idle()

    def _gather(self) -> None:
        self._ask_standing()
        if self._busy:
            for units, answers in self._busy.take_due():
                self._group.put_first(units, answers)

    def _ask_standing(self) -> None:
        runs, self._restless = self._restless, []
        for run in runs:
            unit = run.standing()
            if unit is not None:
                self._group.submit(unit)

    async def _flush(self, units: list[Unit]) -> Sequence[UnitOutcome]:
        outcomes: list[UnitOutcome] = []
        for batch in _split(units, self._bytes_max):
            going = batch
            if self._busy:
                going = [unit for unit in batch if not self._busy.rests(unit.process_id)]
            answers = await self._commit(going) if going else ()
            # Nearly always all of them are; to count is the cheapest way to see that.
            if self._busy or answers.count(DONE) < len(batch):
                answers = self._without_busy(batch, going, answers, len(outcomes))
            outcomes += answers
        return outcomes

    def _without_busy(
        self,
        batch: Sequence[Unit],
        going: Sequence[Unit],
        answers: Sequence[UnitOutcome],
        place: int,
    ) -> Sequence[UnitOutcome]:
        """Hold back the units of a batch that did not go out, or that were refused as busy.

        Args:
            batch: All of it.
            going: The units that went out.
            answers: To those.
            place: Of the batch's first unit among all that are being flushed.
        """
        # By identity, since nothing says that two units are never equal.
        by_unit = {id(unit): answer for unit, answer in zip(going, answers, strict=True)}
        outcomes: list[UnitOutcome] = []
        for unit in batch:
            outcome = by_unit.get(id(unit), BUSY)
            if outcome.refused is Refusal.BUSY:
                self._busy.hold(unit, self._group.take_back(place + len(outcomes)))
            elif self._busy.rests(unit.process_id):
                raise self._failed(
                    StorageFailedError(
                        f"the storage wrote a unit of process {unit.process_id!r} after it had "
                        "refused an earlier one as busy; that one would be lost"
                    )
                )
            else:
                self._busy.went(unit.process_id)
            outcomes.append(outcome)
        return outcomes

    async def _commit(self, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        wait_s = BACKOFF_MIN_S
        while True:
            try:
                return await self.storage.commit(self._lease, units)
            except MAY_PASS as error:
                _log.log(
                    loudness(error),
                    "storage: %s; the same batch goes again in %.2f s",
                    error,
                    wait_s,
                )
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, BACKOFF_MAX_S)
            except (LeaseLostError, StorageRewoundError, StorageFailedError) as error:
                self._on_broken(error)
                raise
            except Exception as error:
                raise self._failed(contract_broken(error)) from error

    def _failed(self, error: StorageError) -> StorageError:
        self._on_broken(error)
        return error


def _split(units: list[Unit], bytes_max: int) -> Sequence[Sequence[Unit]]:
    """Cut a batch where its payloads exceed `bytes_max`; a larger unit goes alone."""
    total = 0
    for unit in units:
        for checkpoint in unit.checkpoints:
            total += len(checkpoint.payload)
        if unit.ending is not None:
            total += len(unit.ending.payload)
        if unit.spawns or unit.sends:
            total += _reach_bytes(unit)
    if total <= bytes_max:
        return [units]
    sizes = [_payload_bytes(unit) for unit in units]
    batches: list[list[Unit]] = [[]]
    room = bytes_max
    for unit, size in zip(units, sizes, strict=True):
        if size > room and batches[-1]:
            batches.append([])
            room = bytes_max
        batches[-1].append(unit)
        room -= size
    return batches


def _payload_bytes(unit: Unit) -> int:
    size = 0 if unit.ending is None else len(unit.ending.payload)
    for checkpoint in unit.checkpoints:
        size += len(checkpoint.payload)
    return size + _reach_bytes(unit)


def _reach_bytes(unit: Unit) -> int:
    return sum(len(new.input) for new in unit.spawns) + sum(
        len(event.payload) for event in unit.sends
    )
