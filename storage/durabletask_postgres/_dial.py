"""Opening a connection to where a DSN says, and keeping the DSN to ourselves.

Knows how asyncpg connects and what may be asked of a server that stands
behind a pooler. Refuses to know what the connection is for. A DSN holds a
password: no message of ours repeats any part of one.
"""

import asyncio
import os
import re
import ssl
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from durabletask.errors import StorageAccessError, StorageError, StorageUnavailableError
from durabletask_postgres._line import Line, ServerFacts, facts_of
from durabletask_postgres._trouble import DRIVER_ERRORS, storage_error, text_of

APPLICATION_NAME = "durabletask"
"""What the server's list of sessions calls us; a pooler accepts this setting."""

CACHE_SIZE = 100
"""Prepared statements a connection keeps: asyncpg's own default, and more than we have."""

SECRET_MIN = 4
"""A shorter piece of a DSN is part of every other message."""

_DELIMITERS = re.compile(r"[/@:?#&=]")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_PORT = re.compile(r":\d+(?=,|$)")
_FORM = "postgresql://user:password@host:5432/database, with / @ : ? # in a password as %2F %40 …"


class Dialer:
    """Opens connections to one database, on whichever loop asks."""

    __slots__ = (
        "_application_name",
        "_dsn",
        "_files",
        "_place",
        "_query",
        "_secrets",
        "_size",
        "_target",
        "_timeout_s",
    )

    def __init__(
        self, dsn: str, query: str, statement_cache_size: int | None, timeout_s: float
    ) -> None:
        """Take note of how to connect.

        Args:
            dsn: Where; asyncpg fills in what it leaves out from PGHOST and its like.
            query: The statement `server`.
            statement_cache_size: None for the default, or 0 where a pooler is met.
            timeout_s: For each of the two: connecting, and looking at the server.
        """
        self._dsn = dsn
        self._query = query
        self._size = statement_cache_size
        self._timeout_s = timeout_s
        self._secrets = _secrets(dsn)
        asked = _options(dsn)
        self._place = asked.get("host") or _host(dsn)
        self._files = {name: asked[name] for name in _FILES if name in asked}
        self._application_name = asked.get("application_name", APPLICATION_NAME)
        several = "," in asked.get("host", "") or "," in dsn.partition("?")[0]
        # Of several hosts one is the primary, and it is not always the first that answers.
        chosen = "target_session_attrs" in asked or "PGTARGETSESSIONATTRS" in os.environ
        self._target = SessionAttribute.read_write if several and not chosen else None

    async def dial(self) -> Line:
        """Connect and look at the server.

        Raises:
            StorageUnavailableError: Not now.
            StorageAccessError: Not as things are set up: the DSN, the password,
                the rights, or a server that cannot do.
        """
        try:
            line = await self._connect(CACHE_SIZE if self._size is None else self._size)
            if line.facts.pooled and self._size is None:
                # Statements prepared for one session would be missed in the next, or found by
                # another client. Nothing has been prepared so far.
                line.terminate()
                self._size = 0
                line = await self._connect(0)
            return line
        except ssl.SSLCertVerificationError as error:
            raise storage_error(error, sent=False) from error  # a ValueError too, but not the DSN's
        except (asyncpg.ClientConfigurationError, ValueError) as error:
            raise self._unusable(error) from None
        except DRIVER_ERRORS as error:
            told = storage_error(error, sent=False)
            if self._reveals(f"{told} {error!r}"):
                raise _silent(told) from None
            raise self._explained(told, error) from error

    async def _connect(self, size: int) -> Line:
        connection = await asyncpg.connect(
            self._dsn,
            timeout=self._timeout_s,
            statement_cache_size=size,
            server_settings={"application_name": self._application_name},
            target_session_attrs=self._target,
        )
        try:
            facts = await self._look(connection)
            facts.check()
            return Line(connection, facts)
        except BaseException:
            connection.terminate()
            raise

    async def _look(self, connection: "asyncpg.Connection[asyncpg.Record]") -> ServerFacts:
        async with asyncio.timeout(self._timeout_s):
            return await facts_of(connection, self._query)

    def _explained(self, told: StorageError, error: Exception) -> StorageError:
        """Return the error with what in the DSN may have led to it."""
        if isinstance(error, asyncpg.UndefinedObjectError):
            # What asyncpg does not know itself it hands to the server as a setting.
            return StorageAccessError(
                f"an option in the DSN is not known: {text_of(error)}",
                hint="leave it out; of libpq's own options asyncpg takes those of TLS, passfile "
                "and target_session_attrs",
            )
        missing = [name for name, path in self._files.items() if not os.path.exists(path)]
        if isinstance(error, FileNotFoundError) and missing:
            return StorageAccessError(
                f"a file that the DSN names is not there: {' '.join(missing)}",
                hint="correct its path, which counts from where the program was started",
            )
        if isinstance(error, OSError) and self._place and not self._reveals(self._place):
            return StorageUnavailableError(
                str(told),
                hint=f"the DSN leads to {self._place!r}: see that Postgres runs there and lets "
                "this machine in",
            )
        return told

    def _unusable(self, error: Exception) -> StorageAccessError:
        # A text cut at the wrong place has the password where the port should be, so what Python
        # says of a part is not repeated. What asyncpg says of an option is, where it can be.
        text = text_of(error)
        told = isinstance(error, asyncpg.ClientConfigurationError) and "DSN" not in text
        if told and not self._reveals(text):
            return StorageAccessError(f"the DSN cannot be used: {text}")
        return StorageAccessError("the DSN cannot be read", hint=f"write it as {_FORM}")

    def _reveals(self, text: str) -> bool:
        return any(secret in text for secret in self._secrets)


def _silent(told: StorageError) -> StorageError:
    return type(told)("Postgres refused, in words that repeat a part of the DSN", hint=told.hint)


def _options(dsn: str) -> dict[str, str]:
    """Return the options behind the question mark; empty for a DSN that cannot be read."""
    try:
        return {name: values[-1] for name, values in parse_qs(urlsplit(dsn).query).items()}
    except ValueError:
        return {}


def _host(dsn: str) -> str:
    """Return where a DSN leads; nothing if a password that nobody encoded may have cut it."""
    place, _, rest = dsn.partition("://")[2].replace("?", "/").replace("#", "/").partition("/")
    return "" if "@" in rest else _PORT.sub("", place.rpartition("@")[2])


def _secrets(dsn: str) -> frozenset[str]:
    """Return every piece of a DSN that may be one of a password, however it is cut.

    A password with a delimiter in it that nobody encoded is cut at the wrong
    place, and a piece of it is taken for a host or a database.
    """
    options = _options(dsn)
    head, _, _ = dsn.rpartition("@")
    _, _, login = head.partition("://")
    user, _, password = login.partition(":")
    whole = {
        password,
        options.get("password", ""),
        options.get("sslpassword", ""),
        os.environ.get("PGPASSWORD", ""),
    }
    pieces = {piece for text in whole for piece in _DELIMITERS.split(text)} | whole
    pieces |= {unquote(piece) for piece in pieces}
    return frozenset(piece for piece in pieces if len(piece) >= SECRET_MIN and piece != user)
