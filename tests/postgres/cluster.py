"""A primary with a hot standby that can be left behind and then promoted.

A failover that loses acknowledged writes is made in this order: freeze the
standby's receiver, write to the primary, crash the primary, promote. Refuses
to know what is written.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from durabletask_postgres.testing import ThrowAwayError, ThrowAwayPostgres

SLOT = "standby"
LOOKS_MAX = 3_000
"""Looks at a standby, each a few milliseconds, before it counts as hanging."""


@dataclass
class Cluster:
    """Two servers; `standby` follows `primary` until it is promoted."""

    primary: ThrowAwayPostgres
    standby: ThrowAwayPostgres
    _frozen: int | None = None

    @property
    def dsn(self) -> str:
        """Leads to whichever of the two can write at that moment."""
        places = {
            "host": f"{self.primary.folder},{self.standby.folder}",
            "port": f"{self.primary.port},{self.standby.port}",
            "target_session_attrs": "read-write",
        }
        return f"postgresql://postgres@/postgres?{urlencode(places)}"

    def wait_level(self) -> None:
        """Wait until the standby has applied all that the primary has written by now."""
        written = self.primary.sql("select pg_current_wal_flush_lsn()")
        self._wait(f"select pg_last_wal_replay_lsn() >= '{written}'")

    def freeze(self) -> None:
        """Leave the standby behind: from here on it receives nothing, and nobody notices."""
        self._frozen = int(self.standby.sql("select pid from pg_stat_wal_receiver"))
        os.kill(self._frozen, signal.SIGSTOP)
        while (state := _state(self._frozen)) != "T":
            assert state != "Z", "the receiver has ended"

    def thaw(self) -> None:
        """Let the standby follow again, if it was left behind."""
        if self._frozen is not None:
            os.kill(self._frozen, signal.SIGCONT)
            self._frozen = None

    def fail_over(self) -> ThrowAwayPostgres:
        """Crash the primary, promote the standby as it is, and return the new primary."""
        self.primary.crash()
        if self._frozen is not None:
            # Were it to go on, it would still write down what it has in its hands. To the server a
            # child killed is a crash, so it starts again.
            os.kill(self._frozen, signal.SIGKILL)
            self._frozen = None
            self.standby.restart()
        self.standby.sql("select pg_promote(wait => true)")
        self._wait("select not pg_is_in_recovery()")
        return self.standby

    def timeline(self, server: ThrowAwayPostgres) -> int:
        """Return the timeline of a primary; each promotion begins a new one."""
        # pg_control_checkpoint() still tells the old one right after a promotion.
        name = server.sql("select pg_walfile_name(pg_current_wal_lsn())")
        return int(name[:8], 16)

    def _wait(self, question: str) -> None:
        for _ in range(LOOKS_MAX):
            if self.standby.sql(question) == "t":
                return
        raise ThrowAwayError(f"still not true on the standby: {question}")


@contextmanager
def new_cluster(*, version: int = 18, synchronous: bool = False) -> Iterator[Cluster]:
    """Yield a primary and its standby, which follows it and has caught up.

    Args:
        version: Of both.
        synchronous: A commit on the primary waits for the standby; with the
            standby frozen it waits for ever.
    """

    def copy(standby: ThrowAwayPostgres) -> None:
        standby.run(
            *("pg_basebackup", "--dbname", primary.dsn, "--pgdata", standby.data),
            *("--write-recovery-conf", "--wal-method", "stream", "--checkpoint", "fast"),
            *("--create-slot", "--slot", SLOT, "--no-sync"),
        )

    settings = {"synchronous_standby_names": "*"} if synchronous else {}
    with (
        ThrowAwayPostgres(version=version, settings=settings) as primary,
        ThrowAwayPostgres(version=version, fill=copy) as standby,
    ):
        cluster = Cluster(primary, standby)
        cluster.wait_level()
        try:
            yield cluster
        finally:
            cluster.thaw()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
