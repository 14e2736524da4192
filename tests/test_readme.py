"""The README's programs run, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from durabletask import MemoryStorage, ProcessHost
from durabletask.errors import EventTimeoutError, ProcessFailedError
from durabletask.testing import VirtualClock, crash_everywhere, run_virtual

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(program: str, folder: Path) -> str:
    """Run a program in a folder and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_is_a_program() -> None:
    """The README shows a program, and it is short."""
    assert PROGRAMS
    assert max(len(program.splitlines()) for program in PROGRAMS) <= 40


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs_run_and_do_nothing_twice(number: int, tmp_path: Path) -> None:
    """S0.02: each program of the README runs; a second start knows the result and runs no step."""
    first = run(PROGRAMS[number], tmp_path).splitlines()
    again = run(PROGRAMS[number], tmp_path).splitlines()
    assert first[-1] == again[-1]
    assert len(first) > len(again), "the steps print, and they must not run again"


def functions() -> dict[str, Any]:
    """Return what the first program defines, without running its `main`."""
    scope: dict[str, Any] = {"__name__": "readme"}
    exec(PROGRAMS[0].replace("asyncio.run(main())", ""), scope)
    return scope


def test_it_dies_anywhere_and_goes_on() -> None:
    """The first program survives its death at every call of its storage."""
    scope = functions()
    crash_everywhere(
        scope["travel"], "Lisbon", events=[("approved", "carol")], processes=[scope["apply"]]
    ).check()


def test_what_nobody_approves_is_undone(capsys: pytest.CaptureFixture[str]) -> None:
    """After a week without approval the hotel is cancelled, as its comment says."""
    scope = functions()

    async def main(clock: VirtualClock) -> None:
        storage = MemoryStorage(clock, lease_ttl_s=None)
        processes = [scope["travel"], scope["apply"]]
        async with ProcessHost(storage, processes=processes, clock=clock) as host:
            handle = await host.spawn(scope["travel"], "trip/1", "Oslo")
            with pytest.raises(ProcessFailedError) as failed:
                await handle.result()
            assert isinstance(failed.value.__cause__, EventTimeoutError)

    run_virtual(main)
    assert capsys.readouterr().out.splitlines() == [
        "booking a hotel in Oslo",
        "booking a visa for Oslo",
        "cancelling the hotel in Oslo, number 4711",
    ]


def test_names_the_namesake() -> None:
    """The README warns of the other distribution with the same import name."""
    assert "pip install durabletask-saga" in README
    assert "cannot share an environment" in README
    assert "## Not promised" in README


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/comparison.md",
        "docs/concepts.md",
        "docs/design.md",
        "docs/migrating.md",
        "docs/patterns.md",
        "docs/performance.md",
        "docs/postgres.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link of the pages points to a file of the repository."""
    path = ROOT / page
    if not path.exists():
        pytest.fail(f"{page} is missing")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
