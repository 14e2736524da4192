"""What runs on the storage's worker thread: holding the folder, or asking who holds it.

A program with a lease holds the folder. One without takes it for the time of
one batch; where that fails, another program has it and is asked by letter.
"""

from collections.abc import Sequence

from durabletask.errors import StorageBusyError, StorageUnavailableError, StorageUnknownError
from durabletask.storage import Clock
from durabletask_filesystem._client import Client
from durabletask_filesystem._files import Folder
from durabletask_filesystem._inbox import ClientRequest
from durabletask_filesystem._requests import Answer, Request
from durabletask_filesystem._store import Store


class Worker:
    """Answers batches, one at a time, blocking."""

    def __init__(
        self, folder: Folder, clock: Clock, *, segment_bytes_max: int, reply_timeout_s: float
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._segment_bytes_max = segment_bytes_max
        self._client = Client(folder, reply_timeout_s)
        self._store: Store | None = None
        self._holding = False
        self._asked: Sequence[Request] = ()
        self._stirred: list[str] = []

    @property
    def leased(self) -> bool:
        """Whether a host of this program has a lease."""
        return self._store is not None and self._store.leased

    @property
    def compacting(self) -> bool:
        """Whether a merge is under way, that goes on by slices."""
        return self._store is not None and self._store.compacting

    def take_asked(self) -> Sequence[Request]:
        """Return what other programs asked along with the last batch; the second time nothing."""
        asked, self._asked = self._asked, ()
        return asked

    def take_stirred(self) -> list[str]:
        """Return to whom others have done something by the last batch; the second time nothing."""
        stirred, self._stirred = self._stirred, []
        return stirred

    def work(self, requests: Sequence[Request], rung: bool) -> list[Answer]:
        """Answer a batch.

        Args:
            requests: Of this program.
            rung: There may be letters.
        """
        try:
            store = self._hold()
        except StorageBusyError as error:
            return self._ask_holder(requests, error)
        leased = store.leased
        try:
            if not (rung and leased):
                return store.apply(requests)
            answers, self._asked = store.apply_with_letters(requests)
            return answers
        finally:
            self._stirred = store.take_stirred()
            if not store.leased:
                self._holding = False
                store.let_go(clean=leased)

    def _ask_holder(self, requests: Sequence[Request], busy: StorageBusyError) -> list[Answer]:
        """Ask the program that holds the folder; what takes a lease is refused."""
        asked = [request for request in requests if isinstance(request, ClientRequest)]
        answers: list[Answer] | None = []
        if asked:
            answers = self._client.ask(asked, self._clock.now(), self._is_free)
        if answers is None:
            try:
                return self.work(requests, False)
            except StorageUnavailableError as error:
                # True of this attempt; who had the folder may have done what the letters asked.
                raise StorageUnknownError(f"the folder became free, but {error}") from error
        came = iter(answers)
        return [next(came) if isinstance(request, ClientRequest) else busy for request in requests]

    def _is_free(self) -> bool:
        try:
            self._hold()
        except StorageBusyError:
            return False
        return True

    def _hold(self) -> Store:
        if self._store is None:
            self._store = Store.open(
                self._folder, self._clock, segment_bytes_max=self._segment_bytes_max
            )
        elif not self._holding:
            self._store.take_again()
        self._holding = True
        return self._store

    def close(self) -> None:
        """Mark the folder clean and give it back, unless another program has it."""
        if self._store is None:
            return
        try:
            self._hold().close()
        except StorageBusyError:
            return  # whoever has it marks it clean when it closes
