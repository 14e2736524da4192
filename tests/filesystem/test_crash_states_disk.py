"""The simulated disk and the explorer themselves, on a log small enough to be seen through."""

import errno
import zlib
from random import Random
from typing import Literal

import pytest

from durabletask.testing.disk import (
    Bounds,
    Explorer,
    Fault,
    Image,
    SimulatedFolder,
    Tally,
    breach,
    fates,
)

Mistake = Literal["", "no sync", "no entries", "no checksum", "serves unsynced"]


class SmallLog:
    """A log of records under one name: length, checksum, bytes."""

    def __init__(self, folder: SimulatedFolder, mistake: Mistake = "") -> None:
        self.folder = folder
        self.mistake = mistake
        if "log" not in folder.names():
            folder.create("log").close()
        if mistake != "no entries":
            folder.sync_entries()
        self.file = folder.open_end("log")
        data = folder.read("log")
        self.records: list[bytes] = []
        at = 0
        while (size := int.from_bytes(data[at : at + 4])) and at + 8 + size <= len(data):
            body = data[at + 8 : at + 8 + size]
            whole = zlib.crc32(body) == int.from_bytes(data[at + 4 : at + 8])
            if not whole and mistake != "no checksum":
                break
            self.records.append(body)
            at += 8 + size
        if at < len(data):
            self.file.truncate(at)
        if mistake != "serves unsynced":
            self.file.sync()

    def add(self, body: bytes) -> None:
        """Append one record; durable on return."""
        self.file.append(len(body).to_bytes(4) + zlib.crc32(body).to_bytes(4) + body)
        if self.mistake != "no sync":
            self.file.sync()


def explore(mistake: Mistake, sizes: tuple[int, ...] = (20, 700, 300)) -> Tally:
    """Write records of the given sizes to the small log and try every crash."""

    def served(folder: SimulatedFolder) -> dict[str, bytes]:
        return {"log": b"|".join(SmallLog(folder, mistake).records)}

    explorer = Explorer(served)
    folder = SimulatedFolder()
    bodies = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    explorer.promise = {"log": frozenset({b""})}
    explorer.watch(folder)
    log = SmallLog(folder, mistake)
    for number, body in enumerate(bodies):
        before, after = b"|".join(bodies[:number]), b"|".join(bodies[: number + 1])
        explorer.promise = {"log": frozenset({before, after})}
        log.add(body)
        explorer.promise = {"log": frozenset({after})}
    explorer.cut(folder)
    return explorer.tally


def test_correct_log_survives_everything() -> None:
    """A log that syncs before it answers and before it serves breaks in no state (F007)."""
    tally = explore("")
    assert tally.wrong == 0, tally.violations
    assert tally.states > 3_000
    assert min(tally.torn, tally.lost, tally.interrupted, tally.served) > 0


@pytest.mark.parametrize("mistake", ["no sync", "no entries", "no checksum", "serves unsynced"])
def test_each_mistake_of_a_log_is_found(mistake: Mistake) -> None:
    """The explorer sees through each classic mistake on its own (F020, F022, F030, F036)."""
    assert explore(mistake).wrong > 0


def test_unsynced_data_may_vanish_and_synced_data_stays() -> None:
    """Only what was synced is in every fate (F020)."""
    folder = SimulatedFolder()
    file = folder.create("a")
    folder.sync_entries()
    file.append(b"kept")
    file.sync()
    file.append(b"loose")
    found = {fate.files["a"] for fate in fates(folder, Bounds(), Random(1))}
    assert {b"kept", b"keptloose", b"keptloo", b"kept" + bytes(5)} <= found
    assert all(data.startswith(b"kept") for data in found)


def test_sectors_land_in_any_order() -> None:
    """The second sector of a write may be there without the first (F022, F023)."""
    folder = SimulatedFolder(Image({"a": b""}))
    folder.open_end("a").append(b"x" * 512 + b"y" * 512)
    found = {fate.files["a"] for fate in fates(folder, Bounds(), Random(1))}
    assert bytes(512) + b"y" * 512 in found
    assert b"\xff" * 512 + b"y" * 512 in found
    assert b"x" * 512 in found


