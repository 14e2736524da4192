"""Those who want to know when something may have changed, each on his own loop.

Refuses to know where the news come from.
"""

import asyncio
from collections.abc import Callable, Sequence

from durabletask_postgres._notify import OnNews


class Subscribers:
    """Who is told, and how. Empty is false."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Begin with none.

        Args:
            on_change: Called after one has come or gone.
        """
        self._on_change = on_change
        self._all: dict[object, tuple[asyncio.AbstractEventLoop, OnNews]] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, callback: OnNews) -> Callable[[], None]:
        """Call back on the calling loop from now on; return what ends that, safe to repeat."""
        token = object()
        self._all[token] = asyncio.get_running_loop(), callback
        self._on_change()

        def remove() -> None:
            if self._all.pop(token, None) is not None:
                self._on_change()

        return remove

    def tell(self, process_ids: "Sequence[str | None]") -> None:
        """Tell all of these processes, in a later turn of their loops."""
        if process_ids:
            for token, (loop, _) in self._all.items():
                loop.call_soon(self._call, token, process_ids)

    def _call(self, token: object, process_ids: "Sequence[str | None]") -> None:
        for process_id in process_ids:
            if token not in self._all:
                return
            self._all[token][1](process_id)
