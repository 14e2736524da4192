"""What is recorded is what was asked and answered, and it survives its program."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durabletask import MemoryStorage, Process, ProcessHost
from durabletask.errors import (
    LeaseLostError,
    StepError,
    StorageUnavailableError,
    StorageUnknownError,
    UnknownProcessError,
    WrongContextError,
)
from durabletask.storage import NewProcess, Query
from durabletask.testing.history import (
    Commit,
    Create,
    Deliver,
    Effects,
    Execute,
    HistoryFile,
    HistoryList,
    Phase,
    RecordingStorage,
    Renew,
    check,
    dump,
    read_histories,
    tally,
)
from tests.engine.database import Connection, database_of
from tests.engine.world import Wire, World, virtual


def phases(history: HistoryList, kind: type[Any]) -> list[str]:
    """Return what happened to one sort of request, in order."""
    return [str(each.phase) for each in history.operations if isinstance(each, kind)]


def new(process_id: str) -> NewProcess:
    return NewProcess(
        process_id=process_id, name="f", input=b"1", input_digest="d", creation_id=process_id
    )


# --- files -------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every operation comes back equal, and belongs to its file."""
    file = HistoryFile(tmp_path / "one.history")
    written = Create(phase=Phase.INVOKE, who=file.who, call=file.next_call(), at_s=file.now_s())
    file.write([written])
    file.close()
    assert read_histories([tmp_path / "one.history"]) == [written]
    assert written.who == "one"


def test_a_file_belongs_to_one_start(tmp_path: Path) -> None:
    """A second start that took the same file would go on behind a torn line: it is refused."""
    HistoryFile(tmp_path / "one").close()
    with pytest.raises(FileExistsError):
        HistoryFile(tmp_path / "one")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    """F002: a kill in the middle of a line loses that line and no other."""
    file = HistoryFile(tmp_path / "one")
    file.write([Renew(phase=Phase.INVOKE, call=1), Renew(phase=Phase.OK, call=1)])
    file.close()
    text = (tmp_path / "one").read_bytes()
    (tmp_path / "one").write_bytes(text[:-5])
    assert [each.phase for each in read_histories([tmp_path / "one"])] == [Phase.INVOKE]
    (tmp_path / "one").write_bytes(b"{}\n" + text)
    with pytest.raises(msgspec.ValidationError):
        read_histories([tmp_path / "one"])


def test_of_one_instant_requests_come_first(tmp_path: Path) -> None:
    """Equal stamps say nothing about the order, so the two overlap: no false alarm."""

    class Standing:
        recheck_s = 1.0

        def now(self) -> Any:
            raise NotImplementedError

        def monotonic_s(self) -> float:
            return 7.0

    for name, phases in (("a", (Phase.INVOKE, Phase.OK)), ("b", (Phase.INVOKE,))):
        file = HistoryFile(tmp_path / name, Standing())
        file.write([Renew(phase=phase, who=name, call=1, at_s=file.now_s()) for phase in phases])
        file.close()
    merged = read_histories([tmp_path / "a", tmp_path / "b"])
    assert [(each.who, each.phase) for each in merged] == [
        ("a", Phase.INVOKE),
        ("b", Phase.INVOKE),
        ("a", Phase.OK),
    ]


def test_steps_in_threads_write_whole_lines(tmp_path: Path) -> None:
    """Lines of several threads never mix."""
    file = HistoryFile(tmp_path / "one")

    def write() -> None:
        for _ in range(200):
            file.write([Renew(phase=Phase.INVOKE, call=file.next_call(), why="x" * 300)] * 2)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()
    calls = [each.call for each in read_histories([tmp_path / "one"])]
    assert len(calls) == 1_600
    assert len(set(calls)) == 800


