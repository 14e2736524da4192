"""What MemoryStorage has beyond the seam: the snapshot file, fencing by hand, its cost."""

import json
import os
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest

from durabletask._memory import MemoryStorage
from durabletask.errors import LeaseLostError, StorageCorruptError, StorageFormatError
from durabletask.storage import (
    DONE,
    NO_INDEX,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Lease,
    Leave,
    NewEvent,
    NewProcess,
    Parent,
    Query,
    Status,
    Unit,
)
from durabletask.testing import VirtualClock


def new(process_id: str, **rest: object) -> NewProcess:
    fields = {"name": "order", "input": b"[1]", "input_digest": "d1", "creation_id": process_id}
    return NewProcess(process_id=process_id, **{**fields, **rest})  # type: ignore[arg-type]


def step(key: str, payload: bytes = b"1", index: int = NO_INDEX) -> Checkpoint:
    return Checkpoint(Kind.DO, key, index, Form.VALUE, payload)


def unit(process_id: str, seq: int, *checkpoints: Checkpoint, **rest: object) -> Unit:
    fields = {"incarnation": 1, "epoch": 1, "checkpoints": checkpoints}
    return Unit(process_id=process_id, seq=seq, **{**fields, **rest})  # type: ignore[arg-type]


def event(process_id: str, event_id: str, payload: bytes = b"null") -> NewEvent:
    return NewEvent(process_id=process_id, event_id=event_id, name="ping", payload=payload)


async def furnished(clock: VirtualClock) -> tuple[MemoryStorage, Lease]:
    """Return a storage with a process in every situation that a snapshot has to hold."""
    storage = MemoryStorage(clock)
    lease = await storage.open_lease("host-1", "one")
    parent = Parent("grand", 1, 0, "child")
    later = clock.now() + timedelta(days=3)
    await storage.create(
        [
            new("held"),
            new("recorded"),
            new("done", tags={"a": "1"}, context=b'{"x":1}', parent=parent),
            new("parked"),
            new("purged"),
        ],
        lease,
    )
    await storage.create([new("later", start_at=later, deadline_at=later), new("free \u20ac/..")])
    await storage.deliver([event("recorded", "e1"), event("recorded", "e2")], mailbox_max=2)
    many = [step("map", b'{"a":"\\u0000"}', index) for index in range(9)]
    finish = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')
    await storage.commit(
        lease,
        [
            unit("recorded", 1, *many, consumes=(1,), status=Status.WAITING, wake_at=later),
            unit("done", 1, step("a"), ending=finish),
            unit("parked", 2, status=Status.WAITING, wake_at=later, leave=Leave.PARKED),
            unit("purged", 1, ending=finish),
        ],
    )
    await storage.purge(["purged"])
    return storage, lease


async def everything(storage: MemoryStorage) -> list[object]:
    rows = (await storage.list(Query(limit=1_000))).rows
    return list(await storage.read([row.process_id for row in rows], history=True))


async def test_a_snapshot_holds_everything(tmp_path: Path) -> None:
    """S1.17: what was saved is loaded: rows, checkpoints, events, purged ids (`{}` there)."""
    clock = VirtualClock()
    storage, lease = await furnished(clock)
    await storage.close_lease(lease)
    storage.save(tmp_path / "state.json")
    loaded = MemoryStorage.load(tmp_path / "state.json", clock)
    assert await everything(loaded) == await everything(storage)
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == (tmp_path / "state.json").read_bytes()
    assert len(json.loads(again.read_text())["processes"]) == 6
    (created,) = await loaded.create([new("purged")])
    assert created.row is not None
    assert created.row.incarnation == 2


async def test_loading_is_a_crash_for_the_hosts_of_the_snapshot(tmp_path: Path) -> None:
    """S1.17: what was held is claimable after loading, deaths counted; old hosts write no more."""
    clock = VirtualClock()
    storage, lease = await furnished(clock)
    storage.save(tmp_path / "state.json")
    loaded = MemoryStorage.load(tmp_path / "state.json", clock)
    with pytest.raises(LeaseLostError, match="host-1"):
        await loaded.commit(lease, [unit("held", 1, step("x"))])
    with pytest.raises(LeaseLostError, match="host-1"):
        await loaded.open_lease("host-1", "one")
    second = await loaded.open_lease("host-2", "two")
    claims = await loaded.claim(second, "c1", ["order"], count_max=10)
    got = {each.row.process_id: each for each in claims.claimed}
    assert sorted(got) == ["free \u20ac/..", "held", "recorded"]
    assert (got["held"].row.deaths, got["recorded"].row.deaths) == (1, 0)
    assert got["held"].row.epoch == 2
    assert len(got["recorded"].checkpoints) == 9
    assert [each.event_id for each in got["recorded"].events] == ["e2"]
    assert claims.next_at == clock.now() + timedelta(days=3)


