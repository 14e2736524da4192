"""The synchronous core of the storage: a folder, opened.

Knows nothing of event loops and threads; whoever calls it does so from one
thread at a time. `FileSystemStorage` runs it on a worker thread.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import durabletask_filesystem._manifest as _manifest
from durabletask.errors import (
    DurableTaskError,
    StorageCorruptError,
    StorageError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import Clock, Status
from durabletask_filesystem._commit import Committer
from durabletask_filesystem._compaction import Compaction, mergeable, worth_merging
from durabletask_filesystem._controls import Controls
from durabletask_filesystem._desk import Desk
from durabletask_filesystem._files import Folder, SyncError
from durabletask_filesystem._history import Library
from durabletask_filesystem._inbox import Inbox
from durabletask_filesystem._leases import Leases
from durabletask_filesystem._locking import take_lock
from durabletask_filesystem._log import DamageError, Segment
from durabletask_filesystem._mailboxes import Mailboxes
from durabletask_filesystem._manifest import segment_name
from durabletask_filesystem._reach import Reach
from durabletask_filesystem._reading import Reader
from durabletask_filesystem._records import EndingRecord
from durabletask_filesystem._recovery import recover, refuse_foreign
from durabletask_filesystem._requests import (
    Answer,
    Ask,
    Claim,
    CloseLease,
    Commit,
    Compact,
    Create,
    Deliver,
    ListPage,
    OpenLease,
    Purge,
    Read,
    Renew,
    Request,
    lone_surrogate,
)
from durabletask_filesystem._sealing import seal

SEGMENT_BYTES_MAX = 64 * 1024 * 1024

_log = logging.getLogger("durabletask.filesystem")

_REPAIR = "python -m durabletask_filesystem repair DIR"


class Store:
    """An open folder, held under its lock."""

    def __init__(
        self,
        folder: Folder,
        clock: Clock,
        *,
        label: str = "",
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Only `open` makes one."""
        self.folder = folder
        self._clock = clock
        self._label = label
        self._segment_bytes_max = segment_bytes_max
        self._entropy = entropy
        self._failed: str | None = None
        self._closed = False
        self._inbox = Inbox(folder)
        self._merge: Iterator[None] | None = None
        self._mark: tuple[bytes, int] | None = None

    @classmethod
    def open(
        cls,
        folder: Folder,
        clock: Clock,
        *,
        label: str = "",
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> "Store":
        """Take the folder's lock, recover what it holds, make that durable, and serve it.

        A new or empty folder becomes a store.

        Raises:
            StorageBusyError: Another program holds it; the message names its pid.
            StorageFormatError: A newer format, or a folder of something else; nothing was touched.
            StorageCorruptError: Acknowledged data is damaged; the message names file and offset.
            StorageUnavailableError: The folder cannot be opened or written.
        """
        store = cls(
            folder, clock, label=label, segment_bytes_max=segment_bytes_max, entropy=entropy
        )
        refuse_foreign(folder)
        take_lock(folder, label)
        try:
            store._load()
        except BaseException:
            folder.unlock()
            raise
        return store

    def _load(self) -> None:
        try:
            log, table = recover(self.folder, self._entropy)
        except OSError as error:
            raise StorageUnavailableError(f"the folder cannot be opened: {error}") from error
        self._merge = None
        self._log = log
        self._table = table
        self._library = Library(log, table)
        mailboxes = Mailboxes(self._library)
        reach = Reach(table, self._library, mailboxes)
        self._committer = Committer(log, table, self._library, reach)
        self._desk = Desk(log, table, self._library, mailboxes)
        self._controls = Controls(log, table, self._library, reach)
        self._leases = Leases(log, table, self._library, self._committer)
        self._reader = Reader(log, table, self._library)
        table.family.complete(self._library.finished_long_ago)

    def take_stirred(self) -> list[str]:
        """Return to whom others have done something since the last call of this."""
        stirred = list(self._table.stirred)
        self._table.stirred.clear()
        return stirred

    # --- requests ------------------------------------------------------------------------

    def apply(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer a batch of requests in order, with one write and one sync for all of them.

        Each request sees what those before it did. When this returns, all of
        it survives a power loss. An answer that is a `DurableTaskError`
        (such as LeaseLostError) concerns its request alone.

        Raises:
            StorageUnavailableError: Nothing of the whole batch was written; a repeat may work.
            StorageUnknownError: What stands before a `Compact` was written, and the rest was not.
            StorageFailedError: The store is poisoned for good.
        """
        self._check_usable()
        answers: list[Answer] = []
        # Until the end is reached: whatever else breaks leaves memory and disk apart.
        self._failed = "an unexpected error in an earlier call"
        try:
            now = max(self._clock.now(), self._table.latest)
            if len(self._table.hosts) > self.leased:
                self._leases.fence_dead(now)
            for request in requests:
                try:
                    answers.append(self._answer(request, now))
                except StorageFailedError:
                    raise  # poisoned, by a merge: whatever else was written could be lost
                except DurableTaskError as error:
                    answers.append(error)
                except UnicodeEncodeError as error:
                    answers.append(lone_surrogate(error))
                except DamageError as error:
                    answers.append(StorageCorruptError(str(error), hint=_REPAIR))
            if self._log.dirty:
                self._table.latest = now
                self._log.flush()
        except SyncError as error:
            raise self._poison(f"a sync failed: {error}") from error
        except OSError as error:
            raise self._take_back(error, in_part=Compact() in requests) from error
        self._failed = None
        if self._log.end >= self._segment_bytes_max:
            self.rotate()
        return answers

    def apply_with_letters(
        self, requests: Sequence[Request]
    ) -> tuple[list[Answer], Sequence[Request]]:
        """Answer a batch together with what other programs ask in the inbox.

        Returns:
            The answers to `requests`, and what the others asked.

        Raises:
            StorageError: As `apply`; the letters are answered with it too.
        """
        letters = self._inbox.letters(self._clock.now())
        asked = [letter.request for letter in letters]
        try:
            answers = self.apply([*requests, *asked])
        except StorageError as error:
            self._inbox.reply(letters, [error] * len(letters))
            raise
        self._inbox.reply(letters, answers[len(requests) :])
        return answers[: len(requests)], asked

    def _answer(self, request: Request, now: datetime) -> Answer:
        match request:
            case Commit(lease, units):
                return self._committer.commit(self._leases.check(lease), units, now)
            case Create(processes, lease):
                host = None if lease is None else self._leases.check(lease)
                return self._desk.create(processes, host, now)
            case Deliver(events, mailbox_max):
                return self._desk.deliver(events, mailbox_max, now)
            case Ask(controls):
                return self._controls.request(controls, now)
            case Claim(lease):
                return self._leases.claim(self._leases.check(lease), request, now)
            case Read(process_ids, history):
                return self._reader.read(process_ids, history=history)
            case ListPage(query, scan_max):
                return self._reader.list(query, scan_max)
            case Purge(process_ids):
                return self._desk.purge(process_ids, now)
            case OpenLease(host_id, label):
                if not self.leased:
                    self._inbox.clean()
                return self._leases.open(host_id, label, now)
            case Renew(lease):
                return self._leases.open(self._leases.check(lease), lease.label, now)
            case Compact(slice=True):
                self._compact_slice()
                return int(self.compacting)
            case Compact():
                self._log.flush()
                self._failed = None
                return self.compact()
            case CloseLease(lease):
                self._leases.close(lease, now)
                return None

    # --- failures ------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StorageFailedError(self._failed, hint="open the folder anew")
        if self._closed:
            raise StorageFailedError("the storage is closed")
        try:
            self.folder.check_in_place()
        except OSError as error:
            raise self._poison(f"the folder is not where it was: {error}") from error

    def _poison(self, why: str) -> StorageFailedError:
        self._failed = why
        return StorageFailedError(why, hint="open the folder anew")

    def _take_back(self, error: OSError, *, in_part: bool) -> StorageError:
        """Undo a batch whose write failed, on disk and in memory.

        Args:
            error: What failed.
            in_part: A `Compact` amid the batch may have made durable what stands before it.
        """
        before = self._leases
        self._failed = None
        try:
            self._log.cut_back()
            self._log.close_file()
            self._load()
        except (OSError, DurableTaskError) as second:
            return self._poison(f"a write failed ({error}), and could not be undone: {second}")
        self._leases.resume(before)
        if in_part:
            return StorageUnknownError(f"a write failed behind a compaction: {error}")
        return StorageUnavailableError(f"the write failed and was undone: {error}")

    # --- keeping house -------------------------------------------------------------------

    def rotate(self) -> None:
        """Seal the current segment and begin a new one, whatever its size.

        Raises:
            StorageFailedError: The store is poisoned for good.
        """
        try:
            sealed = self._log.rotate()
        except SyncError as error:
            raise self._poison(str(error)) from error
        except OSError:
            return  # the old one goes on; a full disk will say so at the next write
        seal(self._log, self._table, sealed)
        if self._merge is None:
            self._begin_compaction(
                worth_merging(self._log, self._table.dead, self._segment_bytes_max)
            )

    def compact(self) -> int:
        """Merge all sealed segments without what nobody can ask for; return the bytes gained.

        Raises:
            StorageFailedError: The store is poisoned for good.
        """
        self._check_usable()
        if not self._log.empty:
            self.rotate()
            self._merge = None
        size = sum(segment.end for segment in self._log.segments[:-1])
        self._begin_compaction(mergeable(self._log))
        while self.compacting:
            self._compact_slice()
        return size - sum(segment.end for segment in self._log.segments[:-1])

    @property
    def compacting(self) -> bool:
        """Whether a merge is under way."""
        return self._merge is not None and self._failed is None and not self._closed

    def _begin_compaction(self, run: Sequence[Segment]) -> None:
        if run:
            merge = Compaction(self._log, self._table, self._library, run, self._entropy)
            self._merge = merge.steps()

    def _compact_slice(self) -> None:
        """Go on with a merge for some milliseconds; one that cannot be done is given up."""
        if self._merge is None:
            return
        try:
            next(self._merge)
            return
        except StopIteration:
            pass
        except SyncError as error:
            raise self._poison(str(error)) from error
        except (OSError, DamageError) as error:
            _log.warning("compaction was given up, nothing was changed: %s", error)
        self._merge = None

    def status(self, process_id: str) -> Status | None:
        """Return a process's status, None if there is none; for `repair`."""
        proc = self._reader.find(process_id)
        return None if proc is None else proc.status

    def quarantine(self, process_id: str, ending: EndingRecord) -> None:
        """Set an unfinished process aside, whoever held it; for `repair`."""
        self.apply(())  # whoever held it is dead
        proc = self._table.procs[process_id]
        now = max(self._clock.now(), self._table.latest)
        self._committer.write_ending(proc, ending, now)
        self._log.flush()

    # --- holding the folder ------------------------------------------------------------------

    @property
    def leased(self) -> bool:
        """Whether a host of this program has a lease."""
        return self._leases.mine is not None

    def let_go(self, *, clean: bool) -> None:
        """Give the folder back, so that another program can have it, and keep what is in memory.

        Args:
            clean: Write the clean-close mark first.
        """
        self._merge = None
        if clean and self._failed is None:
            self._mark_clean()
        self._log.close_file()
        self._mark = self._files_now()
        self.folder.unlock()

    def take_again(self) -> None:
        """Take the folder after `let_go`; read it anew if another program has had it since.

        Raises:
            StorageBusyError: Another program has it.
        """
        take_lock(self.folder, self._label)
        try:
            if self._failed is None and self._mark != self._files_now():
                self._load()
        except BaseException:
            self.folder.unlock()
            raise

    def _files_now(self) -> tuple[bytes, int] | None:
        """Return what changes whenever another program writes anything."""
        try:
            name = segment_name(self._log.number)
            return self.folder.read(_manifest.NAME), self.folder.size(name)
        except OSError:
            return None

    def close(self) -> None:
        """Write the clean-close mark and give the folder back. Safe to repeat."""
        if not self._closed:
            self._closed = True
            try:
                if self._failed is None:
                    self._mark_clean()
                self._log.close_file()
            finally:
                self.folder.unlock()

    def _mark_clean(self) -> None:
        try:
            self.folder.check_in_place()
            _manifest.save(self.folder, self._log.manifest(clean=True))
        except SyncError as error:
            self._failed = f"the folder could not be closed: {error}"
        except OSError as error:
            # Nothing is lost: the next opening finds a folder that was not closed.
            _log.warning("the folder is left as after a crash: %s", error)
