"""How long does a claim take beside 1,000,000 finished processes?

Two databases, one with 1,000,000 finished processes of one checkpoint each,
both with 10,000 claimable ones of five; loaded by SQL, since finishing a
million would take minutes. Claims of ten at a time, one of each database in
turns, through the storage's own method, until nothing is left; and as many
that find nothing, which is what an idle host asks.
"""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from benchmarks._frame import conclude, options, ratios, tell
from benchmarks._postgres import lend_server, percentiles
from durabletask.storage import Lease
from durabletask_postgres import PostgresStorage

FINISHED = 1_000_000
LIVE = 10_000
EACH = 10
P99_MAX_MS = 5.0

PROCESSES = """
    insert into durabletask.process
        (process_id, name, status, epoch, claimable_at, created_at, updated_at, started_at,
        finished_at, creation_id, input_digest, ending_form, ending_payload, input)
    select '{kind}/' || n, 'work', '{status}', 1, {claimable_at}, at, at, at, {finished_at},
        md5(n::text), md5('input'), {ending}, '[{{"n": 1}}]'
    from generate_series(1, {count}) n, (select clock_timestamp() - interval '1 day' as at) at
"""

CHECKPOINTS = """
    insert into durabletask.checkpoint
        (process_no, at, epoch, seq, index, ordinal, replaces, kind, key, form, payload)
    select process_no, created_at, 1, n, -1, 0, false, 'do', 'step ' || n, 'value', '{{"n": 1}}'
    from durabletask.process, generate_series(1, {count}) n
    where status = '{status}'
"""


def load(finished: int, live: int) -> Sequence[str]:
    """Return the statements that fill a database."""
    return (
        PROCESSES.format(
            kind="finished",
            status="completed",
            count=finished,
            claimable_at="null",
            finished_at="at",
            ending="'value', 'null'",
        ),
        PROCESSES.format(
            kind="live",
            status="running",
            count=live,
            claimable_at="at",
            finished_at="null",
            ending="null, null",
        ),
        CHECKPOINTS.format(status="completed", count=1),
        CHECKPOINTS.format(status="running", count=5),
        "vacuum analyze",
    )


class Claimer:
    """Claims from one database and takes the time."""

    def __init__(self, dsn: str) -> None:
        self._storage = PostgresStorage(dsn)
        self._claims = 0
        self._lease: Lease
        self.taking_ms: list[float] = []
        self.idle_ms: list[float] = []

    async def open(self, turn: int) -> None:
        """Begin a round under a new lease."""
        self._lease = await self._storage.open_lease(f"{turn:032x}", "benchmark")
        self.taking_ms, self.idle_ms = [], []

    async def claim(self) -> None:
        """Claim once."""
        self._claims += 1
        claim_id = f"{self._claims:032x}"
        begun_s = perf_counter()
        claims = await self._storage.claim(self._lease, claim_id, ["work"], count_max=EACH)
        took_ms = (perf_counter() - begun_s) * 1e3
        (self.taking_ms if claims.claimed else self.idle_ms).append(took_ms)

    async def give_back(self) -> None:
        """End a round: what was taken is claimable again."""
        await self._storage.close_lease(self._lease)

    async def close(self) -> None:
        """End."""
        await self._storage.close()


Told = dict[str, list[tuple[float, float]]]


async def measure(few: str, many: str, live: int, rounds: int) -> Told:
    """Return p50 and p99 in ms of each round, by what was claimed and where."""
    claimers = {"alone": Claimer(few), "beside the finished": Claimer(many)}
    told: Told = {}
    for turn in range(rounds):
        for claimer in claimers.values():
            await claimer.open(turn)
        for _ in range(2 * live // EACH):
            for claimer in claimers.values():
                await claimer.claim()
        for name, claimer in claimers.items():
            told.setdefault(f"10 claimed, {name}", []).append(percentiles(claimer.taking_ms))
            told.setdefault(f"nothing there, {name}", []).append(percentiles(claimer.idle_ms))
            await claimer.give_back()
    for claimer in claimers.values():
        await claimer.close()
    return told


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    chosen = options("latency of a claim on Postgres beside finished processes", argv, 3)
    finished, live = chosen.size(FINISHED, 100), chosen.size(LIVE, 20)
    with (
        lend_server(chosen) as server,
        server.database() as few,
        server.database() as many,
    ):
        server.sql(*load(0, live), dsn=few)
        server.sql(*load(finished, live), dsn=many)
        told = asyncio.run(measure(few, many, live, chosen.repeats))
    shown = {
        f"{name}, {which}": [pair[place] for pair in pairs]
        for name, pairs in told.items()
        for place, which in enumerate(("p50", "p99"))
    }
    tell(f"ms, {finished:,} finished and {live:,} live", shown, ".2f")
    middles = [
        [p50 for p50, _ in told[f"10 claimed, {where}"]]
        for where in ("beside the finished", "alone")
    ]
    conclude("ratio, p50 beside the finished to alone", ratios(*middles))
    for what in ("nothing there", "10 claimed"):
        tail = [p99 for _, p99 in told[f"{what}, beside the finished"]]
        conclude(f"ms p99 beside the finished, {what}", tail, at_most=P99_MAX_MS)


if __name__ == "__main__":
    main()
