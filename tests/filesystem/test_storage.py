"""The storage on a loop: batches, cancellation, hints, failing disks, and what a folder may be."""

import asyncio
import errno
import itertools
import logging
import os
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from durabletask.errors import (
    HostStateError,
    InvalidIdError,
    LimitExceededError,
    StorageFailedError,
    StorageFormatError,
    StorageUnavailableError,
)
from durabletask.storage import DONE, Lease, Query
from durabletask_filesystem import FileSystemStorage, check
from durabletask_filesystem._disk import RealFile, RealFolder
from durabletask_filesystem._files import File
from durabletask_filesystem._mounts import file_system_of
from tests.filesystem.stores import FINISH, done, event, new, unit

_hosts = itertools.count()  # every start of a host takes a new identity


class FaultyFile(RealFile):
    """A file whose folder decides what fails."""

    __slots__ = ("folder",)
    folder: "FaultyFolder"

    def append(self, data: Any) -> None:
        self.folder.appends += 1
        if self.folder.full:
            super().append(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(data)

    def sync(self) -> None:
        if self.folder.rotten:
            raise OSError(errno.EIO, "Input/output error")
        super().sync()

    def truncate(self, size: int) -> None:
        if self.folder.stuck:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(size)


class FaultyFolder(RealFolder):
    """A disk that can be full, rotten or stuck."""

    full = rotten = stuck = False
    appends = 0

    def create(self, name: str) -> File:
        return self._faulty(super().create(name))

    def open_end(self, name: str) -> File:
        return self._faulty(super().open_end(name))

    def _faulty(self, file: File) -> File:
        assert isinstance(file, RealFile)
        faulty = FaultyFile(file._fd)
        faulty.folder = self
        return faulty


@asynccontextmanager
async def storage_of(
    path: Path, folder: RealFolder | None = None, **options: Any
) -> AsyncIterator[tuple[FileSystemStorage, Lease]]:
    storage = FileSystemStorage(path, folder=folder, **options)
    try:
        yield storage, await storage.open_lease(f"host-{next(_hosts)}", "host")
    finally:
        await storage.close()


async def test_concurrent_calls_share_one_write(tmp_path: Path) -> None:
    """G1: of a thousand commits that come together one leaves at once, the others share a write."""
    folder = FaultyFolder(tmp_path)
    async with storage_of(tmp_path, folder) as (storage, lease):
        await storage.create([new(f"p{n}") for n in range(1_000)], lease)
        await storage.renew(lease)
        before = folder.appends
        answers = await asyncio.gather(
            *(storage.commit(lease, [unit(f"p{n}", 1, done("a"))]) for n in range(1_000))
        )
        assert folder.appends == before + 2
        assert all(outcomes == (DONE,) for outcomes in answers)


async def test_a_cancelled_call_is_unknown_and_can_be_repeated(tmp_path: Path) -> None:
    """F044: the write of a cancelled call lands or does not; the same call again is harmless."""
    async with storage_of(tmp_path) as (storage, lease):
        await storage.create([new("a")], lease)
        units = [unit("a", 1, done("one"))]
        call = asyncio.ensure_future(storage.commit(lease, units))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await storage.commit(lease, units) == (DONE,)
        (snapshot,) = await storage.read(["a"], history=True)
        assert snapshot is not None
        assert len(snapshot.checkpoints) == 1


async def test_closing_answers_what_was_asked(tmp_path: Path) -> None:
    """Calls under way get their answers; later ones an error, at once."""
    storage = FileSystemStorage(tmp_path)
    calls = [asyncio.ensure_future(storage.create([new(f"p{n}")])) for n in range(3)]
    await asyncio.sleep(0)
    await storage.close()
    assert [(await call)[0].fresh for call in calls] == [True] * 3
    with pytest.raises(StorageFailedError, match="closed"):
        await storage.read(["p0"])
    await storage.close()
    assert check(tmp_path).ok


async def test_hints_come_when_something_changed(tmp_path: Path) -> None:
    """`Hints`: events, leaves, endings and what is created without an owner are told."""
    async with storage_of(tmp_path) as (storage, lease):
        told: list[str | None] = []
        end = storage.subscribe(told.append)
        await storage.create([new("a")], lease)
        await storage.deliver([event("a", "e1")], mailbox_max=9)
        await storage.commit(lease, [unit("a", 1, done("one"))])
        await storage.commit(lease, [unit("a", 2, ending=FINISH)])
        await storage.create([new("b")])
        await asyncio.sleep(0)
        assert told == ["a", "a", "b"]
        end()
        end()  # safe to repeat
        await storage.create([new("c")])
        await asyncio.sleep(0)
        assert told == ["a", "a", "b"]


async def test_a_full_disk_writes_nothing_and_recovers(tmp_path: Path) -> None:
    """F027: a short write is cut back, the call says so, and with space again all goes on."""
    folder = FaultyFolder(tmp_path)
    async with storage_of(tmp_path, folder) as (storage, lease):
        await storage.create([new("a"), new("b")], lease)
        await storage.commit(lease, [unit("a", 1, done("one"))])
        before = await storage.read(["a", "b"], history=True)
        folder.full = True
        for _ in range(2):
            with pytest.raises(StorageUnavailableError, match="No space left"):
                await storage.commit(
                    lease, [unit("a", 2, done("two")), unit("b", 1, ending=FINISH)]
                )
        folder.full = False
        assert await storage.read(["a", "b"], history=True) == before
        await storage.deliver([event("b", "e1")], mailbox_max=9)
        assert await storage.commit(lease, [unit("a", 2, done("two")), unit("b", 1, consumes=(1,))])
        claims = await storage.claim(lease, "c", ["fn"], count_max=9)
        assert claims.claimed == () or not any(each.fresh for each in claims.claimed)
    assert check(tmp_path).ok


async def test_a_claim_that_could_not_be_written_is_taken_by_its_repeat(tmp_path: Path) -> None:
    """F027: what an undone claim had in hand is claimable; earlier claims are still repeatable."""
    folder = FaultyFolder(tmp_path)
    async with storage_of(tmp_path, folder) as (storage, lease):
        await storage.create([new("a"), new("b")])
        first = await storage.claim(lease, "c1", ["fn"], count_max=1)
        folder.full = True
        with pytest.raises(StorageUnavailableError):
            await storage.claim(lease, "c2", ["fn"], count_max=1)
        folder.full = False
        again = await storage.claim(lease, "c1", ["fn"], count_max=1)
        assert again.claimed == first.claimed
        second = await storage.claim(lease, "c2", ["fn"], count_max=1)
        assert [each.row.process_id for each in second.claimed] == ["b"]


@pytest.mark.parametrize("fault", ["rotten", "stuck"])
async def test_a_failed_sync_is_final(tmp_path: Path, fault: str) -> None:
    """F026 C43: poisoned for good, every waiter is told, and what was acknowledged is there."""
    folder = FaultyFolder(tmp_path)
    storage = FileSystemStorage(tmp_path, folder=folder)
    lease = await storage.open_lease("h1", "host")
    await storage.create([new("a")], lease)
    if fault == "rotten":
        folder.rotten = True
    else:
        folder.full = folder.stuck = True
    calls = [storage.commit(lease, [unit("a", 1, done("one"))]), storage.create([new("b")])]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, StorageFailedError)
    folder.rotten = folder.stuck = folder.full = False
    for again in (storage.read(["a"]), storage.renew(lease)):
        with pytest.raises(StorageFailedError):
            await again
    await storage.close()
    async with storage_of(tmp_path) as (storage, _):
        (snapshot,) = await storage.read(["a"])
        assert snapshot is not None


