"""What can be done to processes from outside, to one by its id or to all that a filter finds.

A thin face: it checks arguments and hands over to `_requests`.
"""

from typing import Unpack

import durabletask._control as _control
from durabletask._codec import Codec
from durabletask._errors import InvalidArgumentError
from durabletask._failure import Failures
from durabletask._filter import Filter, bulk_query
from durabletask._limits import check_name
from durabletask._model import Control
from durabletask._requests import POSSIBLE, Requests

REASON_CHARS_MAX = 16 * 1024


class BulkCalls:
    """`cancel`, `terminate`, `suspend`, `resume`, `retry`, `purge` by filter.

    The filter is that of `list`: status, name, prefix, tags, created_from,
    created_until, finished_from, finished_until, parent. Of what it finds only
    that is asked of which it is possible, in batches of 1,000, in order of
    creation; what is spawned meanwhile may be found too. Each call may be
    repeated. Whoever means every process says so: `all=True`, without a filter.
    """

    codec: Codec
    failures: Failures
    _requests: Requests

    def _check_usable(self) -> None:
        """Raise if the client cannot be used now."""

    async def cancel(
        self, *, reason: str | None = None, all: bool = False, **filter: Unpack[Filter]
    ) -> int:
        """Ask many processes to cancel themselves; see `ProcessHandle.cancel`.

        Returns:
            How many were asked, now or before; their children not counted.

        Raises:
            InvalidArgumentError: No filter and not `all`, or a wrong one;
                nothing was written.
            ProcessBusyError: Some are held by open transactions of others; all
                others were asked.
            StorageUnavailableError, StorageUnknownError: Some were perhaps
                not asked; try again.
        """
        self._check_usable()
        query = bulk_query("cancel", filter, all=all, possible=POSSIBLE["cancel"])
        text = checked_reason(reason)
        return await self._requests.many(
            query, "cancel", lambda pid, new: _control.to_cancel(pid, new, text, self.failures)
        )

    async def terminate(
        self,
        *,
        reason: str | None = None,
        output: object = None,
        all: bool = False,
        **filter: Unpack[Filter],
    ) -> int:
        """End many processes at once; see `ProcessHandle.terminate`. Else as `cancel`."""
        self._check_usable()
        query = bulk_query("terminate", filter, all=all, possible=POSSIBLE["terminate"])
        text, payload = checked_reason(reason), self._output(output)
        return await self._requests.many(
            query, "terminate", lambda pid, new: _control.to_terminate(pid, new, text, payload)
        )

    async def suspend(
        self, *, reason: str | None = None, all: bool = False, **filter: Unpack[Filter]
    ) -> int:
        """Let many processes rest; see `ProcessHandle.suspend`. Else as `cancel`."""
        self._check_usable()
        query = bulk_query("suspend", filter, all=all, possible=POSSIBLE["suspend"])
        text = checked_reason(reason)
        return await self._requests.many(
            query, "suspend", lambda pid, new: _control.to_suspend(pid, new, text)
        )

    async def resume(self, *, all: bool = False, **filter: Unpack[Filter]) -> int:
        """Let many suspended processes go on. Else as `cancel`."""
        self._check_usable()
        query = bulk_query("resume", filter, all=all, possible=POSSIBLE["resume"])
        return await self._requests.many(query, "resume", _control.to_resume)

    async def retry(
        self, *, from_key: str | None = None, all: bool = False, **filter: Unpack[Filter]
    ) -> int:
        """Let many failed or quarantined processes go on; see `ProcessHandle.retry`.

        One that has recorded nothing under `from_key`, or whose history is
        damaged, is left as it is.

        Returns:
            How many go on. Else as `cancel`.
        """
        self._check_usable()
        query = bulk_query("retry", filter, all=all, possible=POSSIBLE["retry"])
        return await self._requests.retry_many(query, checked_from(from_key))

    async def purge(
        self, *, recursive: bool = True, all: bool = False, **filter: Unpack[Filter]
    ) -> int:
        """Remove many finished processes with everything of theirs; see `ProcessHandle.purge`.

        Args:
            recursive: Whether the finished ones below them go too, whatever
                the filter says of those; without it costs one look less each.
            all: Every finished process.
            **filter: As for `list`.

        Returns:
            How many were removed. Else as `cancel`.
        """
        self._check_usable()
        query = bulk_query("purge", filter, all=all, possible=POSSIBLE["purge"])
        return await self._requests.purge_many(query, recursive=recursive)

    # --- for handles ------------------------------------------------------------------------

    async def ask(self, control: Control) -> None:
        """Ask something of one process; for handles."""
        self._check_usable()
        await self._requests.one(control)

    async def cancel_one(self, process_id: str, reason: str | None) -> None:
        """Ask a process to cancel itself; for `ProcessHandle.cancel`."""
        text, new_id = checked_reason(reason), self._requests.new_id()
        await self.ask(_control.to_cancel(process_id, new_id, text, self.failures))

    async def terminate_one(self, process_id: str, reason: str | None, output: object) -> None:
        """End a process; for `ProcessHandle.terminate`."""
        text, payload = checked_reason(reason), self._output(output)
        new_id = self._requests.new_id()
        await self.ask(_control.to_terminate(process_id, new_id, text, payload))

    async def suspend_one(self, process_id: str, reason: str | None) -> None:
        """Let a process rest; for `ProcessHandle.suspend`."""
        text, new_id = checked_reason(reason), self._requests.new_id()
        await self.ask(_control.to_suspend(process_id, new_id, text))

    async def resume_one(self, process_id: str) -> None:
        """Let a process go on; for `ProcessHandle.resume`."""
        await self.ask(_control.to_resume(process_id, self._requests.new_id()))

    async def retry_one(self, process_id: str, from_key: str | None) -> None:
        """Let a failed process go on; for `ProcessHandle.retry`."""
        self._check_usable()
        await self._requests.retry(process_id, checked_from(from_key))

    async def purge_one(self, process_id: str, *, recursive: bool) -> int:
        """Remove a finished process; for `ProcessHandle.purge`."""
        self._check_usable()
        return await self._requests.purge(process_id, recursive=recursive)

    def _output(self, output: object) -> bytes:
        return self.codec.shape_of(output).encode(output, "output")


def checked_reason(reason: object) -> str | None:
    """Return a reason that can be stored.

    Raises:
        InvalidArgumentError: It is no text, or a very long one.
    """
    if reason is None:
        return None
    if not isinstance(reason, str) or len(reason) > REASON_CHARS_MAX:
        raise InvalidArgumentError(
            f"a reason is a text of at most {REASON_CHARS_MAX:,} characters, not {reason!r:.80}"
        )
    return reason.encode("utf-8", "backslashreplace").decode()


def checked_from(from_key: str | None) -> str | None:
    """Return a key that can be one, or None."""
    return None if from_key is None else check_name("from_key", from_key)
