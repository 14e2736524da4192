"""Crashes on purpose: for authors of processes, of storages, and of this engine.

`crash_everywhere` asks whether a process function comes to the same end
wherever its program dies. `CrashingStorage` lets single calls of a storage go
wrong. `Search` and `Program` are for whoever plays something else than one
process, or wants to judge more than its outcome.
"""

from durabletask.testing._crash_everywhere import (
    CrashReport,
    Difference,
    Search,
    crash_everywhere,
)
from durabletask.testing._crash_loop import Killed, MortalLoop
from durabletask.testing._crash_play import (
    CrashPoint,
    InMemory,
    Life,
    LifeWitness,
    Program,
    Story,
    Survivor,
    play,
    read_all,
)
from durabletask.testing._crash_storage import CrashingStorage, Fate, StorageCall

__all__ = [
    "CrashPoint",
    "CrashReport",
    "CrashingStorage",
    "Difference",
    "Fate",
    "InMemory",
    "Killed",
    "Life",
    "LifeWitness",
    "MortalLoop",
    "Program",
    "Search",
    "StorageCall",
    "Story",
    "Survivor",
    "crash_everywhere",
    "play",
    "read_all",
]
