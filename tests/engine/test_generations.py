"""History is bounded: what goes on for ever by beginning anew does not grow."""

import gc
from pathlib import Path

import pytest

from durabletask import MemoryStorage
from durabletask_filesystem import FileSystemStorage
from tests.engine.generations import begin_anew

SEGMENT_BYTES = 1024 * 1024


@pytest.mark.soak
async def test_a_hundred_thousand_generations_do_not_grow_in_memory() -> None:
    """S2.06: after all of them there are as many objects as after a tenth."""

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    before, after = await begin_anew(MemoryStorage(), objects)
    assert after < before + 1_000


@pytest.mark.soak
async def test_a_hundred_thousand_generations_do_not_grow_a_folder(tmp_path: Path) -> None:
    """S2.06: what there was is merged away, so that a few segments are all that there ever is."""

    def folder() -> int:
        return sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file())

    storage = FileSystemStorage(tmp_path, segment_bytes_max=SEGMENT_BYTES)
    assert max(await begin_anew(storage, folder)) < 8 * SEGMENT_BYTES
