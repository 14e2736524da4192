"""The synchronous core: what is written is there after reopening, whatever the segments."""

import errno
from itertools import repeat
from pathlib import Path

import pytest

from durabletask.errors import (
    LeaseLostError,
    StorageBusyError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
)
from durabletask.storage import DONE, Leave, NewEvent, Query, Refusal, Status
from durabletask_filesystem._compaction import mergeable
from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._files import File
from durabletask_filesystem._requests import (
    CloseLease,
    Commit,
    Compact,
    Create,
    Deliver,
    ListPage,
    Purge,
    Read,
)
from durabletask_filesystem._store import Store
from tests.filesystem.stores import (
    CLOCK,
    FINISH,
    ask,
    claim,
    crash,
    done,
    lease_of,
    new,
    open_store,
    unit,
)


@pytest.mark.parametrize("rotations", [0, 1, 2])
@pytest.mark.parametrize("clean", [True, False])
def test_everything_is_there_after_reopening(tmp_path: Path, rotations: int, clean: bool) -> None:
    """G1: rows, history, mailbox and endings are the same after a close and after a crash."""
    store = open_store(tmp_path)

    def turn() -> None:
        if rotations:
            store.rotate()

    lease = lease_of(store)
    ask(store, Create((new("a"), new("b"), new("c")), lease))
    turn()
    assert ask(store, Commit(lease, (unit("a", 1, done("one")), unit("b", 1, done("one"))))) == (
        DONE,
        DONE,
    )
    turn()
    event = NewEvent(process_id="a", event_id="e1", name="approved", payload=b"true")
    ask(store, Deliver((event,), 10))
    if rotations > 1:
        turn()
    ask(
        store,
        Commit(
            lease,
            (
                unit("a", 2, done("two"), consumes=(1,)),
                unit("b", 2, done("two"), ending=FINISH),
                unit("c", 1, status=Status.WAITING, leave=Leave.PARKED),
            ),
        ),
    )
    ask(store, CloseLease(lease))
    before = ask(store, Read(("a", "b", "c", "d"), history=True))
    listed = ask(store, ListPage(Query()))
    store.close() if clean else crash(store)
    again = open_store(tmp_path)
    assert ask(again, Read(("a", "b", "c", "d"), history=True)) == before
    assert ask(again, ListPage(Query())) == listed
    assert [row.process_id for row in listed.rows] == ["a", "b", "c"]
    assert before[3] is None
    assert [each.key for each in before[0].checkpoints] == ["one", "two"]
    assert before[0].events[0].consumed
    assert before[1].row.ending == FINISH
    again.close()


@pytest.mark.parametrize("rotate", [False, True])
def test_a_dead_hosts_processes_are_claimed_with_a_death(tmp_path: Path, rotate: bool) -> None:
    """G9: after a crash the next host takes over; a death counts if nothing was recorded."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"), new("b")), lease))
    ask(store, Commit(lease, (unit("a", 1, done("one")),)))
    if rotate:
        store.rotate()
    crash(store)
    store = open_store(tmp_path)
    second = lease_of(store, "h2")
    claims = claim(store, second)
    assert [(each.row.process_id, each.row.epoch, each.row.deaths) for each in claims.claimed] == [
        ("a", 2, 0),
        ("b", 2, 1),
    ]
    assert [each.key for each in claims.claimed[0].checkpoints] == ["one"]
    with pytest.raises(LeaseLostError):
        ask(store, Commit(lease, (unit("a", 2),)))
    assert ask(store, Commit(second, (unit("a", 2),)))[0].refused is Refusal.NOT_OWNER
    held = ask(store, Commit(second, (unit("a", 1, done("one", b"2"), epoch=2),)))[0].held
    assert held[0].payload == b'{"a":1}'
    store.close()


@pytest.mark.parametrize("rotate", [False, True])
def test_ids_are_remembered_after_the_end_and_after_purge(tmp_path: Path, rotate: bool) -> None:
    """S4.03: creating a finished id answers with it; after purge it is the next incarnation."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    ask(store, Commit(lease, (unit("a", 1, ending=FINISH),)))
    if rotate:
        store.rotate()
    assert ask(store, Create((new("a", creation_id="other"),)))[0].fresh is False
    assert ask(store, Create((new("a"),)))[0].fresh is True
    assert ask(store, Commit(lease, (unit("a", 1, ending=FINISH),))) == (DONE,)
    assert ask(store, Commit(lease, (unit("a", 2),)))[0].refused is Refusal.FINISHED
    assert ask(store, Purge(("a", "b"))) == (None, Refusal.UNKNOWN_PROCESS)
    if rotate:
        store.rotate()
    assert ask(store, Read(("a",))) == (None,)
    assert ask(store, ListPage(Query())).rows == ()
    created = ask(store, Create((new("a"),)))[0]
    assert created.fresh
    assert created.row.incarnation == 2
    assert len(ask(store, ListPage(Query())).rows) == 1
    store.close()


def test_one_program_at_a_time(tmp_path: Path) -> None:
    """F033: a second opening is refused and names who holds the folder."""
    store = open_store(tmp_path, label="first")
    with pytest.raises(StorageBusyError, match=r"pid \d+ \(first\)"):
        open_store(tmp_path)
    ask(store, CloseLease(lease_of(store)))
    store.close()
    open_store(tmp_path).close()


