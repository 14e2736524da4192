"""Histories that released versions have written are resumed by today's code to their end.

If a test here fails, the release would strand the processes of its users.
"""

import asyncio
import hashlib
from pathlib import Path

import pytest

from durabletask import ProcessClient
from durabletask.errors import ProcessFailedError
from durabletask.storage import Form, Kind, Status
from durabletask.testing import (
    VirtualClock,
    check_histories,
    export_history,
    import_histories,
    run_virtual,
)
from durabletask.testing._histories import read_history
from tests.engine.database import Database, host_of
from tests.engine.world import World
from tests.histories.make import play
from tests.histories.programs import DONE, SCENARIOS, Scenario

FOLDER = Path(__file__).parent

WRITTEN: dict[str, str] = {
    "v0.1_booking.jsonl": "d90d5ec8d9638c828033e014d8e330d6dc36d9db81dcd55b5d654fa214a4f42a",
    "v0.1_cancelled.jsonl": "7de9ec18c637920748fe8352adad979b908f7aac45381ea1624b0b17c719ca9a",
    "v0.1_family.jsonl": "8c93444199c74994c15af085715f29ce591cc272cd71fed84ef89bcd5d128681",
    "v0.1_many.jsonl": "8ae9f5645f4610dbc4950b5e83475012a55f088cc2bbe4483cbd554133480055",
    "v0.1_overtaken.jsonl": "4aaf39beb062cf0e42ac300d3b477298361314f99f8529e81500ff6da22ff089",
    "v0.1_races.jsonl": "cec75b803a5b04f3ca28538ed79628567dc5349b31a84b683f1fc1946c5864b0",
    "v0.1_restarting.jsonl": "ee55a025bfa6b63514e7ffbd81b367afe601fa79fad0eb6adc2f54cdfdcd0755",
    "v0.1_retried.jsonl": "7f7e43bde00983695f3ab82fa5e793e9921d43ca1b571a85764af4cf66ec60b7",
    "v0.1_saga.jsonl": "4a9f615fadf0edd195d8551e98f838cb2d89ec6f4bf5ef5166d0e4afeb74691c",
    "v0.1_suspended.jsonl": "95f586ccc25d7d4abaa4d1f308a8e2ebf2725780ed163486ed4725be9ebe74eb",
    "v0.1_to_cancel.jsonl": "16a33c7c740a5373363fb22e7b54125773194fbf3258b583c5bd04c2e3542a8e",
    "v0.1_undoing.jsonl": "d5627fb1e81c15b57b3ed31a67e7ad2eb0fdfa34448a19e197934e4c506ddd8a",
}
"""The histories and their SHA-256. They are what users have in their storages: a line here and a
file beside it are added by a release that records something new, and never edited or removed."""

LATER_DAYS = 3
"""After so long today's code takes over: what fell due meanwhile is late, and no wait is over."""


def lines(name: str) -> list[bytes]:
    """Return the exported processes of a file."""
    return (FOLDER / name).read_bytes().splitlines()


def scenario_of(name: str) -> Scenario:
    """Return the scenario that a file was made by."""
    return SCENARIOS[name.removesuffix(".jsonl").partition("_")[2]]


def test_no_history_was_touched() -> None:
    """Issue 4.5: golden histories stay as they were written; a new format adds files of its own.

    If this fails, do not edit the digests: restore the files, and add new
    ones with `python -m tests.histories.make VERSION`.
    """
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(FOLDER.glob("*.jsonl"))
    }
    assert found == WRITTEN, "restore the files that differ, and add new ones; edit no digest"


