"""In how many processes the tests run, and how seldom each of them looks for garbage."""

import gc
import os

import pytest

from tests.postgres.server import VARIABLE


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return 0, for all in one process, or None for a worker on each core.

    Tests that are chosen by name have run before a second worker has collected all there are. A
    server that is named is one for all workers, and some tests look at all of its sessions.
    """
    by_name = config.option.keyword or any("::" in each for each in config.args)
    return 0 if by_name or os.environ.get(VARIABLE) else None


def pytest_collection_finish() -> None:
    """Keep the collector from walking through all tests and modules again and again.

    It also comes less often, though not by much: what lies about for longer is no longer in the
    processor's cache when it is freed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 40)
