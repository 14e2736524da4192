"""Damage to what was acknowledged is told, never taken for the end of the log."""

from random import Random

from durabletask.errors import StorageCorruptError
from durabletask.testing.disk import Image, SimulatedFolder
from durabletask_filesystem._requests import Read
from durabletask_filesystem._store import Store
from tests.filesystem.crash_play import CLOCK
from tests.filesystem.crash_rot import rot, served_each, small_store
from tests.filesystem.crash_scenarios import create, new


def test_every_bit_of_a_closed_store() -> None:
    """Each bit: the old content, a refusal, or one process set aside; nothing is cut (F024, F025).

    G13, G14.
    """
    course, wrong = rot(small_store(clean=True).image)
    print(f"bit rot, closed: {dict(course)}")
    assert not wrong
    assert course["refused"] > 0
    assert not course["cut"]


def test_every_bit_of_a_store_whose_host_was_killed() -> None:
    """Without a clean close the last batch alone may be cut as torn; all else as above (F025)."""
    small = small_store(clean=False)
    size = len(small.image.files[small.tail])
    prefixes = [served_each(small.cut(at)) for at in range(small.last, size)]
    also = tuple(found for found in prefixes if isinstance(found, dict))
    assert len(also) == len(prefixes)
    course, wrong = rot(small.image, only=small.tail, also=also)
    print(f"bit rot, killed: {dict(course)}")
    assert not wrong
    assert course["refused"] > 0
    assert course["cut"] > 0


def test_every_cut_of_a_closed_tail() -> None:
    """A closed store that has become shorter is refused, by any number of bytes (F025)."""
    small = small_store(clean=True)
    for size in range(len(small.image.files[small.tail])):
        found = served_each(small.cut(size))
        assert isinstance(found, str), f"cut to {size:,} bytes it serves {found}"


def test_every_cut_and_tear_of_the_last_batch_leaves_a_prefix() -> None:
    """Each byte cut of a killed host's last batch leaves its first units, whole (F021)."""
    small = small_store(clean=False)
    size = len(small.image.files[small.tail])
    whole = served_each(small.image)
    before = served_each(small.cut(small.last))
    assert isinstance(whole, dict)
    assert isinstance(before, dict)
    seen = {tuple(sorted(before.items()))}
    for at in range(small.last, size):
        found = served_each(small.cut(at))
        assert isinstance(found, dict)
        seen.add(tuple(sorted(found.items())))
        assert all(found[name] in {before[name], whole[name]} for name in whole)
    assert len(seen) == 2, "the first of two units is there alone at some cut"


def test_a_damaged_id_is_not_free() -> None:
    """An id whose creation record has rotted can be neither created again nor read as unknown.

    G9, G13: a process that was merely forgotten would run a second time.
    """
    image = small_store(clean=True).image
    path = "segments/00000001.log"
    at = image.files[path].index(b'"id":"q"')
    rotten = image.files[path][:at] + b"#" + image.files[path][at + 1 :]
    folder = SimulatedFolder(Image({**image.files, path: rotten}, image.subfolders))
    store = Store.open(folder, CLOCK, entropy=Random(5).randbytes)
    for request in (*create(new("q"), lease=None), Read(("q",))):
        (answer,) = store.apply((request,))
        assert isinstance(answer, StorageCorruptError)
    (answer,) = store.apply(create(new("fine"), lease=None))
    assert isinstance(answer, tuple)
