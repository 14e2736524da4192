"""Random walks over everything that a folder goes through; `check` agrees at every stop."""

import random
from typing import Any

import pytest

from durabletask.storage import Leave, Query, Snapshot, Status, Unit
from durabletask.testing.disk import SimulatedFolder
from durabletask_filesystem import check
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
from tests.filesystem.stores import CLOCK, FINISH, ask, claim, done, event, lease_of, new

IDS = tuple(f"p{number}" for number in range(6))


def some_unit(draw: random.Random, snapshot: Snapshot, turn: int) -> Unit:
    """Return a unit that the owner of a process might write."""
    fields: dict[str, Any] = {}
    match draw.randrange(4):
        case 0:
            fields = {"ending": FINISH}
        case 1:
            fields = {"status": Status.WAITING, "leave": draw.choice(list(Leave))}
    variable = done("v", b"%d" % turn, replaces=True)
    return Unit(
        process_id=snapshot.row.process_id,
        incarnation=snapshot.row.incarnation,
        epoch=snapshot.row.epoch,
        seq=snapshot.row.seq + 1,
        checkpoints=(draw.choice((done(f"s{draw.randrange(8)}"), variable)),),
        **fields,
    )


class Walk:
    """A store on a simulated disk, and one host that comes and goes."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.folder = SimulatedFolder()
        self.hosts = 0
        self.open()

    def open(self) -> None:
        size = self.draw.choice((800, 2_000, 5_000))
        self.store = Store.open(
            self.folder, CLOCK, segment_bytes_max=size, entropy=self.draw.randbytes
        )
        self.hosts += 1
        self.lease = lease_of(self.store, f"h{self.hosts}")

    def step(self, turn: int) -> None:
        draw, store = self.draw, self.store
        match draw.randrange(10):
            case 0:
                fields = {"creation_id": str(turn), "replace": draw.random() < 0.5}
                made = tuple(new(each, **fields) for each in draw.sample(IDS, 2))
                ask(store, Create(made, draw.choice((self.lease, None))))
            case 1:
                sent = tuple(event(each, f"e{draw.randrange(5)}") for each in draw.sample(IDS, 2))
                ask(store, Deliver(sent, 5))
            case 2:
                ask(store, Purge(tuple(draw.sample(IDS, 3))))
            case 3:
                claim(store, self.lease, draw.randrange(1, 4))
            case 4:
                ask(store, CloseLease(self.lease))
                self.hosts += 1
                self.lease = lease_of(store, f"h{self.hosts}")
            case 5:
                draw.choice((store.compact, store.rotate))()
            case 6:
                self.reopen()
            case _:
                held = (each for each in ask(store, Read(IDS)) if each and each.row.owner)
                units = tuple(some_unit(draw, each, turn) for each in held if draw.random() < 0.7)
                ask(store, Commit(self.lease, units))
        while self.store.compacting and draw.random() < 0.8:
            ask(self.store, Compact(slice=True))

    def reopen(self) -> None:
        if self.draw.random() < 0.5:
            self.store.close()
        else:
            self.folder = self.folder.after_process_crash()
        self.check()
        self.open()

    def check(self) -> None:
        assert check("simulated", folder=self.folder).problems == ()

    def everything(self) -> Any:
        return ask(self.store, Read(IDS, history=True)), ask(self.store, ListPage(Query()))


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in (0, 20, 40)])
def test_a_merge_and_lost_indexes_change_no_answer(seeds: range) -> None:
    """F037 G14: after any walk, merged, closed, and with every index lost, all answers stay."""
    for seed in seeds:
        walk = Walk(seed)
        for turn in range(60):
            walk.step(turn)
        ask(walk.store, CloseLease(walk.lease))
        before = walk.everything()
        walk.store.compact()
        assert walk.everything() == before
        walk.store.close()
        walk.check()
        for name in walk.folder.names("segments"):
            if name.endswith(".idx"):
                walk.folder.remove(f"segments/{name}")
        walk.store = Store.open(walk.folder, CLOCK)
        assert walk.everything() == before
        walk.store.close()
