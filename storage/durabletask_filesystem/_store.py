"""The synchronous core of the storage: a folder, opened.

Knows nothing of event loops and threads; whoever calls it does so from one
thread at a time. `FileSystemStorage` runs it on a worker thread.
"""

import os
from collections.abc import Callable, Sequence

from durabletask._clock import Clock

from durabletask_filesystem._files import Folder
from durabletask_filesystem._requests import Answer, Request

SEGMENT_BYTES_MAX = 64 * 1024 * 1024


class Store:
    """An open folder, held under its lock."""

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
        raise NotImplementedError

    def apply(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer a batch of requests in order, with one write and one sync for all of them.

        Each request sees what those before it did. When this returns, all of
        it survives a power loss. An answer that is a `DurableTaskError`
        (such as LeaseLostError) concerns its request alone.

        Raises:
            StorageUnavailableError: Nothing of the whole batch was written; a repeat may work.
            StorageFailedError: The store is poisoned for good.
        """
        raise NotImplementedError

    def compact(self) -> int:
        """Merge sealed segments without what nobody can ask for; return the bytes gained."""
        raise NotImplementedError

    def rotate(self) -> None:
        """Seal the current segment and begin a new one, whatever its size."""
        raise NotImplementedError

    def close(self) -> None:
        """Write the clean-close mark and give the folder back. Safe to repeat."""
        raise NotImplementedError
