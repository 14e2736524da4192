"""Ends of a program that nobody planned: exits, signals and forks inside a step."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from durabletask import ProcessClient
from durabletask_filesystem import FileSystemStorage, check
from tests.kill.deaths import ID

ROOT = Path(__file__).parents[2]
HANG_S = 30.0  # only a hang takes so long


def start(way: str, folder: Path) -> "subprocess.Popen[str]":
    """Start a program that ends in an odd way."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kill.deaths", way, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(way: str, folder: Path) -> tuple[int, str, str]:
    """Run it to its end; return exit code, output and complaints."""
    with start(way, folder) as program:
        output, complaints = end(program)
    return program.returncode, output, complaints


def end(program: "subprocess.Popen[str]") -> tuple[str, str]:
    """Wait for the end of a program, but not for ever; return its output and complaints."""
    try:
        return program.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        program.kill()
        return program.communicate()


async def check_resumed(folder: Path) -> None:
    """Start again, and check that it goes on as if nothing had happened."""
    assert check(folder / "state").problems == ()
    assert await recorded(folder) == ["before"]
    code, output, complaints = run("hang", folder)
    assert (code, output.split()) == (0, ["after", "result", "even"]), complaints
    assert await recorded(folder) == ["before", "odd", "after"]
    assert check(folder / "state").problems == ()


async def recorded(folder: Path) -> list[str]:
    """Return the keys of the recorded steps, all of them successes."""
    async with ProcessClient(FileSystemStorage(folder / "state")) as client:
        history = await client.get(ID).history()
    assert all(entry.error is None and entry.form == "value" for entry in history), history
    return [entry.key for entry in history]


@pytest.mark.parametrize(
    ("way", "code"), [("exit_at_once", 9), ("leave", 7), ("interrupt", -signal.SIGINT)]
)
async def test_exit_inside_a_step(way: str, code: int, tmp_path: Path) -> None:
    """F012 F013: `os._exit`, SystemExit and control-C end the program; the step runs again."""
    ended, output, complaints = run(way, tmp_path)
    assert (ended, output.split()) == (code, ["before"]), complaints
    await check_resumed(tmp_path)


async def test_interpreter_ends_without_stop(tmp_path: Path) -> None:
    """F014: a program that forgets to stop its host ends at once and in order; the rest is kept."""
    ended, output, complaints = run("walk_away", tmp_path)
    assert (ended, output.split()) == (0, ["before", "hanging"]), complaints
    await check_resumed(tmp_path)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
async def test_second_signal_ends_a_drain(second: signal.Signals, tmp_path: Path) -> None:
    """F012: while a drain waits for a step, another signal ends the program, safe as a kill."""
    with start("hang", tmp_path) as program:
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(2)] == ["before\n", "hanging\n"]
        program.send_signal(signal.SIGINT)
        while catches_sigterm(program.pid):
            assert program.poll() is None
        program.send_signal(second)
        output, complaints = end(program)
    assert program.returncode not in (0, -signal.SIGKILL), complaints
    assert "refund" not in output
    await check_resumed(tmp_path)


def catches_sigterm(pid: int) -> bool:
    """Return whether a program handles SIGTERM; it stops to when its drain begins."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


async def test_fork_inside_a_step(tmp_path: Path) -> None:
    """F015: the child of a fork can record nothing, and its parent does not notice it."""
    code, output, complaints = run("fork", tmp_path)
    assert code == 0, complaints
    words = output.split()
    assert "DONE" not in words, output
    assert (words[0], words[-3:]) == ("before", ["after", "result", "odd"]), output + complaints
    assert await recorded(tmp_path) == ["before", "odd", "after"]
    async with ProcessClient(FileSystemStorage(tmp_path / "state")) as client:
        assert [info.id async for info in client.list()] == [ID]
    assert check(tmp_path / "state").problems == ()
