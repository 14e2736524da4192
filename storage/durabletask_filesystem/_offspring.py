"""Which processes were spawned by which, finished or not, for listings by parent.

No file tells that but the creations, one by one. So they are looked through
once, when somebody asks for the first time, and from then on only the new
ones: a purge of ten thousand processes asks ten thousand times what is below.
Purged processes may be among the answers. Knows no files (`_reading`).
"""

from collections.abc import Callable, Iterator

from durabletask_filesystem._records import NewRecord

Creations = Callable[[int], Iterator[tuple[int, NewRecord]]]
"""Yields the creations from a moment on, with their moment, in microseconds since 1970."""

OFFSPRING_MAX = 200_000
"""Of so many children it is remembered whose they are: some 40 MB. Beyond, each listing looks
at every process, as it does in the folder of a program that never asks."""

BEFORE_ALL = -(1 << 62)


class Offspring:
    """The children of every process, as far as they were born before the last look.

    Args:
        creations: What there is to look at.
        latest: Where the last creation stands; anything that differs if that does.
    """

    def __init__(
        self,
        creations: Creations,
        latest: Callable[[], object],
        children_max: int = OFFSPRING_MAX,
    ) -> None:
        self._creations = creations
        self._latest = latest
        self._max = children_max
        self._moments: dict[str, dict[str, int]] = {}
        self._count = 0
        self._looked_until = BEFORE_ALL
        self._looked_at: object = None

    def look(self, scan_max: int) -> bool:
        """Look at about so many creations; return whether that were all."""
        latest = self._latest()
        if latest == self._looked_at or self._count > self._max:
            return True
        first = self._looked_until
        for seen, (moment, new) in enumerate(self._creations(first)):
            # Between two moments only: the last one is looked at again, as more may be born in it.
            # And not before one that is new, or it would never come to an end.
            if seen >= scan_max and moment != self._looked_until != first:
                return False
            self._looked_until = moment
            if new.parent is not None:
                children = self._moments.setdefault(new.parent.process_id, {})
                self._count += new.id not in children
                children[new.id] = moment
        self._looked_at = latest
        return True

    def of(self, parent_id: str) -> list[tuple[int, str]] | None:
        """Return moment and id of each child, in order; None if there are too many to know."""
        if self._count > self._max:
            self._moments.clear()
            return None
        children = self._moments.get(parent_id, {})
        return sorted((moment, process_id) for process_id, moment in children.items())
