"""The hosts of a memory storage: whose lease holds, and what each has been told."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from durabletask._errors import LeaseLostError
from durabletask._model import Lease

_CLAIMS_REMEMBERED = 16  # a host repeats its latest claim; the rest is for hosts of other kinds


class Host:
    """One lease, from its opening until it is fenced or closed.

    Attributes:
        expires_at: When another host may fence it; None for a lease without end.
        news: Held processes with an event that this host was not told of, in order.
        claims: For each of the latest claim ids what the claim took (process id,
            incarnation, epoch) and the ids that it brought news of.
    """

    __slots__ = ("claims", "expires_at", "host_id", "label", "news")

    def __init__(self, host_id: str, label: str) -> None:
        self.host_id = host_id
        self.label = label
        self.expires_at: datetime | None = None
        self.news: dict[str, None] = {}
        self.claims: dict[str, tuple[tuple[tuple[str, int, int], ...], tuple[str, ...]]] = {}

    def remember(
        self, claim_id: str, taken: tuple[tuple[str, int, int], ...], news: tuple[str, ...]
    ) -> None:
        """Remember what a claim answered, so that a repeat can be answered alike."""
        self.claims[claim_id] = taken, news
        if len(self.claims) > _CLAIMS_REMEMBERED:
            del self.claims[next(iter(self.claims))]


class Hosts:
    """Every host that ever had a lease here; those that lost it are remembered for good."""

    def __init__(self, lease_ttl_s: float | None) -> None:
        self._ttl_s = lease_ttl_s
        self._live: dict[str, Host] = {}
        self.fenced: set[str] = set()

    def __iter__(self) -> Iterator[Host]:
        """Yield the hosts that are not fenced."""
        return iter(tuple(self._live.values()))

    def get(self, host_id: str) -> Host | None:
        """Return a host that is not fenced."""
        return self._live.get(host_id)

    def open(self, host_id: str, label: str, now: datetime) -> Lease:
        """Give a lease, or prolong the one that this identity has.

        Raises:
            LeaseLostError: The identity was fenced or closed; a new start needs a new one.
        """
        if host_id in self.fenced:
            raise LeaseLostError(
                f"host {host_id!r} has lost its lease for good",
                hint="every start of a host takes a new random identity",
            )
        host = self._live.setdefault(host_id, Host(host_id, label))
        if self._ttl_s is not None:
            host.expires_at = now + timedelta(seconds=self._ttl_s)
        return Lease(host_id, host.label, self._ttl_s, now)

    def holding(self, lease: Lease) -> Host:
        """Return the host of a lease.

        Raises:
            LeaseLostError: It was fenced or closed, or never given here.
        """
        host = self._live.get(lease.host_id)
        if host is None:
            raise LeaseLostError(
                f"host {lease.host_id!r} ({lease.label}) has lost its lease; nothing was written"
            )
        return host

    def fence(self, host_id: str) -> None:
        """End a host's right to write, for good."""
        self._live.pop(host_id, None)
        self.fenced.add(host_id)

    def ended(self, now: datetime) -> tuple[Host, ...]:
        """Return the hosts whose lease has ended by now."""
        return tuple(
            host for host in self if host.expires_at is not None and host.expires_at <= now
        )
