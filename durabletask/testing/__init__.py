"""What a user or a backend author tests with.

The conformance suite and the state machine live in their own modules
(`durabletask.testing.conformance`, `durabletask.testing.machine`), since only
they need pytest and Hypothesis. `durabletask.testing.history` records what
hosts ask of a storage and judges it by the promises.
"""

from durabletask.testing._histories import (
    HistoryReport,
    Verdict,
    check_histories,
    export_history,
    import_histories,
)
from durabletask.testing._time import VirtualClock, VirtualTimeLoop, run_virtual
from durabletask.testing.crash import CrashingStorage, CrashReport, crash_everywhere

__all__ = [
    "CrashReport",
    "CrashingStorage",
    "HistoryReport",
    "Verdict",
    "VirtualClock",
    "VirtualTimeLoop",
    "check_histories",
    "crash_everywhere",
    "export_history",
    "import_histories",
    "run_virtual",
]
