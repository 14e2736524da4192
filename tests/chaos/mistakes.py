"""Mistakes that the driver can plant into the storage of every program that it forks."""

import asyncio
from collections.abc import Callable, Sequence

from durabletask.storage import DONE, Lease, Unit, UnitOutcome
from durabletask_postgres import PostgresStorage


def acknowledged_first() -> None:
    """C18: a commit is answered when it was sent, not when it is done."""
    real = PostgresStorage.commit

    async def commit(
        self: PostgresStorage, lease: Lease, units: Sequence[Unit]
    ) -> Sequence[UnitOutcome]:
        task = asyncio.ensure_future(real(self, lease, units))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return [DONE] * len(units)

    PostgresStorage.commit = commit  # type: ignore[method-assign]


MISTAKES: dict[str, Callable[[], None]] = {"acknowledged_first": acknowledged_first}