KILLED = """
import os, signal, sys
from durabletask.testing.history import HistoryFile, Phase, Renew
file = HistoryFile(sys.argv[1])
for _ in range(1000):
    file.write([Renew(phase=Phase.INVOKE, who=file.who, call=file.next_call())])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    """F002: nothing is buffered; a program that is killed loses no line."""
    path = tmp_path / "one"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    subprocess.run([sys.executable, "-c", KILLED, path], check=False, env=env)
    assert len(read_histories([path])) == 1_000


# --- the storage in between --------------------------------------------------------------


async def test_refused_lost_and_cancelled_are_told_apart() -> None:
    """F054: what was certainly not done is "fail"; a lost answer or a cancelled call is "info"."""
    wire = Wire(MemoryStorage())
    history = HistoryList()
    storage = RecordingStorage(wire, history)

    async def raising(error: Exception) -> None:
        async def fault(call: str) -> None:
            raise error

        wire.before = fault
        with pytest.raises(type(error)):
            await storage.create([new("p")])

    await raising(StorageUnavailableError("no"))
    await raising(LeaseLostError("no"))
    await raising(StorageUnknownError("?"))
    await raising(ValueError("a bug"))
    wire.cut()
    call = asyncio.ensure_future(storage.create([new("p")]))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert phases(history, Create) == [
        *("invoke", "fail", "invoke", "fail"),
        *("invoke", "info", "invoke", "info", "invoke", "info"),
    ]
    assert tally(history.operations)["create fail LeaseLostError"] == 1


async def test_a_busy_process_is_a_refusal() -> None:
    """BUSY says that nothing of it was written: "fail", with the reason."""
    memory, history = MemoryStorage(), HistoryList()
    storage = RecordingStorage(memory, history)
    with memory.hold("p"):
        (answer,) = await storage.create([new("p")])
    assert answer.row is None
    assert phases(history, Create) == ["invoke", "fail"]
    assert check(history.operations, await dump(storage)) == []


async def test_hints_go_through_where_there_are_any() -> None:
    """A host sleeps longer where it is told that there will be hints, so none are made up."""
    memory = MemoryStorage()
    heard: list[str | None] = []
    storage = RecordingStorage(memory, HistoryList())
    storage.subscribe(heard.append)
    await storage.create([new("p")])
    await asyncio.sleep(0)
    assert heard == ["p"]

    class Mute:
        def __getattr__(self, name: str) -> Any:
            if name == "subscribe":
                raise AttributeError(name)
            return getattr(memory, name)

    mute: Any = Mute()
    assert not hasattr(RecordingStorage(mute, HistoryList()), "subscribe")
    assert not hasattr(RecordingStorage(mute, HistoryList()), "transact")


async def test_the_final_state_is_read_whole() -> None:
    """More processes than a page holds are all in the dump, with their history."""
    storage = MemoryStorage()
    for batch in range(3):
        await storage.create([new(f"{batch}/{number}") for number in range(700)])
    assert len(await dump(storage)) == 2_100
    assert (await storage.list(Query(limit=1))).cursor is not None


@virtual
async def test_a_host_is_recorded_from_its_start_to_its_end(world: World) -> None:
    """A run without a fault is whole in its history, and breaks no promise."""
    history = HistoryList()
    effects = Effects(history)

    async def step() -> str:
        effects()
        return "done"

    async def process(proc: Process) -> str:
        saw = effects.saw(proc, "step", await proc.do("step", step))
        await proc.event("go")
        return saw

    recorded = RecordingStorage(world.storage, history)
    async with ProcessHost(recorded, processes=[process], clock=world.clock) as host:
        handle = await host.spawn(process, "p")
        await handle.raise_event("go")
        assert await handle.result() == "done"
    assert check(history.operations, await dump(world.storage), ended=["p"]) == []
    counts = tally(history.operations)
    assert counts["execute ok"] == counts["see invoke"] == counts["deliver ok"] == 1
    assert counts["renew ok"] >= 1
    assert counts["closelease ok"] == 1
    (run,) = [each for each in history.operations if isinstance(each, Execute)][:1]
    assert (run.process_id, run.key, run.epoch, run.attempt) == ("p", "step", 1, 1)
    assert run.host_id in {each.host_id for each in history.operations if isinstance(each, Commit)}


async def test_effects_are_those_of_steps() -> None:
    """Outside a step there is nobody whose effect it could be: WrongContextError."""
    with pytest.raises(WrongContextError):
        Effects(HistoryList())()


@virtual
async def test_transactions_are_recorded_with_what_they_came_to(world: World) -> None:
    """Issue 3.5: a result is asked for when there is one; the user's error rolls all of it back."""
    history, database = HistoryList(), database_of(world)
    lost = [StorageUnknownError("the answer is lost")]

    async def write(connection: Connection) -> str:
        await connection.write("row", 1)
        return "written"

    async def fail(connection: Connection) -> None:
        raise ValueError("refused")

    async def lose_first(call: str) -> None:
        if lost:
            raise lost.pop()

    async def process(proc: Process) -> str:
        with suppress(StepError):
            await proc.transaction("fails", fail)
        return await proc.transaction("works", write)

    database.after_commit = lose_first
    recorded = RecordingStorage(database, history)
    async with ProcessHost(recorded, processes=[process], clock=world.clock) as host:
        connection = Connection(database)
        async with connection.transaction():
            await host.spawn(process, "p", connection=connection)
            with pytest.raises(UnknownProcessError):
                await host.raise_event("q", "go", connection=connection)
        assert await host.get("p").result() == "written"
    assert check(history.operations, await dump(database), ended=["p"]) == []
    assert phases(history, Create) == ["invoke", "info"]
    assert phases(history, Deliver) == ["invoke", "fail"]
    counts = tally(history.operations)
    assert counts["commit info StorageUnknownError"] == 1
