"""Restarts and retries on disk: what is over takes no room, and what was put aside stays."""

from pathlib import Path

import pytest

from durabletask.storage import (
    DONE,
    EVENTS_KEPT,
    Action,
    Control,
    Ending,
    Form,
    Kind,
    Place,
    Snapshot,
    Status,
)
from durabletask_filesystem import check
from durabletask_filesystem._records import encode
from durabletask_filesystem._requests import (
    Ask,
    Claim,
    Commit,
    Compact,
    Create,
    Deliver,
    Read,
)
from durabletask_filesystem._store import Store
from tests.filesystem.stores import (
    ask,
    claim,
    crash,
    done,
    event,
    lease_of,
    new,
    open_store,
    unit,
)

SEGMENT = 20_000
FAILED = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')


def read(store: Store, process_id: str = "a") -> Snapshot:
    """Return a process with its history."""
    (snapshot,) = ask(store, Read((process_id,), history=True))
    assert isinstance(snapshot, Snapshot)
    return snapshot


def stored_bytes(store: Store) -> int:
    """Return how much the segments hold, without the room made ready behind the last one."""
    return sum(segment.end for segment in store._log.segments[:-1]) + store._log.end


def test_a_process_that_restarts_for_ever_takes_no_more_room(tmp_path: Path) -> None:
    """Issue item 1: history bounded; 1,000 generations take what 100 take, and open as quickly."""
    store = open_store(tmp_path, segment_bytes_max=SEGMENT)
    lease = lease_of(store)
    ask(store, Create((new("a"), new("b")), lease))
    ask(store, Deliver((event("a", "kept"),), 10))
    sizes = []
    seq = 0
    for generation in range(1, 1_001):
        steps = (unit("a", seq + 1, done("one")), unit("a", seq + 2, done("two")))
        again = unit("a", seq + 3, restart=b"%d" % generation)
        assert ask(store, Commit(lease, (*steps, again))) == (DONE,) * 3
        seq += 3
        while store.compacting:
            ask(store, Compact(slice=True))
        if generation in {100, 1_000}:
            sizes.append(stored_bytes(store))
    assert max(sizes) < 2 * SEGMENT
    assert len(list((tmp_path / "segments").iterdir())) < 8
    before = read(store)
    assert (before.row.generation, before.row.input, before.checkpoints) == (1_000, b"1000", ())
    assert [each.event_id for each in before.events] == ["kept"]
    crash(store)
    store = open_store(tmp_path)
    after = read(store)
    assert after.events == before.events
    assert after.row.generation == 1_000
    (first, _) = claim(store, lease_of(store, "h2")).claimed
    assert [each.event_id for each in first.events] == ["kept"]
    store.close()
    assert check(tmp_path).ok


