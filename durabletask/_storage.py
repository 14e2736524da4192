"""The storage seam: what a backend must do, and nothing of how.

The protocol can be filled well from a dict, a folder, SQLite, Postgres or a
stream store; it knows nothing of SQL, files or the engine above it.

Rules that hold for every method:

* **Atomic per process.** One `Unit`, one creation, one event is wholly there
  after a crash or not at all. Neighbours in a batch are independent.
* **Acknowledged is durable.** A method returns when its effect survives any
  crash, and reads never show what a crash could still take back.
* **Three outcomes.** Done; refused (in the answer, or a `StorageError` that
  says that nothing was written); unknown (`StorageUnknownError`: repeat the
  same call with the same values, never read and decide). Every write can be
  repeated harmlessly.
* **Time is the storage's.** `now_at`, `created_at`, leases and what is due are
  all by its clock.
* Methods may be called concurrently from one event loop; a storage belongs to
  the loop that first used it.
* Cancelling a call leaves its outcome unknown.
* `Refusal.BUSY` may answer a creation, a delivery, a unit or a purge: the
  process cannot be written now, because somebody else's open transaction holds
  it or because what is stored of it cannot be read. Nothing of it was written,
  its neighbours were, and asking again may be answered otherwise. A storage
  answers so rather than let one process hold up a batch.
* What cannot work until somebody changes the set-up (a password, rights, a
  server that only reads) is a `StorageAccessError`; nothing was written.

Source: Gray and Cheriton 1989 (leases); docs/design.md, "The storage seam".
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from durabletask._model import (
    Claims,
    Control,
    Controlled,
    Created,
    Delivered,
    Lease,
    NewEvent,
    NewProcess,
    Page,
    Query,
    Refusal,
    Snapshot,
    Unit,
    UnitOutcome,
)


class ProcessStorage(Protocol):
    """Where processes live."""

    # --- without a lease: any client ---------------------------------------------------

    async def create(
        self, processes: Sequence[NewProcess], lease: Lease | None = None
    ) -> Sequence[Created]:
        """Create processes; an id that exists is answered with what is there.

        The answer is `fresh` if the stored process carries the same
        `creation_id`, so a repeat after a lost answer is fresh again. Whether
        an existing process is "the same" is for the caller to decide, from
        `name` and `input_digest`.

        Args:
            processes: At most 1,000 of them; ids may repeat, the first wins.
            lease: Given one, a process created here whose `start_at` has come
                belongs to the lease at once, with epoch 1: a spawn and its
                first step need no claim in between.

        Returns:
            One answer per process, in the same order. Refused with BUSY, and
            without a row, where the id is held by a transaction that is still
            open: whether there will be such a process is not known yet; or by
            a terminated process that is to be replaced and that its host has
            not let go.

        Raises:
            LeaseLostError: The lease was fenced; nothing was written.
        """
        ...

    async def deliver(self, events: Sequence[NewEvent], *, mailbox_max: int) -> Sequence[Delivered]:
        """Put events into mailboxes, in the given order.

        Refused with UNKNOWN_PROCESS, FINISHED, MAILBOX_FULL (`mailbox_max`
        unconsumed events are there) or BUSY. An `event_id` that this process has
        received before, consumed or not, is answered with that event, also
        when the process has finished since or the mailbox is full. A
        quarantined process still receives.

        A process that has an owner becomes news in that owner's next claim; a
        parked one becomes claimable.
        """
        ...

    async def request(self, controls: Sequence[Control]) -> Sequence[Controlled]:
        """Ask something of processes, in the given order; at most 1,000 at once.

        Refused with UNKNOWN_PROCESS, FINISHED (not for RETRY), ILLEGAL_TRANSITION,
        NOT_OWNER (RETRY in another epoch or incarnation) or BUSY. A request
        whose id is among the latest `REQUESTS_KEPT` of the process changes
        nothing and is answered with the process as it stands.

        * CANCEL: the request is pending until a unit `meets_cancel`. It is one
          for all time: where there was one, nothing changes; nor while the
          process compensates. A process that no host has ever claimed ends
          with `ending` at once. So does every unfinished descendant be asked.
        * TERMINATE: the process and every unfinished descendant end with
          `ending`. An owner keeps what has ended so until its unit with
          `leave` lets it go, of which nothing else is written, be it a
          `restart`; any other is refused. If it has finished as
          TERMINATED already, nothing changes, but for the descendants.
        * SUSPEND: SUSPENDED, with `reason`, once; not for a quarantined one.
          Nobody claims it. Its owner is not asked to stop by the storage: what it
          records still counts, but that the status of a unit is kept for the
          time after, and an `ending` is refused with ILLEGAL_TRANSITION.
        * RESUME: back to the status before or recorded since; claimable at
          once if nobody holds it, parked or not. Where it is not suspended,
          nothing changes.
        * RETRY: only of a FAILED or QUARANTINED process, which goes on as
          `status` in the next epoch: without ending, owner and `finished_at`,
          claimable at once. `forget` and `restores` take place with it; what
          is not there is passed over. Another status is refused with
          ILLEGAL_TRANSITION, before the epoch is looked at.

        A descendant is a process whose `parent` is the process, in its
        incarnation and whatever generation, and so on. A child that is spawned
        while the request to cancel its parent is pending is born with it.
        Descendants are asked in the order of `list`, and have ended, if they
        end, before any parent is told of it.

        A process that has an owner becomes news in that owner's next claim;
        asked to cancel, a parked one becomes claimable.

        Returns:
            One answer per request, in the same order; descendants are not told of.
        """
        ...

    async def read(
        self, process_ids: Sequence[str], *, history: bool = False
    ) -> Sequence[Snapshot | None]:
        """Read processes, each as of one instant; None where there is no such id.

        Args:
            process_ids: At most 1,000.
            history: Also checkpoints and events, in the order recorded.

        Raises:
            StorageCorruptError: `history` was asked for and is damaged.
        """
        ...

    async def list(self, query: Query) -> Page:
        """List processes in order of creation.

        Going on from a cursor neither repeats nor skips a process that exists
        throughout, whatever is created or purged meanwhile.

        Raises:
            InvalidArgumentError: The cursor is none of this storage's.
        """
        ...

    async def purge(self, process_ids: Sequence[str]) -> Sequence[Refusal | None]:
        """Remove finished processes with everything of theirs.

        Refused with UNKNOWN_PROCESS, NOT_FINISHED (a quarantined one has not
        finished) or BUSY, also while a host still holds what was terminated.
        An id created again is the next incarnation.
        """
        ...

    # --- with a lease: hosts -----------------------------------------------------------

    async def open_lease(self, host_id: str, label: str) -> Lease:
        """Begin a host's right to write. Repeating it with the same identity renews it.

        Raises:
            LeaseLostError: This identity was fenced or has closed its lease before.
            StorageBusyError: The storage takes one host and another has it.
        """
        ...

    async def renew(self, lease: Lease) -> Lease:
        """Prolong a lease; call it every third of `ttl_s`.

        Raises:
            LeaseLostError: It has been fenced, for good.
        """
        ...

    async def claim(
        self,
        lease: Lease,
        claim_id: str,
        names: Sequence[str],
        *,
        count_max: int,
        rooms: Mapping[str, int] | None = None,
    ) -> Claims:
        """Take claimable processes, and hear what is new for those already held.

        First fences every host that is dead or whose lease has ended; their
        processes lose their owner and count a death each, unless something
        was recorded since they were claimed. Then takes up to `count_max`
        processes, longest claimable first, whose name is among `names`: not
        finished, quarantined or suspended; without owner; `start_at` come; and
        if parked, `wake_at` come or an event delivered since. Each gets the
        next epoch, this lease as owner, and is handed out with its history and
        mailbox, read after it was locked.

        News (`fresh=False`) is what arrived for a held process since the last
        claim told of it: events, and requests, as its row shows them. It does
        not count against `count_max`.

        `more` and `next_at` tell of the names of which the answer leaves room.
        Of one whose room it uses up nothing could be taken by the next claim
        either, and when there is room again only the caller can know.

        Args:
            claim_id: New for every claim. A repeat with the same id, and all
                else as it was, returns what the first one took, as far as it
                is still held.
            count_max: Of all names together.
            rooms: How many of one name may be taken at most: those of which
                that is used up are passed over, and others taken in their
                place. A name that is not in it has as much room as there is;
                0 is to take none of it.

        Raises:
            LeaseLostError: The lease was fenced; nothing was taken.
        """
        ...

    async def commit(self, lease: Lease, units: Sequence[Unit]) -> Sequence[UnitOutcome]:
        """Record units of processes that the lease holds, in one go.

        Units of one process apply in the given order. A unit is refused with
        NOT_OWNER when its process is not held by this lease in this epoch and
        incarnation (or does not exist), with FINISHED or ILLEGAL_TRANSITION, or
        with NOT_IN_MAILBOX; that does not touch its neighbours. Because of a
        child or a receiver, its `culprit`, it is refused with OTHER_ORIGIN,
        UNKNOWN_PROCESS, FINISHED or MAILBOX_FULL (a child that it spawns has a
        mailbox too). A unit whose
        seq is not above the highest one applied in its epoch changes nothing
        and is answered DONE; one whose first-wins checkpoint another unit has
        recorded is answered with what is held, and nothing of it is written.
        These are looked at in the order: epoch and incarnation, owner, finished,
        held, mailbox, transition, spawns, sends.

        When a process finishes, by a unit or by a request, and its parent
        exists in the incarnation and generation that spawned it and has not
        finished, an event is put into the parent's mailbox with it, however
        full that is: named `CHILD_ENDED` and the status, its payload that of
        the ending, its id unique to the end and beginning with
        `CHILD_ENDED` + "<generation>:<key>:", without a colon behind that.
        Children are created without an owner.

        A unit with `restart` puts aside nothing: gone with it are checkpoints,
        forgotten ones, the ends of children that nobody has taken, all but
        the latest `EVENTS_KEPT` consumed events, and a request to cancel that
        was met.

        One exception spares a storage a count per step: a unit of nothing but
        first-wins checkpoints whose seq is not above the highest one applied
        may be recorded as well as left out, and is answered DONE either way.
        It is the copy of one that was written, whose checkpoints win, or one
        that its host has not sent: hosts send in order and skip none. For the
        same reason any other unit that is older than such a one, and newer
        than the last of its own sort, may be judged as if it were new. Not so
        across a `restart`: a unit older than that is never recorded.

        Nor is a unit with `spawns` or `sends` taken for written because of its
        seq, since it may have been refused while later ones were written: it
        has a first-wins checkpoint, and only if that is recorded it was
        written. Else it is judged anew, and, if nothing is against it, written
        as far as it is not overtaken: all of it but the status; where it then
        stands in the history is the storage's choice. (That holds
        within a generation: a host lets a `restart` leave as well.)

        A unit refused with BUSY goes again later, as it is. So the later units
        of its process in the batch must be refused with BUSY too: were one of
        them applied, the repeat of the earlier would count as written.

        A checkpoint that `replaces` moves to the end of the history. A unit
        that parks a process of which there is news that no claim has told its
        host leaves it claimable at once.

        Returns:
            One outcome per unit, in the same order.

        Raises:
            LeaseLostError: The lease was fenced; nothing was written.
            StorageUnavailableError: Nothing was written; repeat.
            StorageUnknownError: The answer was lost, or a part was written and
                the rest was not; repeat the same batch.
        """
        ...

    async def close_lease(self, lease: Lease) -> None:
        """End a lease; what it still holds is claimable at once, without a death."""
        ...

    async def close(self) -> None:
        """Give back files, threads and connections. Safe to repeat; the data stays."""
        ...


@runtime_checkable
class Hints(Protocol):
    """A storage that can say "look now". Hints only shorten a wait; polling alone is correct."""

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Call back on the caller's loop when something may have changed.

        Args:
            callback: Gets the id of a process that may be claimable, has news
                or has ended; None for "anything".

        Returns:
            A function that ends the subscription; safe to repeat.
        """
        ...


