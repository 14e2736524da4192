"""Records what hosts and clients do with a storage, and judges it by the promises.

Wrap the storage of every program in a `RecordingStorage`, let the steps tell
`Effects` when they run, do your worst, let everything come to its end, read
the final state with `dump`, and ask `check`:

    history = HistoryFile(folder / f"host-{os.getpid()}")
    host = ProcessHost(RecordingStorage(storage, history), …)
    effects = Effects(history)         # call effects() in the body of each step, and
                                       # effects.saw(proc, key, …) on what a call returns
    …
    found = check(read_histories(folder.iterdir()), await dump(storage))

`check` reports nothing that can happen without a broken promise: a call whose
answer was lost may have been carried out or not, and both are right.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from durabletask._model import Snapshot
from durabletask.testing._history_effects import Effects
from durabletask.testing._history_ends import (
    everything_ends,
    one_creation,
    one_end,
    terminated_for_good,
    timers_are_never_early,
)
from durabletask.testing._history_events import events_are_kept, events_keep_their_order
from durabletask.testing._history_facts import Facts, Violation
from durabletask.testing._history_file import History, HistoryFile, HistoryList, read_histories
from durabletask.testing._history_kin import (
    ends_are_told,
    reach_is_whole,
    refused_reaches_nobody,
)
from durabletask.testing._history_owners import (
    claims_hand_out_everything,
    epochs_rise,
    fenced_stays_fenced,
    no_late_write,
)
from durabletask.testing._history_recording import RecordingStorage, dump
from durabletask.testing._history_records import (
    AnyOperation,
    Claim,
    CloseLease,
    Commit,
    Create,
    Deliver,
    Execute,
    Operation,
    Phase,
    Purge,
    Renew,
    Request,
    See,
    Sent,
    Spawn,
    Taken,
    Write,
    digest,
)
from durabletask.testing._history_requests import requests_are_kept, requests_were_made
from durabletask.testing._history_results import (
    acknowledged_is_kept,
    effects_are_bounded,
    nothing_is_invented,
    one_result,
    program_order,
    recorded_is_not_run_again,
    results_have_a_cause,
)
from durabletask.testing._history_units import refused_leaves_no_trace, units_are_whole

__all__ = [
    "AnyOperation",
    "Claim",
    "CloseLease",
    "Commit",
    "Create",
    "Deliver",
    "Effects",
    "Execute",
    "History",
    "HistoryFile",
    "HistoryList",
    "Operation",
    "Phase",
    "Purge",
    "RecordingStorage",
    "Renew",
    "Request",
    "See",
    "Sent",
    "Spawn",
    "Taken",
    "Violation",
    "Write",
    "check",
    "digest",
    "dump",
    "read_histories",
    "tally",
]

INVARIANTS = (
    acknowledged_is_kept,
    nothing_is_invented,
    one_result,
    recorded_is_not_run_again,
    effects_are_bounded,
    epochs_rise,
    no_late_write,
    fenced_stays_fenced,
    program_order,
    events_are_kept,
    events_keep_their_order,
    timers_are_never_early,
    one_end,
    terminated_for_good,
    one_creation,
    claims_hand_out_everything,
    refused_leaves_no_trace,
    units_are_whole,
    requests_are_kept,
    requests_were_made,
    reach_is_whole,
    refused_reaches_nobody,
    ends_are_told,
)
"""I1 to I3, I5 to I15, I21 to I23: what holds of every history."""


def check(
    history: Sequence[AnyOperation],
    final: Iterable[Snapshot],
    *,
    ended: Collection[str] = (),
    effects: bool = True,
) -> list[Violation]:
    """Return every broken promise that a history and its final state show.

    Linear in their size. Purged and replaced processes are judged by their
    last incarnation.

    Args:
        history: Merged, or of one event loop; see `read_histories`.
        final: Every process of the storage, read when all programs had ended.
        ended: Ids of processes that must have ended by then (I16).
        effects: Whether every step of every process has told `Effects` that it
            ran: then a result without a run is a violation too (I4).

    Raises:
        ValueError: The history has an answer to nothing.
    """
    facts = Facts(history, final)
    found = [violation for invariant in INVARIANTS for violation in invariant(facts)]
    if effects:
        found += results_have_a_cause(facts)
    return [*found, *everything_ends(facts, ended)]


def tally(history: Iterable[AnyOperation]) -> Counter[str]:
    """Count what happened, such as "commit ok" or "commit fail LeaseLostError".

    A run without a refusal, a lost answer or a takeover has tested nothing:
    look here whether there were some.
    """
    counts: Counter[str] = Counter()
    kinds: dict[tuple[str, int], str] = {}
    for each in history:
        kind = kinds.setdefault((each.who, each.call), type(each).__name__.lower())
        why = each.why.partition(":")[0]
        counts[f"{kind} {each.phase} {why}".rstrip()] += 1
    return counts
