"""Damage stops what it touches, says where it is, and is never served as data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from durabletask.errors import StorageCorruptError, StorageFormatError
from durabletask.storage import Action, Control, Ending, Form, Query, Refusal, Status
from durabletask_filesystem import __main__ as command_line
from durabletask_filesystem import _frames, check, repair
from durabletask_filesystem._records import encode
from durabletask_filesystem._requests import (
    Ask,
    Commit,
    Create,
    Deliver,
    ListPage,
    Purge,
    Read,
)
from durabletask_filesystem._store import Store
from tests.filesystem.stores import (
    ask,
    claim,
    crash,
    done,
    event,
    fill,
    lease_of,
    new,
    open_store,
    unit,
)

IDS = ("a", "b", "c")


def segments(path: Path) -> list[Path]:
    return sorted((path / "segments").glob("*.log"))


def flip(file: Path, mark: bytes, nth: int = 0) -> int:
    """Change one byte of the nth place where `mark` stands; return its offset."""
    data = bytearray(file.read_bytes())
    at = -1
    for _ in range(nth + 1):
        at = data.index(mark, at + 1)
    data[at] ^= 1
    file.write_bytes(bytes(data))
    return at


def filled(path: Path, leave: Callable[[Store], None]) -> None:
    store = open_store(path)
    fill(store)
    leave(store)


def test_a_whole_store_passes_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` verifies every record, index and state, and changes nothing."""
    filled(tmp_path, Store.close)
    before = {file: file.read_bytes() for file in tmp_path.glob("*/*")}
    report = check(tmp_path)
    assert report.problems == ()
    assert (report.segments, report.unfinished) == (3, 2)
    assert command_line.main(["check", str(tmp_path)]) == 0
    assert "ok" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in tmp_path.glob("*/*")} == before


def test_rot_in_a_sealed_segment_touches_one_process(tmp_path: Path) -> None:
    """F024 G12: history of the damaged one refuses, its claim says so, all others go on."""
    filled(tmp_path, crash)
    offset = flip(segments(tmp_path)[1], b'"key":"two"')
    assert any(problem.file.endswith("02.log") for problem in check(tmp_path).problems)
    store = open_store(tmp_path)
    with pytest.raises(StorageCorruptError, match=r"00000002\.log at offset"):
        ask(store, Read(("a",), history=True))
    assert ask(store, Read(("a",)))[0].row.process_id == "a"
    assert [each.key for each in ask(store, Read(("b",), history=True))[0].checkpoints] == [
        "one",
        "two",
    ]
    assert [row.process_id for row in ask(store, ListPage(Query())).rows] == list(IDS)
    lease = lease_of(store, "h2")
    damaged, whole = claim(store, lease).claimed
    assert damaged.row.process_id == "a"
    assert "00000002.log" in (damaged.damage or "")
    assert damaged.checkpoints == ()
    assert whole.damage is None
    aside = Ending(Status.QUARANTINED, Form.ERROR, b'{"type":"E"}')
    outcomes = ask(store, Commit(lease, (unit("a", 1, epoch=2, ending=aside),)))
    assert outcomes[0].refused is None
    store.close()
    assert offset > 0


def test_rot_in_the_growing_segment_refuses_to_open(tmp_path: Path) -> None:
    """F024 F025 G14: below the clean mark or before a later batch: refused, with the place."""
    for leave in (Store.close, crash):
        path = tmp_path / leave.__name__
        filled(path, leave)
        flip(segments(path)[-1], b'"t":"unit"')
        before = segments(path)[-1].read_bytes()
        for _ in range(2):
            with pytest.raises(StorageCorruptError, match=r"00000003\.log is broken at offset"):
                open_store(path)
        assert segments(path)[-1].read_bytes() == before


@pytest.mark.parametrize("leave", [Store.close, partial(Store.let_go, clean=True)])
def test_every_cut_of_a_clean_tail_is_damage(
    tmp_path: Path, leave: Callable[[Store], None]
) -> None:
    """F025: after a clean close, and where a host has let the folder go, no byte may be missing."""
    filled(tmp_path, leave)
    file = segments(tmp_path)[-1]
    data = file.read_bytes()
    for size in range(0, len(data), 7):
        file.write_bytes(data[:size])
        with pytest.raises(StorageCorruptError):
            open_store(tmp_path)
    file.write_bytes(data)
    open_store(tmp_path).close()