def test_every_kind_of_record_is_among_them() -> None:
    """Issue 4.5: each kind and form of checkpoint, each open status, events, what is forgotten."""
    snapshots = [read_history(line) for name in WRITTEN for line in lines(name)]
    checkpoints = [held for snapshot in snapshots for held in snapshot.checkpoints]
    assert {held.kind for held in checkpoints} == set(Kind)
    assert {held.form for held in checkpoints} == set(Form)
    assert {snapshot.row.status for snapshot in snapshots} >= {
        Status.RUNNING,
        Status.WAITING,
        Status.SUSPENDED,
        Status.COMPENSATING,
    }
    assert any(event.consumed for snapshot in snapshots for event in snapshot.events)
    assert any(not event.consumed for snapshot in snapshots for event in snapshot.events)
    assert any(snapshot.forgotten for snapshot in snapshots)
    assert any(snapshot.row.generation for snapshot in snapshots)
    assert any(snapshot.row.cancel_met for snapshot in snapshots)
    assert any(s.row.cancel_reason and not s.row.cancel_met for s in snapshots)


async def outcome(client: ProcessClient, process_id: str) -> object:
    """Return the result of a process, or what its error says."""
    try:
        return await client.get(process_id).result()
    except ProcessFailedError as error:
        return str(error.__cause__)


def resume(name: str, folder: Path) -> tuple[dict[str, object], list[str]]:
    """Let today's code go on with a history; return what it came to and what steps did."""
    scenario = scenario_of(name)

    async def main(clock: VirtualClock) -> dict[str, object]:
        await asyncio.sleep(LATER_DAYS * 86_400)
        world = World(clock)
        import_histories(lines(name), clock).save(folder / "saved")
        world.storage = Database.load(folder / "saved", clock)
        async with host_of(world, scenario.fn, *scenario.others) as host:
            await asyncio.sleep(1)
            await scenario.finish(host)
            return {each: await outcome(host, each) for each in scenario.comes_to}

    DONE.clear()
    return run_virtual(main), list(DONE)


@pytest.mark.parametrize("name", WRITTEN)
def test_todays_code_ends_what_was_begun(name: str, tmp_path: Path) -> None:
    """Issue 4.5: a process of an earlier version comes to its end, and repeats no step."""
    scenario = scenario_of(name)
    came_to, done = resume(name, tmp_path)
    assert came_to == scenario.comes_to
    assert sorted(done) == sorted(scenario.does)


@pytest.mark.parametrize("name", WRITTEN)
def test_todays_code_is_in_order_by_the_check(name: str) -> None:
    """Issue 4.5: check_histories finds nothing wrong with code that is the same."""
    scenario = scenario_of(name)
    for line in lines(name):
        functions = {fn.__name__: fn for fn in (scenario.fn, *scenario.others)}
        fn = functions[read_history(line).row.name]
        (report,) = check_histories(fn, [line], processes=functions.values())
        assert report.ok, str(report)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_written_today_is_among_them(name: str) -> None:
    """Issue 4.5: today's code records the same calls as the newest file of each scenario.

    If this fails because something new is recorded, add files of this version.
    """
    *_, file = [each for each in WRITTEN if each.endswith(f"_{name}.jsonl")]
    then = [_calls(line) for line in lines(file)]
    assert [_calls(line) for line in play(SCENARIOS[name]).splitlines()] == then


def _calls(line: bytes) -> list[tuple[str, str, int, str]]:
    return [
        (held.kind.value, held.key, held.index, held.form.value)
        for held in read_history(line).checkpoints
    ]


def test_an_export_of_what_was_imported_is_the_same(tmp_path: Path) -> None:
    """Issue 4.5: nothing of a history is lost on its way in and out, but for its dead host."""

    async def main(clock: VirtualClock) -> list[bytes]:
        client = ProcessClient(import_histories(lines(name), clock))
        ids = [read_history(line).row.process_id for line in lines(name)]
        return [await export_history(client, each) for each in ids]

    for name in WRITTEN:
        for before, after in zip(lines(name), run_virtual(main), strict=True):
            then, now = read_history(before), read_history(after)
            assert (now.checkpoints, now.events) == (then.checkpoints, then.events)
            assert now.forgotten == then.forgotten
            for field in ("status", "input", "tags", "cancel_reason", "generation", "ending"):
                assert getattr(now.row, field) == getattr(then.row, field)