@pytest.mark.parametrize("what", ["folder", "lock", "replaced"])
async def test_a_moved_folder_poisons(tmp_path: Path, what: str) -> None:
    """F034: nothing is written into a folder that is not where it was."""
    path = tmp_path / "state"
    storage = FileSystemStorage(path)
    lease = await storage.open_lease("h1", "host")
    await storage.create([new("a")], lease)
    if what == "folder":
        path.rename(tmp_path / "elsewhere")
    else:
        (path / "LOCK").unlink()
        if what == "replaced":
            (path / "LOCK").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StorageFailedError, match="not where it was"):
            await storage.commit(lease, [unit("a", 1, done("one"))])
    await storage.close()


async def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A file, a foreign folder and an unwritable place are clear errors; nothing is touched."""
    (tmp_path / "file").write_text("x")
    storage = FileSystemStorage(tmp_path / "file")
    with pytest.raises(StorageUnavailableError, match="file"):
        await storage.create([new("a")])
    await storage.close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    storage = FileSystemStorage(tmp_path / "photos")
    with pytest.raises(StorageFormatError, match=r"cat\.jpg"):
        await storage.create([new("a")])
    await storage.close()
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    storage = FileSystemStorage("/proc/nothing/here")
    with pytest.raises(StorageUnavailableError, match="/proc/nothing"):
        await storage.read(["a"])
    await storage.close()


async def test_only_the_owner_can_read(tmp_path: Path) -> None:
    """F121: folders are 0700, files 0600 whatever the umask; no id ever becomes a file name."""
    before = os.umask(0)
    try:
        async with storage_of(tmp_path / "deep" / "~state", segment_bytes_max=1_000) as (
            storage,
            _,
        ):
            names = ["../../escape", "CON", "a/b", "%2e", "é", "A", "a"]
            for name in names:
                await storage.create([new(name)])
            assert [row.process_id for row in (await storage.list(Query())).rows] == names
            with pytest.raises(InvalidIdError, match="surrogate"):
                await storage.create([new("\ud800")])
            assert len((await storage.list(Query())).rows) == len(names)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert not any("escape" in path.name for path in tmp_path.rglob("*"))


async def test_a_copy_of_a_running_folder_opens(tmp_path: Path) -> None:
    """F039: a copy made between two writes is a store of that moment."""
    source = tmp_path / "source"
    async with storage_of(source, segment_bytes_max=2_000) as (storage, lease):
        for turn in range(6):
            await storage.create([new(f"p{turn}{n}") for n in range(4)], lease)
            copied = tmp_path / f"copy{turn}"
            shutil.copytree(source, copied)
            assert check(copied).ok
            async with storage_of(copied) as (copy, _):
                rows = (await copy.list(Query())).rows
                assert len(rows) == 4 * (turn + 1)


async def test_merging_goes_on_beside_commits(tmp_path: Path) -> None:
    """F037: purged segments are merged by themselves, and the folder does not grow for ever."""
    async with storage_of(tmp_path, segment_bytes_max=20_000) as (storage, lease):
        for turn in range(30):
            ids = [f"p{turn}-{n}" for n in range(40)]
            await storage.create([new(each) for each in ids], lease)
            await storage.commit(lease, [unit(each, 1, ending=FINISH) for each in ids])
            assert await storage.purge(ids) == (None,) * 40
        for _ in range(2_000):
            await storage.renew(lease)
            size = sum(path.stat().st_size for path in (tmp_path / "segments").glob("*.log"))
            if size < 400_000:
                break
        assert size < 400_000  # of 30 * 40 * 600 bytes that were written
        await storage.create([new("last")], lease)
    assert check(tmp_path).ok


async def test_batches_have_a_limit(tmp_path: Path) -> None:
    """Rule 14: too many at once is an error before anything is written."""
    async with storage_of(tmp_path) as (storage, _):
        with pytest.raises(LimitExceededError, match="1,001"):
            await storage.create([new(f"p{n}") for n in range(1_001)])
        assert (await storage.list(Query())).rows == ()


def test_a_storage_belongs_to_one_loop_at_a_time(tmp_path: Path) -> None:
    """A second running loop is refused; after the first was closed it is welcome."""
    storage = FileSystemStorage(tmp_path)

    async def ask() -> int:
        await storage.create([new("a")])
        return len((await storage.list(Query())).rows)

    assert asyncio.run(ask()) == 1
    assert asyncio.run(ask()) == 1
    first = asyncio.new_event_loop()
    first.run_until_complete(ask())
    with pytest.raises(HostStateError):
        asyncio.run(ask())
    first.run_until_complete(storage.close())
    first.close()


def test_network_file_systems_are_known() -> None:
    """F035: the type is found by the longest mount point, with its escapes."""
    mounts = """\
/dev/sda / ext4 rw 0 0
server:/x /home nfs4 rw 0 0
tmpfs /home/me/fast\\040disk tmpfs rw 0 0
"""
    assert file_system_of("/var/state", mounts) == "ext4"
    assert file_system_of("/home/me/state", mounts) == "nfs4"
    assert file_system_of("/homer", mounts) == "ext4"
    assert file_system_of("/home/me/fast disk/x", mounts) == "tmpfs"


async def test_no_payload_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """F138: payloads are in the files and nowhere else."""
    caplog.set_level(logging.DEBUG)
    async with storage_of(tmp_path) as (storage, lease):
        await storage.create([new("a", input=b'"canary"')], lease)
        await storage.commit(lease, [unit("a", 1, done("one", b'"canary"'))])
    with (tmp_path / "segments" / "00000001.log").open("ab") as file:
        file.write(b"torn canary")
    async with storage_of(tmp_path):
        pass
    assert "torn" in " ".join(path.name for path in tmp_path.iterdir())
    assert "canary" not in caplog.text
