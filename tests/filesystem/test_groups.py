"""What touches several processes is one thing on the disk, and harms nobody else if it is lost."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import durabletask_filesystem._records as records
from durabletask.errors import StorageCorruptError
from durabletask.storage import (
    CHILD_ENDED,
    DONE,
    Action,
    Control,
    Ending,
    Form,
    NewProcess,
    Parent,
    Query,
    Status,
)
from durabletask.testing.disk import Bounds
from durabletask_filesystem import _group, check, repair
from durabletask_filesystem._records import encode
from durabletask_filesystem._requests import Ask, Commit, Create, ListPage, Purge, Read
from durabletask_filesystem._store import Store
from tests.filesystem.crash_play import Subject, explore
from tests.filesystem.crash_scenarios import (
    Scenario,
    child,
    commit,
    create,
    open_lease,
    spawning,
)
from tests.filesystem.crash_scenarios import (
    ask as asking,
)
from tests.filesystem.crash_scenarios import (
    new as fresh,
)
from tests.filesystem.stores import FINISH, ask, claim, crash, done, lease_of, new, open_store, unit

FEW = Bounds(subsets_max=64, tears_max=64, entries_max=32, states_max=512)
ENDED = Ending(Status.TERMINATED, Form.ERROR, b'{"type":"ProcessTerminatedError"}')
MANY = 40

IN_PARTS = Scenario("more children than a frame holds", (
    (*open_lease(), *create(fresh("p"))),
    commit(spawning(1, *(child(f"c{number}") for number in range(5)))),
    asking(Action.TERMINATE),
))  # fmt: skip


def child_of(parent: str, process_id: str) -> NewProcess:
    """Return a child to spawn, under a key that is its id."""
    return new(process_id, parent=Parent(parent, 1, 0, process_id))


def control(process_id: str, action: Action, number: int = 1, **fields: Any) -> Ask:
    """Return one request."""
    request_id = f"{action}-{process_id}-{number}"
    return Ask((Control(process_id=process_id, action=action, request_id=request_id, **fields),))


def family(store: Store) -> None:
    """Let p spawn q, q spawn r and end, and stay itself; beside them is the lonely s."""
    lease = lease_of(store)
    ask(store, Create((new("p"), new("s")), lease))
    ask(store, Commit(lease, (unit("p", 1, done("spawn"), spawns=(child_of("p", "q"),)),)))
    claim(store, lease)
    spawned = unit("q", 1, done("spawn"), spawns=(child_of("q", "r"),))
    assert ask(store, Commit(lease, (spawned, unit("q", 2, ending=FINISH)))) == (DONE, DONE)


def statuses(store: Store, *ids: str) -> list[Status | None]:
    """Return how processes stand."""
    found = ask(store, Read(ids))
    return [None if each is None else each.row.status for each in found]


def test_a_group_of_many_frames_is_there_as_a_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G1 G10: five children in frames of two, each cut and tear between them tried (F021)."""
    monkeypatch.setattr(_group, "PARTS_MAX", 2)
    tally = explore(IN_PARTS, Subject(), bounds=FEW, interrupt_every=200)
    assert tally.wrong == 0, "\n\n".join(tally.violations)
    assert tally.torn > 500


def test_a_recovery_that_takes_a_part_of_a_group_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The explorer sees a recovery that serves the first frames of a group without the last."""
    monkeypatch.setattr(_group, "PARTS_MAX", 2)
    monkeypatch.setattr(records, "goes_on", lambda payload: False)
    assert explore(IN_PARTS, Subject(), bounds=FEW).wrong > 0


def test_check_takes_a_part_of_a_group_for_an_unfinished_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F021: `check` counts what the next opening cuts, and finds nothing wrong."""
    monkeypatch.setattr(_group, "PARTS_MAX", 2)
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("p"),), lease))
    before = store._log.end
    children = tuple(child_of("p", f"c{number}") for number in range(5))
    ask(store, Commit(lease, (unit("p", 1, spawns=children),)))
    crash(store)
    (file,) = (tmp_path / "segments").glob("*.log")
    data = file.read_bytes().rstrip(b"\0")
    file.write_bytes(data[: data.rindex(b"\n", 0, -1) + 1])
    report = check(tmp_path)
    assert report.problems == ()
    assert report.torn_bytes > 0
    assert report.unfinished == 1
    store = open_store(tmp_path)
    assert statuses(store, "p", "c0", "c4") == [Status.RUNNING, None, None]
    assert file.stat().st_size - before < 200
    store.close()


