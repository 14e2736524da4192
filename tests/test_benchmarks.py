"""The benchmarks run, and refuse to measure what means nothing."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import pytest

from benchmarks import (
    engine_memory,
    event_latency,
    lone_step,
    memory_resident,
    open_folder,
    resume,
    steps_filesystem,
)
from benchmarks._bare import run_bare
from benchmarks._frame import BareFile, conclude, filesystem_of, options

Main = Callable[[Sequence[str]], None]

ALL = (
    engine_memory,
    event_latency,
    lone_step,
    memory_resident,
    open_folder,
    resume,
    steps_filesystem,
)

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
    named = {module.__name__.rpartition(".")[2] for module in ALL}
    assert named == {path.stem for path in folder.glob("[!_]*.py")}


@pytest.mark.parametrize("main", [module.main for module in ALL])
def test_benchmark_runs_and_tells_its_ratio_last(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each benchmark runs in its tiny mode, ends with what it must reach, and leaves no file."""
    main(["--tiny", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "ratio" in "".join(lines)
    assert "must be at" in lines[-1]
    assert list(tmp_path.iterdir()) == []


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
