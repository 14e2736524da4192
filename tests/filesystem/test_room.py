"""Room made ready behind the end of a segment: quick syncs, and never taken for data."""

import os
import shutil
from pathlib import Path

import pytest

from durabletask.storage import NO_INDEX, Checkpoint, Form, Kind, Lease, Unit
from durabletask.testing.disk import Bounds, SimulatedFolder
from durabletask_filesystem._check import check
from durabletask_filesystem._disk import ROOM_BYTES, RealFolder
from durabletask_filesystem._files import Buffer, File
from durabletask_filesystem._log import Log
from durabletask_filesystem._requests import Commit, Create, OpenLease, Read
from durabletask_filesystem._store import Store
from tests.filesystem.crash_play import Subject, explore
from tests.filesystem.crash_scenarios import SCENARIOS, Scenario
from tests.filesystem.planted import HonestFile, HonestFolder
from tests.filesystem.stores import CLOCK, ask, new, open_store

STEPS = 20
FEW = Bounds(subsets_max=64, tears_max=64, entries_max=32, states_max=512)


class _RoomyFile(HonestFile):
    """A file of the simulated disk that makes room as the real one does, in sectors."""

    def __init__(self, folder: SimulatedFolder, name: str) -> None:
        file = folder.open_end(name)
        super().__init__(file)
        self._folder, self._name, self._inode = folder, name, file._inode
        self._end = len(self._inode.seen)

    def append(self, data: Buffer) -> None:
        inode, end = self._inode, self._end + len(data)
        if end > len(inode.seen):
            self.file.truncate(end + 1024)
        if self._folder.fault is None:
            self._folder.touch("append", self._name)
        inode._become(
            inode.seen[: self._end] + bytes(data) + inode.seen[end:],
            inode.given[: self._end] + bytes(data) + inode.given[end:],
        )
        self._end = end

    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        self._end = size

    def close(self) -> None:
        self.file.truncate(self._end)
        self.file.close()


class RoomyFolder(HonestFolder):
    """The simulated disk, with room behind the end of what grows."""

    def __init__(self, folder: SimulatedFolder) -> None:
        super().__init__(folder)
        self._simulated = folder

    def open_end(self, name: str) -> File:
        return _RoomyFile(self._simulated, name)


def scenario(name: str) -> Scenario:
    """Return the scenario of that name."""
    (found,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    return found


@pytest.mark.parametrize(
    "name",
    ["one process to its end", "rotation", "clean close", "killed and taken over"],
)
@pytest.mark.parametrize("interrupt_every", [500, pytest.param(50, marks=pytest.mark.soak)])
def test_room_survives_every_crash(name: str, interrupt_every: int) -> None:
    """Acknowledged is found after every crash at every call, with room behind it (F020, F023)."""
    subject = Subject(dress=RoomyFolder)
    tally = explore(scenario(name), subject, bounds=FEW, interrupt_every=interrupt_every)
    print(f"{name}: {tally.states:,} states, {tally.images:,} disks, {tally.torn:,} torn")
    assert tally.wrong == 0, "\n\n".join(tally.violations)
    assert tally.torn > 0
    assert tally.interrupted > 0


def test_room_that_recovery_leaves_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery that does not cut the room goes on behind zeros, and the explorer sees it."""
    monkeypatch.setattr(Log, "cut_back", lambda log: None)
    tally = explore(scenario("killed and taken over"), Subject(dress=RoomyFolder), bounds=FEW)
    assert tally.wrong > 0


def step(lease: Lease, number: int) -> Commit:
    """Return the commit of one step."""
    checkpoint = Checkpoint(Kind.DO, f"step {number}", NO_INDEX, Form.VALUE, b"%d" % number)
    unit = Unit(process_id="p", incarnation=1, epoch=1, seq=number, checkpoints=(checkpoint,))
    return Commit(lease, (unit,))


def stepped(path: Path) -> tuple[Store, Path, Lease]:
    """Return an open store in which one process has made its steps, its segment and its lease."""
    store = open_store(path)
    lease: Lease = ask(store, OpenLease("h", ""))
    ask(store, Create((new("p"),), lease))
    for number in range(1, STEPS + 1):
        assert ask(store, step(lease, number))[0].refused is None
    return store, path / "segments" / "00000001.log", lease


def keys(store: Store) -> list[str]:
    """Return the recorded keys."""
    snapshot = ask(store, Read(("p",), history=True))[0]
    return [each.key for each in snapshot.checkpoints]


def test_a_close_cuts_the_room(tmp_path: Path) -> None:
    """While small writes come there is room behind the end; a closed file ends with its data."""
    store, file, _ = stepped(tmp_path)
    assert file.stat().st_size >= ROOM_BYTES
    store.close()
    data = file.read_bytes()
    assert data.endswith(b"}\n")
    assert len(data) < ROOM_BYTES


def test_room_after_a_kill_is_no_torn_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F021: what a killed program leaves of its room is cut without a word, and nothing is lost."""
    _, file, _ = stepped(tmp_path / "alive")
    shutil.copytree(tmp_path / "alive", tmp_path / "killed")
    copy = tmp_path / "killed"
    report = check(copy)
    assert (report.problems, report.torn_bytes) == ((), 0)
    store = open_store(copy)
    assert keys(store) == [f"step {number}" for number in range(1, STEPS + 1)]
    assert (copy / "segments" / file.name).read_bytes().endswith(b"}\n")
    assert list((copy / "torn").iterdir()) == []
    assert caplog.text == ""
    store.close()
    assert check(copy).ok


def test_a_torn_write_in_the_room_is_kept_aside(tmp_path: Path) -> None:
    """F021: half a frame with room behind it goes to torn/ without the room."""
    _, file, _ = stepped(tmp_path / "alive")
    copy = tmp_path / "killed"
    shutil.copytree(tmp_path / "alive", copy)
    data = (copy / "segments" / file.name).read_bytes()
    end = len(data.rstrip(b"\0"))
    (copy / "segments" / file.name).write_bytes(
        data[:end] + b"0000004cabc half" + bytes(ROOM_BYTES)
    )
    assert check(copy).torn_bytes == 16
    store = open_store(copy)
    (torn,) = (copy / "torn").iterdir()
    assert torn.read_bytes() == b"0000004cabc half"
    assert len(keys(store)) == STEPS
    store.close()


def test_no_space_for_room_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F037: where room cannot be made the file grows write by write."""
    asked = []

    def refuse(fd: int, offset: int, count: int) -> None:
        asked.append(count)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    store, file, _ = stepped(tmp_path)
    assert asked == [ROOM_BYTES]
    assert file.read_bytes().endswith(b"}\n")
    assert len(keys(store)) == STEPS
    store.close()


def test_room_that_could_not_be_cut_is_cut_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close that fails leaves zeros; the store never writes behind them."""
    store, file, lease = stepped(tmp_path)
    cut = os.ftruncate

    def fail(fd: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", fail)
    store.let_go(clean=False)
    monkeypatch.setattr(os, "ftruncate", cut)
    assert file.stat().st_size >= ROOM_BYTES
    store.take_again()
    assert ask(store, step(lease, STEPS + 1))[0].refused is None
    store.close()
    assert b"\0" not in file.read_bytes()
    assert check(tmp_path).ok
    again = Store.open(RealFolder(tmp_path), CLOCK)
    assert len(keys(again)) == STEPS + 1
    again.close()