def test_entries_land_in_any_order_but_keep_that_of_a_name() -> None:
    """A new name may hold its file, its older file or nothing; a rename loses no file (F030)."""
    folder = SimulatedFolder(Image({"a": b"old"}))
    file = folder.create("a.new")
    file.append(b"new")
    file.sync()
    folder.rename("a.new", "a")
    folder.create("b").close()
    found = [fate.files for fate in fates(folder, Bounds(), Random(1))]
    assert {"a": b"old"} in found
    assert {"a": b"old", "a.new": b"new", "b": b""} in found
    assert {"a": b"new", "b": b""} in found
    assert {"a": b"new", "a.new": b"new"} in found
    assert all(files.get("a") in {b"old", b"new"} for files in found)


def test_rename_before_sync_may_leave_an_empty_file() -> None:
    """A name can be durable before the content that it names (F031)."""
    folder = SimulatedFolder(Image({"a": b"old"}))
    folder.create("a.new").append(b"new")
    folder.rename("a.new", "a")
    folder.sync_entries()
    assert {"a": b""} in [fate.files for fate in fates(folder, Bounds(), Random(1))]


def test_a_subfolder_needs_its_own_entry() -> None:
    """A subfolder that was not synced takes its files with it."""
    folder = SimulatedFolder()
    folder.make_subfolder("s")
    folder.create("s/a").close()
    folder.sync_entries("s")
    found = [(fate.files, fate.subfolders) for fate in fates(folder, Bounds(), Random(1))]
    assert found == [({"s/a": b""}, ("s",)), ({}, ())]


def test_failed_sync_loses_its_pages_for_good() -> None:
    """After a failed sync the next one succeeds and the data is still gone (F026, C43)."""
    folder = SimulatedFolder(Image({"a": b"kept"}))
    file = folder.open_end("a")
    folder.fault = Fault(1, errno.EIO, frozenset({"sync"}))
    file.append(b"lost")
    with pytest.raises(OSError, match="simulated sync"):
        file.sync()
    file.sync()
    assert folder.read("a") == b"keptlost"
    assert [fate.files for fate in fates(folder, Bounds(), Random(1))] == [
        {"a": b"kept" + bytes(4)}
    ]


def test_faults_strike_once_or_for_ever() -> None:
    """The nth call fails, or all from the nth on; a short write leaves its part (F027)."""
    folder = SimulatedFolder(Image({"a": b""}))
    file = folder.open_end("a")
    folder.fault = Fault(2, errno.ENOSPC, frozenset({"append"}), landed=0.5)
    file.append(b"one.")
    with pytest.raises(OSError, match="No space"):
        file.append(b"two.")
    file.append(b"three")
    assert folder.read("a") == b"one.twthree"
    folder.fault = Fault(1, errno.EIO, for_ever=True)
    for _ in range(3):
        with pytest.raises(OSError, match="simulated"):
            file.sync()


def test_a_killed_program_leaves_the_page_cache_and_no_lock() -> None:
    """What was written is read by the next program, and is still not durable (F036)."""
    folder = SimulatedFolder(Image({"a": b""}))
    folder.lock("LOCK", b"1")
    file = folder.open_end("a")
    file.append(b"seen")
    with pytest.raises(BlockingIOError):
        folder.lock("LOCK", b"2")
    twin = folder.after_process_crash()
    twin.lock("LOCK", b"2")
    file.append(b" no more")
    assert twin.read("a") == b"seen"
    assert b"" in {fate.files["a"] for fate in fates(twin, Bounds(), Random(1))}


def test_what_is_held_in_memory_counts_for_nothing() -> None:
    """A promise is broken by a missing, a strange and an unknown name, each told by name."""
    promise = {"a": frozenset({1, 2}), "b": frozenset({None, 1})}
    assert breach({"a": 1}, promise) is None
    assert "'a' is None" in (breach({}, promise) or "")
    assert "'b' is 7" in (breach({"a": 1, "b": 7}, promise) or "")
    assert "'c' was never stored" in (breach({"a": 1, "c": 1}, promise) or "")
    assert "does not open" in (breach("broken", promise) or "")
