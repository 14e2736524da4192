"""Whose child a process is, for listings by parent: looked up once, and never too few."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from durabletask.storage import NewProcess, Page, Parent, Query
from durabletask_filesystem._offspring import Offspring
from durabletask_filesystem._records import NewRecord
from durabletask_filesystem._requests import Commit, Compact, Create, ListPage, Purge
from durabletask_filesystem._store import Store
from tests.filesystem.stores import FINISH, ask, claim, lease_of, new, open_store, unit

SEGMENT = 20_000


def below(store: Store, parent_id: str, scan_max: int = 2_000) -> list[str]:
    """Return the ids that a listing by parent finds, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = ask(store, ListPage(Query(parent_id=parent_id, limit=2, cursor=cursor), scan_max))
        assert isinstance(page, Page)
        found += [row.process_id for row in page.rows]
        cursor = page.cursor
        if cursor is None:
            return found


def child(process_id: str, parent_id: str) -> NewProcess:
    """Return a process that another one has spawned."""
    return new(process_id, parent=Parent(parent_id, 1, 0, process_id))


def finish(store: Store) -> None:
    """End everything that can be claimed."""
    lease = lease_of(store)
    claims = claim(store, lease)
    units = tuple(
        unit(each.row.process_id, 1, incarnation=each.row.incarnation, ending=FINISH)
        for each in claims.claimed
    )
    ask(store, Commit(lease, units))


@pytest.mark.parametrize("scan_max", [1, 2_000])
def test_children_are_found_wherever_they_stand(tmp_path: Path, scan_max: int) -> None:
    """S2.11: unfinished or not, sealed, merged, born since, in a folder that is opened again."""
    store = open_store(tmp_path, segment_bytes_max=SEGMENT)
    ask(store, Create((new("a"), child("a1", "a"), child("b1", "b"))))
    assert below(store, "a", scan_max) == ["a1"]
    ask(store, Create((child("a0", "a"),)))
    ask(store, Create((child("a3", "a"), child("a2", "a"), new("c"))))
    assert below(store, "a", scan_max) == ["a1", "a0", "a2", "a3"]
    finish(store)
    for number in range(150):  # until some segments are sealed
        ask(store, Create((new(f"filler {number:03}"),)))
    ask(store, Compact())
    ask(store, Create((child("a4", "a"),)))
    assert len(store._log.segments) > 1
    assert below(store, "a", scan_max) == ["a1", "a0", "a2", "a3", "a4"]
    assert below(store, "b", scan_max) == ["b1"]
    assert below(store, "c", scan_max) == []
    store.close()
    again = open_store(tmp_path, segment_bytes_max=SEGMENT)
    assert below(again, "a", scan_max) == ["a1", "a0", "a2", "a3", "a4"]


def test_what_was_purged_or_made_anew_is_no_child_any_more(tmp_path: Path) -> None:
    """S2.11: an id that is created again below somebody else is that one's."""
    store = open_store(tmp_path)
    ask(store, Create((child("x", "a"), child("y", "a"))))
    assert below(store, "a") == ["x", "y"]
    finish(store)
    assert ask(store, Purge(("x",))) == (None,)
    assert below(store, "a") == ["y"]
    ask(store, Create((child("x", "b"),)))
    assert below(store, "a") == ["y"]
    assert below(store, "b") == ["x"]


def records(count: int) -> list[tuple[int, NewRecord]]:
    """Return creations, two in each moment, each a child of "p"."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    parent = Parent("p", 1, 0, "k")
    empty = msgspec.Raw(b"[]")
    return [
        (each // 2, NewRecord(f"{each:02}", 1, at, "fn", empty, "", "", parent=parent))
        for each in range(count)
    ]


def test_each_creation_is_looked_at_once() -> None:
    """S2.11: a purge of many asks for each of them, and only the first one looks through all."""
    looked: list[str] = []
    there = records(8)

    def creations(since: int) -> Iterator[tuple[int, NewRecord]]:
        for moment, record in there:
            if moment >= since:
                looked.append(record.id)
                yield moment, record

    offspring = Offspring(creations, lambda: len(there))
    while not offspring.look(3):
        pass
    assert len(looked) <= 2 * 8, "what stands at the end of a slice is looked at again"
    looked.clear()
    for _ in range(100):
        assert offspring.look(3)
    assert looked == []
    there[:] = records(9)
    assert offspring.look(3)
    assert looked == ["06", "07", "08"], "the last moment, in which more may have been born"
    children = offspring.of("p")
    assert children is not None
    assert [process_id for _, process_id in children] == [f"{each:02}" for each in range(9)]


def test_too_many_to_remember_are_looked_for_one_by_one() -> None:
    """S2.11: what is remembered is bounded; beyond it the listing looks at everything."""
    offspring = Offspring(lambda _: iter(records(8)), lambda: 8, children_max=5)
    assert offspring.look(100)
    assert offspring.of("p") is None
    assert offspring.look(100)
    assert offspring.of("q") is None
