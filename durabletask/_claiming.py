"""When a session asks its storage for processes and for news of those it has, and for how many.

Refuses to know what becomes of what it gets.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

from durabletask._collector import CollectorRest
from durabletask._config import Config
from durabletask._errors import LeaseLostError, StorageFailedError, StorageRewoundError
from durabletask._lease import Trust, contract_broken
from durabletask._mailbox import Mailbox
from durabletask._model import Claimed, Claims, Lease
from durabletask._places import Places
from durabletask._repeat import BACKOFF_MAX_S, BACKOFF_MIN_S, MAY_PASS, loudness, repeat_unknown
from durabletask._storage import Hints

_log = logging.getLogger("durabletask")

CLAIM_MAX = 1_000
"""Processes taken by one claim: enough to make the round trip cheap, few enough to share."""

POLL_MIN_S = 0.02
POLL_SPREAD = 1 / 6
"""By how much of itself a pause between two looks may be shorter."""
HAND_OVER_S = 0.001
"""How long a hint about a process that runs here may turn out to be no news."""


class HasMailbox(Protocol):
    """A run, as far as it matters here."""

    @property
    def mailbox(self) -> Mailbox: ...


class _Ask(NamedTuple):
    """One claim; the places of `rooms` are taken as long as it is on its way."""

    claim_id: str
    names: tuple[str, ...]
    count_max: int
    rooms: Mapping[str, int]


class Claiming:
    """Looks at the storage: often while there is something, seldom while there is nothing.

    Args:
        config: Of the host.
        runs: What it runs, by id.
        resident: Returns how many processes it has in memory, with those held back.
        take: Gets each process that was claimed, and each that there is news of.
        on_broken: Gets the error that ended the lease or the storage.
        new_id: Makes claim ids.
    """

    def __init__(
        self,
        config: Config,
        runs: Mapping[str, HasMailbox],
        resident: Callable[[], int],
        take: Callable[[Claimed], None],
        on_broken: Callable[[Exception], None],
        new_id: Callable[[], str],
    ) -> None:
        self._config = config
        self._runs = runs
        self._resident = resident
        self._take = take
        self._on_broken = on_broken
        self._new_id = new_id
        self._loop = asyncio.get_running_loop()
        self._look = asyncio.Event()
        self._hinted = isinstance(config.storage, Hints)
        self._full = False
        self._ask: _Ask | None = None
        self.places = Places(config.registry.concurrency(), self._look.set)
        # The position that a run's mailbox reaches when every event that was hinted is handed over.
        self._expected: dict[str, int] = {}

    def look(self) -> None:
        """Look soon."""
        self._look.set()

    def left(self, process_id: str, *, ended: bool) -> None:
        """Take note that there is room for one more."""
        if self._full:
            self._look.set()
        if ended:
            self._expected.pop(process_id, None)

    def hint(self, process_id: str | None) -> None:
        run = None if process_id is None else self._runs.get(process_id)
        if process_id is None or run is None:
            self._look.set()
        elif process_id in self._expected:
            self._expected[process_id] += 1
        else:
            # Nearly always an event that came through this host, which hands it over itself;
            # to ask the storage at once would only hold up the record that it was taken.
            self._expected[process_id] = run.mailbox.position + 1
            self._loop.call_later(HAND_OVER_S, self._look_if_behind, process_id)

    def _look_if_behind(self, process_id: str) -> None:
        expected = self._expected.pop(process_id, None)
        if expected is None:
            return  # it has ended here
        run = self._runs.get(process_id)
        if run is None or run.mailbox.position < expected:
            self._look.set()

    async def for_ever(self, lease: Lease, trust: Trust) -> None:
        """Claim, again and again, until that cannot be done any more."""
        self._lease, self._trust = lease, trust
        config = self._config
        wait_s = BACKOFF_MIN_S
        idle_s = POLL_MIN_S
        with CollectorRest(self._loop) as rest:
            while True:
                # Cleared before looking: a hint that arrives meanwhile makes it look again.
                self._look.clear()
                try:
                    more, next_s, found = await self._claim()
                except MAY_PASS as error:
                    _log.log(
                        loudness(error), "storage: %s; claiming again in %.2f s", error, wait_s
                    )
                    await asyncio.sleep(wait_s * (0.5 + config.random.random() / 2))
                    wait_s = min(wait_s * 2, BACKOFF_MAX_S)
                    # With the same id: what a claim took whose answer was lost is ours to run.
                    continue
                except (LeaseLostError, StorageRewoundError, StorageFailedError) as error:
                    self._on_broken(error)
                    return
                except Exception as error:  # noqa: BLE001  (a storage that breaks its contract)
                    self._on_broken(contract_broken(error))
                    return
                wait_s = BACKOFF_MIN_S
                if more and found:
                    rest.begin()
                elif not found:
                    rest.end()
                if more:
                    # At once, before what was taken begins to run: the storage works meanwhile.
                    if not found:
                        await asyncio.sleep(0)
                    continue
                idle_s = POLL_MIN_S if found else min(idle_s * 2, self._idle_max_s())
                # Spread, or hosts that were started together would ask together for ever.
                pause_s = idle_s * (1 - POLL_SPREAD * config.random.random())
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(pause_s, next_s)):
                        await self._look.wait()

    def _idle_max_s(self) -> float:
        """Return how long a session without hints may sleep between two looks.

        A lease without end means that nobody else writes to the storage but
        through this object, which hints: then only the machine's own sleep
        makes it necessary to look by itself.
        """
        alone = self._lease.ttl_s is None and self._hinted
        return self._config.clock.recheck_s if alone else self._config.poll_s

    async def _claim(self) -> tuple[bool, float, bool]:
        """Claim once; return if there is more for us, when next, and if anything came."""
        config = self._config
        # Kept until it is answered: what a claim took whose answer was lost is ours to run.
        ask = self._ask = self._ask or self._next_ask()

        async def call() -> Claims:
            return await config.storage.claim(
                self._lease, ask.claim_id, ask.names, count_max=ask.count_max, rooms=ask.rooms
            )

        claims = await repeat_unknown(call)
        self._ask = None
        self._trust.observe(claims.now_at)
        for claimed in claims.claimed:
            self._take(claimed)
        self.places.settle(
            ask.rooms, Counter(each.row.name for each in claims.claimed if each.fresh)
        )
        self._full = claims.more and self._resident() >= config.limits.resident_max
        next_s = float("inf")
        if claims.next_at is not None:
            next_s = max((claims.next_at - claims.now_at).total_seconds(), POLL_MIN_S)
        return claims.more and not self._full, next_s, bool(claims.claimed)

    def _next_ask(self) -> _Ask:
        config = self._config
        free = config.limits.resident_max - self._resident()
        return _Ask(
            self._new_id(),
            tuple(config.registry),
            max(min(free, CLAIM_MAX), 0),
            self.places.take_all(),
        )