def test_a_generation_reads_nothing_of_those_before(tmp_path: Path) -> None:
    """What lies before a restart is not read: it may be broken, and nobody minds."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    ask(store, Commit(lease, (unit("a", 1, done("old")),)))
    store.rotate()
    ask(store, Commit(lease, (unit("a", 2, restart=b"[2]"), unit("a", 3, done("young")))))
    crash(store)
    old = tmp_path / "segments" / "00000001.log"
    data = old.read_bytes()
    old.write_bytes(data.replace(b'"key":"old"', b'"key":"bad"'))
    store = open_store(tmp_path)
    snapshot = read(store)
    assert [each.key for each in snapshot.checkpoints] == ["young"]
    assert snapshot.row.input == b"[2]"
    store.close()


@pytest.mark.parametrize("compact", [False, True])
def test_the_latest_events_stay_known(tmp_path: Path, compact: bool) -> None:
    """S4: of the consumed events EVENTS_KEPT stay known by their ids, and the mailbox whole."""
    store = open_store(tmp_path, segment_bytes_max=SEGMENT)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    count = EVENTS_KEPT + 50
    ask(store, Deliver(tuple(event("a", f"e{number}") for number in range(count)), count))
    positions = tuple(range(2, count + 1))  # the first one is left
    ask(store, Commit(lease, (unit("a", 1, consumes=positions[:-1]),)))
    ask(store, Commit(lease, (unit("a", 2, restart=b"[2]", consumes=positions[-1:]),)))
    store.rotate()
    if compact:
        store.compact()
    crash(store)
    store = open_store(tmp_path, segment_bytes_max=SEGMENT)
    snapshot = read(store)
    kept = [each.position for each in snapshot.events]
    assert kept == [1, *range(count - EVENTS_KEPT + 1, count + 1)]
    assert [each.position for each in snapshot.events if not each.consumed] == [1]
    known, forgotten = ask(store, Deliver((event("a", f"e{count - 1}"), event("a", "e3")), count))
    assert known.event.position == count
    assert forgotten.event.position == count + 1
    store.close()
    assert check(tmp_path).ok


def test_what_a_retry_has_put_aside_stays_through_compaction(tmp_path: Path) -> None:
    """Rule 9: forgotten checkpoints are read as they were, also of a variable written since."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    ask(store, Deliver((event("a", "e1"),), 10))
    units = (
        unit("a", 1, done("one"), done("var", b"1", replaces=True)),
        unit("a", 2, done("var", b"2", replaces=True), consumes=(1,)),
        unit("a", 3, ending=FAILED),
    )
    assert ask(store, Commit(lease, units)) == (DONE,) * 3
    store.rotate()
    retry = Control(
        process_id="a",
        action=Action.RETRY,
        request_id="r1",
        incarnation=1,
        epoch=1,
        forget=(Place(Kind.DO, "var", -1), Place(Kind.DO, "nothing", -1)),
        restores=(1, 7),
    )
    (answer,) = ask(store, Ask((retry,)))
    assert (answer.row.status, answer.row.epoch, answer.row.ending) == (Status.RUNNING, 2, None)
    ask(store, Claim(lease, "again", ("fn",), 10))
    late = unit("a", 1, done("var", b"3", replaces=True), epoch=3)
    assert ask(store, Commit(lease, (late,))) == (DONE,)
    before = read(store)
    assert [(each.key, each.payload) for each in before.forgotten] == [("var", b"2")]
    assert [(each.key, each.payload) for each in before.checkpoints][1] == ("var", b"3")
    assert [each.consumed for each in before.events] == [False]
    store.rotate()
    store.compact()
    assert read(store) == before
    assert ask(store, Ask((retry,)))[0].row == before.row  # a late copy changes nothing
    crash(store)
    for path in (tmp_path / "segments").glob("*.idx"):
        path.unlink()
    store = open_store(tmp_path)
    after = read(store)
    assert (after.forgotten, after.checkpoints) == (before.forgotten, before.checkpoints)
    store.close()
    assert check(tmp_path).ok


def test_what_ended_before_there_were_requests_is_read(tmp_path: Path) -> None:
    """F133: the last word of a process that the code before has written is understood."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    at = "2026-01-01T00:00:00Z"
    store._log.append(
        encode(
            {
                "t": "unit",
                "id": "a",
                "incarnation": 1,
                "epoch": 1,
                "seq": 1,
                "at": at,
                "prev": store._table.procs["a"].spot & 0xFFFF_FFFF,
                "ending": {"status": "completed", "payload": 1},
                "state": {
                    "id": "a",
                    "name": "fn",
                    "status": "completed",
                    "created_at": at,
                    "updated_at": at,
                    "epoch": 1,
                    "seq": 1,
                    "started_at": at,
                    "finished_at": at,
                },
            }
        )
    )
    store._log.flush()
    crash(store)
    store = open_store(tmp_path)
    row = read(store).row
    assert row.status is Status.COMPLETED
    assert row.finished_at == row.updated_at
    assert row.ending == Ending(Status.COMPLETED, Form.VALUE, b"1")
    store.close()
