"""What cannot be read stops its own processes only: claims and reads are repeated with care.

Refuses to know where the damage is: the database's functions find that out, in
parts of a transaction that may fail.
"""

import logging
from collections.abc import Sequence
from typing import Any

from asyncpg import Record

from durabletask.errors import StorageCorruptError
from durabletask_postgres._line import Fetch
from durabletask_postgres._refusals import is_damage
from durabletask_postgres._sql import Statements
from durabletask_postgres._trouble import UnexpectedError

_log = logging.getLogger("durabletask")

_HINT = "restore the page or the database from a backup; the server's log names the file"


class Salvage:
    """Claims, reads and listings of one storage, repeated with care where something is damaged."""

    def __init__(self, fetch: Fetch, statements: Statements) -> None:
        self._fetch = fetch
        self._statements = statements
        self._reported = ""

    async def claim(self, *args: Any) -> Sequence[Record]:
        """Return the records of a claim; what cannot be read comes with its damage or stays out.

        Raises:
            StorageError: See `ProcessStorage.claim`.
        """
        try:
            return await self._fetch(self._statements["claim"], *args)
        except UnexpectedError as error:
            if not is_damage(error):
                raise
            if str(error) != self._reported:  # else at each claim for as long as it is there
                self._reported = str(error)
                _log.error("claiming around what cannot be read: %s; %s", error, _HINT)
            return await self._fetch(self._statements["claim_carefully"], *args)

    async def read(self, process_ids: Sequence[str], *, history: bool) -> Sequence[Record]:
        """Return the records of processes, with their histories if asked for.

        Raises:
            StorageCorruptError: One of them cannot be read; the others can, in calls of their own.
        """
        statement = self._statements["read_history" if history else "read"]
        try:
            return await self._fetch(statement, process_ids)
        except UnexpectedError as error:
            if not is_damage(error):
                raise
            found = await self._fetch(self._statements["damages"], process_ids, history)
            if not found:  # it belongs to a neighbour
                return await self._fetch(self._statements["read_carefully"], process_ids, history)
            names = ", ".join(f"{each['process_id']!r}: {each['damage']}" for each in found[:5])
            more = f", and {len(found) - 5:,} more" if len(found) > 5 else ""
            raise StorageCorruptError(
                f"what is stored of process {names}{more} is damaged", hint=_HINT
            ) from error

    async def list(self, *args: Any) -> Sequence[Record]:
        """Return the records of a listing, without what cannot be read.

        Raises:
            StorageError: See `ProcessStorage.list`.
        """
        try:
            return await self._fetch(self._statements["list"], *args)
        except UnexpectedError as error:
            if not is_damage(error):
                raise
            return await self._fetch(self._statements["list_carefully"], *args)
