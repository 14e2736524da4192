"""The invariants about what is asked of processes from outside, and about restarts.

Each function is one invariant; it yields what breaks it.
"""

from collections.abc import Iterator

from durabletask._model import Action, Snapshot, Status
from durabletask.testing._history_facts import Call, Facts, Fate, Violation
from durabletask.testing._history_records import Request, digest


def requests_are_kept(facts: Facts) -> Iterator[Violation]:
    """I1: an acknowledged cancel, suspension, retry or restart is there at the end."""
    for call in facts.requests:
        done = call.done
        if done is None:
            continue
        final = facts.of_final((call.asked.process_id, done.incarnation))
        if final is not None:
            yield from _lost(facts, call, done, final)
    for process_id, snapshot in facts.final.items():
        restarts = facts.eras.restarts.get((process_id, snapshot.row.incarnation), {})
        sure = sum(fate is Fate.RECORDED for fate in restarts.values())
        if snapshot.row.generation < sure:
            what = f"{sure} restarts were acknowledged, and it is {snapshot.row.generation}"
            yield Violation("I1", process_id, what)


def _lost(facts: Facts, call: Call[Request], done: Request, final: Snapshot) -> Iterator[Violation]:
    asked, row = call.asked, final.row
    of = asked.process_id, row.incarnation
    if asked.action is Action.CANCEL and done.reason and not facts.eras.restarts.get(of):
        if row.cancel_reason is None or digest(row.cancel_reason) != done.reason:
            yield Violation("I1", asked.process_id, "the request to cancel is lost")
    elif asked.action is Action.RETRY and row.epoch <= asked.epoch:
        yield Violation("I1", asked.process_id, f"the retry of epoch {asked.epoch} is lost")
    elif asked.action is Action.SUSPEND and done.status is Status.SUSPENDED:
        # To resume is to undo it, and what ends a process ends its suspension.
        undone = row.ending is not None or any(
            each.asked.action is Action.RESUME and not each.refused
            for each in facts.requests_of[asked.process_id]
        )
        if row.status is not Status.SUSPENDED and not undone:
            yield Violation("I1", asked.process_id, "the suspension is lost")


def requests_were_made(facts: Facts) -> Iterator[Violation]:
    """I2: what only a request can do was asked for; and was not refused (I22)."""
    for process_id, snapshot in facts.final.items():
        row = snapshot.row
        of = process_id, row.incarnation
        mine = facts.requests_of.get(process_id, [])
        restarts = len(facts.eras.restarts.get(of, ()))
        if row.generation > restarts:
            what = f"it is generation {row.generation}, and has restarted {restarts} times"
            yield Violation("I2", process_id, what)
        if row.status is Status.SUSPENDED:
            found = [call for call in mine if call.asked.action is Action.SUSPEND]
            yield from _unasked(process_id, "suspended", found)
        if row.cancel_reason is not None:
            yield from _cancelled(facts, process_id, digest(row.cancel_reason))
        if row.cancel_met and not any(
            unit.asked.meets_cancel and unit.fate is not Fate.REFUSED
            for _, unit in facts.units_of.get(of, ())
        ):
            yield Violation("I2", process_id, "a request to cancel was met by no unit")
        for each in snapshot.forgotten:
            slot = each.kind, each.key, each.index
            found = [
                call
                for call in mine
                if slot in call.asked.forgets and call.asked.epoch >= each.epoch
            ]
            yield from _unasked(process_id, f"{each.kind} {each.key!r} put aside", found)


def _cancelled(facts: Facts, process_id: str, reason: str) -> Iterator[Violation]:
    above = facts.above(process_id)
    found = [
        call
        for each in above
        for call in facts.requests_of.get(each, ())
        if call.asked.action is Action.CANCEL and call.asked.reason == reason
    ]
    if found or above <= facts.final.keys():  # else whoever was asked may be gone
        yield from _unasked(process_id, "asked to cancel", found)


def _unasked(process_id: str, what: str, found: list[Call[Request]]) -> Iterator[Violation]:
    if not found:
        yield Violation("I2", process_id, f"{what}, and nobody has asked for it")
    elif all(call.refused for call in found):
        yield Violation("I22", process_id, f"{what}, though that was refused")
