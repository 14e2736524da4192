"""A simulated disk, and an explorer of everything that a power loss may leave on it.

For authors of a storage of files: let it work through the calls of
`SimulatedFolder`, hand `Explorer` a function that recovers, and say what must
be found. `kill -9` cannot find a missing fsync, because the page cache
survives it; this can.
"""

from durabletask.testing._disk_explorer import (
    AFTERMATH,
    Explorer,
    Promise,
    Recovered,
    Tally,
    breach,
)
from durabletask.testing._disk_fates import Bounds, Fate, Landed, fates
from durabletask.testing._disk_folder import SimulatedFile, SimulatedFolder
from durabletask.testing._disk_model import CHANGING, Fault, Image

__all__ = [
    "AFTERMATH",
    "CHANGING",
    "Bounds",
    "Explorer",
    "Fate",
    "Fault",
    "Image",
    "Landed",
    "Promise",
    "Recovered",
    "SimulatedFile",
    "SimulatedFolder",
    "Tally",
    "breach",
    "fates",
]
