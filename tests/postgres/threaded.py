"""An event loop in a thread of its own.

What stands between client and server must go on while the test's own loop is
blocked, or is not running at all.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

ANSWER_MAX_S = 30.0
"""A call into the loop that takes longer than this hangs."""


class LoopThread:
    """Runs coroutines in a loop of another thread, from any thread; ends all of them on exit."""

    def __enter__(self) -> Self:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.call(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(ANSWER_MAX_S)
        self.loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(ANSWER_MAX_S)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # What the ended tasks have closed is gone some turns later: its encryption, then its socket.
    for _ in range(5):
        await asyncio.sleep(0)
