"""Processes under suspicion of ending the programs that run them: one at a time.

A process that several hosts in a row died with, nothing of it being recorded in
between, may be what they died of. Run beside others it takes them with it, and
they come under suspicion too; so a host runs one suspect until that has
recorded something or let go, and then the next. Knows no runs and no storage.
"""

from collections.abc import Callable

from durabletask._model import Claimed

SUSPECT_DEATHS = 3
"""Fewer are an unlucky week."""


class Suspects:
    """The suspects that a session holds.

    Args:
        start: Runs one.
        tell: Hands a run what has arrived for it.
    """

    def __init__(self, start: Callable[[Claimed], None], tell: Callable[[Claimed], None]) -> None:
        self._start = start
        self._tell = tell
        self._current: str | None = None
        self._held_back: dict[str, list[Claimed]] = {}

    def __len__(self) -> int:
        """How many processes are held back."""
        return len(self._held_back)

    def __contains__(self, process_id: str) -> bool:
        """Whether a process is held back."""
        return process_id in self._held_back

    def may_start(self, claimed: Claimed) -> bool:
        """Return whether a suspect may run now; if not it is held back until it may."""
        process_id = claimed.row.process_id
        if self._current is None:
            self._current = process_id
        if self._current == process_id:
            return True
        self._held_back[process_id] = [claimed]
        return False

    def add_news(self, claimed: Claimed) -> None:
        """Keep what has arrived for a suspect that is held back."""
        self._held_back[claimed.row.process_id].append(claimed)

    def cleared(self, process_id: str) -> None:
        """Let the next one run, if this was the one whose turn it was."""
        if self._current != process_id:
            return
        self._current = None
        if self._held_back:
            claimed, *news = self._held_back.pop(next(iter(self._held_back)))
            self._start(claimed)
            for each in news:
                self._tell(each)
