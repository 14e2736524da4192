"""What the tests of the store share: a clock, short ways to ask, and a crash."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from durabletask.storage import (
    Checkpoint,
    Claims,
    Ending,
    Form,
    Kind,
    Lease,
    NewEvent,
    NewProcess,
    Status,
    Unit,
)
from durabletask_filesystem._disk import RealFolder
from durabletask_filesystem._requests import Claim, Commit, Create, Deliver, OpenLease
from durabletask_filesystem._store import Store


class Ticking:
    """A clock that moves a second at every look."""

    recheck_s = float("inf")

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        self._now += timedelta(seconds=1)
        return self._now

    def monotonic_s(self) -> float:
        return 0.0


CLOCK = Ticking()
FINISH = Ending(Status.COMPLETED, Form.VALUE, b'"ok"')
_ids = itertools.count()


def open_store(path: Path, **options: Any) -> Store:
    return Store.open(RealFolder(path), CLOCK, **options)


def ask(store: Store, request: Any) -> Any:
    (answer,) = store.apply([request])
    if isinstance(answer, Exception):
        raise answer
    return answer


def new(process_id: str, **fields: Any) -> NewProcess:
    fields = {"name": "fn", "input": b"[1]", "input_digest": "d", "creation_id": "c"} | fields
    return NewProcess(process_id=process_id, **fields)


def event(process_id: str, event_id: str, payload: bytes = b"1") -> NewEvent:
    return NewEvent(process_id=process_id, event_id=event_id, name="n", payload=payload)


def lease_of(store: Store, host_id: str = "h1") -> Lease:
    lease = ask(store, OpenLease(host_id, "host"))
    assert isinstance(lease, Lease)
    return lease


def claim(store: Store, lease: Lease, count_max: int = 100, claim_id: str | None = None) -> Claims:
    claims = ask(store, Claim(lease, claim_id or f"claim-{next(_ids)}", ("fn",), count_max))
    assert isinstance(claims, Claims)
    return claims


def done(key: str, payload: bytes = b'{"a":1}', **fields: Any) -> Checkpoint:
    return Checkpoint(Kind.DO, key, -1, Form.VALUE, payload, **fields)


def unit(process_id: str, seq: int, *checkpoints: Checkpoint, **fields: Any) -> Unit:
    return Unit(
        process_id=process_id,
        incarnation=fields.pop("incarnation", 1),
        epoch=fields.pop("epoch", 1),
        seq=seq,
        checkpoints=checkpoints,
        **fields,
    )


def crash(store: Store) -> None:
    """Leave the folder as a killed program does."""
    store.folder.unlock()


def fill(store: Store) -> Lease:
    """Write three processes with two steps each over three segments; the last one is finished."""
    lease = lease_of(store)
    ask(store, Create((new("a"), new("b"), new("c")), lease))
    ask(store, Commit(lease, tuple(unit(each, 1, done("one")) for each in "abc")))
    store.rotate()
    ask(store, Deliver((event("a", "e1"),), 10))
    ask(store, Commit(lease, tuple(unit(each, 2, done("two")) for each in "abc")))
    store.rotate()
    ask(store, Commit(lease, (unit("c", 3, ending=FINISH),)))
    ask(store, Commit(lease, (unit("a", 3, done("three")),)))
    return lease