def test_an_unreadable_group_damages_those_it_names(tmp_path: Path) -> None:
    """G12 F125: an intact group that this code cannot read sets its processes aside, no other."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"), new("b"), new('say "c"')), lease))
    store._log.append(encode({"t": "group", "ids": ["a", 'say "c"'], "parts": [{"t": "novelty"}]}))
    store._log.flush()
    crash(store)
    store = open_store(tmp_path)
    lease = lease_of(store, "h2")
    claim(store, lease)
    ask(store, Commit(lease, (unit("b", 1, done("one"), epoch=2),)))
    store.rotate()
    for process_id in ("a", 'say "c"'):
        with pytest.raises(StorageCorruptError, match="unreadable record"):
            ask(store, Read((process_id,), history=True))
    assert len(ask(store, Read(("b",), history=True))[0].checkpoints) == 1
    crash(store)
    store = open_store(tmp_path)
    claimed = claim(store, lease_of(store, "h3")).claimed
    damaged = {each.row.process_id: each.damage for each in claimed}
    assert [key for key, damage in damaged.items() if damage] == ["a", 'say "c"']
    store.compact()
    with pytest.raises(StorageCorruptError):
        ask(store, Read(("a",), history=True))
    store.close()


def test_rot_in_a_group_is_repaired_without_harm_to_others(tmp_path: Path) -> None:
    """G12 F024: a broken group costs its own processes; the rest of a group elsewhere is kept."""
    store = open_store(tmp_path)
    family(store)
    store.rotate()
    crash(store)
    file = tmp_path / "segments" / "00000001.log"
    data = file.read_bytes()
    at = data.index(b'"key":"spawn"', data.index(b'"ids":["r","q"]'))
    file.write_bytes(data[:at] + b"#" + data[at + 1 :])
    (problem, *_) = check(tmp_path).problems
    assert "broken" in problem.what
    report = repair(tmp_path)
    assert report.lost == ("r",)
    assert report.incomplete == ("q",)
    assert check(tmp_path).problems == ()
    store = open_store(tmp_path)
    # The end of q is a group by itself, so p was told of it.
    (event,) = ask(store, Read(("p",), history=True))[0].events
    assert event.name == f"{CHILD_ENDED}completed"
    assert statuses(store, "p", "s") == [Status.RUNNING, Status.RUNNING]
    store.close()


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("compact", [False, True])
def test_descendants_are_found_after_reopening(tmp_path: Path, rotate: bool, compact: bool) -> None:
    """G10: a grandchild below a finished child is asked, whatever is in memory and whatever not."""
    store = open_store(tmp_path)
    family(store)
    if rotate:
        store.rotate()
    if compact:
        store.compact()
    crash(store)
    store = open_store(tmp_path)
    (answer,) = ask(store, control("p", Action.TERMINATE, ending=ENDED))
    assert answer.row.status is Status.TERMINATED
    assert statuses(store, *"pqrs") == [
        Status.TERMINATED,
        Status.COMPLETED,
        Status.TERMINATED,
        Status.RUNNING,
    ]
    assert ask(store, Purge(("p", "q", "r"))) == (None, None, None)
    assert store._table.family._children == {}
    assert store._table.family._ended == {}
    store.close()
    assert check(tmp_path).ok


def test_a_line_is_whole_again_after_a_retry(tmp_path: Path) -> None:
    """G10: a child that had failed below a finished one is asked again once it goes on."""
    store = open_store(tmp_path)
    family(store)
    lease = lease_of(store)
    claim(store, lease)
    failed = Ending(Status.FAILED, Form.ERROR, b'{"type":"E"}')
    assert ask(store, Commit(lease, (unit("r", 1, ending=failed),))) == (DONE,)
    assert store._table.family._ended == {}
    ask(store, control("r", Action.RETRY, incarnation=1, epoch=1))
    ask(store, control("p", Action.TERMINATE, ending=ENDED))
    assert statuses(store, "p", "r") == [Status.TERMINATED, Status.TERMINATED]
    store.close()


def test_a_family_takes_no_room_without_one(tmp_path: Path) -> None:
    """What most processes have nothing of costs them nothing, and ends with those that had it."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"),), lease))
    assert store._table.procs["a"].extra is None
    assert store._table.family._children == {}
    children = tuple(child_of("a", f"c{number}") for number in range(MANY))
    ask(store, Commit(lease, (unit("a", 1, spawns=children),)))
    claim(store, lease)
    ends = tuple(unit(each.process_id, 1, ending=FINISH) for each in children)
    ask(store, Commit(lease, (*ends, unit("a", 2, ending=FINISH))))
    assert (store._table.family._children, store._table.family._ended) == ({}, {})
    assert len(ask(store, ListPage(Query())).rows) == MANY + 1
    store.close()


def test_reading_one_of_many_reads_few(tmp_path: Path) -> None:
    """A process that was spawned or ended beside many others is read without their records."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("p"),), lease))
    children = tuple(
        msgspec.structs.replace(child_of("p", f"c{number}"), input=b'"%b"' % (b"x" * 1000))
        for number in range(200)
    )
    ask(store, Commit(lease, (unit("p", 1, spawns=children),)))
    ask(store, control("p", Action.TERMINATE, ending=ENDED))
    seen = 0
    payload = store._log.payload

    def counted(segment: Any, offset: int) -> bytes:
        nonlocal seen
        found = payload(segment, offset)
        seen += len(found)
        return found

    store._log.payload = counted  # type: ignore[method-assign]
    assert statuses(store, "c100") == [Status.TERMINATED]
    assert 0 < seen < 60_000  # of about 300,000
    store.close()


def test_what_has_ended_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    """A terminated process keeps its owner over a sealing, and loses it with the owner's death."""
    store = open_store(tmp_path)
    lease = lease_of(store)
    ask(store, Create((new("a"), new("b")), lease))
    for process_id in "ab":
        ask(store, control(process_id, Action.TERMINATE, ending=ENDED))
    store.rotate()
    (a, b) = ask(store, Read(("a", "b")))
    assert (a.row.owner, b.row.owner) == ("h1", "h1")
    store._load()  # as after a write that was taken back
    assert store._table.held == {"a": "h1", "b": "h1"}
    crash(store)
    for path in (tmp_path / "segments").glob("*.idx"):
        path.unlink()
    store = open_store(tmp_path)
    assert [each.row.owner for each in ask(store, Read(("a", "b")))] == [None, None]
    assert ask(store, Purge(("a", "b"))) == (None, None)
    store.close()
    assert check(tmp_path).ok
