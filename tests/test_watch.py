"""Waiting for ends: told where the process runs, looked for where it does not."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from durabletask._watch import Watch
from durabletask.errors import (
    StorageCorruptError,
    StorageFailedError,
    StorageUnavailableError,
    StorageUnknownError,
    UnknownProcessError,
)
from durabletask.storage import Ending, Form, ProcessRow, Snapshot, Status
from durabletask.testing import VirtualClock, run_virtual

AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDED = Ending(Status.COMPLETED, Form.VALUE, b"1")
OTHERWISE = Ending(Status.COMPLETED, Form.VALUE, b"2")


class Shelf:
    """Rows by id, read in batches; nothing else of a storage is needed here."""

    def __init__(self) -> None:
        self.rows: dict[str, ProcessRow] = {}
        self.reads: list[int] = []
        self.error: Exception | None = None
        self.slow_s = 0.0

    def put(self, process_id: str, ending: Ending | None = None, incarnation: int = 1) -> None:
        self.rows[process_id] = ProcessRow(
            process_id=process_id,
            name="f",
            input=b"{}",
            input_digest="d",
            creation_id="c",
            status=ending.status if ending else Status.RUNNING,
            created_at=AT,
            updated_at=AT,
            ending=ending,
            incarnation=incarnation,
        )

    async def read(self, ids: Sequence[str], *, history: bool = False) -> list[Snapshot | None]:
        self.reads.append(len(ids))
        if self.error is not None:
            raise self.error
        found = [Snapshot(self.rows[id]) if id in self.rows else None for id in ids]
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        return found


def watching(shelf: Shelf, here: set[str]) -> Watch:
    return Watch(shelf, 0.5, lambda each: 1 if each in here else None)  # type: ignore[arg-type]


def test_a_process_that_runs_here_is_told_not_read() -> None:
    """S2.08: no look at the storage while the process is here."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        watch = watching(shelf, {"p"})
        waits = [asyncio.create_task(watch.wait("p")) for _ in range(3)]
        await asyncio.sleep(100)
        watch.tell("p", 1, ENDED)
        assert await asyncio.gather(*waits) == [ENDED] * 3
        assert shelf.reads == []

    run_virtual(main)


def test_one_look_serves_all_waits() -> None:
    """S2.08, F140: 2,500 waits elsewhere share one look a poll interval, in bounded batches."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        for n in range(2500):
            shelf.put(f"p{n}")
        watch = watching(shelf, set())
        waits = [asyncio.create_task(watch.wait(f"p{n}")) for n in range(2500)]
        await asyncio.sleep(10)
        assert max(shelf.reads) == 1000
        assert len(shelf.reads) <= 3 * 25
        for n in range(2500):
            shelf.put(f"p{n}", ENDED)
        assert await asyncio.gather(*waits) == [ENDED] * 2500
        reads = len(shelf.reads)
        await asyncio.sleep(100)
        assert len(shelf.reads) == reads

    run_virtual(main)


def test_a_process_that_leaves_this_host_is_looked_for() -> None:
    """S2.08, S3.04: it left without an end (a lost lease): the wait goes on elsewhere."""

    async def main(clock: VirtualClock) -> None:
        shelf, here = Shelf(), {"p"}
        shelf.put("p")
        watch = watching(shelf, here)
        wait = asyncio.create_task(watch.wait("p"))
        await asyncio.sleep(10)
        here.clear()
        watch.tell("p", 1, None)
        await asyncio.sleep(10)
        assert not wait.done()
        shelf.put("p", ENDED)
        assert await wait == ENDED

    run_virtual(main)


def test_a_look_that_began_before_the_wait_is_no_answer_to_it() -> None:
    """G9: it may have seen the process that had the id before, or that there was none yet."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.put("old", ENDED)
        shelf.slow_s = 1.0
        watch = watching(shelf, set())
        ids = ("old", "none")
        before = [asyncio.create_task(watch.wait(id)) for id in ids]
        await asyncio.sleep(0.5)  # the look is on its way
        for id in ids:
            shelf.put(id, incarnation=2)
        after = [
            asyncio.create_task(watch.wait(id, incarnation))
            for id in ids
            for incarnation in (2, None)
        ]
        await asyncio.sleep(100)
        assert await before[0] == ENDED
        with pytest.raises(UnknownProcessError):
            await before[1]
        assert not any(each.done() for each in after)
        for id in ids:
            shelf.put(id, OTHERWISE, incarnation=2)
        assert await asyncio.gather(*after) == [OTHERWISE] * 4

    run_virtual(main)