def test_a_torn_tail_is_cut_and_kept_aside(tmp_path: Path) -> None:
    """F021: an unfinished write at the end goes to torn/, and what was acknowledged stays."""
    filled(tmp_path, crash)
    file = segments(tmp_path)[-1]
    whole = file.stat().st_size
    with file.open("ab") as end:
        end.write(b"0000004cabc half a frame")
    assert check(tmp_path).torn_bytes == 24
    store = open_store(tmp_path)
    assert file.stat().st_size == whole
    (torn,) = (tmp_path / "torn").iterdir()
    assert torn.read_bytes() == b"0000004cabc half a frame"
    assert [each.key for each in ask(store, Read(("a",), history=True))[0].checkpoints] == [
        "one",
        "two",
        "three",
    ]
    store.close()
    assert check(tmp_path).problems == ()


def test_an_intact_but_unreadable_record_damages_its_process_only(tmp_path: Path) -> None:
    """G12 F125: a record of a kind that this code does not know sets one process aside."""
    store = open_store(tmp_path)
    fill(store)
    store._log.append(encode({"t": "novelty", "id": "a", "incarnation": 1}))
    store._log.flush()
    crash(store)
    for rotate in (False, True):
        store = open_store(tmp_path)
        with pytest.raises(StorageCorruptError, match="unreadable record"):
            ask(store, Read(("a",), history=True))
        assert len(ask(store, Read(("b",), history=True))[0].checkpoints) == 2
        if rotate:
            store.rotate()
        crash(store)
    store = open_store(tmp_path)
    first = claim(store, lease_of(store, "h9")).claimed[0]
    assert "unreadable record" in (first.damage or "")
    store.close()


def test_what_is_damaged_can_be_ended_and_purged(tmp_path: Path) -> None:
    """G12: a request ends a process whose history cannot be read; its row can, and it can go."""
    store = open_store(tmp_path)
    fill(store)
    store._log.append(encode({"t": "novelty", "id": "a", "incarnation": 1}))
    store._log.flush()
    crash(store)
    store = open_store(tmp_path)
    ended = Ending(Status.TERMINATED, Form.ERROR, b'{"type":"E"}')
    for number in range(2):
        control = Control(
            process_id="a", action=Action.TERMINATE, request_id=f"t{number}", ending=ended
        )
        (answer,) = ask(store, Ask((control,)))
        assert answer.row.ending == ended
    for _ in range(2):
        assert ask(store, Read(("a",)))[0].row.status is Status.TERMINATED
        with pytest.raises(StorageCorruptError, match="unreadable record"):
            ask(store, Read(("a",), history=True))
        crash(store)
        store = open_store(tmp_path)
    assert ask(store, Purge(("a",))) == (None,)
    assert ask(store, Create((new("a"),)))[0].row.incarnation == 2
    store.close()


def test_a_damaged_creation_refuses_its_id(tmp_path: Path) -> None:
    """G14: an id whose record cannot be read is neither unknown nor free."""
    store = open_store(tmp_path)
    store._log.append(encode({"t": "new", "id": "x", "incarnation": "?"}))
    store._log.flush()
    for request in (
        Read(("x",)),
        Create((new("x"),)),
        Deliver((event("x", "e"),), 10),
    ):
        crash(store)
        store = open_store(tmp_path)
        with pytest.raises(StorageCorruptError, match="'x' is damaged"):
            ask(store, request)
    store.close()


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    """F024: an index is derived data; one that is torn, flipped or missing costs time only."""
    filled(tmp_path, Store.close)
    store = open_store(tmp_path)
    before = ask(store, Read(IDS, history=True))
    store.close()
    for file in sorted((tmp_path / "segments").glob("*.idx")):
        data = file.read_bytes()
        for broken in (data[:-1], data[:30], b"", data[:50] + b"\0" + data[51:]):
            file.write_bytes(broken)
            store = open_store(tmp_path)
            assert ask(store, Read(IDS, history=True)) == before
            store.close()
            assert file.read_bytes() == data
        file.unlink()
    store = open_store(tmp_path)
    assert ask(store, Read(IDS, history=True)) == before
    store.close()


