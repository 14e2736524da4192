"""The benchmarks run, and refuse to measure what means nothing."""

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import asyncpg
import pytest

from benchmarks import (
    batches_postgres,
    cancel_postgres,
    children_postgres,
    claim_postgres,
    engine_memory,
    event_latency,
    event_postgres,
    idle_latency_postgres,
    idle_queries_postgres,
    list_postgres,
    lone_step,
    lone_step_postgres,
    memory_resident,
    open_folder,
    resume,
    resume_postgres,
    steps_filesystem,
    steps_postgres,
    takeover_postgres,
)
from benchmarks import map as map_items
from benchmarks._bare import run_bare
from benchmarks._bare_postgres import TABLES, run_bare_postgres
from benchmarks._frame import BareFile, conclude, filesystem_of, options
from benchmarks._postgres import VARIABLE, Server
from benchmarks.dbos import __main__ as peers
from durabletask_postgres.testing import ThrowAwayPostgres

Main = Callable[[Sequence[str]], None]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A benchmark is a program, and quiets the log of its own; here others come after it."""
    logger = logging.getLogger("durabletask")
    before = logger.level
    yield
    logger.setLevel(before)


ON_FILES = (
    engine_memory,
    event_latency,
    lone_step,
    map_items,
    memory_resident,
    open_folder,
    resume,
    steps_filesystem,
)

ON_POSTGRES = (
    batches_postgres,
    cancel_postgres,
    children_postgres,
    claim_postgres,
    event_postgres,
    idle_latency_postgres,
    idle_queries_postgres,
    list_postgres,
    lone_step_postgres,
    resume_postgres,
    steps_postgres,
    takeover_postgres,
)

SHAPE = """
    select t.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        array_position(i.indkey::smallint[], a.attnum) as place_in_key
    from pg_class t
    join pg_attribute a on a.attrelid = t.oid and a.attnum > 0
    join pg_index i on i.indrelid = t.oid and i.indisprimary
    where t.relnamespace = '%s'::regnamespace and t.relname in ('process', 'checkpoint')
    order by t.relname, a.attnum
"""

STEPS_WRITTEN = """
    select p.process_id, p.status, array_agg(c.key order by c.seq) as keys
    from bare.process p join bare.checkpoint c using (process_no)
    group by p.process_id, p.status
    order by p.process_id
"""

LINE = re.compile(rb"([0-9a-f]{8})([0-9a-f]{8}) (.*)")

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/real\\040disk xfs rw 0 0
none /run/user ramfs rw 0 0
"""


def test_every_benchmark_is_tried() -> None:
    """No benchmark is added that this file does not try."""
    folder = Path(__file__).parents[1] / "benchmarks"
    named = {module.__name__.rpartition(".")[2] for module in ON_FILES + ON_POSTGRES}
    assert named == {path.stem for path in folder.glob("[!_]*.py")}


@pytest.fixture(scope="module")
def one_server() -> Iterator[str]:
    """Start the server that all benchmarks on Postgres use, each in databases of its own."""
    given = os.environ.get(VARIABLE)
    if given:
        yield given
        return
    with ThrowAwayPostgres() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, server.dsn)
        yield server.dsn


