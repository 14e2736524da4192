"""Which process a host may take next, and when: the order of claims.

An entry is a promise to look, not a fact: what counts is `claimable_at` of the
process itself, so that a change pushes a new entry and leaves the old one to
be found out. It knows nothing of hosts.
"""

import heapq
from collections.abc import Iterable, Mapping
from datetime import datetime

from durabletask._memory_process import ProcessState

_STALE_MIN = 64  # below this, sweeping costs more than it frees

Entry = tuple[datetime, str]


class ClaimQueue:
    """The claimable processes of each name, longest claimable first; equals by id."""

    def __init__(self, processes: Mapping[str, ProcessState]) -> None:
        self._processes = processes
        self._heaps: dict[str, list[Entry]] = {}

    def push(self, process: ProcessState) -> None:
        """Remember a process whose `claimable_at` was set, perhaps to a later time."""
        if process.claimable_at is None:
            return
        heap = self._heaps.setdefault(process.name, [])
        heapq.heappush(heap, (process.claimable_at, process.process_id))
        if len(heap) > _STALE_MIN and len(heap) > 2 * len(self._processes):
            # Sets drop the copies of entries pushed twice with the same time.
            heap[:] = sorted({entry for entry in heap if self._holds(entry, process.name)})

    def next_at(self, names: Iterable[str]) -> datetime | None:
        """Return since or from when the first process of these names is claimable."""
        heads = [head[0] for name in names if (head := self._head(name)) is not None]
        return min(heads, default=None)

    def pop(self, names: Iterable[str], now: datetime) -> ProcessState | None:
        """Return the longest claimable process of these names, if one is claimable by now.

        The caller takes it, which makes its entry stale.
        """
        best: Entry | None = None
        for name in names:
            head = self._head(name)
            if head is not None and head[0] <= now and (best is None or head < best):
                best = head
        return None if best is None else self._processes[best[1]]

    def _head(self, name: str) -> Entry | None:
        heap = self._heaps.get(name)
        while heap:
            if self._holds(heap[0], name):
                return heap[0]
            heapq.heappop(heap)
        return None

    def _holds(self, entry: Entry, name: str) -> bool:
        process = self._processes.get(entry[1])
        return process is not None and process.name == name and process.claimable_at == entry[0]