def test_repair_quarantines_what_is_incomplete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue item 4: repair saves what is intact, keeps damaged files, and names who is affected."""
    filled(tmp_path, crash)
    second, third = segments(tmp_path)[1:]
    damaged = second.read_bytes()
    flip(second, b'"key":"two"')  # of a
    flip(second, b'"key":"two"', 2 - 1)  # of c
    flip(third, b'"t":"unit","id":"c"')
    assert command_line.main(["check", str(tmp_path)]) == 1
    report = repair(tmp_path)
    assert report.quarantined == ("a", "c")
    assert len(report.problems) > 2
    assert [(tmp_path / name).exists() for name in report.kept_aside] == [True, True]
    assert (tmp_path / report.kept_aside[0]).read_bytes() != damaged
    assert check(tmp_path).problems == ()
    store = open_store(tmp_path)
    a, b, c = ask(store, Read(IDS, history=True))
    assert a.row.status is Status.QUARANTINED
    assert [each.key for each in a.checkpoints] == ["one", "three"]
    assert [each.key for each in b.checkpoints] == ["one", "two"]
    assert b.row.status is Status.RUNNING
    assert (c.row.status, [each.key for each in c.checkpoints]) == (Status.QUARANTINED, ["one"])
    store.close()
    assert command_line.main(["repair", str(tmp_path)]) == 0
    assert "nothing was wrong" in capsys.readouterr().out


def test_repair_without_a_manifest(tmp_path: Path) -> None:
    """A lost manifest is never taken for a new store; the segments tell what it said."""
    filled(tmp_path, Store.close)
    store = open_store(tmp_path)
    store.compact()
    ask(store, Create((new("d"),)))
    before = ask(store, Read((*IDS, "d"), history=True))
    store.close()
    (tmp_path / "MANIFEST").unlink()
    with pytest.raises(StorageCorruptError, match="MANIFEST is missing"):
        open_store(tmp_path)
    report = repair(tmp_path)
    assert (report.quarantined, report.lost) == ((), ())
    store = open_store(tmp_path)
    assert ask(store, Read((*IDS, "d"), history=True)) == before
    store.close()
    (tmp_path / "MANIFEST").write_bytes(b"garbage")
    with pytest.raises(StorageCorruptError, match="MANIFEST at offset 0"):
        open_store(tmp_path)


def test_a_lost_creation_is_reported(tmp_path: Path) -> None:
    """Repair keeps nothing of a process whose creation is gone, and says so."""
    filled(tmp_path, crash)
    flip(segments(tmp_path)[0], b'"t":"new","id":"b"')
    assert repair(tmp_path).lost == ("b",)
    store = open_store(tmp_path)
    assert ask(store, Read(IDS))[1] is None
    lease = lease_of(store, "h2")
    assert ask(store, Commit(lease, (unit("b", 9, done("x")),)))[0].refused is Refusal.NOT_OWNER
    store.close()


def test_a_newer_format_is_not_touched(tmp_path: Path) -> None:
    """F133: a folder of a newer version is refused, and not one byte of it changes."""
    filled(tmp_path, Store.close)
    payload = b'{"format":2,"shape":"unknown"}'
    (tmp_path / "MANIFEST").write_bytes(_frames.encode(0, 0, payload))
    before = {file: file.read_bytes() for file in tmp_path.glob("*/*")}
    for refused in (open_store, check, repair):
        with pytest.raises(StorageFormatError, match="format 2"):
            refused(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.glob("*/*")} == before


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with foreign files is not taken for an empty one, and `check` makes no store."""
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StorageFormatError, match=r"holiday\.jpg"):
        open_store(tmp_path)
    assert command_line.main(["check", str(tmp_path)]) == 2
    assert "no store" in capsys.readouterr().err
