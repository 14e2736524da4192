"""How many processes of each limited name a host may still take. Pure bookkeeping.

A place is taken before a process is asked for, by a claim or a spawn, and kept
while it runs; so two that ask at once never take the same one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Places:
    """The places of one host, by the name of the process function."""

    def __init__(self, limits: Mapping[str, int], on_room: Callable[[], None]) -> None:
        """Begin with every place free.

        Args:
            limits: How many places a name has; a name that is not there has no limit.
            on_room: Called when there is a place of a name for which somebody found none.
        """
        self._limits = limits
        self._taken = dict.fromkeys(limits, 0)
        self._on_room = on_room
        self._wanted: set[str] = set()

    def is_limited(self, name: str) -> bool:
        """Return whether there is a limit for a name."""
        return name in self._limits

    def take_all(self) -> dict[str, int]:
        """Take every free place for a claim; return how many of each limited name."""
        rooms = {name: self._free(name) for name in self._limits}
        for name, count in rooms.items():
            self._taken[name] += count
        return rooms

    def settle(self, rooms: Mapping[str, int], counts: Mapping[str, int]) -> None:
        """Give back the places of a claim, which has brought so many processes of each name."""
        for name, room in rooms.items():
            if counts[name] >= room:
                self._wanted.add(name)  # there may be more than was asked for
            self.give_back(name, room)

    def give_back(self, name: str, count: int = 1) -> None:
        """Give back places; nothing for a name without limit."""
        if name in self._limits:
            self._taken[name] -= count
            if name in self._wanted and self._free(name):
                self._wanted.discard(name)
                self._on_room()

    def occupy(self, name: str) -> None:
        """Take a place for a process that runs; whoever asked for it gives its own back."""
        if name in self._limits:
            self._taken[name] += 1

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold a place of a limited name while a process is asked for; False if there is none."""
        count = min(self._free(name), 1)
        if not count:
            self._wanted.add(name)
        self._taken[name] += count
        try:
            yield count > 0
        finally:
            self.give_back(name, count)

    def _free(self, name: str) -> int:
        return max(self._limits[name] - self._taken[name], 0)
