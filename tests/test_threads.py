"""The threads of synchronous steps: how many, in which order, and none outlives its program."""

import subprocess
import sys
from pathlib import Path
from threading import Event, Thread, current_thread

import pytest

from durabletask._threads import StepThreads

PATIENCE_S = 30.0

HANGS = """
import asyncio, os, signal, sys, threading
from durabletask import Process, ProcessHost
from durabletask_filesystem import FileSystemStorage

def hang() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()

async def stuck(proc: Process) -> None:
    await proc.do("hang", hang)

async def main() -> None:
    async with ProcessHost(FileSystemStorage(sys.argv[1]), processes=[stuck], drain_s=0) as host:
        serving = asyncio.create_task(host.serve())
        await asyncio.sleep(0)  # it hears signals from here on
        await host.spawn(stuck, "s")
        await serving

asyncio.run(main())
"""


def test_a_step_that_hangs_does_not_keep_its_program(tmp_path: Path) -> None:
    """Issue 2, SIGTERM: a drained program ends with 0 though a synchronous step never returns."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run again: 's'" in done.stderr


def test_threads_are_made_when_needed_and_used_again() -> None:
    """One call after the other needs one thread; as many as are asked for run at once."""
    threads, go = StepThreads(3, "few"), Event()
    begun = [Event() for _ in range(4)]

    def name() -> str:
        return current_thread().name

    def work(number: int) -> str:
        begun[number].set()
        assert go.wait(PATIENCE_S)
        return name()

    first = threads.submit(name).result(PATIENCE_S)
    calls = [threads.submit(work, number) for number in range(4)]
    for each in begun[:3]:
        assert each.wait(PATIENCE_S)
    assert not begun[3].is_set()
    go.set()
    names = [call.result(PATIENCE_S) for call in calls]
    assert first in names
    assert len({*names}) == 3
    threads.shutdown()


def test_an_error_is_the_calls_and_its_thread_goes_on() -> None:
    """What a call raises, whatever it is, meets whoever awaits it and nobody else."""

    def leave() -> None:
        raise SystemExit(3)

    threads = StepThreads(1, "errors")
    failed, later = threads.submit(leave), threads.submit(int, "7")
    assert isinstance(failed.exception(PATIENCE_S), SystemExit)
    assert later.result(PATIENCE_S) == 7
    threads.shutdown()


def test_shutdown_drops_what_has_not_begun_and_refuses_what_comes() -> None:
    """A call under way ends, those behind it never begin, and a later one is refused."""
    threads, begun, go = StepThreads(1, "end"), Event(), Event()

    def work() -> bool:
        begun.set()
        return go.wait(PATIENCE_S)

    first, second = threads.submit(work), threads.submit(work)
    assert begun.wait(PATIENCE_S)
    threads.shutdown(wait=False, cancel_futures=True)
    go.set()
    assert first.result(PATIENCE_S)
    assert second.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(work)
    threads.shutdown()


def test_a_call_without_a_thread_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine gives no thread the step is told, and fails; it must not run later."""
    ran: list[str] = []

    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = StepThreads(2, "few")
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            threads.submit(ran.append, "first")
    threads.submit(ran.append, "second").result(PATIENCE_S)
    threads.shutdown()
    assert ran == ["second"]