def test_who_waits_hears_that_the_id_has_another_process() -> None:
    """G9: the one waited for has ended, and was replaced, between two looks."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.put("p")
        watch = watching(shelf, set())
        wait = asyncio.create_task(watch.wait("p"))
        await asyncio.sleep(10)
        shelf.put("p", ENDED, incarnation=2)
        with pytest.raises(UnknownProcessError, match="was purged or replaced"):
            await wait

    run_virtual(main)


def test_the_end_of_an_earlier_process_is_told_to_those_who_wait_for_it() -> None:
    """G9: and who waits for the one that has the id now goes on waiting."""

    async def main(clock: VirtualClock) -> None:
        shelf, here = Shelf(), {"p"}
        shelf.put("p", incarnation=2)
        watch = watching(shelf, here)
        waits = [asyncio.create_task(watch.wait("p", incarnation)) for incarnation in (None, 1, 2)]
        await asyncio.sleep(10)
        here.clear()
        watch.tell("p", 1, ENDED)
        await asyncio.sleep(10)
        assert [each.done() for each in waits] == [True, True, False]
        assert waits[0].result() == waits[1].result() == ENDED
        shelf.put("p", OTHERWISE, incarnation=2)
        assert await waits[2] == OTHERWISE

    run_virtual(main)


@pytest.mark.parametrize("error", [StorageUnavailableError("down"), StorageUnknownError("lost")])
def test_an_outage_only_makes_the_wait_longer(error: Exception) -> None:
    """F009: result() does not fail because the storage is away for a while."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.put("p", ENDED)
        shelf.error = error
        watch = watching(shelf, set())
        wait = asyncio.create_task(watch.wait("p"))
        await asyncio.sleep(600)
        assert not wait.done()
        shelf.error = None
        assert await wait == ENDED

    run_virtual(main)


@pytest.mark.parametrize(
    "error", [StorageFailedError("gone"), StorageCorruptError("bad"), OSError("odd")]
)
def test_what_does_not_pass_is_told(error: Exception) -> None:
    """F009: an error that waiting cannot heal ends the waits, whatever its class."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.error = error
        watch = watching(shelf, set())
        with pytest.raises(type(error)):
            await asyncio.wait_for(watch.wait("p"), 60)

    run_virtual(main)


def test_an_unknown_id_does_not_fail_its_neighbours() -> None:
    """UnknownProcessError for the one, the other waits on."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.put("known")
        watch = watching(shelf, set())
        known = asyncio.create_task(watch.wait("known"))
        with pytest.raises(UnknownProcessError, match="'nobody'"):
            await watch.wait("nobody")
        shelf.put("known", ENDED)
        assert await known == ENDED

    run_virtual(main)