@pytest.mark.parametrize("main", [module.main for module in ON_FILES])
def test_benchmark_runs_and_tells_its_ratio_last(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each benchmark runs in its tiny mode, ends with what it must reach, and leaves no file."""
    main(["--tiny", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "ratio" in "".join(lines)
    assert "must be at" in lines[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_server")
@pytest.mark.parametrize("main", [module.main for module in ON_POSTGRES])
def test_benchmark_on_postgres_runs_and_tells_its_ratio_last(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each benchmark on Postgres runs in its tiny mode and ends with what it must reach."""
    main(["--tiny", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "ratio" in "".join(lines)
    assert "must be at" in lines[-1]


@pytest.mark.usefixtures("one_server")
def test_benchmark_beside_a_peer_tells_its_ratio_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the ways in which the peer can be run the quickest counts, and the ratio comes last."""
    answers = {"coroutines": {"s": 200.0}, "threads": {"s": 100.0}}
    idle = {"1": [4.0, 8.0], "10": [20.0, 40.0]}
    monkeypatch.setattr(peers, "environment", lambda _: Path("python"))
    monkeypatch.setattr(peers, "run_peer", lambda _, __, way, *___: answers[way.how] | idle)
    monkeypatch.setattr(peers, "run_ours", lambda *_: 100.0)
    peers.main(["--tiny"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ratio, steps to DBOS: 100 ")
    assert last.endswith("must be at least 100: reached")


def test_benchmarks_leave_nothing_on_a_server(one_server: str) -> None:
    """The databases that a benchmark makes are gone after it, also after one that failed."""
    asked = "select count(*) from pg_database where datname like 'bench_%'"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_postgres, "run_pair", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            steps_postgres.main(["--tiny"])
    assert asyncio.run(fetch(one_server, asked)) == [(0,)]


def test_bare_program_on_postgres_writes_what_it_is_compared_for(one_server: str) -> None:
    """The bare program's tables hold every process, ended, with each of its steps in order."""
    server = Server(one_server)
    with server.database() as dsn:
        timing = asyncio.run(run_bare_postgres(dsn, processes=3, steps=4))
        rows = asyncio.run(fetch(dsn, STEPS_WRITTEN))
    server.close()
    assert timing.steps == 12
    keys = [f"step {number}" for number in range(4)]
    assert rows == [(f"process/{number}", "completed", keys) for number in range(3)]


def test_bare_program_on_postgres_keeps_the_same_tables(one_server: str) -> None:
    """Both sides of a ratio write the same columns under the same primary keys."""
    server = Server(one_server)
    with server.database() as dsn:
        server.sql(TABLES, dsn=dsn)
        ours, bare = (asyncio.run(fetch(dsn, SHAPE % name)) for name in ("durabletask", "bare"))
    server.close()
    assert {table for table, *_ in ours} == {"process", "checkpoint"}
    assert bare == ours


async def fetch(dsn: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    rows = [tuple(row) for row in await connection.fetch(statement)]
    await connection.close()
    return rows


def test_bare_program_writes_what_it_is_compared_for(tmp_path: Path) -> None:
    """The bare program's file holds every creation, step and end, each with length and CRC."""
    file = BareFile(tmp_path / "bare")
    timing = asyncio.run(run_bare(file, processes=3, steps=4))
    file.close()
    assert timing.steps == 12
    told = []
    for line in (tmp_path / "bare").read_bytes().splitlines():
        found = LINE.fullmatch(line)
        assert found is not None
        size, crc, payload = int(found[1], 16), int(found[2], 16), found[3]
        assert (size, crc) == (len(payload), crc32(payload))
        record = json.loads(payload)
        told.append((record["id"], record["t"], record.get("seq")))
    assert {each[0] for each in told} == {f"process/{number}" for number in range(3)}
    assert len(told) == len(set(told)) == 3 * (1 + 4 + 1)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/files", "ext4"),
        ("/tmp/files", "tmpfs"),
        ("/tmp/real disk/files", "xfs"),
        ("/run/user", "ramfs"),
    ],
)
def test_file_system_is_that_of_the_nearest_mount(path: str, kind: str, tmp_path: Path) -> None:
    """The type of the file system is found by the longest mount point above a path."""
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert filesystem_of(Path(path), mounts) == kind


def test_ram_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure is ever told that was measured on a RAM disk."""
    monkeypatch.setattr("benchmarks._frame.filesystem_of", lambda *_: "tmpfs")
    with pytest.raises(SystemExit):
        options("?", ["--folder", str(tmp_path)])


@pytest.mark.parametrize(("value", "word"), [(0.49, "MISSED"), (0.5, "reached")])
def test_missing_is_told(value: float, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A figure that is not what it must be is called so; the median decides."""
    conclude("ratio", [0.1, value, 0.9], at_least=0.5)
    assert capsys.readouterr().out.rstrip().endswith(word)