async def test_a_snapshot_replaces_the_file_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that fails leaves the earlier snapshot as it was, and nothing beside it."""
    storage, _ = await furnished(VirtualClock())
    path = tmp_path / "state.json"
    storage.save(path)
    before = path.read_bytes()
    await storage.create([new("another")])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            storage.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.json"]
    storage.save(path)
    assert path.read_bytes() != before


async def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    """A foreign, newer or damaged file is an error that names it, never an empty storage."""
    path = tmp_path / "state.json"
    for text in (b"", b"{}", b"[]", b"\xff", b'{"durabletask_memory":2}'):
        path.write_bytes(text)
        with pytest.raises(StorageFormatError, match=r"state\.json"):
            MemoryStorage.load(path)
    path.write_bytes(b'{"durabletask_memory":1,"processes":[{}],"purged":{},"fenced":[]}')
    with pytest.raises(StorageCorruptError, match=r"state\.json.*row"):
        MemoryStorage.load(path)
    with pytest.raises(FileNotFoundError):
        MemoryStorage.load(tmp_path / "none")


async def test_fence_takes_a_host_out_by_hand() -> None:
    """G5: a fenced host is refused at once, and what it held is claimable by another."""
    storage, lease = await furnished(VirtualClock())
    other = await storage.open_lease("host-2", "two")
    storage.fence("host-1")
    with pytest.raises(LeaseLostError):
        await storage.renew(lease)
    claims = await storage.claim(other, "c1", ["order"], count_max=10)
    assert "held" in {each.row.process_id for each in claims.claimed}


async def test_a_clock_set_back_strands_nothing() -> None:
    """What is released while the clock is set back is claimable at once all the same."""
    clock = VirtualClock()
    storage, lease = await furnished(clock)
    clock.shift(-timedelta(hours=1))
    assert list(await storage.commit(lease, [unit("held", 1, leave=Leave.RELEASED)])) == [DONE]
    claims = await storage.claim(lease, "c1", ["order"], count_max=10)
    assert "held" in {each.row.process_id for each in claims.claimed}


async def test_entries_for_claims_do_not_pile_up() -> None:
    """A process parked and woken 2,000 times leaves a bounded queue behind."""
    clock = VirtualClock()
    storage = MemoryStorage(clock)
    lease = await storage.open_lease("host-1", "one")
    await storage.create([new("p")], lease)
    for turn in range(1, 2_001):
        wake_at = clock.now() + timedelta(days=turn)
        park = unit("p", 1, epoch=turn, status=Status.WAITING, wake_at=wake_at, leave=Leave.PARKED)
        assert list(await storage.commit(lease, [park])) == [DONE]
        await storage.deliver([event("p", f"e{turn}")], mailbox_max=10_000)
        claims = await storage.claim(lease, f"c{turn}", ["order"], count_max=1)
        assert [each.row.epoch for each in claims.claimed] == [turn + 1]
    assert sum(map(len, storage._queue._heaps.values())) < 100


async def test_a_waiting_process_is_small() -> None:
    """S4.20: a waiting process with two checkpoints costs less than a KiB in the storage."""
    storage = MemoryStorage(VirtualClock())
    lease = await storage.open_lease("host-1", "one")
    ids = [f"process/{number}" for number in range(2_000)]
    tracemalloc.start()
    try:
        for process_id in ids:
            await storage.create([new(process_id, creation_id=f"{process_id:>032}")], lease)
            for seq, key in ((1, "debit"), (2, "credit")):
                done = unit(process_id, seq, step(key, b'{"id":%d}' % seq))
                assert list(await storage.commit(lease, [done])) == [DONE]
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / len(ids) < 1_024
