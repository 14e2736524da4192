"""The real pgbouncer in transaction mode, where there is one on this machine.

Found on the PATH, or by the variable `DURABLETASK_TEST_PGBOUNCER`; no package
index carries its program. The tests of poolers then run with it as well.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from durabletask_postgres._binaries import Binaries, find
from durabletask_postgres.testing import VERSION, ThrowAwayError, _free_port, _on_disk
from tests.postgres.pooler import Pooler
from tests.postgres.server import address, moved

VARIABLE = "DURABLETASK_TEST_PGBOUNCER"
PROGRAM = os.environ.get(VARIABLE) or shutil.which("pgbouncer")

END_MAX_S = 10.0

_SETTINGS = """\
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
server_round_robin = 1
server_login_retry = 1
"""


class Pgbouncer:
    """Looks like `Pooler`; every client is the user postgres.

    Attributes:
        dsn: The way through it, to the same database as the one given.
    """

    def __init__(self, dsn: str, *, size: int = 4) -> None:
        """Prepare one with at most `size` sessions per database."""
        self._to = dsn
        self._size = size

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        self._folder = Path(tempfile.mkdtemp(prefix="dtpb-", dir=_on_disk()))
        port = _free_port()
        host, to_port = address(self._to)
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            _SETTINGS.format(host=host, port=to_port, own_port=port, size=self._size)
        )
        program = Path(PROGRAM)
        # It refuses to run as root, just as Postgres does.
        programs = Binaries(program.parent, find(VERSION, self._folder).user)
        programs.own(self._folder, 0o700)
        programs.own(settings, 0o600)
        self._process = programs.start(
            program.name, settings, folder=self._folder, log=self._folder / "log"
        )
        self._wait_ready(port)
        self.dsn = moved(self._to, "127.0.0.1", port)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(END_MAX_S)
        except subprocess.TimeoutExpired:
            # It waits for clients that have not gone.
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder)

    def _wait_ready(self, port: int) -> None:
        while self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                continue
        raise ThrowAwayError(f"pgbouncer ended: {(self._folder / 'log').read_text()}")


POOLERS: list[type[Pooler] | type[Pgbouncer]] = [Pooler, *([Pgbouncer] if PROGRAM else [])]
"""Every pooler there is here, for tests that run with each of them."""
