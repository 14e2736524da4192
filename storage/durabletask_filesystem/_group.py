"""Writing what happens to several processes at once: wholly there after a crash, or not at all.

One record alone is a frame of its own. Several are a group, in one frame or in
a few that count only together: so that reading one process of ten thousand
does not mean reading all of them, and a bad frame harms few. Each record is
applied as it is added, since the next one may depend on it. So whoever adds
has decided before, and made sure that all of it can be encoded.
"""

from collections.abc import Callable

from durabletask_filesystem._log import Log
from durabletask_filesystem._records import GroupRecord, Single, encode
from durabletask_filesystem._state import OFFSET_MASK, SEGMENT_SHIFT, Proc
from durabletask_filesystem._table import Table

PARTS_MAX = 16
"""Records in one frame."""


class Group:
    """Records on their way; nothing is in the log before `write`, or before a frame is full."""

    def __init__(self, log: Log, table: Table) -> None:
        self._log = log
        self._table = table
        self._parts: list[Single] = []
        self._is_group = False
        self._offset = log.begin_batch()

    def add(self, proc: Proc | None, make: Callable[[int], Single]) -> None:
        """Add a record and apply it.

        Args:
            proc: Whose it is, or None where it creates a process.
            make: Gets the offset of the record before.
        """
        if len(self._parts) == PARTS_MAX:
            self._append(more=True)
            self._offset = self._log.begin_batch()
        number = self._log.number
        spot = 0 if proc is None else proc.spot or self._table.gone.get(proc.id, 0)
        part = make(spot & OFFSET_MASK if spot >> SEGMENT_SHIFT == number else 0)
        self._parts.append(part)
        self._table.replay(part, number, self._offset)

    def write(self) -> None:
        """Put what was added into the log."""
        if self._parts:
            self._append(more=False)

    def _append(self, *, more: bool) -> None:
        parts = self._parts
        if len(parts) == 1 and not self._is_group and not more:
            self._log.append(encode(parts[0]))
        else:
            ids = tuple(dict.fromkeys([part.id for part in parts]))
            self._log.append(encode(GroupRecord(ids, tuple(parts), more)))
        self._is_group = True
        self._parts = []