@runtime_checkable
class Transactions(Protocol):
    """A storage in a database that its users write to as well, in transactions of theirs.

    `connection` is what the storage's documentation says, for Postgres a
    connection of asyncpg. What goes through one of the user's is committed or
    rolled back with it, and while it is open it holds up nobody else.
    """

    async def create_in(self, connection: Any, process: NewProcess) -> Created:
        """Create a process in the user's open transaction, as `ProcessStorage.create` does.

        It has no owner: once it is committed, whichever host claims it runs it.
        Refused with BUSY where another open transaction is creating the id; the
        user's transaction goes on.

        Raises:
            InvalidArgumentError: The connection has no open transaction, or it
                is none of this storage's; nothing was written.
            StorageError: What it says; the user's transaction has failed too.
        """
        ...

    async def deliver_in(self, connection: Any, event: NewEvent, *, mailbox_max: int) -> Delivered:
        """Deliver an event in the user's open transaction, as `ProcessStorage.deliver` does.

        A new event has no position until it is committed, so that the answer
        holds none; events of one transaction arrive in the order delivered. If
        the process ends first, or is purged, the event is dropped.

        Raises:
            InvalidArgumentError: The connection has no open transaction, or it
                is none of this storage's; nothing was written.
            StorageError: What it says; the user's transaction has failed too.
        """
        ...

    async def transact(
        self, lease: Lease, unit: Unit, body: Callable[[Any], Awaitable[bytes]]
    ) -> UnitOutcome:
        """Run `body` in a new transaction that also records its result; both or neither.

        The transaction is on a connection of the storage's own. The fence and
        the owner are checked in it, late, since an open transaction must not
        keep others from fencing this host. If `body` raises, it is rolled back,
        and the same exception is raised again; so is an error with which the
        database refuses at the end what `body` wrote (a deferred constraint).

        A repeat after a lost answer, or after the wait for one was cancelled,
        first reserves the checkpoint's place, so that an earlier transaction
        which is still on its way is waited for, and one that was committed
        shows as `held` without `body` being run. Which repeats those are the
        storage remembers.

        Args:
            lease: The lease under which the process runs.
            unit: One first-wins checkpoint with an empty payload, and nothing
                else. Its seq is its place in the history only: units with a
                lower one, which are on their way by `commit`, apply after it.
            body: Gets the connection, and returns the payload to record. It
                may not end the transaction.

        Returns:
            DONE; or `held` with what any other transaction or unit has recorded
            in its place; or refused with NOT_OWNER, FINISHED or BUSY. If not
            DONE, what `body` wrote was rolled back.

        Raises:
            LeaseLostError, StorageRewoundError: Nothing was written.
            StorageUnavailableError: Nothing was written; repeat. Also where the
                connection was lost or the transaction had to give way to
                another (deadlock, serialization), whatever `body` made of that.
            StorageUnknownError: The answer to the commit was lost; repeat.
            InvalidArgumentError: `body` has ended the transaction by itself.
        """
        ...
