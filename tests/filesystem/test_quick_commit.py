"""The quick way of committing a unit does what the long one does, byte for byte."""

from pathlib import Path
from random import Random

import pytest

from durabletask.errors import InvalidIdError
from durabletask.storage import DONE, Checkpoint, Form, Kind, Leave, Status, Unit, UnitOutcome
from durabletask_filesystem._commit import Committer
from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._requests import Claim, Commit, Create, OpenLease, Read
from durabletask_filesystem._state import PACKED_MAX
from durabletask_filesystem._store import Store
from tests.filesystem.stores import FINISH, Ticking, ask, new

IDS = ("a", "b", "c", "d")
PAYLOADS = (b"1", b'"text"', b" [1, 2]", b"{}\n", b"\t\tnull ")
BATCHES = 60


def _checkpoint(random: Random) -> Checkpoint:
    return Checkpoint(
        random.choice((Kind.DO, Kind.GET, Kind.WAIT)),
        f"key {random.randrange(40)}",
        random.choice((-1, -1, 0, 7)),
        random.choice(tuple(Form)),
        random.choice(PAYLOADS),
        replaces=random.random() < 0.1,
    )


def _unit(random: Random, seqs: dict[str, int]) -> Unit:
    """Return a unit that is mostly plain and mostly right."""
    process_id = random.choice((*IDS, *IDS, *IDS, "nobody"))
    seqs[process_id] = seqs.get(process_id, 0) + random.choice((0, 1, 1, 1, 1, 1, 2))
    plain = random.random() < 0.8
    count = 1 if plain else random.randrange(3)
    return Unit(
        process_id=process_id,
        incarnation=1 if random.random() < 0.97 else 2,
        epoch=1 if random.random() < 0.97 else 2,
        seq=seqs[process_id],
        checkpoints=tuple(_checkpoint(random) for _ in range(count)),
        consumes=(1,) if not plain and random.random() < 0.2 else (),
        status=None if plain else random.choice((None, Status.RUNNING, Status.WAITING)),
        leave=Leave.RELEASED if random.random() < 0.01 else None,
        ending=FINISH if random.random() < 0.01 else None,
    )


def _open(folder: Path, seed: int) -> tuple[Store, Random]:
    store = Store.open(RealFolder(folder), Ticking(), entropy=Random(seed).randbytes)
    return store, Random(seed)


def _play(folder: Path, seed: int) -> tuple[list[object], dict[str, object], dict[str, bytes]]:
    """Commit random units; return the answers, the state in memory, and the files."""
    store, random = _open(folder, seed)
    lease = ask(store, OpenLease("host", "test"))
    ask(store, Create(tuple(new(each) for each in IDS), lease))
    seqs: dict[str, int] = {}
    answers: list[object] = []
    for number in range(BATCHES):
        units = tuple(_unit(random, seqs) for _ in range(random.randrange(1, 12)))
        outcomes: tuple[UnitOutcome, ...] = ask(store, Commit(lease, units))
        answers.append(outcomes)
        if number % 20 == 19:
            store.rotate()
        if number == BATCHES // 2:
            answers.append(ask(store, Claim(lease, "again", ("fn",), 10)))
    procs = {each.id: each for each in store._table.procs.values()}
    store.close()
    files = {each.name: each.read_bytes() for each in (folder / "segments").iterdir()}
    return answers, dict(procs), files


@pytest.mark.parametrize("seed", range(12))
def test_the_quick_way_writes_what_the_long_way_writes(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: random units get the same answers, leave the same state and the same bytes on disk."""
    quick = 0
    write_steps = Committer._write_steps

    def counted(*arguments: object) -> int:
        nonlocal quick
        taken = write_steps(*arguments)  # type: ignore[arg-type]
        quick += taken
        return taken

    monkeypatch.setattr(Committer, "_write_steps", counted)
    one = _play(tmp_path / "quick", seed)
    assert quick > PACKED_MAX // 8
    monkeypatch.setattr(Committer, "_write_steps", lambda *_: 0)
    other = _play(tmp_path / "long", seed)
    assert one == other


def test_an_id_that_cannot_be_written_leaves_the_units_before_it_written(tmp_path: Path) -> None:
    """A lone surrogate in a key refuses its request; memory and disk stay one (G1)."""
    store, _ = _open(tmp_path, 0)
    lease = ask(store, OpenLease("host", "test"))
    ask(store, Create(tuple(new(each) for each in IDS), lease))
    keys = ("good", "\ud800", "late")
    units = tuple(
        Unit(
            process_id=process_id,
            incarnation=1,
            epoch=1,
            seq=1,
            checkpoints=(Checkpoint(Kind.DO, key, -1, Form.VALUE, b"1"),),
        )
        for process_id, key in zip(IDS, keys, strict=False)
    )
    with pytest.raises(InvalidIdError):
        ask(store, Commit(lease, units))
    before = ask(store, Read(IDS, history=True))
    store.folder.unlock()
    again, _ = _open(tmp_path, 0)
    after = ask(again, Read(IDS, history=True))
    assert [each.checkpoints for each in after] == [each.checkpoints for each in before]
    assert [len(each.checkpoints) for each in after] == [1, 0, 0, 0]
    again.close()


def test_a_batch_beyond_what_the_log_holds_goes_out_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many large payloads in one batch are recorded all, while memory holds a part."""
    monkeypatch.setattr("durabletask_filesystem._commit.PENDING_BYTES_MAX", 1000)
    store, _ = _open(tmp_path, 0)
    lease = ask(store, OpenLease("host", "test"))
    ask(store, Create(tuple(new(each) for each in IDS), lease))
    text = b'"%b"' % (b"x" * 400)
    units = tuple(
        Unit(
            process_id=process_id,
            incarnation=1,
            epoch=1,
            seq=number,
            checkpoints=(Checkpoint(Kind.DO, f"key {number}", -1, Form.VALUE, text),),
        )
        for number in range(1, 6)
        for process_id in IDS
    )
    assert ask(store, Commit(lease, units)) == (DONE,) * len(units)
    store.close()
    again, _ = _open(tmp_path, 0)
    assert [len(each.checkpoints) for each in ask(again, Read(IDS, history=True))] == [5] * 4
    again.close()
