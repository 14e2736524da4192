"""How many processes of each limited name a host may still take. Pure bookkeeping.

A place is taken before a process is asked for, by a claim or a spawn, and kept
while it runs; so two that ask at once never take the same one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Ask:
    """One claim of a round.

    Attributes:
        limited: The one name that it asks for, if there is a limit for that.
        room: For how many it asks; fixed, with their places, when it is first made.
    """

    claim_id: str
    names: tuple[str, ...]
    limited: str | None = None
    room: int | None = None


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
        self._turn = -1

    def round(self, names: Iterable[str], new_id: Callable[[], str]) -> list[Ask]:
        """Return what is to be asked: the names without a limit at once, of the others each.

        Another one comes first each time, or a full host would only get what is asked for first.
        """
        free = tuple(name for name in names if name not in self._limits)
        # Always asked, also for no name at all: it brings the news.
        asks = [Ask(new_id(), free)]
        asks += [Ask(new_id(), (name,), name) for name in self._limits]
        self._turn = (self._turn + 1) % len(asks)
        return asks[self._turn :] + asks[: self._turn]

    def is_limited(self, name: str) -> bool:
        """Return whether there is a limit for a name."""
        return name in self._limits

    def has_room(self, name: str) -> bool:
        """Return whether one more process of a name may be taken."""
        return name not in self._limits or self._taken[name] < self._limits[name]

    def take(self, name: str, count_max: int) -> int:
        """Take up to so many places of a limited name; return how many."""
        count = max(min(self._limits[name] - self._taken[name], count_max), 0)
        self._taken[name] += count
        if not count:
            self._wanted.add(name)
        return count

    def want(self, name: str) -> None:
        """Take note that there was more to take than places; at once, if there is one now."""
        self._wanted.add(name)
        self._tell(name)

    def give_back(self, name: str, count: int = 1) -> None:
        """Give back places; nothing for a name without limit."""
        if name in self._limits:
            self._taken[name] -= count
            self._tell(name)

    def occupy(self, name: str) -> None:
        """Take a place for a process that runs; whoever asked for it gives its own back."""
        if name in self._limits:
            self._taken[name] += 1

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold a place of a limited name while a process is asked for; False if there is none."""
        count = self.take(name, 1)
        try:
            yield count > 0
        finally:
            self.give_back(name, count)

    def _tell(self, name: str) -> None:
        if name in self._wanted and self.has_room(name):
            self._wanted.discard(name)
            self._on_room()
