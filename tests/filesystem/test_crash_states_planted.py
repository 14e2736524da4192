"""Tests of the tests: each known mistake, planted alone, must be caught (FAILURES 3.7)."""

from collections.abc import Callable

import pytest

from durabletask.testing.disk import Bounds, SimulatedFolder, Tally
from durabletask_filesystem import _frames, _recovery
from durabletask_filesystem._files import Folder
from durabletask_filesystem._store import Store
from tests.filesystem.crash_play import Subject, explore
from tests.filesystem.crash_rot import rot, served_each, small_store
from tests.filesystem.crash_scenarios import SCENARIOS, Scenario
from tests.filesystem.planted import (
    NeverSyncs,
    NeverSyncsAnything,
    NeverSyncsEntries,
    RenamesFirst,
)

FEW = Bounds(subsets_max=64, tears_max=64, entries_max=32, states_max=512)


def scenario(name: str) -> Scenario:
    """Return the scenario of that name."""
    (found,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    return found


def caught(mistake: str, subject: Subject, *names: str) -> Tally:
    """Explore with a planted mistake, and fail if nobody noticed it."""
    total = Tally()
    for name in names:
        total.add(explore(scenario(name), subject, bounds=FEW))
    print(f"planted {mistake!r}: caught in {total.wrong:,} of {total.states:,} states")
    assert total.wrong > 0
    return total


@pytest.mark.parametrize("name", ["one process to its end", "rotation", "killed and taken over"])
def test_without_a_mistake_nothing_is_caught(name: str) -> None:
    """The same bounds on the storage as it is find nothing, so what they find below is real."""
    tally = explore(scenario(name), Subject(), bounds=FEW)
    assert tally.wrong == 0, tally.violations


@pytest.mark.parametrize(
    ("mistake", "dress"),
    [
        ("C42 no fsync", NeverSyncs),
        ("C44 no directory fsync", NeverSyncsEntries),
        ("C45 rename before sync", RenamesFirst),
    ],
)
def test_a_wrong_use_of_the_disk_is_caught(
    mistake: str, dress: Callable[[SimulatedFolder], Folder]
) -> None:
    """A storage that skips or misplaces a sync loses something in some state (F020, F030, F031)."""
    caught(mistake, Subject(dress=dress), "one process to its end", "rotation")


def test_serving_unsynced_records_is_caught() -> None:
    """A recovery that does not sync what it read serves what then vanishes (F036, C48)."""
    subject = Subject(dress_recovery=NeverSyncsAnything)
    tally = caught("C48 recovery serves un-synced", subject, "one process to its end")
    assert any("recovery had served" in violation for violation in tally.violations)


def test_no_checksum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a CRC, torn and stale bytes pass for records (F021, F023, C46)."""
    monkeypatch.setattr(_frames, "checksum", lambda *_: 0)
    monkeypatch.setattr(_frames, "crc32", lambda *_: 0)
    caught("C46 no CRC", Subject(), "one process to its end", "large value")


def test_no_salt_is_caught() -> None:
    """With one salt for all segments, the bytes of a removed one pass for records (F038).

    Records repeat harmlessly, so it takes one whose purge has been compacted away.
    """
    caught("F038 no salt", Subject(salted=False), "segments alike")


def test_a_break_in_the_middle_taken_for_a_torn_tail_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cutting at a broken record what follows it intact loses acknowledged records (F024, C47)."""
    small = small_store(clean=False)
    monkeypatch.setattr(_recovery, "_later_batches", lambda *_: iter(()))
    before = served_each(small.cut(small.last))
    assert isinstance(before, dict)
    course, wrong = rot(small.image, only=small.tail, also=(before,))
    print(f"planted 'C47 middle taken for tail': caught in {len(wrong):,} of {course.total():,}")
    assert wrong


def test_no_clean_close_mark_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mark of a clean close, rot at the end passes for a torn write (F025)."""
    monkeypatch.setattr(Store, "_mark_clean", lambda _: None)
    small = small_store(clean=True)
    course, wrong = rot(small.image, only=small.tail)
    print(f"planted 'no clean mark': caught in {len(wrong):,} of {course.total():,} states")
    assert wrong
