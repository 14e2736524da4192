"""Does a unit cost more in a larger batch, on Postgres?

The same units of as many processes, in batches of 250 and in one of 2,000,
through the storage's own `commit`, one sort after the other: steps, beginning
waits, taking an event, values that replace another, ends. A unit must not look
at its neighbours: where it does, the batch of a busy host outlasts its lease.
"""

import asyncio
from collections.abc import Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server
from durabletask import Status
from durabletask.storage import (
    DONE,
    NO_INDEX,
    Checkpoint,
    Ending,
    Form,
    Kind,
    Lease,
    NewEvent,
    NewProcess,
    Unit,
)
from durabletask_postgres import PostgresStorage

PROCESSES = 2_000
SMALL = 250
CREATE_MAX = 1_000
MUST_REACH = 1.5

Units = list[Unit]


async def create(
    storage: PostgresStorage, lease: Lease, prefix: str, count: int
) -> list[tuple[str, int]]:
    """Create processes, each with an event in its mailbox; return their ids and incarnations."""
    ids = [f"{prefix}/{number}" for number in range(count)]
    made = []
    for start in range(0, count, CREATE_MAX):
        part = ids[start : start + CREATE_MAX]
        created = await storage.create(
            [
                NewProcess(
                    process_id=each,
                    name="work",
                    input=b"[]",
                    input_digest="0" * 64,
                    creation_id="0" * 32,
                )
                for each in part
            ],
            lease,
        )
        made += [(each.row.process_id, each.row.incarnation) for each in created if each.row]
        await storage.deliver(
            [NewEvent(process_id=each, event_id=each, name="tick", payload=b"1") for each in part],
            mailbox_max=1,
        )
    return made


def sorts(processes: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Units]]:
    """Yield a unit of each process, of one sort after the other."""

    def units(seq: int, **what: Any) -> Units:
        return [
            Unit(process_id=process_id, incarnation=incarnation, epoch=1, seq=seq, **what)
            for process_id, incarnation in processes
        ]

    def point(kind: Kind, key: str, *, replaces: bool = False) -> dict[str, Any]:
        return {"checkpoints": (Checkpoint(kind, key, NO_INDEX, Form.VALUE, b"1", replaces),)}

    yield "steps", units(1, **point(Kind.DO, "step"))
    yield "waits that begin", units(2, **point(Kind.WAIT, "event"), status=Status.WAITING)
    yield (
        "events taken",
        units(3, **point(Kind.EVENT, "event"), consumes=(1,), status=Status.RUNNING),
    )
    yield "values, the first", units(4, **point(Kind.VAR, "cursor", replaces=True))
    yield "values, replaced", units(5, **point(Kind.VAR, "cursor", replaces=True))
    yield "ends", units(6, ending=Ending(Status.COMPLETED, Form.VALUE, b"null"))


async def measure(dsn: str, turn: int, count: int, batch: int) -> dict[str, float]:
    """Return µs a unit of each sort, in batches of a size."""
    storage = PostgresStorage(dsn)
    lease = await storage.open_lease(f"{turn:032x}", "benchmark")
    processes = await create(storage, lease, f"process/{turn}", count)
    told = {}
    for name, units in sorts(processes):
        begun_s = perf_counter()
        for start in range(0, count, batch):
            part = units[start : start + batch]
            outcomes = await storage.commit(lease, part)
            assert all(outcome == DONE for outcome in outcomes), outcomes[0]
        told[name] = (perf_counter() - begun_s) * 1e6 / count
    await storage.close_lease(lease)
    await storage.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("µs a unit on Postgres, in small batches and in large ones", argv, 5)
    count, small = chosen.size(PROCESSES, 20), chosen.size(SMALL, 5)
    found: dict[int, list[dict[str, float]]] = {small: [], count: []}
    with lend_server(chosen) as server, server.database() as dsn:
        asyncio.run(measure(dsn, 0, small, small))  # plans, caches
        for turn in range(chosen.repeats):
            for place, (batch, told) in enumerate(found.items()):
                told.append(asyncio.run(measure(dsn, 2 * turn + place + 1, count, batch)))
    worst: list[float] = []
    for name in found[count][0]:
        few, many = ([told[name] for told in each] for each in found.values())
        tell(f"{name}: µs a unit", {f"{small} a batch": few, f"{count:,} a batch": many}, ".1f")
        worst = max(worst, ratios(many, few), key=lambda each: median(each or [0.0]))
    conclude("ratio, the worst of these, large to small", worst, at_most=MUST_REACH)


if __name__ == "__main__":
    main()
