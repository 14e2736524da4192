"""Purging what has finished long ago: in the background, in bounded batches, on every storage.

By `list` and `purge` alone, so that a running process cannot be removed: the
storage refuses. It does not look for what is below a process: a child has its
own time.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from random import Random

from durabletask._errors import InvalidArgumentError, StorageError
from durabletask._limits import check_name
from durabletask._model import Query
from durabletask._requests import Requests
from durabletask._transitions import FINISHED

_log = logging.getLogger("durabletask")

BATCH_MAX = 1_000
PAUSE_SHARE = 20
"""Between two rounds passes so much of the shortest time: nothing is kept much too long."""
PAUSE_MIN_S = 1.0
PAUSE_MAX_S = 600.0
SPREAD = 0.5
"""By how much of itself a pause may be longer: hosts that were started together part."""
REST_SHARE = 4
"""After a batch it rests so many times as long as that took: everybody else comes first."""


class Retention:
    """The purging of one host."""

    def __init__(
        self,
        requests: Requests,
        keep: timedelta | Mapping[str, timedelta] | None,
        random: Random,
    ) -> None:
        """Purge nothing yet.

        Args:
            requests: Of the host.
            keep: How long, for all or by name; see `ProcessHost`.
            random: Source of jitter.

        Raises:
            InvalidArgumentError: A time is not above zero.
        """
        self._requests = requests
        self._random = random
        self._keeps: dict[str | None, timedelta] = {}
        if isinstance(keep, Mapping):
            self._keeps = {check_name("process name", name): each for name, each in keep.items()}
        elif keep is not None:
            self._keeps = {None: keep}
        for name, each in self._keeps.items():
            if not isinstance(each, timedelta) or each <= timedelta(0):
                whose = "" if name is None else f" of {name!r}"
                raise InvalidArgumentError(
                    f"the retention{whose} must be a timedelta above zero, not {each!r}",
                    hint="timedelta(days=…); None keeps everything",
                )
        self._task: asyncio.Task[None] | None = None

    def begin(self, now: Callable[[], datetime]) -> None:
        """Begin to purge in the background, if there is anything to purge.

        Args:
            now: Returns the storage's time.
        """
        if self._keeps:
            self._task = asyncio.get_running_loop().create_task(
                self._purge_for_ever(now), name="durabletask retention"
            )

    async def close(self) -> None:
        """End; a batch on its way is carried out or not."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _purge_for_ever(self, now: Callable[[], datetime]) -> None:
        shortest_s = min(self._keeps.values()).total_seconds()
        pause_s = min(max(shortest_s / PAUSE_SHARE, PAUSE_MIN_S), PAUSE_MAX_S)
        while True:
            # First a pause: a host that is started again and again has more urgent things to do.
            await asyncio.sleep(pause_s * (1 + SPREAD * self._random.random()))
            for name, keep in self._keeps.items():
                try:
                    await self._purge(name, now() - keep)
                except StorageError as error:
                    _log.warning("what has finished long ago was not purged: %s", error)

    async def _purge(self, name: str | None, finished_until: datetime) -> None:
        time_s = asyncio.get_running_loop().time
        begun_s = time_s()
        query = Query(statuses=FINISHED, name=name, finished_until=finished_until, limit=BATCH_MAX)
        async for purged in self._requests.purging(query):
            if purged:
                _log.info("purged %d processes that ended before %s", purged, finished_until)
            await asyncio.sleep(REST_SHARE * (time_s() - begun_s))
            begun_s = time_s()