def test_a_wait_that_is_given_up_leaves_nothing() -> None:
    """F140: a cancelled wait stops the looking when it was the last."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.put("p")
        watch = watching(shelf, set())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.wait("p"), 5)
        await asyncio.sleep(5)
        reads = len(shelf.reads)
        await asyncio.sleep(100)
        assert len(shelf.reads) == reads
        assert watch._waiters == {}

    run_virtual(main)


def test_closing_ends_every_wait() -> None:
    """S1.14: close(error) ends all waits with it."""

    async def main(clock: VirtualClock) -> None:
        shelf = Shelf()
        shelf.put("p")
        watch = watching(shelf, {"here"})
        waits = [asyncio.create_task(watch.wait(id)) for id in ("p", "here")]
        await asyncio.sleep(1)
        await watch.close(StorageFailedError("closed"))
        for result in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(result, StorageFailedError)

    run_virtual(main)


class HintingShelf(Shelf):
    """A shelf that takes its time, and says when to look."""

    def __init__(self) -> None:
        super().__init__()
        self.hint: Callable[[str | None], None]

    def subscribe(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        self.hint = callback
        return lambda: None

    async def read(self, ids: Sequence[str], *, history: bool = False) -> list[Snapshot | None]:
        await asyncio.sleep(len(ids) / 10_000)
        return await super().read(ids, history=history)


def test_a_hint_at_one_process_is_a_look_at_one() -> None:
    """F140: whoever else is waited for is neither read nor looked for as one has news or is new."""
    asked = 0

    def here(process_id: str) -> None:
        nonlocal asked
        asked += 1

    async def main(clock: VirtualClock) -> None:
        shelf = HintingShelf()
        for n in range(1000):
            shelf.put(f"p{n}")
        watch = Watch(shelf, 1e6, here)  # type: ignore[arg-type]  # it only reads
        waits = [asyncio.create_task(watch.wait(f"p{n}")) for n in range(999)]
        await asyncio.sleep(1)
        waits.append(asyncio.create_task(watch.wait("p999")))
        await asyncio.sleep(1)
        for n in range(1000):
            shelf.put(f"p{n}", ENDED)
            shelf.hint(f"p{n}")
            shelf.hint("somebody else's")
            assert await waits[n] == ENDED
        assert shelf.reads == [999, *[1] * 1001]
        assert asked < 10 * 1000

    run_virtual(main)


def test_hints_at_anything_leave_time_for_else() -> None:
    """F140: however many come, at most a fifth of the time is spent on looks at everything."""

    async def main(clock: VirtualClock) -> None:
        shelf = HintingShelf()
        for n in range(1000):
            shelf.put(f"p{n}")
        watch = Watch(shelf, 1e6, lambda _: None)  # type: ignore[arg-type]  # it only reads
        waits = [asyncio.create_task(watch.wait(f"p{n}")) for n in range(1000)]
        await asyncio.sleep(1)
        shelf.reads.clear()
        for _ in range(10_000):
            shelf.hint(None)
            await asyncio.sleep(0.001)
        assert 18 <= len(shelf.reads) <= 21  # in 10 s, each 0.1 s
        shelf.put("p7", ENDED)
        shelf.hint(None)  # the last one is not forgotten while it rests
        assert await asyncio.wait_for(waits[7], 1.0) == ENDED
        shelf.reads.clear()
        shelf.put("p8", ENDED)
        shelf.hint("p8")  # nor does one that has a name wait for its end
        assert await asyncio.wait_for(waits[8], 0.1) == ENDED
        assert shelf.reads == [1]
        await watch.close(RuntimeError("the end"))
        await asyncio.gather(*waits, return_exceptions=True)

    run_virtual(main)


def test_what_is_damaged_fails_its_own_waits_only() -> None:
    """G13: a row that cannot be read is an error to who waits for it, and to nobody else."""

    class Damaged(Shelf):
        async def read(self, ids: Sequence[str], *, history: bool = False) -> list[Snapshot | None]:
            if "p7" in ids:
                raise StorageCorruptError("process 'p7' is damaged")
            return await super().read(ids, history=history)

    async def main(clock: VirtualClock) -> None:
        shelf = Damaged()
        for n in range(20):
            shelf.put(f"p{n}", ENDED)
        watch = watching(shelf, set())
        found = await asyncio.gather(
            *(watch.wait(f"p{n}") for n in range(20)), return_exceptions=True
        )
        assert isinstance(found.pop(7), StorageCorruptError)
        assert found == [ENDED] * 19

    run_virtual(main)