def test_compaction_keeps_what_can_be_asked_for(tmp_path: Path) -> None:
    """F037: after a merge every answer is the same, and what was purged or replaced is gone."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create(tuple(new(f"p{i}") for i in range(6)), lease))
    for seq in range(1, 4):
        units = tuple(
            unit(f"p{i}", seq, done(f"s{seq}"), done("var", b"%d" % seq, replaces=True))
            for i in range(6)
        )
        ask(store, Commit(lease, units))
        ask(
            store,
            Deliver((NewEvent(process_id="p0", event_id=f"e{seq}", name="n", payload=b"1"),), 10),
        )
        store.rotate()
    ask(store, Commit(lease, (unit("p0", 4, consumes=(2,)),)))
    ask(store, Commit(lease, tuple(unit(f"p{i}", 4, ending=FINISH) for i in range(2, 6))))
    store.rotate()
    ask(store, Purge(("p4", "p5")))
    ask(store, Create((new("p5", creation_id="again"),)))
    ids = tuple(f"p{i}" for i in range(7))
    ask(store, CloseLease(lease))
    before = ask(store, Read(ids, history=True))
    listed = ask(store, ListPage(Query()))
    assert store.compact() > 0
    assert ask(store, Read(ids, history=True)) == before
    assert ask(store, ListPage(Query())) == listed
    for again in range(2):
        crash(store)
        if again:
            for path in (tmp_path / "segments").glob("*.idx"):
                path.unlink()
        store = open_store(tmp_path)
        assert ask(store, Read(ids, history=True)) == before
        assert ask(store, ListPage(Query())) == listed
    text = b"".join(path.read_bytes() for path in (tmp_path / "segments").glob("*.log"))
    assert text.count(b'"key":"var"') == 4  # of p0 to p3, the last one each
    assert text.count(b'"id":"p4"') == 1  # that it was purged
    claims = claim(store, lease_of(store, "h2"))
    assert [each.row.process_id for each in claims.claimed] == ["p5", "p0", "p1"]
    store.close()


class _Planted(RealFolder):
    """A disk that fails where it is told to."""

    bad_entries = bad_opening = bad_creating = False

    def create(self, name: str) -> File:
        if self.bad_creating:
            raise OSError(errno.ENOSPC, "planted")
        return super().create(name)

    def sync_entries(self, subfolder: str = "") -> None:
        if self.bad_entries and not subfolder:
            raise OSError(errno.EIO, "planted")
        super().sync_entries(subfolder)

    def open_end(self, name: str) -> File:
        if self.bad_opening and not name.endswith("1.log"):
            self.bad_opening = False
            raise OSError(errno.ENOSPC, "planted")
        return super().open_end(name)


@pytest.mark.parametrize("slices", [False, True])
def test_a_failed_sync_amid_a_merge_is_final(tmp_path: Path, slices: bool) -> None:
    """F026 C43: which manifest is there is unknown: what went on in the old segment got lost."""
    folder = _Planted(tmp_path)
    store = Store.open(folder, CLOCK)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    if slices:
        store.rotate()
        store._begin_compaction(mergeable(store._log))
    folder.bad_entries = True
    step = [Compact(slice=slices)]
    with pytest.raises(StorageFailedError, match="MANIFEST"):
        list(map(store.apply, repeat(step)))
    folder.bad_entries = False
    with pytest.raises(StorageFailedError):
        ask(store, Create((new("b"),), lease))
    crash(store)
    again = open_store(tmp_path)
    assert [each and each.row.process_id for each in ask(again, Read(("a", "b")))] == ["a", None]
    again.close()


def test_what_a_compaction_has_made_durable_is_not_called_undone(tmp_path: Path) -> None:
    """F027: of a batch with a compaction in it, the disk is full behind that: unknown."""
    folder = _Planted(tmp_path)
    store = Store.open(folder, CLOCK)
    folder.bad_opening = True
    with pytest.raises(StorageUnknownError, match="planted"):
        store.apply([Create((new("a"),)), Compact(), Create((new("b"),))])
    assert [each and each.row.process_id for each in ask(store, Read(("a", "b")))] == ["a", None]
    folder.bad_opening = True
    store._log.close_file()
    with pytest.raises(StorageUnavailableError):
        store.apply([Create((new("b"),))])
    assert ask(store, Read(("b",))) == (None,)
    store.close()


def test_a_folder_that_cannot_be_marked_clean_can_be_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F027: the disk is full as a host closes; when there is room the same program goes on."""
    folder = _Planted(tmp_path)
    store = Store.open(folder, CLOCK)
    ask(store, CloseLease(lease_of(store)))
    folder.bad_creating = True
    store.let_go(clean=True)
    assert "left as after a crash: [Errno 28] planted" in caplog.text
    folder.bad_creating = False
    store.take_again()
    ask(store, Create((new("a"),)))
    store.close()
    again = open_store(tmp_path)
    assert ask(again, Read(("a",)))[0] is not None
    again.close()
