"""The harness has tests too: known mistakes are planted in the engine, and each must be caught.

What is to come of a scenario is worked out before the mistake is planted; so
a mistake that changes the outcome of every run alike is caught as well.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from durabletask import _steps, _waits
from durabletask._errors import StorageError, StorageUnavailableError, StorageUnknownError
from durabletask._group import GroupCommit
from durabletask._journal import Journal
from durabletask._mailbox import Mailbox
from durabletask._memory_process import Mailbox as StoredMailbox
from durabletask._memory_process import ProcessState
from durabletask._model import DONE, Checkpoint, Event, Refusal, Unit, UnitOutcome
from durabletask._run import Run
from durabletask._timers import Timers
from durabletask._writer import Writer
from durabletask.errors import KeyConflictError, StepError
from durabletask.testing.crash import Fate, Search
from tests.crash.scenarios import SCENARIOS, search
from tests.test_crash_faults import drain_everywhere

Plant = pytest.MonkeyPatch
DEADLY = (Fate.DIE_BEFORE, Fate.DIE_AFTER)
FAULTS = tuple(fate for fate in Fate if not fate.deadly)


def journal_ignored(plant: Plant) -> None:
    """C15: a resumed run asks nobody what is recorded."""
    real = Journal.__init__
    plant.setattr(Journal, "__init__", lambda self, checkpoints=(): real(self, ()))


def acknowledged_early(plant: Plant) -> None:
    """C18: a record is acknowledged when it is handed to the writer."""
    real = GroupCommit.submit

    def submit(self: Any, item: Any) -> Any:
        answer = real(self, item)
        if isinstance(item, Unit) and item.ending is None and not answer.done():
            early = asyncio.get_running_loop().create_future()
            early.set_result(DONE)
            return early
        return answer

    plant.setattr(GroupCommit, "submit", submit)


def unknown_is_failure(plant: Plant) -> None:
    """C19: a lost answer is taken for a refusal."""
    _answer_lost_with(plant, UnitOutcome(refused=Refusal.NOT_OWNER))


def unknown_is_success(plant: Plant) -> None:
    """C20: a lost answer is taken for done."""
    _answer_lost_with(plant, DONE)


def _answer_lost_with(plant: Plant, outcome: UnitOutcome) -> None:
    async def commit(self: Any, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        while True:
            try:
                answer: Sequence[UnitOutcome] = await self._storage.commit(self._lease, units)
                return answer
            except StorageUnknownError:
                return [outcome] * len(units)
            except StorageUnavailableError:
                await asyncio.sleep(0.02)

    plant.setattr(Writer, "_commit", commit)


def failure_not_recorded(plant: Plant) -> None:
    """C23: a failed step is raised and not recorded."""
    real = _steps.settle

    async def settle(run: Run, kind: Any, key: str, index: int, failure: Any, *more: Any) -> Any:
        if failure is not None:
            run.step_ended()
            raise StepError(type(failure).__name__, str(failure))
        return await real(run, kind, key, index, failure, *more)

    plant.setattr(_steps, "settle", settle)


def cancellation_is_failure(plant: Plant) -> None:
    """C24: a step that user code cancels is recorded as failed."""

    def as_failure(run: Run, error: BaseException, requests: int) -> Exception:
        return error if isinstance(error, Exception) else StepError("CancelledError", "")

    plant.setattr(_steps, "as_failure", as_failure)


class DatabaseError(Exception):
    """What a driver raises."""


def storage_error_in_user_code(plant: Plant) -> None:
    """C25: what the storage raises arrives where the step is awaited."""

    async def commit(self: Any, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        try:
            answer: Sequence[UnitOutcome] = await self._storage.commit(self._lease, units)
        except StorageError as error:
            raise DatabaseError(str(error)) from error
        return answer

    plant.setattr(Writer, "_commit", commit)


def drain_by_cancelling(plant: Plant) -> None:
    """C26: a drain cancels tasks and goes on recording what they do about it."""

    def drain(self: Run) -> None:
        if self.task is not None:
            self.task.cancel()

    plant.setattr(Run, "drain", drain)


def keys_reused(plant: Plant) -> None:
    """C29: a key that is used twice gives the first result again."""
    real = Journal.ask

    def ask(self: Journal, kind: Any, key: str, index: int = -1) -> Checkpoint | None:
        try:
            return real(self, kind, key, index)
        except KeyConflictError:
            return None

    plant.setattr(Journal, "ask", ask)


def taken_and_recorded_apart(plant: Plant) -> None:
    """C30: the record of an event does not take it from the mailbox."""
    real = ProcessState.apply

    def apply(self: ProcessState, host_id: str, unit: Unit, *more: Any) -> UnitOutcome:
        fields = {name: getattr(unit, name) for name in Unit.__struct_fields__}
        return real(self, host_id, Unit(**{**fields, "consumes": ()}), *more)

    plant.setattr(ProcessState, "apply", apply)


def events_not_deduplicated(plant: Plant) -> None:
    """C31: an event that is raised again under its id is another one."""
    plant.setattr(StoredMailbox, "known", lambda self, event_id: None)


def newest_event_first(plant: Plant) -> None:
    """C32: the mailbox is a stack."""

    def take(self: Any, name: str) -> Event | None:
        queue = self._events.get(name) if self._events else None
        return queue.pop() if queue else None

    plant.setattr(Mailbox, "take", take)


def due_worked_out_again(plant: Plant) -> None:
    """C39: a resumed wait begins anew."""
    plant.setattr(_waits, "recorded_wait", lambda run, key, index: None)


def early_timer(plant: Plant) -> None:
    """C40: a timer fires a little before it is due."""
    real = Timers.at
    plant.setattr(Timers, "at", lambda self, due_at: real(self, due_at - timedelta(seconds=1)))


def ending_not_recorded(plant: Plant) -> None:
    """F005: a process that has ended is reported and not recorded as ended."""

    async def conclude(self: Run, ending: Any) -> bool:
        return True

    plant.setattr(Run, "conclude", conclude)


def overwritten(plant: Plant) -> None:
    """C16: the last record of a key wins; planted with the journal ignored, or nothing shows."""
    journal_ignored(plant)
    plant.setattr(ProcessState, "_held", lambda self, unit: ())


BUGS: dict[Callable[[Plant], None], tuple[tuple[str, ...], tuple[Fate, ...]]] = {
    journal_ignored: (("linear",), DEADLY),
    overwritten: (("token",), DEADLY),
    acknowledged_early: (("linear",), DEADLY),
    unknown_is_failure: (("linear",), FAULTS),
    unknown_is_success: (("linear",), FAULTS),
    failure_not_recorded: (("compensated",), DEADLY),
    cancellation_is_failure: (("step_timed_out",), DEADLY),
    storage_error_in_user_code: (("linear",), FAULTS),
    keys_reused: (("broken",), DEADLY),
    taken_and_recorded_apart: (("event_first",), DEADLY),
    events_not_deduplicated: (("event_first",), DEADLY),
    newest_event_first: (("event_first",), DEADLY),
    due_worked_out_again: (("delayed",), DEADLY),
    early_timer: (("delayed",), DEADLY),
    ending_not_recorded: (("linear",), DEADLY),
}


def found(trial: Search, fates: Sequence[Fate]) -> bool:
    """Return whether anything differs, undisturbed or with these fates."""
    trial.try_points(())
    return bool(trial.report.differences) or bool(trial.run(fates).differences)


@pytest.mark.parametrize("plant_bug", BUGS, ids=[bug.__name__ for bug in BUGS])
def test_a_planted_bug_is_caught(
    plant_bug: Callable[[Plant], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C15 C16 C18-C20 C23-C25 C29-C32 C39 C40: each known mistake breaks a scenario."""
    names, fates = BUGS[plant_bug]
    trials = [search(SCENARIOS[name], latency_s=0.01) for name in names]
    for trial in trials:
        trial.undisturbed()
    plant_bug(monkeypatch)
    assert any(found(trial, fates) for trial in trials)


def test_a_drain_that_only_cancels_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """C26: a host that cancels its processes in order to stop refunds their customers."""
    drain_by_cancelling(monkeypatch)
    assert any("refund" in str(each) for each in drain_everywhere().report.differences)


@pytest.mark.parametrize("name", ["linear", "broken", "event_first", "delayed", "step_timed_out"])
def test_without_a_bug_nothing_is_caught(name: str) -> None:
    """The cases above can pass: the same search finds nothing in the engine as it is."""
    trial = search(SCENARIOS[name], latency_s=0.01)
    trial.undisturbed()
    assert not found(trial, DEADLY)
