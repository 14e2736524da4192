"""Leases and claims: which host may run which process.

One host at a time has the folder, because it has the file lock. So its lease
has no end; a lease that is open in the files but not this program's is of a
host that died.
"""

from collections import Counter
from datetime import datetime

import durabletask_filesystem._records as _records
from durabletask.errors import LeaseLostError, StorageBusyError
from durabletask.storage import Claimed, Claims, Lease
from durabletask_filesystem._commit import Committer
from durabletask_filesystem._history import Library
from durabletask_filesystem._log import DamageError, Log
from durabletask_filesystem._reading import bare_row
from durabletask_filesystem._records import ClaimRecord, EndRecord, LeaseRecord
from durabletask_filesystem._requests import Claim
from durabletask_filesystem._state import Proc
from durabletask_filesystem._table import Table

CLAIMS_REMEMBERED = 64
"""A claim is repeated at once or never; older answers are forgotten."""

Taken = dict[str, tuple[int, int]]
"""What a claim took: incarnation and epoch by process id."""


class Leases:
    """The lease of this program's host, and its claims.

    Attributes:
        mine: Identity of the host whose lease this program opened, or None.
        claims: What the latest claims took and the ids that they brought news of, by claim id.
    """

    def __init__(self, log: Log, table: Table, library: Library, committer: Committer) -> None:
        self._log = log
        self._table = table
        self._library = library
        self._committer = committer
        self.mine: str | None = None
        self.claims: dict[str, tuple[Taken, tuple[str, ...]]] = {}

    def open(self, host_id: str, label: str, now: datetime) -> Lease:
        """Begin a host's right to write, or renew it.

        Raises:
            StorageBusyError: Another host of this program has it.
            LeaseLostError: This identity's lease has ended before.
        """
        if self.mine not in {None, host_id}:
            raise StorageBusyError(
                f"host {self.mine!r} of this program holds the folder; {host_id!r} cannot",
                hint="one host per folder; close the other one first",
            )
        if host_id in self._table.ended:
            raise LeaseLostError(
                f"host {host_id!r} has lost its lease for good",
                hint="every start of a host takes a new random identity",
            )
        if self.mine is None:
            self._log.append(_records.encode(LeaseRecord(host_id, label, now)))
            self._table.hosts[host_id] = label
            self.mine = host_id
            self.claims = {}
        return Lease(host_id, label, None, now)

    def resume(self, before: "Leases") -> None:
        """Go on with the lease and claims of before, after the state was read anew from disk."""
        self.mine = before.mine if before.mine in self._table.hosts else None
        if self.mine is None:
            return
        for proc in self._table.procs.values():
            if proc.owner == self.mine and (proc.events or proc.more.requests):
                self._table.news[proc.id] = None  # told twice does no harm, not told would
            elif proc.owner == self.mine and proc.more.cancel_reason is not None:
                self._table.news[proc.id] = None
        self._table.news.update(dict.fromkeys(self._table.held))
        # A claim of the batch that was undone took nothing; its repeat has to take anew.
        self.claims = {
            claim_id: (taken, news)
            for claim_id, (taken, news) in before.claims.items()
            if any(self._holds(process_id, identity) for process_id, identity in taken.items())
        }

    def _holds(self, process_id: str, identity: tuple[int, int]) -> bool:
        proc = self._table.procs.get(process_id)
        return (
            proc is not None
            and proc.owner == self.mine
            and (proc.incarnation, proc.epoch) == identity
        )

    def check(self, lease: Lease) -> str:
        """Return the host of a lease that is valid.

        Raises:
            LeaseLostError: It was closed, or another program has had the folder since.
        """
        if lease.host_id != self.mine:
            raise LeaseLostError(
                f"the lease of host {lease.host_id!r} ({lease.label}) is not open any more"
            )
        return lease.host_id

    def close(self, lease: Lease, now: datetime) -> None:
        """End a lease without a death; harmless if it has ended."""
        if lease.host_id == self.mine:
            self._end(lease.host_id, now, dead=False)
            self.mine = None
            self.claims = {}

    def fence_dead(self, now: datetime) -> None:
        """End the leases of hosts that died: whoever holds the folder's lock knows it."""
        for host_id in [each for each in self._table.hosts if each != self.mine]:
            self._end(host_id, now, dead=True)

    def _end(self, host_id: str, now: datetime, *, dead: bool) -> None:
        self._release(host_id, now, dead=dead)
        held = tuple(proc.id for proc in self._table.procs.values() if proc.owner == host_id)
        record = EndRecord(host_id, now, held, dead)
        self._log.append(_records.encode(record))
        self._table.apply_end(record, self._log.number)

    def _release(self, host_id: str, now: datetime, *, dead: bool) -> None:
        """Take what has ended without its owner from it."""
        for process_id, owner in list(self._table.held.items()):
            if owner != host_id:
                continue
            try:
                proc = self._library.finished(process_id)
            except DamageError:
                continue  # the end of the lease lets it go; reading it says what is wrong
            if proc is not None:
                self._committer.release(proc, proc.seq, now, is_death=dead)

    # --- claims --------------------------------------------------------------------------

    def claim(self, host: str, asked: Claim, now: datetime) -> Claims:
        """Take claimable processes and hear news; see the seam for the rules."""
        remembered = self.claims.get(asked.claim_id)
        if remembered is None:
            remembered = self._take(host, asked, now)
            if len(self.claims) >= CLAIMS_REMEMBERED:
                del self.claims[next(iter(self.claims))]
            self.claims[asked.claim_id] = remembered
        claimed = self._handed_out(host, *remembered)
        counts = Counter(each.row.name for each in claimed if each.fresh)
        rooms = asked.rooms
        left = [name for name in asked.names if name not in rooms or counts[name] < rooms[name]]
        next_at = self._table.next_due(left)
        more = next_at is not None and next_at <= now
        return Claims(tuple(claimed), now, None if more else next_at, more)

    def _handed_out(self, host: str, taken: Taken, news: tuple[str, ...]) -> list[Claimed]:
        """Return what a claim took and heard, as far as the host still holds it."""
        claimed = []
        for process_id, identity in taken.items():
            if self._holds(process_id, identity):
                claimed.append(self._hand_out(self._table.procs[process_id], fresh=True))
            elif process_id in self._table.held:
                claimed += self._hand_out_ended(host, process_id, identity)
        for process_id in news:
            proc = self._table.procs.get(process_id)
            if proc is None and process_id not in taken:
                claimed += self._hand_out_ended(host, process_id, None)
            elif proc is not None and proc.owner == host and process_id not in taken:
                claimed.append(self._hand_out(proc, fresh=False))
        return claimed

    def _take(self, host: str, asked: Claim, now: datetime) -> tuple[Taken, tuple[str, ...]]:
        news = tuple(self._table.news)
        self._table.news.clear()
        procs = self._table.take_due(asked.names, now, asked.count_max, asked.rooms)
        taken = {proc.id: (proc.incarnation, proc.epoch + 1) for proc in procs}
        if procs:
            epochs = tuple((process_id, epoch) for process_id, (_, epoch) in taken.items())
            record = ClaimRecord(host, asked.claim_id, now, epochs)
            self._log.append(_records.encode(record))
            self._table.apply_claim(record, self._log.number)
        return taken, news

    def _hand_out_ended(
        self, host: str, process_id: str, taken: tuple[int, int] | None
    ) -> list[Claimed]:
        """Return a process that has ended without the host that still holds it.

        Args:
            host: Who asks.
            process_id: Which.
            taken: The incarnation and epoch in which a claim took it; None for news.
        """
        if self._table.held.get(process_id) != host:
            return []
        try:
            proc = self._library.finished(process_id)
            if proc is None or taken not in {None, (proc.incarnation, proc.epoch)}:
                return []
            history = self._library.history(self._library.trail(proc))
        except DamageError:
            return []  # the next unit of the host tells it
        left = tuple(event for event in history.events if not event.consumed)
        fresh = taken is not None
        row = bare_row(self._library, proc)
        return [Claimed(row, fresh, history.checkpoints if fresh else (), left)]

    def _hand_out(self, proc: Proc, *, fresh: bool) -> Claimed:
        damage = self._table.damage.get(proc.id)
        if damage is None:
            try:
                if not fresh:
                    row = self._library.row(proc)
                    return Claimed(row, fresh, events=self._library.pending(proc))
                history = self._library.load(proc)
                row = self._library.row(proc, history.creation)
                pending = tuple(event for event in history.events if not event.consumed)
                return Claimed(row, fresh, history.checkpoints, pending)
            except DamageError as error:
                damage = str(error)
        proc.keys = b""
        return Claimed(bare_row(self._library, proc), fresh, damage=damage)
